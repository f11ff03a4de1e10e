"""Control tokens spelt out in the data: they are encoded as text, unless the user says otherwise.

A spelling of a control token is marked before the template sees the text. So the template's own control tokens stay
control tokens, and those of the data become text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Literal

from keel.errors import RowFault
from keel.records import Message

__all__ = ["ControlTokens", "Handling", "Note", "ends_of_marks", "parts"]

Handling = Literal["text", "refuse", "keep"]
"""Treatment of a control token that the data spell: encode it as text, drop the row, or keep it as the token."""
Note = Callable[[str], None]
"""A function that takes a remark on a row that is used."""
OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Marks around the spelling of a control token. Unicode reserves both characters for internal use by programs."""
MARKS = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|[{OPEN}{CLOSE}]")
_ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))
"""Roles after which control tokens are named. Any other role could spell one: `<|` + role + `|>`."""
ROLE = re.compile(r"[\w.-]{1,40}")
"""Pattern for other roles: one word, which can neither end nor begin a turn."""
_NAMED = 3
"""Largest number of tokens named in one remark."""


class ControlTokens:
    """Spellings of a tokenizer's control tokens: its special tokens, and those it names as BOS, EOS and so on."""

    def __init__(self, tokenizer: Any, handling: Handling) -> None:
        self.handling = handling
        self._tokenizer = tokenizer
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._spellings = frozenset(token for token in added | set(tokenizer.all_special_tokens) if token)
        self._lengths = sorted({len(token) for token in self._spellings}, reverse=True)
        first = "".join(sorted({token[0] for token in self._spellings}))
        self._first = re.compile(f"[{re.escape(first)}]" if first else r"(?!)")

    @cached_property
    def ids(self) -> frozenset[int]:
        """Return the ids of the control tokens, without that of unknown characters, which any text may contain."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        unknown = {self._tokenizer.unk_token, getattr(getattr(backend, "model", None), "unk_token", None)}
        found = (self._tokenizer.convert_tokens_to_ids(token) for token in self._spellings - unknown)
        return frozenset(int(i) for i in found if i is not None)

    def places(self, text: str, at: int = 0) -> Iterator[tuple[int, int]]:
        """Yield beginning and end of each spelling from `at` on; if several begin at one place, the longest."""
        while (place := self._next(text, at)) is not None:
            yield place
            at = place[1]

    def _next(self, text: str, at: int) -> tuple[int, int] | None:
        for match in self._first.finditer(text, at):
            begin = match.start()
            for length in self._lengths:
                if text[begin : begin + length] in self._spellings:
                    return begin, begin + length
        return None

    # --- marks

    def mark(self, text: str, spelt: set[str]) -> str:
        """Return a text of the data with each spelling between marks; add the tokens found to `spelt`."""
        if self.handling == "keep":
            return text
        if OPEN in text or CLOSE in text:
            raise RowFault("a text holds the characters U+FDD0 or U+FDD1, which are no text; remove them")
        marked, at = [], 0
        for begin, end in self.places(text):
            spelt.add(text[begin:end])
            marked += [text[at:begin], OPEN, text[begin:end], CLOSE]
            at = end
        return "".join([*marked, text[at:]]) if marked else text

    def mark_turn(self, turn: Message, spelt: set[str]) -> Message:
        """Return a turn with all its texts marked. Raise `RowFault` if its role could be part of a control token."""
        role = turn["role"]
        if role not in _ROLES and (not ROLE.fullmatch(role) or any(role in token for token in self._spellings)):
            raise RowFault(
                f"the role {role[:40]!r} could be part of a control token; name it user, assistant, system or tool"
            )
        return {**turn, **{key: self._mark_all(turn[key], spelt) for key in turn if key != "role"}}  # type: ignore

    def _mark_all(self, value: Any, spelt: set[str]) -> Any:
        if isinstance(value, str):
            return self.mark(value, spelt)
        if isinstance(value, dict):
            return {self._mark_all(key, spelt): self._mark_all(inner, spelt) for key, inner in value.items()}
        return [self._mark_all(inner, spelt) for inner in value] if isinstance(value, list) else value

    def say(self, spelt: set[str], note: Note) -> None:
        """Note the control tokens that the data spell, or refuse the row, as `handling` says."""
        if not spelt:
            return
        named = ", ".join(sorted(spelt)[:_NAMED])
        if self.handling == "refuse":
            raise RowFault(
                f"a text spells the control token {min(spelt)}; remove it, or let --control-tokens take it as text",
                f"a text spells a control token ({named})",
            )
        note(f"control tokens in texts ({named}) are encoded as text, see --control-tokens")

    def require_text(self, text: str, ids: list[int]) -> None:
        """Refuse a row if its ids hold more control tokens than its text outside the marks: a normaliser made some."""
        found = 0 if self.handling == "keep" else sum(i in self.ids for i in ids)
        if found and found > sum(1 for _ in self.places(MARKS.sub("\0", text))):
            raise RowFault("a text becomes a control token in this tokenizer, which cannot encode it as text")


def parts(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each part of a marked text that is not empty, and whether it is marked.

    A template may separate the two marks of a pair: a mark without its partner is dropped, but still divides the text.
    """
    for place, part in enumerate(MARKS.split(text)):
        if part:
            yield part, place % 2 == 1


def ends_of_marks(text: str) -> int:
    """Return the end of the last mark; 0 if there is none."""
    return text.rfind(CLOSE) + 1
