"""A call into a model that may not be made for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

FAILED = (TypeError, ValueError, AttributeError, RuntimeError, LookupError, NotImplementedError, AssertionError)
"""What models raise that take no such input."""


def attempt(call: Callable[[], T]) -> T | Exception:
    """What a call gives, or what the model raised. Memory that runs out says nothing about the model, and is raised."""
    try:
        return call()
    except torch.OutOfMemoryError:
        raise
    except FAILED as error:
        return error
