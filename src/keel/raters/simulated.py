"""The embedded world's people as raters: they see a prompt and two answers and say which they prefer."""

from __future__ import annotations

import random
from collections.abc import Iterable

from keel import world
from keel.records import Answer, Judgment, Preference


def judge_pairs(
    pairs: Iterable[tuple[str, str, str]], population: world.Population, rng: random.Random
) -> list[Judgment]:
    """One vote per (prompt, first, second), each by a person drawn anew, ties included."""
    judgments = []
    for prompt, first, second in pairs:
        vote = world.vote(prompt, first, second, rng, population)
        answers = Answer(first), Answer(second)
        judgments.append(Judgment(prompt, answers, Preference(vote.outcome), rater=vote.rater, kind="simulated"))
    return judgments
