"""The store: prompts, answers with their provenance, and judgments that are only ever appended.

Pairs, ranked bundles and splits are derived by query (`data/derive.py`), never stored. A change of mind is a retraction
and a new judgment; only `upkeep.forget` deletes, on a person's request. Two processes may write at once. What a
transaction has committed survives a killed process, and doing it again adds nothing: rows are named by what they say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from keel.errors import InputError
from keel.records import Answer, Judgment, Origin, Prompt, PromptRow
from keel.store import migrations, schema
from keel.store.keys import BELOW_BYTES, PROMPT_BYTES, Given, answer_id, in_order, prompt_id, retraction_key
from keel.store.opening import BARRED, for_reading, make_engine, may_write, parse_source
from keel.store.rows import (
    JUDGMENT_COLUMNS,
    TABLES,
    Rows,
    TableRow,
    answer_row,
    insert_statement,
    prompt_row,
    rows_of,
    stored_answer,
    stored_judgment,
    stored_prompt,
)
from keel.store.schema import RETRACTION, answers, judgments, places, prompts, raters


class Store:
    """An open store; use it as a context, or close it."""

    def __init__(self, source: str, *, create: bool = False) -> None:
        self.source, self.wanted, url = parse_source(source)
        self.sqlite = url.get_backend_name() == "sqlite"
        if self.sqlite and not create and not Path(url.database or "").exists():
            raise InputError(f"{self.source}: no such store; check the path, or collect or convert into it first")
        read_only = self.sqlite and not create and not may_write(Path(url.database or ""))
        url = for_reading(url) if read_only else url
        self._engine = make_engine(url, self.source)
        self._writing = self._engine.execution_options(writes=True)
        self._turn = threading.RLock()
        self._snapshot = threading.local()
        self._statements = {
            table: insert_statement(table, self._engine.dialect) for table in schema.metadata.tables.values()
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
        counts = [self.insert(connection, table, new) for table, new in zip(TABLES, rows, strict=True)]
        return counts[TABLES.index(judgments)]

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction that writes: all of it or nothing. In one process SQLite's writers queue up here.

        SQLite's own waiting for a lock sleeps ever longer between its looks.
        """
        with self._errors(), self._turn if self.sqlite else nullcontext(), self._writing.begin() as connection:
            yield connection

    @contextmanager
    def outside(self) -> Iterator[sa.Connection]:
        """A connection outside any transaction, for what the database does on its own, such as VACUUM."""
        with self._errors(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection

    def insert(self, connection: sa.Connection, table: sa.Table, rows: list[TableRow]) -> int:
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
            prompt = prompt_id(row.prompt)
            asked[prompt] = prompt_row(prompt, row.prompt, row.origin)
            for answer in drawn:
                key = answer_id(prompt, answer)
                written[key] = answer_row(key, prompt, answer)
        with self.writing() as connection:
            for table, rows in ((prompts, asked), (answers, written)):
                self.insert(connection, table, [rows[key] for key in sorted(rows)])

    def answers_to(self, asked: Sequence[Prompt], like: Answer) -> list[list[Answer]]:
        """Of each prompt its answers by the writer of `like`, drawn in the same way, in the order of their draws."""
        low, high, of = (sa.bindparam(name, type_=schema.key) for name in ("low", "high", "of"))
        written = (answers.c.model, like.model), (answers.c.model_hash, like.model_hash)
        statement = (
            sa.select(*(c.label(f"a_{c.name}") for c in answers.columns))
            .where(answers.c.key >= low, answers.c.key <= high, answers.c.prompt == of)
            .where(answers.c.sampling == in_order(like.sampling), *(column == value for column, value in written))
            .order_by(answers.c.draw, answers.c.key)
        )
        found = []
        with self.reading() as connection:
            for key in map(prompt_id, asked):
                head = key[:PROMPT_BYTES]
                rows = connection.execute(statement, {"low": head, "high": head + b"\xff" * BELOW_BYTES, "of": key})
                found.append([stored_answer(row, "a") for row in rows])
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
            if prompt_id(group[0][1].prompt) in asked:
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
        blank = {"key": retraction_key(row["prompt"], key), "raw": "", "extra": "", "file": "", "row": 0}
        retraction = tuple((kept | said | blank).get(name) for name in JUDGMENT_COLUMNS)
        self.insert(connection, judgments, [retraction])

    # --- reading ----------------------------------------------------------------------------------

    def groups(
        self, *conditions: sa.ColumnElement[bool], numbered: bool = False, given: Given | None = None
    ) -> Iterator[list[tuple[bytes, Judgment]]]:
        """All judgments that hold and are wanted, a prompt at a time, each prompt's in the order in which they came.

        Their origin is the row that they were imported from or, with `numbered`, their number in the store. `given`
        learns which they are. All are read in one transaction: what others write meanwhile is not seen.
        """
        statement = _whole_judgments().where(*self.holding(), *conditions).order_by(judgments.c.key)
        with self.reading() as connection:
            rows = connection.execute(statement, execution_options={"yield_per": 1_000})
            for _, group in groupby(rows, key=lambda row: row.prompt):
                some = sorted(group, key=lambda row: row.id)
                ranked = _ranked(connection, [row.key for row in some if row.kind == "ranking"])
                found = [(row.key, stored_judgment(row, ranked.get(row.key))) for row in some]
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

    def prompts(self) -> Iterator[tuple[bytes, PromptRow]]:
        """Every prompt under its key, in the order of their keys."""
        for row in self.stream(sa.select(prompts).order_by(prompts.c.key)):
            yield row.key, PromptRow(stored_prompt(row), Origin(row.file, row.row))

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


def _whole_judgments() -> sa.Select[Any]:
    """Judgments with their prompts, their raters' kind and the answers that they name: the columns of a `Judgment`."""
    first, second = answers.alias("first_answer"), answers.alias("second_answer")
    return (
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
    )


def _ranked(connection: sa.Connection, keys: list[bytes]) -> dict[bytes, list[tuple[Answer, int]]]:
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
            found.setdefault(row.judgment, []).append((stored_answer(row, "a"), row.rank))
    return found
