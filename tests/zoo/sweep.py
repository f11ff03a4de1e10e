"""All variants, in as many processes as there are processors; what each said, as they come.

`python -m tests.zoo.sweep [NAME …]` prints a line for every variant that is not right, and the count of each outcome.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SECONDS = 90
"""A variant that takes longer is given up, and its process with it."""
Result = dict[str, Any]


def sweep(names: Sequence[str], workers: int = 0) -> Iterator[Result]:
    """Examine variants; results come in the order in which they are ready."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: queue.SimpleQueue[Result] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)
    with tempfile.TemporaryDirectory(prefix="keel-zoo-") as folder:
        threads = [
            threading.Thread(target=_work, args=(waiting, done, Path(folder) / str(number)), daemon=True)
            for number in range(min(workers or os.cpu_count() or 1, len(names)))
        ]
        for thread in threads:
            thread.start()
        for _ in names:
            yield done.get()
        for thread in threads:
            thread.join()


def _work(waiting: queue.SimpleQueue[str], done: queue.SimpleQueue[Result], folder: Path) -> None:
    """Hand names to a process of its own until none waits; a process that dies or hangs is replaced."""
    process: subprocess.Popen[str] | None = None
    while True:
        try:
            name = waiting.get_nowait()
        except queue.Empty:
            break
        process = process or _process(folder)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(name + "\n")
        process.stdin.flush()
        ready = select.select([process.stdout], [], [], SECONDS)[0]
        if line := process.stdout.readline() if ready else "":
            done.put(json.loads(line))
            continue
        process.kill()
        process.wait()
        process = None
        done.put(_lost(name, "its process ended" if ready else f"no answer after {SECONDS} s"))
    if process is not None and process.stdin is not None:
        process.stdin.close()
        process.wait()


def _process(folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.zoo.examine", str(folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )


def _lost(name: str, line: str) -> Result:
    fault = {"check": "process", "outcome": "crashed", "line": line}
    return {"name": name, "family": name, **fault, "faults": [fault]}


def main() -> None:
    from .families import VARIANTS

    names = sys.argv[1:] or [variant.name for variant in VARIANTS]
    count: Counter[str] = Counter()
    for result in sweep(names):
        count[result["outcome"]] += 1
        if not result["faults"]:
            print(f"right    {result['name']} | {_notes(result)}", flush=True)
        for fault in result["faults"]:
            print(f"{fault['outcome']:8} {result['name']} | {fault['check']}: {fault['line']}", flush=True)
    print(dict(count))


def _notes(result: Result) -> str:
    known = ("name", "family", "outcome", "line", "check", "faults")
    return ", ".join(f"{k} {v}" for k, v in result.items() if k not in known)


if __name__ == "__main__":
    main()
