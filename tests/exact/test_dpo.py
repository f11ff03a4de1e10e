"""DPO against optima that are known exactly: on the tree, and on a handful of arms where Newton's method is exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.bradley_terry import bradley_terry_fit
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from keel import objectives
from keel.config import DPOConfig
from keel.engine.adamw import Optimizer
from keel.engine.forward import sequence_logps
from keel.methods import dpo
from keel.records import Bundle, Completion

from . import mutants
from .tree import BETA, Tree, bundle_of, kl, policy_of

# --- the tree -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """Where DPO on the tree ended."""

    to_optimum: float
    """KL(policy || optimum)"""
    slope: float
    """Of implicit margins on true ones, through the origin."""
    excess_loss: float
    """Above the Bayes loss: 0 where every preference is predicted with its true probability."""


def population_pairs(tree: Tree, count: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of sequences, all 66,066 or some at random, and how often the first wins."""
    pairs = torch.triu_indices(len(tree.sequences), len(tree.sequences), 1)
    if count is not None:
        pairs = pairs[:, torch.randperm(pairs.shape[1], generator=torch.Generator().manual_seed(0))[:count]]
    first, second = pairs
    return first, second, torch.sigmoid(tree.scores[first] - tree.scores[second])


def fit(
    tree: Tree,
    pairs: tuple[Tensor, Tensor, Tensor],
    logps: Callable[[], Tensor],
    step: Callable[[float], None],
    law: Callable[[], Tensor],
    steps: int,
) -> Fit:
    """Adam, 0.05 -> 0, on the exact population loss: both outcomes of every pair, each with its probability."""
    first, second, wins = pairs
    reference = logps().detach()
    for number in range(steps):
        now = logps()
        sides = now[first], now[second], reference[first], reference[second]
        won, _ = objectives.dpo_loss(*sides, beta=BETA)
        lost, _ = objectives.dpo_loss(sides[1], sides[0], sides[3], sides[2], beta=BETA)
        loss = (wins.to(now.dtype) * won + (1 - wins).to(now.dtype) * lost).mean()
        loss.backward()
        step(0.05 * (1 - number / steps))
    final = law()
    implicit = BETA * (final - tree.reference)
    implicit, true = implicit[first] - implicit[second], tree.scores[first] - tree.scores[second]
    bayes = -(wins * wins.log() + (1 - wins) * (1 - wins).log()).mean()
    slope = float((implicit * true).sum() / true.square().sum())
    return Fit(kl(final, tree.optimum), slope, float(loss.detach() - bayes))


def fit_table(tree: Tree, count: int | None = None, steps: int = 1000) -> Fit:
    """A table of logits in float64, under torch's Adam."""
    table = tree.reference_logits.clone().requires_grad_()
    adam = torch.optim.Adam([table])

    def step(rate: float) -> None:
        adam.param_groups[0]["lr"] = rate
        adam.step()
        adam.zero_grad()

    pairs = population_pairs(tree, count)
    return fit(tree, pairs, lambda: tree.law(table), step, lambda: tree.law(table.detach()), steps)


def fit_model(tree: Tree, count: int | None = None, steps: int = 1000) -> Fit:
    """The same table as a model's head, through the engine's forward and optimiser, in fp32."""
    model, bundles = policy_of(tree), [bundle_of(tree)]
    adam = Optimizer(model.parameters(), weight_decay=0.0, eps=1e-8)
    return fit(
        tree,
        population_pairs(tree, count),
        lambda: sequence_logps(model, bundles),
        adam.step,
        lambda: tree.law(model.lm_head.weight.detach().T),
        steps,
    )


def test_dpo_reaches_the_optimum_on_all_pairs(tree: Tree) -> None:
    result = fit_table(tree)
    assert result.to_optimum < 1e-8  # 4e-11
    assert result.slope == pytest.approx(1, abs=1e-5)
    assert result.excess_loss == pytest.approx(0, abs=1e-10)


def test_dpo_reaches_the_optimum_through_the_engine(tree: Tree) -> None:
    """Any connected set of pairs has the same optimum, so a few thousand do."""
    result = fit_model(tree, 4000)
    assert result.to_optimum < 1e-8
    assert result.slope == pytest.approx(1, abs=1e-4)


SHORT = {"count": 4000, "steps": 500}


def test_dpo_comes_near_the_optimum_in_short(tree: Tree) -> None:
    """What the wrong implementations below are given, and fail with."""
    result = fit_model(tree, **SHORT)
    assert result.to_optimum < 1e-2
    assert result.slope == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("mutant", mutants.DPO, ids=lambda m: m.__name__)
def test_wrong_dpo_misses_the_optimum(tree: Tree, monkeypatch: pytest.MonkeyPatch, mutant: mutants.Mutant) -> None:
    mutant(monkeypatch)
    result = fit_model(tree, **SHORT)
    assert result.to_optimum > 1
    assert abs(result.slope - 1) > 0.05
    assert result.excess_loss < 1e-2  # a good loss certifies nothing


# --- arms: a policy is a vector of logits, one per answer -----------------------------------------

ARMS = 8
REFERENCE = torch.log_softmax(torch.linspace(-1.0, 1.0, ARMS, dtype=torch.float64).flip(0), 0)
REWARD = torch.tensor([0.3, -1.1, 0.8, 1.9, -0.4, 0.0, 1.2, -2.0], dtype=torch.float64)
LENGTHS = torch.tensor([1, 7, 3, 2, 9, 4, 12, 5])
PREFERENCES = torch.sigmoid(REWARD[:, None] - REWARD[None, :])
"""How often the row's arm is preferred to the column's."""


def newton(loss: Callable[[Tensor], Tensor], size: int = ARMS) -> Tensor:
    """Minimum to rounding; steps are halved until the loss falls, and logits keep the mean 0."""
    at = torch.zeros(size, dtype=torch.float64)
    for _ in range(30):
        step = torch.linalg.pinv(hessian(loss, at)) @ jacobian(loss, at)
        while float(loss(at - step)) > float(loss(at)) + 1e-12:
            step = step / 2
        at = at - step
    return at


def arm_loss(logits: Tensor, weights: Tensor, **options: Any) -> Tensor:
    """`dpo.pair_loss` over all ordered pairs of different arms, [winner, loser] weighing `weights`."""
    config = DPOConfig(model="arms", data="arms", out=Path("arms"), **options)
    winner, loser = torch.nonzero(~torch.eye(len(logits), dtype=torch.bool), as_tuple=True)
    pairs = torch.stack([winner, loser], 1)
    bundles = [Bundle([0], [Completion([0] * int(LENGTHS[arm])) for arm in pair]) for pair in pairs]
    logps = torch.log_softmax(logits, 0)
    loss, _ = dpo.pair_loss(config, logps[pairs.flatten()], REFERENCE[: len(logits)][pairs.flatten()], bundles)
    return (weights[winner, loser] * loss).sum()


def optimum(weights: Tensor, **options: Any) -> Tensor:
    """Log-law that minimises the loss."""
    return torch.log_softmax(newton(lambda logits: arm_loss(logits, weights, **options)), 0)


def tilted(reward: Tensor, beta: float) -> Tensor:
    return torch.log_softmax(REFERENCE + reward / beta, 0)


def same(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=1e-9)


def test_dpo_equals_reward_model_and_tilt_on_finite_data() -> None:
    """Counts of real votes, not probabilities: DPO's optimum is the Bradley-Terry fit, tilted."""
    votes = np.random.default_rng(0).binomial(6, PREFERENCES.numpy())
    wins = torch.tensor(np.triu(votes, 1) + np.tril(6 - votes.T, -1), dtype=torch.float64)
    assert (wins + wins.T)[~torch.eye(ARMS, dtype=torch.bool)].eq(6).all()
    assert (wins == 0).any()  # some arm never lost to some other; the graph as a whole is still strongly connected

    def reward_model_loss(rewards: Tensor) -> Tensor:
        loss, _ = objectives.bradley_terry_loss(rewards[:, None], rewards[None, :])
        return (wins * loss).sum()

    rewards = newton(reward_model_loss)
    same(rewards, torch.from_numpy(bradley_terry_fit(wins.numpy())))
    same(optimum(wins, beta=0.3), tilted(rewards, 0.3))


def test_dpo_on_a_disconnected_win_graph_has_no_optimum() -> None:
    """An arm that always won: the fit refuses, rather than stopping somewhere."""
    wins = torch.triu(torch.ones(3, 3), 1).numpy()
    with pytest.raises(ValueError, match="strongly connected"):
        bradley_terry_fit(wins)


def test_ipo_tilts_by_the_win_rate_against_the_sampler() -> None:
    """Both answers from one full-support law mu; preferences need not follow Bradley-Terry."""
    draw = torch.Generator().manual_seed(1)
    noise = torch.rand(ARMS, ARMS, generator=draw, dtype=torch.float64)
    preferences = torch.tril(noise, -1) + torch.triu(1 - noise.T, 1) + 0.5 * torch.eye(ARMS)
    mu = torch.softmax(torch.randn(ARMS, generator=draw, dtype=torch.float64), 0)
    found = optimum(mu[:, None] * mu[None, :] * preferences, loss="ipo", beta=0.2)
    same(found, tilted(preferences @ mu, 0.2))


@pytest.mark.parametrize("flips", [0.1, 0.3])
def test_robust_dpo_on_flipped_labels_finds_the_clean_optimum(flips: float) -> None:
    flipped = (1 - flips) * PREFERENCES + flips * PREFERENCES.T
    same(optimum(flipped, loss="robust", label_smoothing=flips, beta=0.5), tilted(REWARD, 0.5))
    biased = optimum(flipped, beta=0.5)  # plain DPO believes the flips
    assert kl(biased, tilted(REWARD, 0.5)) > 0.01


def test_robust_dpo_is_unbounded_below_on_cleaner_labels_than_it_assumes() -> None:
    """Two arms, win rate 0.95 above 1 - 0.1: the loss falls for ever along the margin."""
    wins = torch.tensor([[0.0, 0.95], [0.05, 0.0]], dtype=torch.float64)
    losses = [
        float(arm_loss(torch.tensor([gap, 0.0], dtype=torch.float64), wins, loss="robust", label_smoothing=0.1))
        for gap in (0.0, 1e2, 1e3, 1e4)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < -10


@pytest.mark.parametrize("alpha", [0.05, 0.4])
def test_length_regularised_dpo_charges_every_token(alpha: float) -> None:
    same(optimum(PREFERENCES, length_alpha=alpha, beta=0.5), tilted(REWARD - alpha * LENGTHS.double(), 0.5))


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_conservative_dpo_equals_dpo_on_flipped_labels(smoothing: float) -> None:
    """Loss and gradient, for any pair law and at any policy; beyond two arms its optimum has no closed form."""
    draw = torch.Generator().manual_seed(2)
    weights = torch.rand(ARMS, ARMS, generator=draw, dtype=torch.float64) * PREFERENCES
    flipped = (1 - smoothing) * weights + smoothing * weights.T
    logits = torch.randn(ARMS, generator=draw, dtype=torch.float64)
    both = [
        torch.func.grad_and_value(lambda at: arm_loss(at, weights, label_smoothing=smoothing))(logits),
        torch.func.grad_and_value(lambda at: arm_loss(at, flipped))(logits),
    ]
    for left, right in zip(*both, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


# --- labels that never contradict: where the margin of two arms stops -----------------------------


def margin(steps: int, rate: float, **options: Any) -> float:
    """h = log-ratio margin in nats after plain gradient descent on one pair that is always won."""
    h = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    for _ in range(steps):
        loss, _ = objectives.dpo_loss(h, zero, zero, zero, **options)
        (gradient,) = torch.autograd.grad(loss.sum(), h)
        h.data -= rate * gradient
    return float(h.detach())


def test_dpo_grows_by_a_constant_per_decade_of_steps() -> None:
    beta = 0.5
    growth = margin(10_000, 4.0, beta=beta) - margin(1_000, 4.0, beta=beta)
    assert growth == pytest.approx(math.log(10) / beta, rel=0.01)


def test_conservative_dpo_stops_at_the_logit_of_its_smoothing() -> None:
    stop = margin(2_000, 4.0, beta=0.5, label_smoothing=0.1)
    assert stop == pytest.approx(math.log(0.9 / 0.1) / 0.5, abs=1e-9)


def test_ipo_stops_at_its_target() -> None:
    assert margin(100, 0.1, beta=0.25, kind="ipo") == pytest.approx(1 / (2 * 0.25), abs=1e-8)


def test_hinge_stops_at_one() -> None:
    assert 0.5 * margin(1_000, 0.1, beta=0.5, kind="hinge") == pytest.approx(1, abs=0.05)
