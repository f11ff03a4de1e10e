"""Formatting of figures, the same on every page that Keel writes: intervals, a true minus sign, a dash if missing.

`page` fills in a template; all templates share `page.css` and `macros.html` of this folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from keel.pages.drawing import Value, value_of

TableCells = Mapping[str, Any]

DASH, THIN, JOINED = "–", "\u202f", "\u00a0"


def page(template: Path, **parts: Any) -> str:
    """Return a template filled in; it may include files of this folder. A part that is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**parts)


# --- numbers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unit:
    """Format of a figure: its factor, the sign after it, and its decimals if no interval decides them."""

    scale: float = 1.0
    sign: str = ""
    digits: int = 2


PERCENT, PLAIN, SCORE = Unit(100.0, f"{THIN}%", 0), Unit(), Unit(digits=1)


def number(x: float, digits: int) -> str:
    """Return a number with a true minus sign, and without a minus before a zero."""
    text = f"{round(x, digits) + 0.0:.{digits}f}"
    return text.replace("-", "−")


def digits_for(values: Iterable[Value | None], unit: Unit) -> int:
    """Return the decimals (3 at most) that show one digit of the narrowest interval's half-width."""
    halves = [unit.scale * (v.high - v.low) / 2 for v in values if v and v.bounded and v.high > v.low]
    return min(3, max(0, math.ceil(-math.log10(min(halves))))) if halves else unit.digits


def figure(value: Value | None, unit: Unit = PLAIN, digits: int | None = None) -> str:
    """Return the figure alone: 93 %."""
    if value is None:
        return DASH
    return number(value.mean * unit.scale, digits_for([value], unit) if digits is None else digits) + unit.sign


def interval(value: Value | None, unit: Unit = PLAIN, digits: int | None = None) -> str:
    """Return the interval alone: [90, 95]; empty if there is none or if it has no width."""
    if value is None or not value.bounded or value.high <= value.low:
        return ""
    digits = digits_for([value], unit) if digits is None else digits
    low, high = (number(x * unit.scale, digits) for x in (value.low, value.high))
    return f"[{low},{JOINED}{high}]"


def full(value: Value | None, unit: Unit = PLAIN) -> str:
    """Return the figure with its interval: 93 % [90, 95]."""
    return f"{figure(value, unit)} {interval(value, unit)}".strip()


def seconds(x: float | None) -> str:
    """Return a duration: 3.5 s, 12 s."""
    return DASH if x is None else f"{number(x, 0 if x >= 10 or x == 0 else 1)}{THIN}s"


def times(x: float | None) -> str:
    """Return a ratio: 1.05 ×, 28 ×."""
    return DASH if x is None else f"{number(x, 0 if x >= 20 else 1 if x >= 2 else 2)}{THIN}×"


def finite_mean(raw: object) -> float | None:
    """Return the mean of a figure; None if it is missing."""
    value = value_of(raw)
    return value.mean if value else None


def enumerated(parts: Sequence[str]) -> str:
    """Return the parts as a list in words: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def capital(text: str) -> str:
    """Return a text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def above(a: Value | None, b: Value | None) -> bool:
    """Say whether a's interval lies wholly above b's."""
    return a is not None and b is not None and a.bounded and b.bounded and a.low > b.high


def bar(value: Value | None) -> str:
    """Return a value's interval and mean on a scale from 0 to 1, as CSS variables; empty without an interval."""
    if value is None or not value.bounded:
        return ""
    low, at, high = (f"{100 * min(1.0, max(0.0, x)):.1f}%" for x in (value.low, value.mean, value.high))
    return f"--low:{low};--at:{at};--high:{high}"
