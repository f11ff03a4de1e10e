"""Accounts of the annotation page, with personal tokens, and the sessions of those who have signed in.

A token is 32 random bytes. Only its plain SHA-256 is kept, which can neither be guessed nor reversed. Roles: a `rater`
judges; an `adjudicator` also decides disagreements and sees the figures; so does an `admin`.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa

from keel.errors import InputError
from keel.store.schema import accounts, sessions
from keel.store.store import Store

AccountRole = Literal["rater", "adjudicator", "admin"]
SESSION = 24 * 3_600.0
"""Seconds until a person has to sign in again."""
_LONGEST_NAME = 60


@dataclass(frozen=True, slots=True)
class Account:
    """A person's account."""

    name: str
    role: AccountRole
    made: float
    revoked: float | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A person who has signed in; every request that changes something must carry `csrf`."""

    name: str
    role: AccountRole
    csrf: str


def add(store: Store, name: str, role: AccountRole = "rater") -> str:
    """Make an account and return its token, which is kept nowhere. A revoked account gets a new token."""
    if not name.strip() or name != name.strip() or len(name) > _LONGEST_NAME or not name.isprintable() or "(" in name:
        raise InputError(f"the name {name[:60]!r} must be 1 to {_LONGEST_NAME} printable characters without brackets")
    if role not in get_args(AccountRole):
        raise InputError(f"no role {role!r}; choose one of {', '.join(get_args(AccountRole))}")
    token = f"keel-{secrets.token_urlsafe(32)}"
    row = {"role": role, "token": _hash(token), "made": time.time(), "revoked": None}
    with store.writing() as connection:
        there = connection.execute(sa.select(accounts.c.revoked).where(accounts.c.name == name)).first()
        if there is not None and there.revoked is None:
            raise InputError(f"{store.source}: there is a rater {name!r} already; revoke that token first, or use it")
        if there is None:
            connection.execute(sa.insert(accounts).values(name=name, **row))
        else:
            connection.execute(sa.update(accounts).where(accounts.c.name == name).values(**row))
    return token


def everyone(store: Store) -> list[Account]:
    """Return all accounts, by name."""
    columns: list[Any] = [accounts.c.name, accounts.c.role, accounts.c.made, accounts.c.revoked]
    return [Account(*tuple(row)) for row in store.read(sa.select(*columns).order_by(accounts.c.name))]


def revoke(store: Store, name: str) -> None:
    """Make a person's token invalid and sign them out. Their judgments stay."""
    with store.writing() as connection:
        live = accounts.c.name == name, accounts.c.revoked.is_(None)
        if not connection.execute(sa.update(accounts).where(*live).values(revoked=time.time())).rowcount:
            raise InputError(f"{store.source}: no rater {name!r} with a token; `keel raters list` shows who has one")
        connection.execute(sa.delete(sessions).where(sessions.c.name == name))


def sign_in(store: Store, token: str) -> tuple[str, Session] | None:
    """Return the cookie's content and the new session; None if the token is not valid."""
    cookie, csrf, now = secrets.token_urlsafe(32), secrets.token_urlsafe(24), time.time()
    with store.writing() as connection:
        live = accounts.c.token == _hash(token), accounts.c.revoked.is_(None)
        found = connection.execute(sa.select(accounts.c.name, accounts.c.role).where(*live)).first()
        if found is None:
            return None
        connection.execute(sa.delete(sessions).where(sessions.c.expires < now))
        row = {"key": _hash(cookie), "name": found.name, "csrf": csrf, "expires": now + SESSION}
        connection.execute(sa.insert(sessions).values(**row))
    return cookie, Session(found.name, found.role, csrf)


def session_of(store: Store, cookie: str) -> Session | None:
    """Return the session of a cookie; None if it is unknown, expired, signed out or revoked."""
    columns: list[Any] = [sessions.c.name, accounts.c.role, sessions.c.csrf]
    statement = sa.select(*columns).join(accounts, accounts.c.name == sessions.c.name)
    live = sessions.c.key == _hash(cookie), sessions.c.expires >= time.time(), accounts.c.revoked.is_(None)
    found = store.read(statement.where(*live))
    return Session(*tuple(found[0])) if found else None


def sign_out(store: Store, cookie: str) -> None:
    """End the session of a cookie."""
    with store.writing() as connection:
        connection.execute(sa.delete(sessions).where(sessions.c.key == _hash(cookie)))


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
