"""Files into records: which format a data file is in, and where its rows go.

Two layers. A *container* (`containers`: .jsonl, .json, .csv, .parquet, .txt, a hub data set) yields numbered rows as
dicts; a *format* turns one such dict into a record, or into the judgments that it holds. A format is one small entry
in a table: `JUDGED`, `DEMONSTRATED`, `PROMPTED`. The first whose columns are all there, and whose look fits, is
recognised.

A row that cannot be read is an outcome, not an exception: it is counted with its number and reason (law 6). What makes
the whole file unreadable, such as a wrong encoding or a missing column, is an `InputError`.

Left out on purpose: guessing where a prompt ends inside a plain string, and anything that `checks` judges by
content.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from keel.data.checks import reasons
from keel.data.containers import file_hash, read_rows
from keel.data.demonstrations import DEMONSTRATED
from keel.data.doubts import Scores
from keel.data.judged import JUDGED, Judged
from keel.data.judged.base import no_remarks
from keel.data.preferences import derive
from keel.data.prompted import PROMPTED
from keel.data.rows import Neutral, Numbered, Row, RowError, noted, shown
from keel.data.store import Given, Store, is_store, prompts_identity, row_key
from keel.data.text import prompt_key
from keel.data.unjudged import UNJUDGED, Unjudged
from keel.errors import InputError
from keel.records import Answer, Demonstration, Judgment, Origin, Pair, Prompt, PromptRow, RowCounts

__all__ = [
    "file_hash",
    "identify",
    "kind_of",
    "open_answers",
    "open_demonstrations",
    "open_judgments",
    "open_keyed",
    "read_demonstrations",
    "read_judgments",
    "read_pairs",
    "read_prompts",
    "together",
]

R = TypeVar("R")
F = TypeVar("F", bound="Format")

Asked = tuple[Prompt, list[Answer], Origin]
"""A prompt and its answers."""
STORE = "store"
"""What stands in place of a format's name."""
HEAD = 100  # readable rows from which columns and format are recognised
BLOCK = 256  # consecutive rows of one prompt that are compared with each other at most


class Format(Protocol):
    """What recognition asks of a format: its name, its columns, and what tells it from another with these columns."""

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def fits(self) -> Callable[[Row], bool]: ...


@dataclass(frozen=True)
class Kind(Generic[F]):
    """What a command reads: its formats in the order in which they are tried, and the words of a refusal."""

    noun: str
    asks: str
    formats: tuple[F, ...]


# --- what a command calls


def read_pairs(
    source: str, *, format: str | None = None, limit: int | None = None
) -> tuple[list[Pair], RowCounts, str]:
    """Preference pairs of a file or hub data set, every contest's fate, and the format's name.

    Pairs are derived from the judgments of a row by the rules of `preferences`, or of the consecutive rows of one
    prompt in formats that spread judgments over them. A contest that rightly makes no pair is neutral. Columns of
    scores that contradict a verdict are noted.
    """
    groups, counts, name = _contests(source, format, limit)
    pairs: list[Pair] = []
    scores = Scores()
    for group in groups:
        scores.see(group)
        derived = derive(group)
        pairs += derived.pairs
        counts.read += len(derived.pairs)
        for why, times in derived.neutral.items():
            counts.read += times
            for _ in range(times):
                counts.skip(why, group[0].origin.row)
    counts.used = len(pairs)
    _refuse_nothing(counts, source)
    scores.tell(counts)
    return pairs, counts, name


def open_judgments(
    source: str, format: str | None = None, limit: int | None = None
) -> tuple[Iterator[list[Judgment]], RowCounts, str]:
    """The judgments of each row as they are read, every row's fate as far as it is read, and the format's name.

    Nothing is held in memory but the head from which the format is recognised (and a whole .json file). Raises
    `InputError` at once where the file is not recognised, and at the end where no row gave a judgment. A store's come a
    prompt at a time, in the order of their keys.
    """
    groups, counts, name = _groups(JUDGMENTS, source, format, limit)

    def stream() -> Iterator[list[Judgment]]:
        for group in groups:
            counts.read += 1
            counts.used += 1
            yield group
        _refuse_nothing(counts, source)

    return stream(), counts, name


def open_keyed(
    source: str, format: str | None = None, limit: int | None = None
) -> tuple[Iterator[tuple[bytes, Judgment]], RowCounts, str]:
    """Judgments as they are read, each under the key by which a store knows it: read again, they are the same ones.

    Those of a file are named by its content and their row, those of a store as they are there.
    """
    if not is_store(source):
        groups, counts, name = open_judgments(source, format, limit)
        content = file_hash(source)
        return ((row_key(content, j, index), j) for group in groups for index, j in enumerate(group)), counts, name
    counts = RowCounts()

    def stream() -> Iterator[tuple[bytes, Judgment]]:
        for group in _of_store(source, limit, counts, numbered=False):
            counts.read += 1
            counts.used += 1
            yield from group
        _refuse_nothing(counts, source)

    return stream(), counts, STORE


def read_judgments(
    source: str, format: str | None = None, limit: int | None = None
) -> tuple[list[Judgment], RowCounts, str]:
    """The judgments of a file or hub data set in the order of its rows, every row's fate, and the format's name."""
    groups, counts, name = open_judgments(source, format, limit)
    return [judgment for group in groups for judgment in group], counts, name


def open_answers(
    source: str, format: str | None = None, limit: int | None = None
) -> tuple[Iterator[Asked], RowCounts, str]:
    """Prompts with their answers, whatever is said of them, as `open_judgments` streams and counts them.

    An answer that was judged several times, or was drawn twice, stands there as often.
    """
    counts = RowCounts()
    if is_store(source):
        name = STORE
        groups: Iterator[list[Asked]] = map(_asked, _judgments_of(source, limit, counts))
    else:
        rows, chosen = _open(ANSWERS, source, format, limit)
        name = chosen.name

        def convert(row: Row, origin: Origin) -> list[Asked]:
            if isinstance(chosen, Unjudged):
                return [(*chosen.convert(row), origin)]
            return _asked(chosen.read(row, origin))

        groups = (found for _, found in _records(rows, convert, source, counts))

    def stream() -> Iterator[Asked]:
        for found in groups:
            counts.read += 1
            counts.used += 1
            yield from found
        _refuse_nothing(counts, source)

    return stream(), counts, name


def _asked(judgments: list[Judgment]) -> list[Asked]:
    """The prompts of some judgments with all the answers that were judged."""
    of_prompt: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        of_prompt.setdefault(prompt_key(judgment.prompt), []).append(judgment)
    return [(group[0].prompt, [a for j in group for a in j.answers], group[0].origin) for group in of_prompt.values()]


def read_demonstrations(
    source: str, *, format: str | None = None, limit: int | None = None
) -> tuple[list[Demonstration], RowCounts, str]:
    """Prompts with the answers to imitate, or plain texts; every row's fate, and the format's name."""
    rows, chosen = _open(DEMONSTRATIONS, source, format, limit)
    counts = RowCounts()
    return _read(rows, chosen.convert, source, counts), counts, chosen.name


def open_demonstrations(
    source: str, format: str | None = None, limit: int | None = None
) -> tuple[Iterator[Demonstration], RowCounts, str]:
    """The same one at a time, as `open_judgments` does it; columns that a demonstration does not hold are noted."""
    rows, chosen = _open(DEMONSTRATIONS, source, format, limit)
    counts = RowCounts()
    known = {*chosen.needs, *chosen.may}

    def convert(row: Row, origin: Origin) -> Demonstration:
        found = chosen.convert(row, origin)
        for column in row.keys() - known:
            counts.note(f"the column {shown(column)} is left out", origin.row)
        return found

    def stream() -> Iterator[Demonstration]:
        for _, record in _records(rows, convert, source, counts):
            counts.read += 1
            counts.used += 1
            yield record
        _refuse_nothing(counts, source)

    return stream(), counts, chosen.name


def read_prompts(
    source: str, *, format: str | None = None, limit: int | None = None
) -> tuple[list[PromptRow], RowCounts, str]:
    """Prompts alone, those of judgments and logs included (of a tree its root); every row's fate, the format's name."""
    if is_store(source):
        with Store(source) as store:
            found = list(itertools.islice(store.prompts(), limit))
        counts = RowCounts(read=len(found), used=len(found), identity=prompts_identity(key for key, _ in found))
        _refuse_nothing(counts, source)
        return [row for _, row in found], counts, STORE
    rows, chosen = _open(PROMPTS, source, format, limit)
    counts = RowCounts()
    return _read(rows, _noting(chosen.convert, chosen.remarks, counts), source, counts), counts, chosen.name


def kind_of(source: str, format: str | None = None) -> str:
    """Whether a source holds judgments ("pairs", a store too), "demonstrations", or "prompts" alone.

    Raises `InputError` as reading pairs would where it holds none of them.
    """
    if is_store(source):
        return "pairs"
    readable = [row for _, row in _head(read_rows(source)) if isinstance(row, dict)]
    columns = {column: None for row in readable for column in row}
    for name, known in (("pairs", JUDGED), ("demonstrations", DEMONSTRATED), ("prompts", PROMPTED)):
        if _match([f for f in known if format in (None, f.name)], columns, readable, looks=format is None):
            return name
    _open(PAIRS, source, format, None)
    raise AssertionError("what matches no format is refused")


def identify(source: str, counts: RowCounts) -> dict[str, object]:
    """What a manifest says of data: the file's hash, or exactly which rows of a store were given.

    `counts` are those of the reading, which must be over: a store may hold more by now.
    """
    return counts.identity if is_store(source) else {"data_hash": file_hash(source)}


# --- what commands read

PAIRS = Kind("preference pairs", "chosen and rejected, with a prompt or as transcripts", JUDGED)
JUDGMENTS = Kind("judgments", "the columns of a format that holds them", JUDGED)
ANSWERS: Kind[Judged | Unjudged] = Kind(
    "answers", "prompt and completions (a list), prompt, response_a and response_b, or pairs", (*JUDGED, *UNJUDGED)
)
DEMONSTRATIONS = Kind(
    "demonstrations", "prompt and completion, messages, instruction and output, or text", DEMONSTRATED
)
PROMPTS = Kind("prompts", "prompt, messages, conversations, instruction or text, or preference pairs", PROMPTED)


# --- from rows to records


def _groups(
    kind: Kind[Judged], source: str, format: str | None, limit: int | None
) -> tuple[Iterator[list[Judgment]], RowCounts, str]:
    """Judgments row by row of a file, prompt by prompt of a store; the caller counts what it takes."""
    counts = RowCounts()
    if is_store(source):
        return _judgments_of(source, limit, counts), counts, STORE
    rows, chosen = _open(kind, source, format, limit)
    groups = (group for _, group in _records(rows, _noting(chosen.read, chosen.remarks, counts), source, counts))
    return groups, counts, chosen.name


def _contests(source: str, format: str | None, limit: int | None) -> tuple[Iterator[list[Judgment]], RowCounts, str]:
    """The same, with what a format spreads over consecutive rows put together."""
    groups, counts, name = _groups(PAIRS, source, format, limit)
    spread = {it.name for it in JUDGED if it.spread}
    return (together(groups, counts) if name in spread else groups), counts, name


def _judgments_of(source: str, limit: int | None, counts: RowCounts) -> Iterator[list[Judgment]]:
    """The judgments of a store, a prompt at a time; what counts as a row's number is the judgment's in the store."""
    return ([judgment for _, judgment in group] for group in _of_store(source, limit, counts))


def _of_store(
    source: str, limit: int | None, counts: RowCounts, numbered: bool = True
) -> Iterator[list[tuple[bytes, Judgment]]]:
    """The same under their keys; at the end `counts` learns exactly which they were."""
    given = Given()
    with Store(source) as store:
        yield from itertools.islice(store.groups(given=given, numbered=numbered), limit)
    counts.identity = given.identity()


def _noting(
    read: Callable[[Row, Origin], R], remarks: Callable[[Row], Iterable[str]], counts: RowCounts
) -> Callable[[Row, Origin], R]:
    """A row into what it holds, with what is worth a note counted."""
    if remarks is no_remarks:
        return read

    def convert(row: Row, origin: Origin) -> R:
        found = read(row, origin)
        for what in remarks(row):
            counts.note(what, origin.row)
        return found

    return convert


def _records(
    rows: Iterable[Numbered], convert: Callable[[Row, Origin], R], source: str, counts: RowCounts
) -> Iterator[tuple[int, R]]:
    """(number, record) of each row that gives one, for the caller to count; the others are counted here."""
    for number, row in rows:
        try:
            if isinstance(row, RowError):
                raise row
            record = noted(convert, row, Origin(source, number), counts)
        except Neutral as why:
            counts.read += 1
            counts.skip(str(why), number)
        except RowError as error:
            counts.read += 1
            counts.drop(str(error), number)
        else:
            yield number, record


def _read(rows: Iterable[Numbered], convert: Callable[[Row, Origin], R], source: str, counts: RowCounts) -> list[R]:
    records = [record for _, record in _records(rows, convert, source, counts)]
    counts.read += len(records)
    counts.used = len(records)
    _refuse_nothing(counts, source)
    return records


def _refuse_nothing(counts: RowCounts, source: str) -> None:
    if not counts.read:
        raise InputError(f"{source}: no rows; give a file with at least one")
    if not counts.used:
        mend = "mend them" if counts.dropped else "give others"
        raise InputError(f"{source}: none of {counts.read} rows can be read ({reasons(counts, neutral=True)}); {mend}")


def together(groups: Iterable[list[Judgment]], counts: RowCounts) -> Iterator[list[Judgment]]:
    """Consecutive groups of one prompt as one, `BLOCK` at most."""
    held: list[Judgment] = []
    size, key = 0, ""
    for group in groups:
        here = prompt_key(group[0].prompt)
        if held and (here != key or size == BLOCK):
            if here == key:
                counts.note(f"more than {BLOCK} rows of one prompt, compared by the block", group[0].origin.row)
            yield held
            held, size = [], 0
        held, size, key = [*held, *group] if size else list(group), size + 1, here
    if held:
        yield held


# --- recognition


def _open(kind: Kind[F], source: str, wanted: str | None, limit: int | None) -> tuple[Iterator[Numbered], F]:
    """The rows and their format; refuses where no row is readable."""
    rows = itertools.islice(read_rows(source), limit)
    head = _head(rows)
    readable = [row for _, row in head if isinstance(row, dict)]
    if not readable:
        counts = RowCounts(read=len(head))
        for number, row in head:
            counts.drop(str(row), number)
        _refuse_nothing(counts, source)
    return itertools.chain(head, rows), _recognise(kind, readable, source, wanted)


def _head(rows: Iterator[Numbered]) -> list[Numbered]:
    """The first rows, up to the `HEAD`th that is readable."""
    head, readable = [], 0
    for number, row in rows:
        head.append((number, row))
        readable += isinstance(row, dict)
        if readable == HEAD:
            break
    return head


def _recognise(kind: Kind[F], head: list[Row], source: str, wanted: str | None) -> F:
    """The format asked for, or the first that fits; refuses where a column is missing from every row."""
    columns = {column: None for row in head for column in row}  # in the file's order
    formats = [f for f in kind.formats if wanted in (None, f.name)]
    if not formats:
        names = ", ".join(f.name for f in kind.formats)
        raise InputError(f"{source}: --format {shown(wanted)} is not a format of {kind.noun}; choose one of {names}")
    if found := _match(formats, columns, head, looks=wanted is None):
        return found
    absent = {f.name: [column for column in f.needs if column not in columns] for f in formats}
    begun = [f for f in formats if 0 < len(absent[f.name]) < len(f.needs)]
    nearest = min(begun, key=lambda f: len(absent[f.name])) if begun else formats[0]
    missing = " or ".join(f"'{column}'" for column in absent[nearest.name])
    names = ", ".join(shown(column) for column in list(columns)[:12]) + (", …" if len(columns) > 12 else "")
    also = ((noun, _match(others, columns, head)) for noun, others in KINDS if noun != kind.noun)
    hint = next((f" (these are {noun}, format {found.name})" for noun, found in also if found), "")
    what = f"no column {missing}" if missing else "no format that is known"
    raise InputError(f"{source}: {what}; found: {names or 'none'}{hint}; {kind.noun} need {kind.asks}")


KINDS: tuple[tuple[str, tuple[Format, ...]], ...] = (
    (PAIRS.noun, PAIRS.formats),
    (DEMONSTRATIONS.noun, DEMONSTRATIONS.formats),
)


def _match(formats: Sequence[F], columns: dict[str, None], head: list[Row], looks: bool = True) -> F | None:
    for candidate in formats:
        there = all(column in columns for column in candidate.needs)
        if there and (not looks or any(candidate.fits(row) for row in head)):
            return candidate
    return None
