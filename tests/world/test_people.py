"""Simulated people: noisy as stated, biased as stated, careless as stated."""

import math
import random
import statistics
from collections import Counter

import pytest

from keel.world import Population, Vote, all_prompts, mixed_quality, preference, utility, vote, write

SAFE = "it is raining and my child is four. what can we sing with my wet bear?"
GOOD = "you could sing old waltzes near the sofa. dry his wet fur first."
BAD = "you could cook pancakes near the roses. mend his torn seam first."


def shares(population: Population, first: str, second: str, n: int = 20_000) -> dict[str, float]:
    rng = random.Random("votes")
    counts = Counter(vote(SAFE, first, second, rng, population).outcome for _ in range(n))
    return {outcome: count / n for outcome, count in counts.items()}


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def test_votes_follow_bradley_terry_without_ties_and_carelessness() -> None:
    population = Population(temperature=0.3, length_bias=0.5, careless_share=0.0, tie_width=0.0)
    gain = utility(SAFE, GOOD).total - utility(SAFE, BAD).total
    longer = len(GOOD.split()) - len(BAD.split())
    expected = sigmoid(gain / 0.3 + 0.5 * longer / 10)
    assert shares(population, GOOD, BAD)["first"] == pytest.approx(expected, abs=0.015)
    assert shares(population, BAD, GOOD)["second"] == pytest.approx(expected, abs=0.015)


def test_ties_have_their_stated_width() -> None:
    population = Population(careless_share=0.0, tie_width=0.4)
    assert shares(population, GOOD, GOOD)["tie"] == pytest.approx(sigmoid(0.4) - sigmoid(-0.4), abs=0.015)


def test_careless_people_throw_coins_and_are_always_the_same_ones() -> None:
    rng = random.Random("careless")
    population = Population(careless_share=0.25, size=8)
    votes = [vote(SAFE, GOOD, BAD, rng, population) for _ in range(8000)]
    careless = [v for v in votes if v.careless]
    assert {v.rater for v in careless}.isdisjoint(v.rater for v in votes if not v.careless)
    assert len({v.rater for v in votes}) == 8
    assert len(careless) / len(votes) == pytest.approx(0.25, abs=0.02)
    assert statistics.mean(v.outcome == "first" for v in careless) == pytest.approx(0.5, abs=0.04)
    assert not any(v.outcome == "tie" for v in careless)


def test_a_single_voter_agrees_with_gold_about_nine_times_in_ten() -> None:
    rng = random.Random("agreement")
    agreements = []
    for prompt in rng.choices(all_prompts(), k=4000):
        first, second = (write(prompt, mixed_quality(rng, 0.5), rng) for _ in range(2))
        gain = utility(prompt, first).total - utility(prompt, second).total
        outcome = vote(prompt, first, second, rng).outcome
        if gain != 0.0 and outcome != "tie":
            agreements.append((outcome == "first") == (gain > 0.0))
    assert 0.85 <= statistics.mean(agreements) <= 0.93
    assert 0.01 <= 1 - len(agreements) / 4000 <= 0.10


def test_people_who_love_length_prefer_the_rambling_answer_that_gold_does_not() -> None:
    fillers = "life goes on. most clocks tick. years pass quickly. opinions differ widely. some people prefer cats."
    rambling = f"{GOOD} {fillers}"
    assert utility(SAFE, rambling).total < utility(SAFE, GOOD).total
    assert preference(SAFE, rambling, GOOD, Population()) < 0
    assert preference(SAFE, rambling, GOOD, Population(length_bias=2.5)) > 0


def test_votes_are_drawn_from_the_seed() -> None:
    first, again, other = (
        [vote(SAFE, GOOD, BAD, random) for _ in range(50)] for random in map(random.Random, (3, 3, 4))
    )
    assert first == again
    assert first != other
    assert isinstance(first[0], Vote)
    assert len({v.outcome for v in first}) > 1
    assert len({v.rater for v in first}) > 1


@pytest.mark.parametrize("arguments", [{"temperature": 0.0}, {"tie_width": -1.0}, {"careless_share": 1.5}, {"size": 0}])
def test_impossible_populations_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"temperature|careless"):
        Population(**arguments)  # type: ignore[arg-type]
