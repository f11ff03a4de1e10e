"""Operations on a whole store: merge another into it, erase a person, copy it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from keel.errors import InputError
from keel.store import schema
from keel.store.opening import PREFIX
from keel.store.rows import CHUNK, TABLES
from keel.store.schema import ADJUDICATOR, judgments, places, raters
from keel.store.store import Store


def merge(store: Store, other: Store) -> int:
    """Add prompts, answers and judgments of another store as they are; return how many judgments were new."""
    added = 0
    with other.reading() as connection:
        for table in TABLES:
            columns = [c for c in table.columns if c.name != "id"]
            order = [judgments.c.id] if table is judgments else list(table.primary_key.columns)
            statement = sa.select(*columns).order_by(*order)
            found = connection.execute(statement, execution_options={"yield_per": CHUNK})
            for some in found.partitions(CHUNK):
                with store.writing() as mine:
                    count = store.insert(mine, table, [tuple(row) for row in some])
                added += count if table is judgments else 0
    return added


def _copy(store: Store, other: Store, table: sa.Table) -> None:
    """Copy all rows of a table of the other store as they are, numbers included, into this one's empty table."""
    with other.reading() as connection:
        order = [table.c.id] if "id" in table.c else list(table.primary_key.columns)
        statement = sa.select(table).order_by(*order)
        found = connection.execute(statement, execution_options={"yield_per": CHUNK})
        for some in found.mappings().partitions(CHUNK):
            with store.writing() as mine:
                mine.execute(sa.insert(table), [dict(row) for row in some])


def backup(store: Store, file: Path) -> None:
    """Copy the whole store into one SQLite file, while others may go on writing."""
    if file.exists():
        raise InputError(f"{file} already exists: choose another --out, or remove it")
    partial = file.with_name(file.name + ".partial")
    partial.unlink(missing_ok=True)
    if store.sqlite:
        with store.outside() as connection:
            connection.exec_driver_sql("VACUUM INTO ?", (str(partial),))
    else:
        with Store(f"{PREFIX}{partial}", create=True) as copy, store.snapshot():
            for table in schema.metadata.sorted_tables:
                if table is not schema.version:
                    _copy(copy, store, table)
    partial.rename(file)


def forget(store: Store, rater: str) -> int:
    """Erase a person: name, account, judgments, comments. Return how many judgments there were.

    InputError if the store does not know the name. Their decisions as an adjudicator go, too. Each task that they
    judged or hold wants one more person again, unless it is gold.
    """
    names = [rater, rater + ADJUDICATOR]
    with store.writing() as connection:
        known = connection.scalars(sa.select(raters.c.name).union(sa.select(schema.accounts.c.name))).all()
        if rater not in known:
            shown = ", ".join(sorted(known)[:8])
            raise InputError(f"{store.source}: no rater {rater!r}; there are {shown or 'none'}")
        count = connection.scalar(sa.select(sa.func.count()).where(judgments.c.rater.in_(names))) or 0
        _erase(connection, names)
    with store.outside() as connection:
        connection.exec_driver_sql("VACUUM")  # what was deleted is gone from the file, too
        if store.sqlite:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    return count


def _erase(connection: sa.Connection, names: list[str]) -> None:
    """Delete all rows of some raters; rows that refer to others go first."""
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
