"""The one tokenisation path: text in, ids out, the same for training, scoring and serving.

A prompt's ids are those that a server would send. A completion's ids are those of its text after that prompt: both
together are the tokenised rendering, if that begins with the prompt's ids. A completion that ended carries exactly one
end; one cut by the length limit carries none. The end of a sequence is known from its length, never from an id, so a
tokenizer whose padding token *is* its EOS does no harm.

The data are text: a control token spelt in them is encoded as text (`control`, `pieces`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from keel.errors import InputError, RowFault
from keel.records import (
    TURN_FIELDS,
    Bundle,
    Completion,
    Demonstration,
    Drawn,
    Fields,
    Message,
    Pair,
    Prompt,
    PromptRow,
)
from keel.text.control import Handling, Note
from keel.text.pieces import Pieces
from keel.text.template import DAY, TRIMMED, Template, answering

PAD_TOKEN = "<|pad|>"
"""Padding token that Keel adds to a tokenizer without one; it does not change how text is tokenised."""
CONTEXT = 8
"""Tokens of the prompt put before a completion to decode it, since a decoder drops a space at the very start."""
NO_ROOM = "the prompt leaves no room for an answer"
"""Reason to drop a row whose prompt is too long; the remedy depends on the command."""


class EosInsideError(RowFault):
    """A completion with tokens after an end."""

    def __init__(self) -> None:
        super().__init__(
            "the completion goes on after an EOS token, which --control-tokens keep reads in its text; remove it there",
            "EOS inside a completion",
        )


class DoubleBosError(RowFault):
    """A prompt that brings a BOS of its own beside that of the template or the tokenizer."""

    def __init__(self) -> None:
        super().__init__(
            "the prompt begins with two BOS tokens; remove the one written in the text",
            "two BOS tokens before a prompt",
        )


class NoPrefixError(RowFault):
    """A chat whose prompt is rendered differently with its answer than without."""

    def __init__(self) -> None:
        super().__init__(
            "the chat template is not a prefix of itself: adding the answer changes how the prompt is rendered; "
            "use a template whose prompt does not depend on what follows",
            "the chat template is not a prefix of itself",
        )


def _silent(what: str) -> None:
    """Note nothing."""


class Text:
    """A tokenizer with Keel's rules around it.

    `eos_ids` are all ids that end a completion: those given, the tokenizer's, and that of its template after an answer.
    `eos_id` is the end that Keel writes after plain text; in a chat the template writes its own.
    """

    def __init__(self, tokenizer: Any, eos_ids: Iterable[int] = (), control_tokens: Handling = "text") -> None:
        self.tokenizer = tokenizer
        given = [int(i) for i in eos_ids]
        if tokenizer.eos_token_id is None and not given:
            raise InputError("the tokenizer has no EOS token: set eos_token in its tokenizer_config.json")
        self.eos_id = int(tokenizer.eos_token_id if tokenizer.eos_token_id is not None else given[0])
        self.bos_id: int | None = tokenizer.bos_token_id
        self._adds_bos = self.bos_id is not None and list(tokenizer("").input_ids)[:1] == [self.bos_id]
        self.pieces = Pieces(tokenizer, control_tokens)
        self.gaps = self.pieces.gaps
        self._given = frozenset({self.eos_id, *given})
        self._leads: dict[tuple[int, ...], tuple[bool, bool]] = {}
        self._learn_template()

    def _learn_template(self) -> None:
        """Learn from the tokenizer's current template what it writes around an answer, and the answer's end."""
        self._learned = self.tokenizer.chat_template
        self._last: _Asked | None = None
        self.template = Template(self.tokenizer, self._learned) if _has_template(self.tokenizer) else None
        self.opening, self.closing, end = self._around_answers()
        self.eos_ids = self._given | ({end} if end is not None else frozenset())

    def _around_answers(self) -> tuple[str, str, int | None]:
        """Return the template's text before an answer, its text after it up to the end, and the id of that end."""
        around = self.template.around_answers() if self.template is not None else None
        if around is None:
            return "", "", None
        opening, after = around
        begin, end = self.pieces.first_control(after) or (None, None)
        return opening, after[:begin], end

    # --- ids out of text

    def prompt_ids(self, prompt: Prompt, note: Note = _silent) -> list[int]:
        """Return the tokens of a prompt, with the BOS that the tokenizer itself would add, and never two.

        An empty prompt becomes BOS (or EOS if there is none), since a model needs a token to start from.
        """
        return self._asked(prompt, note).ids

    def _asked(self, prompt: Prompt, note: Note) -> _Asked:
        """Return a prompt with its rendering and tokens. The last one is kept, for the next answer to it."""
        kept = self._last if note is _silent and self.tokenizer.chat_template is self._learned else None
        if kept is None or kept.prompt is not prompt:
            kept = self._last = self._read(prompt, note)
        return kept

    def _read(self, prompt: Prompt, note: Note) -> _Asked:
        spelt: set[str] = set()
        if isinstance(prompt, str):
            turns, text = [], self.pieces.controls.mark(prompt, spelt)
        else:
            turns = [self.pieces.controls.mark_turn(turn, spelt) for turn in prompt]
            rendered = self._template().render(turns, generate=True)
            text = rendered.text
            _tell(rendered.notes, note)
        self.pieces.controls.say(spelt, note)
        ids = self.pieces.ids(text)
        self.gaps.require_tokens(prompt, ids)
        ids = self._with_bos(ids) if isinstance(prompt, str) else ids
        if not ids:
            ids = [self.bos_id if self.bos_id is not None else self.eos_id]
        if len(ids) > 1 and ids[0] == ids[1] == self.bos_id != self.eos_id:
            raise DoubleBosError
        return _Asked(prompt, turns, text, ids)

    def _with_bos(self, ids: list[int]) -> list[int]:
        adds = self._adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]
        return [self.bos_id, *ids] if adds and self.bos_id is not None else ids

    def completion_ids(self, prompt: Prompt, completion: str, fields: Fields | None = None) -> list[int]:
        """Return the tokens of a completion that ended, after its prompt: its text and exactly one end.

        `fields` are the further fields of its turn. Raises `EosInsideError` if it goes on after an end, which happens
        only with `control_tokens="keep"`, and `RowFault` if the template does not render all of it.
        """
        return self._completion_ids(self._asked(prompt, _silent), completion, fields, True, _silent)

    def _completion_ids(
        self, asked: _Asked, completion: str, fields: Fields | None, ended: bool, note: Note
    ) -> list[int]:
        spelt: set[str] = set()
        if self.pieces.controls.handling == "keep":
            completion = self._without_ends(completion)
        if not isinstance(asked.prompt, str):
            answer = self.pieces.controls.mark_turn(answering(completion, fields), spelt)
            after, end = self._answer(asked, answer, ended, note)
        elif fields:
            raise RowFault(f"an answer with {', '.join(fields)} needs a chat as prompt, which a template can render")
        else:
            after, end = self.pieces.controls.mark(completion, spelt), self.eos_id
        self.pieces.controls.say(spelt, note)
        ids = self._behind(asked, after)
        if not self.eos_ids.isdisjoint(ids):
            raise EosInsideError
        return [*ids, end] if ended else ids

    def _answer(self, asked: _Asked, answer: Message, ended: bool, note: Note) -> tuple[str, int]:
        """Return the rendering from the prompt's end up to the answer's end token, and that token's id."""
        rendered = self._template().render([*asked.turns, answer], generate=False)
        if not rendered.text.startswith(asked.text):
            raise NoPrefixError
        _tell(rendered.notes, note)
        start, stop = rendered.spans[-1]
        opening = rendered.text[len(asked.text) : start]
        if opening.strip() and len(answer) == 2:  # with further fields, the text is not all of the answer
            note(f"the chat template writes {opening!r} before the answer")
        written, after = rendered.text[len(asked.text) : stop], rendered.text[stop:]
        at, end = self.pieces.first_control(after, self.eos_ids) or (None, self.eos_id)
        return written + (after[:at] if ended else ""), end

    def _behind(self, asked: _Asked, after: str) -> list[int]:
        """Return the tokens of a text after a prompt: those of both together, if they begin with the prompt's.

        If a merge would cross the boundary, those of the text after a character with which it does not merge.
        """
        if not after or not asked.text:
            return self.pieces.ids(after)
        at = self.pieces.last_control(asked.text)  # no merge crosses a control token: read again from there
        known = self.pieces.ids(asked.text[at:]) if at else asked.ids
        whole = self.pieces.ids(asked.text[at:] + after)
        whole = self._with_bos(whole) if not at and isinstance(asked.prompt, str) else whole
        if whole[: len(known)] == known and asked.ids[len(asked.ids) - len(known) :] == known:
            return whole[len(known) :]
        return self.pieces.ids(after, inner=True)

    def _without_ends(self, completion: str) -> str:
        """Return a completion without the ends that its own text spells."""
        while end := next((end for end in self.ends() if completion.endswith(end)), None):
            completion = completion.removesuffix(end)
        return completion

    def _template(self) -> Template:
        if self.tokenizer.chat_template is not self._learned:  # a caller has set another
            self._learn_template()
        if self.template is None:
            raise InputError(
                "the data holds chat messages but the tokenizer has no chat template; give one with --chat-template "
                "(a file, or a name such as vicuna), or data whose prompts are plain text"
            )
        return self.template

    def render(self, messages: list[Message], generate: bool = True) -> str:
        """Return a chat as the model's template writes it, with `generate` up to the start of an answer."""
        return self._template().render(messages, generate=generate).text

    # --- text out of ids

    def decode(self, ids: list[int], prompt: Prompt | None = None, prompt_ids: list[int] | None = None) -> str:
        """Return a completion's text after its prompt, without its end, anything later, and the template's own marks.

        `prompt_ids` spare tokenising the prompt. Without a prompt, the completion is decoded as after some other text.
        """
        end = next((at for at, i in enumerate(ids) if i in self.eos_ids), None)
        body = ids if end is None else ids[:end]
        if prompt == "":
            return self.pieces.decoded(body)
        if prompt_ids is None:
            prompt_ids = self.pieces.plain_ids("\n") if prompt is None else self.prompt_ids(prompt)
        tail = prompt_ids[-CONTEXT:]
        head, whole = self.pieces.decoded(tail), self.pieces.decoded([*tail, *body])
        text = whole[len(head) :] if whole.startswith(head) else self.pieces.decoded(body)
        text = self._without_own_space(text, head, tail)
        if isinstance(prompt, str) or (prompt is None and not self.opening.strip()):
            return text
        text = text.removeprefix(self.opening)
        return text.removesuffix(self.closing) if end is not None else text

    def _without_own_space(self, text: str, head: str, tail: list[int]) -> str:
        """Return a decoded text without the space that the tokenizer itself put before it after these tokens.

        Some tokenizers put a space before every text, some only before a text that begins without one.
        """
        if not text.startswith(" "):
            return text
        key = tuple(tail)
        if key not in self._leads:
            asked = _Asked([], [], head, tail)
            plain, spaced = self._behind(asked, "a"), self._behind(asked, " a")
            adds = self.pieces.decoded([*tail, *plain]) == head + " a"
            self._leads[key] = adds, adds and plain == spaced
        adds, if_missing = self._leads[key]
        return text[1:] if adds and not (if_missing and text.startswith("  ")) else text

    # --- bundles

    def encode(self, row: PromptRow | Demonstration | Pair, max_length: int, note: Note = _silent) -> Bundle:
        """Return a file's record as tokens.

        A completion that does not fit into `max_length` after its prompt is cut there and marked `truncated`; one that
        was cut when it was drawn is marked, too. A completion drawn with this tokenizer and template keeps the tokens
        as drawn. `note` takes remarks on the row. Raises `RowFault` if the row cannot become tokens, for example
        because the prompt leaves no room or a text is lost in rendering.
        """
        told: list[str] = []
        asked = self._asked(row.prompt, told.append)
        room = max_length - len(asked.ids)
        if room < 1:
            raise RowFault(
                f"{row.origin}: the prompt has {len(asked.ids)} tokens, which leaves no room below the limit of "
                f"{max_length}; shorten it",
                NO_ROOM,
            )
        completions = []
        for text, cut, fields, drawn in _answers(row):
            ids = _as_drawn(self, asked, text, cut, drawn)
            if ids is None:
                ids = self._completion_ids(asked, text, fields, not cut, told.append)
                _compare_decoded(self, asked, ids, text, fields, told)
            completions.append(Completion(ids[:room], truncated=cut or len(ids) > room, text=text))
        _tell(told, note)
        margin = row.margin if isinstance(row, Pair) else 0.0
        return Bundle(asked.ids, completions, prompt=row.prompt, margin=margin, origin=row.origin)

    def completion(self, bundle: Bundle, ids: list[int], truncated: bool) -> Completion:
        """Return the completion record of ids sampled after a bundle's prompt."""
        return Completion(ids, truncated, self.decode(ids, bundle.prompt, bundle.prompt_ids))

    # --- identity

    def fingerprint(self) -> str:
        """Return a hash of all that decides how text becomes ids; two models with equal hashes read text alike.

        It covers the vocabulary, the template, the date given to it if it reads the clock, and the ends; not padding.
        """
        parts = [self.spelling, str(self.tokenizer.chat_template), str(sorted(self.eos_ids))]
        parts += [DAY] if self.template is not None and self.template.reads_clock else []
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @cached_property
    def spelling(self) -> str:
        """Return a hash of how the tokenizer reads text."""
        return hashlib.sha256(_spelling(self.tokenizer).encode("utf-8", "surrogatepass")).hexdigest()

    def ends(self) -> list[str]:
        """Return the tokens that end a completion."""
        return [str(self.tokenizer.convert_ids_to_tokens(i)) for i in sorted(self.eos_ids)]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt, its turns and its rendering (both with spelt control tokens marked), and its tokens."""

    prompt: Prompt
    turns: list[Message]
    text: str
    ids: list[int]


def _answers(
    row: PromptRow | Demonstration | Pair,
) -> list[tuple[str, bool, Fields | None, Drawn | None]]:
    """Return for each answer its text, whether it was cut when drawn, its fields and its tokens as drawn."""
    match row:
        case Demonstration():
            return [(row.completion, row.cut, row.fields, row.drawn)]
        case Pair():
            return list(zip((row.chosen, row.rejected), row.cut, row.fields, row.drawn, strict=True))
    return []


def _as_drawn(reader: Text, asked: _Asked, text: str, cut: bool, drawn: Drawn | None) -> list[int] | None:
    """Return an answer's tokens as drawn; None if they are unknown, another tokenizer's, or do not give its text."""
    if drawn is None or drawn.tokenizer != reader.fingerprint():
        return None
    ids = list(drawn.ids)
    ends = [at for at, i in enumerate(ids) if i in reader.eos_ids]
    whole = ends == ([] if cut else [len(ids) - 1]) and reader.decode(ids, asked.prompt, asked.ids) == text
    return ids if whole else None


def _compare_decoded(
    reader: Text, asked: _Asked, ids: list[int], text: str, fields: Fields | None, told: list[str]
) -> None:
    """Note if an answer's tokens do not decode to its text, unless it is already noted that the template trims it."""
    back = text if fields else reader.decode(ids, asked.prompt, asked.ids)
    reader.gaps.require_answer(text, back)
    if back != text and not (TRIMMED in told and back.strip() == text.strip()):
        told.append("decoding an answer's tokens does not give its text back")


def _tell(notes: Iterable[str], note: Note) -> None:
    for what in notes:
        note(what)


def _has_template(tokenizer: Any) -> bool:
    template = tokenizer.chat_template
    if isinstance(template, dict) and "default" not in template:
        names = ", ".join(sorted(template))
        raise InputError(
            f"the tokenizer has several chat templates, none of them 'default'; name one with --chat-template: {names}"
        )
    return bool(template)


def _spelling(tokenizer: Any) -> str:
    """Return all that decides how a tokenizer reads text, as one string; without padding and Keel's padding token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return str(sorted(tokenizer.get_vocab().items()))
    body = json.loads(backend.to_str())
    body["added_tokens"] = [token for token in body["added_tokens"] if token["content"] != PAD_TOKEN]
    return json.dumps({k: v for k, v in body.items() if k not in ("padding", "truncation")}, sort_keys=True)


def named(bundle: Bundle) -> str:
    """Return a bundle's name for error messages: `prompt 'what can teddy do' (prompts.jsonl row 3)`."""
    where = f" ({bundle.origin})" if bundle.origin.row else ""
    return f"prompt {prompt_key(bundle.prompt)[:60]!r}{where}"


def prompt_key(prompt: Prompt) -> str:
    """Return one string per distinct prompt, to split and cluster by."""
    if isinstance(prompt, str):
        return prompt
    return "\0".join(map(_turn_key, prompt))


def _turn_key(turn: Message) -> str:
    key, more = f"{turn['role']}\1{turn['content']}", fields_key(further(turn))
    return f"{key}\1{more}" if more else key


def fields_key(fields: Fields | None) -> str:
    """Return one string for the further fields of a turn; empty if it has none."""
    return json.dumps(dict(fields), sort_keys=True, ensure_ascii=False) if fields else ""


def further(turn: Message) -> dict[str, Any]:
    """Return a turn's fields beside role and content, in the order of `TURN_FIELDS`."""
    return {name: turn[name] for name in TURN_FIELDS if name in turn} if len(turn) > 2 else {}  # type: ignore[literal-required]


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as one string for rules and reports: a chat's turns without roles, one beneath the other."""
    return prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)
