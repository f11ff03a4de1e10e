"""Collecting: what is drawn and judged is kept with its provenance, once, whatever happens in between."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pytest
import torch
from tests.raters.stub import Reply, Stub, fail, say, verdict
from tests.reading import read_pairs

from keel import cli, world
from keel.commands.collect import HOPELESS, Tally, _judge, collect
from keel.data.prepare import tokenise
from keel.errors import InputError, RunFailed
from keel.models import checkpoints
from keel.raters import Missing, Task
from keel.raters.simulated import Simulated
from keel.records import Answer, Judgment, Preference, RaterKind
from keel.sampling import local
from keel.store import survey
from keel.store.keys import answer_id, prompt_id
from keel.store.store import Store


def contents(source):
    """All answers and judgments of a store, without what may differ between two calls: times and order."""
    with Store(source) as store:
        judged = [(j.prompt, j.answers, j.verdict, j.rater) for group in store.groups() for _, j in group]
        drawn = store.read(survey.schema.answers.select().order_by(survey.schema.answers.c.key))
    return sorted(map(repr, judged)), [tuple(row) for row in drawn]


# --- what is kept ---------------------------------------------------------------------------------


def test_every_answer_and_every_comparison_is_kept(configure_collect, rules):
    config = configure_collect(rater=[rules], temperature=0.7, seed=5)
    figures = collect(config).summary
    assert (figures["drawn"], figures["found"]) == (24, 0)
    with Store(config.store) as store:
        groups = [[j for _, j in group] for group in store.groups()]
    assert len(groups) == 8
    for group in groups:
        shown = {a.draw: a for j in group for a in j.answers}
        assert sorted(shown) == [0, 1, 2]
        assert Counter(tuple(a.draw for a in j.answers) for j in group) == Counter(combinations(range(3), 2))
        for answer in shown.values():
            assert answer.model == config.model
            assert answer.sampling == {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 8, "seed": 5}
            assert 1 <= answer.tokens <= 8
            assert answer.logp < 0


def test_the_kept_log_probability_is_the_models(configure_collect):
    """By transformers alone, from the tokens as they were kept, whose text is the one that was kept."""
    config = configure_collect(temperature=0.7)
    collect(config)
    model = checkpoints.load_policy(config.model, config)
    text = checkpoints.load_text(config.model)
    checked = 0
    with Store(config.store) as store:
        for _, row in store.prompts():
            like = Answer("", config.model, checkpoints.weights_hash(model)[:16], dict(SAMPLING))
            for answer in store.answers_to([row.prompt], like)[0]:
                prompt, ids = text.prompt_ids(row.prompt), list(answer.drawn.ids)
                assert answer.drawn.tokenizer == text.fingerprint()
                assert text.decode(ids, row.prompt) == answer.text
                assert len(ids) == answer.tokens
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / 0.7
                own = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
                assert answer.logp == pytest.approx(float(own.detach()), abs=1e-3)
                checked += 1
    assert checked > 10


SAMPLING = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 8, "seed": 0}


def test_a_rules_verdict_is_its_scores_order(configure_collect, rules):
    config = configure_collect(rater=[rules])
    collect(config)
    score = lambda text: (len(text.split()) >= 3) + ("rain" in text.split())  # noqa: E731
    seen = Counter()
    with Store(config.store) as store:
        for group in store.groups():
            for _, j in group:
                first, second = (score(a.text) for a in j.answers)
                expected = "first" if first > second else "second" if second > first else "tie"
                assert j.verdict.outcome == expected
                assert j.kind == "rule"
                seen[expected] += 1
    assert len(seen) == 3


# --- once, whatever happens -----------------------------------------------------------------------


def test_the_same_call_adds_nothing(configure_collect, rules):
    config = configure_collect(rater=[rules])
    collect(config)
    before = contents(config.store)
    figures = collect(config).summary
    assert (figures["drawn"], figures["found"]) == (0, 24)
    assert not any(figures["judged"].values())
    assert contents(config.store) == before


def test_other_ways_of_drawing_are_other_answers(configure_collect):
    config = configure_collect()
    collect(config)
    for change in ({"seed": 1}, {"temperature": 0.5}, {"top_p": 0.5}, {"max_new_tokens": 7}):
        assert collect(configure_collect(**change)).summary["drawn"] == 24
    with Store(config.store) as store:
        assert survey.count_store(store).answers == 5 * 24


def test_other_ways_of_reading_are_other_answers(configure_collect, make_model, write_rows, tmp_path):
    """Told by what a template says, whatever its file is called; without either option as it was before."""
    chats = [[{"role": "user", "content": f"what can {name} do</s>?"}] for name in ("teddy", "bruno")]
    given = {
        "model": str(make_model("llama", tokenizer="chat")),
        "prompts": str(write_rows(tmp_path / "chats.jsonl", [{"prompt": chat} for chat in chats])),
        "max_bad_share": 0.5,  # the tokenizer knows no < and no capitals
    }
    turns = "{% for m in messages %}ASK {{ m.content }}. {% endfor %}"
    for name, more in (("one", ""), ("same", ""), ("other", "now ")):
        (tmp_path / name).write_text(turns + more)

    def drawn(**changes):
        figures = collect(configure_collect(**given, **changes)).summary
        assert figures["drawn"] + figures["found"] == 6
        return figures["drawn"]

    template = {name: str(tmp_path / name) for name in ("one", "same", "other")}
    assert drawn() == 6
    assert drawn(chat_template=template["one"]) == 6
    assert drawn(chat_template=template["same"]) == 0
    assert drawn(chat_template=template["other"]) == 6
    assert drawn(control_tokens="keep") == 6
    assert drawn(chat_template=template["one"], control_tokens="keep") == 6
    assert drawn() == drawn(chat_template=template["other"]) == drawn(control_tokens="keep") == 0
    rows = stored_sampling(configure_collect().store)
    assert rows[json.dumps({"max_new_tokens": 8, "seed": 0, "temperature": 1.0, "top_p": 1.0})] == 6


def stored_sampling(source):
    """How many answers were drawn in each way, spelt with sorted keys."""
    with Store(source) as store:
        kept = [json.loads(row.sampling) for row in store.read(survey.schema.answers.select())]
    return Counter(json.dumps(way, sort_keys=True) for way in kept)


def test_more_answers_are_drawn_beside_those_that_are_there(configure_collect, rules):
    """And only pairs with a new answer are judged."""
    collect(configure_collect(n=2, rater=[rules]))
    figures = collect(configure_collect(n=4, rater=[rules])).summary
    assert (figures["found"], figures["drawn"]) == (16, 16)
    assert list(figures["judged"].values()) == [8 * (6 - 1)]
    assert not any(collect(configure_collect(n=4, rater=[rules])).summary["judged"].values())


def test_fewer_answers_than_there_are_make_fewer_comparisons(configure_collect, rules):
    """Nobody is asked about answers beyond the first n."""
    collect(configure_collect(n=3))
    figures = collect(configure_collect(n=2, rater=[rules])).summary
    assert (figures["drawn"], figures["found"], list(figures["judged"].values())) == (0, 16, [8])
    with Store(configure_collect().store) as store:
        judged = [j for group in store.groups() for _, j in group]
    assert len(judged) == 8
    assert {tuple(a.draw for a in j.answers) for j in judged} == {(0, 1)}


@dataclass
class Watching:
    """A rater that notes, as it is about to give each verdict, how many are stored; the last pair has none."""

    store: Store
    kind: RaterKind
    identity: str = "watching"
    stored: list[int] = field(default_factory=list)

    def rate(self, tasks):
        for number, task in enumerate(tasks):
            self.stored.append(survey.count_store(self.store).judgments)
            if task is tasks[-1]:
                yield number, Missing("no reply")
            else:
                said = Preference("first")
                yield number, [Judgment(task.prompt, (task.first, task.second), said, self.identity, self.kind)]

    def note(self):
        return ""


@pytest.mark.parametrize(("kind", "stored"), [("judge", [0, 1, 2, 3, 4]), ("rule", [0, 0, 0, 3, 3])])
def test_a_judges_verdicts_are_stored_one_by_one_and_others_some_at_a_time(tmp_path, monkeypatch, kind, stored):
    """What has cost money is not lost by a kill; the free ones are three to a transaction here."""
    monkeypatch.setattr("keel.commands.collect.COMMIT", 3)
    tasks = [Task(f"{i}?", Answer("a"), Answer("b")) for i in range(5)]
    with Store(f"store:{tmp_path}/s.db", create=True) as store:
        rater, tally = Watching(store, kind), Tally()
        _judge(store, rater, tasks, set(), tally, lambda done: None)
        assert rater.stored == stored
        assert survey.count_store(store).judgments == 4
    assert (tally.judged[rater.identity], tally.pairs, tally.left[rater.identity]) == (4, 5, 0)
    assert tally.missing == {(rater.identity, "no reply"): 1}


def test_every_round_draws_numbers_of_its_own(configure_collect, monkeypatch):
    """And further answers to the same prompts others again; the same call elsewhere draws the same."""
    seeds, real = [], local.generator
    monkeypatch.setattr(local, "generator", lambda *name: seeds.append(real(*name).initial_seed()) or real(*name))
    collect(configure_collect(n=2))
    first = list(seeds)
    collect(configure_collect(n=3))
    assert (len(first), len(seeds), len(set(seeds))) == (8, 16, 16)  # one for each of eight prompts, each time
    seeds.clear()
    collect(configure_collect("other.db", n=2))
    assert seeds == first


def test_further_answers_are_not_the_first_ones_again(configure_collect):
    """A round of one prompt each time, and four answers: the same generator would draw the same."""
    collect(configure_collect(n=4, max_rows=1))
    collect(configure_collect(n=8, max_rows=1))
    texts = defaultdict(dict)
    with Store(configure_collect().store) as store:
        for row in store.read(survey.schema.answers.select()):
            texts[row.prompt][row.draw] = row.text
    assert all(sorted(of) == list(range(8)) for of in texts.values())
    assert any([of[i] for i in range(4)] != [of[i] for i in range(4, 8)] for of in texts.values())


def test_a_second_rater_judges_the_answers_that_are_there(configure_collect, rules):
    collect(configure_collect())
    figures = collect(configure_collect(rater=[rules])).summary
    assert (figures["drawn"], sum(figures["judged"].values())) == (0, 24)


def test_killed_and_called_again_is_as_if_never_killed(configure_collect, rules, tmp_path):
    """A rater that takes its time is killed half-way: no answer is drawn twice or otherwise, no judgment lost."""
    (tmp_path / "slow.py").write_text(
        "import time\ndef rule(prompt, completion):\n    time.sleep(0.05)\n    return float(len(completion))\n"
    )
    options = {"rater": ["rule:slow:rule", rules]}
    whole = configure_collect("whole.db", **options)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    config = configure_collect("killed.db", **options)
    config_file = tmp_path / "config.yaml"

    def call(config):
        config_file.write_text(config.to_yaml())
        command = [sys.executable, "-m", "keel.cli", "collect", "--config", str(config_file)]
        return subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)

    assert call(whole).wait() == 0
    killed = call(config)
    deadline = time.monotonic() + 120
    while not judged(config.store):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert 0 < judged(config.store) < 48
    assert call(config).wait() == 0
    assert contents(config.store) == contents(whole.store)


def judged(source):
    try:
        with Store(source) as store:
            return survey.count_store(store).judgments
    except InputError:
        return 0


# --- judges, and what they cost -------------------------------------------------------------------


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")


def asked(stub):
    return Counter(call.user for call in stub.calls)


@pytest.mark.usefixtures("key")
def test_no_judgment_is_paid_for_twice(configure_collect):
    """The budget ends in the middle; called again, what was judged is not asked again."""
    with Stub(lambda call: say(verdict("A" if call.number % 3 else "tie"))) as stub:
        common = {"rater": ["judge:judge-1"], "judge_server": stub.url, "concurrency": 2}
        first = collect(configure_collect(token_budget=1_000, **common)).summary
        (left,) = first["left"].values()
        assert left > 0
        second = collect(configure_collect(**common)).summary
        assert not second["left"]
        before = len(stub.calls)
        collect(configure_collect(**common))
        assert len(stub.calls) == before
    assert max(asked(stub).values()) == 1
    done = sum(sum(s["judged"].values()) for s in (first, second))
    assert done == 24
    with Store(configure_collect().store) as store:
        found = survey.count_store(store)
        assert found.judgments == 24
        assert found.ai_share().mean == 1.0


@pytest.mark.usefixtures("key")
def test_what_has_no_verdict_is_asked_again_next_time(configure_collect):
    with Stub(lambda call: say("I cannot judge this.") if call.number == 1 else say(verdict("A"))) as stub:
        common = {"rater": ["judge:judge-1"], "judge_server": stub.url, "concurrency": 1}
        first = collect(configure_collect(**common)).summary
        assert [m["pairs"] for m in first["missing"]] == [1]
        second = collect(configure_collect(**common)).summary
        assert sum(second["judged"].values()) == 1


@pytest.mark.usefixtures("key")
def test_a_judge_that_never_answers_ends_the_call(configure_collect):
    with Stub(lambda call: say("I cannot judge this.")) as stub:
        config = configure_collect(n=5, max_rows=40, rater=["judge:judge-1"], judge_server=stub.url, concurrency=4)
        with pytest.raises(RunFailed, match=f"none of {HOPELESS} pairs has a verdict"):
            collect(config)


@pytest.mark.usefixtures("key")
def test_a_judge_without_a_single_verdict_is_no_success(configure_collect):
    """Fewer pairs than end the call midway. What was judged before is a success that goes on."""
    with Stub(lambda call: say("Well.")) as stub:
        common = {"rater": ["judge:judge-1"], "judge_server": stub.url, "n": 2, "limit": 3}
        with pytest.raises(RunFailed, match=r"none of 3 pairs has a verdict \(the reply holds no JSON object\)"):
            collect(configure_collect(**common))
        with Store(configure_collect().store) as store:
            assert len(store.read(survey.schema.answers.select())) == 6
        stub.script = lambda call: say(verdict("A")) if call.number % 3 == 0 else say("Well.")
        collect(configure_collect(**common))
        stub.script = lambda call: say("Well.")
        assert collect(configure_collect(**common | {"limit": 4})).summary["missing"]


@pytest.mark.usefixtures("key")
def test_a_judge_s_server_that_is_not_there_is_told_before_anything_is_drawn(configure_collect, monkeypatch, tmp_path):
    with Stub(lambda call: say(verdict("A"))) as stub:
        url = stub.url
    for named in (True, False):
        if not named:
            monkeypatch.setenv("OPENAI_BASE_URL", url)
        began = time.monotonic()
        with pytest.raises(InputError, match=r"no server there \(.*refused.*\); start it, or mend --judge-server"):
            collect(configure_collect(rater=["judge:judge-1"], judge_server=url if named else None))
        assert time.monotonic() - began < 10
    assert not (tmp_path / "store.db").exists()


@pytest.mark.usefixtures("key")
def test_pairs_are_counted_while_they_are_judged(configure_collect, monkeypatch):
    """Those without a verdict, too."""
    from keel.commands import collect as module

    told = []
    advance = module.Bar.advance
    monkeypatch.setattr(module.Bar, "advance", lambda bar, n=1, note="": told.append(note) or advance(bar, n, note))
    with Stub(lambda call: say(verdict("A") if call.number > 4 else "Well.")) as stub:
        collect(configure_collect(rater=["judge:judge-1"], judge_server=stub.url, n=2, limit=3, concurrency=1))
    counted = [int(found[1]) for note in told if (found := re.search(r"(\d+) pairs?\b", note))]
    assert sorted(set(counted)) == [1, 2, 3]


@pytest.mark.usefixtures("key")
def test_a_wrong_key_ends_the_call(configure_collect, capsys):
    with Stub(lambda call: fail(401)) as stub:
        config = configure_collect(rater=["judge:judge-1"], judge_server=stub.url)
        flags = [part for k, v in json.loads(config.model_dump_json(exclude_none=True)).items()
                 for part in ([f"--{k.replace('_', '-')}", *(v if isinstance(v, list) else [str(v)])])]  # fmt: skip
        assert cli.main(["collect", *[f for f in flags if f != "False"]]) == 2
    assert "OPENAI_API_KEY" in capsys.readouterr().err


def requests_of(configure_collect, tmp_path, script, *flags, limit=1):
    """What a judge was asked by `keel collect` with these flags about one pair, and what was said at the end."""
    with Stub(script) as stub:
        config = configure_collect(file=f"{len(list(tmp_path.iterdir()))}.db")
        words = {"model": config.model, "prompts": config.prompts, "store": config.store, "n": 2, "limit": limit}
        words |= {"max-new-tokens": 8, "device": "cpu", "precision": "fp32", "rater": "judge:judge-1"}
        words |= {"judge-server": stub.url, "out": tmp_path / "figures.json"}
        cli.main(["collect", *(str(part) for k, v in words.items() for part in (f"--{k}", v)), *flags])
        return stub.calls


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_judge_s_options_reach_its_requests(configure_collect, tmp_path, capsys, through_a_file):
    def bodies(**options):
        flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
        if through_a_file:
            file = tmp_path / "options.yaml"
            file.write_text("seed: 0\n" + "".join(f"{name}: {value}\n" for name, value in options.items()))
            flags = ["--config", str(file)]
        calls = requests_of(configure_collect, tmp_path, lambda call: say(verdict("A")), *flags)
        return {call.body.get("temperature") for call in calls}, {call.body["max_tokens"] for call in calls}

    assert bodies() == ({0.0}, {1024})
    assert bodies(judge_temperature="0.5", judge_reply_tokens="300") == ({0.5}, {300})
    for nothing in ("null",) if through_a_file else ("none", "None", "null"):
        assert bodies(judge_temperature=nothing) == ({None}, {1024})


@pytest.mark.usefixtures("key")
def test_a_judge_s_patience_is_an_option(configure_collect, tmp_path, capsys):
    hang = lambda call: Reply(manner="hang")  # noqa: E731
    calls = requests_of(configure_collect, tmp_path, hang, "--judge-timeout", "0.2", "--judge-retries", "0")
    assert len(calls) == 1
    assert "within 0.2 s (--judge-timeout)" in capsys.readouterr().err
    patient = ("--judge-retries", "2", "--judge-first-wait", "0.4")
    calls = requests_of(configure_collect, tmp_path, lambda call: fail(500), *patient)
    assert len(calls) == 3
    waits = [b.at - a.at for a, b in itertools.pairwise(calls)]
    assert 0.2 <= waits[0] < 2
    assert 0.4 <= waits[1] < 4


@pytest.mark.usefixtures("key")
def test_the_remedy_for_a_temperature_names_a_flag_that_helps(configure_collect, tmp_path, capsys):
    """A model that takes none: the first call names the flag, the second gives it."""

    def script(call):
        said = fail(400, "temperature is not supported", param="temperature")
        return said if "temperature" in call.body else say(verdict("A"))

    requests_of(configure_collect, tmp_path, script)
    named = re.search(r"say (--judge-temperature none)", capsys.readouterr().err)
    assert requests_of(configure_collect, tmp_path, script, *named[1].split())
    assert "temperature" not in capsys.readouterr().err.replace("judge-1 temperature None", "")


# --- what a judge's verdicts say of the judge ------------------------------------------------------


def moody(call):
    """By the pair's letters: place decides, or the shorter, or the longer answer, or neither."""
    parts = [part.partition("]\n")[2].rpartition("\n[END")[0].strip() for part in call.user.split("\n\n[ANSWER ")[1:]]
    mood = sum(map(ord, "".join(parts))) % 4
    lead = (len(parts[0]) - len(parts[1])) * (-1 if mood == 1 else 1)
    if mood == 0:
        return say(verdict("A"))
    return say(verdict("tie" if mood == 3 or not lead else "A" if lead > 0 else "B"))


def counted(source, prompts):
    """(share, prompts): of clear verdicts for the longer, of those that it explains, of ties that disagree; by SQL."""
    with sqlite3.connect(source.removeprefix("store:")) as connection:
        rows = connection.execute(
            "SELECT p.content, trim(a.text, char(9, 10, 13, 32)), trim(b.text, char(9, 10, 13, 32)), j.outcome, "
            "j.comment FROM judgments j JOIN answers a ON a.key = j.first JOIN answers b ON b.key = j.second "
            "JOIN prompts p ON p.key = j.prompt WHERE j.rater LIKE 'judge-1%'"
        ).fetchall()
    rows = [(len(a) - len(b), said, comment, prompt) for prompt, a, b, said, comment in rows if prompt in prompts]
    clear = [((lead > 0) == (said == "first"), prompt) for lead, said, _, prompt in rows if said != "tie" and lead]
    agree = [(1.0 if (lead > 0, lead < 0) == (said == "first", said == "second")
              else 0.5 if not lead or said == "tie" else 0.0, prompt) for lead, said, _, prompt in rows]  # fmt: skip
    ties = [
        (comment.startswith("The two orders disagree"), prompt) for _, said, comment, prompt in rows if said == "tie"
    ]
    assert len(rows) == 6 * len(prompts)
    return [(sum(x for x, _ in some) / len(some), len({prompt for _, prompt in some})) for some in (clear, agree, ties)]


@pytest.mark.usefixtures("key")
def test_a_judges_leaning_to_length_is_counted_over_all_its_verdicts(configure_collect, capsys):
    """Over those of a call that its budget ended, too; of other prompts and other raters none."""
    config = configure_collect(n=4, max_rows=4)
    with Stub(moody) as stub:
        common = {"n": 4, "max_rows": 4, "rater": ["judge:judge-1"], "judge_server": stub.url, "concurrency": 2}
        collect(configure_collect(token_budget=2_000, **common))
        whole = collect(configure_collect(**common)).summary["judges"]
        capsys.readouterr()
        again = collect(configure_collect(**common)).summary["judges"]
        part = collect(configure_collect(limit=5, **common)).summary["judges"]
    prompts = [json.loads(line)["prompt"] for line in Path(config.prompts).read_text().splitlines()]
    for figures, some in ((whole, prompts), (part, prompts[:5])):
        expected = counted(config.store, some)
        (bias,) = figures
        assert bias["dimension"] == "overall"
        for name, (share, asked) in zip(
            ("prefers_longer", "baseline_agreement", "orders_disagree"), expected, strict=True
        ):
            assert (bias[name]["mean"], bias[name]["n"]) == (pytest.approx(share), asked)
            assert 0 <= bias[name]["low"] < share < bias[name]["high"] <= 1
        assert expected[1][1] == len(some)
        assert 0 < expected[2][0] < 1
    assert whole == again != part
    assert f"prefers the longer answer {whole[0]['prefers_longer']['mean']:.3f} [" in capsys.readouterr().err


def test_a_rule_has_no_leaning(configure_collect, rules):
    assert collect(configure_collect(rater=[rules])).summary["judges"] == []


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rater": ["oracle"]}, "give rule:FILE.yaml, judge:NAME, local:MODEL, people or simulated"),
        ({"rater": ["simulated:x"]}, "give rule:FILE.yaml"),
        ({"rater": ["rule:missing.yaml"]}, "missing.yaml"),
        ({"rater": ["judge:x"], "rubric": "missing.yaml"}, "missing.yaml"),
        ({"store": "store:"}, "store:FILE.db"),
    ],
)
@pytest.mark.usefixtures("key")
def test_what_cannot_be_done_is_refused_first(changes, match, configure_collect):
    with pytest.raises(InputError, match=match):
        collect(configure_collect(**changes))


def test_a_prompt_that_cannot_be_asked_does_not_stop_the_others(configure_collect, write_rows, tmp_path, make_model):
    """Too long for the model, or of a role that its template passes over: counted by reason, the rest is drawn."""
    model = make_model("llama", tokenizer="chat")
    template = (model / "chat_template.jinja").read_text()
    silent = template.replace(
        "<|{{ m.role }}|>{{ m.content }}", "{% if m.role != 'tool' %}<|user|>{{ m.content }}{% endif %}"
    )
    (tmp_path / "silent.jinja").write_text(silent)
    rows = [
        {"prompt": [{"role": "user", "content": "what can teddy do?"}]},
        {"prompt": [{"role": "user", "content": "what " * 200}]},
        {"prompt": [{"role": "tool", "content": "rain"}, {"role": "user", "content": "and now?"}]},
        {"prompt": [{"role": "user", "content": "what can bruno do?"}]},
    ]
    file = write_rows(tmp_path / "prompts.jsonl", rows)
    given = {"model": str(model), "prompts": str(file), "chat_template": str(tmp_path / "silent.jinja")}
    figures = collect(configure_collect(**given)).summary
    assert figures["drawn"] == 6
    assert figures["unanswered"] == {
        "the prompt leaves no room for an answer": [1, [2]],
        "the chat template leaves out the tool turn": [1, [3]],
    }


def test_what_was_drawn_is_trained_on_as_it_was_drawn(configure_collect, rules):
    """Through the store, and a file written from it: the ids of the draw, which the text alone does not give."""
    config = configure_collect(rater=[rules], temperature=1.0, seed=3)
    collect(config)
    text = checkpoints.load_text(config.model)
    with Store(config.store) as store:
        answers = {a.text: a for group in store.groups() for _, j in group for a in j.answers}
    respelt = sum(list(a.drawn.ids) != text.completion_ids("", t)[: len(a.drawn.ids)] for t, a in answers.items())
    assert respelt > 0  # else nothing is shown
    file = Path(config.store.removeprefix("store:")).with_suffix(".jsonl")
    assert cli.main(["data", "convert", "--data", config.store, "--out", str(file), "--to", "trl", "--pairs"]) == 0
    for source in (config.store, str(file)):
        pairs, counts, _ = read_pairs(source)
        done, _ = tokenise(pairs, counts, text, 128)
        assert len(done) == len(pairs) > 5
        for pair, bundle in done:
            for side, completion in zip((pair.chosen, pair.rejected), bundle.completions, strict=True):
                assert completion.ids == list(answers[side].drawn.ids)
                assert completion.truncated == answers[side].truncated


def test_a_prompt_that_stands_twice_is_answered_once(configure_collect, write_rows, tmp_path):
    file = write_rows(tmp_path / "twice.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}])
    figures = collect(configure_collect(prompts=str(file), max_bad_share=0.5)).summary
    assert figures["drawn"] == 6
    assert figures["rows"]["dropped"] == {"prompt of an earlier row": [1, [3]]}


# --- which prompts are asked ----------------------------------------------------------------------


MAIL = "ann@example.com"
CHATS = [
    {"messages": [{"role": "system", "content": f"we are {MAIL}"}, {"role": "user", "content": "sun?"}]},
    {"messages": [{"role": "user", "content": f"ask {MAIL}"}, {"role": "assistant", "content": f"{MAIL}?"},
                  {"role": "user", "content": "rain?"}, {"role": "assistant", "content": "no"}]},
    {"messages": [{"role": "user", "content": "snow?"}]},
]  # fmt: skip


@pytest.mark.parametrize(("personal", "asked"), [("keep", 3), ("mask", 3), ("drop", 1)])
def test_personal_data_reach_neither_model_nor_store_where_masked(
    personal, asked, configure_collect, make_model, write_rows, tmp_path, capsys
):
    """Looked for in the bytes of the store, in every turn of a log."""
    file = write_rows(tmp_path / "log.jsonl", CHATS)
    chats = {"model": str(make_model(tokenizer="chat")), "prompts": str(file), "max_bad_share": 0.5}  # it knows no @
    config = configure_collect(**chats, personal=personal)
    rows = collect(config).summary["rows"]
    kept = b"".join(f.read_bytes() for f in tmp_path.glob("store.db*"))
    assert kept.count(b"snow?") > 0
    assert (MAIL.encode() in kept) == (personal == "keep")
    assert (b"[email]" in kept) == (personal == "mask")
    verb = {"keep": "kept", "mask": "masked", "drop": "dropped"}[personal]
    assert rows["notes"][f"personal data {verb}: email"] == [2, [1, 2]]
    assert rows["used"] == asked
    assert rows["dropped"].get("personal data") == ([2, [1, 2]] if personal == "drop" else None)
    printed = capsys.readouterr().err
    assert f"'personal data {verb}: email': rows 1, 2" in printed
    assert ("(email in 2): --personal mask" in printed) == (personal == "keep")
    assert not any(collect(config).summary[part] for part in ("drawn", "unanswered"))


@pytest.mark.parametrize(("near_duplicates", "asked"), [("keep", 3), ("drop", 2)])
def test_near_duplicates_are_kept_or_dropped(near_duplicates, asked, configure_collect, write_rows, tmp_path):
    given = ["what can teddy do in the rain?", "what can teddy do in the rain", "hug paddy"]
    file = write_rows(tmp_path / "near.jsonl", [{"prompt": p} for p in given])
    summary = collect(configure_collect(prompts=str(file), near_duplicates=near_duplicates)).summary
    assert summary["drawn"] == 3 * asked
    table = summary["rows"]["notes" if near_duplicates == "keep" else "dropped"]
    assert list(table.values()) == [[1, [2]]]


def test_the_prompts_of_a_store_are_answered_in_another_way(configure_collect, rules, tmp_path):
    """Into the same store or another one; what they were answered before stays."""
    collect(configure_collect(rater=[rules]))
    source = configure_collect().store
    for target in ("store.db", "other.db"):
        figures = collect(configure_collect(target, prompts=source, seed=1, rater=[rules])).summary
        assert (figures["drawn"], sum(figures["judged"].values())) == (24, 24)
    with Store(source) as store:
        assert (survey.count_store(store).prompts, survey.count_store(store).answers) == (8, 48)


# --- the world's people ---------------------------------------------------------------------------


def tasks(count):
    asked = world.all_prompts(0)[:count]
    return [Task(p.text, Answer("a nap"), Answer("go to the park and hug", draw=1)) for p in asked]


def test_simulated_people_say_the_same_when_asked_again():
    one, again, other = (list(Simulated(seed).rate(tasks(40))) for seed in (1, 1, 2))
    assert one == again
    assert [j.verdict for _, (j,) in one] != [j.verdict for _, (j,) in other]
    assert {j.kind for _, (j,) in one} == {"simulated"}
    assert len({j.rater for _, (j,) in one}) > 10


def test_simulated_people_vote_as_the_world_says():
    """Shares of outcomes against votes drawn by the world itself."""

    (task,) = tasks(1)
    same = [
        Task(task.prompt, Answer(task.first.text, draw=2 * i), Answer(task.second.text, draw=i)) for i in range(3000)
    ]
    found = Counter(j.verdict.outcome for _, (j,) in Simulated(0).rate(same))
    rng = random.Random(9)
    expected = Counter(world.vote(task.prompt, task.first.text, task.second.text, rng).outcome for _ in range(3000))
    for outcome in ("first", "second", "tie"):
        assert abs(found[outcome] - expected[outcome]) < 4 * (2 * expected[outcome]) ** 0.5 + 5


def test_simulated_people_know_their_own_world_only(configure_collect):
    ((_, result),) = Simulated(0).rate([Task("who are you?", Answer("a"), Answer("b"))])
    assert "embedded world" in result.reason
    config = configure_collect(rater=["simulated"])
    with pytest.raises(InputError, match=r"prompts\.jsonl: .*embedded world only, and none of these 8 is one"):
        collect(config)
    assert not Path(config.store.removeprefix("store:")).exists(), "nothing was drawn for them"


def test_progress_counts_what_is_judged(configure_collect, rules, monkeypatch, capsys, tmp_path):
    """Eight prompts of three answers, two raters: 48 pairs; judged already, they are passed over at once."""
    monkeypatch.setattr("keel.progress.LINE_EVERY", 0.0)
    (tmp_path / "other.yaml").write_text("rules: [{matches: a}]")
    config = configure_collect(rater=[rules, f"rule:{tmp_path}/other.yaml"])
    collect(config)
    counted = [int(n) for n in re.findall(r"^pairs judged: (\d+)/48", capsys.readouterr().err, re.M)]
    assert [*dict.fromkeys(counted)] == [*range(49)]
    collect(config)
    assert re.findall(r"^pairs judged: (\d+)/48", capsys.readouterr().err, re.M)[-1] == "48"


def test_a_rule_that_fails_everywhere_is_no_success(configure_collect, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rule_broken.py").write_text("def score(prompt, completion):\n    return 1 / 0\n")
    config = configure_collect(rater=["rule:rule_broken:score"], n=2)
    with pytest.raises(RunFailed, match="none of 8 pairs has a verdict"):
        collect(config)


def test_ctrl_c_says_that_nothing_is_lost(configure_collect, rules, monkeypatch, capsys, tmp_path):
    config = configure_collect(rater=[rules])
    (tmp_path / "c.yaml").write_text(config.to_yaml())

    def stop(*some):
        raise KeyboardInterrupt

    monkeypatch.setattr("keel.commands.collect._judge", stop)
    assert cli.main(["collect", "--config", str(tmp_path / "c.yaml")]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "keel collect: stopped by Ctrl-C; what was drawn and judged is kept: the same call goes on"


def test_keys_of_what_is_judged_name_the_draw():
    prompt = prompt_id("p")
    assert answer_id(prompt, Answer("a")) != answer_id(prompt, Answer("a", draw=1))
