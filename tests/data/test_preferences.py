"""How judgments become pairs: what most raters say, and what answers have in common."""

from __future__ import annotations

import pytest

from keel.data.preferences import derive
from keel.records import Answer, Judgment, Preference, Ranking, Score


def votes(outcomes: str) -> list[Judgment]:
    """`1` first, `2` second, `0` tie, `x` both bad: one rater each."""
    words = {"1": "first", "2": "second", "0": "tie", "x": "both_bad"}
    answers = Answer("a"), Answer("b")
    return [Judgment("p", answers, Preference(words[o]), rater=f"r{i}") for i, o in enumerate(outcomes)]


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ("111", "a"),
        ("122", "b"),
        ("110", "a"),
        ("100", "tie"),  # two of three see no difference
        ("200", "tie"),
        ("2xx", "both bad"),
        ("20x", "tie"),
        ("012", "raters split evenly"),
        ("12", "raters split evenly"),
        ("10", "a"),
        ("000", "tie"),
        ("xx", "both bad"),
        ("11200", "a"),
        ("1000", "tie"),
    ],
)
def test_what_most_raters_say(outcomes, expected):
    derived = derive(votes(outcomes))
    if expected in ("a", "b"):
        assert [pair.chosen for pair in derived.pairs] == [expected]
        assert not derived.neutral
    else:
        assert derived.pairs == []
        assert derived.neutral == {expected: 1}


def test_scores_in_different_dimensions_are_no_contest_and_are_counted():
    judgments = [
        Judgment("p", (Answer("a"),), Score(1), rater="r", dimension="tone"),
        Judgment("p", (Answer("b"),), Score(2), rater="r", dimension="length"),
    ]
    derived = derive(judgments)
    assert (derived.pairs, derived.neutral) == ([], {"answers scored in different dimensions": 1})


def test_a_pair_knows_which_answers_were_cut_and_who_wrote_them():
    answers = Answer("a", model="one", truncated=True), Answer("b", model="two"), Answer("c")
    shown = [Judgment("p", (answers[0], answers[1]), Preference("second"))]
    (pair,) = derive(shown).pairs
    assert (pair.chosen, pair.cut, pair.writers) == ("b", (False, True), "one and two")
    (pair,) = derive([Judgment("p", (answers[2], answers[0]), Preference("second"))]).pairs
    assert (pair.chosen, pair.cut, pair.writers) == ("a", (True, False), "one")
    ranked = derive([Judgment("p", answers, Ranking((2, 1, 3)))]).pairs
    assert [(p.chosen, p.rejected, p.cut) for p in ranked] == [
        ("b", "a", (False, True)),
        ("a", "c", (True, False)),
        ("b", "c", (False, False)),
    ]
    scored = [Judgment("p", (answer,), Score(i), rater="r") for i, answer in enumerate(answers)]
    assert [(p.chosen, p.cut) for p in derive(scored).pairs] == [
        ("b", (False, True)),
        ("c", (False, True)),
        ("c", (False, False)),
    ]
