"""Best-of-N offline: sample N completions per prompt, score them, keep the best. Without a scorer: plain generation.

No weight changes; the price is N completions and N scores per answer. If all N are bad, the best is still bad: the
summary reports the spread of scores within a prompt beside the gain.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keel import stats
from keel.config import BestOfNConfig, GenerateConfig, refuse_existing
from keel.data import checks, prepare
from keel.data.files import write_lines
from keel.data.text import Text
from keel.engine.progress import Bar, peak_rss_gb, say
from keel.engine.run import generator
from keel.engine.sampler import room, sample
from keel.engine.scorers import load_scorer
from keel.errors import InputError
from keel.models import checkpoints
from keel.models.machine import described
from keel.records import Bundle, Result, RowCounts


def generate(config: GenerateConfig) -> Result:
    """Draw `n` completions per prompt into `out`, one JSON line per prompt."""
    began = time.perf_counter()
    bundles, counts, _, sampling = _draw(config)
    write_lines(config.out, ({"prompt": b.prompt, "completions": _completions(b)} for b in bundles))
    return _result("generate", config, bundles, counts, began, {"sample_seconds": sampling}, {})


def best_of_n(config: BestOfNConfig) -> Result:
    """Draw `n` completions per prompt, and write all of them with their scores and the best one."""
    began = time.perf_counter()
    _refuse_output(config.out)
    scorer = load_scorer(config.reward, config)
    bundles, counts, text, sampling = _draw(config)
    if not config.reward.startswith("rule:"):
        prompts = [b.prompt for b in bundles[:8]]
        checkpoints.require_same_tokens(text, checkpoints.load_text(config.reward), prompts, config.reward)
    drawn = time.perf_counter()
    scores = scorer.score(bundles).view(len(bundles), config.n)
    spent = {"sample_seconds": sampling, "score_seconds": time.perf_counter() - drawn}
    best = scores.argmax(1)
    rows = zip(bundles, scores.tolist(), best.tolist(), strict=True)
    write_lines(config.out, (_chosen(bundle, row, at) for bundle, row, at in rows))
    measured = {
        "score_best": stats.mean(scores.max(1).values.numpy()).as_dict(),
        "score_mean": stats.mean(scores.mean(1).numpy()).as_dict(),
        "score_sd_within": float(scores.std(1).mean()) if config.n > 1 else 0.0,
        "kl_bound": stats.best_of_n_kl(config.n),
    }
    return _result("best-of-n", config, bundles, counts, began, spent, measured)


def _draw(config: GenerateConfig) -> tuple[list[Bundle], RowCounts, Text, float]:
    """The bundles, the rows read, the policy's text, and the seconds of drawing alone."""
    _refuse_output(config.out)
    rows, counts, name = prepare.read_prompt_rows(config, config.prompts)
    text = checkpoints.load_text(config.model)
    policy = checkpoints.load_policy(config.model, config)
    limit = room(policy, config.max_new_tokens)
    fits = sys.maxsize if limit is None else limit
    prompts = prepare.encode(rows, counts, text, fits, config.max_bad_share, config.prompts)
    say(checks.summarise(counts, config.prompts, name))
    say(described(policy))
    began = time.perf_counter()
    with Bar("completions", len(prompts) * config.n) as bar:
        bundles = sample(
            policy,
            text,
            [b.prompt for b in prompts],
            config.n,
            origins=[b.origin for b in prompts],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            generator=generator(config.seed, "generate"),
            max_rows=config.max_rows,
            progress=bar.advance,
        )
    return bundles, counts, text, time.perf_counter() - began


def _refuse_output(file: Path) -> None:
    """Before any work: the file must not be there, and be writable."""
    refuse_existing(file)
    if file.is_dir():
        raise InputError(f"{file} is a folder: give the name of a file to write as --out")


def _completions(bundle: Bundle) -> list[dict[str, Any]]:
    return [
        {"text": c.text, "truncated": c.truncated, "tokens": len(c), "logp": float(c.logps.sum())}
        for c in bundle.completions
        if c.logps is not None
    ]


def _chosen(bundle: Bundle, scores: Sequence[float], best: int) -> dict[str, Any]:
    candidates = [{**c, "score": s} for c, s in zip(_completions(bundle), scores, strict=True)]
    return {
        "prompt": bundle.prompt,
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
