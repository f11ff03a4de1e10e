"""Ctrl-C or SIGTERM during a run: the first finishes the step and saves a checkpoint, the second stops at once.

`docker stop`, Slurm and Kubernetes send SIGTERM before they kill.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from keel.says import say


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the run after a whole step, with a checkpoint saved."""


class Signals:
    """Context that remembers the first signal; `asked` says whether there was one."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        try:
            self._previous = {number: signal.signal(number, self._answer) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread; only that one can handle signals
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
