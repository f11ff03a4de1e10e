"""Stores of every earlier version, written by the code of their day, become today's and keep what they hold.

`stores/version-N.db` and `version-N.sql` (PostgreSQL, by pg_dump) hold the judgments of `EVERY_KIND` under their keys,
and one that was retracted; from version 2 on also two tasks, an account, and what it judged. When `schema` changes, the
store that the code before the change writes joins them.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from keel.annotation import accounts
from keel.annotation.queue import Queue
from keel.annotation.tasks import NewTask
from keel.records import Answer, Drawn, Judgment, Preference
from keel.store import migrations, schema
from keel.store.opening import parse_source
from keel.store.store import Store

from .test_store import EVERY_KIND, held, in_any_order, keyed

STORES = Path(__file__).parent / "stores"
VERSIONS = range(1, len(migrations.MIGRATIONS))
TAKEN_BACK = Judgment(
    "2 + 2 =", (Answer(" 4"), Answer(" 5")), Preference("first"), rater="person-2", kind="person"
)  # the last of its file
CALL = {"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"b": 2, "a": 2}}}]}


@pytest.fixture
def old_store(store_source):
    """`old_store(2)`: a store as version 2 wrote it, under its source."""

    def make(number):
        if store_source.startswith("store:"):
            shutil.copy(STORES / f"version-{number}.db", store_source.removeprefix("store:"))
        else:
            import psycopg

            with psycopg.connect(store_source) as connection:
                connection.execute((STORES / f"version-{number}.sql").read_text(encoding="utf-8"))
        return store_source

    return make


def engine_of(source):
    return sa.create_engine(parse_source(source)[2])


def where(index):
    return sorted((name, str(value)) for name, value in index["dialect_options"].items())


def described(source):
    """All tables: columns in their order, keys, indexes."""
    engine = engine_of(source)
    found = {}
    with engine.connect() as connection:
        look = sa.inspect(connection)
        for table in look.get_table_names():
            columns = [(c["name"], str(c["type"]), c["nullable"], str(c["default"])) for c in look.get_columns(table)]
            found[table] = (
                columns,
                look.get_pk_constraint(table)["constrained_columns"],
                sorted((k["constrained_columns"], k["referred_table"]) for k in look.get_foreign_keys(table)),
                sorted(u["column_names"] for u in look.get_unique_constraints(table)),
                sorted((i["name"], i["column_names"], where(i)) for i in look.get_indexes(table)),
            )
    engine.dispose()
    return found


def test_there_is_a_store_of_every_earlier_version():
    names = {f"version-{number}.{ending}" for number in VERSIONS for ending in ("db", "sql")}
    assert names == {file.name for file in STORES.iterdir()}


@pytest.mark.parametrize("number", VERSIONS)
def test_an_old_store_keeps_what_it_holds_and_takes_more(old_store, number):
    source = old_store(number)
    new = Judgment(
        "2 + 2 =",
        (Answer("", "m", fields=CALL, drawn=Drawn("f1", (5, 6, 2))), Answer(" 4")),
        Preference("first", 1.0),
        rater="ann",
    )
    with Store(source) as store:
        assert [tuple(row) for row in store.read(schema.version.select())] == [(len(migrations.MIGRATIONS),)]
        before = held(store)
        assert in_any_order([j for j in before if j.rater != "ana"]) == in_any_order(EVERY_KIND)
        assert store.append(keyed([*EVERY_KIND, TAKEN_BACK])) == 0, "keys are what they were"
        assert store.append(keyed([new])) == 1
        assert new in held(store)
        assert len(held(store)) == len(before) + 1


@pytest.mark.parametrize("number", VERSIONS[1:])
def test_tasks_and_accounts_go_on(old_store, number):
    with Store(old_store(number)) as store:
        assert [j.rater for j in held(store) if j.prompt in ("Sun?", "Rain?")] == ["ana"]
        queue = Queue(store)
        turn = queue.next("bob")
        assert {answer.text for answer in turn.answers} == {"yes", "no"}
        queue.judge("bob", turn.key, {"overall": Preference("tie")})
        assert [j.rater for j in held(store) if j.prompt == "Rain?"] == ["ana", "bob"]
        assert queue.undo("bob").key == turn.key


def test_the_first_version_gains_tasks_and_accounts(old_store):
    with Store(old_store(1)) as store:
        assert Queue(store).add([NewTask("Sun?", (Answer("yes"), Answer("no")))]) == 1
        assert accounts.add(store, "ana").startswith("keel-")


@pytest.mark.parametrize("number", VERSIONS)
def test_a_migrated_store_and_a_fresh_one_have_one_schema(old_store, number, tmp_path, store_source):
    """And both are what `schema` says; PostgreSQL's fresh one stands in a schema of its own."""
    Store(old_store(number)).close()
    migrated = described(store_source)
    engine = engine_of(store_source)
    with engine.begin() as connection:
        schema.metadata.drop_all(connection)
    Store(store_source, create=True).close()
    assert described(store_source) == migrated
    with engine.begin() as connection:
        schema.metadata.drop_all(connection)
        schema.metadata.create_all(connection)
    engine.dispose()
    assert described(store_source) == migrated


@pytest.mark.parametrize("number", VERSIONS)
def test_steps_are_frozen(old_store, number, store_source, monkeypatch):
    """The steps up to a version make what the code of that version made, to the letter in SQLite."""
    source = old_store(number)
    expected, written = described(source), letters(source)
    engine = engine_of(store_source)
    with engine.begin() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table.name}")
    monkeypatch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:number])
    with engine.begin() as connection:
        migrations.migrate(connection)
    engine.dispose()
    assert described(store_source) == expected
    assert letters(store_source) == written


def letters(source):
    """SQLite's own record of how tables and indexes were made."""
    if not source.startswith("store:"):
        return None
    with sqlite3.connect(source.removeprefix("store:")) as connection:
        made = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
    return [(name, re.sub(r"\s+", "", sql)) for name, sql in made]
