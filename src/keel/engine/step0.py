"""Checks at step 0 of every run. A run that fails one is stopped: something is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from keel.errors import RunFailed

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest deviation that rounding explains, in nats or units of loss, by the dtype of the weights."""


def require_zero_margin_loss(loss: Tensor, expected: Tensor | float, dtype: torch.dtype) -> None:
    """Require the closed form of the pair loss if the policy equals its reference, or the head is zero."""
    gap = float((loss.detach() - expected).abs().max())
    if not gap <= TOLERANCE[dtype] * (1 + float(torch.as_tensor(expected).abs().max())):
        raise RunFailed(
            f"step 0: the loss differs by {gap:.3g} from its closed form at zero margin; "
            "the starting policy is not the reference, or a pass is not deterministic"
        )


def require_zero_kl(policy_logps: Tensor, reference_logps: Tensor, dtype: torch.dtype) -> None:
    """Require that the policy equals its reference, token by token, before the first update."""
    gap = float((policy_logps - reference_logps).abs().max())
    if not gap <= TOLERANCE[dtype]:
        raise RunFailed(
            f"step 0: policy and reference differ by up to {gap:.3g} nats per token; the KL must start at 0"
        )


def require_unit_ratio(ratio: Tensor, clip_fraction: Tensor, dtype: torch.dtype) -> None:
    """Require ratio 1 everywhere and nothing clipped in a rollout's first minibatch: no update came before."""
    gap = float((ratio - 1).abs().max())
    if not gap <= 10 * TOLERANCE[dtype] or float(clip_fraction.max()) > 0:
        raise RunFailed(f"first minibatch of a rollout: the ratio deviates by {gap:.3g} from 1 before any update")
