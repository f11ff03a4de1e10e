"""All variants, in as many processes as there are processors; what each said, as they come.

`python -m tests.zoo.sweep [NAME …]` prints a line for every variant and the count of each outcome;
`python -m tests.zoo.sweep commands [NAME …]` does so for the families that go through the command line.
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
EXAMINE, COMMANDS = "tests.zoo.examine", "tests.zoo.commands"
"""Programs that answer names."""


class Results:
    """Results as they come; asking for one waits for it."""

    def __init__(self, names: Sequence[str], program: str = EXAMINE) -> None:
        self._known: dict[str, Result] = {}
        self._coming = sweep(names, program)

    def of(self, name: str) -> Result:
        while name not in self._known:
            result = next(self._coming)
            self._known[result["name"]] = result
        return self._known[name]


def sweep(names: Sequence[str], program: str = EXAMINE) -> Iterator[Result]:
    """What a program says of each name; results come in the order in which they are ready."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: queue.SimpleQueue[Result] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)
    with tempfile.TemporaryDirectory(prefix="keel-zoo-") as folder:
        threads = [
            threading.Thread(target=_work, args=(program, waiting, done, Path(folder) / str(number)), daemon=True)
            for number in range(min(os.cpu_count() or 1, len(names)))
        ]
        for thread in threads:
            thread.start()
        for _ in names:
            yield done.get()
        for thread in threads:
            thread.join()


def _work(program: str, waiting: queue.SimpleQueue[str], done: queue.SimpleQueue[Result], folder: Path) -> None:
    """Hand names to a process of its own until none waits; a process that dies or hangs is replaced."""
    process: subprocess.Popen[str] | None = None
    while True:
        try:
            name = waiting.get_nowait()
        except queue.Empty:
            break
        process = process or _process(program, folder)
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


def _process(program: str, folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [sys.executable, "-m", program, str(folder)],
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
    from .commands import JOBS
    from .families import VARIANTS

    commands = sys.argv[1:2] == ["commands"]
    names = sys.argv[2 if commands else 1 :] or (JOBS if commands else [variant.name for variant in VARIANTS])
    count: Counter[str] = Counter()
    for result in sweep(names, COMMANDS if commands else EXAMINE):
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
