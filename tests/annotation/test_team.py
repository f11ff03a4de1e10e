"""What those who lead raters see: counted by hand beside it."""

from __future__ import annotations

import pytest
from sklearn.metrics import cohen_kappa_score

from keel.annotation import accounts, team
from keel.annotation.queue import Queue
from keel.annotation.tasks import NewTask
from keel.data.derive import derive
from keel.records import Answer, Preference, Ranking, Score
from keel.store import survey, upkeep
from keel.store.store import Store


@pytest.fixture
def store(store_source):
    with Store(store_source, create=True) as found:
        yield found


def tasks(count, gold=0):
    return [
        NewTask(f"p{i}", (Answer(f"left {i}"), Answer(f"right {i}")), gold={"overall": "first"} if i < gold else None)
        for i in range(count)
    ]


def say(queue, rater, outcome, strength=1, **options):
    """Judge the next task: `left` or `right` of the task's own order, wherever it stands."""
    turn = queue.next(rater)
    if outcome in ("left", "right"):
        outcome = "first" if turn.answers[0].text.startswith(outcome) else "second"
    strength = strength if outcome in ("first", "second") else 0
    queue.judge(rater, turn.key, {"overall": Preference(outcome, strength)}, **options)
    return turn


def test_totals(store):
    queue = Queue(store)
    queue.add(tasks(5), overlap=2)
    say(queue, "ana", "left")
    say(queue, "ben", "left")
    queue.skip("ana", queue.next("ana").key)
    queue.flag("ben", queue.next("ben").key, "why?")
    assert team.totals(store) == {"judged": 2, "wanted": 10, "tasks": 5, "skipped": 1, "flagged": 1}
    (flag,) = team.flags(store)
    assert (flag["rater"], flag["note"]) == ("ben", "why?")
    assert (flag["kind"], sorted(answer.text[:-2] for answer in flag["answers"])) == ("pair", ["left", "right"])


def test_workers(store):
    accounts.add(store, "ana")
    accounts.add(store, "zoe", "admin")
    queue = Queue(store, gold_every=2)
    queue.add(tasks(8, gold=2))
    for outcome, seconds in (("left", 2.0), ("left", 4.0), ("left", 9.0), ("right", 30.0)):
        say(queue, "ana", outcome, seconds=seconds)
    ana, zoe = team.workers(store)
    assert (ana.name, ana.role, ana.judged, ana.today, ana.per_hour, ana.median_seconds) == (
        "ana",
        "rater",
        4,
        4,
        4.0,
        6.5,
    )
    assert (ana.gold.mean, ana.gold.n) == (0.5, 2)  # the second and the fourth were gold; right was wrong
    assert 0 <= ana.last < 60
    assert (zoe.role, zoe.judged, zoe.gold, zoe.last, zoe.median_seconds) == ("admin", 0, None, None, None)


def test_a_worker_s_pace_is_that_of_the_last_hour_and_of_today(store, monkeypatch):
    """One judged yesterday at one, one today at nine and one at noon; then a task skipped."""
    queue = Queue(store)
    queue.add(tasks(4))
    noon = 86_400 * 20_000 + 43_200
    for now in (noon - 23 * 3_600, noon - 3 * 3_600, noon):
        monkeypatch.setattr("time.time", lambda now=now: float(now))
        say(queue, "ana", "left")
    queue.skip("ana", queue.next("ana").key)
    monkeypatch.setattr("time.time", lambda: noon + 60.0)
    (ana,) = team.workers(store)
    assert (ana.judged, ana.today, ana.per_hour, ana.skipped, ana.flagged, ana.last) == (3, 2, 1.0, 1, 0, 60.0)


def test_disagreements_are_decided_by_an_adjudicator(store):
    queue = Queue(store)
    queue.add(tasks(3), overlap=2)
    for left, right in (("left", "left"), ("left", "right"), ("tie", "both_bad")):
        say(queue, "ana", left, 3, comment="sources!")
        say(queue, "ben", right, 1)
    found = {d.prompt: d for d in team.disagreements(store)}
    assert set(found) == {"p1", "p2"}
    assert [a.text for a in found["p1"].answers] == ["left 1", "right 1"]
    assert sorted((v["rater"], v["outcome"], v.get("strength")) for v in found["p1"].verdicts) == [
        ("ana", "first", 3),
        ("ben", "second", 1),
    ]
    assert {v["rater"]: v["comment"] for v in found["p1"].verdicts} == {"ana": "sources!", "ben": ""}
    queue.adjudicate("zoe", found["p1"].task, {"overall": Preference("second", 2)}, comment="the left one is wrong")
    assert {d.prompt for d in team.disagreements(store)} == {"p2"}
    queue.adjudicate("zoe", found["p1"].task, {"overall": Preference("first", 2)})  # on second thoughts
    judged = [j for group in store.groups() for _, j in group if j.prompt == "p1"]
    assert sorted((j.rater, j.kind) for j in judged) == [
        ("ana", "person"),
        ("ben", "person"),
        ("zoe (adjudicator)", "adjudicator"),
    ]
    (pair,) = derive(judged).pairs
    assert (pair.chosen, pair.margin) == ("left 1", 2)
    assert team.totals(store)["judged"] == 6  # a decision is no rating


def test_an_adjudicators_word_makes_the_pair_and_no_agreement(store):
    queue = Queue(store)
    queue.add(tasks(1), overlap=2)
    say(queue, "ana", "left")
    say(queue, "ben", "left")
    (agreed,) = survey.agreement(survey.said_in_store(store))
    queue.adjudicate("zoe", 1, {"overall": Preference("tie")})
    judged = [j for group in store.groups() for _, j in group]
    assert derive(judged).pairs == []
    assert dict(derive(judged).neutral) == {"tie": 1}
    assert survey.agreement(survey.said_in_store(store)) == [agreed]
    assert survey.agreement(said for j in judged for said in survey.comparisons_of(j)) == [agreed]


def test_agreement_of_people_alone_is_scikit_learns(store):
    queue = Queue(store)
    queue.add(tasks(40), overlap=2)
    outcomes = ["left", "right", "tie", "left"]
    for i in range(40):
        say(queue, "ana", outcomes[i % 4])
        say(queue, "ben", outcomes[(i // 3) % 4])
    store_said = survey.agreement(survey.said_in_store(store, "person"))[0]
    signs = {"ana": [], "ben": []}
    for group in store.groups():
        for _, j in group:
            first = j.answers[0].text.startswith("left")
            sign = {"first": 1, "second": -1}.get(j.verdict.outcome, 0)
            signs[j.rater].append(sign if first else -sign)
    assert store_said.shared == 40
    assert store_said.agree.mean == pytest.approx(sum(a == b for a, b in zip(*signs.values(), strict=True)) / 40)
    # kappa counts values as the first rater saw them; both are compared in one order here as there
    assert -1 <= store_said.pairs[0][4] <= 1
    assert cohen_kappa_score(*signs.values()) == pytest.approx(store_said.pairs[0][4], abs=0.15)


def test_rankings_and_scores_disagree_too(store):
    queue = Queue(store)
    answers = tuple(Answer(text) for text in ("a", "b", "c"))
    queue.add([NewTask("r", answers, "ranking"), NewTask("s", answers[:1], "score")], overlap=2)
    for rater, best, value in (("ana", "a", 4), ("ben", "b", 4)):
        for _ in range(2):
            turn = queue.next(rater)
            if turn.kind == "ranking":
                verdict = Ranking(tuple(1 if a.text == best else 2 for a in turn.answers))
            else:
                verdict = Score(value)
            queue.judge(rater, turn.key, {"overall": verdict})
    (found,) = team.disagreements(store)
    assert found.kind == "ranking"
    assert sorted((v["rater"], v["ranks"]) for v in found.verdicts) == [("ana", [1, 2, 2]), ("ben", [2, 1, 2])]


def test_a_person_is_forgotten_with_account_and_turns_and_the_tasks_are_wanted_again(store):
    token = accounts.add(store, "ana", "adjudicator")
    cookie, _ = accounts.sign_in(store, token)
    queue = Queue(store)
    queue.add(tasks(2), overlap=2)
    say(queue, "ana", "left")
    say(queue, "ben", "right")
    queue.adjudicate("ana", 1, {"overall": Preference("tie")})
    assert upkeep.forget(store, "ana") == 2
    assert accounts.session_of(store, cookie) is None
    assert accounts.sign_in(store, token) is None
    assert [w.name for w in team.workers(store)] == ["ben"]
    assert {j.rater for group in store.groups() for _, j in group} == {"ben"}
    assert say(queue, "cara", "left").task == 1  # begun, and wanted again


def test_a_backup_holds_tasks_and_accounts_with_their_numbers(store, tmp_path):
    token = accounts.add(store, "ana")
    queue = Queue(store)
    queue.add(tasks(3))
    say(queue, "ana", "left")
    undone = queue.undo("ana")
    queue.judge("ana", undone.key, {"overall": Preference("tie")})
    upkeep.backup(store, tmp_path / "copy.db")
    with Store(f"store:{tmp_path}/copy.db") as copy:
        assert team.totals(copy) == team.totals(store)
        assert copy.identity() == store.identity()
        assert accounts.sign_in(copy, token) is not None
        assert say(Queue(copy), "ana", "left").task == 2
