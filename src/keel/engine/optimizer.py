"""AdamW with fp32 state: where the weights are bf16, an fp32 copy takes the updates that bf16 would round away."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Optimizer:
    """Fused AdamW over one role's parameters."""

    def __init__(self, model: nn.Module, weight_decay: float, eps: float) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._masters = [
            p if p.dtype == torch.float32 else nn.Parameter(p.detach().float().clone()) for p in self._parameters
        ]
        self._adam = torch.optim.AdamW(self._masters, lr=0.0, weight_decay=weight_decay, eps=eps, fused=True)

    def step(self, learning_rate: float) -> None:
        """One step from the accumulated gradients, which are then cleared."""
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        pairs = [(p, m) for p, m in zip(self._parameters, self._masters, strict=True) if p is not m]
        for parameter, master in pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
        self._adam.step()
        with torch.no_grad():
            for parameter, master in pairs:
                parameter.copy_(master)
        for parameter in (*self._parameters, *self._masters):
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Moments, and the fp32 copies where there are any."""
        copies = [m.detach() for p, m in zip(self._parameters, self._masters, strict=True) if p is not m]
        return {"adam": self._adam.state_dict(), "masters": copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._adam.load_state_dict(state["adam"])
        copies = iter(state["masters"])
        with torch.no_grad():
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                if parameter is not master:
                    master.copy_(next(copies))
