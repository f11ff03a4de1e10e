"""How runs end: a DPO run that wrecks its model says so and keeps an earlier checkpoint; five lines at every end."""

from __future__ import annotations

import json
import sqlite3
import statistics

import pytest
import torch
from transformers import AutoModelForCausalLM

from keel.commands.collect import collect
from keel.config import BestOfNConfig
from keel.methods import ppo
from keel.methods.best_of_n import best_of_n
from keel.sampling import comparison


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, base, demonstrations_file):
    """A model that knows the chosen answers, as one that is tuned by DPO does."""
    from keel.config import SFTConfig
    from keel.methods import sft

    options = {"batch_size": 4, "steps": 60, "learning_rate": 1e-2, "device": "cpu", "precision": "fp32"}
    out = tmp_path_factory.mktemp("tuned") / "sft"
    return sft.train(SFTConfig(model=str(base), data=str(demonstrations_file), out=out, **options)).final


def wrecked(train, tuned, **changes):
    """Ten steps of DPO, looked at after each."""
    options = {"steps": 10, "eval_every": 1, "batch_size": 12, "learning_rate": 3e-3, "holdout": 0.25}
    return train("dpo", model=str(tuned), **{**options, **changes})


def about(result):
    return [warning["about"] for warning in result.summary["verdict"]["warnings"]]


@pytest.mark.parametrize("learning_rate", [3e-3, 1e-2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wrecked_dpo_run_warns_and_keeps_an_earlier_checkpoint(train, tuned, metrics_of, capsys, learning_rate, seed):
    """The fall is read off metrics.jsonl: the kept step's is smaller than that of the last."""
    result = wrecked(train, tuned, learning_rate=learning_rate, seed=seed)
    kept, rows = result.summary["best"]["step"], metrics_of(result.folder)
    chosen = [row["eval/logps/chosen"] for row in rows]
    assert kept < 10
    assert chosen[kept - 1] > chosen[-1] + 1
    assert "chosen answers fell" in about(result)
    told = capsys.readouterr().err
    assert f"kept: step {kept} of 10" in told
    assert f"to {min(chosen):.1f} nats" in told
    assert "lower --learning-rate" in told


def test_a_healthy_dpo_run_warns_of_nothing(train, tuned, capsys):
    result = wrecked(train, tuned, learning_rate=2e-4)
    assert about(result) == []
    assert capsys.readouterr().err.splitlines()[-1] == "warnings: none"


@pytest.mark.parametrize(
    ("by", "figure"), [("loss", "eval/loss"), ("accuracy", "eval/rewards/accuracies"), ("last", "step")]
)
def test_best_by_overrides_the_rule(train, tuned, metrics_of, by, figure):
    result = wrecked(train, tuned, best_by=by)
    values = [row[figure] for row in metrics_of(result.folder)]
    kept = values[result.summary["best"]["step"] - 1]
    assert kept == (min(values) if by == "loss" else max(values))
    assert f"--best-by {by}" in result.summary["verdict"]["kept"]
    assert "chosen answers fell" in about(result)


def test_without_held_out_pairs_training_tells_of_the_fall(train, tuned, metrics_of):
    result = wrecked(train, tuned, holdout=0.0, learning_rate=3e-2, batch_size=16, eval_every=None)
    rows = metrics_of(result.folder)
    assert rows[-1]["rewards/chosen"] < -0.5  # five nats at beta 0.1
    (warning,) = (w for w in result.summary["verdict"]["warnings"] if w["about"] == "chosen answers fell")
    assert "--holdout" in warning["message"]


# --- every method's end

METHODS = ("sft", "reward", "dpo", "ppo")


@pytest.mark.parametrize("method", METHODS)
def test_every_run_ends_with_a_verdict(train, capsys, method):
    """Five lines, the last ones; the same in summary.json; figures before are those of a model that has not moved."""
    result = train(method, holdout=0.25, learning_rate=1e-9)
    summary = json.loads((result.folder / "summary.json").read_text())
    end = summary["verdict"]
    lines = capsys.readouterr().err.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("reached: held out, "))
    assert [line.partition(":")[0].split(" to ")[0] for line in lines[start : start + 4]] == [
        "reached", "kept", "KL", "samples"
    ]  # fmt: skip
    shown = [line for line in lines[start + 4 :] if line.startswith("  ")]
    assert len(shown) == len(end["samples"]) == min(3, 2 if method == "ppo" else 4)
    assert {line.partition(":")[0] for line in lines[start + 4 + len(shown) :]} == {"warning"}
    assert f"kept: step {summary['best']['step']} of 4: " in lines[start + 1]
    assert {w["about"] for w in end["warnings"]} & {"loss hardly moved", "policy hardly moved"}
    for name, figure in end["figures"]["figures"].items():
        assert figure["after"] == summary["eval"][name]
        if "accurac" not in name:  # which is 1/2 before anything has moved, and 0 or 1 a pair as soon as it has
            assert figure["before"]["mean"] == pytest.approx(figure["after"]["mean"], abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_held_out_is_said(train, method):
    end = train(method, steps=2).summary["verdict"]
    assert "nothing is held out" in end["reached"]
    assert "nothing is held out" in end["kept"]
    assert end["samples"] == []


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_kl_is_that_of_the_answers_drawn(train, base, monkeypatch, method):
    """Log-probabilities by Hugging Face alone, mean and standard error over prompts by hand."""
    drawn = []
    real = comparison.sample
    monkeypatch.setattr(comparison, "sample", lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1])
    result = train(method, holdout=0.25, learning_rate=1e-2)
    kept, start = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (result.final, base))
    ratios = []
    with torch.no_grad():
        for b in drawn[0]:
            of = [sum_of(kept, b.prompt_ids, c.ids) - sum_of(start, b.prompt_ids, c.ids) for c in b.completions]
            ratios.append(statistics.fmean(of))
    found = result.summary["verdict"]["figures"]["kl"]
    assert found["answers"] == sum(len(b.completions) for b in drawn[0]) == 32
    assert found["mean"] == pytest.approx(statistics.fmean(ratios), abs=1e-3)
    assert found["se"] == pytest.approx(statistics.stdev(ratios) / len(ratios) ** 0.5, rel=1e-3)
    shown = result.summary["verdict"]["samples"][0]
    assert shown["kept"] == drawn[0][0].completions[0].text
    assert shown["reference" if method == "dpo" else "start"] == drawn[1][0].completions[0].text


def sum_of(model, prompt, ids):
    logits = model(input_ids=torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(ids))


@pytest.fixture
def one_for_all(tmp_path, monkeypatch):
    """A rule that gives every answer the same score."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rule_flat.py").write_text("def score(prompt, completion):\n    return 0.5\n")
    return "rule:rule_flat:score"


def test_ppo_without_a_signal_says_so(train, one_for_all, capsys):
    """One token an answer: nearly all are cut, and each is scored the same."""
    result = train("ppo", reward=one_for_all, truncation="score", max_new_tokens=1, steps=2)
    assert "equal rewards" in about(result)
    told = capsys.readouterr().err
    assert "warning: step 1: every reward was equal" in told
    assert "in 2 of 2 rollouts" in told
    assert result.summary["verdict"]["figures"]["equal_rollouts"] == 2


def test_ppo_whose_answers_are_all_cut_says_so(train, monkeypatch):
    real = ppo.sample

    def cut(*args, **options):
        bundles = real(*args, **options)
        for c in (c for b in bundles for c in b.completions):
            c.truncated = True
        return bundles

    monkeypatch.setattr(ppo, "sample", cut)
    result = train("ppo", steps=2)
    (warning,) = (w for w in result.summary["verdict"]["warnings"] if w["about"] == "all cut")
    assert "in 2 of 2 rollouts all answers were cut at --max-new-tokens 8, each scored -1" in warning["message"]
    assert "equal rewards" in about(result)


def test_best_of_n_ends_with_a_verdict(base, prompts_file, one_for_all, tmp_path, capsys):
    config = BestOfNConfig(
        model=str(base), prompts=str(prompts_file), reward=one_for_all, out=tmp_path / "b.jsonl", n=3,
        max_new_tokens=8, device="cpu", precision="fp32",
    )  # fmt: skip
    end = best_of_n(config).summary["verdict"]
    assert [w["about"] for w in end["warnings"]] == ["equal rewards"]
    assert "score 0.5 [0.5, 0.5] (one answer) -> 0.5 [0.5, 0.5] (the best)" in end["reached"]
    assert len(end["samples"]) == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("warning: every reward was equal, 0.5")


def test_collect_ends_with_a_verdict(configure_collect, rules, capsys):
    config = configure_collect(rater=[rules])
    end = collect(config).summary["verdict"]
    with sqlite3.connect(config.store.removeprefix("store:")) as connection:
        (answers,) = connection.execute("SELECT count(*) FROM answers").fetchone()
    assert end["figures"]["answers"] == 8 * 3 >= answers
    assert len(end["samples"]) == 3
    assert end["reached"].startswith("24 answers, 24 of them new; ")
    lines = capsys.readouterr().err.splitlines()
    assert f"reached: {end['reached']}" in lines
    assert lines[-1].partition(":")[0] in ("warnings", "warning")
