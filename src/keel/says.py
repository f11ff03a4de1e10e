"""Lines for the reader while work goes on, on standard error: standard output is for results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line reads this module before it knows whether there is anything to say
    from rich.console import Console


def console() -> Console:
    """Return the console for progress and notes."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print one line for the reader; of several processes on one run, the first one speaks."""
    if speaks():
        console().print(message, markup=False)


def speaks() -> bool:
    """Say whether this process is the only one of its run, or the first, by what its launcher has set."""
    return int(os.environ.get("WORLD_SIZE", "1")) < 2 or os.environ.get("RANK", "0") == "0"


@contextmanager
def quiet_library() -> Iterator[None]:
    """Silence transformers' own bars and load reports: Keel refuses what they would report, or means it."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
