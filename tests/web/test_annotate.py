"""`keel annotate`, the command: what it asks about, what it keeps for the next start, and what it refuses to begin."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest
from tests.web.served import Client, fill

from keel import cli
from keel.annotation import accounts
from keel.annotation.campaign import Campaign, campaign_of, save_campaign
from keel.annotation.queue import Queue
from keel.commands import annotate as command
from keel.config import AnnotateConfig
from keel.errors import InputError
from keel.records import Preference
from keel.store.store import Store

RUBRIC = "dimensions:\n  helpfulness: Which helps more?\n  truth: Which says fewer things that are not so?\n"
ROWS = [{"prompt": f"prompt {i}", "completions": [f"left {i}", f"right {i}"]} for i in range(4)]


@pytest.fixture
def source(tmp_path):
    return f"store:{tmp_path}/votes.db"


@pytest.fixture
def rows(write_rows, tmp_path):
    """`rows(some)`: a file of them."""
    return lambda some, name="tasks.jsonl": str(write_rows(tmp_path / name, some))


@pytest.fixture
def begin(source, monkeypatch):
    """`begin(tasks=FILE, …)`: the command up to where it would serve; the queue as it is then."""

    def go(**options):
        monkeypatch.setattr(command.uvicorn.Server, "run", lambda self, sockets: None)
        command.annotate(AnnotateConfig(**{"store": source, "port": 0, **options}))
        return tasks_in(source)

    return go


def tasks_in(source):
    """(kind, dimension, people who are wanted, gold) of every task."""
    with sqlite3.connect(source.removeprefix("store:")) as file:
        return file.execute("SELECT kind, dimension, wants, gold FROM tasks ORDER BY id").fetchall()


def refused(*words):
    return cli.main(["annotate", *map(str, words)])


# --- what is asked


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completions": ["a", "b"]},
        {"prompt": "p", "completions": [{"text": "a", "tokens": 1, "truncated": False}, {"text": "b", "logp": -1.0}]},
        {"prompt": "p", "responses": ["a", "b", "a"]},
        {"prompt": "p", "response_a": "a", "response_b": "b"},
        {"prompt": "p", "answer_1": "a", "answer_2": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "user", "content": "p"}], "output_1": "a", "output_2": "b"},
    ],
)
def test_answers_in_many_shapes(begin, rows, row):
    assert begin(tasks=rows([row])) == [("pair", "", 1, "")]


def test_a_file_of_tasks_with_names_of_its_own(begin, rows):
    own = rows(
        [{"ask": "p", "left": "a", "right": "b", "said": None}, {"ask": "q", "left": "a", "right": "c", "said": 1}]
    )
    found = begin(tasks=own, columns="prompt=ask,response_a=left,response_b=right")
    assert found == begin(tasks=rows([{"prompt": p, "response_a": "a", "response_b": b} for p, b in ("pb", "qc")]))
    assert len(found) == 2


KNOWN = {"prompt": "r", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("gold", "note"),
    [
        ({"ask": "r", "left": "a", "right": "b", "preference": "a"}, "read under the names of --columns"),
        (KNOWN, "--columns is not used: the file has none of the columns it names"),
    ],
)
def test_gold_with_names_of_its_own_or_those_of_keel(begin, rows, capsys, gold, note):
    own = rows([{"ask": "p", "left": "a", "right": "b"}])
    spec = "prompt=ask,response_a=left,response_b=right"
    found = begin(tasks=own, gold=rows([gold], "gold.jsonl"), columns=spec)
    assert [bool(it[3]) for it in found] == [False, True]
    assert f"note: 1 '{note}': row 1" in capsys.readouterr().err


def test_names_of_columns_without_a_file_are_refused(source, begin, rows, capsys):
    begin(tasks=rows(ROWS))
    assert refused("--store", source, "--columns", "prompt=ask") == 2
    assert "give --tasks or --gold" in capsys.readouterr().err
    gold = rows([{"ask": "p", "good": "a", "bad": "b"}], "gold.jsonl")
    found = begin(gold=gold, columns="prompt=ask,chosen=good,rejected=bad")
    assert sum(bool(it[3]) for it in found) == 1


def test_what_generate_writes_can_be_judged(begin, base, prompts_file, tmp_path):
    out = tmp_path / "answers.jsonl"
    words = {"model": base, "prompts": prompts_file, "out": out, "max-new-tokens": 4, "device": "cpu"}
    assert cli.main(["generate", "-n", "3", *(str(x) for k, v in words.items() for x in (f"--{k}", v))]) == 0
    texts = [{c["text"].strip() for c in json.loads(line)["completions"]} for line in out.read_text().splitlines()]
    assert len(begin(tasks=str(out))) == sum(len(found) * (len(found) - 1) // 2 for found in texts) > 8


def test_a_cut_answer_stays_marked(source, begin, rows):
    begin(tasks=rows([{"prompt": "p", "completions": [{"text": "a", "truncated": True}, {"text": "b"}]}]))
    with Store(source) as store:
        assert {a.text: a.truncated for a in Queue(store).next("ana").answers} == {"a": True, "b": False}


def test_a_tree_asks_about_each_of_its_prompts(begin, rows):
    """Answers to one prompt of a tree are not put beside those to another."""
    say = lambda role, text, *replies, rank=None: {  # noqa: E731
        "role": role, "text": text, "rank": rank, "replies": list(replies), "lang": "en", "deleted": False,
    }  # fmt: skip
    again = say("prompter", "and then?", say("assistant", "c", rank=0), say("assistant", "d", rank=1))
    tree = {"message_tree_id": "1", "tree_state": "ready_for_export"}
    tree["prompt"] = say("prompter", "p", say("assistant", "a", again, rank=0), say("assistant", "b", rank=1))
    assert len(begin(tasks=rows([tree]))) == 2


def test_rows_without_two_different_answers_are_told(begin, rows, capsys):
    made = begin(
        tasks=rows([*ROWS, {"prompt": "same", "completions": ["a", " a"]}, {"prompt": "one", "completions": ["a"]}])
    )
    assert len(made) == 4
    said = capsys.readouterr().err
    assert "2 prompts without two answers that differ, nothing to compare: rows 5, 6" in said
    assert "4 new tasks" in said
    assert len(begin(tasks=rows(ROWS[:1]))) == 4
    assert "0 new tasks" in capsys.readouterr().err


# --- the next start


def test_what_is_asked_by_outlives_the_server(source, begin, rows, tmp_path, run_server):
    """Started again without a word about it: the same dimensions and guidelines, and no task more."""
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    made = begin(tasks=rows(ROWS), rubric=tmp_path / "rubric.yaml", one_at_a_time=True)
    assert [dimension for _, dimension, _, _ in made] == ["helpfulness", "truth"] * 4
    assert begin() == made
    with Store(source) as store:
        token = accounts.add(store, "ana")
    (asked,) = Client(run_server(source).url, token).task()["task"]["dimensions"]
    assert asked["name"] == "helpfulness"
    assert "Which helps more?" in asked["guideline_html"]


def test_the_kind_of_task_is_kept(begin, rows):
    assert begin(tasks=rows(ROWS[:1]), kind="score") == [("score", "", 1, "")] * 2
    assert begin() == [("score", "", 1, "")] * 2


def test_other_dimensions_are_refused_and_other_guidelines_are_not(source, begin, rows, tmp_path, capsys):
    first, other, better = (tmp_path / f"{name}.yaml" for name in ("first", "other", "better"))
    first.write_text(RUBRIC)
    other.write_text("dimensions:\n  style: Which reads better?\n")
    better.write_text(RUBRIC.replace("Which helps more?", "Which helps more? Weigh what was asked."))
    begin(tasks=rows(ROWS), rubric=first)
    with pytest.raises(InputError, match="ask about helpfulness, truth; leave out --rubric"):
        begin(rubric=other)
    with pytest.raises(InputError, match="all of helpfulness, truth on one page; leave out the option"):
        begin(one_at_a_time=True)
    begin(rubric=better)
    assert "the guidelines have changed" in capsys.readouterr().err
    with Store(source) as store:
        assert "Weigh what was asked." in str(campaign_of(AnnotateConfig(store=source), store).rubric)


def test_a_store_without_tasks_may_be_asked_anything(source, tmp_path):
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    with Store(source, create=True) as store:
        save_campaign(store, Campaign())
        found = campaign_of(AnnotateConfig(store=source, rubric=tmp_path / "rubric.yaml", one_at_a_time=True), store)
    assert found.dimensions == ("helpfulness", "truth")


# --- gold


def test_a_task_whose_verdict_becomes_known_is_a_gold_one(source, begin, rows):
    """Whichever order the file of gold has, and for those who have judged it already."""
    begin(tasks=rows(ROWS))
    with Store(source) as store:
        queue = Queue(store)
        turn = queue.next("ana")
        better = turn.answers[0].text
        queue.judge("ana", turn.key, {"overall": Preference("first")})
    gold = {"prompt": turn.prompt, "chosen": better, "rejected": turn.answers[1].text}
    made = begin(gold=rows([gold], "gold.jsonl"))
    assert [(wants, bool(known)) for _, _, wants, known in made].count((0, True)) == 1
    assert [bool(known) for *_, known in made].count(True) == 1
    with sqlite3.connect(source.removeprefix("store:")) as file:
        assert file.execute("SELECT rater, right FROM turns").fetchall() == [("ana", 1.0)]


def test_gold_is_for_pairs(source, rows, capsys):
    gold = rows([{"prompt": "p", "chosen": "a", "rejected": "b"}], "gold.jsonl")
    assert refused("--store", source, "--tasks", rows(ROWS), "--gold", gold, "--kind", "score") == 2
    assert "no place among tasks of --kind score" in capsys.readouterr().err


# --- what is refused before anything is written


def test_bad_rows_are_numbered_and_past_the_share_refused(source, begin, tmp_path, rows, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*map(json.dumps, ROWS), '{"prompt": "p"', '{"prompt": "p", "completions": [3]}']) + "\n")
    assert refused("--store", source, "--tasks", bad) == 2
    said = capsys.readouterr().err
    assert "2 of 6 rows are bad" in said
    assert "row 5;" in said
    assert "raise --max-bad-share" in said
    assert not (tmp_path / "votes.db").exists()
    assert len(begin(tasks=str(bad), max_bad_share=0.5)) == 4
    assert "completions 1 is neither a text nor has one" in capsys.readouterr().err
    assert refused("--store", source, "--tasks", rows(ROWS), "--gold", bad, "--max-bad-share", "0.2") == 2


@pytest.mark.parametrize("what", ["no file", "no rubric", "no answers"])
def test_a_call_that_cannot_begin_leaves_no_store(source, rows, tmp_path, capsys, what):
    words = {
        "no file": ("--tasks", tmp_path / "none.jsonl"),
        "no rubric": ("--tasks", rows(ROWS), "--rubric", tmp_path / "none.yaml"),
        "no answers": ("--tasks", rows([{"prompt": "p"}])),
    }[what]
    assert refused("--store", source, *words) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "votes.db").exists()


def test_a_port_that_is_taken(source, rows, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as door:
        assert refused("--store", source, "--tasks", rows(ROWS), "--port", door.getsockname()[1]) == 2
    said = capsys.readouterr().err
    assert "something listens there; give --port another number" in said
    assert "http://" not in said
    assert not (tmp_path / "votes.db").exists()


@pytest.mark.parametrize("host", ["203.0.113.9", "no-such-host.invalid"])
def test_an_address_of_another_machine(source, rows, capsys, host):
    assert refused("--store", source, "--tasks", rows(ROWS), "--host", host) == 2
    assert f"--host {host}" in capsys.readouterr().err


def test_a_free_port_is_named(source):
    fill(source, 1)
    words = [sys.executable, "-m", "keel.cli", "annotate", "--store", source, "--port", "0"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        url = next(word for line in process.stderr for word in line.split() if word.startswith("http://"))
        assert not url.endswith(":0")
        assert httpx.get(url, timeout=10).status_code == 200
    finally:
        process.kill()
        process.wait()


def test_who_lets_others_in_without_https_is_told(begin, rows, capsys):
    begin(tasks=rows(ROWS), host="0.0.0.0")
    assert "without HTTPS" in capsys.readouterr().err
    begin(host="0.0.0.0", https=True)
    begin(host="::1")
    said = capsys.readouterr().err
    assert "without HTTPS" not in said
    assert "http://[::1]:" in said


def test_the_page_s_rubric_is_one(begin, rows, tmp_path):
    readme = Path(__file__).parents[2] / "docs/annotate.md"
    blocks = [part.partition("```")[0] for part in readme.read_text().split("```yaml\n")[1:]]
    (example,) = [textwrap.dedent(block) for block in blocks if "dimensions:" in block]
    (tmp_path / "rubric.yaml").write_text(example)
    assert len(begin(tasks=rows(ROWS), rubric=tmp_path / "rubric.yaml", one_at_a_time=True)) == 8


def test_answers_leave_at_once(source, rows, monkeypatch):
    """Every connection that comes in sends without waiting for more, as asyncio has it for sockets of its own."""
    found = []

    def accept(server, sockets):
        with socket.create_connection(sockets[0].getsockname()), sockets[0].accept()[0] as inner:
            found.append(inner.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(command.uvicorn.Server, "run", accept)
    command.annotate(AnnotateConfig(store=source, port=0, tasks=rows(ROWS)))
    assert found == [1]
