"""Direct preference optimisation: one supervised pass over pairs, no reward model, no sampling.

Left out: sampling pairs on the way (online DPO) and losses without a reference.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from keel import objectives, stats
from keel.config import DPOConfig, refuse_existing
from keel.data import prepare
from keel.engine.batches import batch_of, examples_seen, steps_of
from keel.engine.forward import in_batches, micro_batches, sequence_logps
from keel.engine.identities import require_zero_margin_loss
from keel.engine.progress import say
from keel.engine.run import Result, Run
from keel.models import checkpoints
from keel.objectives import Metrics
from keel.records import Bundle, lengths_of


def train(config: DPOConfig) -> Result:
    """Minimise `objectives.dpo_loss` over the pairs, the reference frozen."""
    refuse_existing(config.out, config.resume)
    text = checkpoints.load_text(config.model)
    policy = checkpoints.load_policy(config.model, config)
    data = prepare.pairs(config, config.data, text, checkpoints.positions(policy))
    say(data.report)
    reference = checkpoints.load_policy(config.reference or config.model, config).requires_grad_(False)
    checkpoints.same_vocabulary(policy, reference, config.reference or config.model)
    policy_hash, reference_hash = checkpoints.weights_hash(policy), checkpoints.weights_hash(reference)
    run = Run(
        "dpo",
        config,
        {"policy": policy},
        text,
        total_steps=steps_of(len(data.train), config.batch_size, config.epochs, config.steps),
        manifest={
            "policy": policy_hash,
            "reference": reference_hash,
            "tokenizer": text.fingerprint(),
            **data.facts,
        },
        rows=data.counts,
        rows_eval=data.eval_counts,
    )
    began = time.perf_counter()
    held = Reference(reference, data.held_out, config, cached=True)
    frozen = Reference(reference, data.train, config, cached=config.reference_logps == "cached")
    run.charge(time.perf_counter() - began)

    expected = objectives.dpo_zero_margin_loss(config.loss, beta=config.beta, length_alpha=config.length_alpha)
    dtype = next(policy.parameters()).dtype
    for step in run.steps():
        batch = batch_of(range(len(data.train)), config.batch_size, step, config.seed)
        pairs = [data.train[i] for i in batch]
        for micro in micro_batches(policy, pairs, config.micro_tokens):
            logps = sequence_logps(policy, micro.bundles)
            loss, metrics = pair_loss(config, logps, frozen.logps([batch[i] for i in micro.indices]), micro.bundles)
            run.backward(loss.sum() / len(batch), micro.bundles)
            if step == 0 and expected is not None and policy_hash == reference_hash:
                require_zero_margin_loss(loss, expected, dtype)
            run.observe({"loss": loss, **metrics})
        run.update()
        if data.held_out and run.evaluation_due():
            run.record_evaluation(evaluate(config, policy, held, data.held_out), best="loss")
    return run.finish(examples=examples_seen(len(data.train), config.batch_size, run.step))


def pair_loss(config: DPOConfig, logps: Tensor, reference: Tensor, bundles: Sequence[Bundle]) -> tuple[Tensor, Metrics]:
    """`objectives.dpo_loss` of pairs whose summed log-probabilities stand as chosen, rejected, chosen, … [2N]."""
    lengths = lengths_of(list(bundles)).to(logps.device)
    return objectives.dpo_loss(
        logps[0::2],
        logps[1::2],
        reference[0::2],
        reference[1::2],
        beta=config.beta,
        kind=config.loss,
        label_smoothing=config.label_smoothing,
        length_alpha=config.length_alpha,
        length_gap=(lengths[0::2] - lengths[1::2]).to(logps.dtype),
    )


class Reference:
    """Summed log-probabilities under the frozen reference, computed once or with every batch."""

    def __init__(self, model: nn.Module, bundles: list[Bundle], config: DPOConfig, cached: bool) -> None:
        self._model, self._bundles, self._budget = model, bundles, config.micro_tokens
        self._cache = self._compute(bundles) if cached else None

    def _compute(self, bundles: list[Bundle]) -> list[Tensor]:
        return in_batches(sequence_logps, self._model, bundles, self._budget)

    def logps(self, indices: Sequence[int]) -> Tensor:
        """Of the pairs at `indices`, chosen and rejected in turn: [2N]."""
        if self._cache is not None:
            return torch.cat([self._cache[i] for i in indices])
        return torch.cat(self._compute([self._bundles[i] for i in indices]))


def evaluate(config: DPOConfig, policy: nn.Module, reference: Reference, bundles: list[Bundle]) -> dict[str, Any]:
    """Held-out loss, implicit accuracy (ties count 1/2) and implicit margin, each with its interval over pairs."""
    logps = torch.cat(in_batches(sequence_logps, policy, bundles, config.micro_tokens))
    loss, metrics = pair_loss(config, logps, reference.logps(range(len(bundles))), bundles)
    return {
        "loss": stats.mean(loss.cpu().numpy()).as_dict(),
        "rewards/accuracies": stats.rate(metrics["rewards/accuracies"].cpu().numpy()).as_dict(),
        "rewards/margins": stats.mean(metrics["rewards/margins"].cpu().numpy()).as_dict(),
        "logps/chosen": stats.mean(metrics["logps/chosen"].cpu().numpy()).as_dict(),
    }
