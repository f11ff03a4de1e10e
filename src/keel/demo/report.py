"""The demo's report: one HTML file that opens offline, written from `summary.json` and nothing else.

`report.html` lays the page out, `figures` draws, and this file turns figures into words and cells. A sentence claims
an order only where two 95 % intervals do not overlap. What is missing or not finite is shown as a dash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from keel import stats
from keel.demo import figures
from keel.evaluation.answers import turned_down
from keel.pages.drawing import Value, value_of
from keel.pages.numbers import (
    DASH,
    PERCENT,
    PLAIN,
    SCORE,
    THIN,
    Row,
    Unit,
    above,
    bar,
    bare,
    capital,
    digits_for,
    finite,
    full,
    interval,
    listed,
    number,
    page,
    seconds,
    times,
)

LABELS = {"sft": "SFT", "dpo": "DPO", "ppo": "PPO"}
CONTENDERS = ("dpo", "ppo", "best_of_n")
"""Whose order the verdict is about; a smaller N is in the table only."""
EXPLAINED = {
    "dpo": "Direct preference optimisation: trains the model on the votes themselves.",
    "ppo": "Proximal policy optimisation: the model tries answers, and what the reward model likes is reinforced.",
    "best_of_n": "Leaves the model as it is: draws N answers and keeps the one that the reward model likes best.",
}
KINDS = {
    "safe": "everyday wish",
    "unsafe": "unsafe: should be declined",
    "looks_unsafe": "only looks unsafe: should be granted",
}


def write(summary: Row, file: Path) -> None:
    """Render the summary of a demo into one self-contained HTML file."""
    file.write_text(render(summary), encoding="utf-8")


def render(summary: Row) -> str:
    """The page as text."""
    rows: Row = summary.get("methods") or {}
    labels = {name: label(name, row) for name, row in rows.items()}
    return page(
        Path(__file__).with_name("report.html"),
        verdict=verdict(rows, labels),
        tiles=[tile(name, rows, labels) for name in CONTENDERS if name in rows],
        methods=[{"label": labels[name], "family": figures.family(name)} for name in rows],
        table=table(rows, summary.get("weights") or {}),
        turns=turns(summary),
        figures=drawings(summary, labels),
        learning=learning(summary.get("learning") or {}),
        data=data_check(summary.get("data") or {}),
        reward=reward_model(summary),
        examples=examples(summary.get("examples") or [], labels),
        steps=steps(summary),
        facts=facts(summary),
    )


def label(name: str, row: Row) -> str:
    """A method's name for people; N of `best_of_n` is read from its KL, which fixes it."""
    if name in LABELS or not name.startswith("best_of_"):
        return LABELS.get(name, name)
    n, kl = name.removeprefix("best_of_"), value_of(row.get("kl"))
    if not n.isdigit() and kl:
        n = next((str(m) for m in range(1, 1025) if abs(stats.best_of_n_kl(m) - kl.mean) < 1e-9), "N")
    return f"best-of-{n.upper()}"


# --- the verdict ----------------------------------------------------------------------------------


def verdict(rows: Row, labels: Mapping[str, str]) -> dict[str, Any]:
    """Headline and sentences: who won by how much, at what distance and price; side effects that intervals carry."""
    wins = {name: w for name in CONTENDERS if (w := value_of(rows.get(name, {}).get("gold_win_rate")))}
    ranked = sorted(wins, key=lambda name: -wins[name].mean)
    leaders = [name for name in ranked if not above(wins[ranked[0]], wins[name])]
    return {
        "headline": headline(wins, leaders, labels),
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
    """One line that claims no more than the win rates' intervals carry."""
    if not leaders:
        return "No method was compared with the SFT model"
    if all(w.high < 0.5 for w in wins.values()):
        return "Every method does worse than the SFT model"
    if not any(w.low > 0.5 for w in wins.values()):
        return "No method is shown to beat the SFT model"
    names = capital(listed([labels[name] for name in leaders]))
    shares = listed([bare(wins[name], PERCENT) for name in leaders])
    if len(leaders) == 1:
        lead = "leads: its answers win" if len(wins) > 1 else "wins"
        return f"{names} {lead} {shares} of comparisons with the SFT model"
    return f"{names} share the lead, winning {shares} of comparisons with the SFT model"


def ranking(
    wins: Mapping[str, Value], ranked: Sequence[str], leaders: Sequence[str], labels: Mapping[str, str]
) -> list[str]:
    """The win rates in order, and which of the differences are beyond their intervals."""
    if not ranked:
        return []
    shown = {name: f"{labels[name]} {full(wins[name], PERCENT)}" for name in ranked}
    said = [f"Gold win rates against the SFT model: {listed(list(shown.values()))}."]
    behind = [labels[name] for name in ranked if name not in leaders]
    if len(leaders) > 1:
        names = listed([labels[name] for name in leaders])
        said.append(f"The intervals of {names} overlap, so this run does not say which of them is better.")
    if behind:
        noun = "interval of {} lies" if len(behind) == 1 else "intervals of {} lie"
        said.append(f"The {noun.format(listed(behind))} below that of {labels[ranked[0]]}.")
    return said


def gold_means(rows: Row, ranked: Sequence[str], labels: Mapping[str, str]) -> list[str]:
    """Mean gold beside the SFT model's, and a word where it ranks the methods otherwise than the win rate."""
    means = {name: v for name in ("sft", *ranked) if (v := value_of(rows.get(name, {}).get("gold_mean")))}
    if len(means) < 2:
        return []
    said = [f"Mean gold: {listed([f'{labels[name]} {full(v)}' for name, v in means.items()])}."]
    best = max(means, key=lambda name: means[name].mean)
    if ranked and best != ranked[0]:
        said.append(f"By mean gold {labels[best]} stands first: the two measures order the methods differently.")
    return said


def price(name: str, row: Row) -> str:
    """What a method took: distance from the SFT model, training, serving."""
    kl, cost = value_of(row.get("kl")), times(finite(row.get("serve_cost_ratio")))
    lies = "stays within" if is_bound(row) else "lies"
    far = f"{full(kl)} nats {'of' if is_bound(row) else 'from'}" if kl else "an unknown distance from"
    return (
        f"{capital(name)} {lies} {far} the SFT model (KL), {training(row)} and costs {cost} the SFT model’s "
        "computation per answer."
    )


def is_bound(row: Row) -> bool:
    """A KL of width zero that is not zero was computed and not measured: best-of-N's."""
    kl = value_of(row.get("kl"))
    return kl is not None and kl.low == kl.high and kl.mean > 0


def training(row: Row) -> str:
    """Seconds of the method itself, and the reward model's beside them, in words."""
    own, reward = finite(row.get("train_seconds")), finite(row.get("reward_model_seconds"))
    said = "needed no training" if own == 0 else f"took {seconds(own)} to train"
    return said if reward is None else f"{said} (its reward model {seconds(reward)})"


def side_effects(rows: Row, labels: Mapping[str, str]) -> list[str]:
    """What got worse than under the SFT model beyond both intervals."""
    base = rows.get("sft", {})
    found = []
    for name, row in rows.items():
        for key, words, worse_if_higher in (
            ("refusal_unsafe", "declines fewer unsafe wishes", False),
            ("refusal_harmless", "declines more harmless wishes", True),
            ("parsed", "writes more answers that do not parse", False),
        ):
            ours, theirs = value_of(row.get(key)), value_of(base.get(key))
            if above(ours, theirs) if worse_if_higher else above(theirs, ours):
                found.append(f"{labels[name]} {words} ({full(ours, PERCENT)} against {full(theirs, PERCENT)})")
        for dimension, raw in (row.get("dimensions") or {}).items():
            ours, theirs = value_of(raw), value_of((base.get("dimensions") or {}).get(dimension))
            if above(theirs, ours):
                found.append(f"{labels[name]} is worth less in {dimension} ({full(ours)} against {full(theirs)})")
    return [capital(text) for text in found]


def tile(name: str, rows: Row, labels: Mapping[str, str]) -> dict[str, Any]:
    """A method at a glance."""
    row = rows[name]
    win = value_of(row.get("gold_win_rate"))
    return {
        "label": capital(labels[name]),
        "family": figures.family(name),
        "what": EXPLAINED[name],
        "win": bare(win, PERCENT),
        "interval": interval(win, PERCENT),
        "bar": bar(win),
        "gold": full(value_of(row.get("gold_mean"))),
        "sft_gold": bare(value_of(rows.get("sft", {}).get("gold_mean"))),
        "kl": ("≤ " if is_bound(row) else "") + full(value_of(row.get("kl"))),
        "training": cost_cell(row),
        "serving": times(finite(row.get("serve_cost_ratio"))),
    }


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure as printed, with its interval, a word beside it, and a bar where it lies between 0 and 1."""

    main: str
    interval: str = ""
    note: str = ""
    bar: str = ""


def table(rows: Row, weights: Row) -> list[dict[str, Any]]:
    """Groups of lines, each a measure with one cell per method."""
    share = {
        "gold_win_rate": ("Gold win rate", "share of prompts on which gold prefers the answer to the SFT model’s"),
        "parsed": ("Parsed", "share of answers that the world’s grammar can read; the rest are worth 0"),
        "refusal_unsafe": ("Refusals, unsafe", "share of unsafe wishes declined: should be high"),
        "refusal_harmless": ("Refusals, harmless", "share of harmless wishes declined: should be low"),
    }
    win, parsed, unsafe, harmless = (line(*words, rows, (key,), PERCENT, bars=True) for key, words in share.items())
    if "sft" in rows:
        win["cells"][list(rows).index("sft")] = Cell("50" + PERCENT.sign, note="itself")
    gold = line("Gold, mean", "true worth of an answer, from 0 to 1", rows, ("gold_mean",), PLAIN, bars=True)
    length = line("Length", "tokens per answer", rows, ("length_mean",), PLAIN)
    proxy = line("Proxy, mean", "the reward model’s score, in its own units", rows, ("proxy_mean",), PLAIN)
    groups = {
        "Is it better?": [win, gold],
        "Gold by dimension, each from 0 to 1": dimensions(rows, weights),
        "How its answers changed": [kl_line(rows), length, unsafe, harmless, parsed, proxy],
        "What it costs": cost_lines(rows),
    }
    return [{"title": title, "lines": lines} for title, lines in groups.items() if lines]


def line(title: str, hint: str, rows: Row, path: tuple[str, ...], unit: Unit, bars: bool = False) -> dict[str, Any]:
    """One measure of every method, all with the same number of digits."""
    values = [value_of(_at(row, path)) for row in rows.values()]
    digits = digits_for(values, unit)
    cells = [Cell(bare(v, unit, digits), interval(v, unit, digits), bar=bar(v) if bars else "") for v in values]
    return {"label": title, "hint": hint, "cells": cells}


def _at(row: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        row = row.get(key) if isinstance(row, Mapping) else None
    return row


def dimensions(rows: Row, weights: Row) -> list[dict[str, Any]]:
    """One line of the table per dimension of gold, with its weight."""
    names = list(weights) or sorted({d for row in rows.values() for d in row.get("dimensions") or {}})
    found = []
    for name in names:
        weight = finite(weights.get(name))
        hint = "" if weight is None else f"weight in gold {number(weight, 2)}"
        found.append(line(capital(name), hint, rows, ("dimensions", name), PLAIN, bars=True))
    return found


def kl_line(rows: Row) -> dict[str, Any]:
    """KL, where best-of-N's is the bound that arithmetic gives."""
    found = line("KL to SFT", "how far its answers moved away, in nats per answer", rows, ("kl",), PLAIN)
    for i, row in enumerate(rows.values()):
        cell = found["cells"][i]
        if is_bound(row):
            found["cells"][i] = replace(cell, main=f"≤ {bare(value_of(row['kl']))}", note="upper bound")
        elif cell.main.strip("0.") == "" and not cell.interval:
            found["cells"][i] = replace(cell, main="0")
    return found


def cost_lines(rows: Row) -> list[dict[str, Any]]:
    """What each method costs to train and to serve."""
    train = [cost_cell(row) for row in rows.values()]
    serve = [Cell(times(finite(row.get("serve_cost_ratio")))) for row in rows.values()]
    return [
        {"label": "Training", "hint": "the step’s own time; every method builds on the SFT model", "cells": train},
        {"label": "Serving cost", "hint": "computation per answer, in units of the SFT model’s", "cells": serve},
    ]


def cost_cell(row: Row) -> Cell:
    """Seconds of training, with the reward model's beside them where the method needs one."""
    reward = finite(row.get("reward_model_seconds"))
    return Cell(
        seconds(finite(row.get("train_seconds"))),
        note="" if reward is None else f"+ {seconds(reward)} reward model",
    )


# --- over-optimisation ----------------------------------------------------------------------------


def turns(summary: Row) -> dict[str, Any]:
    """Did gold turn down: sentences for the hacked run and for the two curves of the comparison."""
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


def _turn(points: Sequence[Row] | None) -> Row:
    known = [p for p in points or [] if all((v := value_of(p.get(k))) and v.bounded for k in ("gold", "proxy"))]
    return turned_down(known) if known else {}


def turn_sentence(found: Row, by: str) -> str:
    """Whether gold fell beyond its interval after its peak while the proxy rose, from the fields of `turned_down`."""
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


# --- learning curves ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Panel:
    """One small learning curve."""

    key: str
    title: str
    hint: str
    held_out: str = ""
    chance: float | None = None


LN2 = math.log(2)
RUNS: tuple[tuple[str, str, str, tuple[Panel, ...]], ...] = (
    ("recall", "Pre-training: recalls", "pretrain", (Panel("loss", "Loss", "nats per token"),)),
    ("pretrain", "Pre-training: right answers", "pretrain", (Panel("loss", "Loss", "nats per token"),)),
    (
        "sft",
        "Supervised fine-tuning (SFT)",
        "sft",
        (
            Panel("loss", "Loss", "nats per token"),
            Panel("mean_token_accuracy", "Token accuracy", "next token guessed right"),
        ),
    ),
    (
        "prefer",
        "Reward model: which answer belongs to the question",
        "reward",
        (
            Panel("loss", "Loss", "per pair; dashed: no opinion", chance=LN2),
            Panel("accuracy", "Accuracy", "right answer first; dashed: chance", chance=0.5),
        ),
    ),
    (
        "reward",
        "Reward model: people’s votes",
        "reward",
        (
            Panel("loss", "Loss", "per pair; dashed: no opinion", chance=LN2),
            Panel("accuracy", "Accuracy", "pairs ranked as voted; dashed: chance", chance=0.5),
            Panel("margin", "Margin", "score, chosen minus rejected", chance=0.0),
        ),
    ),
    (
        "dpo",
        "DPO",
        "dpo",
        (
            Panel("loss", "Loss", "per pair; dashed: the SFT model’s", chance=LN2),
            Panel("rewards/accuracies", "Accuracy", "pairs ranked as voted; dashed: chance", chance=0.5),
            Panel("rewards/margins", "Margin", "implicit reward, chosen minus rejected", chance=0.0),
        ),
    ),
    (
        "ppo",
        "PPO",
        "ppo",
        (
            Panel("objective/scores", "Proxy", "the reward model’s score", "eval/scores"),
            Panel("objective/kl", "KL to the SFT model", "nats per answer", "eval/kl"),
            Panel("objective/entropy", "Entropy", "nats per answer; near 0: no variety left"),
            Panel("completions/mean_length", "Length", "tokens per answer", "eval/length"),
            Panel("certificate/sd", "Distance certificate", "spread of shaped reward; 0: optimum"),
            Panel("val/explained_variance", "Value function", "share of the returns’ variance explained"),
        ),
    ),
)


def learning(runs: Row) -> list[dict[str, Any]]:
    """Small multiples by run; what a run did not log has no panel."""
    found = []
    for name, title, colour, panels in RUNS:
        rows = runs.get(name) or []
        drawn = [
            {"title": panel.title, "hint": panel.hint, "svg": Markup(svg)}
            for panel in panels
            if (svg := figures.learning(rows, panel.key, panel.held_out or f"eval/{panel.key}", colour, panel.chance))
        ]
        if drawn:
            found.append({"title": title, "family": colour, "panels": drawn})
    return found


# --- the other sections ---------------------------------------------------------------------------


def drawings(summary: Row, labels: Mapping[str, str]) -> dict[str, Markup]:
    """The large figures."""
    curves = summary.get("curves") or {}
    summary = {**summary, "curves": curves, "methods": summary.get("methods") or {}}
    return {
        "reward_kl": Markup(figures.reward_kl(summary, labels)),
        "gold_and_proxy": Markup(figures.gold_and_proxy(summary)),
        "overoptimisation": Markup(figures.overoptimisation(summary)),
        "reliability": Markup(figures.reliability((summary.get("reward_model") or {}).get("calibration") or [])),
    }


def reward_model(summary: Row) -> dict[str, Any]:
    """Accuracy beside its baselines, calibration, and what the votes were worth."""
    found, votes = summary.get("reward_model") or {}, summary.get("votes") or {}
    accuracy, longer = value_of(found.get("accuracy")), value_of(found.get("accuracy_of_longer"))
    error = finite(found.get("calibration_error"))
    measures = (
        ("Accuracy", accuracy, "share of held-out pairs ranked as gold ranks them"),
        ("“The longer one wins”", longer, "the same pairs, ranked by length: the baseline"),
        (
            "People and gold agree",
            value_of(votes.get("agreement_with_gold")),
            "share of the training votes: people err, too",
        ),
        ("People prefer the longer", value_of(votes.get("longer_wins")), "share of the training votes"),
    )
    stats_shown = [
        {"label": title, "main": bare(v, PERCENT), "interval": interval(v, PERCENT), "bar": bar(v), "hint": hint}
        for title, v, hint in measures
    ]
    n = accuracy.n if accuracy and accuracy.n else None
    return {
        "measures": stats_shown,
        "calibration_error": DASH if error is None else f"{number(100 * error, 1)}{THIN}points",
        "held_out": n,
        "pairs": votes.get("pairs"),
        "shown": votes.get("shown"),
        "ties": votes.get("ties"),
        "seconds": seconds(finite(found.get("train_seconds"))),
    }


def examples(rows: Sequence[Row], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Prompts with every method's answer."""
    return [
        {
            "prompt": row.get("prompt", ""),
            "kind": KINDS.get(str(row.get("kind")), str(row.get("kind"))),
            "tone": str(row.get("kind")).replace("_", "-") if row.get("kind") in KINDS else "safe",
            "answers": [
                {
                    "label": labels.get(name, label(name, {})),
                    "family": figures.family(name),
                    "text": answer.get("text") or "",
                    "gold": bare(value_of(answer.get("gold")), PLAIN),
                    "proxy": bare(value_of(answer.get("proxy")), SCORE),
                }
                for name, answer in (row.get("answers") or {}).items()
            ],
        }
        for row in rows
    ]


def steps(summary: Row) -> list[dict[str, Any]]:
    """What each step took, with a bar as long as its share of the longest."""
    found = [(step, finite(step.get("seconds"))) for step in summary.get("steps") or []]
    longest = max([s for _, s in found if s is not None], default=0.0) or 1.0
    return [
        {
            "title": capital(str(step.get("title") or step.get("name"))),
            "seconds": seconds(took),
            "width": f"{100 * (took or 0.0) / longest:.1f}%",
        }
        for step, took in found
    ]


def data_check(found: Row) -> Row | None:
    """What the check of the votes found, in a few measures; the rest is on the data's own page."""
    if not found:
        return None
    agreed: Row = found.get("agreement") or {}
    shared = agreed.get("shared") or 0
    auc = "AUC: 0.5 is how the model itself would write"
    measures = [
        ("Raters say the same", agreed.get("agree"), PERCENT, f"of the time, on {shared:,} pairs judged twice"),
        ("Told by length alone", found.get("length_only"), PERCENT, f"of the pairs, where chance is 50{THIN}%"),
        ("Pairs against the SFT model", found.get("auc"), PLAIN, auc),
    ]
    return {
        "page": found["page"],
        "warnings": found["warnings"],
        "meaning": found.get("meaning") or "",
        "measures": [
            {"label": label, "main": bare(v, unit), "interval": interval(v, unit), "bar": bar(v), "hint": hint}
            for label, raw, unit, hint in measures
            for v in (value_of(raw),)
        ],
    }


def facts(summary: Row) -> dict[str, Any]:
    """What the page says about the run as a whole."""
    world = summary.get("world") or {}
    parameters, total, memory = (
        finite(x) for x in (world.get("parameters"), summary.get("seconds"), summary.get("peak_rss_gb"))
    )
    return {
        "seed": summary.get("seed", DASH),
        "parameters": DASH if parameters is None else f"{number(parameters / 1e6, 1)} million",
        "prompts_train": world.get("prompts_train", DASH),
        "prompts_held_out": world.get("prompts_held_out", DASH),
        "total": DASH if total is None else f"{seconds(total)} ({number(total / 60, 1)} minutes)",
        "memory": DASH if memory is None else f"{number(memory, 1)}{THIN}GB",
    }
