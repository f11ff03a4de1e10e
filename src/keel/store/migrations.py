"""Numbered migrations that bring a new or an older store to the newest version.

Each step is frozen SQL and never reads `schema`, so that a store of any version ends equal to a fresh one. `TYPES`
holds what differs between the databases. A step is never changed once a store has gone through it. A change of `schema`
is a further step, and a store of the version before it is kept among the tests.
"""

from __future__ import annotations

from sqlalchemy import Connection, inspect

TYPES = {
    "sqlite": {"bytes": "BLOB", "counted": "INTEGER", "number": "INTEGER"},
    "postgresql": {"bytes": "BYTEA", "counted": "BIGSERIAL", "number": "BIGINT"},
}
"""Column types by database: a key, a number that the database counts up, and a number of the same size."""

_JUDGED = (
    "CREATE TABLE keel_store (version INTEGER NOT NULL)",
    """
    CREATE TABLE prompts (
        "key" {bytes} NOT NULL,
        content TEXT NOT NULL,
        chat BOOLEAN NOT NULL,
        file TEXT NOT NULL,
        "row" INTEGER NOT NULL,
        PRIMARY KEY ("key")
    )
    """,
    """
    CREATE TABLE answers (
        "key" {bytes} NOT NULL,
        prompt {bytes} NOT NULL,
        text TEXT NOT NULL,
        characters INTEGER NOT NULL,
        model TEXT NOT NULL,
        model_hash TEXT NOT NULL,
        sampling TEXT NOT NULL,
        draw INTEGER NOT NULL,
        logp FLOAT,
        tokens INTEGER,
        truncated BOOLEAN NOT NULL,
        PRIMARY KEY ("key"),
        FOREIGN KEY(prompt) REFERENCES prompts ("key")
    )
    """,
    """
    CREATE TABLE raters (
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        PRIMARY KEY (name)
    )
    """,
    """
    CREATE TABLE judgments (
        id {counted} NOT NULL,
        "key" {bytes} NOT NULL,
        kind TEXT NOT NULL,
        prompt {bytes} NOT NULL,
        first {bytes},
        second {bytes},
        outcome TEXT,
        value FLOAT,
        longer SMALLINT,
        dimension TEXT NOT NULL,
        rater TEXT NOT NULL,
        rubric TEXT NOT NULL,
        seconds FLOAT,
        comment TEXT NOT NULL,
        raw TEXT NOT NULL,
        extra TEXT NOT NULL,
        file TEXT NOT NULL,
        "row" INTEGER NOT NULL,
        made FLOAT NOT NULL,
        retracts {bytes},
        PRIMARY KEY (id),
        UNIQUE ("key"),
        FOREIGN KEY(prompt) REFERENCES prompts ("key"),
        FOREIGN KEY(first) REFERENCES answers ("key"),
        FOREIGN KEY(second) REFERENCES answers ("key"),
        FOREIGN KEY(rater) REFERENCES raters (name)
    )
    """,
    "CREATE INDEX retracted ON judgments (retracts) WHERE retracts IS NOT NULL",
    """
    CREATE TABLE places (
        judgment {bytes} NOT NULL,
        place SMALLINT NOT NULL,
        answer {bytes} NOT NULL,
        rank SMALLINT NOT NULL,
        PRIMARY KEY (judgment, place),
        FOREIGN KEY(judgment) REFERENCES judgments ("key"),
        FOREIGN KEY(answer) REFERENCES answers ("key")
    )
    """,
)
"""Version 1: prompts, answers and judgments."""

ASKED = (
    """
    CREATE TABLE tasks (
        id {counted} NOT NULL,
        "key" {bytes} NOT NULL,
        kind TEXT NOT NULL,
        prompt {bytes} NOT NULL,
        dimension TEXT NOT NULL,
        overlap INTEGER NOT NULL,
        wants INTEGER NOT NULL,
        begun BOOLEAN NOT NULL,
        gold TEXT NOT NULL,
        adjudicated BOOLEAN NOT NULL,
        PRIMARY KEY (id),
        UNIQUE ("key"),
        FOREIGN KEY(prompt) REFERENCES prompts ("key")
    )
    """,
    "CREATE INDEX open_tasks ON tasks (begun, id) WHERE wants > 0",
    "CREATE INDEX gold_tasks ON tasks (id) WHERE gold != ''",
    """
    CREATE TABLE shown (
        task {number} NOT NULL,
        place SMALLINT NOT NULL,
        answer {bytes} NOT NULL,
        PRIMARY KEY (task, place),
        FOREIGN KEY(task) REFERENCES tasks (id),
        FOREIGN KEY(answer) REFERENCES answers ("key")
    )
    """,
    """
    CREATE TABLE turns (
        task {number} NOT NULL,
        rater TEXT NOT NULL,
        "key" TEXT NOT NULL,
        state TEXT NOT NULL,
        "order" TEXT NOT NULL,
        made FLOAT NOT NULL,
        expires FLOAT NOT NULL,
        done FLOAT,
        said TEXT NOT NULL,
        settled TEXT NOT NULL,
        judgments TEXT NOT NULL,
        "right" FLOAT,
        seconds FLOAT,
        note TEXT NOT NULL,
        PRIMARY KEY (task, rater),
        FOREIGN KEY(task) REFERENCES tasks (id),
        UNIQUE ("key")
    )
    """,
    "CREATE INDEX leases ON turns (expires) WHERE state = 'leased'",
    "CREATE INDEX turns_of ON turns (rater, state, done)",
    """
    CREATE TABLE accounts (
        name TEXT NOT NULL,
        role TEXT NOT NULL,
        token {bytes} NOT NULL,
        made FLOAT NOT NULL,
        revoked FLOAT,
        PRIMARY KEY (name),
        UNIQUE (token)
    )
    """,
    """
    CREATE TABLE sessions (
        "key" {bytes} NOT NULL,
        name TEXT NOT NULL,
        csrf TEXT NOT NULL,
        expires FLOAT NOT NULL,
        PRIMARY KEY ("key"),
        FOREIGN KEY(name) REFERENCES accounts (name)
    )
    """,
    """
    CREATE TABLE settings (
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (name)
    )
    """,
)
"""Version 2: tasks for people, and their accounts."""

DRAWN = (
    "ALTER TABLE answers ADD COLUMN fields TEXT DEFAULT '' NOT NULL",
    "ALTER TABLE answers ADD COLUMN drawn TEXT DEFAULT '' NOT NULL",
)
"""Version 3: further fields of an answer's turn, and the token ids that were drawn."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (_JUDGED, ASKED, DRAWN)
"""Step n turns version n - 1 into version n."""


def version_of(connection: Connection) -> int:
    """Return the number of the last step that a database went through; 0 if it holds no store."""
    if not inspect(connection).has_table("keel_store"):
        return 0
    return int(connection.exec_driver_sql("SELECT version FROM keel_store").scalar() or 0)


def migrate(connection: Connection) -> None:
    """Bring a store to the newest version in the caller's transaction; a second process waits and finds it done."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7355608)")
    types = TYPES[connection.dialect.name]
    for number, step in enumerate(MIGRATIONS[version_of(connection) :], version_of(connection) + 1):
        for statement in step:
            connection.exec_driver_sql(statement.format(**types))
        told = "INSERT INTO keel_store (version) VALUES ({})" if number == 1 else "UPDATE keel_store SET version = {}"
        connection.exec_driver_sql(told.format(number))
