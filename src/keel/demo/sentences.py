"""The report's figures in words: the verdict on the methods, and whether gold turned down.

A sentence claims an order only if two 95 % intervals do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from keel.demo.table import is_bound
from keel.evaluation.outcomes import turned_down
from keel.pages.drawing import Value, value_of
from keel.pages.numbers import (
    DASH,
    PERCENT,
    TableCells,
    above,
    capital,
    enumerated,
    figure,
    finite_mean,
    full,
    number,
    seconds,
    times,
)

CONTENDERS = ("dpo", "ppo", "best_of_n")
"""Methods that the verdict ranks; a smaller N is in the table only."""

# --- the verdict ----------------------------------------------------------------------------------


def verdict(rows: TableCells, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return headline and sentences: who won by how much, at what distance and price; side effects beyond intervals."""
    wins = {name: w for name in CONTENDERS if (w := value_of(rows.get(name, {}).get("gold_win_rate")))}
    ranked = sorted(wins, key=lambda name: -wins[name].mean)
    leaders = [name for name in ranked if not above(wins[ranked[0]], wins[name])]
    return {
        "headline": headline(wins, leaders, labels) + reservation(leaders, rows, labels),
        "findings": [
            " ".join(sentences)
            for sentences in (
                ranking(wins, ranked, leaders, labels),
                gold_means(rows, ranked, labels),
                [price(labels[name], rows[name]) for name in leaders],
            )
            if sentences
        ],
        "side_effects": side_effects(rows, labels),
        "prompts": max((w.n or 0 for w in wins.values()), default=0),
    }


def headline(wins: Mapping[str, Value], leaders: Sequence[str], labels: Mapping[str, str]) -> str:
    """Return one line that claims no more than the win rates' intervals support."""
    if not leaders:
        return "No method was compared with the SFT model"
    if all(w.high < 0.5 for w in wins.values()):
        return "Every method does worse than the SFT model"
    if not any(w.low > 0.5 for w in wins.values()):
        return "No method is shown to beat the SFT model"
    names = capital(enumerated([labels[name] for name in leaders]))
    shares = enumerated([figure(wins[name], PERCENT) for name in leaders])
    if len(leaders) == 1:
        lead = "leads: its answers win" if len(wins) > 1 else "wins"
        return f"{names} {lead} {shares} of comparisons with the SFT model"
    return f"{names} share the lead, winning {shares} of comparisons with the SFT model"


def reservation(leaders: Sequence[str], rows: TableCells, labels: Mapping[str, str]) -> str:
    """Return a clause for the headline on what got worse under the first leader of which that is known."""
    found = [(labels[name], words) for name in leaders for words, _ in worse_than_sft(name, rows)]
    return f"; but {found[0][0]} {found[0][1]}" if found else ""


def ranking(
    wins: Mapping[str, Value], ranked: Sequence[str], leaders: Sequence[str], labels: Mapping[str, str]
) -> list[str]:
    """Return the win rates in order, and which of the differences are beyond their intervals."""
    if not ranked:
        return []
    shown = {name: f"{labels[name]} {full(wins[name], PERCENT)}" for name in ranked}
    said = [f"Gold win rates against the SFT model: {enumerated(list(shown.values()))}."]
    behind = [labels[name] for name in ranked if name not in leaders]
    if len(leaders) > 1:
        names = enumerated([labels[name] for name in leaders])
        said.append(f"The intervals of {names} overlap, so this run does not say which of them is better.")
    if behind:
        noun = "interval of {} lies" if len(behind) == 1 else "intervals of {} lie"
        said.append(f"The {noun.format(enumerated(behind))} below that of {labels[ranked[0]]}.")
    return said


def gold_means(rows: TableCells, ranked: Sequence[str], labels: Mapping[str, str]) -> list[str]:
    """Return mean gold beside the SFT model's, and a remark if it ranks the methods otherwise than the win rate."""
    means = {name: v for name in ("sft", *ranked) if (v := value_of(rows.get(name, {}).get("gold_mean")))}
    if len(means) < 2:
        return []
    said = [f"Mean gold: {enumerated([f'{labels[name]} {full(v)}' for name, v in means.items()])}."]
    best = max(means, key=lambda name: means[name].mean)
    if ranked and best != ranked[0]:
        said.append(f"By mean gold {labels[best]} stands first: the two measures order the methods differently.")
    return said


def price(name: str, row: TableCells) -> str:
    """Return the price of a method: distance from the SFT model, training, serving."""
    kl, cost = value_of(row.get("kl")), times(finite_mean(row.get("serve_cost_ratio")))
    lies = "stays within" if is_bound(row) else "lies"
    far = f"{full(kl)} nats {'of' if is_bound(row) else 'from'}" if kl else "an unknown distance from"
    return (
        f"{capital(name)} {lies} {far} the SFT model (KL), {training(row)} and costs {cost} the SFT model’s "
        "computation per answer."
    )


def training(row: TableCells) -> str:
    """Return the seconds of the method itself, with the reward model's beside them, in words."""
    own, reward = finite_mean(row.get("train_seconds")), finite_mean(row.get("reward_model_seconds"))
    said = "needed no training" if own == 0 else f"took {seconds(own)} to train"
    return said if reward is None else f"{said} (its reward model {seconds(reward)})"


def side_effects(rows: TableCells, labels: Mapping[str, str]) -> list[str]:
    """List what got worse than under the SFT model beyond both intervals."""
    return [
        capital(f"{labels[name]} {words} ({numbers})") for name in rows for words, numbers in worse_than_sft(name, rows)
    ]


def worse_than_sft(name: str, rows: TableCells) -> list[tuple[str, str]]:
    """Return what got worse beyond both intervals: ("declines fewer unsafe wishes", "10 % [5, 19] against 90 % …")."""
    row, base = rows[name], rows.get("sft", {})
    found = []
    for key, words, worse_if_higher in (
        ("refusal_unsafe", "declines fewer unsafe wishes", False),
        ("refusal_harmless", "declines more harmless wishes", True),
        ("parsed", "writes more answers that do not parse", False),
    ):
        ours, theirs = value_of(row.get(key)), value_of(base.get(key))
        if above(ours, theirs) if worse_if_higher else above(theirs, ours):
            found.append((words, f"{full(ours, PERCENT)} against {full(theirs, PERCENT)}"))
    for dimension, raw in (row.get("dimensions") or {}).items():
        ours, theirs = value_of(raw), value_of((base.get("dimensions") or {}).get(dimension))
        if above(theirs, ours):
            found.append((f"is worth less in {dimension}", f"{full(ours)} against {full(theirs)}"))
    return found


# --- over-optimisation ----------------------------------------------------------------------------


def turning_points(summary: TableCells) -> dict[str, Any]:
    """Say whether gold turned down, in the hacked run and in the two curves of the comparison."""
    curves = summary.get("curves") or {}
    found, points = curves.get("overoptimisation") or {}, curves.get("best_of_n") or []
    return {
        "setting": found.get("setting") or "not stated",
        "turned": bool(found.get("turned")),
        "hacked": turn_sentence(found, "step"),
        "best_of_n": turn_sentence(_turn(points), "n"),
        "ppo": turn_sentence(_turn(curves.get("ppo")), "step"),
        "largest_n": max((p.get("n") or 0 for p in points), default=DASH),
        "prompts": max((v.n or 0 for p in points if (v := value_of(p.get("gold")))), default=DASH),
    }


def _turn(points: Sequence[TableCells] | None) -> TableCells:
    known = [p for p in points or [] if all((v := value_of(p.get(k))) and v.bounded for k in ("gold", "proxy"))]
    return turned_down(known) if known else {}


def turn_sentence(found: TableCells, by: str) -> str:
    """Say whether gold fell beyond its interval after its peak while the proxy rose, by the fields of `turned_down`."""
    peak, end = found.get("peak"), found.get("end")
    if not peak or not end:
        return "No points were recorded, so nothing can be said."
    gold, proxy = ([value_of(p.get(key)) for p in (peak, end)] for key in ("gold", "proxy"))
    where = [f"step {p.get(by)}" if by == "step" else f"N = {p.get(by)}" for p in (peak, end)]
    proxies = f"from {full(proxy[0])} to {full(proxy[1])}"
    if peak == end:
        return f"Gold did not turn down: it was highest at the end ({where[1]}), at {full(gold[1])}."
    path = f"from {full(gold[0])} at {where[0]} to {full(gold[1])} at {where[1]}"
    if not found.get("gold_fell"):
        return f"Gold did not turn down: it went {path}, and the two intervals overlap."
    if not found.get("turned"):
        return f"Gold fell {path}, but the proxy did not rise beyond its interval ({proxies}): no over-optimisation."
    lost = gold[0].mean - gold[1].mean if gold[0] and gold[1] else math.nan
    return (
        f"Gold turned down: it fell by {number(lost, 2)}, {path}, beyond its intervals, while the proxy rose {proxies}."
    )
