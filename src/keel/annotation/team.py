"""Figures for those who lead a team of raters: progress, the work of each rater, disagreements, flags."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from keel import stats
from keel.annotation.counts import BY_RATERS, PLAIN_TASKS, judged_and_wanted
from keel.annotation.turns import FLAGGED, JUDGED, SKIPPED, answers_of
from keel.annotation.verdicts import in_own_order
from keel.records import Answer, Prompt
from keel.stats import Estimate
from keel.store.rows import stored_prompt
from keel.store.schema import accounts, judgments, prompts, tasks, turns
from keel.store.store import Store


def totals(store: Store) -> dict[str, int]:
    """Return counts of turns judged and wanted and of tasks (gold left out), and of turns skipped or flagged."""
    n = sa.func.count()
    columns: list[Any] = [
        *judged_and_wanted(),
        sa.select(n).select_from(tasks).where(PLAIN_TASKS).scalar_subquery(),
        *(sa.select(n).where(turns.c.state == state).scalar_subquery() for state in (SKIPPED, FLAGGED)),
    ]
    row = tuple(store.read(sa.select(*columns))[0])
    return dict(zip(("judged", "wanted", "tasks", "skipped", "flagged"), map(int, row), strict=True))


@dataclass(frozen=True, slots=True)
class Worker:
    """One rater: how much they have done, how fast, and how often they agreed with a known verdict."""

    name: str
    role: str
    judged: int
    today: int
    per_hour: float
    """Turns judged in the last hour."""
    median_seconds: float | None
    gold: Estimate | None
    skipped: int
    flagged: int
    last: float | None
    """Seconds since they last did something."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for the page."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return plain | {"gold": self.gold.as_dict() if self.gold else None}


def workers(store: Store) -> list[Worker]:
    """Return everyone who has an account or has done something, by name."""
    now = time.time()
    done: dict[str, list[sa.Row[Any]]] = defaultdict(list)
    columns: list[Any] = [turns.c.rater, turns.c.state, turns.c.done, turns.c.seconds, turns.c.right]
    for row in store.stream(sa.select(*columns).where(turns.c.done.is_not(None), BY_RATERS)):
        done[row.rater].append(row)
    roles = {row.name: row.role for row in store.read(sa.select(accounts.c.name, accounts.c.role))}
    return [_worker(name, roles.get(name, ""), done[name], now) for name in sorted({*roles, *done})]


def _worker(name: str, role: str, rows: list[sa.Row[Any]], now: float) -> Worker:
    judged = [row for row in rows if row.state == JUDGED]
    seconds = [row.seconds for row in judged if row.seconds is not None]
    right = [row.right for row in judged if row.right is not None]
    return Worker(
        name,
        role,
        len(judged),
        sum(row.done >= now - now % 86_400 for row in judged),
        float(sum(row.done >= now - 3_600 for row in judged)),
        float(np.median(seconds)) if seconds else None,
        stats.rate(right) if right else None,
        sum(row.state == SKIPPED for row in rows),
        sum(row.state == FLAGGED for row in rows),
        min((now - row.done for row in rows), default=None),
    )


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A task with different verdicts; the answers and each verdict are in the task's own order."""

    task: int
    kind: str
    prompt: Prompt
    answers: list[Answer]
    verdicts: list[dict[str, Any]]
    """`rater`, `dimension`, the rater's `comment`, and the verdict in the fields that the page sends."""


def disagreements(store: Store, most: int = 50) -> Iterator[Disagreement]:
    """Yield disagreements that nobody has decided yet, the latest first."""
    counted = sa.func.count(), sa.func.count(sa.distinct(turns.c.settled))
    found = (
        sa.select(tasks.c.id, tasks.c.kind, prompts.c.content, prompts.c.chat)
        .join(turns, turns.c.task == tasks.c.id)
        .join(prompts, prompts.c.key == tasks.c.prompt)
        .where(turns.c.state == JUDGED, PLAIN_TASKS, BY_RATERS, sa.not_(tasks.c.adjudicated))
        .group_by(tasks.c.id, tasks.c.kind, prompts.c.content, prompts.c.chat)
        .having(counted[0] > 1, counted[1] > 1)
        .order_by(sa.func.max(turns.c.done).desc())
        .limit(most)
    )
    with store.reading() as connection:
        for row in connection.execute(found).all():
            said = sa.select(turns).where(turns.c.task == row.id, turns.c.state == JUDGED, BY_RATERS)
            verdicts = [
                one
                for turn in connection.execute(said.order_by(turns.c.done)).all()
                for one in _verdicts(connection, turn)
            ]
            yield Disagreement(row.id, row.kind, stored_prompt(row), answers_of(connection, row.id), verdicts)


def _verdicts(connection: sa.Connection, turn: sa.Row[Any]) -> Iterator[dict[str, Any]]:
    """Yield a turn's verdicts by dimension; its judgments all carry the same comment."""
    key = bytes.fromhex(turn.judgments.split(",")[0])
    comment = connection.scalar(sa.select(judgments.c.comment).where(judgments.c.key == key)) or ""
    for dimension, verdict in json.loads(turn.said).items():
        yield {
            "rater": turn.rater,
            "dimension": dimension,
            "comment": comment,
            **in_own_order(verdict, turn.order),
        }


def flags(store: Store, most: int = 100) -> list[dict[str, Any]]:
    """Return flagged turns, the latest first: `task`, `kind`, `rater`, `note`, `prompt`, `answers`."""
    columns: list[Any] = [turns.c.task, tasks.c.kind, turns.c.rater, turns.c.note, prompts.c.content, prompts.c.chat]
    statement = sa.select(*columns).join(tasks, tasks.c.id == turns.c.task)
    statement = statement.join(prompts, prompts.c.key == tasks.c.prompt).where(turns.c.state == FLAGGED)
    with store.reading() as connection:
        return [
            {
                **{name: getattr(row, name) for name in ("task", "kind", "rater", "note")},
                "prompt": stored_prompt(row),
                "answers": answers_of(connection, row.task),
            }
            for row in connection.execute(statement.order_by(turns.c.done.desc()).limit(most)).all()
        ]
