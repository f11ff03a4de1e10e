"""Ctrl-C during a run: the step is finished and a checkpoint saved; a second one stops at once."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from keel.says import say


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, answered at a step's end with a checkpoint saved."""


class Signals:
    """Remembers a first Ctrl-C while it is entered; `asked` says whether there was one."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> Signals:
        try:
            self._previous = signal.signal(signal.SIGINT, self._answer)
        except ValueError:  # not in the main thread, which alone can handle signals
            self._previous = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("interrupted: finishing this step and saving a checkpoint (Ctrl-C again stops at once)")
