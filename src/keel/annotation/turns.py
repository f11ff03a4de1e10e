"""A turn: one rater at one task, its row in the store, and the answers in the order in which that rater sees them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from keel.annotation.verdicts import places_of
from keel.errors import InputError
from keel.records import Answer, Prompt
from keel.store.rows import stored_answer, stored_prompt
from keel.store.schema import answers, prompts, shown, tasks, turns

TaskKind = Literal["pair", "score", "ranking"]

LEASED, EXPIRED, JUDGED, SKIPPED, FLAGGED = "leased", "expired", "judged", "skipped", "flagged"
"""States of a turn."""


class GoneError(InputError):
    """Error for a turn or task that is unknown or no longer open, such as one that expired and others took."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A task that a rater holds: the answers in the order shown, the first one left."""

    key: str
    task: int
    kind: TaskKind
    prompt: Prompt
    answers: tuple[Answer, ...]
    dimension: str
    """The dimension asked about; empty: all of the rubric's."""
    seconds_left: float
    said: Mapping[str, Any] | None = None
    """Verdicts by dimension from before they were undone."""


def _row(connection: sa.Connection, *which: sa.ColumnElement[bool]) -> sa.Row[Any] | None:
    """Return one turn joined with its task and prompt."""
    columns = tasks.c.kind, tasks.c.dimension, tasks.c.gold, prompts.c.content, prompts.c.chat
    joined = sa.select(turns, *columns).join(tasks, tasks.c.id == turns.c.task)
    return connection.execute(joined.join(prompts, prompts.c.key == tasks.c.prompt).where(*which)).first()


def row_of(connection: sa.Connection, rater: str, key: str) -> sa.Row[Any]:
    """Return a rater's turn by its key; `GoneError` if there is none."""
    row = _row(connection, turns.c.key == key, turns.c.rater == rater)
    if row is None:
        raise GoneError("you do not hold this task; go on with the next one")
    return row


def update_of(task: int, rater: str) -> sa.Update:
    """Return an UPDATE of a rater's turn at a task; the caller adds the values."""
    return sa.update(turns).where(turns.c.task == task, turns.c.rater == rater)


def change(connection: sa.Connection, task: int, rater: str, **values: Any) -> None:
    """Change columns of a rater's turn at a task."""
    connection.execute(update_of(task, rater).values(**values))


def turn_of(connection: sa.Connection, task: int, rater: str, now: float) -> Turn:
    """Return a rater's turn at a task as the page needs it."""
    row = _row(connection, turns.c.task == task, turns.c.rater == rater)
    assert row is not None
    return shown_turn(connection, row, now)


def shown_turn(connection: sa.Connection, row: sa.Row[Any], now: float) -> Turn:
    """Return the turn of a row as the page needs it."""
    said = json.loads(row.said) if row.said else None
    seen, left = as_shown(connection, row), row.expires - now
    return Turn(row.key, row.task, row.kind, stored_prompt(row), seen, row.dimension, left, said)


def answers_of(connection: sa.Connection, task: int) -> list[Answer]:
    """Return a task's answers in its own order."""
    columns = (c.label(f"a_{c.name}") for c in answers.columns)
    statement = sa.select(*columns).join(shown, shown.c.answer == answers.c.key).where(shown.c.task == task)
    return [stored_answer(row, "a") for row in connection.execute(statement.order_by(shown.c.place))]


def as_shown(connection: sa.Connection, row: sa.Row[Any]) -> tuple[Answer, ...]:
    """Return the answers of a turn in the order in which its rater sees them."""
    given = answers_of(connection, row.task)
    return tuple(given[place] for place in places_of(row.order))
