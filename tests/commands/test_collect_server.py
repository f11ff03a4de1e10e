"""Collecting from servers: what was paid for is kept at once and never asked for again; what fails is asked again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from tests.raters.stub import Reply, Stub, fail, say, verdict

from keel import cli
from keel.commands.collect import HOPELESS, collect
from keel.errors import InputError, RunFailed
from keel.sampling import remote
from keel.sampling.client import public_address
from keel.store import survey
from keel.store.store import Store


def text(*texts):
    """A reply of /v1/completions."""
    choices = [{"index": i, "text": t, "finish_reason": "stop"} for i, t in enumerate(texts)]
    return Reply(body={"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": choices})


def answers(call):
    """As many as asked for, no two alike."""
    return text(*(f"answer {call.body['seed']} {i}" for i in range(call.body["n"])))


def prompts_asked(stub):
    return Counter(call.body["prompt"] for call in stub.calls)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No key of the environment's, and no long waits."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(remote, "_JITTER", type("Fast", (), {"uniform": staticmethod(lambda low, high: 0.02)}))


@pytest.fixture
def from_server(configure_collect):
    """`from_server(stub, n=2)`: a config whose answers come from there."""

    def make(stub, **changes):
        return configure_collect(
            **{"model": "big", "server": stub.url, "n": 2, "concurrency": 2, "deadline": 10.0, **changes}
        )

    return make


@pytest.fixture
def many_prompts(write_rows, tmp_path):
    """A hundred prompts, on as many rows."""
    return str(write_rows(tmp_path / "many.jsonl", [{"prompt": f"question {i:03}"} for i in range(1, 101)]))


def stored(source):
    with Store(source) as store:
        return store.read(survey.schema.answers.select())


# --- what is kept


def test_answers_are_kept_with_writer_and_way_of_drawing(from_server, rules):
    with Stub(answers) as stub:
        secret = stub.url.replace("http://", "http://user:secret-1@") + "/?token=secret-2"
        config = from_server(stub, server=secret, temperature=0.7, top_p=0.9, seed=5, rater=[rules])
        figures = collect(config).summary
    assert (figures["drawn"], figures["unanswered"], sum(figures["judged"].values())) == (16, {}, 8)
    with Store(config.store) as store:
        found = [answer for group in store.groups() for _, j in group for answer in j.answers]
    assert Counter(a.draw for a in found) == {0: 8, 1: 8}
    for answer in found:
        assert (answer.model, answer.model_hash, answer.truncated) == ("big", "", False)
        assert answer.sampling == {
            "temperature": 0.7,
            "top_p": 0.9,
            "max_new_tokens": 8,
            "seed": 5,
            "server": stub.url,
        }
    for call in stub.calls:
        assert {k: call.body[k] for k in ("model", "n", "temperature", "top_p", "max_tokens")} == {
            "model": "big", "n": 2, "temperature": 0.7, "top_p": 0.9, "max_tokens": 8,
        }  # fmt: skip
    assert len({call.body["seed"] for call in stub.calls}) == 8


def test_the_same_call_pays_for_nothing(from_server, rules):
    with Stub(answers) as stub:
        collect(from_server(stub))
        paid = len(stub.calls)
        figures = collect(from_server(stub, rater=[rules])).summary
        assert (figures["drawn"], figures["found"], sum(figures["judged"].values())) == (0, 16, 8)
        assert len(stub.calls) == paid == 8
        for change in ({"seed": 1}, {"temperature": 0.5}, {"top_p": 0.5}, {"max_new_tokens": 7}, {"model": "small"}):
            assert collect(from_server(stub, **change)).summary["drawn"] == 16


def test_further_answers_alone_are_paid_for(from_server):
    with Stub(answers) as stub:
        collect(from_server(stub, n=2))
        figures = collect(from_server(stub, n=5)).summary
    assert (figures["found"], figures["drawn"]) == (16, 24)
    assert Counter(call.body["n"] for call in stub.calls) == {2: 8, 3: 8}
    found = stored(from_server(stub).store)
    assert len({row.text for row in found}) == 40, "the same seed was sent twice"
    assert Counter(row.draw for row in found) == dict.fromkeys(range(5), 8)


def test_a_key_of_the_servers_own(from_server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-judge")
    monkeypatch.setenv("OWN_KEY", "of-the-writer")
    with Stub(lambda call: say(verdict("A")) if "chat" in call.path else answers(call)) as stub:
        common = {"rater": ["judge:judge-1"], "judge_server": stub.url}
        collect(from_server(stub, server_key_variable="OWN_KEY", **common))
        sent = {(call.path, call.headers["authorization"]) for call in stub.calls}
    assert sent == {("/v1/completions", "Bearer of-the-writer"), ("/v1/chat/completions", "Bearer of-the-judge")}


# --- what fails


def test_a_prompt_without_an_answer_is_counted_and_asked_again_alone(from_server, prompts_file, rules):
    """Inside a round, too: its neighbours are not asked twice, and its pairs are judged when it is answered."""
    bad = prompts_file.read_text().split('"')[3]

    def refusing(call):
        return fail(400, "too rude") if call.body["prompt"] == bad else answers(call)

    with Stub(refusing) as stub:
        first = collect(from_server(stub, rater=[rules])).summary
        assert first["unanswered"] == {"the server refuses the request: 400: too rude": [1, [1]]}
        assert (first["drawn"], sum(first["judged"].values())) == (14, 7)
        again = collect(from_server(stub, rater=[rules])).summary
        assert (again["found"], again["drawn"], again["unanswered"]) == (14, 0, first["unanswered"])
        stub.script = answers
        last = collect(from_server(stub, rater=[rules])).summary
    assert (last["found"], last["drawn"], last["unanswered"], sum(last["judged"].values())) == (14, 2, {}, 1)
    asked = prompts_asked(stub)
    assert all(count == 1 for prompt, count in asked.items() if prompt != bad)
    assert len(stored(from_server(stub).store)) == 16


def test_part_of_the_answers_is_kept_and_the_rest_asked_for_later(from_server, prompts_file, rules):
    """One at a time: the second answer to one prompt fails, the first was paid for."""
    bad = prompts_file.read_text().split('"')[3]

    def script(call):
        if call.body["prompt"] == bad and prompts_asked(stub)[bad] > 1:
            return fail(400, "too rude")
        return text(f"answer {call.body['seed']}")

    with Stub(script) as stub:
        first = collect(from_server(stub, rater=[rules])).summary
        assert (first["drawn"], sum(first["judged"].values())) == (15, 7)
        assert first["unanswered"] == {"the server refuses the request: 400: too rude": [1, [1]]}
        stub.script = answers
        last = collect(from_server(stub, rater=[rules])).summary
    assert (last["found"], last["drawn"], last["unanswered"], sum(last["judged"].values())) == (15, 1, {}, 1)
    assert Counter(row.draw for row in stored(from_server(stub).store)) == {0: 8, 1: 8}


def test_no_answer_at_all_ends_the_call(from_server, many_prompts, capsys):
    with Stub(lambda call: fail(400, "no such luck")) as stub:
        config = from_server(stub, concurrency=1)
        with pytest.raises(RunFailed, match=r"no answer to any prompt: 8 .*no such luck': rows 1, 2"):
            collect(config)
        assert stored(config.store) == []
        before = len(stub.calls)
        flags = {"model": "big", "server": stub.url, "prompts": many_prompts, "store": config.store, "concurrency": "2"}
        assert cli.main(["collect", *(part for k, v in flags.items() for part in (f"--{k}", v))]) == 1
        assert len(stub.calls) - before <= 2 * (HOPELESS + 2)  # two at most of each: with n = 2, then one by one
    assert f"no answer to the first {HOPELESS} prompts" in capsys.readouterr().err


def test_a_wrong_key_or_address_ends_the_call(from_server):
    with Stub(lambda call: fail(401)) as stub, pytest.raises(InputError, match="set OPENAI_API_KEY to a key"):
        collect(from_server(stub))
    with pytest.raises(InputError, match="not an address"):
        collect(from_server(stub, server="localhost:8000"))


@pytest.mark.parametrize(("option", "value"), [("chat-template", "chatml"), ("control-tokens", "refuse")])
def test_options_that_a_server_does_not_see_are_refused(option, value, from_server, capsys):
    with Stub(answers) as stub:
        config = from_server(stub)
        flags = {"model": "big", "server": stub.url, "prompts": config.prompts, "store": config.store, option: value}
        assert cli.main(["collect", *(part for k, v in flags.items() for part in (f"--{k}", v))]) == 2
        assert stub.calls == []
    [line] = capsys.readouterr().err.strip().splitlines()
    assert f"{option.replace('-', '_')} has no meaning with server" in line


def test_what_came_before_the_account_was_empty_is_kept(from_server):
    with Stub(lambda call: answers(call) if call.number < 4 else fail(402, "pay")) as stub:
        config = from_server(stub, concurrency=1)
        with pytest.raises(InputError, match="add credit"):
            collect(config)
        assert len(stored(config.store)) == 6
        stub.script = answers
        assert collect(config).summary["found"] == 6
    assert sum(prompts_asked(stub).values()) == 8 + 1


def test_nothing_more_is_asked_of_a_server_that_fell_silent(from_server, many_prompts):
    """Nine of the first round's sixty-four were sent, and nothing of the second round."""
    with Stub(lambda call: answers(call) if call.number == 1 else Reply(manner="hang")) as stub:
        config = from_server(stub, prompts=many_prompts, concurrency=2, deadline=0.2)
        figures = collect(config).summary
        assert figures["drawn"] == 2
        reasons = figures["unanswered"]
        assert sum(count for count, _ in reasons.values()) == 99
        assert max(count for reason, (count, _) in reasons.items() if reason.startswith("not asked")) > 85
        assert len(stub.calls) < 14
        stub.script = answers
        assert collect(from_server(stub, prompts=many_prompts)).summary["drawn"] == 198


def test_killed_and_called_again_pays_for_what_is_lacking_only(from_server, rules, tmp_path):
    """A kill costs what was under way, and no more: what had come is in the store."""

    def slowly(call):
        reply = answers(call)
        reply.delay = 0.3
        return reply

    with Stub(slowly) as stub:
        config = from_server(stub, rater=[rules], concurrency=2)
        (tmp_path / "config.yaml").write_text(config.to_yaml())
        command = [sys.executable, "-m", "keel.cli", "collect", "--config", str(tmp_path / "config.yaml")]
        killed = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(stub.calls) < 5:
            assert time.monotonic() < deadline
            assert killed.poll() is None
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        had = len(stored(config.store))
        assert had == 2 * (len(stub.calls) - 2), "all but the two under way"
        stub.script = answers
        figures = collect(config).summary
    assert (figures["found"], figures["drawn"]) == (had, 16 - had)
    assert len(stored(config.store)) == 16
    assert sum(prompts_asked(stub).values()) == 8 + 2


def test_progress_is_told_as_answers_come(from_server, monkeypatch, capsys):
    from keel import progress

    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with Stub(answers) as stub:
        collect(from_server(stub))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prompts: 0/8")]
    assert [line.split("  ")[-1] for line in lines] == [f"{2 * i} answers" for i in range(1, 9)]


def test_calls_and_thoughts_are_kept_and_shown_to_who_judges(from_server, write_rows, tmp_path):
    """Both stand in the store with the text, and the judge reads all of them."""
    call = {"id": "c1", "type": "function", "function": {"name": "honey_shop", "arguments": "{}"}}
    chat = [{"role": "user", "content": "Honey?"}]
    rows = [{"messages": chat, "tools": [{"type": "function", "function": {"name": "honey_shop", "parameters": {}}}]}]

    def script(call_):
        if call_.body["model"] == "judge-1":
            return say(verdict("A"))
        if len([c for c in stub.calls if c.body["model"] == "big"]) == 1:
            return say(None, finish="tool_calls", tool_calls=[call])
        return say("In the jar.", reasoning="Bears keep it there.")

    with Stub(script) as stub:
        prompts = str(write_rows(tmp_path / "asked.jsonl", rows))
        config = from_server(stub, prompts=prompts, rater=["judge:judge-1"], judge_server=stub.url)
        assert collect(config).summary["drawn"] == 2
    with Store(config.store) as store:
        [(_, judgment), *_] = [pair for group in store.groups() for pair in group]
    assert {a.text: a.fields for a in judgment.answers} == {
        "": {"tool_calls": [call]},
        "In the jar.": {"reasoning_content": "Bears keep it there."},
    }
    read = next(c.user for c in stub.calls if c.body["model"] == "judge-1")
    assert all(words in read for words in ("In the jar.", "Bears keep it there.", "honey_shop"))


# --- addresses


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://me:secret@host/api/v1?key=secret#x", "https://host/api/v1"),
        ("https://me:se@cret@[::1]:80/v1", "https://[::1]:80/v1"),
    ],
)
def test_an_address_is_kept_without_secrets(given, kept):
    assert public_address(given) == kept


@pytest.mark.parametrize("given", ["localhost:8000", "http://", "ftp://host/v1", "http://[::1", "http://host:99999/"])
def test_what_is_no_address_is_refused(given):
    with pytest.raises(InputError, match="not an address"):
        public_address(given)


# --- a real server


def test_llama_cpp_answers_and_is_asked_once(llama_url, configure_collect, write_rows, tmp_path, rules):
    """Its model tells stories: plain prompts go on, and a chat is answered too."""
    rows = [{"prompt": "Once upon a time"}, {"prompt": [{"role": "user", "content": "Once"}]}, {"prompt": "The dog"}]
    file = write_rows(tmp_path / "stories.jsonl", rows)
    config = configure_collect(
        model="stories", server=llama_url, prompts=str(file), n=2, max_new_tokens=12, rater=[rules], concurrency=2
    )
    figures = collect(config).summary
    assert (figures["drawn"], figures["unanswered"], sum(figures["judged"].values())) == (6, {}, 3)
    found = stored(config.store)
    assert all(row.text.strip() and row.model == "stories" for row in found)
    assert any(row.truncated for row in found)
    assert len({row.text for row in found}) > 3, "the draws are alike"
    again = collect(config).summary
    assert (again["drawn"], again["found"]) == (0, 6)
