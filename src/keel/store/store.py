"""The store: prompts, answers with their provenance, and judgments that are only ever appended.

Pairs, ranked bundles and splits are derived by query (`data/derive.py`), never stored. A change of mind is a retraction
and a new judgment; only `upkeep.forget` deletes, on a person's request. Two processes may write at once. A committed
transaction survives a killed process, and repeating it adds nothing, since a row's key is a hash of its content.
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
    """An open store; use it as a context manager, or close it."""

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
            raise InputError(f"{self.source}: this database holds no Keel store; check the name")
        if found > len(migrations.MIGRATIONS):
            raise InputError(f"{self.source}: written by a newer Keel (store version {found}); update Keel")
        if found < len(migrations.MIGRATIONS) and read_only:
            old = f"store version {found} must be brought to {len(migrations.MIGRATIONS)}"
            raise InputError(
                f"{self.source}: {old}, but the file cannot be written to; copy it to a folder that you can write to"
            )
        if found < len(migrations.MIGRATIONS):
            with self.writing() as connection:
                migrations.migrate(connection)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the database."""
        self._engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise errors of the database as `InputError`, in one line."""
        try:
            yield
        except SQLAlchemyError as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            said = " ".join(str(cause).split())[:300]
            barred = self.sqlite and any(words in said for words in BARRED)
            mend = "get write permission for the file and its folder, or copy it" if barred else "check the database"
            raise InputError(f"{self.source}: {said}; {mend}") from error

    # --- writing ----------------------------------------------------------------------------------

    def append(self, found: Iterable[tuple[bytes, Judgment]]) -> int:
        """Add judgments under their keys, with their prompts and answers; return how many were new.

        Each `CHUNK` is committed. Existing rows are left as they are, so that an interrupted call may be repeated.
        """
        return sum(map(self.add, rows_of(found)))

    def add(self, rows: Rows) -> int:
        """Add rows made by `rows_of` in one transaction; return how many judgments were new."""
        with self.writing() as connection:
            return self.add_in(connection, rows)

    def add_in(self, connection: sa.Connection, rows: Rows) -> int:
        """Add rows made by `rows_of` in the caller's transaction; return how many judgments were new."""
        counts = [self.insert(connection, table, new) for table, new in zip(TABLES, rows, strict=True)]
        return counts[TABLES.index(judgments)]

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Open a transaction that writes: all of it or nothing. Writers to SQLite in one process queue up here.

        SQLite itself would sleep longer and longer between its attempts to take the lock.
        """
        with self._errors(), self._turn if self.sqlite else nullcontext(), self._writing.begin() as connection:
            yield connection

    @contextmanager
    def outside(self) -> Iterator[sa.Connection]:
        """Open a connection outside any transaction, for commands such as VACUUM."""
        with self._errors(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection

    def insert(self, connection: sa.Connection, table: sa.Table, rows: list[TableRow]) -> int:
        """Add the rows that are not there yet; return how many.

        The driver gets tuples: SQLAlchemy's conversion of dictionaries and types takes longer than the database.
        """
        if not rows:
            return 0
        return max(0, connection.exec_driver_sql(self._statements[table], rows).rowcount)

    def add_answers(self, found: Iterable[tuple[PromptRow, Sequence[Answer]]]) -> None:
        """Store prompts and the answers drawn for them in one transaction: all of it or nothing."""
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
        """Return each prompt's answers with the model and sampling settings of `like`, in the order of their draws."""
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
        """Return the answers' keys (first + second) of the pairs that a rater has judged, to ask about none twice."""
        statement = sa.select(judgments.c.first, judgments.c.second).where(
            judgments.c.rater == rater, judgments.c.kind == "preference"
        )
        return {first + second for first, second in map(tuple, self.stream(statement))}

    def judgments_by(self, rater: str, asked: Container[bytes]) -> Iterator[Judgment]:
        """Yield a rater's judgments on these prompts (given by key) that hold."""
        for group in self.groups(judgments.c.rater == rater):
            if prompt_id(group[0][1].prompt) in asked:
                yield from (judgment for _, judgment in group)

    def retract(self, key: bytes, comment: str = "") -> None:
        """Append a retraction of a judgment, which stays in the store but no longer counts."""
        with self.writing() as connection:
            self.retract_in(connection, key, comment)

    def retract_in(self, connection: sa.Connection, key: bytes, comment: str = "") -> None:
        """Append a retraction of a judgment in the caller's transaction; InputError if there is none to retract."""
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
        """Yield all judgments that hold and are wanted, one prompt at a time, each prompt's in the order they came in.

        Their origin is the row that they were imported from or, with `numbered`, their number in the store. `given`
        collects their numbers and keys. All are read in one transaction, which does not see later writes of others.
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
        """Return conditions for a query on judgments: no retraction, not retracted, and wanted by the source's name."""
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
        """Yield every prompt with its key, in the order of the keys."""
        for row in self.stream(sa.select(prompts).order_by(prompts.c.key)):
            yield row.key, PromptRow(stored_prompt(row), Origin(row.file, row.row))

    def identity(self) -> dict[str, object]:
        """Return the identity (`Given.identity`) of the judgments that hold and are wanted."""
        given = Given()
        for row in self.stream(sa.select(judgments.c.id, judgments.c.key).where(*self.holding())):
            given.add(row.id, row.key)
        return given.identity()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Open a transaction that does not see later writes of others. Within a `snapshot`, return the snapshot's."""
        if (held := getattr(self._snapshot, "connection", None)) is not None:
            yield held
            return
        alone = {} if self.sqlite else {"isolation_level": "REPEATABLE READ"}
        with self._errors(), self._engine.connect().execution_options(**alone) as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Use one transaction for everything that this thread reads inside the context."""
        with self.reading() as connection:
            self._snapshot.connection = connection
            try:
                yield
            finally:
                self._snapshot.connection = None

    def read(self, statement: sa.Select[Any]) -> list[sa.Row[Any]]:
        """Return the rows of a query."""
        return list(self.stream(statement))

    def stream(self, statement: sa.Select[Any]) -> Iterator[sa.Row[Any]]:
        """Yield the rows of a query, fetched some at a time."""
        with self.reading() as connection:
            yield from connection.execute(statement, execution_options={"yield_per": 10_000})


def _whole_judgments() -> sa.Select[Any]:
    """Select judgments joined with their prompt, rater kind and answers: the columns of a `Judgment`."""
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
    """Return answers and ranks of some rankings, in the order in which the answers were shown."""
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
