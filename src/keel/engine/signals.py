"""Ctrl-C or SIGTERM during a command. `docker stop`, Slurm and Kubernetes send SIGTERM before they kill.

In a run's steps the first finishes the step and saves a checkpoint, the second stops at once. Elsewhere the first one
stops: Ctrl-C by Python's own KeyboardInterrupt, SIGTERM by one of the same kind.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from keel.errors import SENDERS, Interrupted


class Signals:
    """Context that remembers the first signal: `asked` is its number, or None."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        try:
            self._previous = {number: signal.signal(number, self._answer) for number in SENDERS}
        except ValueError:  # not in the main thread; only that one can handle signals
            self._previous = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, answer in self._previous.items():
            signal.signal(number, answer)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        from keel.says import say  # the command line reads this module at its start, and needs no console then

        if self.asked is not None:
            raise Interrupted(number)
        self.asked = number
        name = SENDERS[signal.Signals(number)]
        say(f"{name}: finishing this step and saving a checkpoint ({name} again stops at once)")


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does; outside the main thread nothing changes."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
