"""Worth of a set of answers, and comparison of two sets. The judge is any function of two texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from keel import stats
from keel.engine.forward import in_batches, sequence_logps
from keel.records import Bundle
from keel.text.tokenisation import prompt_key

Numbers = Sequence[float]


@dataclass(frozen=True, slots=True)
class Answers:
    """One method's answers, one per held-out prompt, with their figures; parallel lists of one length."""

    prompts: list[str]
    texts: list[str]
    lengths: list[int]
    """Tokens, EOS included."""
    kl: list[float]
    """Per-sequence log-ratio to the reference; empty if the method is not a distribution that can be evaluated."""
    proxy: list[float]
    """Score by the reward model that was optimised."""


def of_bundles(
    bundles: Sequence[Bundle], chosen: Sequence[int], kl: Sequence[float], proxy: Sequence[float]
) -> Answers:
    """Return the chosen completion of each bundle."""
    picked = [b.completions[i] for b, i in zip(bundles, chosen, strict=True)]
    return Answers(
        [prompt_key(b.prompt) for b in bundles],
        [c.text for c in picked],
        [len(c) for c in picked],
        list(kl),
        list(proxy),
    )


def sequence_kl(
    policy: nn.Module, reference: nn.Module, bundles: Sequence[Bundle], temperature: float, micro_tokens: int
) -> list[float]:
    """Return log policy - log reference of every completion, summed over its tokens.

    On the policy's own samples it is unbiased for the KL.
    """
    ours, theirs = (
        torch.cat(in_batches(partial(sequence_logps, temperature=temperature), model, bundles, micro_tokens))
        for model in (policy, reference)
    )
    result: list[float] = (ours - theirs).cpu().tolist()
    return result


def win_rate(gold: Numbers, other: Numbers) -> stats.Estimate:
    """Return the share of prompts on which the first answer is worth more, ties 1/2, with its Wilson interval."""
    return stats.rate(stats.win_outcomes(gold, other))


def row(
    answers: Answers,
    gold: Numbers,
    other_gold: Numbers,
    dimensions: Mapping[str, Numbers],
    groups: Mapping[str, Sequence[bool | None]],
) -> dict[str, Any]:
    """Return one line of the comparison: win rate, means per dimension, KL, length, rate of each group's event.

    `groups[name]` says for each prompt whether an event happened (a refusal, a parse); None if it does not apply.
    """
    rates = {name: stats.rate([np.nan if e is None else float(e) for e in events]) for name, events in groups.items()}
    return {
        "gold_win_rate": win_rate(gold, other_gold).as_dict(),
        "gold_mean": stats.mean(gold).as_dict(),
        "dimensions": {name: stats.mean(values).as_dict() for name, values in dimensions.items()},
        "kl": stats.mean(answers.kl).as_dict() if answers.kl else None,
        "length_mean": stats.mean(answers.lengths).as_dict(),
        "proxy_mean": stats.mean(answers.proxy).as_dict(),
        **{name: estimate.as_dict() for name, estimate in rates.items()},
    }


def best_of_n_points(proxy: Sequence[Numbers], gold: Sequence[Numbers], ns: Sequence[int]) -> list[dict[str, Any]]:
    """Return gold and proxy of best-of-n over its KL, for each n, from M samples per prompt; intervals over prompts."""
    return [
        {
            "n": n,
            "kl": stats.best_of_n_kl(n),
            "gold": stats.mean(stats.best_of_n_curve(proxy, gold, n)).as_dict(),
            "proxy": stats.mean(stats.best_of_n_curve(proxy, proxy, n)).as_dict(),
        }
        for n in ns
    ]


def training_points(
    samples: Sequence[Mapping[str, Any]], utility: Callable[[str, str], float], every: int = 1
) -> list[dict[str, Any]]:
    """Return gold and proxy over KL while a policy trained, from its `samples.jsonl`, in windows of `every` steps."""
    windows: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        windows.setdefault((int(sample["step"]) - 1) // every, []).append(sample)
    points = []
    for window, rows in sorted(windows.items()):
        prompts = [str(r["prompt"]) for r in rows]
        gold = [utility(str(r["prompt"]), str(r["completion"])) for r in rows]
        points.append(
            {
                "step": min((window + 1) * every, max(int(r["step"]) for r in rows)),
                "kl": stats.mean([r["kl"] for r in rows], prompts).as_dict(),
                "gold": stats.mean(gold, prompts).as_dict(),
                "proxy": stats.mean([r["score"] for r in rows], prompts).as_dict(),
            }
        )
    return points


def turned_down(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Say whether gold fell beyond its interval after its peak while the proxy rose: over-optimisation, shown.

    The peak is compared with the later point of the highest proxy: the checkpoint you would pick without seeing gold.
    A policy that training broke altogether does not count: its proxy falls as well.
    """
    peak = max(range(len(points)), key=lambda i: points[i]["gold"]["mean"])
    later = points[peak + 1 :] or points[-1:]
    top, end = points[peak], max(reversed(later), key=lambda p: p["proxy"]["mean"])
    fell = end["gold"]["high"] < top["gold"]["low"]
    rose = end["proxy"]["low"] > top["proxy"]["high"]
    return {"peak": top, "end": end, "gold_fell": fell, "proxy_rose": rose, "turned": fell and rose}


def serve_cost(prompt_tokens: float, answer_tokens: float, n: int = 1, scored: bool = False) -> float:
    """Return the token positions computed per answer: the prompt once, n answers, and each again if scored."""
    generated = prompt_tokens + n * answer_tokens
    return generated + (n * (prompt_tokens + answer_tokens) if scored else 0.0)
