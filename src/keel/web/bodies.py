"""Request bodies that pages send, and the check that turns one into a verdict."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from keel.errors import InputError
from keel.records import Preference, Ranking, Score, Verdict

GRADES = 5
"""Highest score; the lowest is 1."""


class RefusedError(InputError):
    """Error for a body that does not fit what was asked; the page shows its text to the reader."""


class Body(BaseModel):
    """Base of all bodies: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class SignInBody(Body):
    """A personal token."""

    token: Annotated[str, Field(max_length=200)]


class VerdictBody(Body):
    """A verdict in one dimension; which fields it has depends on the kind of task."""

    outcome: str | None = None
    strength: Annotated[int | None, Field(ge=1, le=3)] = None
    value: Annotated[int | None, Field(ge=1, le=GRADES)] = None
    ranks: Annotated[list[int] | None, Field(max_length=32)] = None


class JudgmentBody(Body):
    """A verdict in each dimension that was asked about."""

    verdicts: Annotated[dict[str, VerdictBody], Field(max_length=50)]
    comment: Annotated[str, Field(max_length=10_000)] = ""
    seconds: Annotated[float | None, Field(ge=0, le=86_400)] = None


class FlagBody(Body):
    """A note on what is wrong with a task."""

    note: Annotated[str, Field(max_length=10_000)] = ""


def checked_verdict(kind: str, said: VerdictBody, answers: int) -> Verdict:
    """Return a verdict as the store keeps it; `RefusedError` if it does not fit the kind of task."""
    given = {name for name in ("outcome", "strength", "value", "ranks") if getattr(said, name) is not None}
    if kind == "score" and given == {"value"}:
        assert said.value is not None
        return Score(float(said.value))
    if kind == "ranking" and given == {"ranks"}:
        assert said.ranks is not None
        if len(said.ranks) != answers or set(said.ranks) != set(range(1, max(said.ranks, default=0) + 1)):
            raise RefusedError(f"give {answers} ranks, from 1 and without gaps; equal ranks are ties")
        return Ranking(tuple(said.ranks))
    if kind == "pair" and said.outcome in ("first", "second") and given == {"outcome", "strength"}:
        return Preference("first" if said.outcome == "first" else "second", float(said.strength or 0))
    if kind == "pair" and said.outcome in ("tie", "both_bad") and given == {"outcome"}:
        return Preference("tie" if said.outcome == "tie" else "both_bad")
    raise RefusedError(f"this is not a verdict on a {kind} task; reload the page")
