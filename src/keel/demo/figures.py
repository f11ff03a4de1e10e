"""The figures of the demo's report. Their tools and shared pieces are in `drawing`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keel.pages.drawing import (
    MARKERS,
    PANEL,
    SQUARE,
    TOKENS,
    Series,
    band,
    bars,
    figure_of,
    series,
    smooth,
    stack,
    svg,
    twice,
    value_of,
)
from keel.stats import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KL_LABEL = "KL to the SFT model, nats per answer (axis by square root)"
KL_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


# --- the figures ----------------------------------------------------------------------------------


def reward_kl(summary: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Draw gold over KL for every method: finished methods as named points, their paths there as lines."""
    curves, methods = summary.get("curves", {}), summary.get("methods", {})
    paths = {"ppo": curves.get("ppo") or [], "best-of-n": curves.get("best_of_n") or []}

    def draw(figure: Figure, narrow: bool) -> None:
        axes = stack(figure)[0]
        _sqrt_axis(axes, [*_kls(paths["ppo"]), *_kls(paths["best-of-n"]), *_kls(list(methods.values()))], narrow)
        for method, points in paths.items():
            line = series(points, "kl", "gold")
            axes.plot(line.x, line.mean, color=TOKENS[method], lw=1.6, alpha=0.75)
            axes.plot(line.x, line.mean, ".", color=TOKENS[method], ms=5, alpha=0.75)
        _label_n(axes, series(paths["best-of-n"], "kl", "gold"), narrow)
        for name, row in methods.items():
            _point(axes, family(name), labels.get(name, name), row, 8 if narrow else 10)
        axes.set_title("mean gold")

    return twice("reward-kl", draw, extra=30)


def gold_and_proxy(summary: Mapping[str, Any]) -> str:
    """Draw two panels over one KL axis: the answers' worth, and the reward model's estimate of it."""
    curves = summary.get("curves", {})
    paths = {"best-of-n": curves.get("best_of_n") or [], "ppo": curves.get("ppo") or []}

    def draw(figure: Figure, narrow: bool) -> None:
        panels = stack(figure, 2)
        for axes, key, title in zip(panels, ("gold", "proxy"), TITLES, strict=True):
            for method, points in paths.items():
                band(axes, series(points, "kl", key), method)
            axes.set_title(title)
        _label_n(panels[0], series(paths["best-of-n"], "kl", "gold"), narrow)
        _sqrt_axis(panels[-1], [k for points in paths.values() for k in _kls(points)], narrow)

    return twice("gold-proxy", draw, extra=120)


TITLES = ("gold: what the answers are worth, from 0 to 1", "proxy: the reward model’s score, in its own units")


def overoptimisation(summary: Mapping[str, Any]) -> str:
    """Draw gold, proxy and KL over the training steps of the hacked run, with a line at gold's peak."""
    found = summary.get("curves", {}).get("overoptimisation") or {}
    points = found.get("points") or []
    peak = value_of((found.get("peak") or {}).get("step"))

    def draw(figure: Figure, narrow: bool) -> None:
        panels = stack(figure, 3)
        titles = (*TITLES, "KL to the SFT model, in nats per answer")
        for axes, key, title in zip(panels, ("gold", "proxy", "kl"), titles, strict=True):
            band(axes, series(points, "step", key), "ppo")
            axes.set_title(title)
            if peak:
                axes.axvline(peak.mean, color=TOKENS["muted"], lw=1, ls=(0, (4, 3)))
        if peak:
            panels[0].annotate(
                "gold’s peak",
                (peak.mean, 0.03),
                (5, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                size=11,
            )
        panels[-1].set_xlabel("training step")
        panels[-1].locator_params(axis="x", integer=True)

    return twice("overoptimisation", draw, extra=150)


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """Draw how often people preferred the first answer, against the reward model's prediction of it."""
    with figure_of(SQUARE) as figure:
        axes = stack(figure)[0]
        axes.plot([0, 1], [0, 1], color=TOKENS["muted"], lw=1, ls=(0, (4, 3)))
        path = series(bins, "predicted", "observed")
        bars(axes, path.x, path.mean, path.low, path.high, "reward")
        axes.plot(path.x, path.mean, "o-", color=TOKENS["reward"], lw=1.4, ms=6, mec=TOKENS["card"])
        axes.set(
            xlim=(0, 1),
            ylim=(-0.02, 1.02),
            xlabel="predicted by the reward model",
            title="first answer preferred: share of votes",
        )
        axes.set_aspect("equal")
        return svg(figure, "reliability")


def learning_curve(
    rows: Sequence[Mapping[str, Any]], key: str, held_out: str, colour: str, chance: float | None
) -> str:
    """Draw one figure of a run over its steps, smoothed if it is long; empty if the run did not log it."""
    line, dots = series(rows, "step", key), series(rows, "step", held_out)
    if len(line.x) == 0 and len(dots.x) == 0:
        return ""
    with figure_of(PANEL) as figure:
        axes = stack(figure)[0]
        if chance is not None:
            axes.axhline(chance, color=TOKENS["muted"], lw=1, ls=(0, (4, 3)))
        long = len(line.x) > 40
        axes.plot(line.x, line.mean, color=TOKENS[colour], lw=0.7 if long else 1.8, alpha=0.35 if long else 1)
        if long:
            axes.plot(line.x, smooth(line.mean, len(line.x) // 15), color=TOKENS[colour], lw=1.8)
        axes.plot(dots.x, dots.mean, "o", color=TOKENS[colour], ms=5.5, mec=TOKENS["card"], mew=1.2)
        axes.margins(x=0.02, y=0.12)
        axes.locator_params(axis="y", nbins=4)
        axes.locator_params(axis="x", nbins=6, integer=True)
        return svg(figure, f"{colour}-{re.sub('[^a-z]+', '-', key.lower())}")


def family(name: str) -> str:
    """Return the name of a method's colour; every best-of-N has the same."""
    return "best-of-n" if name.startswith("best_of") else name if name in TOKENS else "muted"


# --- pieces ---------------------------------------------------------------------------------------


def _point(axes: Axes, method: str, text: str, row: Mapping[str, Any], size: float) -> None:
    """Draw a finished method with its name, and with intervals both ways."""
    kl, gold = value_of(row.get("kl")), value_of(row.get("gold_mean"))
    if kl is None or gold is None:
        return
    x, y = np.array([kl.mean]), np.array([gold.mean])
    if gold.bounded:
        bars(axes, x, y, np.array([gold.low]), np.array([gold.high]), method)
    if kl.bounded and kl.high > kl.low:
        axes.plot([max(0.0, kl.low), kl.high], [gold.mean] * 2, color=TOKENS[method], lw=1.6)
    axes.plot(x, y, MARKERS.get(method, "o"), color=TOKENS[method], ms=size, mec=TOKENS["card"], mew=1.5, zorder=5)
    near, side = ((11, -5), "left") if kl.mean == 0 else ((-9, 7), "right")
    axes.annotate(text, (kl.mean, gold.mean), near, textcoords="offset points", ha=side, color=TOKENS["ink"], size=11.5)


def _label_n(axes: Axes, line: Series, narrow: bool) -> None:
    """Write N below every other point of best-of-N's path; N = 1 is the SFT model itself."""
    for x, y, point in list(zip(line.x, line.mean, line.points, strict=True))[2::2]:
        text = f"N = {point['n']}" if x == line.x[-1] and not narrow else f"{point['n']}"
        axes.annotate(text, (x, y), (4, -14), textcoords="offset points", size=10.5)


def _sqrt_axis(axes: Axes, kls: Sequence[float], narrow: bool) -> None:
    """Scale the KL axis so that small distances are seen, too: reward grows about as the square root of KL."""
    from matplotlib.ticker import NullLocator

    end = max([*kls, 1.0])
    axes.set_xscale("function", functions=(_root, np.square))
    axes.set_xlim(-0.0005 * end, end * 1.06)
    ticks = [t for t in KL_TICKS if t <= end * 1.06 and not (narrow and t == 0.5)]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(KL_LABEL if not narrow else "KL to the SFT model, nats per answer")


def _root(x: Floats) -> Floats:
    """Return the square root; of a negative number, the mirror image below zero, as a KL estimate may be negative."""
    return np.sign(x) * np.sqrt(np.abs(x))


def _kls(points: Sequence[Mapping[str, Any]]) -> list[float]:
    return [v.high if v.bounded else v.mean for p in points if (v := value_of(p.get("kl")))]
