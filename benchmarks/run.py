"""Keel against its peers on the standard work, side by side in one run: writes docs/benchmarks.md and .json.

    make bench                                     # peers in environments of their own, then this
    make bench PAIRS=DIR/hh-harmless-test.jsonl.gz # people's pairs in place of made ones

Sides take turns (A B C C B A), each a process of its own, and a ratio is formed within a turn, so that a machine whose
speed drifts slows both. A line is printed only if the sides' numbers agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import page
import peaks
import standard
from sides import Side, compare

from keel.files.jsonl import write_lines
from keel.models.machine import multiplies_bf16
from keel.records import Pair

ROOT = Path(__file__).parent
LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Work:
    """What is compared: one method on the standard work."""

    name: str
    title: str
    unit: str
    count: int
    """Units in one run."""
    request: dict[str, Any]
    sides: tuple[Side, ...]
    """Keel first."""
    exact: tuple[Side, Side] | None = None
    """Two sides in fp32, run once beside the clock: their numbers must agree to `exact_tolerance`."""
    exact_tolerance: float = 1e-4
    rounds: int = 2
    build: Callable[[Path, list[Pair], int], None] = standard.build_data
    """What makes the data, from pairs and their number."""
    least: dict[str, bool] = field(default_factory=dict)
    """Where the least possible work is known: whether the head over the vocabulary is part of it."""


def works(keel: str, trl: str, trl_ppo: str) -> list[Work]:
    """All comparisons. Peers' tuned options are the fastest that theirs allow on this work and this processor."""
    bf16 = multiplies_bf16()
    plain: dict[str, Any] = {"gradient_checkpointing": False, "bf16": False}
    tuned = {"fast_matmul": True, "options": plain | {"bf16": bf16}}
    cached = {"precompute_ref_log_probs": True}
    in_fp32 = Side("Keel in fp32", keel, "side_keel.py", {"options": {"precision": "fp32"}})
    mine = Side("Keel", keel, "side_keel.py", {"options": {}})
    pairs = {"batch": standard.BATCH, "learning_rate": LEARNING_RATE}
    return [
        Work(
            "dpo",
            "DPO, cached reference",
            "pairs",
            4 * standard.BATCH,
            {"method": "dpo", "steps": 4, **pairs},
            (
                mine,
                Side("TRL 1.16, tuned", trl, "side_trl.py", tuned | {"options": tuned["options"] | cached}, 5e-3),
                Side("TRL 1.16, defaults", trl, "side_trl.py", {"options": {}}, 5e-3),
            ),
            (in_fp32, Side("TRL 1.16 in fp32", trl, "side_trl.py", {"options": plain | cached})),
            least={"head": True},
        ),
        Work(
            "reward",
            "Reward model",
            "pairs",
            4 * standard.BATCH,
            {"method": "reward", "steps": 4, **pairs, "learning_rate": 1e-4},
            (
                mine,
                Side("TRL 1.16, tuned", trl, "side_trl.py", tuned, 5e-3),
                Side("TRL 1.16, defaults", trl, "side_trl.py", {"options": {}}, 5e-3),
            ),
            (in_fp32, Side("TRL 1.16 in fp32", trl, "side_trl.py", {"options": plain})),
            least={"head": False},
        ),
        Work(
            "ppo",
            "PPO, one sample a prompt, 4 epochs, a value model of its own, 32-token answers",
            "episodes",
            16,
            {"method": "ppo", "steps": 1, "rollout": 16, **pairs},
            (
                mine,
                Side("TRL 1.12, tuned", trl_ppo, "side_trl_ppo.py", tuned, 10.0),
                Side("TRL 1.12, defaults", trl_ppo, "side_trl_ppo.py", {"options": {}}, 10.0),
            ),
            rounds=1,
        ),
        Work(
            "best",
            "Best-of-16, 64 tokens, scored",
            "candidates",
            16 * 16,
            {"method": "best", "prompts": 16},
            (
                mine,
                Side(
                    "generate + classifier, tuned",
                    trl,
                    "side_generate.py",
                    {"fast_matmul": True, "bf16": bf16, "together": 1},
                    0.1,
                ),
                Side("generate + classifier in fp32", trl, "side_generate.py", {"together": 1}, 0.1),
            ),
            rounds=1,
        ),
        Work(
            "long",
            "DPO, prompts of 1,000 tokens, answers of 100",
            "pairs",
            2 * standard.BATCH,
            {"method": "dpo", "steps": 2, **pairs},
            (mine, Side("Keel, sharing off", keel, "side_keel.py", {"options": {}, "pack": False}, 5e-3)),
            (
                in_fp32,
                Side(
                    "Keel in fp32, sharing off", keel, "side_keel.py", {"options": {"precision": "fp32"}, "pack": False}
                ),
            ),
            build=standard.build_long,
        ),
        Work(
            "four",
            "Reward model, four answers to a prompt, all six pairs",
            "pairs",
            2 * standard.ROUNDS_BATCH,
            {"method": "reward", "steps": 2, "batch": standard.ROUNDS_BATCH, "learning_rate": 1e-4},
            (
                mine,
                Side("TRL 1.16, tuned", trl, "side_trl.py", tuned, 5e-3),
                Side("TRL 1.16, defaults", trl, "side_trl.py", {"options": {}}, 5e-3),
            ),
            (in_fp32, Side("TRL 1.16 in fp32", trl, "side_trl.py", {"options": plain})),
            build=standard.build_rounds,
        ),
        Work(
            "lora",
            "DPO of an adapter of rank 16",
            "pairs",
            4 * standard.BATCH,
            {"method": "dpo", "steps": 4, **pairs, "learning_rate": 1e-4, "model": "adapter", "adapter": True},
            (
                Side("Keel", keel, "side_keel.py", {"options": {"lora": True}}),
                Side("TRL 1.16 and PEFT, tuned", trl, "side_trl.py", tuned, 5e-3),
                Side("TRL 1.16 and PEFT, defaults", trl, "side_trl.py", {"options": {}}, 5e-3),
            ),
            (
                Side("Keel in fp32", keel, "side_keel.py", {"options": {"precision": "fp32", "lora": True}}),
                Side("TRL 1.16 and PEFT in fp32", trl, "side_trl.py", {"options": plain}),
            ),
            build=standard.build_with_adapter,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl", required=True, help="Python of the environment with trl 1.16.0")
    parser.add_argument("--trl-ppo", required=True, help="Python of the environment with trl 1.12.0")
    parser.add_argument("--pairs", default="", help="Anthropic HH pairs; made ones where empty")
    parser.add_argument("--only", default="", help="works by name, with commas; the page keeps its other lines")
    parser.add_argument("--out", type=Path, default=ROOT.parent / "docs" / "benchmarks.json")
    options = parser.parse_args()
    all_works = works(sys.executable, options.trl, options.trl_ppo)
    chosen = [w for w in all_works if w.name in options.only.split(",") or not options.only]
    order = [w.name for w in all_works]
    with tempfile.TemporaryDirectory() as name, Path("bench.log").open("w") as log:
        folder = Path(name)
        pairs = standard.read(options.pairs) if options.pairs else standard.made(1000)
        parameters = standard.build_models(folder, pairs)
        facts = {
            "date": time.strftime("%Y-%m-%d"),
            "processor": peaks.processor(),
            "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "peaks": peaks.gemm_peaks(),
            "parameters": parameters,
            "pairs_from": "people's pairs (Anthropic HH)" if options.pairs else "made pairs",
        }
        for work in chosen:
            place = folder / f"{work.name}-work"
            place.mkdir()
            for part in ("model", "reward"):
                (place / part).symlink_to(folder / part)
            work.build(place, pairs, max(work.count, 16))
            found = compare(work, place, log)
            if work.least and found["sides"]["Keel"]["agrees"]:
                seconds = work.count / found["sides"]["Keel"]["per_second"]
                least = peaks.least_work(place, work.count, **work.least)
                found["gemm_share"] = least / max(facts["peaks"].values()) / seconds
                found["gemm_share_in_fp32"] = least / facts["peaks"]["fp32"] / found["seconds_in_fp32"]
            print(json.dumps(found, indent=1), flush=True)
            save(options.out, page.merged(options.out, facts, {work.name: found}, None, order))
        on_trunk = roles(folder, pairs, log) if not options.only or "roles" in options.only.split(",") else None
        growth = linear(folder, log) if not options.only or "growth" in options.only.split(",") else None
    written = page.merged(options.out, facts, {}, growth, order)
    if on_trunk is not None:
        written["roles"] = {"found": on_trunk, "facts": facts}
    save(options.out, written)
    print(page.text(written))


def roles(folder: Path, pairs: list[Pair], log: Any) -> dict[str, Any]:
    """PPO of four roles on one trunk of 135 M, beside four separate models and beside SFT of an adapter."""
    place = folder / "roles-work"
    place.mkdir()
    standard.build_models(place, pairs, standard.SMALL)
    standard.build_data(place, pairs, 16)
    standard.build_adapters(place)
    rows = [json.loads(line) for line in (place / "pairs.jsonl").open()]
    write_lines(place / "shown.jsonl", ({"prompt": r["prompt"], "completion": r["chosen"]} for r in rows))
    proximal = {"method": "ppo", "steps": 1, "rollout": 16, "batch": 8, "learning_rate": 1e-5}
    asked: dict[str, dict[str, Any]] = {
        "PPO, four roles on one trunk": {**proximal, "reward": "reward-adapter", "options": {"lora": True}},
        "PPO, four separate models": {**proximal, "options": {}},
        "SFT of an adapter": {**proximal, "method": "sft", "steps": 2, "options": {"lora": True}},
    }
    found: dict[str, Any] = {}
    for name, request in asked.items():
        process = Side(name, sys.executable, "side_keel.py", {}).start(place, log)
        runs = [process.run(request) for _ in range(3)]
        process.stop()
        found[name] = {"seconds": min(run["seconds"] for run in runs[1:]), "peak_gb": max(r["peak_gb"] for r in runs)}
        print(name, found[name], flush=True)
    return found


def save(file: Path, written: dict[str, Any]) -> None:
    """The page, and what it is made of."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(written, indent=1) + "\n")
    file.with_suffix(".md").write_text(page.text(written))


def linear(folder: Path, log: Any) -> dict[str, list[dict[str, float]]]:
    """Keel's seconds per pair, forward and backward, as pairs become more and completions longer."""
    process = Side("Keel", sys.executable, "side_keel.py", {"options": {}}).start(folder, log)
    ask = {"method": "passes", "prompt": 100, "completion": 100, "pairs": 16}
    process.run(ask)
    growth: dict[str, list[dict[str, float]]] = {"pairs": [], "completion": []}
    for name, values in (("pairs", (8, 16, 32, 64, 128)), ("completion", (32, 64, 128, 256, 400))):
        for value in values:
            seconds = [process.run(ask | {name: value})["seconds"] for _ in range(2)]
            growth[name].append(
                {"value": value, "per_pair": statistics.median(seconds) / (ask | {name: value})["pairs"]}
            )
    process.stop()
    return growth


if __name__ == "__main__":
    main()
