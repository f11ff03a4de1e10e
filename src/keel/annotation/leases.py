"""Leases of tasks: which task is next for a rater, and how many people each task still needs.

`wants` of a task counts those people. Handing the task out takes one; letting it go gives one back.
"""

from __future__ import annotations

import random
import secrets
from typing import Any

import sqlalchemy as sa

from keel.annotation.turns import EXPIRED, JUDGED, LEASED, update_of
from keel.store.schema import settings, shown, tasks, turns
from keel.store.store import Store

_LOOK = 500
"""Begun tasks that are searched for one that the rater has not had, before a fresh one is taken."""


def side_seed(store: Store) -> str:
    """Return the seed for the order of answers, drawn once for each store and kept in it."""
    with store.writing() as connection:
        found = connection.scalar(sa.select(settings.c.value).where(settings.c.name == "side seed"))
        if found is None:
            found = secrets.token_hex(8)
            connection.execute(sa.insert(settings).values(name="side seed", value=found))
    return str(found)


def sweep(connection: sa.Connection, now: float) -> None:
    """Take back turns that were held too long. One server at a time does this; others skip it."""
    if connection.dialect.name != "sqlite" and not connection.scalar(
        sa.text("SELECT pg_try_advisory_xact_lock(7355609)")
    ):
        return
    late = sa.update(turns).where(turns.c.state == LEASED, turns.c.expires < now).values(state=EXPIRED)
    for (task,) in connection.execute(late.returning(turns.c.task)).all():
        give_back(connection, task)


def give_back(connection: sa.Connection, task: int) -> None:
    """Open a place at a task again: it wants one more person. Gold tasks count nobody."""
    back = tasks.c.wants + 1
    connection.execute(sa.update(tasks).where(tasks.c.id == task, tasks.c.gold == "").values(wants=back))


def take(connection: sa.Connection, task: int) -> bool:
    """Fill a place at a task: it wants one person fewer. False if no place is open; gold tasks always have one."""
    one = sa.update(tasks).where(tasks.c.id == task, sa.or_(tasks.c.wants > 0, tasks.c.gold != ""))
    wants = sa.case((tasks.c.gold == "", tasks.c.wants - 1), else_=tasks.c.wants)
    return connection.execute(one.values(wants=wants, begun=True)).rowcount == 1


def pick_task(connection: sa.Connection, rater: str, gold_every: int) -> int | None:
    """Return the next task for a rater: now and then a gold one, else one that others have begun, else a fresh one."""
    count = sa.select(sa.func.count()).where(turns.c.rater == rater, turns.c.state == JUDGED)
    if (connection.scalar(count) or 0) % gold_every == gold_every // 2:
        gold = connection.scalar(_free(rater).where(tasks.c.gold != "").order_by(tasks.c.id).limit(1))
        if gold is not None:
            return int(gold)
    begun = tasks.c.wants > 0, tasks.c.begun
    looked = sa.select(tasks.c.id).where(*begun).order_by(tasks.c.id).limit(_LOOK)
    for free in (
        _free(rater).where(tasks.c.id.in_(looked), *begun),
        _free(rater).where(tasks.c.wants > 0, sa.not_(tasks.c.begun)),
        _free(rater).where(*begun),
    ):
        found = connection.scalar(free.order_by(tasks.c.id).limit(1).with_for_update(skip_locked=True))
        if found is not None:
            return int(found)
    return None


def _free(rater: str) -> sa.Select[Any]:
    """Select the tasks that a rater has not had, and those of their expired turns."""
    had = sa.exists().where(turns.c.task == tasks.c.id, turns.c.rater == rater, turns.c.state != EXPIRED)
    return sa.select(tasks.c.id).where(~had)


def hand_out(connection: sa.Connection, task: int, rater: str, now: float, until: float, seed: str) -> None:
    """Lease a task to a rater until a time; `seed` decides the order of the answers, the same in all their leases."""
    take(connection, task)
    again = {"state": LEASED, "expires": until}
    if connection.execute(update_of(task, rater).values(**again)).rowcount:
        return
    places = connection.scalar(sa.select(sa.func.count()).where(shown.c.task == task)) or 0
    fresh = {"key": secrets.token_hex(16), "order": _order(seed, task, rater, places), "made": now}
    blank = {"said": "", "settled": "", "judgments": "", "note": ""}
    connection.execute(sa.insert(turns).values(task=task, rater=rater, **again, **fresh, **blank))


def _order(seed: str, task: int, rater: str, places: int) -> str:
    """Return the order of the answers for this rater: a permutation drawn with the store's seed."""
    order = list(range(places))
    random.Random(f"{seed} {task} {rater}").shuffle(order)
    return ",".join(map(str, order))
