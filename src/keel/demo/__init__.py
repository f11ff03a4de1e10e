"""The whole story on the embedded world, from nothing to a report that compares DPO, PPO and best-of-N.

Each step leaves its runs and its figures (`steps/NAME.json`) in the folder; a second call reuses the finished ones. The
steps call the same `train` functions as the command line. Only the simulated people and the final evaluation know gold.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from typing import Any

import torch

from keel import progress, world
from keel.config import DemoConfig
from keel.demo import model, tuning, verdicts, votes
from keel.demo.story import Sizes, Story
from keel.errors import InputError, Interrupted
from keel.files.jsonl import write_json
from keel.models import machine
from keel.records import Result
from keel.says import say

PR_SET_PDEATHSIG = 1
"""Number of Linux's prctl.h."""
_Step = tuple[str, str, Callable[[Story], dict[str, Any]]]

STAGES: list[list[list[_Step]]] = [
    [
        [
            ("world", "the world: prompts, a corpus, a tokenizer, a model that knows nothing", model.make_world),
            ("recall", "pre-training on what was just said", model.pretrain_recall),
            ("pretrain", "pre-training on right answers", model.pretrain),
        ]
    ],
    [
        [("sft", "supervised fine-tuning on answers of mixed quality", model.supervised)],
        [("prefer", "pre-training of the reward model: which answer belongs to the question", tuning.prefer)],
    ],
    [
        [
            ("votes", "pairs from the SFT model, judged by simulated people", votes.collect_votes),
            ("check", "the votes, checked before they train anything", votes.check_votes),
        ],
        [
            ("many_answers", "the SFT model's 256 answers to each of 64 held-out prompts", verdicts.many_answers),
            ("sixteen_answers", "the SFT model's sixteen answers to each held-out prompt", verdicts.sixteen_answers),
        ],
    ],
    [
        [
            ("reward", "reward model on the votes", tuning.reward_model),
            ("ppo", "PPO against the reward model", tuning.tune_ppo),
        ],
        [
            ("dpo", "DPO on the votes", tuning.tune_dpo),
            ("overoptimise", "a reward model on little data, hacked on purpose", tuning.overoptimise),
        ],
    ],
    [
        [
            ("compare", "every method on held-out prompts", verdicts.compare_methods),
        ],
        [
            ("best_of_n_curve", "best-of-N up to N = 256", verdicts.measure_best_of_n),
        ],
    ],
]
"""Stages run one after the other, lanes of a stage side by side: matrices this small do not fill two cores."""
STEPS = [step for stage in STAGES for lane in stage for step in lane]


def demo(config: DemoConfig, sizes: Sizes | None = None) -> Result:
    """Run every unfinished step, then write `summary.json` and `report.html`."""
    settings = config.out / "config.yaml"
    if settings.exists() and settings.read_text() != config.to_yaml():
        raise InputError(f"{settings}: this folder holds a demo with other settings; choose another --out or remove it")
    if not settings.exists() and config.out.exists() and any(config.out.iterdir()):
        raise InputError(f"{config.out} holds something that is not a demo; choose another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    settings.write_text(config.to_yaml())
    story = Story(config, sizes or Sizes())
    if reused := records_of(story):
        say(f"reusing the finished steps in {config.out}; to start afresh, remove that folder")
    for record in reused.values():
        say(f"{record['title']}: reused ({record['seconds']:.0f} s when it ran)")
    unfinished = [name for name, *_ in STEPS if not story.record(name).exists()]
    if unfinished:
        tell(story, unfinished)
    from keel.demo import report

    summary = _summarise(story)
    write_json(config.out / "summary.json", summary)
    report.write_report(summary, config.out / "report.html")
    say(f"report: {config.out / 'report.html'}   figures: {config.out / 'summary.json'}")
    return Result(config.out, summary)


def tell(story: Story, unfinished: list[str]) -> None:
    """Run the unfinished steps: the lanes of a stage side by side, each in a process with its share of the cores.

    This process only waits: what it had once held would be held until the end.
    """
    lanes, cores = max(map(len, STAGES)), torch.get_num_threads()
    with ProcessPoolExecutor(lanes, get_context("spawn"), initializer=end_with, initargs=(os.getpid(),)) as pool:
        for _ in range(lanes):
            pool.submit(time.time)  # starts the processes now, so that they are ready when needed
        for stage in STAGES:
            waiting = [names for lane in stage if (names := [name for name, *_ in lane if name in unfinished])]
            threads = cores if len(stage) == 1 else max(1, cores // lanes)
            running = [pool.submit(run_lane, story, names, threads, len(stage) > 1) for names in waiting]
            try:
                for lane in running:
                    lane.result()
            except Interrupted:  # SIGTERM came to this process alone; Ctrl-C comes to all
                for child in active_children():
                    child.kill()  # a step that was not finished is begun anew
                raise


def end_with(parent: int) -> None:
    """Have the system end this process when the one that started it ends, however that is. Only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os._exit(1)


def records_of(story: Story) -> dict[str, dict[str, Any]]:
    """Return the records of the finished steps, by name."""
    files = {name: story.record(name) for name, *_ in STEPS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def run_lane(story: Story, names: Sequence[str], threads: int, plain: bool) -> None:
    """Run steps one after the other, on so many threads; `plain` shows progress as lines, since others run beside."""
    torch.set_num_threads(threads)
    progress.plain_screen = plain  # two live bars would overwrite each other
    for name, title, step in STEPS:
        if name in names:
            story.run(name, title, step)
            machine.give_back_memory()


def _summarise(story: Story) -> dict[str, Any]:
    """Return the content of `summary.json`: every figure of the report."""
    records = records_of(story)
    f = {name: record["figures"] for name, record in records.items()}
    seconds, peak = cost(records)
    rows = f["compare"]["rows"]
    for name, step in (
        ("sft", "sft"),
        ("dpo", "dpo"),
        ("ppo", "ppo"),
        ("best_of_n", None),
        ("best_of_4", None),
    ):
        rows[name]["train_seconds"] = f[step]["train_seconds"] if step else 0.0
    reward_seconds = f["prefer"]["train_seconds"] + f["reward"]["train_seconds"]
    for name in ("ppo", "best_of_n", "best_of_4"):
        rows[name]["reward_model_seconds"] = reward_seconds
    return {
        "seed": story.seed,
        "seconds": seconds,
        "peak_rss_gb": peak,
        "steps": [{k: r[k] for k in ("name", "title", "seconds", "peak_rss_gb")} for r in records.values()],
        "world": f["world"],
        "weights": dict(world.WEIGHTS),
        "votes": f["votes"],
        "data": f["check"],
        "sft": {
            **{k: rows["sft"][k] for k in ("gold_mean", "parsed", "dimensions")},
            "loss": f["sft"]["eval"].get("loss"),
        },
        "reward_model": {k: v for k, v in f["reward"].items() if k not in ("curve", "eval")},
        "methods": rows,
        "curves": {
            "best_of_n": f["best_of_n_curve"]["points"],
            "ppo": tuning.measure_training(story, "ppo", every=2),
            "overoptimisation": f["overoptimise"],
        },
        "learning": {
            name: f[name]["curve"] for name in ("recall", "pretrain", "sft", "prefer", "reward", "dpo", "ppo")
        },
        "examples": f["compare"]["examples"],
    }


def cost(records: dict[str, dict[str, Any]]) -> tuple[float, float]:
    """Return the story's seconds and peak memory in GB; lanes side by side add their memory to this process's."""
    seconds, peak = 0.0, 0.0
    for stage in STAGES:
        lanes = [[records[name] for name, *_ in lane] for lane in stage]
        seconds += max(sum(r["seconds"] for r in lane) for lane in lanes)
        peak = max(peak, sum(max(r["peak_rss_gb"] for r in lane) for lane in lanes))
    return round(seconds, 2), round(peak + progress.peak_rss_gb(), 3)
