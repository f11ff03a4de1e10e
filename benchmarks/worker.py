"""One side of a comparison as a process: reads a request a line, does the work, answers a line of JSON.

Everything else that a library prints goes to stderr. `serve` is all that a side needs; it imports nothing of Keel, so
that peers run it in an environment of their own.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any


def serve(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests until stdin ends; the answer gains the process's peak memory so far, in GB: a GPU's, if used."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        found = work(json.loads(line))
        peak = of_gpu() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        answers.write(json.dumps(found | {"peak_gb": round(peak, 3)}) + "\n")
        answers.flush()


def of_gpu() -> float | None:
    """The most memory that tensors took on the GPU, in GB; None without one. What is free goes to the other sides."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    gc.collect()
    torch.cuda.empty_cache()
    return float(torch.cuda.max_memory_allocated() / 1e9)
