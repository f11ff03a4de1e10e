"""The whole story in small: every step runs, the figures are all there, and a second call reuses what is done."""

import json
import math

import pytest

from keel import demo
from keel.config import DemoConfig
from keel.errors import InputError

SMALL = {
    "LESSONS": 1600,
    "DEMONSTRATIONS": 320,
    "VOTES": 96,
    "FEW_VOTES": 24,
    "HELD_OUT_PAIRS": 48,
    "HELD_OUT_PROMPTS": 40,
    "CURVE_PROMPTS": 4,
    "CURVE_N": 16,
    "PPO_ROLLOUTS": 2,
    "HACKING_ROLLOUTS": 4,
    "ROLLOUT": 16,
    "MAX_NEW_TOKENS": 40,
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "story"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(demo, name, value)
        yield demo.demo(DemoConfig(out=folder, seed=3)), folder


def figures(summary):
    """Every mean with its interval, by path."""
    if isinstance(summary, dict):
        if {"mean", "low", "high", "n"} <= summary.keys():
            yield summary
            return
        for value in summary.values():
            yield from figures(value)
    elif isinstance(summary, list):
        for value in summary:
            yield from figures(value)


def test_the_summary_holds_what_is_promised(told):
    _, folder = told
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seconds"] > 0
    assert 0 < summary["peak_rss_gb"] < 24
    assert {"mean", "low", "high", "n"} <= summary["sft"]["gold_mean"].keys()
    assert summary["reward_model"]["accuracy"]["n"] > 0
    for name in ("dpo", "ppo", "best_of_n"):
        row = summary["methods"][name]
        for key in ("gold_win_rate", "gold_mean", "kl", "length_mean"):
            assert row[key]["low"] <= row[key]["mean"] <= row[key]["high"]
        assert row["train_seconds"] >= 0
        assert row["serve_cost_ratio"] > 0
    assert summary["methods"]["best_of_n"]["kl"]["mean"] == pytest.approx(math.log(16) - 15 / 16)
    assert summary["methods"]["sft"]["gold_win_rate"]["mean"] == 0.5  # against itself
    assert [p["n"] for p in summary["curves"]["best_of_n"]] == [1, 2, 4, 8, 16]
    assert all(f["low"] <= f["mean"] <= f["high"] for f in figures(summary))


def test_best_of_n_costs_what_it_costs(told):
    result, _ = told
    assert result.summary["methods"]["best_of_n"]["serve_cost_ratio"] > 10
    assert result.summary["methods"]["dpo"]["serve_cost_ratio"] < 3


def test_the_report_is_there_and_holds_the_methods(told):
    _, folder = told
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("DPO", "PPO", "Best-of-16"))


def test_a_second_call_reuses_every_step(told, capsys):
    _, folder = told
    before = {f: f.stat().st_mtime_ns for f in folder.glob("*/metrics.jsonl")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(demo, name, value)
        demo.demo(DemoConfig(out=folder, seed=3))
    assert {f: f.stat().st_mtime_ns for f in folder.glob("*/metrics.jsonl")} == before
    said = capsys.readouterr().err
    assert "to start afresh, remove" in said
    assert said.count("reused") == len(demo.STEPS)


def test_another_seed_in_the_same_folder_is_refused(told):
    _, folder = told
    with pytest.raises(InputError, match="other settings"):
        demo.demo(DemoConfig(out=folder, seed=4))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not a demo"):
        demo.demo(DemoConfig(out=tmp_path))
