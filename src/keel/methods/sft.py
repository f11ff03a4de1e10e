"""Supervised fine-tuning, and pre-training on plain text: imitate the completions.

Left out on purpose: packing several texts into one context (answers would see their neighbours) and loss on prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from keel import stats
from keel.config import SFTConfig
from keel.data import prepare
from keel.engine import budget, verdict
from keel.engine.batches import Batches
from keel.engine.forward import micro_batches, token_logps, token_scores
from keel.engine.processes import agreed, divided, own_micro_batches
from keel.engine.run import Run, begin, open_run
from keel.engine.verdict import ReferenceComparison, RunVerdict
from keel.models import checkpoints
from keel.models.roles import Role, load_policy_role, load_start
from keel.records import Bundle, Result
from keel.sampling import comparison
from keel.says import say
from keel.text.tokenisation import Text


def train(config: SFTConfig) -> Result:
    """Minimise the mean negative log-probability per completion token of each batch."""
    begin(config)
    text = checkpoints.load_text(config.model, config)
    data = prepare.demonstration_bundles(config, config.data, text, budget.limit_ahead(config.model, config))
    say(data.report)
    batches = Batches(data.train, config.batch_size, config.seed)
    steps = batches.steps(config.epochs, config.steps)
    plan = budget.plan(config, map(batches.of, range(steps)), bool(data.held_out))
    policy = load_policy_role(config, config.model)
    plan.settle([(policy, token_logps)], config, data.train)
    run = open_run(
        "sft",
        config,
        [policy],
        text,
        total_steps=steps,
        manifest={"policy": policy.identity(), **data.facts},
        rows=data.counts,
        rows_eval=data.eval_counts,
    )
    if data.held_out and run.step == 0:
        run.record_start(evaluate(policy, data.held_out, config.micro_tokens))
    for step in run.steps():
        batch = batches.of(step)
        tokens = sum(len(b.completions[0]) for b in batch)
        for micro in own_micro_batches(policy.model, batch, config.micro_tokens):
            with policy.active() as model:
                scores = token_scores(model, micro.bundles)
                run.backward(-scores.logps.sum(), tokens, micro.bundles)
            run.observe({"loss": -scores.logps, "mean_token_accuracy": scores.top})
        run.observe({"num_tokens": float(tokens)})
        run.update()
        if data.held_out and run.evaluation_due():
            run.record_evaluation(evaluate(policy, data.held_out, config.micro_tokens), best="loss")
    run.keep()
    return run.finish(
        examples=batches.seen(run.step), verdict=conclude(run, config, data, _look(config, policy, text, data))
    )


@torch.no_grad()
def evaluate(policy: Role, bundles: Sequence[Bundle], micro_tokens: int) -> dict[str, Any]:
    """Return held-out loss and top-1 accuracy per token; the intervals treat the texts as the independent examples."""

    def compute(some: list[Bundle]) -> list[Tensor]:
        """Return each text's losses and hits, [2, tokens]."""
        found: dict[int, Tensor] = {}
        for micro in micro_batches(policy.model, some, micro_tokens):
            with policy.active() as model:
                scores = token_scores(model, micro.bundles)
            both = torch.stack([-scores.logps, scores.top]).split([len(b.completions[0]) for b in micro.bundles], 1)
            found |= zip(micro.indices, both, strict=True)
        return [found[i] for i in range(len(some))]

    each = divided(bundles, compute)
    owners = [i for i, both in enumerate(each) for _ in range(both.shape[1])]
    losses, hits = torch.cat(each, 1).cpu().numpy()
    return {
        "loss": stats.mean(losses, owners).as_dict(),
        "mean_token_accuracy": stats.mean(hits, owners).as_dict(),
    }


def _look(config: SFTConfig, policy: Role, text: Text, data: prepare.Prepared) -> ReferenceComparison:
    """Compare the policy with the model that it started from, which is loaded once more for that."""
    if not data.held_out:
        return comparison.compare_with_reference(policy, policy, text, [], config)
    start: list[Role] = []
    try:
        agreed(lambda: start.append(load_start(config, config.model, policy)), torch.OutOfMemoryError)
    except torch.OutOfMemoryError:
        return ReferenceComparison(
            why="not measured: no memory for the model that training started from beside the trained one"
        )
    return comparison.compare_with_reference(policy, start[0], text, data.held_out, config, name="start")


def _reaches(bundle: Bundle, limit: int) -> bool:
    """Say whether an answer was cut here, rather than when it was drawn."""
    (completion,) = bundle.completions
    return completion.truncated and len(bundle.prompt_ids) + len(completion) >= limit


def conclude(run: Run, config: SFTConfig, data: prepare.Prepared, seen: ReferenceComparison) -> RunVerdict:
    """Return what the run reached."""
    history, rate = run.history(), config.learning_rate
    names = ("loss", "mean_token_accuracy")
    words, figures = verdict.reached(history, names, names)
    cut = sum(_reaches(b, config.max_length) for b in data.train)
    return RunVerdict(
        words,
        verdict.kept(history, "the lowest held-out loss"),
        seen.kl_line(),
        seen.samples,
        verdict.those_due(
            verdict.hardly_moved(history, rate),
            verdict.got_worse(history, "loss", rate),
            verdict.all_cut(
                cut, len(data.train), f"--max-length {config.max_length}", ", so that the model never sees an end"
            ),
        ),
        seen.why,
        "the start",
        figures={**figures, "kl": seen.as_dict()},
    )
