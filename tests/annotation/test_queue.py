"""The queue of tasks: nobody is handed what others hold, nothing is lost or doubled; on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from itertools import combinations

import pytest
import sqlalchemy as sa

from keel.annotation import accounts
from keel.annotation.queue import Queue
from keel.annotation.tasks import NewTask, tasks_of_store
from keel.annotation.turns import GoneError
from keel.annotation.verdicts import in_own_order
from keel.data.derive import derive
from keel.errors import InputError
from keel.records import Answer, Drawn, Preference, PromptRow, Ranking, Score
from keel.store import schema
from keel.store.store import Store


def pairs(count, gold=()):
    return [
        NewTask(
            f"prompt {i}",
            (Answer(f"left {i}", model="one"), Answer(f"right {i}", model="two")),
            gold={"overall": "first"} if i in gold else None,
        )
        for i in range(count)
    ]


@pytest.fixture
def store(store_source):
    with Store(store_source, create=True) as found:
        yield found


def first_of_task(turn):
    """The verdict that the task's own first answer ("left …") is better, on whichever side it stands."""
    return Preference("first" if turn.answers[0].text.startswith("left") else "second", 2)


def judge(queue, rater, turn=None, verdict=None):
    turn = turn or queue.next(rater)
    queue.judge(rater, turn.key, {"overall": verdict or first_of_task(turn)})
    return turn


def held(store):
    return [j for group in store.groups() for _, j in group]


# --- handing out ----------------------------------------------------------------------------------


def test_every_task_goes_to_one_person(store):
    queue = Queue(store)
    assert queue.add(pairs(6)) == 6
    had = defaultdict(list)
    for _ in range(3):
        for rater in ("ana", "ben"):
            had[rater].append(judge(queue, rater).task)
    assert sorted(had["ana"] + had["ben"]) == [1, 2, 3, 4, 5, 6]
    assert queue.next("ana") is None
    assert len(held(store)) == 6


def test_what_one_holds_is_what_one_is_asked_again(store):
    queue = Queue(store)
    queue.add(pairs(3))
    first, again = queue.next("ana"), queue.next("ana")
    assert (first.key, first.answers) == (again.key, again.answers)
    assert queue.next("ben").task != first.task


def test_overlap_goes_to_as_many_different_people_and_is_completed_first(store):
    queue = Queue(store)
    queue.add(pairs(4), overlap=2)
    ana = judge(queue, "ana").task
    assert judge(queue, "ben").task == ana
    third = judge(queue, "cara").task
    assert third != ana
    assert judge(queue, "ana").task == third
    for rater in ("ana", "ben", "cara", "ana", "ben", "cara", "dan"):
        if turn := queue.next(rater):
            judge(queue, rater, turn)
    by_prompt = Counter(j.prompt for j in held(store))
    assert set(by_prompt.values()) == {2}
    raters = defaultdict(list)
    for j in held(store):
        raters[j.prompt].append(j.rater)
    assert all(len(set(names)) == 2 for names in raters.values())


def test_one_person_alone_gets_every_task_once(store):
    queue = Queue(store)
    queue.add(pairs(12), overlap=3)
    assert len({judge(queue, "ana").task for _ in range(12)}) == 12
    assert queue.next("ana") is None


def test_asked_again_it_is_the_same_task_and_may_want_more_people(store):
    queue = Queue(store)
    assert queue.add(pairs(3)) == 3
    flipped = [NewTask(t.prompt, t.answers[::-1]) for t in pairs(3)]
    assert queue.add(flipped) == 0
    judge(queue, "ana")
    assert queue.add(pairs(4), overlap=2) == 1
    assert queue.progress("ana").total == 8
    assert judge(queue, "ben").task == 1


# --- sides ----------------------------------------------------------------------------------------


def test_sides_are_flipped_by_the_stores_seed_and_told_apart_by_rater(store):
    queue = Queue(store)
    queue.add(pairs(200), overlap=2)
    left = [judge(queue, rater).answers[0].text.startswith("left") for _ in range(200) for rater in ("ana", "ben")]
    assert 150 < sum(left) < 250
    orders = defaultdict(set)
    for j in held(store):
        orders[j.prompt].add(j.answers[0].text)
    assert 60 < sum(len(seen) == 2 for seen in orders.values()) < 140
    assert Queue(store).seed == queue.seed
    pairs_found = [p for group in store.groups() for p in derive([j for _, j in group]).pairs]
    assert all(p.chosen.startswith("left") for p in pairs_found)  # whatever the side
    assert len(pairs_found) == 200


@pytest.mark.parametrize(
    ("said", "order", "expected"),
    [
        ({"ranks": [1, 2, 3]}, "2,0,1", {"ranks": [2, 3, 1]}),  # what stood first is the task's third answer
        ({"ranks": [1, 1, 2, 3]}, "3,1,0,2", {"ranks": [2, 1, 3, 1]}),
        ({"ranks": [1, 2]}, "0,1", {"ranks": [1, 2]}),
        ({"outcome": "first", "strength": 3}, "1,0", {"outcome": "second", "strength": 3}),
        ({"outcome": "second"}, "1,0", {"outcome": "first"}),
        ({"outcome": "second", "strength": 1}, "0,1", {"outcome": "second", "strength": 1}),
        ({"outcome": "tie"}, "1,0", {"outcome": "tie"}),
        ({"outcome": "both_bad"}, "1,0", {"outcome": "both_bad"}),
        ({"value": 4}, "0", {"value": 4}),
    ],
)
def test_verdicts_are_turned_to_the_tasks_own_order(said, order, expected):
    """`order` holds the places of the task's answers as they were shown."""
    assert in_own_order(said, order) == expected


# --- leases ---------------------------------------------------------------------------------------


def test_a_lease_that_ran_out_goes_to_others_and_late_verdicts_are_refused(store, monkeypatch):
    queue = Queue(store, lease=60)
    queue.add(pairs(1))
    late = queue.next("ana")
    later(monkeypatch, 61)
    turn = queue.next("ben")
    assert turn.task == late.task
    judge(queue, "ben", turn)
    with pytest.raises(GoneError, match="time for this task was up"):
        judge(queue, "ana", late)
    assert [j.rater for j in held(store)] == ["ben"]


def test_a_late_verdict_counts_while_nobody_else_has_the_task(store, monkeypatch):
    queue = Queue(store, lease=60)
    queue.add(pairs(1), overlap=2)
    judge(queue, "ben")
    late = queue.next("ana")
    later(monkeypatch, 61)
    assert queue.next("ben") is None  # takes the lease back, and has nothing for one who has judged it
    judge(queue, "ana", late)
    assert {j.rater for j in held(store)} == {"ana", "ben"}
    assert queue.next("cara") is None


def test_asking_again_renews_the_lease(store, monkeypatch):
    """A page that is loaded again after 40 of 60 seconds has another 60, and nobody else gets its task."""
    queue = Queue(store, lease=60)
    queue.add(pairs(1))
    turn = queue.next("ana")
    later(monkeypatch, 40)
    assert queue.next("ana").seconds_left == pytest.approx(60, abs=1)
    later(monkeypatch, 40)
    assert queue.next("ben") is None
    judge(queue, "ana", turn)
    assert [j.rater for j in held(store)] == ["ana"]


def later(monkeypatch, seconds):
    now = time.time()
    monkeypatch.setattr("keel.annotation.queue.time.time", lambda: now + seconds)
    return now


# --- judging, skipping, undoing -------------------------------------------------------------------


def test_judging_twice_with_one_key_is_judging_once(store):
    queue = Queue(store)
    queue.add(pairs(1), overlap=2)
    turn = judge(queue, "ana")
    judge(queue, "ana", turn)
    with pytest.raises(GoneError, match="already judged this task differently"):
        judge(queue, "ana", turn, Preference("tie"))
    assert len(held(store)) == 1
    assert queue.progress("ana").team == 1
    assert judge(queue, "ben").task == turn.task


def test_the_team_s_count_keeps_up_with_this_server(store):
    queue = Queue(store, gold_every=2)
    queue.add(pairs(6, gold=(4, 5)))
    assert queue.progress("ana").team == 0
    turns = [judge(queue, "ana") for _ in range(6)]
    assert len({turn.task for turn in turns}) == 6
    assert queue.progress("ana").team == 4  # gold ones count for nobody
    assert [queue.undo("ana") and queue.progress("ana").team for _ in range(6)][-1] == 0


def test_progress_counts_what_was_judged_today_and_ever(store, monkeypatch):
    queue = Queue(store)
    queue.add(pairs(4), overlap=2)
    judge(queue, "ana")
    later(monkeypatch, 86_400)
    judge(queue, "ana")
    queue.skip("ben", queue.next("ben").key)
    ana, ben, cara = (queue.progress(name) for name in ("ana", "ben", "cara"))
    assert (ana.mine, ana.mine_today, ana.can_undo) == (2, 1, True)
    assert (ben.mine, ben.mine_today, ben.can_undo) == (0, 0, True)
    assert (cara.mine, cara.mine_today, cara.can_undo) == (0, 0, False)
    assert {(one.team, one.total) for one in (ana, ben, cara)} == {(2, 8)}


def test_a_key_of_somebody_else_is_refused(store):
    queue = Queue(store)
    queue.add(pairs(2))
    turn = queue.next("ana")
    for attempt in (
        lambda: judge(queue, "ben", turn),
        lambda: queue.skip("ben", turn.key),
        lambda: queue.skip("ana", "0"),
    ):
        with pytest.raises(GoneError, match="do not hold this task"):
            attempt()


def test_what_is_skipped_or_flagged_goes_to_others(store):
    queue = Queue(store)
    queue.add(pairs(2))
    skipped = queue.next("ana")
    queue.skip("ana", skipped.key)
    flagged = queue.next("ana")
    queue.flag("ana", flagged.key, "the prompt is empty")
    assert queue.next("ana") is None
    assert {judge(queue, "ben").task for _ in range(2)} == {skipped.task, flagged.task}
    with pytest.raises(GoneError, match="skipped"):
        judge(queue, "ana", skipped)


def test_undo_takes_back_the_last_word_and_brings_it_again(store):
    queue = Queue(store)
    queue.add(pairs(3))
    one, two = judge(queue, "ana"), judge(queue, "ana", verdict=Preference("tie"))
    waiting = queue.next("ana")
    undone = queue.undo("ana")
    assert (undone.key, undone.answers, undone.said) == (two.key, two.answers, {"overall": {"outcome": "tie"}})
    assert len(held(store)) == 1
    assert judge(queue, "ben").task == waiting.task  # it went back to the queue
    judge(queue, "ana", undone)
    assert {(j.prompt, j.verdict.outcome == "tie") for j in held(store) if j.rater == "ana"} == {
        (one.prompt, False),
        (two.prompt, False),
    }
    with pytest.raises(GoneError, match="nothing to undo"):
        queue.undo("cara")


def test_undo_of_a_skip(store):
    queue = Queue(store)
    queue.add(pairs(1))
    turn = queue.next("ana")
    queue.skip("ana", turn.key)
    assert queue.undo("ana").key == turn.key
    queue.skip("ana", turn.key)
    judge(queue, "ben")
    with pytest.raises(GoneError, match="others have taken"):
        queue.undo("ana")


def test_several_dimensions_scores_and_rankings(store):
    queue = Queue(store)
    answers = Answer("left a"), Answer("b"), Answer("c")
    queue.add([NewTask("p", answers, "ranking"), NewTask("p", answers[:1], "score"), NewTask("p", answers[:2])])
    ranking, score, pair = (queue.next(name) for name in ("ana", "ben", "cara"))
    places = [["left a", "b", "c"].index(a.text) for a in ranking.answers]
    queue.judge("ana", ranking.key, {"overall": Ranking(tuple(1 + p for p in places))}, rubric="r1", comment="so")
    queue.judge("ben", score.key, {"helpful": Score(4), "true": Score(2)}, seconds=3.5)
    queue.judge("cara", pair.key, {"helpful": first_of_task(pair), "true": Preference("both_bad")})
    said = {(j.rater, j.dimension): j for j in held(store)}
    ranked = said["ana", "overall"]
    assert {a.text: rank for a, rank in zip(ranked.answers, ranked.verdict.ranks, strict=True)} == {
        "left a": 1,
        "b": 2,
        "c": 3,
    }
    assert (ranked.rubric, ranked.comment, ranked.kind) == ("r1", "so", "person")
    assert (said["ben", "helpful"].verdict, said["ben", "helpful"].seconds) == (Score(4), 3.5)
    assert said["cara", "true"].verdict == Preference("both_bad")
    queue.undo("ben")
    assert {j.rater for j in held(store)} == {"ana", "cara"}


# --- gold -----------------------------------------------------------------------------------------


def test_gold_comes_up_among_the_others_to_everybody(store):
    queue = Queue(store, gold_every=5)
    queue.add(pairs(40, gold=(38, 39)))
    assert queue.progress("ana").total == 38
    prompts = [judge(queue, "ana").prompt for _ in range(12)]
    assert [p in ("prompt 38", "prompt 39") for p in prompts] == [i in (2, 7) for i in range(12)]
    wrong = [queue.next("ben") for _ in range(1)]
    judge(queue, "ben", wrong[0])
    judge(queue, "ben")
    turn = queue.next("ben")
    assert turn.prompt == "prompt 38"
    flipped = {"first": "second", "second": "first"}[first_of_task(turn).outcome]
    judge(queue, "ben", turn, Preference(flipped))
    rights = dict(tuple(row) for row in store.read(gold_rights()))
    assert rights == {"ana": 1.0, "ben": 0.0}


def test_gold_that_comes_later_in_the_other_order_is_turned(store):
    """The known verdict names "left", which stands second in what brings it and first in the task."""
    queue = Queue(store, gold_every=1)
    (task,) = pairs(1)
    queue.add([task], overlap=3)
    judge(queue, "ana")
    turn = queue.next("ben")
    wrong = {"first": "second", "second": "first"}[first_of_task(turn).outcome]
    judge(queue, "ben", turn, Preference(wrong, 1))
    assert queue.add([NewTask(task.prompt, task.answers[::-1], gold={"overall": "second"})]) == 1
    assert dict(tuple(row) for row in store.read(gold_rights())) == {"ana": 1.0, "ben": 0.0}
    assert Queue(store).next("cara") is None  # it fills no place in anybody's overlap any more
    assert queue.progress("ana").total == 0
    judge(queue, "cara")
    assert dict(tuple(row) for row in store.read(gold_rights())) == {"ana": 1.0, "ben": 0.0, "cara": 1.0}


def test_gold_counts_in_the_dimensions_that_were_asked(store):
    """Two are known; one task asks about one of them, the other about both, and a third of which nothing is known."""
    gold = {"tone": "first", "facts": "tie"}
    answers = Answer("left"), Answer("right")
    queue = Queue(store, gold_every=1)
    queue.add(
        [
            NewTask("one", answers, dimension="tone", gold=gold),
            NewTask("all", answers, gold=gold),
            NewTask("other", answers, dimension="length", gold=gold),
        ]
    )
    rights = {}
    for _ in range(3):
        turn = queue.next("ana")
        asked = [turn.dimension] if turn.dimension else ["tone", "facts", "length"]
        queue.judge("ana", turn.key, {name: first_of_task(turn) for name in asked})
        rights[turn.prompt] = store.read(sa.select(schema.turns.c.right).where(schema.turns.c.task == turn.task))[0][0]
    assert rights == {"one": 1.0, "all": 0.5, "other": None}


def gold_rights():

    turns = schema.turns
    return (
        sa.select(turns.c.rater, sa.func.avg(turns.c.right)).where(turns.c.right.is_not(None)).group_by(turns.c.rater)
    )


# --- from the store, by many at once, and migrations ----------------------------------------------


def test_every_two_answers_of_a_store_that_differ(store):
    drawn = [Answer(text, model="m", draw=i) for i, text in enumerate(("a", "b", "a", "c "))]
    store.add_answers([(PromptRow("one"), drawn), (PromptRow("two"), drawn[:1])])
    found = [frozenset(a.text for a in task.answers) for task in tasks_of_store(store)]
    assert Counter(found) == {frozenset("ab"): 1, frozenset(("a", "c ")): 1, frozenset(("b", "c ")): 1}
    assert Queue(store).add(tasks_of_store(store)) == 3
    assert [len(task.answers) for task in tasks_of_store(store, "ranking")] == [3]
    assert Counter(task.prompt for task in tasks_of_store(store, "score")) == {"one": 3, "two": 1}


def test_answers_that_differ_beside_their_text_are_asked_about_and_come_back(store):
    calls = [Answer("", "m", fields={"tool_calls": [{"n": n}]}, drawn=Drawn("f", (n,))) for n in (1, 2)]
    store.add_answers([(PromptRow("p"), [*calls, Answer(" ", "m")])])
    queue = Queue(store)
    assert queue.add(tasks_of_store(store)) == 3
    seen = [queue.next(rater).answers for rater in "abc"]
    assert {frozenset(map(repr, some)) for some in seen} == {
        frozenset(map(repr, some)) for some in combinations([*calls, Answer(" ", "m")], 2)
    }


def test_many_raters_at_once_lose_and_double_nothing(store_source):
    tasks, people_at_once, overlap = 120, 8, 2
    with Store(store_source, create=True) as store:
        Queue(store).add(pairs(tasks), overlap=overlap)

    def work(name):
        with Store(store_source) as mine:
            queue = Queue(mine)
            while turn := queue.next(name):
                judge(queue, name, turn)

    workers = [threading.Thread(target=work, args=(f"r{i}",)) for i in range(people_at_once)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with Store(store_source) as store:
        raters = defaultdict(list)
        for j in held(store):
            raters[j.prompt].append(j.rater)
        assert len(raters) == tasks
        assert all(len(names) == overlap == len(set(names)) for names in raters.values())


# --- people ---------------------------------------------------------------------------------------


def test_tokens_open_sessions_until_they_are_revoked(store, store_source):
    token = accounts.add(store, "ana", "admin")
    cookie, session = accounts.sign_in(store, token)
    assert (session.name, session.role) == ("ana", "admin")
    assert accounts.session_of(store, cookie) == session
    assert accounts.sign_in(store, token + "x") is None
    assert accounts.session_of(store, cookie + "x") is None
    accounts.revoke(store, "ana")
    assert accounts.session_of(store, cookie) is None
    assert accounts.sign_in(store, token) is None
    other = accounts.add(store, "ana")
    assert other != token
    assert accounts.session_of(store, cookie) is None  # a new token opens no session of old
    again, _ = accounts.sign_in(store, other)
    assert accounts.session_of(store, again).role == "rater"


def test_sessions_end(store, monkeypatch):
    cookie, _ = accounts.sign_in(store, accounts.add(store, "ana"))
    accounts.sign_out(store, cookie)
    assert accounts.session_of(store, cookie) is None
    cookie, _ = accounts.sign_in(store, accounts.add(store, "ben"))
    now = time.time()
    monkeypatch.setattr("keel.annotation.accounts.time.time", lambda: now + accounts.SESSION + 1)
    assert accounts.session_of(store, cookie) is None


def test_only_hashes_are_kept(tmp_path):
    with Store(f"store:{tmp_path}/s.db", create=True) as store:
        token = accounts.add(store, "ana")
        cookie, session = accounts.sign_in(store, token)
    kept = b"".join(f.read_bytes() for f in tmp_path.iterdir())
    assert token.encode() not in kept
    assert cookie.encode() not in kept
    assert session.csrf.encode() in kept  # what the page shows is not what signs in


@pytest.mark.parametrize("name", ["", " ana", "a\nb", "x" * 61, "ana (adjudicator)"])
def test_names_that_are_refused(store, name):
    with pytest.raises(InputError, match="name"):
        accounts.add(store, name)


def test_accounts_are_not_doubled_or_guessed(store):
    accounts.add(store, "ana")
    with pytest.raises(InputError, match="already"):
        accounts.add(store, "ana")
    with pytest.raises(InputError, match="no rater 'ben'"):
        accounts.revoke(store, "ben")
    with pytest.raises(InputError, match="no role"):
        accounts.add(store, "ben", "boss")
    assert [(a.name, a.role, a.revoked) for a in accounts.everyone(store)] == [("ana", "rater", None)]
