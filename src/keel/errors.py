"""Ways in which a command ends badly: bad input (exit code 2), a failed run (1), a signal (130, 143)."""

from __future__ import annotations

import signal


def on_one_line(error: BaseException) -> str:
    """Return an exception's message on one line, or the name of its class if it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class KeelError(Exception):
    """Base of every error that Keel raises on purpose; shown as one line, never as a traceback."""

    exit_code = 1


class InputError(KeelError):
    """Bad input. The message names the file, the row if there is one, and the remedy."""

    exit_code = 2


class RowFault(InputError):  # noqa: N818  (the row's fault)
    """A row that cannot be used. It is counted under `reason`, or under the message if no reason is given."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class RunFailed(KeelError):  # noqa: N818  (a run fails; it is no error of the program)
    """A run that could not go on. The message names its evidence."""


SENDERS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
"""Signals that end a command, and what readers call them."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the command. `then` goes on with the sentence `stopped by SIGTERM`."""

    def __init__(self, number: int = signal.SIGINT, then: str = "") -> None:
        super().__init__(f"stopped by {SENDERS[signal.Signals(number)]}{then}")
        self.number, self._then = number, then

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, str]]:
        """Let it pass from a worker process."""
        return Interrupted, (self.number, self._then)

    @property
    def exit_code(self) -> int:
        """Exit code of a process that a signal ended, as shells count: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


def interruption(stop: KeyboardInterrupt, then: str = "") -> Interrupted:
    """Return what a command says of an interrupt of either kind, which it then raises."""
    if isinstance(stop, Interrupted) and not then:
        return stop
    return Interrupted(stop.number if isinstance(stop, Interrupted) else signal.SIGINT, then)
