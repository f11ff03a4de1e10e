"""A process that answers names with results, one JSON line each; `sweep` starts several of them."""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def serve(answer: Callable[[str, Path], dict[str, Any]]) -> None:
    """Answer the names among the arguments, or those that standard input names as they come.

    The first argument is a folder; each name gets one of its own in it, which is removed afterwards.
    """
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or (line.strip() for line in sys.stdin):
        own = folder / name.replace(" ", "-")
        try:
            found = answer(name, own)
        except Exception as error:  # the model could not be made, or transformers does not run it
            fault = {"check": "make", "outcome": "crashed", "line": place(error)}
            found = {"name": name, "family": name, **fault, "faults": [fault]}
        print(json.dumps(found), file=answers, flush=True)
        shutil.rmtree(own, ignore_errors=True)


def place(error: Exception) -> str:
    """What an exception says, and the line that raised it."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {words} ({Path(at.filename).name}:{at.lineno})"
