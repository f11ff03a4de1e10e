"""Forms of a turn's verdict: as its page sends it, in the task's own order, and as it is compared with gold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keel.records import MIRROR, Preference, Ranking, Score, Verdict


def verdicts_json(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """Return verdicts as they are kept with a turn, in the order shown."""
    return {dimension: verdict_json(verdict) for dimension, verdict in verdicts.items()}


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as the page sends it."""
    match verdict:
        case Preference(outcome, strength):
            return {"outcome": outcome} | ({"strength": int(strength)} if strength else {})
        case Score(value):
            return {"value": value}
        case Ranking(ranks):
            return {"ranks": list(ranks)}


def in_own_order(said: Mapping[str, Any], order: str) -> dict[str, Any]:
    """Return a verdict that the page sent, converted to the task's own order."""
    places = places_of(order)
    if "ranks" in said:
        return {"ranks": [rank for _, rank in sorted(zip(places, said["ranks"], strict=True))]}
    if "outcome" in said and places == [1, 0]:
        return {**said, "outcome": MIRROR.get(said["outcome"], said["outcome"])}
    return dict(said)


def places_of(order: str) -> list[int]:
    """Return the places of a task's answers in the order in which a rater sees them."""
    return [int(place) for place in order.split(",")]


def compared(verdict: Mapping[str, Any]) -> Any:
    """Return the part of a verdict that is compared with other raters' and with gold: all but its strength."""
    return next(verdict[name] for name in ("outcome", "value", "ranks") if name in verdict)


def share_right(gold: Mapping[str, Any], settled: Mapping[str, Any]) -> float | None:
    """Return the share of dimensions in which a verdict equals the known one; None if none is known."""
    asked = [dimension for dimension in gold if dimension in settled]
    return sum(settled[d] == gold[d] for d in asked) / len(asked) if asked else None
