"""What a tokenizer cannot say: signs that it does not know, texts of which it makes nothing, tokens without a row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any

from keel.errors import RowFault
from keel.records import Bundle, Prompt

__all__ = ["Gaps"]

STRANGE = "\u2603", "\U00013000", "\ue000"
"""Signs that only a tokenizer which knows every sign can spell: a snowman, a hieroglyph, one for private use."""


class Gaps:
    """What one tokenizer cannot say. `ids` is how it reads a text that stands alone, without BOS."""

    def __init__(self, tokenizer: Any, ids: Callable[[str], list[int]]) -> None:
        self._tokenizer, self._ids = tokenizer, ids
        self.rows: int | None = None
        """Rows of the model's embedding, where they are known."""

    # --- tokens without a row

    def require_rows(self, ids: list[int]) -> None:
        """Refuse a text that needs a token for which the model's embedding has no row."""
        if self.rows is None or not ids or (last := max(ids)) < self.rows:
            return
        name = self._tokenizer.convert_ids_to_tokens(last)
        raise RowFault(
            f"a text becomes the token {name!r} ({last}), and the model's embedding has {self.rows} rows; take it out "
            "of the text, or give the model the tokenizer that it was trained with",
            "a text needs a token for which the model has no row",
        )

    # --- texts of which it makes nothing

    def require_tokens(self, prompt: Prompt, ids: list[int]) -> None:
        """Refuse a prompt of whose text the tokenizer makes nothing, or a chat with such a turn; `ids` are its own."""
        if isinstance(prompt, str):
            nothing = not ids and bool(prompt.strip())
        else:
            nothing = self._drops and any(turn["content"].strip() and not self._ids(turn["content"]) for turn in prompt)
        if nothing:
            raise RowFault(
                "the tokenizer makes no token of a prompt's text; take a model whose tokenizer knows its signs",
                "the tokenizer makes nothing of the prompt",
            )

    @staticmethod
    def require_answer(text: str, back: str) -> None:
        """Refuse an answer of whose text the tokenizer makes nothing: decoding its tokens gives none of it `back`."""
        if text.strip() and not back.strip():
            raise RowFault(
                "the tokenizer makes no token of an answer's text; take a model whose tokenizer knows its signs",
                "the tokenizer makes nothing of an answer",
            )

    @cached_property
    def _drops(self) -> bool:
        """Whether there are signs of which it makes nothing; a tokenizer of bytes, for one, has none."""
        return not all(self._ids(sign) for sign in STRANGE)

    # --- signs that it does not know

    @cached_property
    def unknown_id(self) -> int | None:
        """The id that signs become which it does not know; None where it knows all, or leaves the others out."""
        found = self._tokenizer.unk_token_id
        if found is None or found in (self._tokenizer.eos_token_id, self._tokenizer.bos_token_id):
            return None
        return int(found) if any(found in self._ids(sign) for sign in STRANGE) else None

    @property
    def unknown_token(self) -> str:
        """How that id is spelt."""
        return str(self._tokenizer.unk_token)

    def unknown(self, bundle: Bundle) -> int:
        """How many tokens of a bundle are that id."""
        if self.unknown_id is None:
            return 0
        return sum(ids.count(self.unknown_id) for ids in _all_ids(bundle))

    def unknown_share(self, bundles: Collection[Bundle]) -> float:
        """That id's share of all tokens."""
        total = sum(len(ids) for bundle in bundles for ids in _all_ids(bundle))
        return sum(map(self.unknown, bundles)) / total if total else 0.0


def _all_ids(bundle: Bundle) -> Sequence[list[int]]:
    return [bundle.prompt_ids, *(completion.ids for completion in bundle.completions)]
