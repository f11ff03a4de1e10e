"""Recognition of a file's format from its first rows, under the names of `--columns` if these are given.

The first format whose columns are all there, and whose look fits, is recognised. If there is none, the refusal says
what was found, what is needed, and what to try.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

from keel.data.checks import reasons
from keel.data.looks import suggestion
from keel.errors import InputError
from keel.files.containers import RowReader
from keel.files.fields import Numbered, Row, RowError, one_line
from keel.formats.answers import UNJUDGED, Unjudged
from keel.formats.columns import listed_columns, parse_columns
from keel.formats.demonstrations import DEMONSTRATED
from keel.formats.judgments import GENERIC, JUDGED, Judged
from keel.formats.prompts import PROMPTED
from keel.records import RowCounts

__all__ = [
    "ANSWERS",
    "DEMONSTRATIONS",
    "JUDGMENTS",
    "PAIRS",
    "PROMPTS",
    "Format",
    "OpenedRows",
    "SourceKind",
    "hint_of",
    "holding_of",
    "recognise",
    "refuse_nothing",
]

F = TypeVar("F", bound="Format")
MOST_LOOKED_AT = 100
"""Maximum number of readable rows from which columns and format are recognised."""


class Format(Protocol):
    """A format as recognition sees it: its name, its columns, and a test that tells it from others with the same."""

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def fits(self) -> Callable[[Row], bool]: ...


@dataclass(frozen=True)
class SourceKind(Generic[F]):
    """A kind of data that a command reads: its formats in the order of trial, and the words of a refusal."""

    noun: str
    asks: str
    formats: tuple[F, ...]


# --- what commands read

PAIRS = SourceKind("preference pairs", "chosen and rejected, with a prompt or as transcripts", JUDGED)
JUDGMENTS = SourceKind(
    "judgments", "chosen and rejected, response_a, response_b and preference, or another format's columns", JUDGED
)
ANSWERS: SourceKind[Judged | Unjudged] = SourceKind(
    "answers",
    "prompt and completions (a list), prompt, response_a and response_b, or pairs",
    (*(it for it in JUDGED if it not in GENERIC), *UNJUDGED, *GENERIC),
)
DEMONSTRATIONS = SourceKind(
    "demonstrations", "prompt and completion, messages, instruction and output, or text", DEMONSTRATED
)
PROMPTS = SourceKind("prompts", "prompt, messages, conversations, instruction or text, or preference pairs", PROMPTED)


# --- recognition


class OpenedRows:
    """The rows of a file, folder or hub data set. The first have been read; all can be iterated over once.

    `rows` are all of them, under the names of --columns; `readable` are the first readable ones, up to
    `MOST_LOOKED_AT`; `renamed` are the names of --columns.
    """

    def __init__(self, name: str, limit: int | None, columns: str | None, counts: RowCounts) -> None:
        """Read the first rows; `counts` records what is unusual about the file."""
        mapping = parse_columns(columns)
        remarks: list[str] = []
        self._reading = RowReader(name, remarks)
        rows: Iterator[Numbered] = itertools.islice(self._reading.rows, limit)
        first = list(_up_to_readable(rows))
        self.readable = [row for _, row in first if isinstance(row, dict)]
        if mapping is not None and self.readable:
            mapping.refuse_missing(self.readable, name)
            hidden = mapping.hidden(self.readable)
            remarks += [f"the file's own column {one_line(c)} gives way to --columns" for c in hidden]
            first, rows = list(mapping.renamed(first)), mapping.renamed(rows)
            self.readable = [row for _, row in first if isinstance(row, dict)]
        for remark in remarks:
            counts.note(remark, first[0][0] if first else 1)
        self.rows = itertools.chain(first, rows)
        self.renamed = set(mapping.paths if mapping else ())

    def close(self) -> None:
        """Close the file."""
        self._reading.close()

    def content(self, ahead: bool = False) -> str:
        """Return the hash of the content that the rows come from; `ahead`: before all are read."""
        return self._reading.content(ahead)

    def bears(self, columns: str) -> bool:
        """Say whether this file has the columns that --columns names; it may have Keel's own names instead."""
        mapping = parse_columns(columns)
        return mapping is None or not self.readable or mapping.meant_for(self.readable)


def _up_to_readable(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    """Yield the first rows, up to the `MOST_LOOKED_AT`th that is readable."""
    readable = 0
    for numbered in rows:
        yield numbered
        readable += isinstance(numbered[1], dict)
        if readable == MOST_LOOKED_AT:
            return


def recognise(head: OpenedRows, kind: SourceKind[F], source: str, wanted: str | None) -> F:
    """Return the format of the rows; refuse them if none is readable, or if no format of this kind fits."""
    if not head.readable:
        counts = RowCounts()
        for number, row in head.rows:
            counts.read += 1
            counts.drop(str(row), number)
        refuse_nothing(counts, source)
    chosen = _recognise(kind, head.readable, source, wanted, head.renamed)
    if isinstance(chosen, Judged) and chosen.over is not None:
        try:
            chosen = cast(F, chosen.over(head.readable))
        except RowError as why:
            raise InputError(f"{source}: {why}") from None
    return chosen


def hint_of(head: OpenedRows, kind: SourceKind[F], wanted: str | None) -> str:
    """Return what to try if no row can be read in a format of this kind."""
    return "" if head.renamed or wanted else suggestion(kind.noun, head.readable)


def _recognise(kind: SourceKind[F], head: list[Row], source: str, wanted: str | None, renamed: set[str]) -> F:
    """Return the requested format, or the first that fits; refuse rows that all lack a column."""
    columns = {column: None for row in head for column in row}  # in the file's order
    formats = [f for f in kind.formats if wanted in (None, f.name)]
    if not formats:
        known = ", ".join(f.name for f in kind.formats)
        raise InputError(f"{source}: --format {one_line(wanted)} is not a format of {kind.noun}; choose one of {known}")
    if found := _match(formats, columns, head, looks=wanted is None, renamed=renamed):
        return found
    absent = {f.name: [column for column in f.needs if column not in columns] for f in formats}
    begun = [f for f in formats if 0 < len(absent[f.name]) < len(f.needs)]
    nearest = min(begun, key=lambda f: len(absent[f.name])) if begun else formats[0]
    missing = " or ".join(f"'{column}'" for column in absent[nearest.name])
    also = (
        (noun, _match(others, columns, head))
        for noun, others in ((PAIRS.noun, JUDGED), (DEMONSTRATIONS.noun, DEMONSTRATED))
        if noun != kind.noun
    )
    hint = next((f" (these are {noun}, format {found.name})" for noun, found in also if found), "")
    clear = missing and (len(absent[nearest.name]) == 1 or not begun or wanted)
    what = f"no column {missing}" if clear else "no known format"
    guess = "" if renamed or hint or wanted else suggestion(kind.noun, head)
    rest = guess or f"{kind.noun} need {kind.asks}"
    raise InputError(f"{source}: {what}; found: {listed_columns(columns)}{hint}; {rest}")


def _match(
    formats: Sequence[F],
    columns: dict[str, None],
    head: list[Row],
    looks: bool = True,
    renamed: Collection[str] = (),
) -> F | None:
    """Return the first format that fits; after a renaming, formats that use most of the new names are tried first."""
    for candidate in sorted(formats, key=lambda it: -len({*renamed} & {*it.needs})) if renamed else formats:
        there = all(column in columns for column in candidate.needs)
        if there and (not looks or any(candidate.fits(row) for row in head)):
            return candidate
    return None


def refuse_nothing(counts: RowCounts, source: str, hint: str = "") -> None:
    """Refuse a file without rows, or without one that can be used; `hint` says what to try."""
    if not counts.read:
        raise InputError(f"{source}: no rows; give a file with at least one")
    if not counts.used:
        mend = hint or ("mend them" if counts.dropped else "give others")
        raise InputError(f"{source}: none of {counts.read} rows can be read ({reasons(counts, neutral=True)}); {mend}")


def holding_of(head: OpenedRows, source: str, wanted: str | None) -> str:
    """Return what rows hold: judgments ("pairs"), "demonstrations" or "prompts" alone; refuse as `recognise` does."""
    found = {column: None for row in head.readable for column in row}
    for name, known in (("pairs", JUDGED), ("demonstrations", DEMONSTRATED), ("prompts", PROMPTED)):
        if _match([f for f in known if wanted in (None, f.name)], found, head.readable, wanted is None, head.renamed):
            return name
    recognise(head, PAIRS, source, wanted)
    raise AssertionError("rows that match no format are refused")
