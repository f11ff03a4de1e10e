"""A source of data, opened once: a file, a folder, a hub data set, or a store.

`open_source` decides which it is. All sources give the same: judgments, pairs, demonstrations, prompts or answers,
every row's fate (`counts`), the format's name, and the identity of the rows that were given.

A *container* (`files.containers`) yields numbered rows as dicts; a *format* turns such a dict into a record, or into
the judgments that it holds. A format is one small entry in a table: `JUDGED`, `DEMONSTRATED`, `PROMPTED`;
`recognition` tells which one a file is in. A row that cannot be read is an outcome, not an exception: it is counted
with its number and reason. A fault of the whole file, such as a wrong encoding or a missing column, is an
`InputError`.

Left out on purpose: guessing where a prompt ends inside a plain string, and anything that `checks` judges by content.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Literal, Self, TypeVar, cast

from keel.data.derive import derive
from keel.data.doubts import ScoreWatch
from keel.data.recognition import (
    ANSWERS,
    DEMONSTRATIONS,
    JUDGMENTS,
    PAIRS,
    PROMPTS,
    Format,
    OpenedRows,
    SourceKind,
    hint_of,
    holding_of,
    recognise,
    refuse_nothing,
)
from keel.errors import InputError
from keel.files.fields import Neutral, Row, RowError, noted
from keel.files.unused import CARRIED, NOT_USED, Unused, watched
from keel.formats.answers import Unjudged
from keel.formats.judgments import JUDGED, Judged
from keel.formats.judgments.base import no_remarks
from keel.records import Answer, Demonstration, Judgment, Origin, Pair, Prompt, PromptRow, RowCounts
from keel.store.keys import Given, prompts_identity, row_key
from keel.store.opening import is_store
from keel.store.store import Store
from keel.store.survey import Agreement, Listener, Survey, agreement, comparisons_of, count, count_store, said_in_store
from keel.text.tokenisation import prompt_key

__all__ = ["Answered", "Holding", "Source", "columns_of_two", "open_source", "together"]

R = TypeVar("R")
F = TypeVar("F", bound=Format)

Answered = tuple[Prompt, list[Answer], Origin]
"""A prompt and its answers."""
Holding = Literal["pairs", "demonstrations", "prompts"]
"""Content of a source: judgments that make pairs, demonstrations, or prompts alone."""
_BLOCK = 256  # at most so many consecutive rows of one prompt are compared with each other


def open_source(
    name: str, *, format: str | None = None, limit: int | None = None, columns: str | None = None
) -> Source:
    """Open a file, folder, hub data set or store; use the result as a context, and read from it once.

    `format` is a format's name, or None to recognise it; `limit` is how many rows are read at most (of a store:
    prompts); `columns` names a file's columns (`--columns`).
    """
    if is_store(name):
        if columns is not None:
            raise InputError(f"{name}: a store has columns of its own; leave out --columns")
        return _StoreSource(name, limit)
    return _FileSource(name, format, limit, columns)


RENAMED = "read under the names of --columns"
AS_IT_IS = "--columns is not used: the file has none of the columns it names"


def columns_of_two(name: str, other: str | None, columns: str | None) -> tuple[str | None, str | None, str]:
    """Return --columns for the data and for a second source, and a note on the latter (empty if none is due).

    The second source may have Keel's own names. If the data are a store, which takes no --columns, they are for the
    second source alone.
    """
    if columns is None or other is None or is_store(other):
        return columns, None, ""
    if is_store(name):
        return None, columns, RENAMED
    with _FileSource(other, None, None, None) as second:
        return (columns, columns, RENAMED) if second.bears(columns) else (columns, None, AS_IT_IS)


class Source(ABC):
    """Result of `open_source`. Only one of the methods that read may be called, and only once."""

    counts: RowCounts
    """Every row's fate, as far as it is read."""
    format: str = ""
    """The format's name, once it is recognised."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts = RowCounts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close the file or the database."""

    @abstractmethod
    def holds(self) -> Holding:
        """Say what the source holds; raises `InputError` if that is nothing known."""

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Return what a manifest says of exactly the rows that were given, once all are read."""

    @abstractmethod
    def keyed(self) -> Iterator[tuple[bytes, Judgment]]:
        """Yield judgments, each with the key by which a store knows it; reading again gives the same keys."""

    @abstractmethod
    def answers(self) -> Iterator[Answered]:
        """Yield prompts with their answers, judged or not.

        An answer that was judged or drawn several times appears as often.
        """

    @abstractmethod
    def demonstrations(self) -> Iterator[Demonstration]:
        """Yield prompts with the answers to imitate, or plain texts."""

    @abstractmethod
    def prompts(self) -> list[PromptRow]:
        """Return prompts alone, including those of judgments and logs (of a tree, the root)."""

    @abstractmethod
    def survey(self) -> Survey:
        """Count the judgments."""

    @abstractmethod
    def agreement(self) -> list[Agreement]:
        """Measure how far raters agree."""

    @abstractmethod
    def judged_pairs(self) -> tuple[list[Pair], Survey, list[Agreement]]:
        """Return the results of `pairs`, `survey` and `agreement` for the same judgments, read once."""

    @abstractmethod
    def _groups(self, kind: SourceKind[Judged], words: str) -> Iterator[list[Judgment]]:
        """Yield the judgments of a row, or of a store's prompt; the caller counts them."""

    def judgments(self) -> Iterator[list[Judgment]]:
        """Yield the judgments of each row as they are read (of a store: of each prompt, in the order of their keys).

        Nothing is held in memory but the head from which the format is recognised (and a whole .json file). Raises
        `InputError` at once if the file is not recognised, and at the end if no row gave a judgment.
        """
        return self._counted(self._groups(JUDGMENTS, CARRIED))

    def pairs(self, heard: Callable[[Judgment], object] | None = None) -> list[Pair]:
        """Return preference pairs; `counts` are of comparisons, and one that rightly makes no pair is neutral.

        Pairs are derived by the rules of `derive` from the judgments of a row or, in formats that spread judgments
        over rows, of consecutive rows with one prompt. Score columns that contradict a verdict are noted. `heard` is
        called with every judgment as it is read.
        """
        counts, pairs, scores = self.counts, list[Pair](), ScoreWatch()
        for group in self._comparisons(heard):
            scores.see(group)
            derived = derive(group)
            pairs += derived.pairs
            counts.read += len(derived.pairs)
            for why, times in derived.neutral.items():
                counts.read += times
                for _ in range(times):
                    counts.skip(why, group[0].origin.row)
        counts.used = len(pairs)
        refuse_nothing(counts, self.name)
        scores.tell(counts)
        return pairs

    def _comparisons(self, heard: Callable[[Judgment], object] | None) -> Iterator[list[Judgment]]:
        """Yield groups of judgments; those that a format spreads over consecutive rows are joined."""
        groups = self._groups(PAIRS, NOT_USED)
        if heard is not None:
            groups = (_tell_each(group, heard) for group in groups)
        spread = {it.name for it in JUDGED if it.spread}
        return together(groups, self.counts) if self.format in spread else groups

    def _counted(self, found: Iterator[R]) -> Iterator[R]:
        """Count each thing as read and used; refuse a source that gave none."""
        for one in found:
            self.counts.read += 1
            self.counts.used += 1
            yield one
        refuse_nothing(self.counts, self.name)


def _tell_each(group: list[Judgment], heard: Callable[[Judgment], object]) -> list[Judgment]:
    for judgment in group:
        heard(judgment)
    return group


def together(groups: Iterable[list[Judgment]], counts: RowCounts) -> Iterator[list[Judgment]]:
    """Join consecutive groups of one prompt, `_BLOCK` at most."""
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


def _answered(judgments: list[Judgment]) -> list[Answered]:
    """Return the prompts of some judgments with all the answers that were judged."""
    of_prompt: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        of_prompt.setdefault(prompt_key(judgment.prompt), []).append(judgment)
    return [(group[0].prompt, [a for j in group for a in j.answers], group[0].origin) for group in of_prompt.values()]


# --- a store --------------------------------------------------------------------------------------


class _StoreSource(Source):
    """A store, read in one transaction: what others write meanwhile is neither given nor part of the identity."""

    format = "store"

    def __init__(self, name: str, limit: int | None) -> None:
        super().__init__(name)
        self.counts.stored = True
        self._limit, self._identity = limit, dict[str, object]()
        self._open = ExitStack()
        self._store = self._open.enter_context(Store(name))
        self._open.enter_context(self._store.snapshot())

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._open.__exit__(kind, value, tb)  # says in one line what the database raised

    def close(self) -> None:
        self._open.close()

    def holds(self) -> Holding:
        return "pairs"

    def identity(self) -> dict[str, object]:
        return self._identity

    def keyed(self) -> Iterator[tuple[bytes, Judgment]]:
        return (one for group in self._counted(self._read(numbered=False)) for one in group)

    def answers(self) -> Iterator[Answered]:
        groups = self._counted(_answered(group) for group in self._groups(JUDGMENTS, CARRIED))
        return (answered for group in groups for answered in group)

    def demonstrations(self) -> Iterator[Demonstration]:
        raise InputError(
            f"{self.name}: a store holds judgments, no demonstrations; "
            "write chosen answers with keel data convert --pairs --to prompt-completion"
        )

    def prompts(self) -> list[PromptRow]:
        found = list(itertools.islice(self._store.prompts(), self._limit))
        self._identity = prompts_identity(key for key, _ in found)
        self.counts.read = self.counts.used = len(found)
        refuse_nothing(self.counts, self.name)
        return [row for _, row in found]

    def survey(self) -> Survey:
        """Count by query, in seconds for a million judgments, unless a limit is set."""
        return count_store(self._store) if self._limit is None else self._listen().survey()

    def agreement(self) -> list[Agreement]:
        """Measure by query unless a limit is set."""
        if self._limit is None:
            return agreement(said_in_store(self._store))
        return self._listen().agreement()

    def judged_pairs(self) -> tuple[list[Pair], Survey, list[Agreement]]:
        return self.pairs(), self.survey(), self.agreement()

    def _listen(self) -> Listener:
        listener = Listener()
        for group in itertools.islice(self._store.groups(), self._limit):
            for _, judgment in group:
                listener.hear(judgment)
        return listener

    def _groups(self, kind: SourceKind[Judged], words: str) -> Iterator[list[Judgment]]:
        """Yield groups as `Source._groups` does; a row's number is the judgment's number in the store."""
        return ([judgment for _, judgment in group] for group in self._read(numbered=True))

    def _read(self, numbered: bool) -> Iterator[list[tuple[bytes, Judgment]]]:
        """Yield judgments under their keys, a prompt at a time; remember which they were."""
        given = Given()
        yield from itertools.islice(self._store.groups(given=given, numbered=numbered), self._limit)
        self._identity = given.identity()


# --- a file, a folder, a hub data set -------------------------------------------------------------


class _FileSource(Source):
    """Rows of a file, folder or hub data set, whose head is read when it is opened."""

    def __init__(self, name: str, format: str | None, limit: int | None, columns: str | None) -> None:
        super().__init__(name)
        self._wanted = format
        self._hint: Callable[[], str] = str
        self._opened = OpenedRows(name, limit, columns, self.counts)

    def close(self) -> None:
        self._opened.close()

    def bears(self, columns: str) -> bool:
        """Say whether the file has the columns that --columns names; one with Keel's own need not."""
        return self._opened.bears(columns)

    def holds(self) -> Holding:
        return cast(Holding, holding_of(self._opened, self.name, self._wanted))

    def identity(self) -> dict[str, object]:
        return {"data_hash": self._opened.content()}

    def keyed(self) -> Iterator[tuple[bytes, Judgment]]:
        """Yield judgments as `Source.keyed` does; the key is made from the file's content and the row."""
        groups, content = self.judgments(), self._opened.content(ahead=True)
        return ((row_key(content, j, index), j) for group in groups for index, j in enumerate(group))

    def answers(self) -> Iterator[Answered]:
        chosen = self._recognise(ANSWERS)
        unused = Unused(NOT_USED, chosen.needs)

        def convert(row: Row, origin: Origin) -> list[Answered]:
            if isinstance(chosen, Unjudged):
                return [(*chosen.convert(row), origin)]
            return _answered(chosen.read(row, origin))

        groups = self._counted(self._records(_using(convert, unused), unused))
        return (answered for group in groups for answered in group)

    def demonstrations(self) -> Iterator[Demonstration]:
        chosen = self._recognise(DEMONSTRATIONS)
        unused = Unused(NOT_USED, {*chosen.needs, *chosen.may})
        return self._counted(self._records(_using(chosen.convert, unused), unused))

    def prompts(self) -> list[PromptRow]:
        chosen = self._recognise(PROMPTS)
        unused = Unused(NOT_USED, chosen.needs, answers=False)
        convert = _using(_noting(chosen.convert, chosen.remarks, self.counts), unused)
        return list(self._counted(self._records(convert, unused)))

    def survey(self) -> Survey:
        return count(judgment for group in self.judgments() for judgment in group)

    def agreement(self) -> list[Agreement]:
        return agreement(said for group in self.judgments() for j in group for said in comparisons_of(j))

    def judged_pairs(self) -> tuple[list[Pair], Survey, list[Agreement]]:
        listener = Listener()
        return self.pairs(listener.hear), listener.survey(), listener.agreement()

    def _groups(self, kind: SourceKind[Judged], words: str) -> Iterator[list[Judgment]]:
        chosen = self._recognise(kind)
        unused = Unused(words, chosen.needs)
        read = _noting(chosen.read, chosen.remarks, self.counts)

        def convert(row: Row, origin: Origin) -> list[Judgment]:
            found = read(row, origin)
            if found[0].extra:
                unused.see(found[0].extra, origin.row, whole=row)
            return found

        return self._records(convert, unused)

    def _recognise(self, kind: SourceKind[F]) -> F:
        chosen = recognise(self._opened, kind, self.name, self._wanted)
        if self.format:
            raise RuntimeError(f"{self.name}: a source is read once; open it again")
        self.format = chosen.name
        self._hint = partial(hint_of, self._opened, kind, self._wanted)
        return chosen

    def _records(self, convert: Callable[[Row, Origin], R], unused: Unused) -> Iterator[R]:
        """Yield each row's result for the caller to count; rows without one are counted here."""
        given, lacking, counts = False, True, self.counts
        for number, row in self._opened.rows:
            try:
                if isinstance(row, RowError):
                    raise row
                record = noted(convert, row, Origin(self.name, number), counts)
            except Neutral as why:
                counts.read += 1
                counts.skip(str(why), number)
            except RowError as error:
                counts.read += 1
                counts.drop(str(error), number)
                lacking &= error is row or str(error).startswith("no ")  # other names of columns can help
            else:
                given = True
                yield record
        unused.tell(counts)
        if not given:
            refuse_nothing(counts, self.name, self._hint() if lacking else "")


def _noting(
    read: Callable[[Row, Origin], R], remarks: Callable[[Row], Iterable[str]], counts: RowCounts
) -> Callable[[Row, Origin], R]:
    """Return `read` with `remarks` on each row counted as notes."""
    if remarks is no_remarks:
        return read

    def convert(row: Row, origin: Origin) -> R:
        found = read(row, origin)
        for what in remarks(row):
            counts.note(what, origin.row)
        return found

    return convert


def _using(read: Callable[[Row, Origin], R], unused: Unused) -> Callable[[Row, Origin], R]:
    """Return `read` with the columns that it does not use recorded in `unused`."""

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
