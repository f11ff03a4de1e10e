"""What gives the better answer away: planted laws are found again, and nothing is found where nothing was planted."""

from __future__ import annotations

import random

import pytest

from keel.audit import cues
from keel.records import Pair


def laid_out(better, pairs=2_000, prompts=None, seed=0):
    """Random answers of 1 to 200 letters; `better(first, second, rng)` says whether the first is the better one."""
    rng = random.Random(seed)
    made = []
    for i in range(pairs):
        first, second = ("x" * rng.randint(1, 200) for _ in range(2))
        chosen, rejected = (first, second) if better(first, second, rng) else (second, first)
        made.append(Pair(f"prompt {i % (prompts or pairs)}", chosen, rejected))
    return made


def longer_with(p):
    return lambda a, b, rng: (len(a) > len(b)) == (rng.random() < p)


def cue(pairs, name="longer"):
    return next(found for found in cues.cues(pairs) if found.name == name)


def test_longer_answers_win_as_often_as_planted():
    pairs = laid_out(longer_with(0.7))
    for found in (cue(pairs).more, cues.length_only(pairs)):
        assert found.low < 0.7 < found.high
        assert found.high - found.low < 0.05


def test_lengths_that_say_nothing():
    pairs = laid_out(lambda a, b, rng: rng.random() < 0.5)
    for found in (cue(pairs).more, cues.length_only(pairs)):
        assert found.low < 0.5 < found.high


def test_a_liked_length_in_the_middle_is_seen_by_lengths_and_not_by_longer():
    pairs = laid_out(lambda a, b, rng: abs(len(a) - 100) < abs(len(b) - 100))
    longer = cue(pairs).more
    assert longer.low < 0.5 < longer.high
    assert cues.length_only(pairs).low > 0.8


def test_lengths_are_judged_on_unseen_prompts():
    """Each prompt has a liked length of its own, which one only knows who has seen the prompt's other pairs."""
    right = []
    for seed in range(8):
        rng = random.Random(seed)
        two = [["x" * n for n in rng.sample(range(1, 200), 2)] for _ in range(6)]
        right.append(cues.length_only([Pair(f"prompt {i}", *both) for i, both in enumerate(two)] * 20).mean)
    assert sum(right) / len(right) < 0.7


def test_few_prompts_are_not_split_in_five():
    assert cues.length_only(laid_out(longer_with(1.0), pairs=40, prompts=4)) is None
    assert cues.length_only(laid_out(longer_with(1.0), pairs=40, prompts=5)) is not None


def test_sides_swapped_turn_every_cue_round():
    pairs = laid_out(longer_with(0.8), pairs=300)
    swapped = [Pair(p.prompt, p.rejected, p.chosen) for p in pairs]
    for one, other in zip(cues.cues(pairs), cues.cues(swapped), strict=True):
        assert one.right.mean == pytest.approx(1 - other.right.mean)
        assert (one.chosen, one.rejected, one.differ) == (other.rejected, other.chosen, other.differ)


@pytest.mark.parametrize(
    ("name", "has", "has_not"),
    [
        (
            "Markdown",
            ["# A title\nand text", "- one\n- two", "so **bold**", "`code` here", "1. first"],
            ["a - b", "2 * 3"],
        ),
        ("ends like a sentence", ["Yes.", "Really?!", 'he said "no."', "好。", "done. \n"], ["and then", "10 bears"]),
        ("begins with white space", [" yes", "\nno"], ["yes", ""]),
        ("ends with white space", ["yes ", "no\n"], ["yes"]),
    ],
)
def test_marks(name, has, has_not):
    for text in has:
        assert cues.CUES[name](text), text
    for text in has_not:
        assert not cues.CUES[name](text), text


def test_shares_and_guesses_by_a_mark():
    pairs = [Pair(f"{i}", " yes", "no") for i in range(6)] + [Pair("6", "yes", " no"), Pair("7", " a", " b")]
    found = cue(pairs, "begins with white space")
    assert (found.chosen, found.rejected, found.differ) == (7 / 8, 2 / 8, 7)
    assert found.more.mean == pytest.approx(6 / 7)
    assert found.right.mean == pytest.approx((6 + 0.5) / 8)


def test_answers_cut_at_a_limit_are_a_mark():
    pairs = [Pair(f"{i}", "a", "b", cut=(False, i % 2 == 0)) for i in range(10)]
    found = cue(pairs, cues.CUT)
    assert (found.chosen, found.rejected, found.differ, found.more.mean) == (0.0, 0.5, 5, 0.0)


def test_steps_of_length_add_up_and_rise_where_planted():
    """The longer wins only where it is more than twice as long."""
    far = lambda a, b: max(len(a), len(b)) > 2 * min(len(a), len(b))  # noqa: E731
    pairs = laid_out(lambda a, b, rng: (len(a) > len(b)) if far(a, b) else rng.random() < 0.5)
    steps = cues.by_difference(pairs)
    assert sum(step.pairs for step in steps) == sum(len(p.chosen) != len(p.rejected) for p in pairs)
    for step in steps:
        inside = [p for p in pairs if step.low < max(r := len(p.chosen) / len(p.rejected), 1 / r) <= step.high]
        assert step.pairs == len(inside)
        assert step.longer_wins.mean == pytest.approx(
            sum(len(p.chosen) > len(p.rejected) for p in inside) / len(inside)
        )
    assert [step.longer_wins.mean > 0.9 for step in steps] == [False] * 4 + [True] * 2


def test_intervals_count_prompts():
    many = cue(laid_out(longer_with(0.7), pairs=900)).more
    few = cue(laid_out(longer_with(0.7), pairs=900, prompts=30)).more
    assert few.n == 30
    assert few.high - few.low > 4 * (many.high - many.low)
