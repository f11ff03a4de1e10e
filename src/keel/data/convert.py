"""One format into another, one row at a time: what the target cannot hold is refused, never dropped in silence.

Every row that is written is read back before it counts. Prompt, answers, verdict and dimension must come back as they
went, up to the target's stated rule (`becomes`), or else the whole conversion is refused and no file is left. What
else was known of a judgment and does not come back, such as a rater's name in a format without raters, is noted with
the row's number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from keel.data import formats
from keel.data.checks import reasons, refuse_bad
from keel.data.containers import write_rows
from keel.data.demonstrations import DEMONSTRATED, Demonstrated
from keel.data.judged import JUDGED, Judged
from keel.data.rows import Row, RowError, shown
from keel.data.text import prompt_key
from keel.errors import InputError
from keel.records import Answer, Demonstration, Judgment, Origin, Preference, Ranking, RowCounts, Score

__all__ = ["convert", "write_judgments"]

R = TypeVar("R")
BACK = Origin("what was written")
SHOWN = 5  # further columns named in one note


def convert(
    source: str,
    target: Path,
    to: str,
    *,
    format: str | None = None,
    limit: int | None = None,
    max_bad_share: float = 0.05,
) -> RowCounts:
    """Read `source` (in `format`, or the one recognised) and write `target` in the format `to`; every row's fate.

    The container follows from the target's ending. The file is there, whole, or not at all. Raises `InputError` where
    the target exists, where a row cannot be held, or where more than `max_bad_share` of the source's rows are bad.
    """
    if any(it.name == to for it in JUDGED):
        groups, counts, name = formats.open_judgments(source, format, limit)
        if any(it.name == name and it.spread for it in JUDGED):
            groups = formats.together(groups, counts)
        write_judgments(groups, target, to, counts, source, max_bad_share)
        return counts
    it = next((it for it in DEMONSTRATED if it.name == to), None)
    if it is None:
        names = ", ".join([*(f.name for f in JUDGED), *(f.name for f in DEMONSTRATED)])
        raise InputError(f"{target}: {shown(to)} is not a format that can be written; choose one of {names}")
    records, counts, _ = formats.open_demonstrations(source, format, limit)
    made = ((record.origin.row, _attempt(_demonstration_rows, record, it)) for record in records)
    _write(made, target, to, counts, source, max_bad_share)
    return counts


def write_judgments(
    groups: Iterable[Sequence[Judgment]],
    target: Path,
    to: str,
    counts: RowCounts,
    source: str,
    max_bad_share: float = 0.05,
) -> None:
    """Write judgments, in groups that stood together (of one row, of one prompt), whatever they come from.

    `counts` learns what was left out; `source` names where they come from in a refusal.
    """
    it = next(it for it in JUDGED if it.name == to)
    made = ((group[0].origin.row, _attempt(_judgment_rows, group, it)) for group in groups)
    _write(made, target, to, counts, source, max_bad_share)


# --- writing and refusing

Made = tuple[list[Row], list[str]]
"""Rows to write, and what is worth a note."""

F = TypeVar("F")


def _attempt(make: Callable[[R, F], Made], record: R, it: F) -> Made | RowError:
    try:
        return make(record, it)
    except RowError as error:
        return error


def _write(
    made: Iterable[tuple[int, Made | RowError]],
    target: Path,
    to: str,
    counts: RowCounts,
    source: str,
    max_bad_share: float,
) -> None:
    """Write all or nothing: after the first row that cannot be held, the rest is only counted."""
    refused = RowCounts()
    with write_rows(target) as put:
        for number, result in made:
            try:
                if isinstance(result, RowError):
                    raise result
                rows, notes = result
                for row in rows if not refused.dropped else []:
                    put(row)
                for what in notes:
                    counts.note(what, number)
            except RowError as error:
                refused.drop(str(error), number)
        if refused.dropped:
            raise InputError(
                f"{source}: {to} cannot hold {refused.dropped_total} of {counts.read} rows ({reasons(refused)}); "
                "choose another format, or remove them"
            )
        refuse_bad(counts, max_bad_share, source)


def _demonstration_rows(record: Demonstration, it: Demonstrated) -> Made:
    row = it.write(record)
    if replace(_read_back(it.convert, row), origin=record.origin) != it.becomes(record):
        raise RowError("it would not be read back as it is")
    return [row], []


def _judgment_rows(group: Sequence[Judgment], it: Judged) -> Made:
    rows = it.write(group)
    waiting: dict[Hashable, list[Judgment]] = defaultdict(list)
    for row in rows:
        for judgment in _read_back(it.read, row):
            waiting[_what_it_says(judgment)].append(judgment)
    left: dict[str, None] = {}
    for judgment in map(it.becomes, group):
        found = waiting[_what_it_says(judgment)]
        if not found:
            raise RowError("text, verdict or dimension would not be read back as they are")
        left |= dict.fromkeys(_left_out(judgment, found.pop(0)))
    if any(waiting.values()):
        raise RowError("more judgments would be read back than there are")
    return rows, [f"{it.name} does not hold {what}" for what in left]


def _read_back(read: Callable[[Row, Origin], R], row: Row) -> R:
    try:
        return read(row, BACK)
    except RowError as error:
        raise RowError(f"it would not be read back ({error})") from None


# --- what must come back, and what may be left out


def _what_it_says(judgment: Judgment) -> Hashable:
    """The same for two judgments that say the same of the same texts, in whatever order these were shown."""
    texts = [answer.text for answer in judgment.answers]
    said: Hashable
    match judgment.verdict:
        case Preference("first"):
            said = "better", *texts
        case Preference("second"):
            said = "better", *reversed(texts)
        case Preference(outcome):
            said = outcome, *sorted(texts)
        case Score(value):
            said = value, *texts
        case Ranking(ranks):
            said = tuple(sorted(zip(ranks, texts, strict=True)))
    return isinstance(judgment.prompt, str), prompt_key(judgment.prompt), judgment.dimension, said


def _left_out(before: Judgment, after: Judgment) -> Iterator[str]:
    """What was known of a judgment and does not come back."""
    if "unknown" not in (before.kind, after.kind) and before.kind != after.kind:
        raise RowError(f"labels of the kind {before.kind!r} would be read as of the kind {after.kind!r}")
    for field in ("rater", "kind", "rubric", "seconds", "comment", "raw"):
        known = getattr(before, field)
        if known not in ("", "unknown", None) and getattr(after, field) != known:
            yield field
    if [answer.text for answer in before.answers] != [answer.text for answer in after.answers]:
        yield "the order in which answers were shown"
    if getattr(before.verdict, "strength", 0) != getattr(after.verdict, "strength", 0):
        yield "strength"
    kept = after.extra or {}
    columns = [column for column, value in (before.extra or {}).items() if kept.get(column) != value]
    if columns:
        yield f"the columns {', '.join(map(shown, columns[:SHOWN]))}{', …' if len(columns) > SHOWN else ''}"
    yield from _left_out_of_answers(before.answers, after.answers)


def _left_out_of_answers(before: Sequence[Answer], after: Sequence[Answer]) -> Iterator[str]:
    if [answer.text for answer in before] == [answer.text for answer in after]:
        partners = list(after)
    else:
        found = {answer.text: answer for answer in after}
        partners = [found[answer.text] for answer in before]
    for answer, partner in zip(before, partners, strict=True):
        for field in ("model", "model_hash", "sampling", "logp", "tokens", "truncated", "draw"):
            known = getattr(answer, field)
            if known not in ("", None, False) and getattr(partner, field) != known:
                yield f"the answers' {field}"
