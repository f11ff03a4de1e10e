"""A tokenizer on pieces of text: their tokens, alone or after other text, and the text of tokens."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from keel.text.control import ControlTokens, Handling, ends_of_marks, parts
from keel.text.unknown import Gaps

ANCHORS = "\n", ".", "a"
"""Characters put before a text to tokenise it as a continuation; the first that does not merge with it is used."""


class Pieces:
    """A tokenizer without BOS and ends, its control tokens (`controls`) and what it cannot encode (`gaps`)."""

    def __init__(self, tokenizer: Any, control_tokens: Handling) -> None:
        self.tokenizer = tokenizer
        self.controls = ControlTokens(tokenizer, control_tokens)
        self.gaps = Gaps(tokenizer, self.plain_ids)

    def learn_tokens(self) -> None:
        """Read the control tokens again, after the tokenizer has got another."""
        self.controls = ControlTokens(self.tokenizer, self.controls.handling)

    def ids(self, text: str, inner: bool = False) -> list[int]:
        """Return the tokens of a text, its marked parts encoded as text; an `inner` text follows other text.

        Raises `RowFault` if a marked part would become control tokens.
        """
        ids: list[int] = []
        for place, (part, marked) in enumerate(parts(text)):
            alone = place == 0 and not inner and not marked
            ids += self.plain_ids(part) if alone else self.inner_ids(part, as_text=marked)
        self.controls.require_text(text, ids)
        self.gaps.require_rows(ids)
        return ids

    def plain_ids(self, text: str, as_text: bool = False) -> list[int]:
        """Return the tokens of a text on its own, without BOS; with `as_text`, control tokens in it become text."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=as_text).input_ids)

    def inner_ids(self, piece: str, as_text: bool = False) -> list[int]:
        """Return the tokens of a piece after other text, without the space that a tokenizer may put before a text."""
        for anchor in ANCHORS:
            before, ids = self.plain_ids(anchor), self.plain_ids(anchor + piece, as_text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self.plain_ids(piece, as_text)

    def decoded(self, ids: list[int]) -> str:
        """Return the text of tokens, including control tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def last_control(self, text: str) -> int:
        """Return the beginning of the last unmarked control token of a rendering; 0 if there is none."""
        return max((begin for begin, _ in self.controls.places(text, ends_of_marks(text))), default=0)

    def first_control(self, text: str, among: Container[int] | None = None) -> tuple[int, int] | None:
        """Return beginning and id of a text's first control token, or of the first `among` these ids; else None."""
        for begin, end in self.controls.places(text):
            token = int(self.tokenizer.convert_tokens_to_ids(text[begin:end]))
            if among is None or token in among:
                return begin, token
        return None
