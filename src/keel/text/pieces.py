"""A tokenizer on pieces of text: which tokens they are, alone or behind others, and back."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from keel.text.control import ControlTokens, Handling, ends_of_marks, parts
from keel.text.unknown import Gaps

ANCHORS = "\n", ".", "a"
"""Signs behind which a text is read as one that does not stand alone; the first with which it does not merge."""


class Pieces:
    """A tokenizer without BOS and ends, its control tokens (`controls`) and what it cannot say (`gaps`)."""

    def __init__(self, tokenizer: Any, control_tokens: Handling) -> None:
        self.tokenizer = tokenizer
        self.controls = ControlTokens(tokenizer, control_tokens)
        self.gaps = Gaps(tokenizer, self.plain_ids)

    def learn_tokens(self) -> None:
        """Find out anew which control tokens there are: the tokenizer has got another."""
        self.controls = ControlTokens(self.tokenizer, self.controls.handling)

    def ids(self, text: str, inner: bool = False) -> list[int]:
        """Return the tokens of a text in which what is marked is text; an `inner` one stands behind others.

        Raises `RowFault` if a text would become control tokens.
        """
        ids: list[int] = []
        for place, (part, marked) in enumerate(parts(text)):
            alone = place == 0 and not inner and not marked
            ids += self.plain_ids(part) if alone else self.inner_ids(part, as_text=marked)
        self.controls.require_text(text, ids)
        self.gaps.require_rows(ids)
        return ids

    def plain_ids(self, text: str, as_text: bool = False) -> list[int]:
        """Return the tokens of a text that stands alone, without BOS; `as_text`: of control tokens in it, too."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=as_text).input_ids)

    def inner_ids(self, piece: str, as_text: bool = False) -> list[int]:
        """Return the tokens of a piece behind others, without the space that a tokenizer may put before a text."""
        for anchor in ANCHORS:
            before, ids = self.plain_ids(anchor), self.plain_ids(anchor + piece, as_text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self.plain_ids(piece, as_text)

    def decoded(self, ids: list[int]) -> str:
        """Return the text of tokens, control tokens included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def last_control(self, text: str) -> int:
        """Return where the last control token of a rendering begins that is not marked; 0 if there is none."""
        return max((begin for begin, _ in self.controls.places(text, ends_of_marks(text))), default=0)

    def first_control(self, text: str, among: Container[int] | None = None) -> tuple[int, int] | None:
        """Return where the first control token of a text begins and its id, of all or of those `among` which it is."""
        for begin, end in self.controls.places(text):
            token = int(self.tokenizer.convert_tokens_to_ids(text[begin:end]))
            if among is None or token in among:
                return begin, token
        return None
