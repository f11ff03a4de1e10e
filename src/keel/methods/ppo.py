"""Proximal policy optimisation from a frozen reward: roll out, judge, improve.

State: the tokens so far. Action: the next token. The reward is the score at the last token, minus beta times the
log-ratio to the frozen reference at every token (k1, in the reward and nowhere else). The critic is a model of its own.
Left out: reward whitening (it would change beta), entropy bonuses, forced EOS (only what was sampled is trained).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from keel import objectives, stats
from keel.config import PPOConfig
from keel.data import lengths, prepare
from keel.engine import budget, verdict
from keel.engine.batches import Batches
from keel.engine.forward import (
    in_batches,
    scalars_at_end,
    scalars_at_states,
    scalars_throughout,
    token_logps,
    token_scores,
    tokens_of,
)
from keel.engine.processes import divided, own_micro_batches
from keel.engine.run import Run, begin, open_run
from keel.engine.scorers import Scorer, load_scorer_beside, require_same_reading
from keel.engine.step0 import require_unit_ratio, require_zero_kl
from keel.engine.verdict import ReferenceComparison, RunVerdict
from keel.models import checkpoints, trials
from keel.models.roles import Role, load_policy_and_reference, load_value_role, shares_trunk
from keel.records import Bundle, Completion, Result, lengths_of
from keel.sampling import comparison
from keel.sampling.local import LocalSampler, cache_bytes
from keel.sampling.protocol import options_of, sample
from keel.says import say
from keel.text.tokenisation import Text

LOGP_GAP = 0.01
"""Mean gap between the sampler's and the trainer's log-probabilities, in nats per token, beyond which PPO warns."""


@dataclass(slots=True)
class Roles:
    """The four models; policy and value are trained, reference and scorer frozen."""

    policy: Role
    reference: Role
    value: Role
    scorer: Scorer
    starts_as_reward: bool
    """True if the critic starts as the reward model, so that it speaks in raw scores."""


@dataclass(slots=True)
class Rollout:
    """Sampled bundles and the roles' view of them: one tensor per bundle, flat over its completions' tokens."""

    bundles: list[Bundle]
    old_logps: list[Tensor]
    reference_logps: list[Tensor]
    values: list[Tensor]
    ends: Tensor
    """The critic's value after each completion's last token [C] with a bootstrap, else empty."""
    scores: Tensor
    """Centred scores [C], those of truncated completions as `truncation` says."""
    advantages: list[Tensor]
    """Whitened over the whole rollout."""
    returns: list[Tensor]


def train(config: PPOConfig) -> Result:
    """Maximise score - beta KL(policy || reference) over the prompts' distribution."""
    begin(config)
    text = checkpoints.load_text(config.model, config)
    limit = budget.limit_ahead(config.model, config)
    data = prepare.prompt_bundles(config, config.prompts, text, lengths.prompt_limit(config, limit))
    say(data.report)
    config = lengths.fitted(config, limit, (len(b.prompt_ids) for b in (*data.train, *data.held_out)))
    plan = plan_memory(config, data)
    roles = load_roles(config)
    settle_memory(plan, config, roles, data.train)
    require_same_reading(roles.scorer, config, config.reward, text, data.train)
    run = start(config, roles, text, data)
    batches = Batches(data.train, min(config.rollout_size, len(data.train)), config.seed)
    for step in run.steps():
        rollout = roll_out(run, config, roles, text, batches.of(step))
        score_rollout(run, config, roles, rollout)
        if data.held_out and step == 0:
            run.record_start(evaluate(run, config, roles, text, data.held_out))
        improve(run, config, roles, rollout)
        if data.held_out and run.evaluation_due():
            run.record_evaluation(evaluate(run, config, roles, text, data.held_out), best="objective", higher=True)
    run.keep()
    seen = comparison.compare_with_reference(
        roles.policy,
        roles.reference,
        text,
        data.held_out,
        config,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
    )
    return run.finish(examples=batches.seen(run.step) * config.samples_per_prompt, verdict=conclude(run, config, seen))


# --- setting up -----------------------------------------------------------------------------------


def load_roles(config: PPOConfig) -> Roles:
    """Load policy and reference from `model`; the critic from the reward model, or from `model` if text is scored."""
    policy, reference = load_policy_and_reference(config, config.model)
    scorer = load_scorer_beside(policy, config)
    as_reward = scorer.reads == "ids" and (policy.trunk is None or shares_trunk(policy, config.reward))
    return Roles(policy, reference, load_value_role(config, policy, as_reward), scorer, as_reward)


def start(config: PPOConfig, roles: Roles, text: Text, data: prepare.Prepared) -> Run:
    """Open the run: two trained roles with a learning rate each, Adam's epsilon as PPO wants it, beta as state."""
    policy_hash = roles.policy.identity()
    run = open_run(
        "ppo",
        config,
        [roles.policy, roles.value],
        text,
        total_steps=config.steps or 1,
        manifest={
            "policy": policy_hash,
            "reference": roles.reference.identity(),
            "reward": roles.scorer.identity,
            "value": roles.value.identity(),
            **data.facts,
        },
        rows=data.counts,
        rows_eval=data.eval_counts,
        learning_rates={"value": config.value_learning_rate or config.learning_rate},
        adam_eps=1e-5,
    )
    run.extra.setdefault("beta", config.beta)
    return run


def plan_memory(config: PPOConfig, data: prepare.Prepared) -> budget.Plan:
    """Plan memory for answers of full length, and for keys and values while they are written."""
    longest = sorted(_full(config, data.train), key=tokens_of)[-config.batch_size :]
    return budget.plan(config, [longest], bool(data.held_out), partial(_cache, config, data.train))


def settle_memory(plan: budget.Plan, config: PPOConfig, roles: Roles, prompts: Sequence[Bundle]) -> None:
    """Make the loaded models compute as planned."""
    with roles.policy.active() as model:
        cache = 0.0 if plan.known else _cache(config, prompts, model)
    trained = [(roles.policy, token_logps), (roles.value, scalars_at_states)]
    plan.settle(trained, config, _full(config, prompts), cache)


def _full(config: PPOConfig, prompts: Sequence[Bundle]) -> list[Bundle]:
    answers = [Completion([at] * config.max_new_tokens) for at in range(config.samples_per_prompt)]
    return [replace(b, completions=answers) for b in prompts]


def _cache(config: PPOConfig, prompts: Sequence[Bundle], model: nn.Module) -> float:
    return cache_bytes(model, prompts, config.samples_per_prompt, config.max_new_tokens, config.max_rows)


# --- roll out -------------------------------------------------------------------------------------


def roll_out(run: Run, config: PPOConfig, roles: Roles, text: Text, prompts: Sequence[Bundle]) -> Rollout:
    """Sample from the policy, and compute every role's view of the sampled tokens before anything changes."""
    with run.evidence(prompts):
        bundles = _sample(config, roles.policy, text, prompts, config.samples_per_prompt, "rollout", run.step)
    old, reference = (_logps(config, role, bundles) for role in (roles.policy, roles.reference))
    run.require_finite("the policy's log-probabilities", old, bundles)
    run.require_finite("the reference's log-probabilities", reference, bundles)
    if run.step == 0:
        require_zero_kl(torch.cat(old), torch.cat(reference), roles.policy.dtype)
    _compare_with_sampler(run, roles.policy.model, bundles, old)
    return Rollout(bundles, old, reference, [], torch.empty(0), torch.empty(0), [], [])


def _logps(config: PPOConfig, role: Role, bundles: Sequence[Bundle]) -> list[Tensor]:
    """Return log-probabilities of all tokens under a role, as they are drawn: a tensor per bundle."""
    logps = partial(token_logps, temperature=config.temperature)
    with role.active() as model:
        return divided(bundles, lambda some: in_batches(logps, model, some, config.micro_tokens))


def _values(config: PPOConfig, critic: Role, bundles: Sequence[Bundle]) -> tuple[list[Tensor], Tensor]:
    """Return the critic's centred values of all states, a tensor per bundle, and with a bootstrap of the ends [C]."""
    bootstrap = config.truncation == "bootstrap"
    values = scalars_throughout if bootstrap else scalars_at_states
    with critic.active() as model:
        found = divided(bundles, lambda some: in_batches(values, model, some, config.micro_tokens))
    both = [critic.centred(scalars) for scalars in found]
    if not bootstrap:
        return both, torch.empty(0)
    parts = [part.split([len(c) + 1 for c in b.completions]) for b, part in zip(bundles, both, strict=True)]
    before = [torch.cat([own[:-1] for own in some]) for some in parts]
    return before, torch.cat([own[-1:] for some in parts for own in some])


def _sample(
    config: PPOConfig, policy: Role, text: Text, prompts: Sequence[Bundle], n: int, *purpose: object
) -> list[Bundle]:
    with policy.active() as model, torch.no_grad():
        return sample(LocalSampler(model, text, options_of(config), config.seed), prompts, n, *purpose)


def _compare_with_sampler(run: Run, policy: nn.Module, bundles: Sequence[Bundle], old: Sequence[Tensor]) -> None:
    """Measure how far the sampler's own log-probabilities are from the recomputed ones, and warn beyond rounding.

    The two differ in kind if an answer crosses a length beyond which the model reads positions differently: its first
    tokens were drawn as those of a short text, and are scored as those of a long one.
    """
    sampled = torch.cat([c.logps for b in bundles for c in b.completions if c.logps is not None])
    gap = (sampled.cpu() - torch.cat(list(old)).cpu()).abs()
    run.observe({"sampler/logp_gap": gap})
    if float(gap.mean()) > LOGP_GAP:
        run.warn(
            "sampler gap",
            f"step {run.step + 1}: sampler and trainer differ by {float(gap.mean()):.3g} nats per token on average, "
            f"more than {LOGP_GAP:g}; the samples are not quite the policy's (see sampler/logp_gap)"
            + _crossing(policy, bundles),
        )


def _crossing(policy: nn.Module, bundles: Sequence[Bundle]) -> str:
    """Return a warning about the length that answers cross, if the policy reads positions by a text's length; or ''."""
    switches = trials.ways_of(policy).switches
    crossed = {
        n
        for n in switches
        for b in bundles
        for c in b.completions
        if len(b.prompt_ids) <= n < len(b.prompt_ids) + len(c)
    }
    if not crossed:
        return ""
    return f": answers cross {min(crossed)} tokens, beyond which this model reads positions otherwise; keep them below"


# --- judge ----------------------------------------------------------------------------------------


def score_rollout(run: Run, config: PPOConfig, roles: Roles, rollout: Rollout) -> None:
    """Fill the rollout with scores, values, advantages and returns, from shaped rewards, and log them."""
    device = rollout.old_logps[0].device
    completions = [c for b in rollout.bundles for c in b.completions]
    lengths = lengths_of(rollout.bundles).to(device)
    truncated = torch.tensor([c.truncated for c in completions], device=device)
    with run.evidence(rollout.bundles):
        raw = roles.scorer.score(rollout.bundles).to(device)
    _centre(run, roles, raw, truncated)
    rollout.values, rollout.ends = _values(config, roles.value, rollout.bundles)
    scores, bootstrap = _final_scores(run, config, raw, truncated, rollout.ends)
    rollout.scores = scores
    _note_signal(run, config, scores, truncated)

    old, reference, values = (torch.cat(x) for x in (rollout.old_logps, rollout.reference_logps, rollout.values))
    beta = float(run.extra["beta"])
    rewards = objectives.shaped_rewards(scores - bootstrap, old, reference, lengths, beta)
    advantages, returns = objectives.gae(
        rewards, values, lengths, gamma=config.gamma, lam=config.lam, bootstrap=bootstrap
    )
    tokens = [sum(len(c) for c in b.completions) for b in rollout.bundles]
    rollout.advantages = list(objectives.whiten(advantages).split(tokens))
    rollout.returns = list(returns.split(tokens))

    kl = objectives.sequence_sums(old - reference, lengths)
    _log_rollout(run, config, completions, raw, scores, kl, old, lengths, beta)
    variance = float(returns.var()) if len(returns) > 1 else 0.0
    if variance > 0:
        run.observe({"val/explained_variance": 1 - float((returns - values).var()) / variance})
    run.record_samples(rollout.bundles[: config.keep_samples], score=raw, kl=kl)
    if config.target_kl is not None:
        run.extra["beta"] = objectives.adapt_kl_coefficient(
            beta, float(kl.mean()), config.target_kl, len(completions), config.kl_horizon
        )


def _centre(run: Run, roles: Roles, scores: Tensor, truncated: Tensor) -> None:
    """Set the offset of all scores: the mean of the reference's own finished answers, which the first rollout holds.

    It is kept for the run. A critic that starts as the reward model has the same offset.
    """
    if "centre" not in run.extra:
        finished = scores[~truncated]
        run.extra["centre"] = float((finished if len(finished) else scores).mean())
    if roles.starts_as_reward:
        roles.value.offset = float(run.extra["centre"])


def _final_scores(run: Run, config: PPOConfig, raw: Tensor, truncated: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centred scores that training maximises [C], and the critic's value inside each of them [C].

    A truncated completion gets its penalty, or its own score, or, with a bootstrap, the critic's value after its last
    token and nothing else. That value is taken off the reward, since the advantages add it; it is 0 for all others.
    """
    centre = float(run.extra["centre"])
    nothing = torch.zeros_like(raw)
    if config.truncation == "penalty":
        return torch.where(truncated, config.missing_eos_score, raw - centre), nothing
    if config.truncation == "score":
        return raw - centre, nothing
    expected = torch.where(truncated, ends.to(raw.device), 0.0)
    return torch.where(truncated, expected, raw - centre), expected


def _note_signal(run: Run, config: PPOConfig, scores: Tensor, truncated: Tensor) -> None:
    """Keep how much the trained scores differ, and warn at once if they do not, with the cause if it is known."""
    run.extra["score_sd"] = float(scores.double().std()) if len(scores) > 1 else math.nan
    if len(scores) < 2 or not bool((scores == scores[0]).all()):
        return
    run.extra["equal"] = [run.extra.get("equal", [0])[0] + 1, float(scores[0])]
    message = verdict.equal_rewards(float(scores[0])).message
    if config.truncation == "penalty" and bool(truncated.all()):
        message = (
            f"all completions reached {config.max_new_tokens} tokens without an end, so all have the score "
            f"{config.missing_eos_score:g} and none is better than another; raise --max-new-tokens, or give "
            "--truncation score or bootstrap"
        )
    run.warn("equal rewards", f"step {run.step + 1}: {message}")


def _log_rollout(
    run: Run,
    config: PPOConfig,
    completions: list[Completion],
    raw: Tensor,
    scores: Tensor,
    kl: Tensor,
    old: Tensor,
    lengths: Tensor,
    beta: float,
) -> None:
    penalty = -beta * kl
    run.observe(
        {
            "objective/kl": kl,
            "objective/entropy": objectives.sequence_sums(-old, lengths),
            "objective/scores": raw,
            "objective/non_score_reward": penalty,
            "objective/rlhf_reward": scores + penalty,
            "objective/beta": beta,
            "val/num_eos_tokens": float(sum(not c.truncated for c in completions)),
            "completions/mean_length": lengths.float(),
            "completions/clipped_ratio": torch.tensor([float(c.truncated) for c in completions]),
        }
    )
    if beta > 0:
        run.observe(
            {f"certificate/{k}": v for k, v in certificate(scores + penalty, config.samples_per_prompt, beta).items()}
        )


def certificate(shaped: Tensor, samples: int, beta: float) -> dict[str, float]:
    """Return the distance to the optimum for the reward supplied, from samples alone: R is constant if pi = pi*.

    `shaped` is R(y) = score - beta log(pi / ref)(y), [prompts * samples]. `sd` is its mean within-prompt standard
    deviation, `kl_to_optimum` = Var(R) / (2 beta^2) approximates KL(pi || pi*) in nats if that is small, `mean` is
    its level. A policy collapsed onto one answer reads 0 too: read it beside the entropy.
    """
    result = {"mean": float(shaped.mean())}
    if samples >= 2:
        within = shaped.view(-1, samples).var(1, unbiased=True)
        result |= {"sd": float(within.sqrt().mean()), "kl_to_optimum": float(within.mean()) / (2 * beta**2)}
    return result


# --- improve --------------------------------------------------------------------------------------


def improve(run: Run, config: PPOConfig, roles: Roles, rollout: Rollout) -> None:
    """Train for several epochs over one rollout; each minibatch is one optimiser step for policy and value."""
    trained = ("value",) if run.step < config.critic_warmup else ("policy", "value")
    for epoch in range(config.epochs):
        order: list[int] = torch.randperm(
            len(rollout.bundles), generator=run.generator(f"minibatches {epoch}")
        ).tolist()
        for start in range(0, len(order), config.batch_size):
            minibatch = order[start : start + config.batch_size]
            tokens = sum(len(rollout.advantages[i]) for i in minibatch)
            for micro in own_micro_batches(
                roles.policy.model, [rollout.bundles[i] for i in minibatch], config.micro_tokens
            ):
                index = [minibatch[i] for i in micro.indices]
                if "policy" in trained:
                    _policy_pass(run, config, roles, rollout, index, tokens, first=epoch == start == 0)
                _value_pass(run, config, roles, rollout, index, tokens)
            run.update(*trained)


def _policy_pass(
    run: Run, config: PPOConfig, roles: Roles, rollout: Rollout, index: list[int], tokens: int, first: bool
) -> None:
    bundles = [rollout.bundles[i] for i in index]
    with roles.policy.active() as policy:
        now = token_scores(policy, bundles, config.temperature)
        loss, metrics = objectives.ppo_policy_loss(
            now.logps, _take(rollout.old_logps, index), _take(rollout.advantages, index), config.clip
        )
        run.backward(loss.sum(), tokens, bundles)
    if first:
        require_unit_ratio(metrics["val/ratio"], metrics["policy/clipfrac_avg"], roles.policy.dtype)
    run.observe({"loss/policy_avg": loss, "policy/entropy_avg": now.entropy, **metrics})


def _value_pass(run: Run, config: PPOConfig, roles: Roles, rollout: Rollout, index: list[int], tokens: int) -> None:
    bundles = [rollout.bundles[i] for i in index]
    with roles.value.active() as critic:
        values = roles.value.centred(scalars_at_states(critic, bundles))
        loss, metrics = objectives.ppo_value_loss(
            values, _take(rollout.values, index), _take(rollout.returns, index), config.value_clip
        )
        run.backward(loss.sum(), tokens, bundles)
    run.observe({"loss/value_avg": loss, **metrics})


def _take(parts: list[Tensor], index: list[int]) -> Tensor:
    return torch.cat([parts[i] for i in index])


# --- held-out prompts -----------------------------------------------------------------------------


@torch.no_grad()
def evaluate(run: Run, config: PPOConfig, roles: Roles, text: Text, prompts: Sequence[Bundle]) -> dict[str, Any]:
    """Return score, KL, objective and length of one sample per held-out prompt, the same draws each time.

    The objective is the one in training: the centred score with `truncation` applied, less beta as it is now times KL.
    """
    with run.evidence(prompts):
        bundles = _sample(config, roles.policy, text, prompts, 1, "evaluation")
    policy, reference = (torch.cat(_logps(config, role, bundles)) for role in (roles.policy, roles.reference))
    kl = objectives.sequence_sums(policy - reference, lengths_of(bundles)).cpu()
    with run.evidence(bundles):
        scores = roles.scorer.score(bundles).cpu()
    truncated = torch.tensor([c.truncated for b in bundles for c in b.completions])
    ends = torch.empty(0)
    if config.truncation == "bootstrap":
        with roles.value.active() as critic:
            at_end = divided(bundles, lambda some: in_batches(scalars_at_end, critic, some, config.micro_tokens))
            ends = torch.cat(at_end)
        ends = roles.value.centred(ends)
    trained, _ = _final_scores(run, config, scores, truncated, ends)
    return {
        "scores": stats.mean(scores.numpy()).as_dict(),
        "kl": stats.mean(kl.numpy()).as_dict(),
        "objective": stats.mean((trained - float(run.extra["beta"]) * kl).numpy()).as_dict(),
        "length": stats.mean(lengths_of(bundles).float().numpy()).as_dict(),
    }


# --- the end --------------------------------------------------------------------------------------


def conclude(run: Run, config: PPOConfig, seen: ReferenceComparison) -> RunVerdict:
    """Return what the run reached."""
    history, rate = run.history(), config.learning_rate
    words, figures = verdict.reached(
        history,
        ("objective", "scores", "kl", "length"),
        ("objective/rlhf_reward", "objective/scores", "objective/kl", "completions/mean_length"),
    )
    equal, value = run.extra.get("equal", (0, 0.0))
    sd = float(run.extra["score_sd"])
    penalty = f", each scored {config.missing_eos_score:g}" if config.truncation == "penalty" else ""
    return RunVerdict(
        words,
        verdict.kept(history, "the highest held-out objective (score - beta KL)"),
        seen.kl_line(),
        seen.samples,
        verdict.those_due(
            verdict.policy_still(seen, rate),
            verdict.got_worse(history, "objective", rate, higher=True),
            verdict.unread(seen, f"lower --learning-rate (now {rate:g}) or raise --beta (now {config.beta:g})"),
            verdict.cut_rollouts(history, f"--max-new-tokens {config.max_new_tokens}", penalty),
            verdict.equal_rewards(value, f" in {equal} of {history.steps} rollouts") if equal else None,
            verdict.flat_scores(sd, "they give PPO no signal; look at --reward") if sd > 0 else None,
        ),
        seen.why,
        figures={**figures, "kl": seen.as_dict(), "score_sd": sd if sd == sd else None, "equal_rollouts": equal},
    )
