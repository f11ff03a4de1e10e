"""The one tokenisation path (law 2): text in, ids out, the same for training, scoring and serving.

Prompt and completion are tokenised apart and joined as ids, so that no merge crosses the boundary. A completion that
ended carries exactly one EOS; one cut by the length limit carries none. Lengths, never ids, say where something
ends, so that a tokenizer whose pad *is* its EOS is harmless.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from keel.errors import InputError
from keel.records import TURN_FIELDS, Bundle, Completion, Demonstration, Message, Pair, Prompt, PromptRow


class EosInsideError(InputError):
    """A completion that goes on after an EOS."""


class DoubleBosError(InputError):
    """A prompt that brings a BOS of its own before the one that the template or the tokenizer writes."""


class Text:
    """A tokenizer with Keel's rules around it.

    `eos_ids` are all ids that end a completion (a chat model may have several); `eos_id` is the one that Keel writes.
    """

    def __init__(self, tokenizer: Any, eos_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None and not list(eos_ids):
            raise InputError("the tokenizer has no EOS token: set eos_token in its tokenizer_config.json")
        self.eos_id = int(tokenizer.eos_token_id if tokenizer.eos_token_id is not None else next(iter(eos_ids)))
        self.eos_ids = frozenset({self.eos_id, *(int(i) for i in eos_ids)})
        self.bos_id: int | None = tokenizer.bos_token_id
        self._adds_bos = self.bos_id is not None and list(tokenizer("").input_ids)[:1] == [self.bos_id]

    # --- ids out of text

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Tokens of a prompt, with the BOS that the tokenizer itself would add and never two.

        An empty prompt becomes BOS (or EOS where there is none), since a model needs a token to start from.
        """
        if isinstance(prompt, str):
            ids = self._ids(prompt)
            if self._adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
                ids = [self.bos_id, *ids]
        else:
            ids = self._ids(self.render(prompt))
        if not ids:
            ids = [self.bos_id if self.bos_id is not None else self.eos_id]
        if len(ids) > 1 and ids[0] == ids[1] == self.bos_id != self.eos_id:
            raise DoubleBosError("the prompt begins with two BOS tokens; remove the one written in the text")
        return ids

    def completion_ids(self, prompt: Prompt, completion: str) -> list[int]:
        """Tokens of a completion that ended: its text and exactly one EOS.

        Raises `EosInsideError` where plain text goes on after one; in a chat, what follows it is the template's.
        """
        if isinstance(prompt, str):
            ids = self._ids(completion)
            while ids and ids[-1] in self.eos_ids:
                ids.pop()
            if not self.eos_ids.isdisjoint(ids):
                raise EosInsideError("the completion goes on after an EOS token; remove it from the text, or cut there")
            return [*ids, self.eos_id]
        return self._chat_completion_ids(prompt, completion)

    def _chat_completion_ids(self, prompt: list[Message], completion: str) -> list[int]:
        before = self.render(prompt)
        whole = self.render([*prompt, {"role": "assistant", "content": completion}], generate=False)
        if not whole.startswith(before):
            raise InputError(
                "the chat template is not a prefix of itself: adding the answer changes how the prompt is rendered; "
                "use a template whose prompt does not depend on what follows"
            )
        ids = self._ids(whole[len(before) :])
        end = next((i for i, token in enumerate(ids) if token in self.eos_ids), None)
        return [*ids, self.eos_id] if end is None else ids[: end + 1]

    def render(self, messages: list[Message], generate: bool = True) -> str:
        """A chat as the model's own template writes it, up to where the assistant starts to speak."""
        if not self.tokenizer.chat_template:
            raise InputError(
                "the data holds chat messages but the tokenizer has no chat template; "
                "give a model with one, or data whose prompts are plain text"
            )
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))

    # --- text out of ids

    def decode(self, ids: list[int]) -> str:
        """Text of a completion, without the EOS that ended it."""
        if ids and ids[-1] in self.eos_ids:
            ids = ids[:-1]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    # --- bundles

    def encode(self, row: PromptRow | Demonstration | Pair, max_length: int) -> Bundle:
        """A record of a file as tokens.

        A completion that does not fit into `max_length` beside its prompt is cut there and marked `truncated`; one that
        was cut when it was drawn is marked, too.
        Raises `InputError` where the prompt leaves no room for a single token, or a completion goes on after an EOS.
        """
        prompt = self.prompt_ids(row.prompt)
        room = max_length - len(prompt)
        if room < 1:
            raise InputError(
                f"{row.origin}: the prompt has {len(prompt)} tokens, which leaves no room below the limit of "
                f"{max_length}; shorten it, raise --max-length or lower --max-new-tokens"
            )
        match row:
            case PromptRow():
                texts = []
            case Demonstration():
                texts = [(row.completion, False)]
            case Pair():
                texts = list(zip((row.chosen, row.rejected), row.cut, strict=True))
        completions = [self._cut(row.prompt, text, room, endless) for text, endless in texts]
        margin = row.margin if isinstance(row, Pair) else 0.0
        return Bundle(prompt, completions, prompt=row.prompt, margin=margin, origin=row.origin)

    def _cut(self, prompt: Prompt, text: str, room: int, endless: bool) -> Completion:
        ids = self.completion_ids(prompt, text)
        ids = ids[:-1] if endless else ids
        return Completion(ids[:room], truncated=endless or len(ids) > room, text=text)

    def completion(self, ids: list[int], truncated: bool) -> Completion:
        """A completion record from sampled ids."""
        return Completion(ids, truncated, self.decode(ids))

    # --- identity

    def fingerprint(self) -> str:
        """Hash of vocabulary, special tokens and template: what two runs must share to be comparable."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        body = backend.to_str() if backend is not None else str(sorted(self.tokenizer.get_vocab().items()))
        parts = [body, str(self.tokenizer.chat_template), str(sorted(self.eos_ids))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def named(bundle: Bundle) -> str:
    """A bundle in an error message: `prompt 'what can teddy do' (prompts.jsonl row 3)`."""
    where = f" ({bundle.origin})" if bundle.origin.row else ""
    return f"prompt {prompt_key(bundle.prompt)[:60]!r}{where}"


def prompt_key(prompt: Prompt) -> str:
    """One string per distinct prompt, to split and cluster by."""
    if isinstance(prompt, str):
        return prompt
    return "\0".join(map(_turn_key, prompt))


def _turn_key(turn: Message) -> str:
    more = further(turn)
    key = f"{turn['role']}\1{turn['content']}"
    return f"{key}\1{json.dumps(more, sort_keys=True, ensure_ascii=False)}" if more else key


def further(turn: Message) -> dict[str, Any]:
    """What a turn holds beside role and content, in the order of `TURN_FIELDS`."""
    return {name: turn[name] for name in TURN_FIELDS if name in turn} if len(turn) > 2 else {}  # type: ignore[literal-required]


def plain(prompt: Prompt) -> str:
    """A prompt as one string for rules and reports: a chat's turns without their roles, one beneath the other."""
    return prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)
