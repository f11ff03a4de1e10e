"""How judgments become pairs: what most raters say, and what answers have in common."""

from __future__ import annotations

import pytest

from keel.data.derive import derive
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


def scores(rater, *given, dimension="overall"):
    """`("a", 1), ("b", 2)`: a rater's scores in the order in which they came."""
    return [Judgment("p", (Answer(text),), Score(value), rater=rater, dimension=dimension) for text, value in given]


def test_of_two_scores_of_one_answer_the_last_counts():
    """A change of mind, whichever answer it is about; another rater's score of the answer is none."""
    assert outcome(scores("ana", ("a", 1), ("b", 2), ("a", 4))) == [("a", 2.0)]
    assert outcome(scores("ana", ("a", 3), ("b", 1), ("b", 7))) == [("b", 4.0)]
    assert outcome(scores("ana", ("a", 1), ("b", 2)) + scores("ben", ("a", 4))) == [("b", 1.0), "one answer alone"]


def test_scores_are_averaged_over_the_dimensions_in_which_both_have_one():
    tone = scores("ana", ("a", 1), ("b", 2), dimension="tone")
    facts = scores("ana", ("a", 5), ("b", 1), dimension="facts")
    length = scores("ana", ("b", 9), dimension="length")
    assert outcome(tone + facts + length) == [("a", 1.5)]  # (4 - 1) / 2


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


# --- dimensions -----------------------------------------------------------------------------------


def said(rater, kind="person", **dimensions):
    """`tone="a2"`: in tone, a is better by 2; `0` a tie, `x` both bad. Every second one is shown the other way."""
    found = []
    for i, (dimension, word) in enumerate(dimensions.items()):
        shown = "ab" if i % 2 == 0 else "ba"
        verdict = {"0": Preference("tie"), "x": Preference("both_bad")}.get(word) or Preference(
            "first" if word[0] == shown[0] else "second", float(word[1:])
        )
        answers = tuple(map(Answer, shown))
        found.append(Judgment("p", answers, verdict, rater=rater, kind=kind, dimension=dimension))
    return found


def outcome(judgments):
    """`("a", 2.0)` for each pair, then `why` for each contest that made none."""
    derived = derive(judgments)
    return [(pair.chosen, pair.margin) for pair in derived.pairs] + [
        why for why, count in derived.neutral.items() for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("dimensions", "expected"),
    [
        ({"tone": "a3", "facts": "b1"}, ("a", 1.0)),  # (3 - 1) / 2
        ({"tone": "a1", "facts": "b3"}, ("b", 1.0)),
        ({"tone": "a2", "facts": "a1"}, ("a", 1.5)),
        ({"tone": "a2", "facts": "b2"}, "tie"),
        ({"tone": "a2", "facts": "0"}, ("a", 1.0)),
        ({"tone": "b3", "facts": "x", "length": "0"}, ("b", 1.0)),
        ({"tone": "a0", "facts": "b0", "length": "b0"}, ("b", 0.0)),  # no grades: most of them, and no margin
        ({"tone": "a3", "facts": "b0"}, ("a", 0.0)),  # 3 against 1, and what has no grade leaves none
        ({"tone": "x", "facts": "x"}, "both bad"),
        ({"tone": "x", "facts": "0"}, "tie"),
        ({"tone": "0", "facts": "0"}, "tie"),
    ],
)
@pytest.mark.parametrize("rater", ["ana", ""])
def test_what_one_says_in_several_dimensions_is_one_vote(dimensions, expected, rater):
    assert outcome(said(rater, **dimensions)) == [expected]
    backwards = dict(reversed(dimensions.items()))
    assert outcome(said(rater, **backwards)) == [expected]


def test_overall_stands_above_other_dimensions():
    assert outcome(said("ana", tone="a3", facts="a3") + said("ana", overall="b1")) == [("b", 1.0)]


def test_raters_have_one_vote_each_however_many_dimensions_they_judged():
    """Ana's three words weigh no more than those of the two who prefer the other."""
    ana = said("ana", tone="a3", facts="a3", length="a3")
    others = said("ben", tone="b1", facts="b2") + said("cara", length="b3")
    assert outcome(ana + others) == [("b", 2.25)]  # the mean of 1.5 and 3
    assert outcome(others[:2] + ana) == ["raters split evenly"]
    mixed = [j for both in zip(ana, others, strict=True) for j in both]  # as they come from two browsers at once
    assert outcome(mixed) == [("b", 2.25)]


def test_an_adjudicators_words_are_one_word_and_the_last_in_each_dimension():
    raters = said("ana", tone="a3", facts="a3") + said("ben", tone="a2", facts="b1")
    first = said("lead (adjudicator)", "adjudicator", tone="a3", facts="a3")
    later = said("lead (adjudicator)", "adjudicator", tone="b2", facts="b1")
    assert outcome(raters + first) == [("a", 3.0)]
    assert outcome(raters + first + later) == [("b", 1.5)]
    assert outcome(raters + first + later[:1]) == [("a", 0.5)]  # b by 2, a by 3
    assert outcome(raters + said("lead (adjudicator)", "adjudicator", tone="x", facts="x")) == ["both bad"]


def test_an_adjudicator_of_one_dimension_leaves_the_others_to_the_raters():
    raters = said("ana", tone="a1", facts="a3") + said("ben", tone="b1", facts="a2")
    tone = said("lead (adjudicator)", "adjudicator", tone="b1")
    assert outcome(raters + tone) == [("a", 0.75)]  # ana 3 - 1, ben 2 - 1: 1 and 0.5
    assert outcome(said("ana", tone="a1") + said("ben", facts="a3") + tone) == [("a", 1.0)]  # ben's facts with his tone


def test_judgments_without_a_name_go_together_row_by_row():
    """Each row of a file says one thing in each dimension; two rows are two votes, and both make a pair."""
    rows = said("", tone="a3", facts="b1") + said("", tone="b1", facts="b1")
    assert outcome(rows) == [("a", 1.0), ("b", 1.0)]
    assert outcome(said("", tone="a1") + said("", tone="a2")) == [("a", 1.0), ("a", 2.0)]


def test_one_rater_is_no_majority_of_their_own():
    """Each of their votes is a pair, even where they contradict themselves; with a second rater most votes make one."""
    same, other = said("ana", overall="a1") + said("ana", overall="a2"), said("ana", overall="a1", tone="b3")
    assert outcome(same) == [("a", 1.0), ("a", 2.0)]
    assert outcome(said("ana", overall="a1") + said("ana", overall="b3")) == [("a", 1.0), ("b", 3.0)]
    assert outcome(same + said("ben", overall="a3")) == [("a", 2.0)]
    assert outcome(other) == [("a", 1.0)]


def test_who_was_asked_twice_has_two_votes():
    twice = said("ana", tone="a1", facts="b3") + said("ana", tone="b1", facts="b1")
    assert outcome(twice + said("ben", tone="a3")) == [("b", 1.0)]  # twice b by 1, once a


def test_rankings_in_several_dimensions_are_one_vote():
    answers = Answer("a"), Answer("b")
    ranked = [
        Judgment("p", answers, Ranking(ranks), rater="ana", dimension=str(i))
        for i, ranks in enumerate([(1, 2), (1, 2), (2, 1)])
    ]
    assert outcome(ranked) == [("a", 0.0)]
    assert outcome(ranked[1:]) == ["tie"]


def test_a_vote_that_is_partly_a_models_is_marked():
    judge = said("gpt", "judge", tone="a1", facts="a1")
    (pair,) = derive(judge + said("lead (adjudicator)", "adjudicator", tone="a3")).pairs
    assert (pair.ai, pair.margin) == (True, 2.0)
    (pair,) = derive(judge + said("lead (adjudicator)", "adjudicator", tone="a3", facts="a3")).pairs
    assert not pair.ai
    (pair,) = derive(said("", "person", tone="a1") + said("", "judge", facts="a1")).pairs
    assert pair.ai
