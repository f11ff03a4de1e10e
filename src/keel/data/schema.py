"""The store's tables, and the numbered steps by which an older store becomes a newer one.

    prompts ──< answers          a prompt, and what was written to it, by whom, how, and how likely it was
       └──────< judgments >── raters         what was said of one or two answers, only ever appended
                    └──< places              of a ranking: each answer's place on the screen and its rank

Keys are hashes of what a row says, so that the same prompt or answer is stored once whoever brings it, in whatever
process, and two stores merge by union. A judgment's key names the event: a row of a file, an answer of a deterministic
rater, or, for people, a random number. Keys of answers and judgments begin with their prompt's, so that one index finds
them by key and by prompt. `id` counts judgments in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    insert,
    inspect,
    select,
    update,
)

metadata = MetaData()
key = LargeBinary()

version = Table("keel_store", metadata, Column("version", Integer, nullable=False))

prompts = Table(
    "prompts",
    metadata,
    Column("key", key, primary_key=True),
    Column("content", Text, nullable=False),  # the text, or the chat's turns as JSON
    Column("chat", Boolean, nullable=False),
    Column("file", Text, nullable=False),
    Column("row", Integer, nullable=False),
)

answers = Table(
    "answers",
    metadata,
    Column("key", key, primary_key=True),
    Column("prompt", key, ForeignKey("prompts.key"), nullable=False),
    Column("text", Text, nullable=False),
    Column("characters", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("model_hash", Text, nullable=False),
    Column("sampling", Text, nullable=False),  # JSON, or empty
    Column("draw", Integer, nullable=False),  # which of several drawn alike
    Column("logp", Float),
    Column("tokens", Integer),
    Column("truncated", Boolean, nullable=False),
)

raters = Table(
    "raters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
)

judgments = Table(
    "judgments",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("key", key, nullable=False, unique=True),
    Column("kind", Text, nullable=False),  # preference, score, ranking, or retraction
    Column("prompt", key, ForeignKey("prompts.key"), nullable=False),
    Column("first", key, ForeignKey("answers.key")),  # shown first, or left; none in a ranking
    Column("second", key, ForeignKey("answers.key")),
    Column("outcome", Text),  # first, second, tie, both_bad
    Column("value", Float),  # a preference's strength, a score
    Column("longer", SmallInteger),  # of a preference: the sign of the first answer's length less the second's
    Column("dimension", Text, nullable=False),
    Column("rater", Text, ForeignKey("raters.name"), nullable=False),
    Column("rubric", Text, nullable=False),
    Column("seconds", Float),
    Column("comment", Text, nullable=False),
    Column("raw", Text, nullable=False),
    Column("extra", Text, nullable=False),  # JSON, or empty
    Column("file", Text, nullable=False),
    Column("row", Integer, nullable=False),
    Column("made", Float, nullable=False),  # seconds since 1970, UTC
    Column("retracts", key),  # of a retraction: the judgment that no longer holds
)

_retracts = judgments.c.retracts
Index("retracted", _retracts, sqlite_where=_retracts.is_not(None), postgresql_where=_retracts.is_not(None))

places = Table(
    "places",
    metadata,
    Column("judgment", key, ForeignKey("judgments.key"), primary_key=True),
    Column("place", SmallInteger, primary_key=True),
    Column("answer", key, ForeignKey("answers.key"), nullable=False),
    Column("rank", SmallInteger, nullable=False),
)


def first_tables(connection: Connection) -> None:
    """Version 1: everything above."""
    metadata.create_all(connection)


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (first_tables,)
"""Step n makes version n of version n - 1. A step is never changed once a store has gone through it."""


def version_of(connection: Connection) -> int:
    """The number of the last step that a database went through; 0 where there is no store in it."""
    if not inspect(connection).has_table(version.name):
        return 0
    return int(connection.scalar(select(version.c.version)) or 0)


def migrate(connection: Connection) -> None:
    """Bring a store to the newest version, in the caller's transaction; a second process waits and finds it done."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7355608)")
    for number, step in enumerate(MIGRATIONS[version_of(connection) :], version_of(connection) + 1):
        step(connection)
        connection.execute(insert(version).values(version=1) if number == 1 else update(version).values(version=number))
