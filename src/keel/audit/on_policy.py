"""Comparison of preference pairs with a model's own answers: are they on its distribution or off it, pair by pair?

The likelihood of an answer under the model says little by itself: own samples differ more among themselves than models
a few nats apart do. The best test is the log-ratio to the model that the pairs came from (Neyman and Pearson). That
model can be learned: copies of the model are fitted to one half of the pairs' answers. They give log-probabilities of
the other half, which they have not seen. On the pairs' answers the mean log-ratio is, but for chance, a lower bound of
the KL from the model to the source of the answers: E_q log(q'/p) = KL(q||p) - KL(q||q'). The model's own samples for
the same prompts are the baseline.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from keel import stats
from keel.config import DataCheckConfig
from keel.engine.batches import Batches, prompt_of
from keel.engine.forward import in_batches, micro_batches, sequence_logps, token_logps
from keel.engine.optimisation import NotFinite, Optimisation, Schedule
from keel.models.limits import positions
from keel.models.roles import Role
from keel.progress import Bar
from keel.records import Bundle, Pair
from keel.sampling.local import LocalSampler
from keel.sampling.protocol import SamplingOptions, sample
from keel.seeds import generator
from keel.stats import Estimate, Floats
from keel.text.tokenisation import Text, prompt_key

ON, OFF, BETWEEN, FEW = "on", "off", "between", "too few"
ON_BELOW, OFF_ABOVE = 0.65, 0.75
"""AUC's interval ends at or below the first: on the model's distribution. It begins at or above the second: off it."""
FEWEST = 40
"""Fewest pairs of a source for a verdict on it, and fewest prompts in all."""
HEADLINES = {
    ON: "the pairs look like what the model says",
    OFF: "the pairs do not look like what the model says",
    BETWEEN: "the pairs look somewhat like what the model says",
    FEW: "too few pairs to compare with the model",
}
OFF_MEANS = (
    "DPO then moves the likelihood of answers that the model never gives: its margin grows, chosen answers become less"
    " likely with it, and the answers it does give change by chance. Fit the model to the chosen answers first (keel"
    " sft), or collect pairs of its own (keel collect), or train a reward model on these and use PPO or best-of-N."
)
RATES = (1e-5, 1e-4, 1e-3)
"""Peak learning rates to try; the one that predicts the unseen half best is kept."""
EPOCHS, BATCH = 2, 8
_FOLDS = 2


@dataclass(frozen=True, slots=True)
class OneSource:
    """Verdict on the pairs from one source, with its figures."""

    name: str
    pairs: int
    verdict: str
    auc: Estimate
    """Separation of its pairs from the model's own for the same prompts; 1/2 is none."""
    nats: Estimate
    """Mean log-ratio per answer: the model is at least this far from the source."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for a summary."""
        return {
            "name": self.name,
            "pairs": self.pairs,
            "verdict": self.verdict,
            "auc": self.auc.as_dict(),
            "nats_per_answer": self.nats.as_dict(),
            "meaning": self.meaning(),
        }

    def meaning(self) -> str:
        """Explain what the verdict means for training on these pairs."""
        told = f"AUC against the model's own pairs is {self.auc}"
        far = f"the model is at least {max(0.0, self.nats.mean):.1f} nats per answer from the pairs' source"
        match self.verdict:
            case "on":
                return f"{told}: DPO compares what the model says itself."
            case "off":
                return f"{told}; {far}. {OFF_MEANS}"
            case "between":
                return f"{told}; {far}. DPO can use them; watch logps/chosen, and whether own samples get better."
        return f"{self.pairs} pairs are too few for a verdict; give {FEWEST} or more."


@dataclass(frozen=True, slots=True)
class Distribution:
    """All sources together, each by itself, and log-probability per token under the model: the pairs' and its own."""

    whole: OneSource
    sources: list[OneSource]
    chosen: Estimate
    rejected: Estimate
    own: Estimate
    ratios: list[float]
    """Log-ratio of each pair, summed over its two answers, in nats; high is unlike the model."""
    own_ratios: list[float]
    """Log-ratios of the model's own pairs."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for a summary."""
        return {
            **self.whole.as_dict(),
            "sources": [source.as_dict() for source in self.sources],
            "logp_per_token": {
                "chosen": self.chosen.as_dict(),
                "rejected": self.rejected.as_dict(),
                "own": self.own.as_dict(),
            },
        }


def examine(
    model: nn.Module,
    text: Text,
    pairs: Sequence[Bundle],
    sources: Sequence[str],
    *,
    temperature: float = 1.0,
    seed: int = 0,
    micro_tokens: int = 8192,
    max_rows: int = 256,
) -> Distribution:
    """Compare pairs (bundles of two completions) with the model's own samples for the same prompts.

    `sources[i]` names the source of pair i. `temperature` is that at which the model would sample. Halves are split by
    prompt, and own samples are cut at the length of their source's longest answer. The cost is two epochs of training
    on the pairs for each learning rate, and one pair of samples per prompt.
    """
    longest = max(len(c) for b in pairs for c in b.completions)
    options = SamplingOptions(longest, temperature, max_rows=max_rows)
    with Bar("own samples", 2 * len(pairs)) as bar:
        drawn = sample(LocalSampler(model, text, options, seed), pairs, 2, "own samples", progress=bar.advance)
    limits = {name: max(len(c) for b in _of(name, pairs, sources) for c in b.completions) for name in set(sources)}
    own = [_cut(b, limits[name]) for b, name in zip(drawn, sources, strict=True)]
    judge = partial(_sums, temperature=temperature, micro_tokens=micro_tokens)
    before = judge(model, pairs), judge(model, own)
    after = _learned(model, pairs, own, judge, temperature, seed, micro_tokens)
    ratios, own_ratios = (a - b for a, b in zip(after, before, strict=True))
    keys = [prompt_key(b.prompt) for b in pairs]
    names = sorted(set(sources))
    found = [_source(name, [s == name for s in sources], ratios, own_ratios, keys) for name in names]
    lengths = [[len(c) for c in b.completions] for b in pairs]
    chosen, rejected = ((before[0][:, side] / np.array(lengths)[:, side]).tolist() for side in (0, 1))
    own_lengths = np.array([[len(c) for c in b.completions] for b in own])
    return Distribution(
        _source("all", [True] * len(pairs), ratios, own_ratios, keys),
        found,
        stats.mean(chosen, keys),
        stats.mean(rejected, keys),
        stats.mean((before[1] / own_lengths).mean(1), keys),
        ratios.sum(1).tolist(),
        own_ratios.sum(1).tolist(),
    )


def compare_sample(
    rows: Sequence[tuple[Pair, Bundle]], model: nn.Module, text: Text, config: DataCheckConfig
) -> dict[str, Any] | None:
    """Run `examine` on a random part of the pairs and return its figures; None if there are too few prompts.

    The source of a pair is who wrote its answers, or else its file. `histogram` counts pairs and own pairs by
    log-ratio, in nats, between shared edges.
    """
    fitting, cut_at = _fitting(rows, positions(model))
    keys = [prompt_key(pair.prompt) for pair, _ in fitting]
    some = [fitting[at] for at in _spread(keys, config.compare, config.seed)]
    if len({prompt_key(pair.prompt) for pair, _ in some}) < FEWEST:
        return None
    found = examine(
        model,
        text,
        [bundle for _, bundle in some],
        [pair.writers or Path(pair.origin.file).name for pair, _ in some],
        temperature=config.temperature,
        seed=config.seed,
        micro_tokens=config.micro_tokens,
    )
    every = np.array([found.ratios, found.own_ratios])
    edges = np.histogram_bin_edges(np.clip(every, *np.quantile(every, (0.005, 0.995))), 32)
    counts = [np.histogram(np.clip(side, edges[0], edges[-1]), edges)[0].tolist() for side in every]
    histogram = {"edges": edges.tolist(), "pairs": counts[0], "own": counts[1]}
    told = {"temperature": config.temperature, "of": len(rows), "histogram": histogram}
    return found.as_dict() | told | {"too_long": len(rows) - len(fitting), "cut_at": cut_at}


ROOM_FOR = 0.95
"""Share of the prompts that get room for an answer; answers are cut at the room that the longest of these leaves."""


def _fitting(
    rows: Sequence[tuple[Pair, Bundle]], limit: int | None
) -> tuple[Sequence[tuple[Pair, Bundle]], int | None]:
    """Return the pairs whose prompts leave room for the longest answer, and the length at which answers are cut.

    Own samples are as long as the longest answer: one long prompt beside one long answer would exceed the positions.
    The length is None if no answer is cut.
    """
    prompts = [len(bundle.prompt_ids) for _, bundle in rows]
    longest = max((len(c) for _, bundle in rows for c in bundle.completions), default=0)
    if limit is None or not rows or max(prompts) + longest <= limit:
        return rows, None
    cut_at = min(longest, max(1, limit - int(np.quantile(prompts, ROOM_FOR))))
    fitting = [(pair, bundle) for pair, bundle in rows if len(bundle.prompt_ids) + cut_at <= limit]
    return [(pair, _cut(bundle, cut_at)) for pair, bundle in fitting], cut_at if cut_at < longest else None


def _spread(keys: Sequence[str], most: int, seed: int) -> list[int]:
    """Draw `most` indices at random, from as many prompts as possible."""
    times: Counter[str] = Counter()
    drawn = []
    for at in torch.randperm(len(keys), generator=generator(seed, "pairs to compare")).tolist():
        drawn.append((times[keys[at]], at))
        times[keys[at]] += 1
    drawn.sort(key=lambda item: item[0])
    return sorted(at for _, at in drawn[:most])


def _of(name: str, pairs: Sequence[Bundle], sources: Sequence[str]) -> list[Bundle]:
    return [b for b, source in zip(pairs, sources, strict=True) if source == name]


def _cut(bundle: Bundle, limit: int) -> Bundle:
    """Return the bundle as if its answers had been sampled up to `limit` tokens."""
    completions = [
        c if len(c) <= limit else replace(c, ids=c.ids[:limit], truncated=True, logps=None) for c in bundle.completions
    ]
    return replace(bundle, completions=completions)


def _sums(model: nn.Module, bundles: Sequence[Bundle], temperature: float, micro_tokens: int) -> Floats:
    """Return the log-probability of each answer, [pairs, 2]."""
    found = in_batches(partial(sequence_logps, temperature=temperature), model, bundles, micro_tokens)
    return torch.stack(found).double().cpu().numpy()


def _source(name: str, picked: list[bool], ratios: Floats, own: Floats, keys: list[str]) -> OneSource:
    theirs, ours = ratios[picked], own[picked]
    auc = stats.auc(theirs.sum(1), ours.sum(1))
    nats = stats.mean(theirs.mean(1), [k for k, p in zip(keys, picked, strict=True) if p])
    verdict = FEW if len(theirs) < FEWEST else ON if auc.high <= ON_BELOW else OFF if auc.low >= OFF_ABOVE else BETWEEN
    return OneSource(name, len(theirs), verdict, auc, nats)


# --- the model that the pairs could come from -----------------------------------------------------


def _learned(
    model: nn.Module,
    pairs: Sequence[Bundle],
    own: Sequence[Bundle],
    judge: Any,
    temperature: float,
    seed: int,
    micro_tokens: int,
) -> tuple[Floats, Floats]:
    """Return log-probabilities of the pairs' answers and of the own ones, under copies fitted to the other half."""
    folds = _folds([prompt_key(b.prompt) for b in pairs], seed)
    best: tuple[float, Floats, Floats] | None = None
    total = len(RATES) * EPOCHS * sum(math.ceil(int((folds != f).sum()) / BATCH) for f in range(_FOLDS))
    with Bar("fitting copies of the model to the pairs", total) as bar:
        for rate in RATES:
            theirs, ours = np.zeros((len(pairs), 2)), np.zeros((len(pairs), 2))
            for fold in range(_FOLDS):
                seen = [pairs[i] for i in np.flatnonzero(folds != fold).tolist()]
                there = np.flatnonzero(folds == fold).tolist()
                try:
                    fitted = _fit(model, seen, rate, temperature, seed, micro_tokens, bar)
                except NotFinite:  # the rate is too high for this model
                    theirs[there] = np.nan
                    continue
                theirs[there] = judge(fitted, [pairs[i] for i in there])
                ours[there] = judge(fitted, [own[i] for i in there])
            if np.isfinite(theirs).all() and (best is None or theirs.sum() > best[0]):
                best = float(theirs.sum()), theirs, ours
    assert best is not None
    return best[1], best[2]


def _folds(keys: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Return the fold of each pair; each fold has half of the prompts."""
    names = sorted(set(keys))
    order = torch.randperm(len(names), generator=generator(seed, "folds")).tolist()
    side = {names[at]: place % _FOLDS for place, at in enumerate(order)}
    return np.array([side[key] for key in keys])


def _fit(
    model: nn.Module,
    bundles: Sequence[Bundle],
    rate: float,
    temperature: float,
    seed: int,
    micro_tokens: int,
    bar: Bar,
) -> nn.Module:
    """Return a copy trained to imitate the answers; its learning rate falls to 0."""
    fitted = copy.deepcopy(model).requires_grad_(True)
    optimisation = Optimisation(
        [Role("copy", fitted)], {"copy": rate}, weight_decay=0.0, max_grad_norm=1.0, adam_eps=1e-8
    )
    batches = Batches(bundles, BATCH, seed, together=prompt_of)
    schedule = Schedule("linear", batches.steps(EPOCHS, None), warmup=0.0)
    for step in range(schedule.total):
        batch = batches.of(step)
        tokens = sum(len(c) for b in batch for c in b.completions)
        for micro in micro_batches(fitted, batch, micro_tokens):
            (-token_logps(fitted, micro.bundles, temperature).sum() / tokens).backward()
        optimisation.update(["copy"], schedule.factor(step))
        bar.advance()
    return fitted.requires_grad_(False)
