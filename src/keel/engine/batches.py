"""Which bundles a step sees: a function of the seed and the step's number alone, so that nothing needs saving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch

from keel.engine.run import generator

T = TypeVar("T")


def steps_of(count: int, batch_size: int, epochs: int, steps: int | None) -> int:
    """Optimiser steps of a run: whole epochs (the last batch of each may be smaller), unless `steps` is given."""
    return steps if steps is not None else epochs * math.ceil(count / batch_size)


def batch_of(items: Sequence[T], batch_size: int, step: int, seed: int) -> list[T]:
    """The step's batch; every epoch visits every item once, in an order of its own."""
    per_epoch = math.ceil(len(items) / batch_size)
    epoch, position = divmod(step, per_epoch)
    order = epoch_order(len(items), seed, epoch)
    return [items[i] for i in order[position * batch_size : (position + 1) * batch_size]]


def examples_seen(count: int, batch_size: int, steps: int) -> int:
    """Items in the batches of the first `steps` steps."""
    epochs, rest = divmod(steps, math.ceil(count / batch_size))
    return epochs * count + min(rest * batch_size, count)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch visits its items."""
    order: list[int] = torch.randperm(count, generator=generator(seed, "order", epoch)).tolist()
    return order
