"""Limits of a tokenizer: unknown characters, texts that become no tokens, tokens without an embedding row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any

from keel.errors import RowFault
from keel.records import Bundle, Prompt

__all__ = ["Gaps"]

STRANGE = "\u2603", "\U00013000", "\ue000"
"""Characters that only a tokenizer of all characters can encode: a snowman, a hieroglyph, one for private use."""


class Gaps:
    """The limits of one tokenizer. `ids` tokenises a text on its own, without BOS."""

    def __init__(self, tokenizer: Any, ids: Callable[[str], list[int]]) -> None:
        self._tokenizer, self._ids = tokenizer, ids
        self.rows: int | None = None
        """Rows of the model's embedding; None if unknown."""

    # --- tokens without a row

    def require_rows(self, ids: list[int]) -> None:
        """Refuse a text if the model's embedding has no row for one of its tokens."""
        if self.rows is None or not ids or (last := max(ids)) < self.rows:
            return
        name = self._tokenizer.convert_ids_to_tokens(last)
        raise RowFault(
            f"a text becomes the token {name!r} ({last}), and the model's embedding has {self.rows} rows; take it out "
            "of the text, or give the model the tokenizer that it was trained with",
            "a text needs a token for which the model has no row",
        )

    # --- texts that become no tokens

    def require_tokens(self, prompt: Prompt, ids: list[int]) -> None:
        """Refuse a prompt whose text becomes no tokens, or a chat with such a turn; `ids` are the prompt's tokens."""
        if isinstance(prompt, str):
            nothing = not ids and bool(prompt.strip())
        else:
            nothing = self._drops and any(turn["content"].strip() and not self._ids(turn["content"]) for turn in prompt)
        if nothing:
            raise RowFault(
                "the tokenizer makes no token of a prompt's text; use a model whose tokenizer knows its characters",
                "the tokenizer makes nothing of the prompt",
            )

    @staticmethod
    def require_answer(text: str, back: str) -> None:
        """Refuse an answer whose text becomes no tokens: `back`, its decoded tokens, is blank."""
        if text.strip() and not back.strip():
            raise RowFault(
                "the tokenizer makes no token of an answer's text; use a model whose tokenizer knows its characters",
                "the tokenizer makes nothing of an answer",
            )

    @cached_property
    def _drops(self) -> bool:
        """Say whether some characters become no token; a tokenizer of bytes, for one, has none of these."""
        return not all(self._ids(sign) for sign in STRANGE)

    # --- unknown characters

    @cached_property
    def unknown_id(self) -> int | None:
        """Return the id of unknown characters; None if the tokenizer knows all characters, or drops the others."""
        found = self._tokenizer.unk_token_id
        if found is None or found in (self._tokenizer.eos_token_id, self._tokenizer.bos_token_id):
            return None
        return int(found) if any(found in self._ids(sign) for sign in STRANGE) else None

    @property
    def unknown_token(self) -> str:
        """Return the token of that id."""
        return str(self._tokenizer.unk_token)

    def unknown(self, bundle: Bundle) -> int:
        """Return how often that id occurs in a bundle."""
        if self.unknown_id is None:
            return 0
        return sum(ids.count(self.unknown_id) for ids in _all_ids(bundle))

    def unknown_share(self, bundles: Collection[Bundle]) -> float:
        """Return that id's share of all tokens of the bundles."""
        total = sum(len(ids) for bundle in bundles for ids in _all_ids(bundle))
        return sum(map(self.unknown, bundles)) / total if total else 0.0


def _all_ids(bundle: Bundle) -> Sequence[list[int]]:
    return [bundle.prompt_ids, *(completion.ids for completion in bundle.completions)]
