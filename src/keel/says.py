"""Lines for the reader while work goes on, on standard error: standard output is for results."""

from __future__ import annotations

from rich.console import Console


def console() -> Console:
    """Where progress and notes go."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line for the reader."""
    console().print(message, markup=False)
