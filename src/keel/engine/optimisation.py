"""Weight updates of a run: an optimiser per trained role, gradient clipping and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from keel.engine import processes
from keel.engine.adamw import Optimizer
from keel.errors import KeelError
from keel.models.roles import Role


class NotFinite(KeelError):  # noqa: N818  (as `RunFailed`)
    """A gradient is not finite; no weight was changed by it."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate over a run: `Schedule("cosine", total=100, warmup=0.05)`."""

    kind: str
    total: int
    """Optimiser steps of the run (PPO: rollouts)."""
    warmup: float
    """Share of the steps in which the rate rises."""

    def factor(self, step: int) -> float:
        """Return the learning-rate factor at `step`, counted from 0."""
        return schedule(self.kind, step, self.total, self.warmup)


def schedule(kind: str, step: int, total: int, warmup: float) -> float:
    """Return the learning-rate factor at `step` of `total`: a linear rise over the warm-up share, then the decay."""
    rise = math.ceil(warmup * total)
    if step < rise:
        return (step + 1) / rise
    share = (step - rise) / max(1, total - rise)
    return {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}[kind]


class Optimisation:
    """The trained roles, each with an optimiser and a peak learning rate."""

    def __init__(
        self,
        trained: Iterable[Role],
        rates: Mapping[str, float],
        *,
        weight_decay: float,
        max_grad_norm: float,
        adam_eps: float,
    ) -> None:
        self.trained, self.rates = {role.name: role for role in trained}, dict(rates)
        self._parameters = {name: role.parameters() for name, role in self.trained.items()}
        self._optimizers = {
            name: Optimizer(own.values(), weight_decay, adam_eps) for name, own in self._parameters.items()
        }
        self._most = max_grad_norm

    def update(self, roles: Iterable[str], factor: float) -> dict[str, Tensor]:
        """Make one step for each role, and return the norms of the gradients before clipping.

        `factor` scales the peak rates. All roles are checked before the first one moves: raises `NotFinite`.
        """
        roles = tuple(roles)
        for role in roles:
            self._add_up(role)
        norms = {role: self._norm(role) for role in roles}
        for role, norm in norms.items():
            nn.utils.clip_grads_with_norm_(self._parameters[role].values(), self._most, norm)
            self._optimizers[role].step(self.rates[role] * factor)
        return norms

    def _add_up(self, role: str) -> None:
        """Add the gradients of all processes up; a process whose share was empty adds zeros."""
        if processes.world_size() == 1:
            return
        own = list(self._parameters[role].values())
        moved = torch.tensor([float(p.grad is not None) for p in own])
        processes.add_up([moved])
        own = [p for p, anywhere in zip(own, moved.tolist(), strict=True) if anywhere]
        for parameter in own:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        processes.add_up(p.grad for p in own if p.grad is not None)

    def _norm(self, role: str) -> Tensor:
        """Return the norm over all gradients of a role, before clipping."""
        gradients = {n: p.grad for n, p in self._parameters[role].items() if p.grad is not None}
        norm = nn.utils.get_total_norm(gradients.values())
        if not bool(torch.isfinite(norm)):
            bad = [n for n, g in gradients.items() if not g.isfinite().all()]
            worst = bad[0] if bad else max(gradients, key=lambda n: float(gradients[n].abs().max()))
            raise NotFinite(f"the gradient of {role}.{worst} is not finite")
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each role's optimiser."""
        return {role: optimizer.state_dict() for role, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for role, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[role])
