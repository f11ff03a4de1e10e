"""Lines for the reader while work goes on, on standard error: standard output is for results."""

from __future__ import annotations

from rich.console import Console


def console() -> Console:
    """Return the console for progress and notes."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print one line for the reader."""
    console().print(message, markup=False)
