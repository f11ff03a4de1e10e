"""The store: prompts, answers with their provenance, and judgments that are only ever appended.

A store is `store:FILE.db` (SQLite, made when first written to) or a database URL such as
`postgresql://user@host/name`. Pairs, ranked bundles and splits are derived by query (`data/preferences.py`), never
stored. A change of mind is a retraction and a new judgment; only `forget` deletes, on a person's request. Two
processes may write at once. What a transaction has committed survives a killed process, and doing it again adds
nothing: rows are named by what they say. Who may only read a SQLite file, or its folder, reads it all the same.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import threading
import time
import uuid
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from itertools import groupby, islice
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from keel.errors import InputError
from keel.records import Answer, Drawn, Judgment, Origin, Preference, Prompt, PromptRow, Ranking, Score
from keel.store import migrations, schema
from keel.store.schema import answers, judgments, places, prompts, raters
from keel.text.tokenisation import further

PREFIX = "store:"
CHUNK = 10_000
"""Judgments in one transaction of an import: few enough to wait for, enough to be fast."""
REMEMBERED = 100_000
"""Prompts and answers known to be stored, so that they are not sent again."""

Row = tuple[Any, ...]
"""A table's row, in the order of its columns (of judgments all but the id, which the database counts)."""


def is_store(source: str) -> bool:
    """Whether a source names a store rather than a file."""
    return source.startswith(PREFIX) or "://" in source


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which judgments: `store:FILE.db?dimension=harmlessness&rater=person-007`; None is all."""

    dimension: str | None = None
    rater: str | None = None


class Given:
    """Which judgments were given, by number and key as they are read, in whatever order."""

    def __init__(self) -> None:
        self._numbers, self._keys = array("q"), bytearray()  # 28 bytes each: there may be millions

    def add(self, number: int, key: bytes) -> None:
        """One more of them."""
        self._numbers.append(number)
        self._keys += key

    def identity(self) -> dict[str, object]:
        """What a manifest says of them: a hash of their keys, how many they are, their numbers ("1-6240,6300")."""
        whole, ranges, size = blake2b(digest_size=8), list[list[int]](), PROMPT_BYTES + BELOW_BYTES
        for place in sorted(range(len(self._numbers)), key=self._numbers.__getitem__):
            whole.update(self._keys[place * size : (place + 1) * size])
            number = self._numbers[place]
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
        ids = ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in ranges)
        return {"data_hash": whole.hexdigest(), "judgments": len(self._numbers), "judgment_ids": ids}


def prompts_identity(keys: Iterable[bytes]) -> dict[str, object]:
    """The same of prompts alone: a hash of their keys, and how many they are."""
    found = list(keys)
    return {"data_hash": _hash(*found, size=8).hex(), "prompts": len(found)}


class Store:
    """An open store; use it as a context, or close it."""

    def __init__(self, source: str, *, create: bool = False) -> None:
        self.source, self.wanted, url = _parse(source)
        self.sqlite = url.get_backend_name() == "sqlite"
        if self.sqlite and not create and not Path(url.database or "").exists():
            raise InputError(f"{self.source}: no such store; check the path, or collect or convert into it first")
        read_only = self.sqlite and not create and not _may_write(Path(url.database or ""))
        url = _for_reading(url) if read_only else url
        self._engine = _engine(url, self.source)
        self._writing = self._engine.execution_options(writes=True)
        self._turn = threading.RLock()
        self._snapshot = threading.local()
        self._statements = {
            table: _insert_statement(table, self._engine.dialect) for table in schema.metadata.tables.values()
        }
        with self._errors(), self._engine.connect() as connection:
            found = migrations.version_of(connection)
        if not found and not create:
            raise InputError(f"{self.source}: a database, but no store of Keel's; check the name")
        if found > len(migrations.MIGRATIONS):
            raise InputError(f"{self.source}: written by a newer Keel (store version {found}); update Keel")
        if found < len(migrations.MIGRATIONS) and read_only:
            old = f"store version {found}, which this Keel must bring to {len(migrations.MIGRATIONS)}"
            raise InputError(f"{self.source}: {old}, and it cannot be written to; copy it to where you may write")
        if found < len(migrations.MIGRATIONS):
            with self.writing() as connection:
                migrations.migrate(connection)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What the database says, in one line."""
        try:
            yield
        except SQLAlchemyError as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            said = " ".join(str(cause).split())[:300]
            barred = self.sqlite and any(words in said for words in BARRED)
            mend = "get the right to write the file and its folder, or copy it" if barred else "check the database"
            raise InputError(f"{self.source}: {said}; {mend}") from error

    # --- writing ----------------------------------------------------------------------------------

    def append(self, found: Iterable[tuple[bytes, Judgment]]) -> int:
        """Add judgments under their keys, with their prompts and answers; returns how many were new.

        Committed every `CHUNK`: what is known already is left as it is, so that an interrupted call may be repeated.
        """
        return sum(map(self.add, rows_of(found)))

    def add(self, rows: Rows) -> int:
        """Add rows made by `rows_of`, in one transaction; returns how many judgments were new."""
        with self.writing() as connection:
            return self.add_in(connection, rows)

    def add_in(self, connection: sa.Connection, rows: Rows) -> int:
        """The same within a transaction."""
        counts = [self._insert(connection, table, new) for table, new in zip(TABLES, rows, strict=True)]
        return counts[TABLES.index(judgments)]

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction that writes: all of it or nothing. In one process SQLite's writers queue up here.

        SQLite's own waiting for a lock sleeps ever longer between its looks.
        """
        with self._errors(), self._turn if self.sqlite else nullcontext(), self._writing.begin() as connection:
            yield connection

    def _insert(self, connection: sa.Connection, table: sa.Table, rows: list[Row]) -> int:
        """Add the rows that are not there yet; returns how many.

        As tuples to the driver: SQLAlchemy's way through dictionaries and types takes longer than the database.
        """
        if not rows:
            return 0
        return max(0, connection.exec_driver_sql(self._statements[table], rows).rowcount)

    def add_answers(self, found: Iterable[tuple[PromptRow, Sequence[Answer]]]) -> None:
        """Store what was drawn for some prompts, in one transaction: all of it or nothing."""
        asked, written = {}, {}
        for row, drawn in found:
            prompt = prompt_key(row.prompt)
            asked[prompt] = _prompt_row(prompt, row.prompt, row.origin)
            for answer in drawn:
                key = answer_key(prompt, answer)
                written[key] = _answer_row(key, prompt, answer)
        with self.writing() as connection:
            for table, rows in ((prompts, asked), (answers, written)):
                self._insert(connection, table, [rows[key] for key in sorted(rows)])

    def answers_to(self, asked: Sequence[Prompt], like: Answer) -> list[list[Answer]]:
        """Of each prompt its answers by the writer of `like`, drawn in the same way, in the order of their draws."""
        low, high, of = (sa.bindparam(name, type_=schema.key) for name in ("low", "high", "of"))
        written = (answers.c.model, like.model), (answers.c.model_hash, like.model_hash)
        statement = (
            sa.select(*(c.label(f"a_{c.name}") for c in answers.columns))
            .where(answers.c.key >= low, answers.c.key <= high, answers.c.prompt == of)
            .where(answers.c.sampling == _sampling(like), *(column == value for column, value in written))
            .order_by(answers.c.draw, answers.c.key)
        )
        found = []
        with self.reading() as connection:
            for key in map(prompt_key, asked):
                head = key[:PROMPT_BYTES]
                rows = connection.execute(statement, {"low": head, "high": head + b"\xff" * BELOW_BYTES, "of": key})
                found.append([answer_of(row, "a") for row in rows])
        return found

    def said_by(self, rater: str) -> set[bytes]:
        """Keys of all that a rater's judgments are about: so that no judge is asked the same twice."""
        statement = sa.select(judgments.c.first, judgments.c.second).where(
            judgments.c.rater == rater, judgments.c.kind == "preference"
        )
        return {first + second for first, second in map(tuple, self.stream(statement))}

    def judgments_by(self, rater: str, asked: Container[bytes]) -> Iterator[Judgment]:
        """What a rater said of these prompts (their keys), as far as it holds."""
        for group in self.groups(judgments.c.rater == rater):
            if prompt_key(group[0][1].prompt) in asked:
                yield from (judgment for _, judgment in group)

    def retract(self, key: bytes, comment: str = "") -> None:
        """Say that a judgment no longer holds; it stays in the store, and counts nowhere."""
        with self.writing() as connection:
            self.retract_in(connection, key, comment)

    def retract_in(self, connection: sa.Connection, key: bytes, comment: str = "") -> None:
        """The same within a transaction."""
        row = connection.execute(sa.select(judgments).where(judgments.c.key == key)).mappings().one_or_none()
        if row is None or row["kind"] == RETRACTION:
            raise InputError(f"{self.source}: no judgment {key.hex()} to retract; give the key of one that is stored")
        kept = {name: row[name] for name in ("prompt", "dimension", "rater", "rubric")}
        said = {"kind": RETRACTION, "retracts": key, "comment": comment, "made": time.time()}
        blank = {"key": _below(row["prompt"], b"retraction", key), "raw": "", "extra": "", "file": "", "row": 0}
        retraction = tuple((kept | said | blank).get(name) for name in JUDGMENT_COLUMNS)
        self._insert(connection, judgments, [retraction])

    def forget(self, rater: str) -> int:
        """Erase a person: name, account, judgments, comments. Returns how many judgments there were.

        InputError if the store does not know the name. What he decided as an adjudicator goes, too; what he judged for
        others to agree with is wanted again.
        """
        names = [rater, rater + ADJUDICATOR]
        with self.writing() as connection:
            known = connection.scalars(sa.select(raters.c.name).union(sa.select(schema.accounts.c.name))).all()
            if rater not in known:
                shown = ", ".join(sorted(known)[:8])
                raise InputError(f"{self.source}: no rater {rater!r}; there are {shown or 'none'}")
            count = connection.scalar(sa.select(sa.func.count()).where(judgments.c.rater.in_(names))) or 0
            _erase(connection, names)
        with self._errors(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM")  # what was deleted is gone from the file, too
            if self.sqlite:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return count

    # --- reading ----------------------------------------------------------------------------------

    def groups(
        self, *conditions: sa.ColumnElement[bool], numbered: bool = False, given: Given | None = None
    ) -> Iterator[list[tuple[bytes, Judgment]]]:
        """All judgments that hold and are wanted, a prompt at a time, each prompt's in the order in which they came.

        Their origin is the row that they were imported from or, with `numbered`, their number in the store. `given`
        learns which they are. All are read in one transaction: what others write meanwhile is not seen.
        """
        first, second = answers.alias("first_answer"), answers.alias("second_answer")
        statement = (
            sa.select(
                judgments,
                prompts.c.content,
                prompts.c.chat,
                raters.c.kind.label("rater_kind"),
                *(c.label(f"{name}_{c.name}") for name, t in (("a", first), ("b", second)) for c in t.columns),
            )
            .join(prompts, prompts.c.key == judgments.c.prompt)
            .join(raters, raters.c.name == judgments.c.rater)
            .outerjoin(first, first.c.key == judgments.c.first)
            .outerjoin(second, second.c.key == judgments.c.second)
            .where(*self.holding(), *conditions)
            .order_by(judgments.c.key)
        )
        with self.reading() as connection:
            rows = connection.execute(statement, execution_options={"yield_per": 1_000})
            for _, group in groupby(rows, key=lambda row: row.prompt):
                some = sorted(group, key=lambda row: row.id)
                ranked = self._ranked(connection, [row.key for row in some if row.kind == "ranking"])
                found = [(row.key, _judgment(row, ranked.get(row.key))) for row in some]
                if numbered:
                    places = [Origin(self.source, row.id) for row in some]
                    found = [(key, replace(j, origin=at)) for (key, j), at in zip(found, places, strict=True)]
                if given is not None:
                    for row in some:
                        given.add(row.id, row.key)
                yield found

    def holding(self) -> list[sa.ColumnElement[bool]]:
        """Conditions of a query on judgments: neither a retraction nor retracted, and as the source's name asks."""
        later = judgments.alias("later")
        conditions = [
            judgments.c.kind != RETRACTION,
            ~sa.exists().where(later.c.retracts == judgments.c.key),
        ]
        for column, value in ((judgments.c.dimension, self.wanted.dimension), (judgments.c.rater, self.wanted.rater)):
            if value is not None:
                conditions.append(column == value)
        return conditions

    def _ranked(self, connection: sa.Connection, keys: list[bytes]) -> dict[bytes, list[tuple[Answer, int]]]:
        """Answers and ranks of some rankings, in the order in which they were shown."""
        found: dict[bytes, list[tuple[Answer, int]]] = {}
        if keys:
            columns = (c.label(f"a_{c.name}") for c in answers.columns)
            statement = (
                sa.select(places.c.judgment, places.c.rank, *columns)
                .join(answers, answers.c.key == places.c.answer)
                .where(places.c.judgment.in_(keys))
                .order_by(places.c.judgment, places.c.place)
            )
            for row in connection.execute(statement):
                found.setdefault(row.judgment, []).append((answer_of(row, "a"), row.rank))
        return found

    def prompts(self) -> Iterator[tuple[bytes, PromptRow]]:
        """Every prompt under its key, in the order of their keys."""
        for row in self.stream(sa.select(prompts).order_by(prompts.c.key)):
            yield row.key, PromptRow(prompt_of(row), Origin(row.file, row.row))

    def identity(self) -> dict[str, object]:
        """Exactly which judgments hold and are wanted, as `Given` tells it."""
        given = Given()
        for row in self.stream(sa.select(judgments.c.id, judgments.c.key).where(*self.holding())):
            given.add(row.id, row.key)
        return given.identity()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One transaction that reads: what others write meanwhile is not seen. Within a `snapshot` it is that one."""
        if (held := getattr(self._snapshot, "connection", None)) is not None:
            yield held
            return
        alone = {} if self.sqlite else {"isolation_level": "REPEATABLE READ"}
        with self._errors(), self._engine.connect().execution_options(**alone) as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """One transaction for all that this thread reads within it."""
        with self.reading() as connection:
            self._snapshot.connection = connection
            try:
                yield
            finally:
                self._snapshot.connection = None

    def read(self, statement: sa.Select[Any]) -> list[sa.Row[Any]]:
        """The rows of a query."""
        return list(self.stream(statement))

    def stream(self, statement: sa.Select[Any]) -> Iterator[sa.Row[Any]]:
        """The same, some at a time."""
        with self.reading() as connection:
            yield from connection.execute(statement, execution_options={"yield_per": 10_000})

    # --- stores as a whole ------------------------------------------------------------------------

    def merge(self, other: Store) -> int:
        """Add prompts, answers and judgments of another store, as they are now; returns how many judgments were new."""
        added = 0
        with other.reading() as connection:
            for table in TABLES:
                columns = [c for c in table.columns if c.name != "id"]
                order = [judgments.c.id] if table is judgments else list(table.primary_key.columns)
                statement = sa.select(*columns).order_by(*order)
                found = connection.execute(statement, execution_options={"yield_per": CHUNK})
                for some in found.partitions(CHUNK):
                    with self.writing() as mine:
                        count = self._insert(mine, table, [tuple(row) for row in some])
                    added += count if table is judgments else 0
        return added

    def _copy(self, other: Store, table: sa.Table) -> None:
        """All rows of a table as they are, numbers included, into an empty one."""
        with other.reading() as connection:
            order = [table.c.id] if "id" in table.c else list(table.primary_key.columns)
            statement = sa.select(table).order_by(*order)
            found = connection.execute(statement, execution_options={"yield_per": CHUNK})
            for some in found.mappings().partitions(CHUNK):
                with self.writing() as mine:
                    mine.execute(sa.insert(table), [dict(row) for row in some])

    def backup(self, file: Path) -> None:
        """A copy of the whole store as one SQLite file, while others may go on writing."""
        if file.exists():
            raise InputError(f"{file} already exists: choose another --out, or remove it")
        partial = file.with_name(file.name + ".partial")
        partial.unlink(missing_ok=True)
        if self.sqlite:
            with self._errors(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM INTO ?", (str(partial),))
        else:
            with Store(f"{PREFIX}{partial}", create=True) as copy, self.snapshot():
                for table in schema.metadata.sorted_tables:
                    if table is not schema.version:
                        copy._copy(self, table)
        partial.rename(file)


def _erase(connection: sa.Connection, names: list[str]) -> None:
    """Everything that some raters have left, in the order in which it refers to each other."""
    turns, tasks = schema.turns, schema.tasks
    theirs = sa.select(judgments.c.key).where(judgments.c.rater.in_(names))
    connection.execute(sa.delete(places).where(places.c.judgment.in_(theirs)))
    connection.execute(sa.delete(judgments).where(judgments.c.retracts.in_(theirs)))
    connection.execute(sa.delete(judgments).where(judgments.c.rater.in_(names)))
    counted = turns.c.rater == names[0], turns.c.state.in_(("leased", "judged"))
    again = sa.update(tasks).where(tasks.c.gold == "", tasks.c.id.in_(sa.select(turns.c.task).where(*counted)))
    connection.execute(again.values(wants=tasks.c.wants + 1))
    decided = sa.update(tasks).where(tasks.c.id.in_(sa.select(turns.c.task).where(turns.c.rater == names[1])))
    connection.execute(decided.values(adjudicated=False))
    for column in (turns.c.rater, schema.sessions.c.name, schema.accounts.c.name, raters.c.name):
        connection.execute(sa.delete(column.table).where(column.in_(names)))


ADJUDICATOR = " (adjudicator)"
"""Behind the name of who decides where raters disagree: his word is told apart from his own ratings."""
RETRACTION = "retraction"
JUDGMENT_COLUMNS = [c.name for c in judgments.columns if c.name != "id"]


# --- what judgments add to the tables -------------------------------------------------------------

TABLES = prompts, answers, raters, judgments, places
"""In the order in which they refer to each other."""
Rows = tuple[list[Row], ...]
"""What some judgments add to each of these tables."""


def rows_of(found: Iterable[tuple[bytes, Judgment]]) -> Iterator[Rows]:
    """Judgments under their keys as rows, `CHUNK` at a time; prompts and answers that came before are left out."""
    known: dict[bytes, None] = {}
    source = iter(found)
    while some := list(islice(source, CHUNK)):
        rows = _rows(some, known)
        known.update(dict.fromkeys(row[0] for row in (*rows[0], *rows[1])))
        for key in list(islice(known, max(0, len(known) - REMEMBERED))):
            del known[key]
        yield rows


def _rows(some: Sequence[tuple[bytes, Judgment]], known: Container[bytes]) -> Rows:
    """Keys come in order where two writers may bring the same, so that they never wait for each other in a circle."""
    asked: dict[bytes, Row] = {}
    written: dict[bytes, Row] = {}
    people: dict[str, Row] = {}
    said: list[Row] = []
    placed: list[Row] = []
    for key, judgment in some:
        prompt = prompt_key(judgment.prompt)
        if prompt not in known and prompt not in asked:
            asked[prompt] = _prompt_row(prompt, judgment.prompt, judgment.origin)
        shown = [answer_key(prompt, answer) for answer in judgment.answers]
        for answer_shown, answer in zip(shown, judgment.answers, strict=True):
            if answer_shown not in known and answer_shown not in written:
                written[answer_shown] = _answer_row(answer_shown, prompt, answer)
        people.setdefault(judgment.rater, (judgment.rater, judgment.kind))
        said.append(_judgment_row(key, prompt, shown, judgment))
        if isinstance(judgment.verdict, Ranking):
            ranked = enumerate(zip(shown, judgment.verdict.ranks, strict=True))
            placed += ((key, place, answer_shown, rank) for place, (answer_shown, rank) in ranked)
    in_order = ([rows[key] for key in sorted(rows)] for rows in (asked, written))
    return (*in_order, [people[name] for name in sorted(people)], said, placed)


# --- opening --------------------------------------------------------------------------------------


def _parse(source: str) -> tuple[str, Wanted, sa.URL]:
    """What to call the store, which judgments are wanted of it, and the database's address."""
    name, _, query = source.partition("?")
    wanted: dict[str, str] = {}
    rest = []
    for part in filter(None, query.split("&")):
        option, _, value = part.partition("=")
        if option in ("dimension", "rater"):
            wanted[option] = unquote(value)
        else:
            rest.append(part)
    if name.startswith(PREFIX):
        if rest or not name.removeprefix(PREFIX):
            raise InputError(f"{source}: give store:FILE.db, and after a ? dimension=NAME or rater=NAME")
        return name, Wanted(**wanted), sa.URL.create("sqlite", database=name.removeprefix(PREFIX))
    try:
        url = sa.make_url(name + ("?" + "&".join(rest) if rest else ""))
    except ArgumentError as error:
        raise InputError(
            f"{name}: no store and no database URL; give FILE.db, store:FILE or postgresql://USER@HOST/NAME"
        ) from error
    shown = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return shown, Wanted(**wanted), url


def _engine(url: sa.URL, name: str) -> sa.Engine:
    try:
        driver = {} if url.get_backend_name() == "sqlite" else {"paramstyle": "format"}  # rows are tuples
        engine = sa.create_engine(url, **driver)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise InputError(f"{name}: {error}; for PostgreSQL: pip install 'keel-tune[postgres]'") from error
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise InputError(f"{name}: Keel keeps stores in SQLite and PostgreSQL only")
    if engine.dialect.name == "sqlite" and "mode" in url.query:
        sa.event.listen(engine, "connect", _prepare_reading)
    elif engine.dialect.name == "sqlite":
        Path(url.database or "").absolute().parent.mkdir(parents=True, exist_ok=True)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _may_write(file: Path) -> bool:
    """Whether SQLite can write a file: it writes files beside it, too."""
    return os.access(file, os.W_OK) and os.access(file.absolute().parent, os.W_OK)


def _for_reading(url: sa.URL) -> sa.URL:
    """A SQLite file that is only read.

    Readers, too, leave files beside one with a write-ahead log, which may bar those who write. So where nobody has it
    open, and none was killed, the file is taken as one that does not change.
    """
    file = Path(url.database or "").absolute()
    log, index = (file.with_name(f"{file.name}-{part}") for part in ("wal", "shm"))
    still = not index.exists() and not (log.exists() and log.stat().st_size)
    query = {"uri": "true", "mode": "ro"} | ({"immutable": "1"} if still else {})
    return url.set(database=f"file:{quote(str(file))}", query=query)


BARRED = "readonly", "unable to open"
"""In what SQLite says to those who may not write."""


def _prepare_reading(connection: Any, record: Any) -> None:
    """Of a file that cannot be written to: its settings are left as they are."""
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={1_000 * PATIENCE}")
    connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")


def _prepare_sqlite(connection: Any, record: Any) -> None:
    """Readers beside one writer, a writer that waits, deleted text overwritten with zeros, nothing left dangling."""
    connection.isolation_level = None  # transactions begin where SQLAlchemy says
    connection.execute(f"PRAGMA busy_timeout={1_000 * PATIENCE}")
    _write_ahead(connection)
    pragmas = "synchronous=NORMAL", "secure_delete=ON", "foreign_keys=ON"
    for pragma in (*pragmas, f"cache_size=-{CACHE_KIB}", f"wal_autocheckpoint={CHECKPOINT}"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: Any) -> None:
    """Turn on the write-ahead log, of a new file beside others who do the same: SQLite itself does not wait here."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(random.uniform(0.01, 0.05))


def _begin_sqlite(connection: sa.Connection) -> None:
    """One that writes takes the lock at once: one that has read first could not wait for another that writes."""
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


PATIENCE = 60
"""Seconds to wait for another who writes."""
CACHE_KIB = 128 * 1024
CHECKPOINT = 16_384
"""Pages of 4 KiB after which the log is written into the file: an import changes index pages again and again."""


def _insert_statement(table: sa.Table, dialect: sa.Dialect) -> str:
    """SQL that adds a row, or leaves the one that is there."""
    kinds = {"sqlite": sqlite, "postgresql": postgresql}
    statement = kinds[dialect.name].insert(table).on_conflict_do_nothing()
    names = [c.name for c in table.columns if c.name != "id"]
    return str(statement.compile(dialect=dialect, column_keys=names))


# --- keys -----------------------------------------------------------------------------------------


PROMPT_BYTES = 8
"""Of a prompt's key, at the head of the keys of its answers and judgments."""
BELOW_BYTES = 12
"""What follows it there."""


def _hash(*parts: bytes, size: int = 16) -> bytes:
    """Bytes that name what the parts say together. No UTF-8 text holds a byte 255, and keys are of fixed length."""
    return blake2b(b"\xff".join(parts), digest_size=size).digest()


def prompt_key(prompt: Prompt) -> bytes:
    """The key of a prompt, 16 bytes."""
    if isinstance(prompt, str):
        return _text_key(prompt)
    return _hash(b"chat", _content(prompt)[0].encode())


@lru_cache(maxsize=1_024)
def _text_key(prompt: str) -> bytes:
    return _hash(b"text", prompt.encode())


def _below(prompt: bytes, *parts: bytes) -> bytes:
    """The key of something that belongs to a prompt, 20 bytes."""
    return prompt[:PROMPT_BYTES] + _hash(*parts, size=BELOW_BYTES)


def answer_key(prompt: bytes, answer: Answer) -> bytes:
    """The key of an answer: what it says, its writer, and how and as which of several alike it was drawn."""
    drawn = answer.model or answer.model_hash or answer.sampling or answer.draw
    if not drawn and not answer.fields:
        return _below(prompt, answer.text.encode())
    parts = [answer.text]
    if drawn:
        parts += answer.model, answer.model_hash, _sampling(answer), str(answer.draw)
    if answer.fields:
        parts.append(_in_order(answer.fields))
    return _below(prompt, *[part.encode() for part in parts])


def row_key(data_hash: str, judgment: Judgment, index: int) -> bytes:
    """The key of what a row of a file says, the `index`th of it: importing the file again adds nothing."""
    return _below(prompt_key(judgment.prompt), data_hash.encode(), f"{judgment.origin.row}:{index}".encode())


def said_key(judgment: Judgment) -> bytes:
    """The key of what a rule or a judge says: asked again about the same, it says the same. People may change."""
    prompt = prompt_key(judgment.prompt)
    if judgment.kind in ("person", "adjudicator", "unknown"):
        return _below(prompt, uuid.uuid4().bytes)
    shown = [answer_key(prompt, answer) for answer in judgment.answers]
    return _below(prompt, judgment.rater.encode(), judgment.rubric.encode(), judgment.dimension.encode(), *shown)


# --- rows -----------------------------------------------------------------------------------------


def _content(prompt: Prompt) -> tuple[str, bool]:
    if isinstance(prompt, str):
        return prompt, False
    turns = [{"role": turn["role"], "content": turn["content"], **further(turn)} for turn in prompt]
    return json.dumps(turns, ensure_ascii=False, separators=(",", ":")), True


def _sampling(answer: Answer) -> str:
    return _in_order(answer.sampling)


def _in_order(values: Mapping[str, Any] | None) -> str:
    """The same text for the same values, in whatever order they stand."""
    return _json(dict(sorted(values.items()))) if values else ""


def _json(values: Mapping[str, Any] | None) -> str:
    return json.dumps(values, ensure_ascii=False) if values else ""


def _prompt_row(key: bytes, prompt: Prompt, origin: Origin) -> Row:
    content, chat = _content(prompt)
    return key, content, chat, origin.file, origin.row


def _answer_row(key: bytes, prompt: bytes, a: Answer) -> Row:
    written = a.model, a.model_hash, _sampling(a), a.draw, a.logp, a.tokens, a.truncated
    drawn = "" if a.drawn is None else json.dumps([a.drawn.tokenizer, a.drawn.ids], separators=(",", ":"))
    return key, prompt, a.text, len(a.text), *written, _in_order(a.fields), drawn


def _judgment_row(key: bytes, prompt: bytes, shown: Sequence[bytes], j: Judgment) -> Row:
    match j.verdict:
        case Preference(outcome, strength):
            first, second = (len(a.text) for a in j.answers)
            longer = (first > second) - (first < second)
            said: Row = "preference", prompt, *shown, outcome, strength, longer
        case Score(value):
            said = "score", prompt, shown[0], None, None, value, None
        case Ranking():
            said = "ranking", prompt, None, None, None, None, None
    by = j.dimension, j.rater, j.rubric, j.seconds, j.comment, j.raw, _json(j.extra)
    return key, *said, *by, j.origin.file, j.origin.row, time.time(), None


def prompt_of(row: Any) -> Prompt:
    """The prompt in the columns `content` and `chat`."""
    return json.loads(row.content) if row.chat else row.content  # type: ignore[no-any-return]


def answer_of(row: Any, name: str) -> Answer:
    """The answer in the columns that begin with its name."""
    sampling, fields, drawn = (getattr(row, f"{name}_{column}") for column in ("sampling", "fields", "drawn"))
    return Answer(
        text=getattr(row, f"{name}_text"),
        model=getattr(row, f"{name}_model"),
        model_hash=getattr(row, f"{name}_model_hash"),
        sampling=json.loads(sampling) if sampling else None,
        draw=getattr(row, f"{name}_draw"),
        logp=getattr(row, f"{name}_logp"),
        tokens=getattr(row, f"{name}_tokens"),
        truncated=getattr(row, f"{name}_truncated"),
        fields=json.loads(fields) if fields else None,
        drawn=_drawn_of(drawn) if drawn else None,
    )


def _drawn_of(column: str) -> Drawn:
    tokenizer, ids = json.loads(column)
    return Drawn(tokenizer, tuple(ids))


def _judgment(row: Any, ranked: list[tuple[Answer, int]] | None) -> Judgment:
    shown: tuple[Answer, ...]
    verdict: Preference | Score | Ranking
    match row.kind:
        case "preference":
            shown, verdict = (answer_of(row, "a"), answer_of(row, "b")), Preference(row.outcome, row.value)
        case "score":
            shown, verdict = (answer_of(row, "a"),), Score(row.value)
        case _:
            assert ranked is not None
            shown, verdict = tuple(a for a, _ in ranked), Ranking(tuple(rank for _, rank in ranked))
    return Judgment(
        prompt_of(row),
        shown,
        verdict,
        rater=row.rater,
        kind=row.rater_kind,
        dimension=row.dimension,
        rubric=row.rubric,
        seconds=row.seconds,
        comment=row.comment,
        raw=row.raw,
        extra=json.loads(row.extra) if row.extra else None,
        origin=Origin(row.file, row.row),
    )
