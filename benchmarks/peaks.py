"""What the machine could do at best: its matrix products, and the least work that a method needs."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import standard
import torch

from keel.models import machine


def gemm_peaks() -> dict[str, float]:
    """FLOP/s of a large product in either precision, the best of some."""
    machine.choose_product(1024)
    peaks = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(2048, 2048).to(dtype)
        seconds = []
        for _ in range(12):
            began = time.perf_counter()
            a @ a
            seconds.append(time.perf_counter() - began)
        peaks[name] = 2 * 2048**3 / min(seconds)
    return peaks


def least_work(folder: Path, count: int, head: bool, shape: dict[str, Any] = standard.SHAPE) -> float:
    """FLOPs of a training pass that computes nothing twice: trunk, attention, and the head on completion rows; x 3.

    With a cached reference a pass of DPO over it comes to that once more in forward, a third.
    """
    width, layers, inner, words = (
        shape[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    )
    narrow = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    trunk = layers * (2 * width * (width + narrow) + 3 * width * inner)
    total = 0.0
    rows = [json.loads(line) for line in (folder / "ids.jsonl").open()][:count]
    for row in rows:
        p, c, r = (len(row[k]) for k in ("prompt_ids", "chosen_ids", "rejected_ids"))
        seen = (p + c) * (p + c + 1) / 2 + r * p + r * (r + 1) / 2
        total += 2 * trunk * (p + c + r) + layers * 4 * width * seen + (2 * width * words * (c + r) if head else 0)
    return (4 if head else 3) * total


def processor() -> str:
    """Its name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
    return names[0] if cpuinfo.exists() and names else platform.processor()
