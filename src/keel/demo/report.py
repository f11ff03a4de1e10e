"""The demo's report: one HTML file that opens offline, written from `summary.json` and nothing else.

`report.html` is the layout, `figures` and `curves` draw, `sentences` says what the figures mean, and `table` and this
file turn them into cells. A value that is missing or not finite is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from keel import stats
from keel.demo import figures
from keel.demo.curves import learning_panels
from keel.demo.sentences import CONTENDERS, turning_points, verdict, worse_than_sft
from keel.demo.table import cost_cell, is_bound, table
from keel.pages.drawing import value_of
from keel.pages.numbers import (
    DASH,
    PERCENT,
    PLAIN,
    SCORE,
    THIN,
    TableCells,
    bar,
    capital,
    figure,
    finite_mean,
    full,
    interval,
    number,
    page,
    seconds,
    times,
)

_LABELS = {"sft": "SFT", "dpo": "DPO", "ppo": "PPO"}
EXPLAINED = {
    "dpo": "Direct preference optimisation: trains the model on the votes themselves.",
    "ppo": "Proximal policy optimisation: the model tries answers, and what the reward model likes is reinforced.",
    "best_of_n": "Leaves the model as it is: draws N answers and keeps the one that the reward model likes best.",
}
_KINDS = {
    "safe": "everyday wish",
    "unsafe": "unsafe: should be declined",
    "looks_unsafe": "only looks unsafe: should be granted",
}


def write_report(summary: TableCells, file: Path) -> None:
    """Render the summary of a demo into one self-contained HTML file."""
    file.write_text(render_report(summary), encoding="utf-8")


def render_report(summary: TableCells) -> str:
    """Return the page as text."""
    rows: TableCells = summary.get("methods") or {}
    labels = {name: label(name, row) for name, row in rows.items()}
    return page(
        Path(__file__).with_name("report.html"),
        verdict=verdict(rows, labels),
        tiles=[_tile(name, rows, labels) for name in CONTENDERS if name in rows],
        methods=[{"label": labels[name], "family": figures.family(name)} for name in rows],
        table=table(rows, summary.get("weights") or {}),
        turns=turning_points(summary),
        figures=_drawings(summary, labels),
        learning=learning_panels(summary.get("learning") or {}),
        data=data_check(summary.get("data") or {}),
        reward=_reward_model(summary),
        examples=_examples(summary.get("examples") or [], labels),
        steps=steps(summary),
        facts=_facts(summary),
    )


def label(name: str, row: TableCells) -> str:
    """Return a method's name for people; N of `best_of_n` is read from its KL, which fixes it."""
    if name in _LABELS or not name.startswith("best_of_"):
        return _LABELS.get(name, name)
    n, kl = name.removeprefix("best_of_"), value_of(row.get("kl"))
    if not n.isdigit() and kl:
        n = next((str(m) for m in range(1, 1025) if abs(stats.best_of_n_kl(m) - kl.mean) < 1e-9), "N")
    return f"best-of-{n.upper()}"


def _tile(name: str, rows: TableCells, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return a method at a glance."""
    row = rows[name]
    win = value_of(row.get("gold_win_rate"))
    return {
        "label": capital(labels[name]),
        "family": figures.family(name),
        "what": EXPLAINED[name],
        "flags": [f"{capital(words)}: {numbers}" for words, numbers in worse_than_sft(name, rows)],
        "win": figure(win, PERCENT),
        "interval": interval(win, PERCENT),
        "bar": bar(win),
        "gold": full(value_of(row.get("gold_mean"))),
        "sft_gold": figure(value_of(rows.get("sft", {}).get("gold_mean"))),
        "kl": ("≤ " if is_bound(row) else "") + full(value_of(row.get("kl"))),
        "training": cost_cell(row),
        "serving": times(finite_mean(row.get("serve_cost_ratio"))),
    }


def _drawings(summary: TableCells, labels: Mapping[str, str]) -> dict[str, Markup]:
    """Draw the large figures."""
    curves = summary.get("curves") or {}
    summary = {**summary, "curves": curves, "methods": summary.get("methods") or {}}
    return {
        "reward_kl": Markup(figures.reward_kl(summary, labels)),
        "gold_and_proxy": Markup(figures.gold_and_proxy(summary)),
        "overoptimisation": Markup(figures.overoptimisation(summary)),
        "reliability": Markup(figures.reliability((summary.get("reward_model") or {}).get("calibration") or [])),
    }


def _reward_model(summary: TableCells) -> dict[str, Any]:
    """Return accuracy beside its baselines, calibration, and the quality of the votes."""
    found, votes = summary.get("reward_model") or {}, summary.get("votes") or {}
    accuracy, longer = value_of(found.get("accuracy")), value_of(found.get("accuracy_of_longer"))
    error = finite_mean(found.get("calibration_error"))
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
        {"label": title, "main": figure(v, PERCENT), "interval": interval(v, PERCENT), "bar": bar(v), "hint": hint}
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
        "seconds": seconds(finite_mean(found.get("train_seconds"))),
    }


def _examples(rows: Sequence[TableCells], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return prompts with every method's answer."""
    return [
        {
            "prompt": row.get("prompt", ""),
            "kind": _KINDS.get(str(row.get("kind")), str(row.get("kind"))),
            "tone": str(row.get("kind")).replace("_", "-") if row.get("kind") in _KINDS else "safe",
            "answers": [
                {
                    "label": labels.get(name, label(name, {})),
                    "family": figures.family(name),
                    "text": answer.get("text") or "",
                    "gold": figure(value_of(answer.get("gold")), PLAIN),
                    "proxy": figure(value_of(answer.get("proxy")), SCORE),
                }
                for name, answer in (row.get("answers") or {}).items()
            ],
        }
        for row in rows
    ]


def steps(summary: TableCells) -> list[dict[str, Any]]:
    """Return the seconds of each step, with a bar as long as its share of the longest."""
    found = [(step, finite_mean(step.get("seconds"))) for step in summary.get("steps") or []]
    longest = max([s for _, s in found if s is not None], default=0.0) or 1.0
    return [
        {
            "title": capital(str(step.get("title") or step.get("name"))),
            "seconds": seconds(took),
            "width": f"{100 * (took or 0.0) / longest:.1f}%",
        }
        for step, took in found
    ]


def data_check(found: TableCells) -> TableCells | None:
    """Return a few measures of the check of the votes; the rest is on the data's own page."""
    if not found:
        return None
    agreed: TableCells = found.get("agreement") or {}
    shared = agreed.get("shared") or 0
    auc = "AUC: 0.5 is how the model itself would write"
    measures = [
        ("Raters agree", agreed.get("agree"), PERCENT, f"of the time, on {shared:,} pairs judged twice"),
        ("Predicted by length alone", found.get("length_only"), PERCENT, f"of preferences; chance is 50{THIN}%"),
        ("Pairs against the SFT model", found.get("auc"), PLAIN, auc),
    ]
    return {
        "page": found["page"],
        "warnings": found["warnings"],
        "meaning": found.get("meaning") or "",
        "measures": [
            {"label": label, "main": figure(v, unit), "interval": interval(v, unit), "bar": bar(v), "hint": hint}
            for label, raw, unit, hint in measures
            for v in (value_of(raw),)
        ],
    }


def _facts(summary: TableCells) -> dict[str, Any]:
    """Return the facts about the run as a whole."""
    world = summary.get("world") or {}
    parameters, total, memory = (
        finite_mean(x) for x in (world.get("parameters"), summary.get("seconds"), summary.get("peak_rss_gb"))
    )
    return {
        "seed": summary.get("seed", DASH),
        "parameters": DASH if parameters is None else f"{number(parameters / 1e6, 1)} million",
        "prompts_train": world.get("prompts_train", DASH),
        "prompts_held_out": world.get("prompts_held_out", DASH),
        "total": DASH if total is None else f"{seconds(total)} ({number(total / 60, 1)} minutes)",
        "memory": DASH if memory is None else f"{number(memory, 1)}{THIN}GB",
    }
