"""Direct preference optimisation: one supervised pass over pairs, no reward model, no sampling.

Left out: sampling pairs on the way (online DPO) and losses without a reference.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from keel import objectives, stats
from keel.config import DPOConfig
from keel.data import prepare
from keel.engine import budget, verdict
from keel.engine.batches import Batches, prompt_of
from keel.engine.forward import in_batches, sequence_logps
from keel.engine.processes import divided, own_micro_batches, own_rank
from keel.engine.run import Run, begin, open_run
from keel.engine.step0 import require_zero_margin_loss
from keel.engine.verdict import ReferenceComparison, RunVerdict
from keel.errors import InputError
from keel.files.disk import whole_file, writing
from keel.models import checkpoints
from keel.models.roles import Role, load_policy_role, load_start
from keel.objectives import Metrics
from keel.records import Bundle, Result, lengths_of
from keel.sampling import comparison
from keel.says import say


def train(config: DPOConfig) -> Result:
    """Minimise `objectives.dpo_loss` over the pairs, the reference frozen."""
    begin(config)
    text = checkpoints.load_text(config.model, config)
    data = prepare.pairs(config, config.data, text, budget.limit_ahead(config.model, config))
    say(data.report)
    numbered = range(len(data.train))
    batches = Batches(numbered, config.batch_size, config.seed, together=lambda i: prompt_of(data.train[i]))
    steps = batches.steps(config.epochs, config.steps)
    each = ([data.train[i] for i in batches.of(step)] for step in range(steps))
    plan = budget.plan(config, each, bool(data.held_out))
    policy = load_policy_role(config, config.model)
    if config.reference is None:
        reference = load_start(config, config.model, policy)
    else:
        other = checkpoints.load_text(config.reference, config)
        checkpoints.require_same_tokens(text, other, data.train, config.reference)
        reference = Role("reference", checkpoints.load_policy(config.reference, config), trained=False)
        checkpoints.same_vocabulary(policy.model, reference.model, config.reference)
    policy_hash, reference_hash = policy.identity(), reference.identity()
    plan.settle([(policy, sequence_logps)], config, data.train)
    run = open_run(
        "dpo",
        config,
        [policy],
        text,
        total_steps=steps,
        manifest={
            "policy": policy_hash,
            "reference": reference_hash,
            **data.facts,
        },
        rows=data.counts,
        rows_eval=data.eval_counts,
    )
    began = time.perf_counter()
    kept = Kept(config.reference_cache or run.folder / "reference-logps.safetensors", reference_hash)
    held = Reference(reference, data.held_out, config, kept)
    frozen = Reference(reference, data.train, config, kept if config.reference_logps == "cached" else None)
    kept.write()
    run.charge(time.perf_counter() - began)

    expected = objectives.dpo_zero_margin_loss(config.loss, beta=config.beta, length_alpha=config.length_alpha)
    if data.held_out and run.step == 0:
        run.record_start(evaluate(config, policy, held, data.held_out))
    for step in run.steps():
        batch = batches.of(step)
        pairs = [data.train[i] for i in batch]
        for micro in own_micro_batches(policy.model, pairs, config.micro_tokens):
            of_reference = frozen.logps([batch[i] for i in micro.indices])
            with policy.active() as model:
                loss, metrics = pair_loss(config, sequence_logps(model, micro.bundles), of_reference, micro.bundles)
                run.backward(loss.sum(), len(batch), micro.bundles)
            if step == 0 and expected is not None and policy_hash == reference_hash:
                require_zero_margin_loss(loss, expected, policy.dtype)
            run.observe({"loss": loss, **metrics})
        run.update()
        if data.held_out and run.evaluation_due():
            figures = evaluate(config, policy, held, data.held_out)
            run.record_evaluation(figures, best="loss", rank=_rank(config, step, figures, data.held_out))
    run.keep()
    seen = comparison.compare_with_reference(policy, reference, text, data.held_out, config)
    zero = expected if policy_hash == reference_hash else None
    return run.finish(examples=batches.seen(run.step), verdict=conclude(run, config, data, seen, zero))


def pair_loss(config: DPOConfig, logps: Tensor, reference: Tensor, bundles: Sequence[Bundle]) -> tuple[Tensor, Metrics]:
    """Return `objectives.dpo_loss` of pairs, given summed log-probabilities as chosen, rejected, chosen, … [2N]."""
    lengths = lengths_of(list(bundles)).to(logps.device)
    chosen, rejected = lengths[0::2], lengths[1::2]
    return objectives.dpo_loss(
        logps[0::2],
        logps[1::2],
        reference[0::2],
        reference[1::2],
        beta=config.beta,
        kind=config.loss,
        label_smoothing=config.label_smoothing,
        length_alpha=config.length_alpha,
        length_gap=(chosen - rejected).to(logps.dtype),
        lengths=(chosen, rejected) if config.ipo_average else None,
    )


class Reference:
    """Summed log-probabilities under the frozen reference, computed once (and kept in a file) or with every batch."""

    def __init__(self, role: Role, bundles: list[Bundle], config: DPOConfig, kept: Kept | None) -> None:
        self._role, self._bundles, self._budget = role, bundles, config.micro_tokens
        self._cache: list[Tensor] | None = None
        if kept is not None:
            self._cache = kept.get(role.model, bundles, lambda all_: divided(all_, self._compute))

    def _compute(self, bundles: list[Bundle]) -> list[Tensor]:
        with self._role.active() as model:
            return in_batches(sequence_logps, model, bundles, self._budget)

    def logps(self, indices: Sequence[int]) -> Tensor:
        """Return those of the pairs at `indices`, chosen and rejected in turn: [2N]."""
        if self._cache is not None:
            return torch.cat([self._cache[i] for i in indices])
        return torch.cat(self._compute([self._bundles[i] for i in indices]))


class Kept:
    """A file of log-probabilities, each set under a hash of all that it depends on: reference, precision, token ids.

    A set that is not under the right hash is computed again, and replaces what the file held.
    """

    def __init__(self, file: Path, identity: str) -> None:
        self._file, self._identity = file, identity
        self._found: dict[str, Tensor] = {}
        if file.exists():
            try:
                self._found = load_file(file)
            except SafetensorError as error:
                raise InputError(f"{file}: not readable ({error}); remove it, it can be computed anew") from error
        self._used: dict[str, Tensor] = {}

    def get(
        self, model: nn.Module, bundles: list[Bundle], compute: Callable[[list[Bundle]], list[Tensor]]
    ) -> list[Tensor]:
        """Return one tensor per bundle, from the file or by `compute`."""
        if not bundles:
            return []
        weight = next(model.parameters())
        key = _fingerprint(self._identity, weight.dtype, bundles)
        if key in self._found:
            say(f"reference: log-probabilities of {len(bundles)} pairs read from {self._file}")
            flat = self._found[key].to(weight.device)
        else:
            flat = torch.cat(compute(bundles))
        self._used[key] = flat.cpu()
        return list(flat.split([len(b.completions) for b in bundles]))

    def write(self) -> None:
        """Write what was asked for, unless all of it is in the file."""
        if own_rank() == 0 and not self._used.keys() <= self._found.keys():
            with writing(self._file, sum(t.nbytes for t in self._used.values())):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(self._file) as partial:
                    save_file(self._used, partial)


def _fingerprint(identity: str, dtype: torch.dtype, bundles: Sequence[Bundle]) -> str:
    """Return the hash of the reference, its precision and every token, in order."""
    ids = [[b.prompt_ids, [c.ids for c in b.completions]] for b in bundles]
    return hashlib.sha256(json.dumps([identity, str(dtype), ids]).encode()).hexdigest()[:32]


def evaluate(config: DPOConfig, policy: Role, reference: Reference, bundles: list[Bundle]) -> dict[str, Any]:
    """Return held-out loss, implicit accuracy (ties count 1/2), margin, and the chosen answers' log-probability.

    `logps/chosen_fall` is how far that has fallen below the reference's. Intervals treat the prompts as independent.
    """
    with policy.active() as model:
        logps = torch.cat(divided(bundles, lambda some: in_batches(sequence_logps, model, some, config.micro_tokens)))
    frozen = reference.logps(range(len(bundles)))
    loss, metrics = pair_loss(config, logps, frozen, bundles)
    prompts = [prompt_of(b) for b in bundles]
    means = {name: metrics[name].cpu().numpy() for name in ("rewards/margins", "logps/chosen")}
    means["logps/chosen_fall"] = (frozen - logps)[0::2].cpu().numpy()
    return {
        "loss": stats.mean(loss.cpu().numpy(), prompts).as_dict(),
        "rewards/accuracies": stats.rate(metrics["rewards/accuracies"].cpu().numpy(), prompts).as_dict(),
        **{name: stats.mean(values, prompts).as_dict() for name, values in means.items()},
    }


# --- the end --------------------------------------------------------------------------------------


def _rank(config: DPOConfig, step: int, figures: dict[str, Any], held_out: Sequence[Bundle]) -> tuple[float, ...]:
    """Return the place of a checkpoint among those of the run: the lowest is kept."""
    if config.best_by == "last":
        return (-float(step),)
    return verdict.dpo_rank(figures, config.best_by, chosen_tokens(held_out))


def chosen_tokens(pairs: Sequence[Bundle]) -> float:
    """Return the mean length of the chosen answers, in tokens."""
    return sum(len(b.completions[0]) for b in pairs) / len(pairs)


def conclude(
    run: Run, config: DPOConfig, data: prepare.Prepared, seen: ReferenceComparison, zero: float | None
) -> RunVerdict:
    """Return what the run reached; `zero` is the loss at step 0 if it is known."""
    history, rate = run.history(), config.learning_rate
    held = data.held_out
    names = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen")
    words, figures = verdict.reached(history, names, names)
    tokens = chosen_tokens(held or data.train)
    fell = verdict.fell(history, tokens, seen, learning_rate=rate, beta=config.beta, held_out=bool(held))
    return RunVerdict(
        words,
        verdict.kept(history, verdict.dpo_why(history, config.best_by, tokens) if held else ""),
        seen.kl_line(),
        seen.samples,
        verdict.those_due(
            verdict.hardly_moved(history, rate, zero),
            verdict.got_worse(history, "loss", rate),
            fell or verdict.unread(seen, f"lower --learning-rate (now {rate:g}) or raise --beta (now {config.beta:g})"),
        ),
        seen.why,
        figures={**figures, "kl": seen.as_dict(), "best_by": config.best_by},
    )
