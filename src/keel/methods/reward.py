"""Reward model: a decoder with a scalar head, trained on pairs, read on single completions.

Training compares two completions of one prompt (Bradley-Terry), inference scores one. The score is read at the
completion's last token, the EOS of a finished answer. Left out: ensembles and per-dimension heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from keel import objectives, stats
from keel.config import RewardConfig
from keel.data import prepare
from keel.engine import budget, verdict
from keel.engine.batches import Batches, prompt_of
from keel.engine.forward import in_batches, scalars_at_end
from keel.engine.processes import divided, own_micro_batches
from keel.engine.run import Run, begin, open_run
from keel.engine.step0 import require_zero_margin_loss
from keel.engine.verdict import RunVerdict, Sample
from keel.models import checkpoints
from keel.models.roles import Role, load_reward_role
from keel.records import Bundle, Result
from keel.says import say
from keel.text.tokenisation import Text, prompt_text

_LOOK = 64
"""Pairs whose scores are looked at in the end, if nothing is held out."""
_SAMPLES = 3
"""Held-out pairs that the end shows."""


def train(config: RewardConfig) -> Result:
    """Minimise -log sigmoid(r_chosen - r_rejected - margin), averaged over the pairs of each batch."""
    begin(config)
    text = checkpoints.load_text(config.model, config)
    (checkpoints.borrow_pad if config.lora else checkpoints.ensure_pad)(text)  # before texts are read with it
    data = prepare.pairs(config, config.data, text, budget.limit_ahead(config.model, config))
    say(data.report)
    batches = Batches(data.train, config.batch_size, config.seed, together=prompt_of)
    steps = batches.steps(config.epochs, config.steps)
    plan = budget.plan(config, map(batches.of, range(steps)), bool(data.held_out))
    reward, fresh = load_reward_role(config, config.model, text)
    plan.settle([(reward, scalars_at_end)], config, data.train)
    run = open_run(
        "reward",
        config,
        [reward],
        text,
        total_steps=steps,
        manifest={"reward": reward.identity(), **data.facts},
        rows=data.counts,
        rows_eval=data.eval_counts,
        final_role="reward",
    )
    if data.held_out and run.step == 0:
        run.record_start(evaluate(reward, data.held_out, config.micro_tokens))
    for step in run.steps():
        batch = batches.of(step)
        for micro in own_micro_batches(reward.model, batch, config.micro_tokens):
            with reward.active() as model:
                scores = scalars_at_end(model, micro.bundles)
                margin = torch.tensor([b.margin for b in micro.bundles], device=scores.device)
                loss, metrics = objectives.bradley_terry_loss(scores[0::2], scores[1::2], margin)
                run.backward(loss.sum(), len(batch), micro.bundles)
            if step == 0 and fresh:
                require_zero_margin_loss(loss, objectives.bradley_terry_zero_loss(margin), reward.dtype)
            run.observe({"loss": loss, **metrics})
        run.update()
        if data.held_out and run.evaluation_due():
            run.record_evaluation(evaluate(reward, data.held_out, config.micro_tokens), best="loss")
    run.keep()
    scores = score_pairs(reward, data.held_out or data.train[:_LOOK], config.micro_tokens)
    return run.finish(examples=batches.seen(run.step), verdict=conclude(run, config, text, data, scores, fresh))


def score_pairs(reward: Role, bundles: Sequence[Bundle], micro_tokens: int) -> Tensor:
    """Return the scores of each pair's completions, [N, 2] on the CPU."""
    with reward.active() as model:
        found = divided(bundles, lambda some: in_batches(scalars_at_end, model, some, micro_tokens))
    return torch.stack(found).cpu()


def evaluate(reward: Role, bundles: Sequence[Bundle], micro_tokens: int) -> dict[str, Any]:
    """Return held-out accuracy (ties count 1/2), loss and margin; intervals treat prompts as independent."""
    scores = score_pairs(reward, bundles, micro_tokens)
    margin = torch.tensor([b.margin for b in bundles])
    loss, metrics = objectives.bradley_terry_loss(scores[:, 0], scores[:, 1], margin)
    prompts = [prompt_of(b) for b in bundles]
    return {
        "accuracy": stats.rate(metrics["accuracy"].numpy(), prompts).as_dict(),
        "loss": stats.mean(loss.numpy(), prompts).as_dict(),
        "margin": stats.mean(metrics["margin"].numpy(), prompts).as_dict(),
    }


def conclude(
    run: Run, config: RewardConfig, text: Text, data: prepare.Prepared, scores: Tensor, fresh: bool
) -> RunVerdict:
    """Return what the run reached; `scores` [N, 2] are those of held-out pairs, else of some that it was trained on."""
    history, rate = run.history(), config.learning_rate
    words, figures = verdict.reached(history, ("loss", "accuracy", "margin"), ("loss", "accuracy", "margin"))
    zero = float(objectives.bradley_terry_zero_loss(torch.tensor([b.margin for b in data.train])).mean())
    sd = float(scores.double().std())
    return RunVerdict(
        words,
        verdict.kept(history, "the lowest held-out loss"),
        "none, since a reward model writes nothing",
        [_sample(text, b, row) for b, row in zip(data.held_out[:_SAMPLES], scores.tolist(), strict=False)],
        verdict.those_due(
            verdict.hardly_moved(history, rate, zero if fresh else None),
            verdict.got_worse(history, "loss", rate),
            verdict.flat_scores(sd, f"no policy can be tuned on them; raise --learning-rate (now {rate:g})"),
        ),
        figures={**figures, "score_sd": sd},
    )


def _sample(text: Text, pair: Bundle, scores: Sequence[float]) -> Sample:
    answers = [text.decode(c.ids, pair.prompt, pair.prompt_ids) for c in pair.completions]
    names = [f"{side} ({score:.3g})" for side, score in zip(("chosen", "rejected"), scores, strict=True)]
    return Sample(prompt_text(pair.prompt), dict(zip(names, answers, strict=True)))
