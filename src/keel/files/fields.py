"""One row of a data file: its fields, checked, and why it cannot become a record.

A row that cannot be read is an outcome, not an exception that ends a command: readers raise `RowError`, whoever reads
the file counts it with the row's number (law 6). A null column is a missing one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from contextvars import ContextVar
from decimal import Decimal
from typing import Any, TypeVar

from keel.records import Origin, RowCounts

R = TypeVar("R")
Row = dict[str, Any]
_SAID: ContextVar[list[str] | None] = ContextVar("what was said of the row that is being read", default=None)
DEPTH = 100  # levels of lists and objects in a column that is kept for export


class RowError(Exception):
    """Why one row cannot become a record, or a record a row; the text is the reason under which it is counted."""


class Neutral(RowError):  # noqa: N818  (no error of the row)
    """Why a row is right and yet gives nothing: counted apart from faults."""


Numbered = tuple[int, Row | RowError]


# --- fields


def one_line(name: object) -> str:
    """A column's name, fit for one line on any terminal."""
    text = str(name)
    short = text if len(text) <= 40 else text[:39] + "…"
    return short if short.isprintable() and short else repr(short)


def text(row: Row, column: str) -> str:
    """The text in `column`."""
    value = row.get(column)
    if value is None:
        raise RowError(f"no {column}")
    if not isinstance(value, str):
        raise RowError(f"{column} is not text")
    if not is_unicode(value):
        raise RowError(f"{column} is not valid Unicode")
    return value


def text_or(row: Row, column: str, default: str = "") -> str:
    """The text in `column`, or `default` where there is none."""
    return default if row.get(column) is None else text(row, column)


def is_unicode(value: str) -> bool:
    """False for lone surrogates, which JSON can spell but no tokenizer can read."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def number_in(row: Row, column: str) -> float:
    """The finite number in `column`; a CSV cell holds it as text."""
    value = row.get(column)
    if value is None or value == "":
        raise RowError(f"no {column}")
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        raise RowError(f"{column} is not a number")
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise RowError(f"{column} is not a number") from None
    if not math.isfinite(found):
        raise RowError(f"{column} is not finite")
    return found


_WORDS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
"""A label's value, as tools and CSV cells spell it: good or bad."""


def good_or_bad(value: object) -> bool | None:
    """Whether a label says that an answer is good; None where it says neither."""
    return _WORDS.get(str(value).strip().lower()) if isinstance(value, (str, int, float)) else None


def margin(row: Row) -> float:
    """The optional `margin`; null or an empty cell is a pair without a grade."""
    value = row.get("margin")
    if value is None or value == "":
        return 0.0
    found = number_in(row, "margin")
    if found < 0:
        raise RowError("margin is negative")
    return found


def items(row: Row, column: str) -> list[Any]:
    """The list in `column`, which a CSV cell holds as JSON."""
    value = _parsed(row, column)
    if not isinstance(value, list):
        raise RowError(f"{column} is not a list")
    return value


def mapping(row: Row, column: str) -> Row:
    """The object in `column`, which a CSV cell holds as JSON."""
    value = _parsed(row, column)
    if not isinstance(value, dict):
        raise RowError(f"{column} is not an object")
    return value


def _parsed(row: Row, column: str) -> object:
    value = row.get(column)
    if value is None or value == "":
        raise RowError(f"no {column}")
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise RowError(f"{column} is not JSON{_printed(value)}") from None
    return value


def _printed(value: str) -> str:
    """What to say of a list or object as Python prints it."""
    return ", but as Python prints it; write it with json.dumps" if value[1:].lstrip("[{ ")[:1] == "'" else ""


def objects(row: Row, column: str) -> list[Row]:
    """A list of objects in `column`, at least one."""
    found = items(row, column)
    if not found or not all(isinstance(item, dict) for item in found):
        raise RowError(f"{column} is not a list of objects")
    return found


# --- what is worth a note


def note(what: str) -> None:
    """Say something of the row that is being read; whoever reads the file counts it with the row's number."""
    said = _SAID.get()
    if said is not None:
        said.append(what)


def noted(read: Callable[[Row, Origin], R], row: Row, origin: Origin, counts: RowCounts) -> R:
    """Read a row, and count what was said of it; a row that is dropped has its reason and no notes."""
    said: list[str] = []
    token = _SAID.set(said)
    try:
        found = read(row, origin)
    finally:
        _SAID.reset(token)
    for what in dict.fromkeys(said) if said else ():
        counts.note(what, origin.row)
    return found


# --- what means nothing to Keel


def others(row: Row, known: Collection[str]) -> Row | None:
    """The columns that are not `known`, to be given back on export; None where there are none."""
    if all(column in known for column in row):
        return None
    kept = {
        column if isinstance(column, str) and is_unicode(column) else jsonable(str(column)): jsonable(value)
        for column, value in row.items()
        if column not in known and value is not None
    }
    return kept or None


def jsonable(value: Any, depth: int = 0) -> Any:
    """`value` as strict JSON can hold it: what it cannot (not finite, bytes, dates, lone surrogates) becomes text."""
    if isinstance(value, str):
        return value if is_unicode(value) else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth == DEPTH:
        raise RowError(f"a column is nested more than {DEPTH} levels deep")
    if isinstance(value, dict):
        return {jsonable(str(key)): jsonable(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(inner, depth + 1) for inner in value]
    return jsonable(str(value))
