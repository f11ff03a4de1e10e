"""The embedded world's people as raters: they see a prompt and two answers and say which they prefer."""

from __future__ import annotations

import random
from collections.abc import Iterable

from keel import world
from keel.records import Judgment


def judge_pairs(
    pairs: Iterable[tuple[str, str, str]], population: world.Population, rng: random.Random
) -> list[Judgment]:
    """One vote per (prompt, first, second), each by a person drawn anew, ties included."""
    judgments = []
    for prompt, first, second in pairs:
        vote = world.vote(prompt, first, second, rng, population)
        judgments.append(Judgment(prompt, first, second, vote.outcome, vote.rater))
    return judgments
