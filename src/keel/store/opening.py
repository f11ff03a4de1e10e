"""Open a store's database: read its name, choose the driver, tune SQLite.

A store is `store:FILE.db` (SQLite, made when first written to) or a database URL such as
`postgresql://user@host/name`. A SQLite store can be read without the right to write its file or folder.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from keel.errors import InputError

PREFIX = "store:"
PATIENCE = 60
"""Seconds to wait for another writer."""
CACHE_KIB = 128 * 1024
CHECKPOINT = 16_384
"""Pages of 4 KiB after which the log is written into the file. Many, as an import changes index pages repeatedly."""
BARRED = "readonly", "unable to open"
"""Words in SQLite's messages if the right to write is missing."""


def is_store(source: str) -> bool:
    """Say whether a source names a store rather than a file."""
    return source.startswith(PREFIX) or "://" in source


@dataclass(frozen=True, slots=True)
class Wanted:
    """A choice of judgments: `store:FILE.db?dimension=harmlessness&rater=person-007`; None means all."""

    dimension: str | None = None
    rater: str | None = None


def parse_source(source: str) -> tuple[str, Wanted, sa.URL]:
    """Return the store's name for messages, the judgments wanted, and the database's URL."""
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
            f"{name}: neither a store nor a database URL; give FILE.db, store:FILE or postgresql://USER@HOST/NAME"
        ) from error
    shown = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return shown, Wanted(**wanted), url


def make_engine(url: sa.URL, name: str) -> sa.Engine:
    """Return a tuned SQLAlchemy engine; `name` is the store's name in errors."""
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


def may_write(file: Path) -> bool:
    """Say whether SQLite can write a file; it must be able to write to the folder, too."""
    return os.access(file, os.W_OK) and os.access(file.absolute().parent, os.W_OK)


def for_reading(url: sa.URL) -> sa.URL:
    """Return the URL by which a SQLite file is opened for reading only.

    With a write-ahead log, readers, too, leave files beside the database, which may keep others from writing. So if
    nobody has it open, and no writer was killed, the file is opened as immutable.
    """
    file = Path(url.database or "").absolute()
    log, index = (file.with_name(f"{file.name}-{part}") for part in ("wal", "shm"))
    still = not index.exists() and not (log.exists() and log.stat().st_size)
    query = {"uri": "true", "mode": "ro"} | ({"immutable": "1"} if still else {})
    return url.set(database=f"file:{quote(str(file))}", query=query)


def _prepare_reading(connection: Any, record: Any) -> None:
    """Set up a connection to a file that cannot be written to; settings kept in the file stay as they are."""
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={1_000 * PATIENCE}")
    connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")


def _prepare_sqlite(connection: Any, record: Any) -> None:
    """Set up a connection: readers beside one waiting writer, deleted text zeroed, foreign keys enforced."""
    connection.isolation_level = None  # SQLAlchemy begins the transactions
    connection.execute(f"PRAGMA busy_timeout={1_000 * PATIENCE}")
    _write_ahead(connection)
    pragmas = "synchronous=NORMAL", "secure_delete=ON", "foreign_keys=ON"
    for pragma in (*pragmas, f"cache_size=-{CACHE_KIB}", f"wal_autocheckpoint={CHECKPOINT}"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: Any) -> None:
    """Turn on the write-ahead log; retry while others do so for the same new file, as SQLite does not wait here."""
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
    """Begin a transaction. A writer takes the lock at once: after a first read it could not wait for other writers."""
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
