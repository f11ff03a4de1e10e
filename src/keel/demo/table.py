"""The report's table: a line for each measure, a cell for each method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from keel.pages.drawing import value_of
from keel.pages.numbers import (
    PERCENT,
    PLAIN,
    TableCells,
    Unit,
    bar,
    capital,
    digits_for,
    figure,
    finite_mean,
    interval,
    number,
    seconds,
    times,
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure as printed, with its interval, a note and, if it lies between 0 and 1, a bar."""

    main: str
    interval: str = ""
    note: str = ""
    bar: str = ""


def table(rows: TableCells, weights: TableCells) -> list[dict[str, Any]]:
    """Return groups of lines; a line is a measure with one cell per method."""
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


def line(
    title: str, hint: str, rows: TableCells, path: tuple[str, ...], unit: Unit, bars: bool = False
) -> dict[str, Any]:
    """Return one measure of every method, all with the same number of digits."""
    values = [value_of(_at(row, path)) for row in rows.values()]
    digits = digits_for(values, unit)
    cells = [Cell(figure(v, unit, digits), interval(v, unit, digits), bar=bar(v) if bars else "") for v in values]
    return {"label": title, "hint": hint, "cells": cells}


def _at(row: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        row = row.get(key) if isinstance(row, Mapping) else None
    return row


def dimensions(rows: TableCells, weights: TableCells) -> list[dict[str, Any]]:
    """Return one line of the table per dimension of gold, with its weight."""
    names = list(weights) or sorted({d for row in rows.values() for d in row.get("dimensions") or {}})
    found = []
    for name in names:
        weight = finite_mean(weights.get(name))
        hint = "" if weight is None else f"weight in gold {number(weight, 2)}"
        found.append(line(capital(name), hint, rows, ("dimensions", name), PLAIN, bars=True))
    return found


def kl_line(rows: TableCells) -> dict[str, Any]:
    """Return the line of KL; best-of-N's is a computed bound."""
    found = line("KL to SFT", "how far its answers moved away, in nats per answer", rows, ("kl",), PLAIN)
    for i, row in enumerate(rows.values()):
        cell = found["cells"][i]
        if is_bound(row):
            found["cells"][i] = replace(cell, main=f"≤ {figure(value_of(row['kl']))}", note="upper bound")
        elif cell.main.strip("0.") == "" and not cell.interval:
            found["cells"][i] = replace(cell, main="0")
    return found


def is_bound(row: TableCells) -> bool:
    """Say whether a KL was computed and not measured, as best-of-N's: above zero, with an interval of width zero."""
    kl = value_of(row.get("kl"))
    return kl is not None and kl.low == kl.high and kl.mean > 0


def cost_lines(rows: TableCells) -> list[dict[str, Any]]:
    """Return the lines of what each method costs to train and to serve."""
    train = [cost_cell(row) for row in rows.values()]
    serve = [Cell(times(finite_mean(row.get("serve_cost_ratio")))) for row in rows.values()]
    return [
        {"label": "Training", "hint": "the step’s own time; every method builds on the SFT model", "cells": train},
        {"label": "Serving cost", "hint": "computation per answer, in units of the SFT model’s", "cells": serve},
    ]


def cost_cell(row: TableCells) -> Cell:
    """Return the seconds of training, with the reward model's beside them if the method needs one."""
    reward = finite_mean(row.get("reward_model_seconds"))
    return Cell(
        seconds(finite_mean(row.get("train_seconds"))),
        note="" if reward is None else f"+ {seconds(reward)} reward model",
    )
