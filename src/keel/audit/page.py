"""Page of `keel data check`: one HTML file that opens offline, written from the figures of the check alone.

`page.html` is the layout; this file turns figures into text, cells and drawings. Missing figures are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from keel.pages.drawing import TOKENS, Value, bars, series, stack, twice, value_of
from keel.pages.numbers import DASH, PERCENT, PLAIN, THIN, TableCells, Unit, bar, figure, full, interval, number, page
from keel.store.survey import outcome_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = {"refused": "Refused", "warning": "Warning", "note": "Note", "good": "Good"}
FATES = {"dropped": "left out", "neutral": "makes no pair", "notes": "used, with a note"}
_KINDS = {"email": "e-mail address", "phone": "phone number", "card": "card number", "iban": "IBAN", "ip": "IP address"}
MOST = 12
"""Lines shown of a long table; the others are counted in one line."""


def write_page(figures: TableCells, file: Path) -> None:
    """Render the figures of a check into one self-contained HTML file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_render(figures), encoding="utf-8")


def _render(figures: TableCells) -> str:
    """Return the page as text."""
    survey: TableCells = figures.get("survey") or {}
    return page(
        Path(__file__).with_name("page.html"),
        headline=_headline(figures),
        facts=_facts(figures),
        tiles=tiles(figures),
        findings=[{**found, "label": LEVELS[found["level"]], "rows": _rows_of(found)} for found in figures["findings"]],
        fates=fates(figures["rows"]),
        cues=[cue_line(cue) for cue in figures.get("cues") or [] if cue["differ"]],
        outcomes=outcomes(survey),
        raters=most([(rater["name"] or "not named", rater["judgments"]) for rater in survey.get("raters") or []]),
        models=most([(name or "not named", n) for name, n in (survey.get("models") or {}).items()]),
        agreement=[_agreement(one) for one in figures.get("agreement") or []],
        sides=figures.get("sides_recorded"),
        sources=sources(figures.get("distribution") or {}),
        logps=logps(figures.get("distribution") or {}),
        near=figures["near_duplicates"],
        leak=figures.get("leak"),
        personal=[(_KINDS[kind], found["count"], _rows_of(found)) for kind, found in figures["personal"].items()],
        tokens=[(name, t) for name, t in (figures.get("tokens") or {}).items() if isinstance(t, Mapping)],
        cut=(figures.get("tokens") or {}).get("cut"),
        drawings=_drawings(figures),
        command=command(figures),
    )


# --- words ----------------------------------------------------------------------------------------


def _headline(figures: TableCells) -> str:
    """Return one line that says whether to train on these data."""
    levels = [found["level"] for found in figures["findings"]]
    warnings = levels.count("warning")
    if "refused" in levels:
        return "Not fit to train on as they are"
    if warnings:
        return f"Fit to train on, with {'a warning' if warnings == 1 else f'{warnings} warnings'}"
    return "Fit to train on"


def _facts(figures: TableCells) -> TableCells:
    """Return the facts about the data for the page's header."""
    nouns = {"pairs": ("pair", "pairs"), "demonstrations": ("demonstration", "demonstrations")}
    one, many = nouns.get(figures["kind"], ("prompt", "prompts"))
    used, prompts = figures["rows"]["used"], figures["prompts"]
    return {
        "data": figures["data"],
        "format": figures["format"],
        "used": f"{used:,} {one if used == 1 else many}",
        "prompts": f"{prompts:,} {'prompt' if prompts == 1 else 'prompts'}",
        "hash": str(figures.get("data_hash", ""))[:16],
        "model": figures.get("model"),
        "judgments": figures.get("judgments"),
    }


def tiles(figures: TableCells) -> list[TableCells]:
    """Return the figures to look at first, each with its meaning and, if it lies between 0 and 1, a bar."""
    rows = figures["rows"]
    dropped = sum(count for count, _ in rows["dropped"].values())
    share = f"of {rows['read']:,} read, {100 * dropped / rows['read']:.2g}{THIN}%"
    found: list[TableCells] = [
        {"title": "Rows left out", "main": f"{dropped:,}", "interval": "", "what": share, "bar": ""}
    ]
    length: TableCells = figures.get("length") or {}
    if value := value_of(length.get("length_only")):
        words = f"of preferences; 62{THIN}% in people’s votes at large"
        found.append(_tile("Predicted by length alone", value, words, PERCENT))
    for one in figures.get("agreement") or []:
        if one["shared"] and len(found) < 4:
            found.append(
                _tile("Raters’ agreement", value_of(one["alpha"]), f"Krippendorff’s alpha, {one['dimension']}")
            )
    if distribution := figures.get("distribution"):
        words = "AUC: 0.5 is how the model itself would write, 1 is wholly different"
        found.append(_tile("Pairs against the model", value_of(distribution["auc"]), words))
    return found


def _tile(title: str, value: Value | None, what: str, unit: Unit = PLAIN) -> TableCells:
    """Return one figure to look at first."""
    return {
        "title": title,
        "main": figure(value, unit),
        "interval": interval(value, unit),
        "what": what,
        "bar": bar(value),
    }


def _rows_of(found: TableCells) -> str:
    """Return `rows 3, 9, …` for an item that lists its first rows."""
    rows = found["rows"]
    more = ", …" if found.get("count", 0) > len(rows) or len(rows) == 10 else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {', '.join(map(str, rows))}{more}" if rows else ""


def fates(rows: TableCells) -> list[TableCells]:
    """Return one line per reason, the most frequent first."""
    found: list[TableCells] = []
    for table, fate in FATES.items():
        for what, (count, first) in sorted(rows[table].items(), key=lambda item: -item[1][0]):
            where = _rows_of({"rows": first, "count": count})
            found.append({"fate": fate, "what": what, "count": f"{count:,}", "rows": where})
    return found


def cue_line(cue: TableCells) -> TableCells:
    """Return the line of a surface cue: the share of answers that have it, and how often a guess by it is right."""
    is_number = cue["name"] == "longer"
    return {
        "name": cue["name"],
        "chosen": DASH if is_number else figure(value_of(cue["chosen"]), PERCENT),
        "rejected": DASH if is_number else figure(value_of(cue["rejected"]), PERCENT),
        "differ": f"{cue['differ']:,}",
        "more": full(value_of(cue["more"]), PERCENT) if cue["differ"] else DASH,
        "right": full(value_of(cue["right"]), PERCENT),
        "bar": bar(value_of(cue["right"])),
    }


def outcomes(survey: TableCells) -> TableCells:
    """Return judgments by dimension and outcome, for a table."""
    heads, lines = outcome_table(survey.get("outcomes") or {})
    return {
        "columns": heads,
        "lines": lines,
        "first_wins": full(value_of(survey.get("first_wins")), PERCENT),
        "ai": ai_feedback(value_of(survey.get("ai_feedback"))),
        "retracted": survey.get("retracted", 0),
    }


def ai_feedback(share: Value | None) -> str:
    """Say what share of the labels are a model's. It is counted, so it has no interval."""
    if share is None or share.mean == 0:
        return "No label is a model’s."
    return f"{figure(share, PERCENT)} of the labels are a model’s: what is trained on them is RLAIF."


def most(rows: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
    """Return the most frequent entries, and the others as one line."""
    ordered = sorted(rows, key=lambda row: (-row[1], row[0]))
    shown = [(name, f"{n:,}") for name, n in ordered[:MOST]]
    others = ordered[MOST:]
    return [*shown, (f"{len(others):,} others", f"{sum(n for _, n in others):,}")] if others else shown


def _agreement(one: TableCells) -> TableCells:
    """Return the raters' agreement in a dimension, with the pairs of raters who share most."""
    pairs = [
        (
            f"{p['first'] or 'not named'}, {p['second'] or 'not named'}",
            f"{p['shared']:,}",
            number(p["agree"], 3),
            p["kappa"],
        )
        for p in one["raters"][:MOST]
    ]
    return {
        "dimension": one["dimension"],
        "things": f"{one['things']:,}",
        "shared": one["shared"],
        "agree": full(value_of(one["agree"]), PERCENT),
        "alpha": full(value_of(one["alpha"])),
        "pairs": [(*pair[:3], figure(value_of(pair[3]), PLAIN, 3)) for pair in pairs],
    }


# --- against the model ----------------------------------------------------------------------------


def sources(found: TableCells) -> list[TableCells]:
    """Return a line per source and, if there are several, one for all together."""
    if not found:
        return []
    several = len(found["sources"]) > 1
    lines = [*found["sources"], {**found, "name": "all together"}] if several else found["sources"]
    words = {"on": "on-distribution", "off": "off-distribution", "between": "in between", "too few": "too few pairs"}
    return [
        {
            "name": line["name"],
            "pairs": f"{line['pairs']:,}",
            "verdict": words[line["verdict"]],
            "tone": line["verdict"].replace(" ", "-"),
            "auc": full(value_of(line["auc"])),
            "bar": bar(value_of(line["auc"])),
            "nats": full(nats) if (nats := value_of(line["nats_per_answer"])) and nats.mean > 0 else "0",
            "meaning": line["meaning"],
        }
        for line in lines
    ]


def logps(found: TableCells) -> list[tuple[str, str]]:
    """Return the log-probability per token under the model, of the pairs' answers and of its own."""
    names = {"chosen": "chosen answers", "rejected": "rejected answers", "own": "the model’s own answers"}
    return [(words, full(value_of(found["logp_per_token"][key]))) for key, words in names.items()] if found else []


# --- drawings -------------------------------------------------------------------------------------


def _drawings(figures: TableCells) -> dict[str, Markup]:
    """Draw the page's figures; one without data is empty."""
    found = {"length": "", "ratios": ""}
    steps = (figures.get("length") or {}).get("by_difference") or []
    if len(steps) > 1:
        found["length"] = _by_difference(steps)
    if histogram := (figures.get("distribution") or {}).get("histogram"):
        found["ratios"] = ratios(histogram)
    return {name: Markup(drawing) for name, drawing in found.items()}


def _by_difference(steps: Sequence[TableCells]) -> str:
    """Draw how often the longer answer is chosen, over how much longer it is."""

    def draw(figure: Figure, narrow: bool) -> None:
        axes = stack(figure)[0]
        line = series([{**step, "at": at} for at, step in enumerate(steps)], "at", "longer_wins")
        axes.axhline(0.5, color=TOKENS["muted"], lw=1, ls=(0, (4, 3)))
        bars(axes, line.x, line.mean, line.low, line.high, "reward")
        axes.plot(line.x, line.mean, "o-", color=TOKENS["reward"], lw=1.4, ms=7, mec=TOKENS["card"])
        axes.set_xticks(range(len(steps)), [_times(step, narrow) for step in steps])
        axes.set(ylim=(0, 1), title="the longer answer is the chosen one: share of pairs")
        axes.set_xlabel("times as long as the other answer, and pairs")

    return twice("length", draw, extra=-40)


def _times(step: TableCells, narrow: bool) -> str:
    low, high = step["low"], step["high"]
    span = f"> {low:.3g}" if high is None else f"≤ {high:.3g}" if narrow or low == 1 else f"{low:.3g} to {high:.3g}"
    return f"{span}\n{step['pairs']:,}"


def ratios(histogram: TableCells) -> str:
    """Draw the pairs and the model's own, by how much likelier a model fitted to the pairs finds them."""
    edges = np.array(histogram["edges"], dtype=np.float64)

    def draw(figure: Figure, narrow: bool) -> None:
        axes = stack(figure)[0]
        for name, colour in (("own", "sft"), ("pairs", "dpo")):
            counts = np.array(histogram[name], dtype=np.float64)
            share = counts / max(1.0, counts.sum())
            axes.stairs(share, edges, color=TOKENS[colour], lw=1.8)
            axes.stairs(share, edges, color=TOKENS[colour], fill=True, alpha=0.16)
        axes.set_title("share of pairs")
        axes.set_xlabel("unlike the model →" if narrow else "log-ratio of a pair, nats: to the right, unlike the model")
        axes.set_ylim(bottom=0)

    return twice("ratios", draw, extra=-60)


def command(figures: TableCells) -> str:
    """Return the command that writes this page again."""
    parts = [f"keel data check --data {figures['data']}"]
    if leak := figures.get("leak"):
        parts.append(f"--eval-data {leak['eval_data']}")
    if model := figures.get("model"):
        parts.append(f"--model {model}")
    return " ".join([*parts, "--page FILE.html"])
