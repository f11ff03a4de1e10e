"""AdamW with fp32 state: bf16 weights have an fp32 copy, which takes updates that bf16 would round away."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

AT_ONCE = 1 << 24
"""Weights whose gradients are held in fp32 at once."""

HALF = (1 << 15) - 1
"""Number of fp32 numbers on either side of a bf16 number that round to it."""

_Pair = tuple[nn.Parameter, nn.Parameter]
"""A weight and its fp32 copy."""


class Optimizer:
    """Fused AdamW over one role's parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float, eps: float) -> None:
        self._parameters = list(parameters)
        self._masters = [p if p.dtype == torch.float32 else nn.Parameter(_spread(p.detach())) for p in self._parameters]
        self._adam = torch.optim.AdamW(self._masters, lr=0.0, weight_decay=weight_decay, eps=eps, fused=True)
        self._parts = _cut(
            [pair for pair in zip(self._parameters, self._masters, strict=True) if pair[0] is not pair[1]]
        )
        self._room: dict[torch.device, Tensor] = {}

    def step(self, learning_rate: float) -> None:
        """Make one step from the accumulated gradients, then clear them."""
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()  # moves only what has a gradient: here, the weights that are their own copy
        self._adam.zero_grad()
        for part in self._parts:
            for (parameter, master), gradient in zip(part, self._gradients(part), strict=True):
                if parameter.grad is not None:
                    master.grad = gradient.copy_(parameter.grad)
                    parameter.grad = None
            self._adam.step()
            self._adam.zero_grad()
            with torch.no_grad():
                for parameter, master in part:
                    parameter.copy_(master)

    def _gradients(self, part: list[_Pair]) -> list[Tensor]:
        """Return memory for a part's fp32 gradients: the same for all parts, allocated once."""
        device = part[0][1].device
        if device not in self._room:
            largest = max(sum(m.numel() for _, m in p) for p in self._parts)
            self._room[device] = torch.empty(largest, device=device)
        sizes = [m.numel() for _, m in part]
        flat = self._room[device][: sum(sizes)].split(sizes)
        return [gradient.view_as(m) for gradient, (_, m) in zip(flat, part, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Return the moments, and the fp32 copies if there are any."""
        copies = [m.detach() for p, m in zip(self._parameters, self._masters, strict=True) if p is not m]
        return {"adam": self._adam.state_dict(), "masters": copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._adam.load_state_dict(state["adam"])
        copies = iter(state["masters"])
        with torch.no_grad():
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                if parameter is not master:
                    master.copy_(next(copies))


@torch.no_grad()
def _spread(weight: Tensor) -> Tensor:
    """Return an fp32 copy that rounds to the bf16 weight, each number at a random place among those that do.

    If all copies started in the middle, they would have to move by half a step of bf16 before any weight does: at a
    learning rate of 1e-6, dozens of updates without effect. From random places, a share of the weights moves at every
    update, and their mean moves by as much as the copies'. Zeros, and numbers other than bf16, are copied as they are.
    """
    copy = weight.float()
    if weight.dtype != torch.bfloat16:
        return copy.clone()
    draw = torch.Generator(weight.device).manual_seed(0)
    within = torch.randint(-HALF, HALF + 1, weight.shape, dtype=torch.int32, device=weight.device, generator=draw)
    spread = (copy.view(torch.int32) + within).view(torch.float32)  # in units of fp32's last place
    return torch.where(weight == 0, copy, spread)


def _cut(pairs: list[_Pair]) -> list[list[_Pair]]:
    """Split pairs into parts of at most `AT_ONCE` weights on one device (at least one pair each), in order."""
    parts: list[list[_Pair]] = []
    size = 0
    for pair in pairs:
        count = pair[1].numel()
        if parts and size + count <= AT_ONCE and parts[-1][0][1].device == pair[1].device:
            parts[-1].append(pair)
            size += count
        else:
            parts.append([pair])
            size = count
    return parts
