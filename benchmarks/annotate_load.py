"""The annotation page under load: raters at once, the server killed in the middle, and everything counted afterwards.

Each client asks for a task, judges it, and asks again: as fast as it can, or with `--pace 1` a judgment a second. With
`--kill` the server is killed (kill -9) when half of the judgments are in, and started again; clients try again until it
answers, as the page does. Prints the latencies, and whether any judgment was lost, doubled, or one too many.

    python benchmarks/annotate_load.py --tasks 100000 --raters 20 --pace 1 --judgments 2000
    python benchmarks/annotate_load.py --tasks 6000 --overlap 2 --raters 20 --judgments 10000 --kill
    … --store postgresql://USER@HOST/NAME       an empty database
"""

from __future__ import annotations

import argparse
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import sqlalchemy as sa

from keel.annotation import accounts
from keel.annotation.queue import Queue
from keel.annotation.tasks import NewTask
from keel.records import Answer
from keel.store import schema
from keel.store.store import Store

WORDS = ("the bear walks to the river and sits down on a stone in the sun " * 12).split()


@dataclass
class Load:
    """One run: what is asked, and what was seen."""

    source: str
    raters: int
    judgments: int
    pace: float
    kill: bool
    overlap: int
    port: int = 0
    next_seconds: list[float] = field(default_factory=list)
    judge_seconds: list[float] = field(default_factory=list)
    accepted: list[tuple[str, str]] = field(default_factory=list)
    """(rater, task's key) of every judgment that the server has confirmed."""
    restarts: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def enough(self) -> bool:
        return len(self.accepted) >= self.judgments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", default="")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--raters", type=int, default=20)
    parser.add_argument("--judgments", type=int, default=2_000)
    parser.add_argument("--pace", type=float, default=0.0, help="seconds between a rater's judgments")
    parser.add_argument("--overlap", type=int, default=1)
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        load = Load(
            options.store or f"store:{folder}/load.db",
            options.raters,
            options.judgments,
            options.pace,
            options.kill,
            options.overlap,
        )
        tokens = fill(load, options.tasks)
        print(report(run(load, tokens), verify(load)))


def fill(load: Load, tasks: int) -> dict[str, str]:
    """That many tasks of two answers of some hundred words each; everyone's token."""
    began = time.perf_counter()
    with Store(load.source, create=True) as store:
        Queue(store).add((pair(i) for i in range(tasks)), overlap=load.overlap)
        tokens = {name: accounts.add(store, name) for name in (f"rater-{i:02}" for i in range(load.raters))}
    print(f"{tasks:,} tasks put in: {time.perf_counter() - began:.1f} s", flush=True)
    return tokens


def pair(i: int) -> NewTask:
    text = " ".join(WORDS)
    return NewTask(f"Question {i}: where to?", (Answer(f"{i} left. {text}"), Answer(f"{i} right. {text}")))


# --- the server -----------------------------------------------------------------------------------


def start(load: Load) -> subprocess.Popen[bytes]:
    """The server over the store, once it answers."""
    if not load.port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            load.port = free.getsockname()[1]
    flags = ["--store", load.source, "--port", str(load.port), "--overlap", str(load.overlap)]
    command = [sys.executable, "-m", "keel.cli", "annotate", *flags]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while True:
        try:
            httpx.get(load.url, timeout=5)
            return process
        except httpx.TransportError:
            assert process.poll() is None, "the server does not start"
            time.sleep(0.1)


def run(load: Load, tokens: dict[str, str]) -> Load:
    """All clients at once until there are enough judgments; the server killed half-way, if that is wanted."""
    began = time.perf_counter()
    process = start(load)
    print(f"server up after {time.perf_counter() - began:.1f} s", flush=True)
    clients = [threading.Thread(target=rate, args=(load, name, token)) for name, token in tokens.items()]
    began = time.perf_counter()
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        time.sleep(0.05)
        if load.kill and not load.restarts and len(load.accepted) >= load.judgments / 2:
            process.send_signal(signal.SIGKILL)
            process.wait()
            load.restarts = 1
            process = start(load)
    seconds = time.perf_counter() - began
    process.kill()
    process.wait()
    print(f"{len(load.accepted):,} judgments in {seconds:.1f} s: {len(load.accepted) / seconds:.0f}/s", flush=True)
    return load


# --- the raters -----------------------------------------------------------------------------------


def rate(load: Load, name: str, token: str) -> None:
    """One rater: the next task, a verdict, the next …"""
    with httpx.Client(base_url=load.url, timeout=60) as client:
        sign_in(load, client, token)
        time.sleep(load.pace * (hash(name) % 100) / 100)  # raters are not in step
        while not load.enough():
            began = time.perf_counter()
            turn, seconds = ask(load, client, "GET", "/api/task")
            load.next_seconds.append(seconds)
            if turn["task"] is None:
                return
            key = turn["task"]["key"]
            said = {"verdicts": {"overall": {"outcome": "first", "strength": 1}}, "seconds": 1.0}
            answer, seconds = ask(load, client, "POST", f"/api/task/{key}", json=said)
            load.judge_seconds.append(seconds)
            if "error" not in answer:
                with load.lock:
                    load.accepted.append((name, key))
            time.sleep(max(0.0, load.pace - (time.perf_counter() - began)))


def sign_in(load: Load, client: httpx.Client, token: str) -> None:
    ask(load, client, "POST", "/api/sign-in", json={"token": token})
    found = re.search(r'name="csrf" content="([^"]+)"', client.get("/").text)
    assert found is not None
    client.headers["X-Keel-CSRF"] = found[1]


def ask(load: Load, client: httpx.Client, method: str, path: str, **body: Any) -> tuple[dict[str, Any], float]:
    """An answer and its seconds; tried again while the server is down, as the page does."""
    while True:
        began = time.perf_counter()
        try:
            answer = client.request(method, path, **body)
        except httpx.TransportError:
            time.sleep(0.2)
            continue
        assert answer.status_code in (200, 409), answer.text
        return answer.json(), time.perf_counter() - began


# --- afterwards -----------------------------------------------------------------------------------


def verify(load: Load) -> dict[str, int]:
    """What the store holds against what the clients were told."""
    turns = schema.turns
    with Store(load.source) as store:
        kept = {
            (row.rater, row.key)
            for row in store.read(sa.select(turns.c.rater, turns.c.key).where(turns.c.state == "judged"))
        }
        raters: dict[str, list[str]] = defaultdict(list)
        for group in store.groups():
            for _, judgment in group:
                raters[str(judgment.prompt)].append(judgment.rater)
        hands = sa.select(sa.func.count()).where(turns.c.state.in_(("leased", "judged"))).group_by(turns.c.task)
        crowded = sum(row[0] > load.overlap for row in store.read(hands))
        short = len(store.read(sa.select(schema.tasks.c.id).where(schema.tasks.c.wants < 0)))
    stored = sum(map(len, raters.values()))
    return {
        "confirmed": len(load.accepted),
        "stored": stored,
        "confirmed and lost": len(set(load.accepted) - kept),
        "confirmed twice": sum(n - 1 for n in Counter(load.accepted).values()),
        "stored twice by one rater": sum(len(names) - len(set(names)) for names in raters.values()),
        "judged beyond the overlap": sum(max(0, len(names) - load.overlap) for names in raters.values()),
        "tasks in more hands than the overlap": crowded + short,
    }


def report(load: Load, counted: dict[str, int]) -> str:
    """Latencies and counts."""
    lines = [f"server restarts: {load.restarts}"]
    for what, seconds in (("next task", load.next_seconds), ("judgment and next task", load.judge_seconds)):
        p50, p95, p99 = 1_000 * np.quantile(seconds, (0.5, 0.95, 0.99))
        lines.append(f"{what}: p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms ({len(seconds):,} requests)")
    return "\n".join([*lines, *(f"{what}: {count:,}" for what, count in counted.items())])


if __name__ == "__main__":
    main()
