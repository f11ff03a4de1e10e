"""Every objective against an oracle that shares no code with it: hand-written loops, closed forms, float64."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from keel import objectives
from keel.objectives import (
    adapt_kl_coefficient,
    bradley_terry_loss,
    bradley_terry_zero_loss,
    dpo_loss,
    dpo_zero_margin_loss,
    gae,
    last_tokens,
    ppo_policy_loss,
    ppo_value_loss,
    sequence_sums,
    shaped_rewards,
    whiten,
    wins,
)

LENGTHS = torch.tensor([3, 1, 5, 2])
TOKENS = int(LENGTHS.sum())
LOSSES: list[dict[str, Any]] = [
    {"kind": "sigmoid"},
    {"kind": "sigmoid", "label_smoothing": 0.2},
    {"kind": "robust", "label_smoothing": 0.2},
    {"kind": "hinge"},
    {"kind": "ipo"},
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(left: Tensor, right: Any, tolerance: float = 1e-12) -> None:
    right = torch.as_tensor(right, dtype=left.dtype)
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def rows(flat: Tensor, lengths: Tensor = LENGTHS) -> list[list[float]]:
    return [part.tolist() for part in flat.split(lengths.tolist())]


# --- flat tensors ---------------------------------------------------------------------------------


def test_sequence_sums_stay_within_a_completion() -> None:
    flat = draw(TOKENS)
    close(sequence_sums(flat, LENGTHS), [sum(row) for row in rows(flat)])


def test_sequence_sums_of_an_empty_completion_are_zero() -> None:
    close(sequence_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 0, 1, 0])), [0, 3, 0, 4, 0])
    assert sequence_sums(torch.empty(0), torch.tensor([], dtype=torch.long)).shape == (0,)


def test_sequence_sums_carry_gradients() -> None:
    flat = draw(TOKENS).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sequence_sums(x, LENGTHS), flat)


def test_last_tokens_point_at_the_last_real_token() -> None:
    assert last_tokens(LENGTHS).tolist() == [2, 3, 8, 10]


def test_win_rate_counts_ties_as_half() -> None:
    assert wins(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])).tolist() == [1.0, 0.5, 0.0]


# --- Bradley-Terry --------------------------------------------------------------------------------


def test_bradley_terry_is_the_log_probability_of_the_vote() -> None:
    chosen, rejected, margin = draw(16), draw(16, seed=1), draw(16, seed=2).abs()
    gaps = (chosen - rejected).tolist()
    plain, metrics = bradley_terry_loss(chosen, rejected)
    close(plain, [-math.log(sigmoid(gap)) for gap in gaps])
    graded, of_graded = bradley_terry_loss(chosen, rejected, margin)
    close(graded, [-math.log(sigmoid(gap - m)) for gap, m in zip(gaps, margin.tolist(), strict=True)])
    assert (graded > plain).all()  # a margin asks for more
    close(metrics["margin"], gaps)
    close(metrics["mean_reward"], (chosen + rejected) / 2)
    assert metrics["accuracy"].tolist() == [float(gap > 0) for gap in gaps]
    assert any(0 < gap < m for gap, m in zip(gaps, margin.tolist(), strict=True))
    for name in metrics:  # what is logged is of the scores alone
        close(of_graded[name], metrics[name])


def test_bradley_terry_raises_the_chosen() -> None:
    chosen, rejected = draw(4).requires_grad_(), draw(4, seed=1).requires_grad_()
    loss, _ = bradley_terry_loss(chosen, rejected)
    up, down = torch.autograd.grad(loss.sum(), (chosen, rejected))
    assert (up < 0).all()
    close(down, -up)
    assert torch.autograd.gradcheck(lambda c, r: bradley_terry_loss(c, r)[0], (chosen, rejected))


def test_a_zero_head_has_its_closed_form() -> None:
    margin = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    close(bradley_terry_loss(zero, zero, margin)[0], bradley_terry_zero_loss(margin))
    close(bradley_terry_zero_loss(margin), [math.log(2), math.log(1 + math.exp(0.5)), math.log(1 + math.exp(3))])


# --- DPO ------------------------------------------------------------------------------------------


def sides(count: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """chosen, rejected, reference chosen, reference rejected."""
    drawn = draw(4, count) * 3 - 20
    return drawn[0], drawn[1], drawn[2], drawn[3]


def by_hand(h: float, beta: float, kind: str, label_smoothing: float = 0.0) -> float:
    """One pair's loss from its log-ratio margin h."""
    win, lose = -math.log(sigmoid(beta * h)), -math.log(sigmoid(-beta * h))
    e = label_smoothing
    return {
        "sigmoid": (1 - e) * win + e * lose,
        "robust": ((1 - e) * win - e * lose) / (1 - 2 * e),
        "hinge": max(0.0, 1 - beta * h),
        "ipo": (h - 1 / (2 * beta)) ** 2,
    }[kind]


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("options", LOSSES, ids=str)
def test_dpo_losses_by_hand(options: dict[str, Any], beta: float) -> None:
    chosen, rejected, reference_chosen, reference_rejected = sides()
    h = (chosen - reference_chosen) - (rejected - reference_rejected)
    loss, metrics = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=beta, **options)
    close(loss, [by_hand(x, beta, **options) for x in h.tolist()])
    close(metrics["rewards/chosen"], beta * (chosen - reference_chosen))
    close(metrics["rewards/rejected"], beta * (rejected - reference_rejected))
    close(metrics["rewards/margins"], beta * h)
    assert metrics["rewards/accuracies"].tolist() == [float(x > 0) for x in h.tolist()]
    close(metrics["logps/chosen"], chosen)
    close(metrics["logps/rejected"], rejected)


@pytest.mark.parametrize("options", LOSSES, ids=str)
def test_dpo_raises_the_chosen_and_leaves_the_reference(options: dict[str, Any]) -> None:
    """At zero margin every loss pulls the chosen up and the rejected down, equally."""
    inputs = [torch.full((3,), -9.0, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    loss, metrics = dpo_loss(*inputs, beta=0.3, **options)
    chosen, rejected = torch.autograd.grad(loss.sum(), inputs[:2])
    assert (chosen < 0).all()
    close(rejected, -chosen)
    assert not any(m.requires_grad for m in metrics.values())
    assert metrics["rewards/accuracies"].tolist() == [0.5, 0.5, 0.5]  # step 0 is a tie


@pytest.mark.parametrize("options", LOSSES, ids=str)
def test_dpo_gradients(options: dict[str, Any]) -> None:
    chosen, rejected, reference_chosen, reference_rejected = sides()
    assert torch.autograd.gradcheck(
        lambda c, r: dpo_loss(c, r, reference_chosen, reference_rejected, beta=0.3, **options)[0],
        (chosen.requires_grad_(), rejected.requires_grad_()),
    )


@pytest.mark.parametrize(("kind", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.3), ("robust", 0.3)])
def test_zero_margin_is_ln_2(kind: Any, smoothing: float) -> None:
    logps = draw(5)
    loss, _ = dpo_loss(logps, logps - 1, logps, logps - 1, beta=0.3, kind=kind, label_smoothing=smoothing)
    close(loss, [math.log(2)] * 5)
    assert dpo_zero_margin_loss(kind, beta=0.3) == math.log(2)


@pytest.mark.parametrize(("kind", "value"), [("hinge", 1.0), ("ipo", 1 / (4 * 0.3**2))])
def test_zero_margin_of_hinge_and_ipo(kind: Any, value: float) -> None:
    logps = draw(5)
    close(dpo_loss(logps, logps, logps, logps, beta=0.3, kind=kind)[0], [value] * 5)
    assert dpo_zero_margin_loss(kind, beta=0.3) == pytest.approx(value)


def test_length_regularisation_has_no_closed_form_at_step_0() -> None:
    assert dpo_zero_margin_loss("sigmoid", beta=0.3, length_alpha=0.1) is None


@pytest.mark.parametrize("options", LOSSES[:4], ids=str)
def test_length_alpha_adds_to_the_logit(options: dict[str, Any]) -> None:
    """alpha (|w| - |l|) is alpha / beta nats of margin; the rewards that are logged are without it."""
    inputs = sides()
    gap = torch.tensor([0, 1, -1, 50, -50, 20, 3, 2], dtype=torch.float64)
    moved = (inputs[0] + 0.05 / 0.3 * gap, *inputs[1:])
    loss, metrics = dpo_loss(*inputs, beta=0.3, length_alpha=0.05, length_gap=gap, **options)
    expected, _ = dpo_loss(*moved, beta=0.3, **options)
    close(loss, expected)
    plain = dpo_loss(*inputs, beta=0.3)[1]
    margins = plain["rewards/margins"]
    assert ((margins + 0.05 * gap) * margins < 0).any()  # length alone turns one of them
    for name in plain:
        close(metrics[name], plain[name])


@pytest.mark.parametrize("options", [{"kind": "ipo", "length_gap": torch.ones(8)}, {"kind": "sigmoid"}], ids=str)
def test_length_alpha_refuses_what_it_cannot_do(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="length_alpha needs"):
        dpo_loss(*sides(), length_alpha=0.1, **options)


def test_averaged_ipo_by_hand() -> None:
    """Two pairs with round numbers: per token 3/2 - (-1)/4 = 1.75, and -2/1 - 6/3 = -4; 1 / (2 beta) is 2."""
    pairs = [torch.tensor(x, dtype=torch.float64) for x in ([-7.0, -5.0], [-9.0, -4.0], [-10.0, -3.0], [-8.0, -10.0])]
    lengths = torch.tensor([2, 1]), torch.tensor([4, 3])
    loss, metrics = dpo_loss(*pairs, beta=0.25, kind="ipo", lengths=lengths)
    close(loss, [0.25**2, 36.0])
    close(metrics["rewards/margins"], [0.25 * (3 + 1), 0.25 * (-2 - 6)])  # rewards are of sums, as for every loss
    plain, _ = dpo_loss(*pairs, beta=0.25, kind="ipo")
    close(plain, [4.0, 100.0])


def test_averaged_ipo_of_answers_of_one_token_is_ipo() -> None:
    ones = torch.ones(8), torch.ones(8)
    close(dpo_loss(*sides(), beta=0.3, kind="ipo", lengths=ones)[0], dpo_loss(*sides(), beta=0.3, kind="ipo")[0])


def test_averaged_ipo_starts_where_ipo_does() -> None:
    logps = draw(5)
    lengths = torch.arange(1, 6), torch.arange(5, 0, -1)
    loss, _ = dpo_loss(logps, logps - 1, logps, logps - 1, beta=0.3, kind="ipo", lengths=lengths)
    close(loss, [dpo_zero_margin_loss("ipo", beta=0.3)] * 5)


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "robust"])
def test_lengths_are_refused_but_for_ipo(kind: Any) -> None:
    with pytest.raises(ValueError, match="lengths average the log-ratios of ipo"):
        dpo_loss(*sides(), kind=kind, label_smoothing=0.1, lengths=(torch.ones(8), torch.ones(8)))


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown DPO loss"):
        dpo_loss(*sides(), kind="dpo")  # type: ignore[arg-type]


def flipped(smoothing: float, loss: Any) -> Tensor:
    """Expected loss and its gradient where each label is flipped with probability `smoothing`."""
    chosen, rejected, reference_chosen, reference_rejected = sides()
    chosen.requires_grad_()
    kept = loss(chosen, rejected, reference_chosen, reference_rejected)
    turned = loss(rejected, chosen, reference_rejected, reference_chosen)
    expected = (1 - smoothing) * kept + smoothing * turned
    return torch.stack([expected.detach(), *torch.autograd.grad(expected.sum(), chosen)])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_conservative_loss_is_the_plain_one_under_flips(smoothing: float) -> None:
    found = flipped(0, lambda *s: dpo_loss(*s, beta=0.3, label_smoothing=smoothing)[0])
    close(found, flipped(smoothing, lambda *s: dpo_loss(*s, beta=0.3)[0]))


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
def test_robust_loss_under_flips_is_the_clean_one(smoothing: float) -> None:
    found = flipped(smoothing, lambda *s: dpo_loss(*s, beta=0.3, kind="robust", label_smoothing=smoothing)[0])
    close(found, flipped(0, lambda *s: dpo_loss(*s, beta=0.3)[0]))


def test_every_option_of_dpo_changes_the_loss() -> None:
    gap = torch.arange(1.0, 9.0, dtype=torch.float64)
    variants: list[dict[str, Any]] = [
        {},
        {"beta": 0.2},
        {"label_smoothing": 0.1},
        {"kind": "robust", "label_smoothing": 0.1},
        {"kind": "hinge"},
        {"kind": "ipo"},
        {"length_alpha": 0.1, "length_gap": gap},
        {"kind": "ipo", "lengths": (gap, gap)},
    ]
    assert {name for v in variants for name in v} == {
        p.name for p in inspect.signature(dpo_loss).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    losses = [dpo_loss(*sides(), **v)[0] for v in variants]
    for i, left in enumerate(losses):
        assert not any(torch.allclose(left, right) for right in losses[:i]), variants[i]


@pytest.mark.parametrize("margin", [200.0, -200.0, 1e4])
@pytest.mark.parametrize("options", LOSSES, ids=str)
def test_huge_margins_stay_finite_in_fp32(options: dict[str, Any], margin: float) -> None:
    chosen = torch.tensor([margin], requires_grad=True)
    zero = torch.zeros(1)
    loss, _ = dpo_loss(chosen, zero, zero, zero, beta=1.0, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), chosen)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


# --- rewards --------------------------------------------------------------------------------------


def test_shaped_rewards_by_hand() -> None:
    scores, logps, reference = draw(4), draw(TOKENS, seed=1), draw(TOKENS, seed=2)
    expected: list[float] = []
    for score, new, old in zip(scores.tolist(), rows(logps), rows(reference), strict=True):
        row = [-0.3 * (a - b) for a, b in zip(new, old, strict=True)]
        row[-1] += score
        expected += row
    found = shaped_rewards(scores, logps, reference, LENGTHS, 0.3)
    close(found, expected)
    close(sequence_sums(found, LENGTHS), scores - 0.3 * sequence_sums(logps - reference, LENGTHS))


def test_shaped_rewards_put_the_score_on_the_last_token() -> None:
    zero = torch.zeros(TOKENS)
    rewards = shaped_rewards(torch.tensor([1.0, 2.0, 3.0, 4.0]), zero, zero, LENGTHS, 0.3)
    assert rewards.tolist() == [0, 0, 1, 2, 0, 0, 0, 0, 3, 0, 4]


def test_shaped_rewards_punish_distance_from_the_reference() -> None:
    """Tokens that the policy likes better than its reference cost; beta scales the cost."""
    above = torch.ones(TOKENS)
    rewards = shaped_rewards(torch.zeros(4), above, torch.zeros(TOKENS), LENGTHS, 0.3)
    close(rewards, [-0.3] * TOKENS)
    close(shaped_rewards(torch.zeros(4), -above, torch.zeros(TOKENS), LENGTHS, 0.3), [0.3] * TOKENS)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.1 * (1 + 0.1 * 64 / 1000)),  # above: beta rises in proportion
        (60.0, 0.1 * (1 + 0.2 * 64 / 1000)),  # far above: by a fifth of n / horizon at most
        (5.4, 0.1 * (1 - 0.1 * 64 / 1000)),
        (-3.0, 0.1 * (1 - 0.2 * 64 / 1000)),
    ],
)
def test_adaptive_kl_coefficient(kl: float, expected: float) -> None:
    assert adapt_kl_coefficient(0.1, kl, target=6.0, n=64, horizon=1000) == pytest.approx(expected)


# --- GAE ------------------------------------------------------------------------------------------


def gae_by_hand(
    rewards: list[float], values: list[float], gamma: float, lam: float, bootstrap: float = 0.0
) -> list[float]:
    """A_t = sum over k of (gamma lam)^k delta_{t+k}: the definition, not the recursion."""
    after = [*values[1:], bootstrap]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.9, 0.0)])
def test_gae_by_hand(gamma: float, lam: float, bootstrap: bool) -> None:
    rewards, values = draw(TOKENS), draw(TOKENS, seed=1)
    ends = draw(4, seed=2) if bootstrap else None
    advantages, returns = gae(rewards, values, LENGTHS, gamma=gamma, lam=lam, bootstrap=ends)
    given = zip(rows(rewards), rows(values), ends.tolist() if ends is not None else [0.0] * 4, strict=True)
    close(advantages, [a for r, v, end in given for a in gae_by_hand(r, v, gamma, lam, end)])
    close(returns, advantages + values)


def test_undiscounted_returns_are_the_rewards_to_come() -> None:
    rewards, values = draw(TOKENS), draw(TOKENS, seed=1)
    to_come = [sum(row[t:]) for row in rows(rewards) for t in range(len(row))]
    close(gae(rewards, values, LENGTHS, lam=1.0)[1], to_come)
    ends = torch.tensor([0.0, 2.0, 0.0, -1.0], dtype=torch.float64)
    close(
        gae(rewards, values, LENGTHS, lam=1.0, bootstrap=ends)[1],
        torch.tensor(to_come, dtype=torch.float64) + ends.repeat_interleave(LENGTHS),
    )


def test_gae_of_a_perfect_critic_is_zero() -> None:
    rewards = draw(TOKENS)
    to_come = [sum(row[t:]) for row in rows(rewards) for t in range(len(row))]
    values = torch.tensor(to_come, dtype=torch.float64)
    close(gae(rewards, values, LENGTHS, lam=0.7)[0], [0.0] * TOKENS)


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_gae_of_a_batch_is_that_of_each_completion(lengths: list[int], seed: int) -> None:
    """No completion sees another, whatever the lengths."""
    sizes = torch.tensor(lengths)
    rewards, values = draw(int(sizes.sum()), seed=seed), draw(int(sizes.sum()), seed=seed + 100)
    advantages, _ = gae(rewards, values, sizes, gamma=0.9, lam=0.8)
    parts = zip(rewards.split(lengths), values.split(lengths), sizes, strict=True)
    close(advantages, torch.cat([gae(r, v, n[None], gamma=0.9, lam=0.8)[0] for r, v, n in parts]))


def test_gae_does_not_touch_its_inputs() -> None:
    rewards, values, ends = draw(TOKENS), draw(TOKENS, seed=1), draw(4, seed=2)
    before = [rewards.clone(), values.clone(), ends.clone()]
    gae(rewards, values, LENGTHS, bootstrap=ends)
    assert all(torch.equal(a, b) for a, b in zip(before, [rewards, values, ends], strict=True))


def test_gae_of_nothing() -> None:
    empty = torch.empty(0)
    assert [x.numel() for x in gae(empty, empty, torch.tensor([], dtype=torch.long))] == [0, 0]


def test_every_option_of_gae_changes_the_advantages() -> None:
    rewards, values = draw(TOKENS), draw(TOKENS, seed=1)
    variants: list[dict[str, Any]] = [{}, {"gamma": 0.99}, {"lam": 1.0}, {"bootstrap": draw(4, seed=2)}]
    found = [gae(rewards, values, LENGTHS, **v)[0] for v in variants]
    for i, left in enumerate(found):
        assert not any(torch.allclose(left, right) for right in found[:i]), variants[i]


# --- whitening ------------------------------------------------------------------------------------


def test_whiten_shifts_and_scales() -> None:
    x = draw(50) * 3 + 7
    white = whiten(x)
    assert float(white.mean()) == pytest.approx(0, abs=1e-12)
    assert float(white.std()) == pytest.approx(1, abs=1e-7)
    close(white * x.std() + x.mean(), x, tolerance=1e-7)


def test_whiten_leaves_what_has_no_spread() -> None:
    assert torch.equal(whiten(torch.tensor([3.0])), torch.tensor([3.0]))
    assert whiten(torch.empty(0)).numel() == 0
    assert torch.equal(whiten(torch.full((4,), 2.0)), torch.zeros(4))  # finite, not 0 / 0


# --- PPO ------------------------------------------------------------------------------------------


def policy_by_hand(new: float, old: float, advantage: float, clip: float) -> float:
    ratio = math.exp(new - old)
    return -min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)


def test_policy_loss_by_hand() -> None:
    logps, old, advantages = draw(40) / 3, draw(40, seed=1) / 3, draw(40, seed=2)
    loss, metrics = ppo_policy_loss(logps, old, advantages, 0.2)
    given = zip(logps.tolist(), old.tolist(), advantages.tolist(), strict=True)
    close(loss, [policy_by_hand(*x, 0.2) for x in given])
    ratio = (logps - old).exp()
    close(metrics["val/ratio"], ratio)
    clipped = [float(abs(r - 1) > 0.2) for r in ratio.tolist()]
    assert 0 < sum(clipped) < 40
    assert metrics["policy/clipfrac_avg"].tolist() == clipped
    close(metrics["policy/approxkl_avg"], ratio - 1 - ratio.log())  # k3 of KL(old || new), on samples of the old


def test_policy_loss_starts_as_the_policy_gradient() -> None:
    """Before an update the ratio is 1, nothing is clipped, and the gradient is -A at every token."""
    logps, advantages = draw(TOKENS).requires_grad_(), draw(TOKENS, seed=2)
    loss, metrics = ppo_policy_loss(logps, logps.detach(), advantages, 0.2)
    close(loss, -advantages)
    close(*torch.autograd.grad(loss.sum(), logps), -advantages)
    assert metrics["val/ratio"].tolist() == [1.0] * TOKENS
    assert metrics["policy/clipfrac_avg"].sum() == 0
    assert metrics["policy/approxkl_avg"].abs().sum() == 0
    assert not any(m.requires_grad for m in metrics.values())


@pytest.mark.parametrize(
    ("ratio", "advantage", "learns"),
    [(1.5, 1.0, False), (0.5, -1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (1.1, 1.0, True), (0.9, -1.0, True)],
)
def test_policy_loss_stops_only_gains_beyond_the_clip(ratio: float, advantage: float, learns: bool) -> None:
    logp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    loss, _ = ppo_policy_loss(logp, torch.zeros(1), torch.tensor([advantage], dtype=torch.float64), 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    close(gradient, [-ratio * advantage if learns else 0.0])


@pytest.mark.parametrize("log_ratio", [200.0, -200.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_policy_loss_of_a_huge_ratio_has_a_finite_gradient(log_ratio: float, advantage: float) -> None:
    """exp(200) is inf in fp32; a clipped token must add 0 to the gradient, not 0 * inf."""
    logp = torch.tensor([log_ratio], requires_grad=True)
    loss, metrics = ppo_policy_loss(logp, torch.zeros(1), torch.tensor([advantage]), 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert all(m.isfinite().all() for m in metrics.values())


def test_clip_changes_the_losses() -> None:
    x, y, z = draw(40), draw(40, seed=1), draw(40, seed=2)
    for loss in (ppo_policy_loss, ppo_value_loss):
        assert not torch.allclose(loss(x, y, z, 0.1)[0], loss(x, y, z, 0.3)[0])


def value_by_hand(value: float, old: float, target: float, clip: float) -> float:
    limited = min(max(value, old - clip), old + clip)
    return 0.5 * max((value - target) ** 2, (limited - target) ** 2)


def test_value_loss_by_hand() -> None:
    values, old, returns = draw(40), draw(40, seed=1), draw(40, seed=2)
    loss, metrics = ppo_value_loss(values, old, returns, 0.5)
    given = zip(values.tolist(), old.tolist(), returns.tolist(), strict=True)
    close(loss, [value_by_hand(*x, 0.5) for x in given])
    share = float(metrics["val/clipfrac_avg"].mean())
    assert 0 < share < 1
    assert share == pytest.approx(float((loss > 0.5 * (values - returns) ** 2).double().mean()))


def test_value_loss_starts_as_half_the_squared_error() -> None:
    values, returns = draw(TOKENS).requires_grad_(), draw(TOKENS, seed=1)
    loss, metrics = ppo_value_loss(values, values.detach(), returns, 0.2)
    close(loss, 0.5 * (values - returns).detach() ** 2)
    close(*torch.autograd.grad(loss.sum(), values), (values - returns).detach())
    assert metrics["val/clipfrac_avg"].sum() == 0


# --- the file as a whole --------------------------------------------------------------------------


def test_losses_are_per_example_and_independent_of_the_cut() -> None:
    """A batch's losses are those of its parts: nothing is reduced, nothing leaks between examples."""
    inputs = sides()
    whole, _ = dpo_loss(*inputs, beta=0.3)
    parts = [dpo_loss(*(x[at] for x in inputs), beta=0.3)[0] for at in (slice(0, 3), slice(3, 8))]
    assert torch.equal(whole, torch.cat(parts))
    x, y, z = draw(9), draw(9, seed=1), draw(9, seed=2)
    for loss in (ppo_policy_loss, ppo_value_loss):
        assert torch.equal(loss(x, y, z, 0.2)[0], torch.cat([loss(x[i], y[i], z[i], 0.2)[0] for i in CUTS]))


CUTS = (slice(0, 4), slice(4, 9))


def test_every_public_function_is_tested_here() -> None:
    public = {n for n, f in vars(objectives).items() if inspect.isfunction(f) and not n.startswith("_")}
    assert {n for n in public if vars(objectives)[n].__module__ == objectives.__name__} <= set(globals())
