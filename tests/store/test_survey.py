"""Agreement says the same whoever judged first and on whatever side answers were shown; oracles are other libraries."""

from __future__ import annotations

import random
from itertools import combinations

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from keel.annotation.queue import Queue
from keel.annotation.tasks import NewTask, tasks_of_store
from keel.records import Answer, Judgment, Origin, Preference, PromptRow, Ranking
from keel.store import survey
from keel.store.keys import row_key
from keel.store.store import Store

RATERS = "ana", "ben", "cara"
OUTCOMES = "first", "second", "tie", "both_bad"
TURNED = {"first": "second", "second": "first"}


def verdicts(tasks=40, seed=3):
    """An outcome of each rater for each task, in the task's own order: first more often than second, and some alike."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, size=tasks, p=(0.5, 0.25, 0.15, 0.1))
    return np.where(rng.random((3, tasks)) < 0.6, truth, rng.choice(4, size=(3, tasks)))


def expected(codes):
    """(alpha, kappas by pair of raters) by krippendorff and scikit-learn."""
    kappas = {(a, b): cohen_kappa_score(codes[i], codes[j]) for (i, a), (j, b) in combinations(enumerate(RATERS), 2)}
    return krippendorff.alpha(codes, level_of_measurement="nominal"), kappas


def judged(source, codes, order, seed):
    """A store in which people judged pairs, put in as the seed says, in this order of raters, sides by its own seed."""
    numbers = random.Random(seed).sample(range(codes.shape[1]), codes.shape[1])
    with Store(source, create=True) as store:
        queue = Queue(store)
        tasks = (NewTask(f"{i}?", (Answer(f"left {i}"), Answer(f"right {i}"))) for i in numbers)
        queue.add(tasks, overlap=3)
        for _ in numbers:
            for rater in order:
                turn = queue.next(rater)
                outcome = OUTCOMES[codes[RATERS.index(rater), int(turn.prompt[:-1])]]
                if turn.answers[0].text.startswith("right"):
                    outcome = TURNED.get(outcome, outcome)
                queue.judge(rater, turn.key, {"overall": Preference(outcome)})
        return survey.agreement(survey.said_in_store(store, "person"))


def test_who_judged_first_and_the_side_seed_change_no_figure(tmp_path):
    """Bit for bit the same, intervals included, and what other libraries say of the verdicts in the tasks' order."""
    codes = verdicts()
    found = [
        judged(f"store:{tmp_path}/{number}.db", codes, order, number)
        for number, order in enumerate([RATERS, RATERS[::-1], ("ben", "cara", "ana")])
    ]
    assert found[0] == found[1] == found[2]
    (one,) = found[0]
    alpha, kappas = expected(codes)
    assert one.shared == 40
    assert one.alpha.mean == pytest.approx(alpha)
    assert {(a, b): kappa for a, b, _, _, kappa in one.pairs} == pytest.approx(kappas)


def test_rankings_on_the_page_are_read_in_the_tasks_order(store_source):
    """Of three answers three contests each, in the order of the task."""
    rng = random.Random(1)
    ranks = {(i, rater): [rng.randint(1, 3) for _ in range(3)] for i in range(15) for rater in RATERS[:2]}
    with Store(store_source, create=True) as store:
        queue = Queue(store)
        queue.add((NewTask(f"{i}?", tuple(map(Answer, "abc")), "ranking") for i in range(15)), overlap=2)
        for i in range(15):
            for rater in RATERS[:2] if i % 2 else RATERS[1::-1]:
                turn = queue.next(rater)
                mine = ranks[int(turn.prompt[:-1]), rater]
                given = [mine["abc".index(answer.text)] for answer in turn.answers]
                levels = sorted(set(given))
                queue.judge(rater, turn.key, {"overall": Ranking(tuple(1 + levels.index(r) for r in given))})
        (one,) = survey.agreement(survey.said_in_store(store))
    both = (0, 1), (0, 2), (1, 2)
    codes = [
        [int(np.sign(ranks[i, rater][b] - ranks[i, rater][a])) for i in range(15) for a, b in both]
        for rater in RATERS[:2]
    ]
    assert one.shared == 45
    assert one.pairs[0][4] == pytest.approx(cohen_kappa_score(*codes))
    assert one.alpha.mean == pytest.approx(krippendorff.alpha(codes, level_of_measurement="nominal"))


@pytest.mark.parametrize("page_first", [False, True])
def test_a_file_keeps_its_order_beside_votes_on_the_page(store_source, page_first):
    """Two raters of a file and one on the page, whichever came first: all are read as the file's rows stand."""
    codes = verdicts(30, seed=5)
    answers = [(Answer(f"left {i}"), Answer(f"right {i}")) for i in range(30)]

    def bring(store):
        for rater, row in zip(RATERS, codes[:2], strict=False):
            found = [
                Judgment(
                    f"{i}?", answers[i], Preference(OUTCOMES[code]), rater=rater, origin=Origin("votes.csv", i + 1)
                )
                for i, code in enumerate(row)
            ]
            store.append((row_key(rater, judgment, 0), judgment) for judgment in found)

    with Store(store_source, create=True) as store:
        queue = Queue(store)
        if page_first:
            store.add_answers((PromptRow(f"{i}?"), both) for i, both in enumerate(answers))
        else:
            bring(store)
        queue.add(tasks_of_store(store))
        for _ in range(30):
            turn = queue.next("cara")
            outcome = OUTCOMES[codes[2, int(turn.prompt[:-1])]]
            if turn.answers[0].text.startswith("right"):
                outcome = TURNED.get(outcome, outcome)
            queue.judge("cara", turn.key, {"overall": Preference(outcome)})
        if page_first:
            bring(store)
        (one,) = survey.agreement(survey.said_in_store(store))
    alpha, kappas = expected(codes)
    assert one.alpha.mean == pytest.approx(alpha)
    assert {(a, b): kappa for a, b, _, _, kappa in one.pairs} == pytest.approx(kappas)


def test_the_interval_of_equal_verdicts_counts_things_not_pairs_of_raters():
    """Of three raters on forty things, with one who saw some more alone: forty are independent, not 120 pairs."""
    codes = verdicts()
    said = [
        survey.Said("overall", rater, bytes([thing]), float(code), False)
        for rater, row in zip(RATERS, codes, strict=True)
        for thing, code in enumerate(row)
    ]
    alone = [survey.Said("overall", "ana", bytes([100 + i]), 1.0, False) for i in range(20)]
    (one,) = survey.agreement(said + alone)
    equal = [bool(codes[i, at] == codes[j, at]) for at in range(40) for i, j in combinations(range(3), 2)]
    assert (one.things, one.shared, one.agree.n) == (60, 40, 40)
    assert one.agree.mean == pytest.approx(np.mean(equal))
    for end in (one.agree.low, one.agree.high):  # the rates whose score test just fails
        assert abs(one.agree.mean - end) == pytest.approx(1.96 * (end * (1 - end) / 40) ** 0.5, rel=1e-3)
