"""Conversion between formats, one row at a time: what the target cannot hold is refused, never dropped in silence.

Every written row is read back before it counts. Prompt, answers, verdict and dimension must come back unchanged, up to
the target's stated rule (`becomes`); otherwise the whole conversion is refused and no file is left. Other details of a
judgment that do not come back, such as a rater's name in a format without raters, are noted with the row's number.

With `pairs`, the pairs that training would derive are written instead of the judgments: as pairs, as two labelled
answers each (`kto`), or, in a format of demonstrations, as their chosen answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from keel.data.checks import check_pairs, reasons, refuse_bad
from keel.data.source import Source, open_source, together
from keel.errors import InputError
from keel.files.fields import Row, RowError, one_line
from keel.files.writing import write_rows
from keel.formats.demonstrations import DEMONSTRATED, Demonstrated
from keel.formats.judgments import JUDGED, Judged
from keel.formats.messages import answer_key
from keel.records import (
    OVERALL,
    Answer,
    Demonstration,
    Judgment,
    Message,
    Origin,
    Pair,
    Preference,
    Prompt,
    Ranking,
    RaterKind,
    RowCounts,
    Score,
)
from keel.text.tokenisation import further, prompt_key, prompt_text

__all__ = ["convert", "trl_row", "write_judgments"]

R = TypeVar("R")
BACK = Origin("what was written")
_SHOWN = 5  # further columns named in one note
_NAMED = 3  # places in a store named for one reason


def convert(
    source: str,
    target: Path,
    to: str,
    *,
    format: str | None = None,
    limit: int | None = None,
    max_bad_share: float = 0.05,
    pairs: bool = False,
    columns: str | None = None,
) -> RowCounts:
    """Read `source` (in `format`, or the one recognised), write `target` in the format `to`, return every row's fate.

    With `pairs` the counts are of comparisons, and those that make no pair are counted by reason. The target's ending
    decides the container. The file is written whole or not at all. Raises `InputError` if the target exists, if a row
    cannot be held, or if more than `max_bad_share` of the source's rows are bad.
    """
    with open_source(source, format=format, limit=limit, columns=columns) as given:
        if any(it.name == to and (not pairs or _holds_pairs(it)) for it in JUDGED):
            groups = _groups(given, max_bad_share if pairs else None)
            write_judgments(groups, target, to, given.counts, source, max_bad_share, pairs=pairs)
        else:
            _write_demonstrations(given, target, to, max_bad_share, pairs, recognised=format is None)
    return given.counts


def _write_demonstrations(
    given: Source, target: Path, to: str, max_bad_share: float, pairs: bool, recognised: bool
) -> None:
    """Write demonstrations or, with `pairs`, the chosen answers of pairs."""
    it = next((it for it in DEMONSTRATED if it.name == to), None)
    if it is None:
        known = [f.name for f in JUDGED if not pairs or _holds_pairs(f)] + [f.name for f in DEMONSTRATED]
        what = "a format of pairs" if pairs else "a format that can be written"
        raise InputError(f"{target}: {one_line(to)} is not {what}; choose one of {', '.join(known)}")
    if pairs:
        checked = check_pairs(given.pairs(), given.counts, max_bad_share, given.name)
        records: Iterable[Demonstration] = _chosen(checked, given.counts)
    elif (recognised or given.counts.stored) and given.holds() == "pairs":
        raise InputError(
            f"{given.name}: these are preference pairs, and {to} holds answers to imitate; "
            "add --pairs to write the chosen answer of each"
        )
    else:
        records = given.demonstrations()
    made = ((record.origin.row, None, _attempt(_demonstration_rows, record, it)) for record in records)
    _write(made, target, given.counts, _Refusals(given.name, to, "rows", MEND), max_bad_share)


def _chosen(pairs: Iterable[Pair], counts: RowCounts) -> Iterator[Demonstration]:
    """Yield the chosen answers, each once per prompt; `counts` records what is left out."""
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        row = pair.origin.row
        key = prompt_key(pair.prompt), answer_key(Answer(pair.chosen, fields=pair.fields[0]))
        if pair.cut[0]:
            counts.used -= 1
            counts.skip("the chosen answer was cut at a length limit: nothing to imitate", row)
        elif key in seen:
            counts.used -= 1
            counts.skip("the same chosen answer as in an earlier pair", row)
        else:
            seen.add(key)
            counts.note("the rejected answer is left out", row)
            yield Demonstration(pair.prompt, pair.chosen, pair.origin, pair.fields[0])


def _groups(given: Source, bad_pairs: float | None) -> Iterable[Sequence[Judgment]]:
    """Return groups of judgments that stand together or, if a share of bad pairs is given, each pair by itself."""
    if bad_pairs is not None:
        return map(of_pair, check_pairs(given.pairs(), given.counts, bad_pairs, given.name))
    groups = given.judgments()
    spread = any(it.name == given.format and it.spread for it in JUDGED)
    return together(groups, given.counts) if spread else groups


def of_pair(pair: Pair) -> list[Judgment]:
    """Return a pair as a group of one judgment."""
    better, worse = (
        Answer(text, truncated=cut, fields=fields, drawn=drawn)
        for text, cut, fields, drawn in zip(
            (pair.chosen, pair.rejected), pair.cut, pair.fields, pair.drawn, strict=True
        )
    )
    kind: RaterKind = "judge" if pair.ai else "unknown"
    return [Judgment(pair.prompt, (better, worse), Preference("first", pair.margin), kind=kind, origin=pair.origin)]


def trl_row(pair: Pair) -> Row:
    """Return a pair in TRL's columns; raises `RowError` if it would not come back unchanged."""
    (row,), _ = _pair_rows(of_pair(pair), next(it for it in JUDGED if it.name == "trl"))
    return row


def write_judgments(
    groups: Iterable[Sequence[Judgment]],
    target: Path,
    to: str,
    counts: RowCounts,
    source: str,
    max_bad_share: float = 0.05,
    *,
    pairs: bool = False,
) -> None:
    """Write judgments from any source, in groups that stood together (of one row or one prompt).

    `counts` records what was left out; `source` names the source in a refusal. `pairs`: each one is a pair already.
    """
    it = next(it for it in JUDGED if it.name == to)
    in_store = counts.stored
    mend = ["choose another format"] if in_store else MEND
    if not pairs and _holds_pairs(it):
        mend = ["add --pairs to write the pairs that training derives", *mend]
    refused = _Refusals(source, to, "pairs" if pairs else "prompts" if in_store else "rows", mend)
    make = _labelled_rows if pairs and _holds_scores(it) else _pair_rows if pairs else _judgment_rows
    made = ((g[0].origin.row, partial(_place, g, it) if in_store else None, _attempt(make, g, it)) for g in groups)
    _write(made, target, counts, refused, max_bad_share)


def _holds_pairs(it: Judged) -> bool:
    """Say whether a format can hold which of two answers is better, or that one is good and the other bad."""
    return not isinstance(_attempt(_judgment_rows, _SAMPLE, it), RowError) or _holds_scores(it)


def _holds_scores(it: Judged) -> bool:
    """Say whether a format can hold a pair only as a good and a bad answer."""
    if not isinstance(_attempt(_judgment_rows, _SAMPLE, it), RowError):
        return False
    return not isinstance(_attempt(_labelled_rows, _SAMPLE, it), RowError)


_SAMPLE = [Judgment([Message(role="user", content="p")], (Answer("a"), Answer("b")), Preference("first"))]


# --- writing and refusing

MEND = ["choose another format", "remove them"]
"""Remedies if the rows of a file are refused."""

Made = tuple[list[Row], list[str]]
"""Rows to write, and notes on them."""

_Place = Callable[[str], str]
"""Function from a reason for refusal to the place in a store of what is refused, in a user's words."""

F = TypeVar("F")


def _attempt(make: Callable[[R, F], Made], record: R, it: F) -> Made | RowError:
    try:
        return make(record, it)
    except RowError as error:
        return error


@dataclass(slots=True)
class _Refusals:
    """Records that the target cannot hold, by reason: rows of a file, or places in a store in a user's words."""

    source: str
    to: str
    what: str
    mend: list[str]
    counts: RowCounts = field(default_factory=RowCounts)
    places: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, number: int, place: _Place | None) -> None:
        """Count one; if a place is given, the first few places are named instead of the number."""
        self.counts.drop(reason, number)
        if place is not None and len(self.places[reason]) < _NAMED:
            self.places[reason].append(place(reason))

    def error(self, read: int) -> InputError:
        """Return the error that names the refusals among `read` records."""
        told = self._in_words() if self.places else reasons(self.counts)
        count, mend = self.counts.dropped_total, ", or ".join(filter(None, [", ".join(self.mend[:-1]), self.mend[-1]]))
        return InputError(f"{self.source}: {self.to} cannot hold {count} of {read} {self.what} ({told}); {mend}")

    def _in_words(self) -> str:
        ordered = sorted(self.counts.dropped.items(), key=lambda item: -item[1][0])
        more = {reason: ", …" if count > _NAMED else "" for reason, (count, _) in ordered}
        return "; ".join(
            f"{n} '{reason}': {', '.join(self.places[reason])}{more[reason]}" for reason, (n, _) in ordered
        )


def _place(group: Sequence[Judgment], it: Judged, reason: str) -> str:
    """Return the place of a store's first judgment refused for this reason: prompt's beginning, rater, dimension."""
    name = f"“{one_line(' '.join(prompt_text(group[0].prompt).split()))}”"
    for judgment in group:
        if str(_attempt(_judgment_rows, [judgment], it)) == reason:
            by = f" by {one_line(judgment.rater)}" if judgment.rater else ""
            return name + by + (f" in {one_line(judgment.dimension)}" if judgment.dimension != OVERALL else "")
    return name


def _write(
    made: Iterable[tuple[int, _Place | None, Made | RowError]],
    target: Path,
    counts: RowCounts,
    refused: _Refusals,
    max_bad_share: float,
) -> None:
    """Write all or nothing: after the first row that cannot be held, the rest is only counted."""
    with write_rows(target) as put:
        for number, place, result in made:
            try:
                if isinstance(result, RowError):
                    raise result
                rows, notes = result
                for row in rows if not refused.counts.dropped else []:
                    put(row)
                for what in notes:
                    counts.note(what, number)
            except RowError as error:
                refused.add(str(error), number, place)
        if refused.counts.dropped:
            raise refused.error(counts.used if refused.what == "pairs" else counts.read)
        refuse_bad(counts, max_bad_share, refused.source)


def _demonstration_rows(record: Demonstration, it: Demonstrated) -> Made:
    row = it.write(record)
    _refuse_lost_fields(record.prompt, it.becomes(record).prompt)
    if replace(_read_back(it.convert, row), origin=record.origin) != replace(it.becomes(record), cut=False, drawn=None):
        raise RowError("it would not be read back as it is")
    left = [what for what, known in (("truncated", record.cut), ("ids as drawn", record.drawn)) if known]
    return [row], [f"{it.name} does not hold the answers' {what}" for what in left]


def _judgment_rows(group: Sequence[Judgment], it: Judged) -> Made:
    rows = it.write(group)
    waiting: dict[Hashable, list[Judgment]] = defaultdict(list)
    for row in rows:
        for judgment in _read_back(it.read, row):
            waiting[_what_it_says(judgment)].append(judgment)
    left: dict[str, None] = {}
    for original in group:
        judgment = it.becomes(original)
        _refuse_lost_fields(original.prompt, judgment.prompt)
        found = waiting[_what_it_says(judgment)]
        if not found:
            raise RowError("text, verdict or dimension would not be read back as they are")
        left |= dict.fromkeys(_left_out(judgment, found.pop(0)))
    if any(waiting.values()):
        raise RowError("more judgments would be read back than there are")
    return rows, [f"{it.name} does not hold {what}" for what in left]


def _pair_rows(group: Sequence[Judgment], it: Judged) -> Made:
    """Return the rows of a pair, and notes. A pair knows only whether a model gave its label; that must come back."""
    rows, notes = _judgment_rows(group, it)
    if any(judgment.ai and not group[0].ai for row in rows for judgment in it.read(row, BACK)):
        raise RowError("labels that are no model's would be read as a model's")
    return rows, notes


def _labelled_rows(group: Sequence[Judgment], it: Judged) -> Made:
    """Return rows for each answer of a pair by itself: the chosen one is good (1), the rejected one bad (0)."""
    labelled = [
        replace(judgment, answers=(answer,), verdict=Score(value))
        for judgment in group
        for answer, value in zip(judgment.answers, (1.0, 0.0), strict=True)
    ]
    rows, notes = _pair_rows(labelled, it)
    graded = any(isinstance(j.verdict, Preference) and j.verdict.strength for j in group)
    return rows, [*notes, *([f"{it.name} does not hold strength"] if graded else [])]


def _read_back(read: Callable[[Row, Origin], R], row: Row) -> R:
    try:
        return read(row, BACK)
    except RowError as error:
        raise RowError(f"it would not be read back ({error})") from None


# --- what must come back, and what may be left out


def _what_it_says(judgment: Judgment) -> Hashable:
    """Return a key that is equal for judgments that say the same of the same texts, shown in any order."""
    texts = [answer_key(answer) for answer in judgment.answers]
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


def _refuse_lost_fields(before: Prompt, after: Prompt) -> None:
    """Refuse a prompt if the format's rule rewrote its turns and lost a field that they held beside their text."""
    held, kept = (
        [fields for turn in prompt if (fields := further(turn))] if not isinstance(prompt, str) else []
        for prompt in (before, after)
    )
    if lost := next((fields for fields in held if fields not in kept), None):
        raise RowError(f"a turn's {', '.join(lost)} would be left out")


def _left_out(before: Judgment, after: Judgment) -> Iterator[str]:
    """Yield what was known of a judgment and does not come back; raises `RowError` for a label of another kind."""
    if "unknown" not in (before.kind, after.kind) and before.kind != after.kind:
        raise RowError(f"labels of the kind {before.kind!r} would be read as of the kind {after.kind!r}")
    for name in ("rater", "kind", "rubric", "seconds", "comment", "raw"):
        known = getattr(before, name)
        if known not in ("", "unknown", None) and getattr(after, name) != known:
            yield name
    if list(map(answer_key, before.answers)) != list(map(answer_key, after.answers)):
        yield "the order in which answers were shown"
    if getattr(before.verdict, "strength", 0) != getattr(after.verdict, "strength", 0):
        yield "strength"
    kept = after.extra or {}
    columns = [column for column, value in (before.extra or {}).items() if kept.get(column) != value]
    if columns:
        yield f"the columns {', '.join(map(one_line, columns[:_SHOWN]))}{', …' if len(columns) > _SHOWN else ''}"
    yield from _left_out_of_answers(before.answers, after.answers)


def _left_out_of_answers(before: Sequence[Answer], after: Sequence[Answer]) -> Iterator[str]:
    keys, found = list(map(answer_key, before)), {answer_key(answer): answer for answer in after}
    partners = list(after) if keys == list(map(answer_key, after)) else [found[key] for key in keys]
    for answer, partner in zip(before, partners, strict=True):
        for name in ("model", "model_hash", "sampling", "logp", "tokens", "truncated", "draw", "drawn"):
            known = getattr(answer, name)
            if known not in ("", None, False) and getattr(partner, name) != known:
                yield f"the answers' {'ids as drawn' if name == 'drawn' else name}"
