"""Losses, advantages and KL estimators as pure functions of tensors. Nothing here knows a model.

Shape legend: `[T]` is *flat* over the completion tokens of a batch, completion after completion, with `lengths [C]`
summing to T; `[C]` is one number per completion, `[N]` one per pair. Log-probabilities are natural, in nats.
Losses are returned per example (`[N]` or `[T]`), never reduced: the loop divides once by the count of the whole
optimiser batch, so that micro-batching cannot change a gradient.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

DpoLoss = Literal["sigmoid", "ipo", "hinge", "robust"]
Metrics = dict[str, Tensor]


# --- flat tensors ---------------------------------------------------------------------------------


def sequence_sums(flat: Tensor, lengths: Tensor) -> Tensor:
    """Sum a flat quantity within each completion: [T], [C] -> [C]. An empty completion sums to 0."""
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=flat.device), lengths.to(flat.device))
    return torch.zeros(len(lengths), dtype=flat.dtype, device=flat.device).index_add(0, owner, flat)


def last_tokens(lengths: Tensor) -> Tensor:
    """Return the flat index of each completion's last token: [C] -> [C]. Lengths must be positive."""
    return torch.cumsum(lengths, 0) - 1


# --- preference losses ----------------------------------------------------------------------------


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> tuple[Tensor, Metrics]:
    """Return the reward-model loss -log sigmoid(r_w - r_l - m) per pair (Bradley & Terry 1952; margin: Llama 2, eq. 2).

    chosen, rejected, margin: [N]. Returns the loss [N] and `accuracy`, `margin`, `mean_reward`, each [N].
    """
    gap = chosen - rejected
    loss = -F.logsigmoid(gap if margin is None else gap - margin)
    return loss, {
        "accuracy": wins(chosen, rejected),
        "margin": gap.detach(),
        "mean_reward": (chosen + rejected).detach() / 2,
    }


def bradley_terry_zero_loss(margin: Tensor) -> Tensor:
    """Return the loss of a head that scores 0 everywhere, log(1 + e^margin) [N]: ln 2 without a margin."""
    return F.softplus(margin)


def wins(left: Tensor, right: Tensor) -> Tensor:
    """Return 1 if left > right, 1/2 for a tie, else 0; elementwise."""
    return (left > right).float() + 0.5 * (left == right).float()


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    kind: DpoLoss = "sigmoid",
    label_smoothing: float = 0.0,
    length_alpha: float = 0.0,
    length_gap: Tensor | None = None,
    lengths: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Metrics]:
    """Return the loss of direct preference optimisation per pair, from each completion's summed log-probability [N].

    With h = (chosen - reference_chosen) - (rejected - reference_rejected), a log-ratio margin in nats:

    - `sigmoid`: l(h) = -log sigmoid(beta h) (Rafailov et al. 2023, eq. 7). `label_smoothing` e gives conservative DPO,
      (1 - e) l(h) + e l(-h): the expected loss if labels are flipped at rate e.
    - `robust`: ((1 - e) l(h) - e l(-h)) / (1 - 2e) (Chowdhury et al. 2024): if labels are flipped at rate e, its
      expectation is the clean loss. Unbounded below on pairs whose win rate exceeds 1 - e.
    - `hinge`: max(0, 1 - beta h) (SLiC, Zhao et al. 2023).
    - `ipo`: (h - 1 / (2 beta))^2 with beta in the role of tau (Azar et al. 2024, eq. 17), on *summed*
      log-probabilities. With `lengths` = (|w|, |l|) in tokens, [N] each, h is of *averages*, as in TRL:
      h = (chosen - reference_chosen) / |w| - (rejected - reference_rejected) / |l|. Then 1 / (2 beta) is a margin in
      nats per token: the same beta asks for a summed margin that grows with the answers' lengths.

    `length_alpha` > 0 adds alpha (|w| - |l|) to beta h (Park et al. 2024); the optimal policy is then
    ref exp((r - alpha |y|) / beta). `length_gap` = |w| - |l| in tokens, [N]. Not defined for `ipo`.

    Returns the loss [N] and the usual metrics, each [N]; rewards are beta times the log-ratio.
    """
    chosen_ratio = chosen - reference_chosen
    rejected_ratio = rejected - reference_rejected
    logits = beta * (chosen_ratio - rejected_ratio)
    if lengths is not None:
        if kind != "ipo":
            raise ValueError("lengths average the log-ratios of ipo; other losses use sums")
        logits = beta * (chosen_ratio / lengths[0] - rejected_ratio / lengths[1])
    if length_alpha:
        if length_gap is None or kind == "ipo":
            raise ValueError("length_alpha needs length_gap and a loss of a logit (sigmoid, robust, hinge)")
        logits = logits + length_alpha * length_gap
    loss = _dpo_of_logits(logits, kind, label_smoothing, beta)
    rewards_chosen, rewards_rejected = beta * chosen_ratio.detach(), beta * rejected_ratio.detach()
    return loss, {
        "rewards/chosen": rewards_chosen,
        "rewards/rejected": rewards_rejected,
        "rewards/margins": rewards_chosen - rewards_rejected,
        "rewards/accuracies": wins(rewards_chosen, rewards_rejected),
        "logps/chosen": chosen.detach(),
        "logps/rejected": rejected.detach(),
    }


def _dpo_of_logits(logits: Tensor, kind: DpoLoss, smoothing: float, beta: float) -> Tensor:
    if kind == "sigmoid":
        return -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)
    if kind == "robust":
        kept, flipped = F.logsigmoid(logits), F.logsigmoid(-logits)
        return (-(1 - smoothing) * kept + smoothing * flipped) / (1 - 2 * smoothing)
    if kind == "hinge":
        return torch.relu(1 - logits)
    if kind == "ipo":
        return (logits / beta - 1 / (2 * beta)) ** 2
    raise ValueError(f"unknown DPO loss {kind!r}")


def dpo_zero_margin_loss(kind: DpoLoss, *, beta: float, length_alpha: float = 0.0) -> float | None:
    """Return the loss of a policy that still equals its reference; step 0 must show it.

    ln 2 for the sigmoid, conservative and robust forms, 1 for hinge, 1 / (4 tau^2) for IPO, both of sums and of
    averages. None with `length_alpha`: pairs with different length gaps then start from different logits.
    """
    if length_alpha:
        return None
    return {"sigmoid": math.log(2), "robust": math.log(2), "hinge": 1.0, "ipo": 1 / (4 * beta**2)}[kind]


# --- KL -------------------------------------------------------------------------------------------


def shaped_rewards(scores: Tensor, logps: Tensor, reference_logps: Tensor, lengths: Tensor, beta: float) -> Tensor:
    """Return PPO's reward per token [T]: -beta * k1 at every token, plus the completion's score [C] at its last token.

    It sums to score - beta * sum(k1) over each completion (Ziegler et al. 2019, eq. 2). `logps` are those of the policy
    that sampled; inputs and result carry no gradient.
    """
    rewards = -beta * (logps - reference_logps)
    return rewards.index_add(0, last_tokens(lengths).to(rewards.device), scores.to(rewards.dtype))


def adapt_kl_coefficient(beta: float, kl: float, target: float, n: int, horizon: int) -> float:
    """Return the next beta by the proportional controller of Ziegler et al. 2019, eq. 3.

    It is beta (1 + clip(KL / target - 1, +-0.2) n / horizon). `kl` and `target` are in nats per sequence, `n` is the
    number of sequences since the last call, `horizon` is in sequences.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * n / horizon)


# --- PPO ------------------------------------------------------------------------------------------


def gae(
    rewards: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return advantages by GAE (Schulman et al. 2016, eq. 16), and the returns to regress values on.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, with V_L = `bootstrap` [C] (0 if None:
    the episode ended). Returns = A + V, before any whitening. rewards, values: [T]; both results: [T], no gradient.
    """
    count, longest = len(lengths), int(lengths.max()) if len(lengths) else 0
    lengths = lengths.to(rewards.device)
    starts = torch.cumsum(lengths, 0) - lengths
    next_value = (
        torch.zeros(count, dtype=values.dtype, device=values.device) if bootstrap is None else bootstrap.clone()
    )
    carry = torch.zeros(count, dtype=rewards.dtype, device=rewards.device)
    advantages = torch.zeros_like(rewards)
    for t in range(longest - 1, -1, -1):
        rows = torch.nonzero(lengths > t).squeeze(1)
        at = starts[rows] + t
        delta = rewards[at] + gamma * next_value[rows] - values[at]
        carry[rows] = delta + gamma * lam * carry[rows]
        advantages[at] = carry[rows]
        next_value[rows] = values[at]
    return advantages, advantages + values


def whiten(x: Tensor) -> Tensor:
    """Shift to mean 0 and scale to standard deviation 1 over all entries; fewer than two are left as they are."""
    if x.numel() < 2:
        return x
    return (x - x.mean()) / (x.std() + 1e-8)


def ppo_policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Metrics]:
    """Return the clipped surrogate per token, -min(rho A, clip(rho, 1 +- clip) A) (Schulman et al. 2017, eq. 7).

    All [T]. rho is the probability ratio to the policy that *sampled*, not to the reference.
    """
    log_ratio = torch.clamp(logps - old_logps, -20.0, 20.0)  # exp(200) is inf in fp32, and inf times 0 a NaN gradient
    ratio = torch.exp(log_ratio)
    clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
    loss = torch.maximum(-ratio * advantages, -clipped * advantages)
    detached = ratio.detach()
    return loss, {
        "policy/approxkl_avg": (detached - 1) - log_ratio.detach(),
        "policy/clipfrac_avg": ((detached - 1).abs() > clip).float(),
        "val/ratio": detached,
    }


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Metrics]:
    """Return the clipped value loss per token, 1/2 max((V - R)^2, (clip(V, V_old +- clip) - R)^2). All [T]."""
    clipped = torch.clamp(values, old_values - clip, old_values + clip)
    plain, limited = (values - returns) ** 2, (clipped - returns) ** 2
    return 0.5 * torch.maximum(plain, limited), {"val/clipfrac_avg": (limited > plain).float().detach()}
