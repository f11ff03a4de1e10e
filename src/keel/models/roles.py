"""A model's role in a method: trained or frozen, and the block in which it computes.

A role is a whole model. Training passes, and passes that a method compares with them, run in `active`, where a role
that is an adapter on a shared base would be switched on. Sampling, saving and final scores take `model` as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keel.models import checkpoints


@dataclass(slots=True)
class Role:
    """A model and its part in a run: `Role("reference", model, trained=False)`."""

    name: str
    """`policy`, `reference`, `value` or `reward`: its name in manifests, checkpoints and metrics."""
    model: nn.Module
    trained: bool = True
    offset: float = 0.0
    """The number that `centred` takes off the model's scalars. A critic that starts as a reward model speaks in raw
    scores, while PPO learns from centred ones."""

    def __post_init__(self) -> None:
        if not self.trained:
            self.model.requires_grad_(False)

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """Yield the model for forward and backward passes; gradients are recorded only if the role is trained."""
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            yield self.model

    def centred(self, scalars: Tensor) -> Tensor:
        """Return the model's scalars relative to `offset`."""
        return scalars - self.offset if self.offset else scalars

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.model.parameters()).dtype

    def identity(self) -> str:
        """Return the hash of the weights as they are now."""
        return checkpoints.weights_hash(self.model)
