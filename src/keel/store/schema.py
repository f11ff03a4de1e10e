"""The store's tables as they are today; `migrations` brings an older store here.

    prompts ──< answers          a prompt and its answers: text, model, sampling settings, log-probability
       └──────< judgments >── raters         verdicts on one answer or more, only ever appended
                    └──< places              rankings: each answer's place on the screen and its rank
    tasks ──< shown                          tasks for people: answers to one prompt, and how many people
       └────< turns >── accounts ──< sessions   a rater's turn at a task: lease, verdict, skip; who may sign in

Keys are hashes of a row's content, so that the same prompt or answer is stored once, whichever process brings it, and
two stores merge by union. A judgment's key names the event: a row of a file, a verdict of a deterministic rater, or,
for people, a random number. Keys of answers and judgments begin with part of their prompt's, so that one index finds
them by key and by prompt. `id` counts judgments in the order in which they came. An answer's `fields` are part of its
content, and so of its key, if it has any; `drawn` is not.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
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
    Column("draw", Integer, nullable=False),  # number among answers drawn in the same way
    Column("logp", Float),
    Column("tokens", Integer),
    Column("truncated", Boolean, nullable=False),
    Column("fields", Text, nullable=False, server_default=""),  # JSON of the turn's further fields, or empty
    Column("drawn", Text, nullable=False, server_default=""),  # JSON: fingerprint of the tokenizer, token ids; or empty
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
    Column("first", key, ForeignKey("answers.key")),  # shown first, or left; NULL for a ranking
    Column("second", key, ForeignKey("answers.key")),
    Column("outcome", Text),  # first, second, tie, both_bad
    Column("value", Float),  # strength of a preference, or score
    Column("longer", SmallInteger),  # preference: sign of the first answer's length minus the second's
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
    Column("retracts", key),  # retraction: key of the judgment taken back
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


# --- tasks for people, and their accounts ---------------------------------------------------------

tasks = Table(
    "tasks",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("key", key, nullable=False, unique=True),  # hash of the question: asked again, it is the same task
    Column("kind", Text, nullable=False),  # pair, score or ranking
    Column("prompt", key, ForeignKey("prompts.key"), nullable=False),
    Column("dimension", Text, nullable=False),  # empty: all of the rubric's at once
    Column("overlap", Integer, nullable=False),  # number of people who are to judge it
    Column("wants", Integer, nullable=False),  # overlap minus those who have judged it or hold it
    Column("begun", Boolean, nullable=False),  # somebody has had it
    Column("gold", Text, nullable=False),  # JSON of the known verdict by dimension, or empty
    Column("adjudicated", Boolean, nullable=False),
)
Index("open_tasks", tasks.c.begun, tasks.c.id, sqlite_where=tasks.c.wants > 0, postgresql_where=tasks.c.wants > 0)
Index("gold_tasks", tasks.c.id, sqlite_where=tasks.c.gold != "", postgresql_where=tasks.c.gold != "")

shown = Table(
    "shown",
    metadata,
    Column("task", ForeignKey("tasks.id"), primary_key=True),
    Column("place", SmallInteger, primary_key=True),
    Column("answer", key, ForeignKey("answers.key"), nullable=False),
)

turns = Table(
    "turns",
    metadata,
    Column("task", ForeignKey("tasks.id"), primary_key=True),
    Column("rater", Text, primary_key=True),
    Column("key", Text, nullable=False, unique=True),  # its name in the page: random, so that none can be guessed
    Column("state", Text, nullable=False),  # leased, expired, judged, skipped, flagged
    Column("order", Text, nullable=False),  # places of the answers in the order shown; "1,0": sides flipped
    Column("made", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("done", Float),
    Column("said", Text, nullable=False),  # JSON of the verdicts as given, in the order shown
    Column("settled", Text, nullable=False),  # the same in the task's order, without strength, to be compared
    Column("judgments", Text, nullable=False),  # keys of its judgments, hexadecimal, with commas
    Column("right", Float),  # gold task: share of dimensions judged right
    Column("seconds", Float),
    Column("note", Text, nullable=False),
)
_leased = turns.c.state == "leased"
Index("leases", turns.c.expires, sqlite_where=_leased, postgresql_where=_leased)
Index("turns_of", turns.c.rater, turns.c.state, turns.c.done)

accounts = Table(
    "accounts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("role", Text, nullable=False),  # rater, adjudicator, admin
    Column("token", key, nullable=False, unique=True),  # its SHA-256 only
    Column("made", Float, nullable=False),
    Column("revoked", Float),
)

sessions = Table(
    "sessions",
    metadata,
    Column("key", key, primary_key=True),  # SHA-256 of the cookie's content
    Column("name", Text, ForeignKey("accounts.name"), nullable=False),
    Column("csrf", Text, nullable=False),
    Column("expires", Float, nullable=False),
)

settings = Table("settings", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

ADJUDICATOR = " (adjudicator)"
"""Suffix of an adjudicator's rater name, so that decisions are not mixed with their own ratings."""
RETRACTION = "retraction"
"""The kind of a judgment that takes another back."""
