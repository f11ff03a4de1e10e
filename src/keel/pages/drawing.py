"""Drawings of all pages: inline SVG that takes its colours and fonts from the page around it.

matplotlib draws in stand-in colours, and `svg` turns each into a CSS variable, so that one drawing serves a light and
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

from keel.stats import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


TOKENS = {
    name: f"#0101{i:02x}"
    for i, name in enumerate(
        ("ink", "muted", "line", "card", "sft", "dpo", "ppo", "best-of-n", "reward", "pretrain"), start=1
    )
}
"""Stand-in colours, one for each CSS variable of the page."""
MARKERS = {"sft": "o", "dpo": "s", "ppo": "D", "best-of-n": "^"}
WIDE, NARROW, PANEL, SQUARE = (880, 400), (360, 330), (300, 168), (400, 360)
"""Sizes in CSS pixels; figures as wide as the page are drawn twice, for a desktop and for a phone."""

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
    """A finite figure of a summary: its mean, and its interval (NaN if it has none)."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    n: int | None = None

    @property
    def bounded(self) -> bool:
        """Say whether an interval is known, even one of width zero."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def value_of(raw: object) -> Value | None:
    """Return the value of `{mean, low, high, n}` or a plain number; None if its mean is not finite."""
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
    """A curve: the x of its points, their means, and the ends of their intervals; parallel arrays."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    points: list[Mapping[str, Any]]
    """Records from which the points were read."""


def series(points: Sequence[Mapping[str, Any]], x: str, y: str) -> Series:
    """Return the points whose figures `x` and `y` are both known."""
    found = [(p, a, b) for p in points if (a := value_of(p.get(x))) and (b := value_of(p.get(y)))]
    columns = np.array(
        [(a.mean, b.mean, *((b.low, b.high) if b.bounded else (b.mean, b.mean))) for _, a, b in found], dtype=np.float64
    ).reshape(-1, 4)
    return Series(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3], [p for p, *_ in found])


# --- pieces ---------------------------------------------------------------------------------------


def stack(figure: Figure, rows: int = 1) -> list[Axes]:
    """Return panels one above the other, with one horizontal axis."""
    axes: list[Axes] = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for each in axes:
        each.locator_params(axis="y", nbins=5 if rows > 1 else 7)
    return axes


def band(axes: Axes, line: Series, method: str) -> None:
    """Draw a curve with its interval shaded, in the order of the points."""
    colour = TOKENS[method]
    axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, lw=0)
    axes.plot(line.x, line.mean, color=colour, lw=1.8, marker=MARKERS[method], ms=6.5, mec=TOKENS["card"], mew=0.7)


def bars(axes: Axes, x: Floats, mean: Floats, low: Floats, high: Floats, colour: str) -> None:
    """Draw intervals as vertical bars with caps."""
    axes.errorbar(x, mean, [mean - low, high - mean], fmt="none", color=TOKENS[colour], elinewidth=1.6, capsize=3.5)


def smooth(values: Floats, width: int) -> Floats:
    """Return the centred moving mean; the window shrinks at the start, which is steep, and is cut off at the end."""
    reach = [min(width, i) for i in range(len(values))]
    return np.array([values[i - r : i + r + 1].mean() for i, r in enumerate(reach)])


# --- from matplotlib to the page ------------------------------------------------------------------


@contextmanager
def figure_of(size: tuple[int, int]) -> Iterator[Figure]:
    """Yield a figure of `size` CSS pixels in Keel's style."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        yield Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")


def twice(name: str, draw: Callable[[Figure, bool], None], extra: int) -> str:
    """Return a figure drawn for a wide page and for a narrow one; the style sheet shows one of them."""
    found = []
    for size, narrow in ((WIDE, False), (NARROW, True)):
        with figure_of((size[0], size[1] + extra)) as figure:
            draw(figure, narrow)
            kind = "narrow" if narrow else "wide"
            found.append(f'<div class="{kind}">{svg(figure, f"{name}-{kind}")}</div>')
    return "".join(found)


def svg(figure: Figure, name: str) -> str:
    """Return the drawing as an inline `<svg>` without styles; every identifier begins with the figure's name."""
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
