"""Batches of a run: a step's items depend on the seed and the step's number alone, so nothing needs saving."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Generic, TypeVar

import torch

from keel.engine import processes
from keel.records import Bundle
from keel.seeds import generator

T = TypeVar("T")

GROUPS = 4
"""Least number of groups of alike items in a batch, if there are as many."""


class Batches(Generic[T]):
    """The batches of a run: every epoch visits every item once, in an order of its own.

    `together` gives what items have in common. Items that share it stand one after the other, so a pass over their
    batch computes it once for all (InstructGPT, Ouyang et al. 2022, section 3.5, has all comparisons of a prompt in one
    batch, for the same reason). A group larger than a quarter of a batch is cut, so that no batch is about one thing.
    """

    def __init__(
        self, items: Sequence[T], size: int, seed: int, together: Callable[[T], Hashable] | None = None
    ) -> None:
        processes.require_enough(len(items))
        self._items, self._size, self._seed = items, size, seed
        self._shared = None if together is None else [together(item) for item in items]
        self._order = lru_cache(maxsize=1)(self._draw)

    def of(self, step: int) -> list[T]:
        """Return the step's batch; the last one of an epoch may be smaller."""
        epoch, position = divmod(step, self.per_epoch)
        return [self._items[i] for i in self._order(epoch)[position * self._size : (position + 1) * self._size]]

    @property
    def per_epoch(self) -> int:
        return math.ceil(len(self._items) / self._size)

    def steps(self, epochs: int, steps: int | None) -> int:
        """Return the optimiser steps of a run: whole epochs, unless `steps` is given."""
        return steps if steps is not None else epochs * self.per_epoch

    def seen(self, steps: int) -> int:
        """Return the number of items in the batches of the first `steps` steps."""
        epochs, rest = divmod(steps, self.per_epoch)
        return epochs * len(self._items) + min(rest * self._size, len(self._items))

    def _draw(self, epoch: int) -> list[int]:
        rng = generator(self._seed, "order", epoch)
        order: list[int] = torch.randperm(len(self._items), generator=rng).tolist()
        if self._shared is None:
            return order
        most = max(1, self._size // GROUPS)
        parts: list[list[int]] = []
        open_parts: dict[Hashable, list[int]] = {}
        for i in order:
            part = open_parts.get(self._shared[i])
            if part is None or len(part) == most:
                part = open_parts[self._shared[i]] = []
                parts.append(part)
            part.append(i)
        # Drawn anew, since a group with many items tends to meet its first one early.
        return [i for at in torch.randperm(len(parts), generator=rng).tolist() for i in parts[at]]


def prompt_of(bundle: Bundle) -> int:
    """Return a hash of the prompt, which all its pairs have in common."""
    return hash(bundle.key)
