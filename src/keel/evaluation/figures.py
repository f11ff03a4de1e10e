"""The report's figures: inline SVG that takes its colours and its type from the page it stands in.

matplotlib draws in stand-in colours, and `_svg` turns each into a CSS variable, so that one drawing serves a light and
a dark page. Text stays text. Left out: scripts, tooltips, legends (the page writes them beside the figure).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

TOKENS = {
    name: f"#0101{i:02x}"
    for i, name in enumerate(
        ("ink", "muted", "line", "card", "sft", "dpo", "ppo", "best-of-n", "reward", "pretrain"), start=1
    )
}
"""Stand-in colours, one for each CSS variable of the page."""
MARKERS = {"sft": "o", "dpo": "s", "ppo": "D", "best-of-n": "^"}
WIDE, NARROW, PANEL, SQUARE = (880, 400), (360, 330), (300, 168), (400, 360)
"""Sizes in CSS pixels; what needs the page's width is drawn twice, for a desk and for a phone."""
KL_LABEL = "KL to the SFT model, nats per answer (axis by square root)"
KL_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "keel",
    "font.size": 12,
    "text.color": TOKENS["muted"],
    "axes.labelcolor": TOKENS["muted"],
    "axes.labelsize": 12,
    "axes.labelpad": 7,
    "axes.titlecolor": TOKENS["ink"],
    "axes.titlesize": 12.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.facecolor": "none",
    "axes.edgecolor": TOKENS["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": TOKENS["line"],
    "xtick.color": TOKENS["muted"],
    "ytick.color": TOKENS["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "figure.constrained_layout.hspace": 0.09,
    "savefig.facecolor": "none",
    "lines.solid_capstyle": "round",
}


# --- values ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Value:
    """A figure of the summary that is there: its mean, and its interval where it has one (else NaN)."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    n: int | None = None

    @property
    def bounded(self) -> bool:
        """Whether an interval is known, be it of width zero."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def value_of(raw: object) -> Value | None:
    """Reads `{mean, low, high, n}` or a plain number; None where there is nothing finite to show."""
    if isinstance(raw, Mapping):
        mean, low, high = (_float(raw.get(key)) for key in ("mean", "low", "high"))
        n = raw.get("n")
        return Value(mean, low, high, n if isinstance(n, int) else None) if math.isfinite(mean) else None
    mean = _float(raw)
    return Value(mean) if math.isfinite(mean) else None


def _float(raw: object) -> float:
    return float(raw) if isinstance(raw, int | float) else math.nan


@dataclass(frozen=True, slots=True)
class Series:
    """A path: where its points stand, and how far their intervals reach; parallel arrays."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    points: list[Mapping[str, Any]]
    """What each point was read from."""


def series(points: Sequence[Mapping[str, Any]], x: str, y: str) -> Series:
    """The points at which both figures are known."""
    found = [(p, a, b) for p in points if (a := value_of(p.get(x))) and (b := value_of(p.get(y)))]
    columns = np.array(
        [(a.mean, b.mean, *((b.low, b.high) if b.bounded else (b.mean, b.mean))) for _, a, b in found], dtype=np.float64
    ).reshape(-1, 4)
    return Series(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3], [p for p, *_ in found])


# --- the figures ----------------------------------------------------------------------------------


def reward_kl(summary: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Gold over KL with every method on it: finished methods as named points, their ways there as lines."""
    curves, methods = summary.get("curves", {}), summary.get("methods", {})
    paths = {"ppo": curves.get("ppo") or [], "best-of-n": curves.get("best_of_n") or []}

    def draw(figure: Figure, narrow: bool) -> None:
        axes = _axes(figure)[0]
        _sqrt_axis(axes, [*_kls(paths["ppo"]), *_kls(paths["best-of-n"]), *_kls(list(methods.values()))], narrow)
        for method, points in paths.items():
            line = series(points, "kl", "gold")
            axes.plot(line.x, line.mean, color=TOKENS[method], lw=1.6, alpha=0.75)
            axes.plot(line.x, line.mean, ".", color=TOKENS[method], ms=5, alpha=0.75)
        _label_n(axes, series(paths["best-of-n"], "kl", "gold"), narrow)
        for name, row in methods.items():
            _point(axes, family(name), labels.get(name, name), row, 8 if narrow else 10)
        axes.set_title("mean gold")

    return _twice("reward-kl", draw, extra=30)


def gold_and_proxy(summary: Mapping[str, Any]) -> str:
    """Two panels over one KL axis: what the answers are worth, and what the reward model says they are."""
    curves = summary.get("curves", {})
    paths = {"best-of-n": curves.get("best_of_n") or [], "ppo": curves.get("ppo") or []}

    def draw(figure: Figure, narrow: bool) -> None:
        panels = _axes(figure, 2)
        for axes, key, title in zip(panels, ("gold", "proxy"), TITLES, strict=True):
            for method, points in paths.items():
                _band(axes, series(points, "kl", key), method)
            axes.set_title(title)
        _label_n(panels[0], series(paths["best-of-n"], "kl", "gold"), narrow)
        _sqrt_axis(panels[-1], [k for points in paths.values() for k in _kls(points)], narrow)

    return _twice("gold-proxy", draw, extra=120)


TITLES = ("gold: what the answers are worth, from 0 to 1", "proxy: the reward model’s score, in its own units")


def overoptimisation(summary: Mapping[str, Any]) -> str:
    """Three panels over the training steps of the hacked run: gold, proxy, KL; a line where gold was highest."""
    found = summary.get("curves", {}).get("overoptimisation") or {}
    points = found.get("points") or []
    peak = value_of((found.get("peak") or {}).get("step"))

    def draw(figure: Figure, narrow: bool) -> None:
        panels = _axes(figure, 3)
        titles = (*TITLES, "KL to the SFT model, in nats per answer")
        for axes, key, title in zip(panels, ("gold", "proxy", "kl"), titles, strict=True):
            _band(axes, series(points, "step", key), "ppo")
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

    return _twice("overoptimisation", draw, extra=150)


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """How often people agreed, against how often the reward model said that they would."""
    with _figure(SQUARE) as figure:
        axes = _axes(figure)[0]
        axes.plot([0, 1], [0, 1], color=TOKENS["muted"], lw=1, ls=(0, (4, 3)))
        path = series(bins, "predicted", "observed")
        _bars(axes, path.x, path.mean, path.low, path.high, "reward")
        axes.plot(path.x, path.mean, "o-", color=TOKENS["reward"], lw=1.4, ms=6, mec=TOKENS["card"])
        axes.set(
            xlim=(0, 1),
            ylim=(-0.02, 1.02),
            xlabel="predicted by the reward model",
            title="first answer preferred: share of votes",
        )
        axes.set_aspect("equal")
        return _svg(figure, "reliability")


def learning(rows: Sequence[Mapping[str, Any]], key: str, held_out: str, colour: str, chance: float | None) -> str:
    """One figure of a run over its steps, smoothed where it is long; empty where the run did not log it."""
    line, dots = series(rows, "step", key), series(rows, "step", held_out)
    if len(line.x) == 0 and len(dots.x) == 0:
        return ""
    with _figure(PANEL) as figure:
        axes = _axes(figure)[0]
        if chance is not None:
            axes.axhline(chance, color=TOKENS["muted"], lw=1, ls=(0, (4, 3)))
        long = len(line.x) > 40
        axes.plot(line.x, line.mean, color=TOKENS[colour], lw=0.7 if long else 1.8, alpha=0.35 if long else 1)
        if long:
            axes.plot(line.x, _smooth(line.mean, len(line.x) // 15), color=TOKENS[colour], lw=1.8)
        axes.plot(dots.x, dots.mean, "o", color=TOKENS[colour], ms=5.5, mec=TOKENS["card"], mew=1.2)
        axes.margins(x=0.02, y=0.12)
        axes.locator_params(axis="y", nbins=4)
        axes.locator_params(axis="x", nbins=6, integer=True)
        return _svg(figure, f"{colour}-{re.sub('[^a-z]+', '-', key.lower())}")


def family(name: str) -> str:
    """The colour of a method: every best-of-N has one."""
    return "best-of-n" if name.startswith("best_of") else name if name in TOKENS else "muted"


# --- pieces ---------------------------------------------------------------------------------------


def _axes(figure: Figure, rows: int = 1) -> list[Axes]:
    axes: list[Axes] = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for each in axes:
        each.locator_params(axis="y", nbins=5 if rows > 1 else 7)
    return axes


def _band(axes: Axes, line: Series, method: str) -> None:
    """A path with its interval shaded, in the order of the points."""
    colour = TOKENS[method]
    axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, lw=0)
    axes.plot(line.x, line.mean, color=colour, lw=1.8, marker=MARKERS[method], ms=6.5, mec=TOKENS["card"], mew=0.7)


def _point(axes: Axes, method: str, text: str, row: Mapping[str, Any], size: float) -> None:
    """A finished method with its name, and with intervals both ways."""
    kl, gold = value_of(row.get("kl")), value_of(row.get("gold_mean"))
    if kl is None or gold is None:
        return
    x, y = np.array([kl.mean]), np.array([gold.mean])
    if gold.bounded:
        _bars(axes, x, y, np.array([gold.low]), np.array([gold.high]), method)
    if kl.bounded and kl.high > kl.low:
        axes.plot([max(0.0, kl.low), kl.high], [gold.mean] * 2, color=TOKENS[method], lw=1.6)
    axes.plot(x, y, MARKERS.get(method, "o"), color=TOKENS[method], ms=size, mec=TOKENS["card"], mew=1.5, zorder=5)
    near, side = ((11, -5), "left") if kl.mean == 0 else ((-9, 7), "right")
    axes.annotate(text, (kl.mean, gold.mean), near, textcoords="offset points", ha=side, color=TOKENS["ink"], size=11.5)


def _bars(axes: Axes, x: Floats, mean: Floats, low: Floats, high: Floats, colour: str) -> None:
    axes.errorbar(x, mean, [mean - low, high - mean], fmt="none", color=TOKENS[colour], elinewidth=1.6, capsize=3.5)


def _label_n(axes: Axes, line: Series, narrow: bool) -> None:
    """N below the points of best-of-N's path, every other one; N = 1 is the SFT model itself."""
    for x, y, point in list(zip(line.x, line.mean, line.points, strict=True))[2::2]:
        text = f"N = {point['n']}" if x == line.x[-1] and not narrow else f"{point['n']}"
        axes.annotate(text, (x, y), (4, -14), textcoords="offset points", size=10.5)


def _sqrt_axis(axes: Axes, kls: Sequence[float], narrow: bool) -> None:
    """A KL axis on which small distances are seen too: reward grows about as the square root of KL."""
    from matplotlib.ticker import NullLocator

    end = max([*kls, 1.0])
    axes.set_xscale("function", functions=(_root, np.square))
    axes.set_xlim(-0.0005 * end, end * 1.06)
    ticks = [t for t in KL_TICKS if t <= end * 1.06 and not (narrow and t == 0.5)]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(KL_LABEL if not narrow else "KL to the SFT model, nats per answer")


def _root(x: Floats) -> Floats:
    """An estimate of a KL near zero may be a little negative; it is drawn at its mirror image below zero."""
    return np.sign(x) * np.sqrt(np.abs(x))


def _kls(points: Sequence[Mapping[str, Any]]) -> list[float]:
    return [v.high if v.bounded else v.mean for p in points if (v := value_of(p.get("kl")))]


def _smooth(values: Floats, width: int) -> Floats:
    """Moving mean, centred; where a curve begins, and is steep, the window shrinks, and at its end looks back only."""
    reach = [min(width, i) for i in range(len(values))]
    return np.array([values[i - r : i + r + 1].mean() for i, r in enumerate(reach)])


# --- from matplotlib to the page ------------------------------------------------------------------


@contextmanager
def _figure(size: tuple[int, int]) -> Iterator[Figure]:
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        yield Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")


def _twice(name: str, draw: Callable[[Figure, bool], None], extra: int) -> str:
    """The figure for a wide page and for a narrow one; the style sheet shows one of them."""
    found = []
    for size, narrow in ((WIDE, False), (NARROW, True)):
        with _figure((size[0], size[1] + extra)) as figure:
            draw(figure, narrow)
            kind = "narrow" if narrow else "wide"
            found.append(f'<div class="{kind}">{_svg(figure, f"{name}-{kind}")}</div>')
    return "".join(found)


def _svg(figure: Figure, name: str) -> str:
    """The drawing as an inline `<svg>`: every identifier with the figure's name before it, no style of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    titles = "; ".join(title for axes in figure.axes if (title := axes.get_title(loc="left")))
    spoken = f'role="img" aria-label="{titles}"' if titles else 'aria-hidden="true"'
    text = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" {spoken}>', text, count=1)
    text = text.replace("xlink:href", "href")
    text = re.sub(r' id="', f' id="{name}-', text)
    text = re.sub(r"(url\(|href=\")#", rf"\1#{name}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)  # older matplotlib
    text = re.sub(r" font-family: [^;\"]+;", "", text)
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", text)
    for token, colour in TOKENS.items():
        text = text.replace(colour, f"var(--{token})")
    return re.sub(r"\n\s*", "\n", text).strip()
