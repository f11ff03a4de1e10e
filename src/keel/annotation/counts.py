"""Counts of turns judged and wanted, by one rater and by all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from keel.annotation.turns import FLAGGED, JUDGED, SKIPPED
from keel.store.schema import ADJUDICATOR, tasks, turns

PLAIN_TASKS = tasks.c.gold == ""
"""Condition of a query: tasks without a known verdict (not gold)."""
BY_RATERS = ~turns.c.rater.endswith(ADJUDICATOR, autoescape=True)
"""Condition of a query: turns of raters, not of adjudicators."""


@dataclass(frozen=True, slots=True)
class CampaignProgress:
    """Progress of a rater and of the team; `total` sums the people wanted over all tasks except gold ones."""

    mine: int
    mine_today: int
    team: int
    total: int
    can_undo: bool


def judged_and_wanted() -> tuple[sa.ScalarSelect[Any], sa.ScalarSelect[Any]]:
    """Return two subqueries: turns that raters have judged, and turns wanted in all; both without gold tasks."""
    judged = (
        sa.select(sa.func.count()).select_from(turns).join(tasks).where(turns.c.state == JUDGED, PLAIN_TASKS, BY_RATERS)
    )
    wanted = sa.select(sa.func.coalesce(sa.func.sum(tasks.c.overlap), 0)).where(PLAIN_TASKS)
    return judged.scalar_subquery(), wanted.scalar_subquery()


def own_counts(connection: sa.Connection, rater: str, now: float) -> tuple[int, int, bool]:
    """Return how many turns a rater has judged, how many of them today, and whether there is one to undo."""
    midnight = now - now % 86_400
    count = sa.func.count()
    judged_by = turns.c.rater == rater, turns.c.state == JUDGED
    ended = sa.select(sa.literal(1)).where(turns.c.rater == rater, turns.c.state.in_((JUDGED, SKIPPED, FLAGGED)))
    columns: list[Any] = [
        sa.select(count).where(*judged_by).scalar_subquery(),
        sa.select(count).where(*judged_by, turns.c.done >= midnight).scalar_subquery(),
        sa.exists(ended),
    ]
    mine, today, undoable = tuple(connection.execute(sa.select(*columns)).one())
    return mine, today, bool(undoable)
