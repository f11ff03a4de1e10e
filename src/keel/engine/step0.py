"""What must hold at step 0 of every run (law 4). A run in which it does not is stopped: something is amiss."""

from __future__ import annotations

import torch
from torch import Tensor

from keel.errors import RunFailed

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest deviation that rounding explains, in nats or units of loss, by the type of the weights."""


def require_zero_margin_loss(loss: Tensor, expected: Tensor | float, dtype: torch.dtype) -> None:
    """The pair loss of a policy equal to its reference, or of a zero head, has a closed form."""
    gap = float((loss.detach() - expected).abs().max())
    if not gap <= TOLERANCE[dtype] * (1 + float(torch.as_tensor(expected).abs().max())):
        raise RunFailed(
            f"step 0: the loss differs by {gap:.3g} from its closed form at zero margin; "
            "the starting policy is not the reference, or a pass is not deterministic"
        )


def require_zero_kl(policy_logps: Tensor, reference_logps: Tensor, dtype: torch.dtype) -> None:
    """Before the first update the policy is its reference, token by token."""
    gap = float((policy_logps - reference_logps).abs().max())
    if not gap <= TOLERANCE[dtype]:
        raise RunFailed(
            f"step 0: policy and reference differ by up to {gap:.3g} nats per token; the KL must start at 0"
        )


def require_unit_ratio(ratio: Tensor, clip_fraction: Tensor, dtype: torch.dtype) -> None:
    """In the first minibatch of a rollout nothing has been updated: ratio 1 everywhere, nothing clipped."""
    gap = float((ratio - 1).abs().max())
    if not gap <= 10 * TOLERANCE[dtype] or float(clip_fraction.max()) > 0:
        raise RunFailed(f"first minibatch of a rollout: the ratio deviates by {gap:.3g} from 1 before any update")
