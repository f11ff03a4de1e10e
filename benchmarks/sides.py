"""Sides of a comparison: processes that take turns at the same work, and what their runs say together."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Side:
    """Somebody who does the work, and how."""

    name: str
    python: str
    script: str
    extra: dict[str, Any]
    """Goes into every request."""
    tolerance: float = 2e-3
    """Largest difference of a number from Keel's."""
    env: dict[str, str] = field(default_factory=dict)
    """Added to the process's environment."""

    def start(self, folder: Path, log: Any) -> Process:
        """A process that answers this side's requests."""
        return Process(self, folder, log)


class Process:
    """A side at work."""

    def __init__(self, side: Side, folder: Path, log: Any) -> None:
        self.side = side
        self.process = subprocess.Popen(
            [side.python, str(ROOT / side.script), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | side.env,
        )

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """One run, with its seconds, numbers and the process's peak memory."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request | self.side.extra) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.side.name} stopped: see bench.log")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End it, so that its memory is free."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


def compare(work: Any, folder: Path, log: Any) -> dict[str, Any]:
    """Runs of all sides in turn, there and back, and what came out."""
    gap_exact, seconds_exact = in_fp32(work, folder, log)
    processes = [side.start(folder, log) for side in work.sides]
    turns: list[list[dict[str, Any]]] = []
    for i in range(2 * work.rounds + 1):
        turn: list[Any] = [None] * len(processes)
        for k in range(len(processes)) if i % 2 == 0 else reversed(range(len(processes))):
            turn[k] = processes[k].run(work.request)
        turns.append(turn)
    for p in processes:
        p.stop()
    turns = turns[1:]  # the first includes what happens once only: imports, first allocations
    keel = [turn[0] for turn in turns]
    found: dict[str, Any] = {"title": work.title, "unit": work.unit, "exact_gap": gap_exact, "sides": {}}
    found["seconds_in_fp32"] = seconds_exact
    exact = gap_exact is None or gap_exact <= work.exact_tolerance
    for k, side in enumerate(work.sides):
        runs = [turn[k] for turn in turns]
        ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in zip(runs, keel, strict=True)]
        gap = max(largest_gap(theirs["numbers"], ours["numbers"]) for theirs, ours in zip(runs, keel, strict=True))
        found["sides"][side.name] = {
            "per_second": work.count / statistics.median(r["seconds"] for r in runs),
            "peak_gb": max(r["peak_gb"] for r in runs),
            "speed_ratio": {
                "median": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
                "n": len(ratios),
            },
            "memory_ratio": max(r["peak_gb"] for r in keel) / max(r["peak_gb"] for r in runs),
            "numbers": runs[0]["numbers"],
            "gap": gap,
            "agrees": exact and gap <= side.tolerance,
        }
    return found


def in_fp32(work: Any, folder: Path, log: Any) -> tuple[float | None, float | None]:
    """The largest difference between two sides that both compute in fp32, and the seconds of Keel, which is the first.

    None and None where there are no such sides.
    """
    if work.exact is None:
        return None, None
    runs = []
    for side in work.exact:
        process = side.start(folder, log)
        process.run(work.request)  # imports, first allocations
        runs.append(process.run(work.request))
        process.stop()
    return largest_gap(*(run["numbers"] for run in runs)), runs[0]["seconds"]


def largest_gap(theirs: list[float], ours: list[float]) -> float:
    """The largest difference of a number."""
    return max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
