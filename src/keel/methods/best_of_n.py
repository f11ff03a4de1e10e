"""Best-of-N offline: sample N completions per prompt, score them, keep the best. Without a scorer: plain generation.

No weight changes; the price is N completions and N scores per answer. If all N are bad, the best is still bad: the
summary reports the spread of scores within a prompt beside the gain.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from keel import stats
from keel.config import BestOfNConfig, GenerateConfig
from keel.data import checks, lengths, prepare
from keel.engine import verdict
from keel.engine.scorers import load_scorer, require_same_reading
from keel.engine.verdict import RunVerdict, Sample
from keel.errors import InputError
from keel.files.jsonl import write_lines
from keel.files.target import refuse_existing
from keel.models import checkpoints
from keel.models.limits import positions
from keel.models.machine import described
from keel.progress import Bar, peak_rss_gb
from keel.records import Bundle, Result, RowCounts
from keel.sampling.local import LocalSampler
from keel.sampling.protocol import SamplingOptions, options_of, sample
from keel.says import say
from keel.text.tokenisation import Text, prompt_text
from keel.text.tokenizer_facts import remarks_on

_SAMPLES = 3
"""Prompts whose best answer the end shows beside the first one drawn."""


def generate(config: GenerateConfig) -> Result:
    """Draw `n` completions per prompt into `out`, one JSON line per prompt."""
    began = time.perf_counter()
    asked = _ask(config)
    bundles, seconds = _draw(config, asked)
    write_lines(config.out, ({**_head(b, asked.text), "completions": _completions(b)} for b in bundles))
    return _result("generate", config, bundles, asked.counts, began, {"sample_seconds": seconds}, {})


def best_of_n(config: BestOfNConfig) -> Result:
    """Draw `n` completions per prompt, and write all of them with their scores and the best one."""
    began = time.perf_counter()
    _refuse_output(config.out)
    scorer = load_scorer(config.reward, config)
    asked = _ask(config)
    require_same_reading(scorer, config, config.reward, asked.text, asked.prompts)
    bundles, seconds = _draw(config, asked)
    drawn = time.perf_counter()
    scores = scorer.score(bundles).view(len(bundles), config.n)
    spent = {"sample_seconds": seconds, "score_seconds": time.perf_counter() - drawn}
    best = scores.argmax(1)
    rows = zip(bundles, scores.tolist(), best.tolist(), strict=True)
    write_lines(config.out, ({**_head(b, asked.text), **_chosen(b, row, at)} for b, row, at in rows))
    measured = {
        "score_best": stats.mean(scores.max(1).values.numpy()).as_dict(),
        "score_mean": stats.mean(scores.mean(1).numpy()).as_dict(),
        "score_sd_within": float(scores.std(1).mean()) if config.n > 1 else 0.0,
        "kl_bound": stats.best_of_n_kl(config.n),
    }
    result = _result("best-of-n", config, bundles, asked.counts, began, spent, measured)
    end = conclude(config, bundles, scores, measured)
    result.summary["verdict"] = end.as_dict()
    for line in end.lines():
        say(line)
    return result


def conclude(config: BestOfNConfig, bundles: Sequence[Bundle], scores: Tensor, measured: dict[str, Any]) -> RunVerdict:
    """Return what choosing by these scores [prompts, n] reached, beside one answer drawn at random."""
    before, after, spread = (measured[name] for name in ("score_mean", "score_best", "score_sd_within"))
    words, figures = verdict.chosen(before, after)
    completions = [c for b in bundles for c in b.completions]
    cut = sum(c.truncated for c in completions)
    equal = scores.numel() > 1 and bool((scores == scores[0, 0]).all())
    flat = verdict.flat_scores(spread, "best-of-n then chooses by chance; look at --reward")
    return RunVerdict(
        words,
        f"of {config.n} answers to each of {len(bundles)} prompts the one with the highest reward, in {config.out}",
        f"at most {measured['kl_bound']:.3g} nats an answer (log n - (n - 1) / n: a bound, without a standard error)",
        [
            Sample(prompt_text(b.prompt), {"first drawn": b.completions[0].text, "kept": b.completions[at].text})
            for b, at in zip(bundles[:_SAMPLES], scores.argmax(1).tolist(), strict=False)
        ],
        verdict.those_due(
            verdict.all_cut(cut, len(completions), f"--max-new-tokens {config.max_new_tokens}", ""),
            verdict.equal_rewards(float(scores[0, 0])) if equal else flat if config.n > 1 else None,
        ),
        figures={**figures, "kl_bound": measured["kl_bound"], "score_sd_within": spread},
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """Prompts, and the model that answers them."""

    policy: nn.Module
    text: Text
    prompts: list[Bundle]
    counts: RowCounts
    options: SamplingOptions


def _ask(config: GenerateConfig) -> _Asked:
    """Read the prompts and load the model."""
    _refuse_output(config.out)
    rows, counts, name = prepare.read_prompt_rows(config, config.prompts)
    text = checkpoints.load_text(config.model, config)
    policy = checkpoints.load_policy(config.model, config)
    limit = lengths.prompt_limit(config, positions(policy))
    fits = sys.maxsize if limit is None else limit
    share, longer = config.max_bad_share, lengths.remedy(config)
    prompts = prepare.encode(rows, counts, text, fits, share, config.prompts, longer)
    say(checks.summarise(counts, config.prompts, name))
    for remark in remarks_on(text, prompts):
        say(remark)
    say(described(policy))
    config = lengths.fitted(config, positions(policy), (len(b.prompt_ids) for b in prompts))
    return _Asked(policy, text, prompts, counts, options_of(config, config.top_p))


def _draw(config: GenerateConfig, asked: _Asked) -> tuple[list[Bundle], float]:
    """Return the bundles, and the seconds of drawing alone."""
    began = time.perf_counter()
    sampler = LocalSampler(asked.policy, asked.text, asked.options, config.seed)
    with Bar("completions", len(asked.prompts) * config.n) as bar:
        bundles = sample(sampler, asked.prompts, config.n, "generate", progress=bar.advance)
    return bundles, time.perf_counter() - began


def _head(bundle: Bundle, text: Text) -> dict[str, Any]:
    """Return the prompt, and the tokenizer to which the ids of its answers belong."""
    return {"prompt": bundle.prompt, "tokenizer": text.fingerprint()}


def _refuse_output(file: Path) -> None:
    """Refuse an output file that exists or cannot be written, before any work."""
    refuse_existing(file)
    if file.name.lower().endswith((".csv", ".json", ".parquet", ".txt", ".gz")):
        raise InputError(f"{file}: JSON lines are written; end the name in .jsonl (keel data convert writes others)")
    if file.is_dir():
        raise InputError(f"{file} is a folder: give the name of a file to write as --out")


def _completions(bundle: Bundle) -> list[dict[str, Any]]:
    return [
        {"text": c.text, "truncated": c.truncated, "tokens": len(c), "logp": float(c.logps.sum()), "ids": c.ids}
        for c in bundle.completions
        if c.logps is not None
    ]


def _chosen(bundle: Bundle, scores: Sequence[float], best: int) -> dict[str, Any]:
    candidates = [{**c, "score": s} for c, s in zip(_completions(bundle), scores, strict=True)]
    return {
        "completion": bundle.completions[best].text,
        "score": scores[best],
        "best": best,
        "candidates": candidates,
    }


def _result(
    command: str,
    config: GenerateConfig,
    bundles: Sequence[Bundle],
    counts: RowCounts,
    began: float,
    spent: dict[str, float],
    measured: dict[str, Any],
) -> Result:
    seconds = time.perf_counter() - began
    completions = [c for b in bundles for c in b.completions]
    prompts = [b.prompt for b in bundles for _ in b.completions]
    summary = {
        "command": command,
        "seconds": round(seconds, 3),
        **{name: round(value, 3) for name, value in spent.items()},
        "examples": len(completions),
        "examples_per_second": round(len(completions) / seconds, 3),
        "peak_rss_gb": peak_rss_gb(),
        "metrics": {
            **measured,
            "length": stats.mean([len(c) for c in completions], prompts).as_dict(),
            "truncated": stats.rate([c.truncated for c in completions], prompts).as_dict(),
        },
        "rows": counts.as_dict(),
    }
    return Result(config.out, summary)
