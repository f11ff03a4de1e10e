"""Simulated people: they know the gold utility, but err, like length and sometimes do not look.

A careful person prefers the first of two answers with the Bradley-Terry probability,

    P(first) = sigmoid((g1 - g2) / temperature + length_bias (words1 - words2) / LENGTH_UNIT)        without
    ties,

and sees a tie if the difference felt (the sigmoid's argument plus standard logistic noise) is smaller than `tie_width`.
A careless person tosses a coin.
"""

import math
import random
from dataclasses import dataclass
from typing import Final, Literal

from keel.world.gold import utility
from keel.world.prompts import WorldPrompt

_Outcome = Literal["first", "second", "tie"]

LENGTH_UNIT: Final = 10.0  # words


@dataclass(frozen=True)
class Population:
    """The voters and their reliability.

    temperature: gold difference that shifts the log-odds by one. length_bias: log-odds per ten more words; a
    positive one favours length. careless_share: share of people who toss coins. tie_width: difference felt, in
    log-odds, below which a careful person sees a tie. size: number of people.
    """

    temperature: float = 0.04
    length_bias: float = 0.1
    careless_share: float = 0.05
    tie_width: float = 0.15
    size: int = 40

    def __post_init__(self) -> None:
        if self.temperature <= 0.0 or self.tie_width < 0.0:
            raise ValueError("temperature must be positive and tie_width not negative")
        if not 0.0 <= self.careless_share <= 1.0 or self.size < 1:
            raise ValueError("careless_share lies in [0, 1] and a population has at least one person")

    @property
    def careless(self) -> int:
        """Return the number of careless people: the first ones by number."""
        return round(self.careless_share * self.size)


@dataclass(frozen=True)
class Vote:
    """One person's verdict on two answers to one prompt."""

    outcome: _Outcome
    rater: str
    careless: bool


def vote(
    prompt: WorldPrompt | str, first: str, second: str, rng: random.Random, population: Population | None = None
) -> Vote:
    """Return the verdict of a person drawn from the population on two answers."""
    people = population or Population()
    number = rng.randrange(people.size)
    rater = f"person-{number + 1:03d}"
    if number < people.careless:
        return Vote("first" if rng.random() < 0.5 else "second", rater, careless=True)
    felt = preference(prompt, first, second, people) + _logistic(rng)
    if abs(felt) < people.tie_width:
        return Vote("tie", rater, careless=False)
    return Vote("first" if felt > 0.0 else "second", rater, careless=False)


def preference(prompt: WorldPrompt | str, first: str, second: str, population: Population) -> float:
    """Return the log-odds that a careful person prefers the first answer if ties are not allowed."""
    gain = utility(prompt, first).total - utility(prompt, second).total
    longer = len(first.split()) - len(second.split())
    return gain / population.temperature + population.length_bias * longer / LENGTH_UNIT


def _logistic(rng: random.Random) -> float:
    """Draw standard logistic noise; a uniform draw of exactly 0 has no logit and is drawn again."""
    uniform = 0.0
    while uniform == 0.0:
        uniform = rng.random()
    return math.log(uniform / (1.0 - uniform))
