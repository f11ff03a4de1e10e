"""Speed of the engine on this machine: training and scoring log-probabilities, and sampling, in useful tokens a second.

Useful tokens are those that a method needs: prompt and completions once each, no padding. Beside each rate stands the
share of the matrix-product peak, measured in the same run, that the least possible work would need.

    make bench
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from keel import demo, world
from keel.config import Machine
from keel.data.text import Text
from keel.engine.forward import micro_batches, token_logps
from keel.engine.run import generator
from keel.engine.sampler import sample
from keel.models import checkpoints
from keel.records import Bundle, Demonstration

REPEATS = 5


def main() -> None:
    checkpoints.use_fast_matmul()
    train, _ = world.split(world.all_prompts())
    rows = list(world.lessons(train, random.Random("bench"), 512))
    with tempfile.TemporaryDirectory() as folder:
        demo.new_model([demo.ask(p.text) + a for p, a in rows], Path(folder) / "m", 0)
        policy = checkpoints.load_policy(str(Path(folder) / "m"), Machine())
        text = checkpoints.load_text(str(Path(folder) / "m"))
    bundles = [text.encode(Demonstration(demo.ask(p.text), a), 256) for p, a in rows]
    tokens = sum(b.tokens for b in bundles)
    weights = sum(p.numel() for p in policy.parameters())
    peak = gemm_peak()
    print(f"{weights / 1e6:.2f} M parameters, {torch.get_num_threads()} threads, peak {peak / 1e9:.0f} GFLOP/s")
    for name, work, flops in (
        ("score", lambda: score(policy, bundles), 2 * weights * tokens),
        ("train", lambda: step(policy, bundles), 6 * weights * tokens),
    ):
        seconds = median_seconds(work)
        print(f"{name:<7} {tokens / seconds:9.0f} tokens/s   {flops / seconds / peak:6.1%} of the peak")
    prompts = [demo.ask(p.text) for p, _ in rows[:128]]
    drawn: list[int] = []
    seconds = median_seconds(lambda: drawn.append(draw(policy, text, prompts)))
    print(f"sample  {statistics.median(drawn) / seconds:9.0f} new tokens/s")


def score(policy: torch.nn.Module, bundles: list[Bundle]) -> None:
    with torch.no_grad():
        for micro in micro_batches(bundles, 8192):
            token_logps(policy, micro.bundles)


def step(policy: torch.nn.Module, bundles: list[Bundle]) -> None:
    for micro in micro_batches(bundles, 8192):
        token_logps(policy, micro.bundles).sum().backward()
    policy.zero_grad()


def draw(policy: torch.nn.Module, text: Text, prompts: list[str]) -> int:
    bundles = sample(policy, text, prompts, 4, max_new_tokens=32, generator=generator(0, "bench"))
    return sum(len(c) for b in bundles for c in b.completions)


def median_seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def gemm_peak() -> float:
    """FLOP/s of a large fp32 product, the best of some."""
    a = torch.randn(2048, 2048)
    best = min(_seconds(lambda: a @ a) for _ in range(5))
    return float(2 * 2048**3 / best)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
