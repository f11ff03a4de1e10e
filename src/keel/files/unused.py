"""Columns that a file holds and a format does not use: said once, by name, with a count.

Rows are looked at by their set of columns, so that a million rows cost little more than one of each kind. Columns whose
name says that they may change what is trained get a note of their own, with the rows where they hold something.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from keel.files.fields import one_line
from keel.records import RowCounts

__all__ = ["CARRIED", "NOT_USED", "Unused", "watched"]

NOT_USED = "columns not used"
CARRIED = "columns carried along, not used"
_NAMED = 12  # columns in one note
FIRST = 10  # rows in a note on a column that may matter
EMPTY: tuple[Any, ...] = (None, "", [], {}, ())
OF_PROMPTS = frozenset(
    ("system", "system_prompt", "system_message", "tools", "functions", "documents", "history", "chat_template_kwargs",
     "image", "images", "video", "videos", "audio", "audios")
)  # fmt: skip
OF_ANSWERS = frozenset(
    ("weight", "weights", "sample_weight", "label", "labels", "mask", "loss_mask", "train", "train_on_turn",
     "reasoning", "reasoning_content", "thinking", "tool_calls")
)  # fmt: skip
HARMLESS = {"weight": 1, "weights": 1, "sample_weight": 1}
"""Values that change nothing."""


@dataclass(slots=True)
class _Kind:
    """Rows of one set of columns: which of these are of no use, how many rows there are, and which is the first."""

    plain: list[str]
    risky: list[str]
    unseen: list[str]
    """Columns of no use that held nothing so far."""
    first: int
    count: int = 0


class Unused:
    """Columns of no use: `see` each row (or what a format left of it), then `tell` the counts."""

    def __init__(self, words: str, known: Collection[str] = (), answers: bool = True) -> None:
        self.words = words
        self.known = known
        self.risky = OF_PROMPTS | OF_ANSWERS if answers else OF_PROMPTS
        self.kinds: dict[tuple[str, ...], _Kind] = {}
        self.changing: dict[str, tuple[int, list[int]]] = {}

    def knows(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of the same columns was seen."""
        return tuple(row) in self.kinds

    def see(
        self, row: Mapping[str, Any], number: int, used: Collection[str] = (), whole: Mapping[str, Any] | None = None
    ) -> None:
        """Count a row; of the first of its kind `used` says which columns were looked at.

        What a format left of a row may hold more than columns: those of the `whole` row count.
        """
        key = tuple(row)
        kind = self.kinds.get(key)
        if kind is None:
            kind = self.kinds[key] = self._kind(
                key if whole is None else tuple(c for c in key if c in whole), used, number
            )
        if not kind.unseen and not kind.risky and not kind.plain:
            return
        if kind.unseen:
            kind.unseen = [column for column in kind.unseen if row[column] in EMPTY]
        kind.count += 1
        for column in kind.risky:
            if row[column] not in EMPTY and row[column] != HARMLESS.get(column):
                count, rows = self.changing.get(column, (0, []))
                self.changing[column] = count + 1, [*rows, number] if count < FIRST else rows

    def _kind(self, columns: tuple[str, ...], used: Collection[str], number: int) -> _Kind:
        of_no_use = [column for column in columns if column not in self.known and column not in used]
        risky = [column for column in of_no_use if str(column).lower() in self.risky]
        plain = [column for column in of_no_use if column not in risky]
        return _Kind(plain, risky, list(plain), number)

    def tell(self, counts: RowCounts) -> None:
        """Put what there is to say among the notes."""
        for column, (count, rows) in self.changing.items():
            counts.notes[f"{one_line(column)} is not used, and may change what is learnt"] = count, rows
        names: dict[str, None] = {}
        kinds = []
        for kind in self.kinds.values():
            if held := [column for column in kind.plain if column not in kind.unseen]:
                names |= dict.fromkeys(held)
                kinds.append(kind)
        if names:
            total, first = sum(kind.count for kind in kinds), min(kind.first for kind in kinds)
            counts.notes[f"{self.words}: {_listed(names)}"] = total, [first]


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = f", … ({len(found):,} columns)" if len(found) > _NAMED else ""
    return ", ".join(map(one_line, found[:_NAMED])) + more


class watched(dict[str, Any]):  # noqa: N801  (it stands where a row stands)
    """A row that remembers which of its columns were asked for."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.used: set[str] = set()

    def get(self, column: str, default: Any = None) -> Any:  # type: ignore[override]
        self.used.add(column)
        return super().get(column, default)

    def __getitem__(self, column: str) -> Any:
        self.used.add(column)
        return super().__getitem__(column)
