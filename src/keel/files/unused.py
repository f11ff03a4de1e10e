"""Columns of a file that its format does not use: one note, with their names and a count.

Rows are grouped by their set of columns, so that a million rows cost little more than one of each kind. A column whose
name suggests that it matters for training gets a note of its own, with the rows in which it holds a value.
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
"""Values that have no effect."""


@dataclass(slots=True)
class _Kind:
    """Rows with the same columns: the unused ones among these, the number of rows, and the first row."""

    plain: list[str]
    risky: list[str]
    unseen: list[str]
    """Unused columns without a value so far."""
    first: int
    count: int = 0


class Unused:
    """Unused columns: `see` each row (or the rest that a format left of it), then `tell` the counts."""

    def __init__(self, words: str, known: Collection[str] = (), answers: bool = True) -> None:
        self.words = words
        self.known = known
        self.risky = OF_PROMPTS | OF_ANSWERS if answers else OF_PROMPTS
        self.kinds: dict[tuple[str, ...], _Kind] = {}
        self.changing: dict[str, tuple[int, list[int]]] = {}

    def knows(self, row: Mapping[str, Any]) -> bool:
        """Say whether a row with the same columns was seen."""
        return tuple(row) in self.kinds

    def see(
        self, row: Mapping[str, Any], number: int, used: Collection[str] = (), whole: Mapping[str, Any] | None = None
    ) -> None:
        """Count a row; for the first of its kind, `used` names the columns that the format looked at.

        The rest of a row may hold names that are no columns: only the columns of the `whole` row count.
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
        """Add the notes on unused columns to the counts."""
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


class watched(dict[str, Any]):  # noqa: N801  (it is used like a dict)
    """A row that records which of its columns were read."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.used: set[str] = set()

    def get(self, column: str, default: Any = None) -> Any:  # type: ignore[override]
        self.used.add(column)
        return super().get(column, default)

    def __getitem__(self, column: str) -> Any:
        self.used.add(column)
        return super().__getitem__(column)
