"""Ctrl-C or SIGTERM during a run: the step is finished and a checkpoint saved; a second one stops at once.

SIGTERM is what `docker stop`, Slurm and Kubernetes send before they kill.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from keel.says import say


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, answered at a step's end with a checkpoint saved."""


class Signals:
    """Remembers a first signal while it is entered; `asked` says whether there was one."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        try:
            self._previous = {number: signal.signal(number, self._answer) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread, which alone can handle signals
            self._previous = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, answer in self._previous.items():
            signal.signal(number, answer)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("interrupted: finishing this step and saving a checkpoint (Ctrl-C again stops at once)")
