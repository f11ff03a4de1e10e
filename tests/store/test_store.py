"""The store: nothing lost, nothing doubled, in SQLite and in a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from keel.annotation.queue import NewTask, Queue
from keel.data.derive import derive
from keel.errors import InputError
from keel.records import Answer, Drawn, Judgment, Origin, Preference, PromptRow, Ranking, Score
from keel.store import migrations, schema, survey, upkeep
from keel.store.keys import answer_id, prompt_id, row_key, said_key
from keel.store.rows import rows_of
from keel.store.schema import prompts, tasks, turns
from keel.store.store import Store

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wohin, Bär? 🐻"}]
DRAWN = Answer(" To the park.", "runs/sft", "3f2a", {"temperature": 0.8, "top_p": 1.0}, -3.25, 5, True, 3)
CALLING = Answer("", fields={"tool_calls": [{"function": {"name": "add", "arguments": {"b": 2, "a": 1}}}]})
IDS = replace(DRAWN, fields={"reasoning_content": "Hm, «2»."}, drawn=Drawn("9c1e", (17, 4, 2)))
PLAIN = Answer(" Nowhere.")
THIRD = Answer("")
EVERY_KIND = [
    Judgment(
        CHAT,
        (DRAWN, PLAIN),
        Preference("second", 2.5),
        rater="person-1",
        kind="person",
        dimension="helpfulness",
        rubric="9c1e",
        seconds=12.5,
        comment="it's «better»; DROP TABLE answers; --",
        raw='{"verdict": "B"}',
        extra={"worker": 7, "tags": ["a", None]},
        origin=Origin("votes.jsonl", 3),
    ),
    Judgment("2 + 2 =", (Answer(" 4"), Answer(" 5")), Preference("both_bad"), rater="gpt", kind="judge"),
    Judgment("2 + 2 =", (Answer(" 4"), Answer(" 4 ")), Preference("tie"), rater="rule", kind="rule"),
    Judgment("2 + 2 =", (Answer(" 4"),), Score(-0.125), rater="person-1", kind="person"),
    Judgment("2 + 2 =", (PLAIN, DRAWN, THIRD), Ranking((2, 1, 2)), rater="person-2", kind="person"),
]


def keyed(judgments: list[Judgment]) -> list[tuple[bytes, Judgment]]:
    return [(row_key("file", j, i), j) for i, j in enumerate(judgments)]


def held(store: Store) -> list[Judgment]:
    return [j for group in store.groups() for _, j in group]


def in_any_order(judgments: list[Judgment]) -> list[str]:
    return sorted(map(repr, judgments))


@pytest.fixture
def store(store_source):
    with Store(store_source, create=True) as store:
        yield store


def many(count: int, start: int = 0) -> list[Judgment]:
    """Four judgments a prompt."""
    return [
        Judgment(
            f"prompt {i // 4}",
            (Answer(f"answer {i} a"), Answer(f"answer {i} b, longer")),
            Preference("first" if i % 3 else "second", float(i % 4)),
            rater=f"person-{i % 5}",
            kind="person",
            origin=Origin("f", i),
        )
        for i in range(start, start + count)
    ]


# --- what is stored comes back --------------------------------------------------------------------


def test_every_kind_comes_back_as_it_was(store):
    assert store.append(keyed(EVERY_KIND)) == len(EVERY_KIND)
    assert in_any_order(held(store)) == in_any_order(EVERY_KIND)


WITH_MORE = [
    Judgment("2 + 2 =", (IDS, CALLING), Preference("first", 1.0), rater="ann"),
    Judgment("2 + 2 =", (CALLING, DRAWN, IDS), Ranking((1, 2, 2)), rater="ann"),
    Judgment(CHAT, (IDS,), Score(1.0), rater="ann"),
]


def test_what_an_answer_holds_beside_its_text_and_its_ids_come_back(store, tmp_path):
    """As it is judged, found, merged and backed up."""
    store.append(keyed(WITH_MORE))
    assert in_any_order(held(store)) == in_any_order(WITH_MORE)
    (found,) = store.answers_to(["2 + 2 ="], IDS)
    assert in_any_order(found) == in_any_order([DRAWN, IDS])
    upkeep.backup(store, tmp_path / "copy.db")
    with Store(f"store:{tmp_path}/copy.db") as copy, Store(f"store:{tmp_path}/other.db", create=True) as other:
        assert upkeep.merge(other, copy) == len(WITH_MORE)
        assert in_any_order(held(copy)) == in_any_order(held(other)) == in_any_order(WITH_MORE)


def test_what_is_beside_the_text_tells_answers_apart_and_ids_do_not(store):
    """The same answer with other ids is the one that is there, with its ids."""
    like = Answer("", "m")
    call, other = (replace(like, fields={"tool_calls": [{"n": n}]}) for n in (1, 2))
    again = replace(IDS, drawn=Drawn("9c1e", (17, 3, 1, 2)))
    store.add_answers([(PromptRow("p"), [like, call, other, IDS])])
    store.add_answers([(PromptRow("p"), [replace(call, drawn=Drawn("f", (1,))), again])])
    assert in_any_order(store.answers_to(["p"], like)[0]) == in_any_order([like, call, other])
    assert store.answers_to(["p"], IDS) == [[IDS]]


def test_the_order_of_fields_is_none():
    fields = {"tool_calls": [], "reasoning_content": "r"}
    turned = dict(reversed(fields.items()))
    assert answer_id(b"p" * 16, Answer("a", fields=fields)) == answer_id(b"p" * 16, Answer("a", fields=turned))


def test_a_prompt_is_one_group_in_the_order_in_which_it_was_judged(store):
    mixed = [many(40)[i] for i in (3, 17, 0, 5, 1, 18, 2, 16)]
    store.append(keyed(mixed))
    groups = [[j.origin.row for _, j in group] for group in store.groups()]
    assert sorted(groups) == [[3, 0, 1, 2], [5], [17, 18, 16]]


def test_the_same_prompts_and_answers_are_stored_once(store):
    store.append(keyed(many(8)))
    store.append([(said_key(j), j) for j in many(8)])
    found = survey.count_store(store)
    assert (found.prompts, found.answers, found.judgments) == (2, 16, 16)


def test_answers_are_found_by_prompt_writer_and_way_of_drawing(store):
    """In the order of their draws, whatever the order in which they came."""
    like = Answer("", "m", "3f2a", {"temperature": 0.5, "server": "http://h/v1"})
    drawn = [replace(like, text=f"{i}", draw=i, logp=-float(i), tokens=i) for i in (2, 0, 1)]
    others = [
        replace(drawn[0], model="n"),
        replace(drawn[0], model_hash="0000"),
        replace(drawn[0], sampling={"temperature": 0.6, "server": "http://h/v1"}),
        replace(drawn[0], sampling={"temperature": 0.5, "server": "http://i/v1"}),
        Answer("2"),
    ]
    store.add_answers([(PromptRow(CHAT), [*drawn, *others]), (PromptRow("Sun?"), drawn[:1])])
    found = store.answers_to(["Rain?", "Sun?", CHAT], replace(like, sampling=dict(reversed(like.sampling.items()))))
    assert found == [[], drawn[:1], [drawn[1], drawn[2], drawn[0]]]


def test_a_text_and_a_chat_of_that_text_are_two_prompts(store):
    as_text = '[{"role":"user","content":"hi"}]'
    both = [
        Judgment(p, (Answer("a"), Answer("b")), Preference("first"))
        for p in ([{"role": "user", "content": "hi"}], as_text)
    ]
    store.append(keyed(both))
    assert in_any_order(held(store)) == in_any_order(both)


# --- nothing twice, nothing lost ------------------------------------------------------------------


def test_what_is_known_is_not_added_again(store):
    assert store.append(keyed(many(30))) == 30
    assert store.append(keyed(many(50))) == 20
    assert len(held(store)) == 50


def test_a_rule_says_a_thing_once_and_a_person_may_say_it_twice(store):
    rule = Judgment("p", (Answer("a"), Answer("b")), Preference("first"), rater="rule", kind="rule")
    person = Judgment("p", (Answer("a"), Answer("b")), Preference("first"), rater="ann", kind="person")
    for _ in range(2):
        store.append([(said_key(rule), rule), (said_key(person), person)])
    assert sorted(j.rater for j in held(store)) == ["ann", "ann", "rule"]


WRITER = """
import sys
sys.path.insert(0, {here!r})
from test_store import keyed_rows
from keel.store.store import Store
with Store({source!r}, create=True) as store:
    print("ready", flush=True)
    print(store.append(keyed_rows({start}, {count})), flush=True)
"""


def keyed_rows(start: int, count: int) -> list[tuple[bytes, Judgment]]:
    """What a writer in a process of its own brings."""
    return [(row_key("file", j, 0), j) for j in many(count, start)]


def writer(source: str, start: int, count: int) -> subprocess.Popen[str]:
    code = WRITER.format(here=str(Path(__file__).parent), source=source, start=start, count=count)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_two_processes_write_at_once_and_lose_nothing(store_source):
    both = [writer(store_source, 0, 30_000), writer(store_source, 15_000, 30_000)]
    said = [process.communicate(timeout=300)[0].split()[-1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(map(int, said)) == 45_000
    with Store(store_source) as store:
        assert survey.count_store(store).judgments == 45_000
        assert sorted(j.origin.row for j in held(store)) == list(range(45_000))


def test_a_killed_import_loses_no_committed_row_and_doubles_none(store_source):
    Store(store_source, create=True).close()
    process = writer(store_source, 0, 60_000)
    with Store(store_source) as store:
        deadline = time.monotonic() + 120
        while (before := survey.count_store(store).judgments) == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        after = survey.count_store(store).judgments
        assert before <= after < 60_000
        assert after % 10_000 == 0  # whole transactions
        assert store.append(keyed_rows(0, 60_000)) == 60_000 - after
        assert sorted(j.origin.row for j in held(store)) == list(range(60_000))


def test_who_reads_keeps_nobody_from_writing(store, store_source):
    store.append(keyed_rows(0, 40))
    reading = store.groups()
    next(reading)
    with Store(store_source) as other:
        began = time.monotonic()
        assert other.append(keyed_rows(40, 10)) == 10
        assert time.monotonic() - began < 30  # a lock would be waited for for a minute
    assert sum(map(len, reading)) == 36  # the rest of what there was when it began


def test_what_is_read_in_a_snapshot_is_of_one_moment(store, store_source):
    store.append(keyed_rows(0, 40))
    with store.snapshot():
        before = survey.count_store(store), store.identity(), held(store)
        with Store(store_source) as other:
            other.append(keyed_rows(40, 10))
        assert (survey.count_store(store), store.identity(), held(store)) == before
    assert survey.count_store(store).judgments == len(held(store)) == 50


# --- changes of mind, and people who want to be forgotten -----------------------------------------


def test_what_is_retracted_stays_and_counts_nowhere(store):
    rows = keyed(many(4))
    store.append(rows)
    store.retract(rows[1][0], comment="misread")
    assert [j.origin.row for j in held(store)] == [0, 2, 3]
    assert survey.count_store(store).retracted == 1
    assert store.identity() | {"data_hash": ""} == {"data_hash": "", "judgments": 3, "judgment_ids": "1,3-4"}
    store.append(rows)  # the import again: it stays retracted
    assert [j.origin.row for j in held(store)] == [0, 2, 3]
    with pytest.raises(InputError, match="no judgment 00 to retract"):
        store.retract(b"\0")


def test_what_one_rater_said_of_some_prompts(store):
    said = many(40)
    store.append(keyed(said))
    store.retract(keyed(said)[5][0])
    asked = {prompt_id(f"prompt {i}") for i in (1, 3, 99)}
    expected = [said[i] for i in (4, 5, 6, 7, 12, 13, 14, 15) if i % 5 == 0 and i != 5]
    assert in_any_order(list(store.judgments_by("person-0", asked))) == in_any_order(expected)
    assert expected


def test_a_person_is_forgotten(store, store_source, tmp_path):
    secret = Judgment(
        "p",
        (Answer("a"), Answer("b")),
        Preference("first"),
        rater="Zbigniew-4711",
        kind="person",
        comment="my-own-words",
    )
    ranked = Judgment("p", (Answer("a"), Answer("b")), Ranking((1, 2)), rater="Zbigniew-4711", kind="person")
    store.append([(said_key(secret), secret), (said_key(ranked), ranked), *keyed(many(4))])
    store.retract(next(key for g in store.groups() for key, j in g if isinstance(j.verdict, Preference) and j.comment))
    assert upkeep.forget(store, "Zbigniew-4711") == 3  # two judgments and a retraction
    assert in_any_order(held(store)) == in_any_order(many(4))
    with pytest.raises(InputError, match="no rater 'Zbigniew-4711'; there are person-0, person-1"):
        upkeep.forget(store, "Zbigniew-4711")
    store.close()
    if store_source.startswith("store:"):
        left = b"".join(file.read_bytes() for file in tmp_path.glob("store.db*"))
        assert b"answer 0 a" in left
        assert b"Zbigniew" not in left
        assert b"my-own-words" not in left


def test_who_is_forgotten_leaves_their_tasks_to_others(store, monkeypatch):
    """Wanted again is what they judged or hold; not what they skipped or let expire and others did, nor gold."""
    queue = Queue(store, lease=60, gold_every=1)
    both = Answer("a"), Answer("b")
    queue.add([*(NewTask(f"{i}?", both) for i in range(1, 5)), NewTask("5?", both, gold={"overall": "tie"})])
    tie = {"overall": Preference("tie")}

    def asked(rater, number):
        turn = queue.next(rater)
        assert turn.prompt == f"{number}?"
        return turn.key

    for number in (5, 1):
        queue.judge("ana", asked("ana", number), tie)
    queue.skip("ana", asked("ana", 2))
    asked("ana", 3)
    now = time.time()
    monkeypatch.setattr("keel.annotation.queue.time.time", lambda: now + 61)
    for number in (5, 2, 3):
        queue.judge("ben", asked("ben", number), tie)
    asked("ana", 4)
    two = store.read(sa.select(turns.c.task).where(turns.c.rater == "ana", turns.c.state == "skipped"))[0][0]
    queue.adjudicate("ana", two, tie)
    assert set(store.read(sa.select(tasks.c.wants))) == {(0,)}
    assert upkeep.forget(store, "ana") == 3  # a rating, one of gold, a decision
    wanted = sa.select(prompts.c.content).join(tasks, tasks.c.prompt == prompts.c.key).where(tasks.c.wants > 0)
    assert sorted(row[0] for row in store.read(wanted)) == ["1?", "4?"]
    assert set(store.read(sa.select(tasks.c.wants))) == {(0,), (1,)}
    assert store.read(sa.select(sa.func.count()).where(tasks.c.adjudicated))[0][0] == 0
    assert {j.rater for j in held(store)} == {"ben"}


# --- stores as a whole ----------------------------------------------------------------------------


def test_two_stores_merge_into_the_union(store, tmp_path):
    with Store(f"store:{tmp_path}/other.db", create=True) as other:
        store.append(keyed_rows(0, 20))
        other.append([*keyed_rows(12, 20), *keyed(EVERY_KIND)])
        other.retract(keyed_rows(12, 1)[0][0])
        assert upkeep.merge(store, other) == 12 + len(EVERY_KIND) + 1
        assert upkeep.merge(store, other) == 0
        assert sorted(j.origin.row for j in held(store) if j.origin.file == "f") == [i for i in range(32) if i != 12]
        assert sum(j in EVERY_KIND for j in held(store)) == len(EVERY_KIND)


@pytest.mark.parametrize("out_of", [False, True])
def test_what_others_write_during_a_merge_leaves_no_loose_ends(store, tmp_path, monkeypatch, out_of):
    """Another process adds a judgment of a new prompt once the prompts have been read: it stays for the next merge."""
    with Store(f"store:{tmp_path}/other.db", create=True) as second:
        store, other = (second, store) if out_of else (store, second)
        other.append(keyed(EVERY_KIND))
        late = keyed([Judgment("late", (Answer("a"), Answer("b")), Preference("tie"), rater="late")])
        insert, tables = store.insert, []

        def meanwhile(connection, table, rows):
            tables.append(table)
            if len(tables) == 1:
                other.append(late)
            return insert(connection, table, rows)

        monkeypatch.setattr(store, "insert", meanwhile)
        assert upkeep.merge(store, other) == len(EVERY_KIND)
        assert in_any_order(held(store)) == in_any_order(EVERY_KIND)
        assert upkeep.merge(store, other) == 1


def test_a_judgment_of_what_is_not_there_is_refused(store):
    """SQLite asks for what a row refers to only if told to; PostgreSQL always."""
    ((asked, *rest),) = rows_of(keyed(EVERY_KIND))
    with pytest.raises(InputError, match=r"(?i)foreign key"):
        store.add(([], *rest))
    assert store.read(schema.answers.select()) == []
    assert store.add((asked, *rest)) == len(EVERY_KIND)


def test_a_backup_is_the_whole_store(store, tmp_path):
    store.append([*keyed_rows(0, 50), *keyed(EVERY_KIND)])
    upkeep.backup(store, tmp_path / "copy.db")
    store.append(keyed_rows(50, 10))  # later: not in the copy
    with Store(f"store:{tmp_path}/copy.db") as copy:
        assert in_any_order(held(copy)) == in_any_order([*many(50), *EVERY_KIND])
        assert copy.identity()["judgments"] == 50 + len(EVERY_KIND)
    with pytest.raises(InputError, match="already exists"):
        upkeep.backup(store, tmp_path / "copy.db")


def test_a_part_of_a_store_by_its_name(store, store_source):
    store.append([*keyed(EVERY_KIND), *keyed_rows(0, 20)])
    joined = "&" if "?" in store_source else "?"
    with Store(f"{store_source}{joined}dimension=helpfulness") as part:
        assert held(part) == EVERY_KIND[:1]
    with Store(f"{store_source}{joined}rater=person%2D3&dimension=overall") as part:
        assert {j.rater for j in held(part)} == {"person-3"}
        assert survey.count_store(part).judgments == len(held(part)) == 4


def test_pairs_of_a_store_are_those_of_its_judgments(store):
    store.append(keyed_rows(0, 40))
    pairs = [pair for group in store.groups() for pair in derive([j for _, j in group]).pairs]
    expected = {(j.prompt, j.answers[0].text if j.verdict.outcome == "first" else j.answers[1].text) for j in many(40)}
    assert {(p.prompt, p.chosen) for p in pairs} == expected
    assert len(pairs) == 40


# --- what is no store -----------------------------------------------------------------------------


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such store"):
        Store(f"store:{tmp_path}/missing.db")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("store:", "give store:FILE.db"),
        ("store:{}/x.db?dimenson=a", "dimension=NAME or rater=NAME"),
        ("mysql://host/name", "SQLite and PostgreSQL only|No module|pip install"),
        ("nosuch://host", "nosuch"),
        ("postgresql://keel@/x?host={}", "check the database"),
    ],
)
def test_a_name_that_is_none(source, match, tmp_path):
    with pytest.raises(InputError, match=match):
        Store(source.format(tmp_path), create=True)


def test_a_password_is_not_shown():
    with pytest.raises(InputError) as caught:
        Store("postgresql://keel:geheim@127.0.0.1:1/x", create=True)
    assert "geheim" not in str(caught.value)


def test_a_database_of_something_else(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(InputError, match=r"holds no Keel store"):
        Store(f"store:{tmp_path}/other.db")
    (tmp_path / "text.db").write_text("not a database at all, but long enough to look at" * 100)
    with pytest.raises(InputError, match="file is not a database"):
        Store(f"store:{tmp_path}/text.db")


def test_a_store_of_a_newer_version(tmp_path):
    source = f"store:{tmp_path}/store.db"
    Store(source, create=True).close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE keel_store SET version = 999")
    with pytest.raises(InputError, match="newer Keel"):
        Store(source)


def test_an_older_store_goes_through_the_steps_it_lacks(store_source, monkeypatch):
    Store(store_source, create=True).close()
    further = ("CREATE TABLE further (x INTEGER)",)  # a second time it would fail
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, further))
    for _ in range(2):
        with Store(store_source) as store:
            version = store.read(schema.version.select())[0][0]
    assert version == len(migrations.MIGRATIONS)


# --- keys -----------------------------------------------------------------------------------------


# --- read only ------------------------------------------------------------------------------------

WITHOUT_ROOTS_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
COUNT = """
import sys
from keel.store import survey, upkeep
from keel.store.store import Store
from keel.errors import InputError
try:
    with Store(sys.argv[1]) as store:
        print(survey.count_store(store).judgments, sum(len(group) for group in store.groups()))
        if sys.argv[2:]:
            upkeep.forget(store, sys.argv[2])
except InputError as error:
    print(error)
"""


def as_one_who_must_obey(source, *more):
    """What a process says that opens the store and counts its judgments; root, too, obeys the files' rights there."""
    if os.getuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root may write everything (Debian package util-linux)")
    before = WITHOUT_ROOTS_RIGHTS if os.getuid() == 0 else []
    done = subprocess.run([*before, sys.executable, "-c", COUNT, source, *more], capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.fixture
def barred(tmp_path):
    """`barred(file's mode, folder's mode)`: a store of five judgments with these rights, its folder and its source."""
    folder = tmp_path / "100%41 #1 & so"  # what a file's name may hold and an address must not
    source = f"store:{folder}/s.db"

    def made(file, above):
        with Store(source, create=True) as store:
            store.append(keyed(EVERY_KIND))
        (folder / "s.db").chmod(file)
        folder.chmod(above)
        return folder, source

    yield made
    folder.chmod(0o755)


@pytest.mark.parametrize(("file", "above"), [(0o444, 0o755), (0o444, 0o555), (0o644, 0o555)])
def test_a_store_that_may_not_be_written_is_read_and_left_as_it_is(barred, file, above):
    folder, source = barred(file, above)
    before = (folder / "s.db").read_bytes()
    assert as_one_who_must_obey(source) == "5 5"
    said = as_one_who_must_obey(source, "person-1").splitlines()
    assert said[0] == "5 5"
    assert said[1].endswith("readonly database; get write permission for the file and its folder, or copy it")
    assert [path.name for path in folder.iterdir()] == ["s.db"]
    assert (folder / "s.db").read_bytes() == before


def test_who_may_only_read_sees_what_another_has_just_written(barred):
    """The newest judgments are in the log beside the file, whose writer is still there or was killed."""
    folder, source = barred(0o644, 0o755)
    with Store(source) as store:
        store.append(keyed([Judgment("new", (PLAIN,), Score(1.0))]))
        folder.chmod(0o555)
        assert as_one_who_must_obey(source) == "6 6"
        folder.chmod(0o755)
        killed = folder.parent / "killed"
        shutil.copytree(folder, killed)
    killed.chmod(0o555)
    assert as_one_who_must_obey(f"store:{killed}/s.db") == "6 6"
    killed.chmod(0o755)


def test_an_old_store_that_may_not_be_written_asks_for_a_copy(barred):
    folder, source = barred(0o644, 0o755)
    shutil.copy(Path(__file__).parent / "stores" / "version-1.db", folder / "s.db")
    folder.chmod(0o555)
    assert as_one_who_must_obey(source).endswith(
        f"s.db: store version 1 must be brought to {len(migrations.MIGRATIONS)}, but the file cannot be written to; "
        "copy it to a folder that you can write to"
    )


def test_what_may_not_even_be_read_says_so(barred):
    _, source = barred(0o000, 0o755)
    assert "unable to open database file; get write permission" in as_one_who_must_obey(source)


def test_keys_tell_apart_what_differs():
    prompt = prompt_id("p")
    variants = [
        Answer("a"),
        Answer("b"),
        Answer("a", model="m"),
        Answer("a", model_hash="m"),
        Answer("a", sampling={"temperature": 1.0}),
    ]
    keys = {answer_id(prompt, replace(a, draw=draw)) for a in variants for draw in (0, 1)}
    assert len(keys) == 10
    assert answer_id(prompt_id("q"), variants[0]) not in keys
    assert all(key[:8] == prompt[:8] for key in keys)


# --- surveys --------------------------------------------------------------------------------------


def test_a_store_counts_what_a_stream_counts(store):
    rows = [*keyed(EVERY_KIND), *keyed_rows(0, 400)]
    store.append(rows)
    by_query, by_stream = survey.count_store(store), survey.count(j for _, j in rows)
    assert by_query == by_stream
    assert by_query.as_dict() == by_stream.as_dict()


def test_what_a_survey_says():
    found = survey.count(many(12)).as_dict()
    assert (found["prompts"], found["answers"], found["judgments"]) == (3, 24, 12)
    assert found["outcomes"] == {"overall": {"first": 8, "second": 4}}
    assert found["first_wins"]["mean"] == pytest.approx(8 / 12)
    assert found["longer_wins"]["mean"] == pytest.approx(4 / 12)  # the second is always the longer
    assert found["strengths"] == {"0": 3, "1": 3, "2": 3, "3": 3}
    assert found["ai_feedback"]["mean"] == 0.0
    assert survey.count(EVERY_KIND).as_dict()["ai_feedback"]["mean"] == pytest.approx(1 / 5)


def test_agreement_in_a_store_is_that_of_its_stream(store):
    rows = [*keyed(EVERY_KIND), *keyed_rows(0, 40)]
    swapped = Judgment("prompt 0", many(1)[0].answers[::-1], Preference("first"), rater="ann", kind="person")
    rows += [(said_key(swapped), swapped)]
    store.append(rows)
    by_query = survey.agreement(survey.said_in_store(store))
    by_stream = survey.agreement(s for _, j in rows for s in survey.comparisons_of(j))
    assert [repr(a) for a in by_query] == [repr(a) for a in by_stream]
    (overall,) = [a for a in by_query if a.dimension == "overall" and not a.scored]
    assert overall.shared == 1
    assert overall.agree.mean == 1.0  # both prefer the second, which ann saw first


def test_many_processes_make_one_new_store(tmp_path):
    """A new file's first moments: turning its log on is where SQLite does not wait by itself."""
    source = f"store:{tmp_path}/new.db"
    made = [writer(source, i, 1) for i in range(6)]
    assert [process.wait(timeout=300) for process in made] == [0] * 6
    with Store(source) as store:
        assert len(held(store)) == 6
