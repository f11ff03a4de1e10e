"""The whole story in small: every step runs, the figures are all there, and a second call reuses what is done."""

import json
import math
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from keel import demo
from keel.config import DemoConfig
from keel.errors import InputError
from keel.store.store import Store

SMALL = demo.Sizes(
    recalls=320,
    lessons=3200,
    mismatched=64,
    demonstrations=640,
    vote_prompts=48,
    few_votes=24,
    second_opinions=60,
    compared=48,
    held_out_pairs=48,
    held_out_prompts=40,
    curve_prompts=4,
    curve_n=16,
    rollout=16,
    ppo_rollouts=2,
    hacking_rollouts=4,
    max_new_tokens=40,
)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "story"
    return demo.demo(DemoConfig(out=folder, seed=3), SMALL), folder


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


def test_lanes_cost_the_time_of_the_longer_and_the_memory_of_all(told):
    _, folder = told
    summary = json.loads((folder / "summary.json").read_text())
    steps = {s["name"]: s for s in summary["steps"]}
    stages = [
        [("sft",), ("prefer",)],
        [("votes", "check"), ("many_answers", "sixteen_answers")],
        [("reward", "ppo"), ("dpo", "overoptimise")],
        [("compare",), ("best_of_n_curve",)],
    ]
    side_by_side = {name for lanes in stages for lane in lanes for name in lane}
    alone = sum(s["seconds"] for name, s in steps.items() if name not in side_by_side)
    longer = sum(max(sum(steps[name]["seconds"] for name in lane) for lane in lanes) for lanes in stages)
    assert summary["seconds"] == pytest.approx(alone + longer, abs=0.1)
    together = sum(max(steps[name]["peak_rss_gb"] for name in lane) for lane in stages[2])
    assert summary["peak_rss_gb"] > together


def test_best_of_n_costs_what_it_costs(told):
    result, _ = told
    assert result.summary["methods"]["best_of_n"]["serve_cost_ratio"] > 10
    assert result.summary["methods"]["dpo"]["serve_cost_ratio"] < 3


def test_the_report_is_there_and_holds_the_methods(told):
    _, folder = told
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("DPO", "PPO", "Best-of-16"))
    assert 'href="data.html"' in page


def test_the_votes_have_a_page_of_their_own(told):
    """Its figures are those of the votes in the store, counted here by hand."""
    _, folder = told
    summary = json.loads((folder / "summary.json").read_text())
    found = json.loads((folder / "data" / "check.json").read_text())
    page = (folder / "data.html").read_text()
    with Store(f"store:{folder / 'data' / 'votes.db'}") as store:
        judged = [j for group in store.groups() for _, j in group]
    preferred = defaultdict(dict)  # by contest and rater, whose first word is compared
    for j in judged:
        shown = [(a.text, a.draw) for a in j.answers]
        outcome = j.verdict.outcome
        better = shown[("first", "second").index(outcome)] if outcome != "tie" else "tie"
        preferred[j.prompt, frozenset(shown)].setdefault(j.rater, better)
    twice = [list(words.values()) for words in preferred.values() if len(words) > 1]
    assert 50 <= len(twice) <= 60  # now and then the same person comes twice
    agreement = summary["data"]["agreement"]
    assert agreement["shared"] == len(twice)
    assert agreement["agree"]["mean"] == pytest.approx(statistics.fmean(one == other for one, other in twice))
    assert found["survey"]["judgments"] == len(judged)
    alike = {contest for contest, words in preferred.items() if len(set(words.values())) == 1}
    decided = {prompt for prompt, shown in alike if "tie" not in preferred[prompt, shown].values()}
    assert len(decided) <= found["length"]["length_only"]["n"] <= len({prompt for prompt, _ in preferred})
    assert found["distribution"]["auc"]["low"] <= 0.65  # drawn from the very model that they are compared with
    for words in ("How far raters agree", "Do the pairs look like what the model says?", "ength alone"):
        assert words in page
    assert summary["data"]["length_only"] == found["length"]["length_only"]
    assert summary["data"]["auc"] == found["distribution"]["auc"]
    shown = {
        "Predicted by length alone": found["length"]["length_only"],
        "Raters’ agreement": agreement["alpha"],
        "Pairs against the model": found["distribution"]["auc"],
    }
    for title, figure in shown.items():
        (tile,) = page.split(f"<h3>{title}</h3>")[1:]
        low, mean, high = (f"{100 * figure[end]:.1f}%" for end in ("low", "mean", "high"))
        assert f"--low:{low};--at:{mean};--high:{high}" in tile.partition("</div>")[0]


def test_a_second_call_reuses_every_step(told, capsys):
    _, folder = told
    before = {f: f.stat().st_mtime_ns for f in folder.glob("*/metrics.jsonl")}
    demo.demo(DemoConfig(out=folder, seed=3), SMALL)
    assert {f: f.stat().st_mtime_ns for f in folder.glob("*/metrics.jsonl")} == before
    said = capsys.readouterr().err
    assert "to start afresh, remove" in said
    assert said.count("reused") == len(demo.STEPS)


def test_a_step_that_is_missing_is_done_again_alone_and_comes_out_the_same(told):
    _, folder = told
    lost = folder / "steps" / "compare.json"
    figures_before = json.loads(lost.read_text())["figures"]
    lost.unlink()
    others = {f: f.stat().st_mtime_ns for f in (folder / "steps").iterdir()}
    demo.demo(DemoConfig(out=folder, seed=3), SMALL)
    assert json.loads(lost.read_text())["figures"] == figures_before
    assert {f: f.stat().st_mtime_ns for f in others} == others


def test_the_answers_that_were_kept_are_to_held_out_prompts_and_say_whether_they_were_cut(told):
    _, folder = told
    story = demo.Story(DemoConfig(out=folder, seed=3), SMALL)
    bundles = demo.verdicts.drawn(story, "answers-of-16")
    assert [str(b.prompt).strip() for b in bundles] == [p.text for p in story.prompts[1][:40]]
    answers = [c for b in bundles for c in b.completions]
    assert len(answers) == 40 * 16
    assert all(c.truncated == (c.ids[-1] != 2) for c in answers)
    assert all(len(c) == SMALL.max_new_tokens for c in answers if c.truncated)
    assert {c.truncated for c in answers} == {True, False}


def test_another_seed_in_the_same_folder_is_refused(told):
    _, folder = told
    with pytest.raises(InputError, match="other settings"):
        demo.demo(DemoConfig(out=folder, seed=4))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not a demo"):
        demo.demo(DemoConfig(out=tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_demo_that_is_killed_leaves_no_process_behind(tmp_path):
    line = [sys.executable, "-m", "keel.cli", "demo", "--out", str(tmp_path / "demo")]
    parent = subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    children: list[int] = []
    end = time.monotonic() + 60
    while len(children) < 2 and time.monotonic() < end:  # the two that work, once they are past their own start
        time.sleep(0.2)
        found = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        children = [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(children) >= 2
    time.sleep(5)
    parent.terminate()
    parent.wait(30)
    end = time.monotonic() + 20
    while any(map(alive, children)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, children))


def alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
