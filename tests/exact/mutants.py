"""Wrong implementations, each put in the place of a production function: a test worth having fails under every one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from keel import objectives
from keel.engine import forward
from keel.methods import ppo
from keel.records import Bundle, lengths_of

Mutant = Callable[[pytest.MonkeyPatch], None]

right_shaped_rewards = objectives.shaped_rewards
right_policy_loss = objectives.ppo_policy_loss
right_gae = objectives.gae
right_values = ppo.scalars_at_states
right_dpo_loss = objectives.dpo_loss


def one_later(flat: Tensor, lengths: Tensor) -> Tensor:
    """Within each completion, put the next token's number in each place: off by one, and 0 at the end."""
    parts = flat.split(lengths.tolist())
    return torch.cat([torch.cat([part[1:], torch.zeros_like(part[:1])]) for part in parts])


# --- PPO ------------------------------------------------------------------------------------------


def kl_sign(patch: pytest.MonkeyPatch) -> None:
    """The penalty is a bonus."""

    def shaped(scores: Tensor, logps: Tensor, reference: Tensor, lengths: Tensor, beta: float) -> Tensor:
        return right_shaped_rewards(scores, logps, reference, lengths, -beta)

    patch.setattr(objectives, "shaped_rewards", shaped)


def no_kl(patch: pytest.MonkeyPatch) -> None:
    """No penalty at all."""

    def shaped(scores: Tensor, logps: Tensor, reference: Tensor, lengths: Tensor, beta: float) -> Tensor:
        return right_shaped_rewards(scores, logps, reference, lengths, 0.0)

    patch.setattr(objectives, "shaped_rewards", shaped)


def k1_in_the_loss(patch: pytest.MonkeyPatch) -> None:
    """beta (log pi - log ref) added to the loss instead of the reward: its expected gradient is zero."""
    penalty: dict[str, Any] = {}

    def shaped(scores: Tensor, logps: Tensor, reference: Tensor, lengths: Tensor, beta: float) -> Tensor:
        penalty.update(beta=beta, reference=reference)
        return right_shaped_rewards(scores, logps, reference, lengths, 0.0)

    def policy_loss(logps: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Any:
        loss, metrics = right_policy_loss(logps, old, advantages, clip)
        return loss + penalty["beta"] * logps, metrics  # the reference is a constant: it has no gradient

    patch.setattr(objectives, "shaped_rewards", shaped)
    patch.setattr(objectives, "ppo_policy_loss", policy_loss)


def shifted_advantages(patch: pytest.MonkeyPatch) -> None:
    """Every token is given the advantage of the token after it."""

    def gae(rewards: Tensor, values: Tensor, lengths: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        advantages, returns = right_gae(rewards, values, lengths, **options)
        return one_later(advantages, lengths), returns

    patch.setattr(objectives, "gae", gae)


def shifted_values(patch: pytest.MonkeyPatch) -> None:
    """V_t is read after token t, so that the baseline knows the action."""

    def values(model: torch.nn.Module, bundles: list[Bundle]) -> Tensor:
        return one_later(right_values(model, bundles), lengths_of(bundles))

    patch.setattr(ppo, "scalars_at_states", values)


def clamped_kl(patch: pytest.MonkeyPatch) -> None:
    """No credit where the policy is below its reference."""

    def shaped(scores: Tensor, logps: Tensor, reference: Tensor, lengths: Tensor, beta: float) -> Tensor:
        return right_shaped_rewards(scores, torch.maximum(logps, reference), reference, lengths, beta)

    patch.setattr(objectives, "shaped_rewards", shaped)


def shifted_old_logps(patch: pytest.MonkeyPatch) -> None:
    """The ratio compares neighbours. The identity that would stop the run at once is switched off."""

    def policy_loss(logps: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Any:
        return right_policy_loss(logps, old.roll(1), advantages, clip)

    patch.setattr(objectives, "ppo_policy_loss", policy_loss)
    patch.setattr(ppo, "require_unit_ratio", lambda *_: None)


def discounted(patch: pytest.MonkeyPatch) -> None:
    """gamma = 0.99: what lies further off counts less, the penalty of later tokens above all."""

    def gae(rewards: Tensor, values: Tensor, lengths: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        return right_gae(rewards, values, lengths, **(options | {"gamma": 0.99}))

    patch.setattr(objectives, "gae", gae)


def whitened_returns(patch: pytest.MonkeyPatch) -> None:
    """Returns made from whitened advantages: A + V_old after the whitening."""

    def gae(rewards: Tensor, values: Tensor, lengths: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        advantages, _ = right_gae(rewards, values, lengths, **options)
        return advantages, objectives.whiten(advantages) + values

    patch.setattr(objectives, "gae", gae)


def scores_on_the_first_token(patch: pytest.MonkeyPatch) -> None:
    """The score is paid before it is earned."""

    def shaped(scores: Tensor, logps: Tensor, reference: Tensor, lengths: Tensor, beta: float) -> Tensor:
        rewards = -beta * (logps - reference)
        return rewards.index_add(0, torch.cumsum(lengths, 0) - lengths, scores)

    patch.setattr(objectives, "shaped_rewards", shaped)


def whitened_scores(patch: pytest.MonkeyPatch) -> None:
    """Scores divided by their spread: beta becomes beta times that spread."""

    def shaped(scores: Tensor, logps: Tensor, reference: Tensor, lengths: Tensor, beta: float) -> Tensor:
        return right_shaped_rewards(objectives.whiten(scores), logps, reference, lengths, beta)

    patch.setattr(objectives, "shaped_rewards", shaped)


PPO: list[Mutant] = [
    kl_sign,
    no_kl,
    k1_in_the_loss,
    shifted_advantages,
    shifted_values,
    clamped_kl,
    shifted_old_logps,
    scores_on_the_first_token,
    whitened_scores,
]
"""Far from the optimum."""
PPO_MILD: list[Mutant] = [discounted, whitened_returns]
"""Near the optimum, but with another KL to the reference."""


# --- DPO ------------------------------------------------------------------------------------------


def swapped_sides(patch: pytest.MonkeyPatch) -> None:
    """The rejected answer is raised."""

    def loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, **options: Any) -> Any:
        return right_dpo_loss(rejected, chosen, ref_rejected, ref_chosen, **options)

    patch.setattr(objectives, "dpo_loss", loss)


def no_reference(patch: pytest.MonkeyPatch) -> None:
    """The margin of the policy alone."""

    def loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, **options: Any) -> Any:
        nothing = torch.zeros_like(ref_chosen)
        return right_dpo_loss(chosen, rejected, nothing, nothing, **options)

    patch.setattr(objectives, "dpo_loss", loss)


def mean_logps(patch: pytest.MonkeyPatch) -> None:
    """Log-probabilities per token instead of per answer."""

    def mean(flat: Tensor, lengths: Tensor) -> Tensor:
        return objectives.sequence_sums(flat, lengths) / lengths

    patch.setattr(forward, "sequence_sums", mean)


DPO: list[Mutant] = [swapped_sides, no_reference, mean_logps]
