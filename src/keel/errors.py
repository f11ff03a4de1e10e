"""The two ways a command ends badly: the input was wrong (exit code 2), or the run failed (exit code 1)."""

from __future__ import annotations


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
