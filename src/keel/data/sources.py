"""Files into records: which format a data file is in, and where its rows go.

Two layers. A *container* (`containers`: .jsonl, .json, .csv, .parquet, .txt, a hub data set) yields numbered rows as
dicts; a *format* turns one such dict into a record, or into the judgments that it holds. A format is one small entry
in a table: `JUDGED`, `DEMONSTRATED`, `PROMPTED`; `recognition` tells which one a file is in.

A row that cannot be read is an outcome, not an exception: it is counted with its number and reason (law 6). What makes
the whole file unreadable, such as a wrong encoding or a missing column, is an `InputError`.

Left out on purpose: guessing where a prompt ends inside a plain string, and anything that `checks` judges by
content.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from keel.data.derive import derive
from keel.data.doubts import ScoreWatch
from keel.data.recognition import (
    ANSWERS,
    DEMONSTRATIONS,
    JUDGMENTS,
    PAIRS,
    PROMPTS,
    Format,
    Opened,
    SourceKind,
    bears_columns,
    kind_of_rows,
    open_rows,
    refuse_nothing,
)
from keel.errors import InputError
from keel.files.containers import file_hash
from keel.files.fields import Neutral, Row, RowError, noted
from keel.files.unused import CARRIED, NOT_USED, Unused, watched
from keel.formats.answers import Unjudged
from keel.formats.judgments import JUDGED, Judged
from keel.formats.judgments.base import no_remarks
from keel.records import Answer, Demonstration, Judgment, Origin, Pair, Prompt, PromptRow, RowCounts
from keel.store.keys import Given, prompts_identity, row_key
from keel.store.opening import is_store
from keel.store.store import Store
from keel.text.tokenisation import prompt_key

__all__ = [
    "columns_of_two",
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
F = TypeVar("F", bound=Format)

Asked = tuple[Prompt, list[Answer], Origin]
"""A prompt and its answers."""
STORE = "store"
"""What stands in place of a format's name."""
_BLOCK = 256  # consecutive rows of one prompt that are compared with each other at most


# --- what a command calls


def read_pairs(
    source: str, *, format: str | None = None, limit: int | None = None, columns: str | None = None
) -> tuple[list[Pair], RowCounts, str]:
    """Preference pairs of a file or hub data set, every contest's fate, and the format's name.

    Pairs are derived from the judgments of a row by the rules of `derive`, or of the consecutive rows of one
    prompt in formats that spread judgments over them. A contest that rightly makes no pair is neutral. Columns of
    scores that contradict a verdict are noted.
    """
    groups, counts, name = _contests(source, format, limit, columns)
    pairs: list[Pair] = []
    scores = ScoreWatch()
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
    refuse_nothing(counts, source)
    scores.tell(counts)
    return pairs, counts, name


def open_judgments(
    source: str, format: str | None = None, limit: int | None = None, columns: str | None = None
) -> tuple[Iterator[list[Judgment]], RowCounts, str]:
    """The judgments of each row as they are read, every row's fate as far as it is read, and the format's name.

    Nothing is held in memory but the head from which the format is recognised (and a whole .json file). Raises
    `InputError` at once where the file is not recognised, and at the end where no row gave a judgment. A store's come a
    prompt at a time, in the order of their keys.
    """
    groups, counts, name = _groups(JUDGMENTS, source, format, limit, columns, CARRIED)

    def stream() -> Iterator[list[Judgment]]:
        for group in groups:
            counts.read += 1
            counts.used += 1
            yield group
        refuse_nothing(counts, source)

    return stream(), counts, name


def open_keyed(
    source: str, format: str | None = None, limit: int | None = None, columns: str | None = None
) -> tuple[Iterator[tuple[bytes, Judgment]], RowCounts, str]:
    """Judgments as they are read, each under the key by which a store knows it: read again, they are the same ones.

    Those of a file are named by its content and their row, those of a store as they are there.
    """
    if not is_store(source):
        groups, counts, name = open_judgments(source, format, limit, columns)
        content = file_hash(source)
        return ((row_key(content, j, index), j) for group in groups for index, j in enumerate(group)), counts, name
    counts = RowCounts()

    def stream() -> Iterator[tuple[bytes, Judgment]]:
        for group in _of_store(source, limit, counts, numbered=False):
            counts.read += 1
            counts.used += 1
            yield from group
        refuse_nothing(counts, source)

    return stream(), counts, STORE


def read_judgments(
    source: str, format: str | None = None, limit: int | None = None, columns: str | None = None
) -> tuple[list[Judgment], RowCounts, str]:
    """The judgments of a file or hub data set in the order of its rows, every row's fate, and the format's name."""
    groups, counts, name = open_judgments(source, format, limit, columns)
    return [judgment for group in groups for judgment in group], counts, name


def open_answers(
    source: str, format: str | None = None, limit: int | None = None, columns: str | None = None
) -> tuple[Iterator[Asked], RowCounts, str]:
    """Prompts with their answers, whatever is said of them, as `open_judgments` streams and counts them.

    An answer that was judged several times, or was drawn twice, stands there as often.
    """
    counts = RowCounts()
    if is_store(source):
        _refuse_columns(source, columns)
        name = STORE
        groups: Iterator[list[Asked]] = map(_asked, _judgments_of(source, limit, counts))
    else:
        opened = open_rows(ANSWERS, source, format, limit, columns, counts)
        chosen, name = opened.format, opened.format.name
        unused = Unused(NOT_USED, chosen.needs)

        def convert(row: Row, origin: Origin) -> list[Asked]:
            if isinstance(chosen, Unjudged):
                return [(*chosen.convert(row), origin)]
            return _asked(chosen.read(row, origin))

        groups = (found for _, found in _records(opened, _using(convert, unused), source, counts, unused))

    def stream() -> Iterator[Asked]:
        for found in groups:
            counts.read += 1
            counts.used += 1
            yield from found
        refuse_nothing(counts, source)

    return stream(), counts, name


def _asked(judgments: list[Judgment]) -> list[Asked]:
    """The prompts of some judgments with all the answers that were judged."""
    of_prompt: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        of_prompt.setdefault(prompt_key(judgment.prompt), []).append(judgment)
    return [(group[0].prompt, [a for j in group for a in j.answers], group[0].origin) for group in of_prompt.values()]


def read_demonstrations(
    source: str, *, format: str | None = None, limit: int | None = None, columns: str | None = None
) -> tuple[list[Demonstration], RowCounts, str]:
    """Prompts with the answers to imitate, or plain texts; every row's fate, and the format's name."""
    records, counts, name = open_demonstrations(source, format, limit, columns)
    return list(records), counts, name


def open_demonstrations(
    source: str, format: str | None = None, limit: int | None = None, columns: str | None = None
) -> tuple[Iterator[Demonstration], RowCounts, str]:
    """The same one at a time, as `open_judgments` does it."""
    counts = RowCounts()
    opened = open_rows(DEMONSTRATIONS, source, format, limit, columns, counts)
    chosen = opened.format
    unused = Unused(NOT_USED, {*chosen.needs, *chosen.may})
    records = _records(opened, _using(chosen.convert, unused), source, counts, unused)

    def stream() -> Iterator[Demonstration]:
        for _, record in records:
            counts.read += 1
            counts.used += 1
            yield record
        refuse_nothing(counts, source)

    return stream(), counts, chosen.name


def read_prompts(
    source: str, *, format: str | None = None, limit: int | None = None, columns: str | None = None
) -> tuple[list[PromptRow], RowCounts, str]:
    """Prompts alone, those of judgments and logs included (of a tree its root); every row's fate, the format's name."""
    if is_store(source):
        _refuse_columns(source, columns)
        return _prompts_of_store(source, limit)
    counts = RowCounts()
    opened = open_rows(PROMPTS, source, format, limit, columns, counts)
    chosen = opened.format
    unused = Unused(NOT_USED, chosen.needs, answers=False)
    convert = _using(_noting(chosen.convert, chosen.remarks, counts), unused)
    found = [record for _, record in _records(opened, convert, source, counts, unused)]
    counts.read += len(found)
    counts.used = len(found)
    refuse_nothing(counts, source)
    return found, counts, chosen.name


def _prompts_of_store(source: str, limit: int | None) -> tuple[list[PromptRow], RowCounts, str]:
    with Store(source) as store:
        found = list(itertools.islice(store.prompts(), limit))
    counts = RowCounts(read=len(found), used=len(found), identity=prompts_identity(key for key, _ in found))
    refuse_nothing(counts, source)
    return [row for _, row in found], counts, STORE


def kind_of(source: str, format: str | None = None, columns: str | None = None) -> str:
    """Whether a source holds judgments ("pairs", a store too), "demonstrations", or "prompts" alone.

    Raises `InputError` as reading pairs would where it holds none of them.
    """
    if is_store(source):
        _refuse_columns(source, columns)
        return "pairs"
    return kind_of_rows(source, format, columns)


RENAMED = "read under the names of --columns"
AS_IT_IS = "--columns is not used: the file has none of the columns it names"


def columns_of_two(source: str, other: str | None, columns: str | None) -> tuple[str | None, str | None, str]:
    """--columns as they are for the data and for a second file, and what is worth a note on the latter.

    The second file may have Keel's own names. Beside a store, which has no such names, --columns is for it alone.
    """
    if columns is None or other is None or is_store(other):
        return columns, None, ""
    if is_store(source):
        return None, columns, RENAMED
    return (columns, columns, RENAMED) if bears_columns(other, columns) else (columns, None, AS_IT_IS)


def identify(source: str, counts: RowCounts) -> dict[str, object]:
    """What a manifest says of data: the file's hash, or exactly which rows of a store were given.

    `counts` are those of the reading, which must be over: a store may hold more by now.
    """
    return counts.identity if is_store(source) else {"data_hash": file_hash(source)}


# --- from rows to records


def _groups(
    kind: SourceKind[Judged],
    source: str,
    format: str | None,
    limit: int | None,
    columns: str | None,
    words: str = NOT_USED,
) -> tuple[Iterator[list[Judgment]], RowCounts, str]:
    """Judgments row by row of a file, prompt by prompt of a store; the caller counts what it takes."""
    counts = RowCounts()
    if is_store(source):
        _refuse_columns(source, columns)
        return _judgments_of(source, limit, counts), counts, STORE
    opened = open_rows(kind, source, format, limit, columns, counts)
    chosen = opened.format
    unused = Unused(words, chosen.needs)
    read = _noting(chosen.read, chosen.remarks, counts)

    def convert(row: Row, origin: Origin) -> list[Judgment]:
        found = read(row, origin)
        if found[0].extra:
            unused.see(found[0].extra, origin.row, whole=row)
        return found

    return (group for _, group in _records(opened, convert, source, counts, unused)), counts, chosen.name


def _contests(
    source: str, format: str | None, limit: int | None, columns: str | None
) -> tuple[Iterator[list[Judgment]], RowCounts, str]:
    """The same, with what a format spreads over consecutive rows put together."""
    groups, counts, name = _groups(PAIRS, source, format, limit, columns)
    spread = {it.name for it in JUDGED if it.spread}
    return (together(groups, counts) if name in spread else groups), counts, name


def _refuse_columns(source: str, columns: str | None) -> None:
    if columns is not None:
        raise InputError(f"{source}: a store has columns of its own; leave out --columns")


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


def _using(read: Callable[[Row, Origin], R], unused: Unused) -> Callable[[Row, Origin], R]:
    """A row into what it holds, with the columns that were not asked for told apart."""

    def convert(row: Row, origin: Origin) -> R:
        if unused.knows(row):
            found = read(row, origin)
            unused.see(row, origin.row)
            return found
        seen = watched(row)
        found = read(seen, origin)
        unused.see(row, origin.row, seen.used)
        return found

    return convert


def _records(
    opened: Opened[F], convert: Callable[[Row, Origin], R], source: str, counts: RowCounts, unused: Unused
) -> Iterator[tuple[int, R]]:
    """(number, record) of each row that gives one, for the caller to count; the others are counted here."""
    given, lacking = False, True
    for number, row in opened.rows:
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
            lacking &= error is row or str(error).startswith("no ")  # other names of columns can help
        else:
            given = True
            yield number, record
    unused.tell(counts)
    if not given:
        refuse_nothing(counts, source, opened.hint() if lacking else "")


def together(groups: Iterable[list[Judgment]], counts: RowCounts) -> Iterator[list[Judgment]]:
    """Consecutive groups of one prompt as one, `_BLOCK` at most."""
    held: list[Judgment] = []
    size, key = 0, ""
    for group in groups:
        here = prompt_key(group[0].prompt)
        if held and (here != key or size == _BLOCK):
            if here == key:
                counts.note(f"more than {_BLOCK} rows of one prompt, compared by the block", group[0].origin.row)
            yield held
            held, size = [], 0
        held, size, key = [*held, *group] if size else list(group), size + 1, here
    if held:
        yield held
