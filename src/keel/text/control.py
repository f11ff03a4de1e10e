"""Control tokens that data spell: text of the data is text, unless the user says otherwise.

What spells a control token in a text is marked before a template sees it, so that the template's own tokens stay what
they are and those of the data are encoded as text.
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
"""What becomes of a control token that data spell: text, a dropped row, or the token itself."""
Note = Callable[[str], None]
"""Is told what is worth a remark about a row that is used."""
OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around what spells a control token in data. Unicode keeps both for uses inside a program."""
MARKS = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|[{OPEN}{CLOSE}]")
_ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))
"""Roles that control tokens are named after; any other could make one up (`<|` + role + `|>`)."""
ROLE = re.compile(r"[\w.-]{1,40}")
"""How other roles may be spelt: a word, which ends no turn and begins none."""
_NAMED = 3
"""Tokens named in one remark."""


class ControlTokens:
    """What spells a control token of a tokenizer: its special tokens, and what it calls BOS, EOS and so on."""

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
        """Their ids, without the one that stands for unknown signs, which any text may become."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        unknown = {self._tokenizer.unk_token, getattr(getattr(backend, "model", None), "unk_token", None)}
        found = (self._tokenizer.convert_tokens_to_ids(token) for token in self._spellings - unknown)
        return frozenset(int(i) for i in found if i is not None)

    def places(self, text: str, at: int = 0) -> Iterator[tuple[int, int]]:
        """Beginning and end of what spells one, from `at` on; the longest where several begin."""
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
        """A text of the data with marks around what spells one; what was found is added to `spelt`."""
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
        """A turn with all its texts marked; a role that could make up a control token is refused."""
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
        """Note what data spell, or refuse the row, as `handling` says."""
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
        """Refuse a row whose ids hold more control tokens than stand outside the marks: a normaliser made some."""
        found = 0 if self.handling == "keep" else sum(i in self.ids for i in ids)
        if found and found > sum(1 for _ in self.places(MARKS.sub("\0", text))):
            raise RowFault("a text becomes a control token in this tokenizer, which cannot encode it as text")


def parts(text: str) -> Iterator[tuple[str, bool]]:
    """The parts of a marked text that are not empty, each with whether it is marked.

    A template may have torn the two marks apart: a lone one is dropped, and still divides the text.
    """
    for place, part in enumerate(MARKS.split(text)):
        if part:
            yield part, place % 2 == 1


def ends_of_marks(text: str) -> int:
    """Where the last mark ends; 0 where there is none."""
    return text.rfind(CLOSE) + 1
