"""Ctrl-C or SIGTERM during a command. `docker stop`, Slurm and Kubernetes send SIGTERM before they kill.

In a run's steps the first finishes the step and saves a checkpoint, the second stops at once. Elsewhere the first one
stops: Ctrl-C by Python's own KeyboardInterrupt, SIGTERM by one of the same kind.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
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

    with _answered(stop, signal.SIGTERM):
        yield


@contextmanager
def left_at_once(command: str) -> Iterator[None]:
    """End the process at the first signal, while modules are imported: an exception inside torch's import aborts."""

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, f"keel {command}: {Interrupted(number)}\n".encode())
        os._exit(128 + number)

    with _answered(leave, *SENDERS):
        yield


@contextmanager
def _answered(answer: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Answer signals so within the block; outside the main thread, which alone can handle them, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, answer) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
