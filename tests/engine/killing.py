"""Run commands in children of one warm process, and kill them at a counted event. `test_survival` starts it.

Each line of standard input is a job: {"arguments": […], "folder": run folder, "kill": event or null, "signal": 9,
"largest": bytes or null}. The answer is a line, too: the exit code (negative: the signal), the child's events in order
and the last lines that it printed.

An event is whatever moves the state on the disk or in memory: opening, making, renaming, removing a file below the run
folder (Python's audit hook), half of a line or of state.pt written, a backward pass, an optimiser step. The child kills
itself before the event; none of this is in the code under test.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

import transformers  # noqa: E402, F401
from peft import LoraConfig  # noqa: E402, F401
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification  # noqa: E402, F401

import keel.methods.dpo  # noqa: E402
import keel.methods.ppo  # noqa: E402
import keel.methods.reward  # noqa: E402
import keel.methods.sft  # noqa: E402, F401
from keel import cli  # noqa: E402
from keel.engine.run import Run  # noqa: E402

FILES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


class Counter:
    """Counts events, writes each to a pipe, and kills the process at one of them."""

    def __init__(self, folder: str, kill: int | None, number: int, pipe: int) -> None:
        self.folder, self.kill, self.number, self.pipe = folder, kill, number, pipe
        self.count, self.inside = 0, False

    def event(self, name: str) -> None:
        self.count += 1
        real_write(self.pipe, (name + "\n").encode())
        if self.count == self.kill:
            os.kill(os.getpid(), self.number)

    def audit(self, name: str, arguments: tuple) -> None:
        if name not in FILES or self.inside or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.fsdecode(arguments[0])
        within = name in ("os.remove", "os.rmdir") and arguments[1] != -1  # rmtree names files by their open folder
        if not path.startswith(self.folder) and not within:
            return
        if name == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) == 0:
            return
        self.inside = True
        self.event(f"{name} {path.removeprefix(self.folder)} ")
        self.inside = False


real_write, real_save = os.write, torch.save


def watch(counter: Counter) -> None:
    """Count from now on."""

    def write(handle, data):
        """Write half: the caller writes the rest, as after a short write."""
        half = real_write(handle, data[: max(1, len(data) // 2)])
        counter.event("half a line")
        return half

    def save(state, file):
        whole = io.BytesIO()
        real_save(state, whole)
        content = whole.getvalue()
        for part in (content[: len(content) // 2], content[len(content) // 2 :]):
            file.write(part)
            file.flush()
            counter.event("half of state.pt")

    os.write, torch.save = write, save
    for name in ("update", "backward"):
        real = getattr(Run, name)

        def counted(self, *arguments, real=real, name=name):
            counter.event(name)
            return real(self, *arguments)

        setattr(Run, name, counted)
    sys.addaudithook(counter.audit)


def child(job: dict, pipe: int, log: Path) -> None:
    """Run one command, and leave with its exit code."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if job.get("largest"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest"], job["largest"]))
    watch(Counter(job["folder"], job.get("kill"), job.get("signal", signal.SIGKILL), pipe))
    code = 70
    try:
        code = cli.main(job["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    log = Path(sys.argv[1])
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            child(job, writing, log)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            events = pipe.read().splitlines()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answer = {"code": code, "events": events, "said": log.read_text(errors="replace").splitlines()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
