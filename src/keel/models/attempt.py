"""Calls that a model may not support."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

FAILED = (TypeError, ValueError, AttributeError, RuntimeError, LookupError, NotImplementedError, AssertionError)
"""Errors that models raise on input they do not support."""


def attempt(call: Callable[[], T]) -> T | Exception:
    """Return the result of a call, or the error that the model raised.

    Raise OutOfMemoryError: it says nothing about the model.
    """
    try:
        return call()
    except torch.OutOfMemoryError:
        raise
    except FAILED as error:
        return error
