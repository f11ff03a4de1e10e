"""Keel against its peers on the standard work, side by side in one run: writes docs/benchmarks.md and .json.

    make bench                                     # TRL in an environment of its own, then this
    make bench PAIRS=DIR/hh-harmless-test.jsonl.gz # people's pairs in place of made ones

Sides take turns (A B C C B A), each a process of its own, and a ratio is formed within a turn, so that a machine whose
speed drifts slows both. A line is printed only if the sides' losses agree.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import standard
import torch

from keel.models import machine

ROOT = Path(__file__).parent
DOCS = ROOT.parent / "docs"
LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Side:
    """Somebody who does the work, and how."""

    name: str
    python: str
    script: str
    options: dict[str, Any]
    tolerance: float = 2e-3
    """Largest difference of a step's loss from Keel's."""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What is compared: one method on the standard work."""

    title: str
    method: str
    steps: int
    sides: tuple[Side, ...]
    """Keel first."""


def works(keel: str, trl: str) -> list[Work]:
    """All comparisons. Peers' tuned options are the fastest that theirs allow on this work."""
    fast = {"fast_matmul": True}
    tuned: dict[str, Any] = {"gradient_checkpointing": False, "bf16": False}
    return [
        Work(
            "DPO, cached reference",
            "dpo",
            4,
            (
                Side("Keel", keel, "side_keel.py", {}),
                Side("TRL 1.16 tuned", trl, "side_trl.py", tuned | {"precompute_ref_log_probs": True}, extra=fast),
                Side("TRL 1.16 default", trl, "side_trl.py", {}, 2e-2),
            ),
        ),
        Work(
            "Reward model",
            "reward",
            8,
            (
                Side("Keel", keel, "side_keel.py", {}),
                Side("TRL 1.16 tuned", trl, "side_trl.py", tuned, extra=fast),
                Side("TRL 1.16 default", trl, "side_trl.py", {}, 2e-2),
            ),
        ),
    ]


class Process:
    """A side at work."""

    def __init__(self, side: Side, work: Work, folder: Path, log: Any) -> None:
        self.side, self.work = side, work
        self.process = subprocess.Popen(
            [side.python, str(ROOT / side.script), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def run(self, steps: int) -> dict[str, Any]:
        """One run, with its seconds, losses and the process's peak memory."""
        request = {
            "method": self.work.method,
            "steps": steps,
            "batch": standard.BATCH,
            "learning_rate": LEARNING_RATE,
            "options": self.side.options,
            **self.side.extra,
        }
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.side.name} stopped in {self.work.title}: see the log")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


def compare(work: Work, folder: Path, rounds: int, log: Any) -> dict[str, Any]:
    """Runs of all sides in turn, there and back, and what came out."""
    processes = [Process(side, work, folder, log) for side in work.sides]
    for p in processes:
        p.run(1)  # what happens once only: imports, first allocations
    turns: list[list[dict[str, Any]]] = []
    for i in range(2 * rounds):
        turn: list[Any] = [None] * len(processes)
        for k in range(len(processes)) if i % 2 == 0 else reversed(range(len(processes))):
            turn[k] = processes[k].run(work.steps)
        turns.append(turn)
    for p in processes:
        p.stop()
    pairs = work.steps * standard.BATCH
    keel = [turn[0] for turn in turns]
    found: dict[str, Any] = {"title": work.title, "pairs": pairs, "sides": {}}
    for k, side in enumerate(work.sides):
        runs = [turn[k] for turn in turns]
        ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in zip(runs, keel, strict=True)]
        gap = max(loss_gap(theirs["losses"], ours["losses"]) for theirs, ours in zip(runs, keel, strict=True))
        found["sides"][side.name] = {
            "pairs_per_second": pairs / statistics.median(r["seconds"] for r in runs),
            "peak_gb": max(r["peak_gb"] for r in runs),
            "speed_ratio": {
                "median": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
                "n": len(ratios),
            },
            "memory_ratio": max(r["peak_gb"] for r in keel) / max(r["peak_gb"] for r in runs),
            "loss_gap": gap,
            "agrees": gap <= side.tolerance,
        }
    return found


def loss_gap(theirs: list[float], ours: list[float]) -> float:
    """The largest difference of a step's loss."""
    return max(abs(a - b) for a, b in zip(theirs, ours, strict=True))


# --- what it could be -----------------------------------------------------------------------------


def gemm_peaks() -> dict[str, float]:
    """FLOP/s of a large product in either precision, the best of some."""
    machine.use_fast_matmul()
    peaks = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(2048, 2048).to(dtype)
        seconds = []
        for _ in range(8):
            began = time.perf_counter()
            a @ a
            seconds.append(time.perf_counter() - began)
        peaks[name] = 2 * 2048**3 / min(seconds)
    return peaks


def least_work(folder: Path, steps: int, head: bool) -> float:
    """FLOPs of a training pass that computes nothing twice: trunk, attention, and the head on completion rows; x 3."""
    width, layers, inner, words = 512, 8, 1408, 32_000
    trunk = layers * (4 * width * width + 3 * width * inner)
    total = 0.0
    rows = [json.loads(line) for line in (folder / "ids.jsonl").open()][: steps * standard.BATCH]
    for row in rows:
        p, c, r = (len(row[k]) for k in ("prompt_ids", "chosen_ids", "rejected_ids"))
        seen = (p + c) * (p + c + 1) / 2 + r * p + r * (r + 1) / 2
        total += 2 * trunk * (p + c + r) + layers * 4 * width * seen + (2 * width * words * (c + r) if head else 0)
    return 3 * total


# --- what is written ------------------------------------------------------------------------------


def page(results: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """docs/benchmarks.md."""
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` on {facts['date']}: {facts['processor']}, {facts['threads']} threads, "
        f"torch {facts['torch']}. Matrix products reach {facts['peaks']['fp32'] / 1e9:.0f} GFLOP/s in fp32 and "
        f"{facts['peaks']['bf16'] / 1e9:.0f} in bf16.",
        "",
        f"Standard work: {facts['parameters'] / 1e6:.0f} M parameters, {facts['pairs_from']}, at most "
        f"{standard.MAX_LENGTH} tokens a side, batches of {standard.BATCH}. Sides take turns in one run; a ratio is "
        "formed within a turn. Brackets hold the lowest and the highest of them. Computing the reference's "
        "log-probabilities is part of the time on every side. A line stands here only if losses agree.",
        "",
        "| work | side | pairs/s | Keel is faster by | peak memory, GB | Keel's share of it | of the GEMM-bound time |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        for name, s in r["sides"].items():
            if not s["agrees"]:
                lines.append(f"| {r['title']} | {name} | losses differ by {s['loss_gap']:.2g}: not compared | | | | |")
                continue
            ratio = s["speed_ratio"]
            own = name == "Keel"
            faster = "" if own else f"{ratio['median']:.1f} × [{ratio['low']:.1f}, {ratio['high']:.1f}]"
            share = "" if own else f"{s['memory_ratio']:.2f}"
            bound = f"{r['gemm_share']:.0%}" if own else ""
            speed = f"{s['pairs_per_second']:.2f}"
            lines.append(f"| {r['title']} | {name} | {speed} | {faster} | {s['peak_gb']:.1f} | {share} | {bound} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl", required=True, help="Python of the environment with trl 1.16.0")
    parser.add_argument("--pairs", default="", help="Anthropic HH pairs; made ones where empty")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="", help="a method")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = [w for w in works(sys.executable, options.trl) if options.only in ("", w.method)]
        work_of = {w.method: folder / w.method for w in chosen}
        for w in chosen:
            parameters = standard.build(work_of[w.method], options.pairs or None, standard.BATCH * w.steps)
        facts = {
            "date": time.strftime("%Y-%m-%d"),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "peaks": gemm_peaks(),
            "parameters": parameters,
            "pairs_from": "people's pairs (Anthropic HH)" if options.pairs else "made pairs",
        }
        results = []
        with (Path.cwd() / "bench.log").open("w") as log:
            for work in chosen:
                found = compare(work, work_of[work.method], options.rounds, log)
                seconds = found["pairs"] / found["sides"]["Keel"]["pairs_per_second"]
                least = least_work(work_of[work.method], work.steps, head=work.method == "dpo")
                results.append(found | {"gemm_share": least / max(facts["peaks"].values()) / seconds})
                print(json.dumps(results[-1], indent=1), flush=True)
    if not options.only:
        DOCS.mkdir(exist_ok=True)
        (DOCS / "benchmarks.json").write_text(json.dumps({"facts": facts, "results": results}, indent=1) + "\n")
        (DOCS / "benchmarks.md").write_text(page(results, facts))
    print(page(results, facts))


def processor() -> str:
    """Its name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
    return names[0] if cpuinfo.exists() and names else platform.processor()


if __name__ == "__main__":
    main()
