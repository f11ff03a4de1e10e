"""The fields of one row of a data file, checked, and the errors of a row that cannot become a record.

An unreadable row does not end a command: readers of rows raise `RowError`, and the reader of the file counts it with
the row's number. A null column counts as missing.
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
    """A row that cannot become a record, or a record that cannot become a row; it is counted under its message."""


class Neutral(RowError):  # noqa: N818  (no error of the row)
    """A row that is right but gives nothing; counted apart from faults."""


Numbered = tuple[int, Row | RowError]


# --- fields


def one_line(name: object) -> str:
    """Return a column's name, short and printable on one line."""
    text = str(name)
    short = text if len(text) <= 40 else text[:39] + "…"
    return short if short.isprintable() and short else repr(short)


def text(row: Row, column: str) -> str:
    """Return the text in `column`. Raises `RowError` if there is none."""
    value = row.get(column)
    if value is None:
        raise RowError(f"no {column}")
    if not isinstance(value, str):
        raise RowError(f"{column} is not text")
    if not is_unicode(value):
        raise RowError(f"{column} is not valid Unicode")
    return value


def text_or(row: Row, column: str, default: str = "") -> str:
    """Return the text in `column`, or `default` if it is missing."""
    return default if row.get(column) is None else text(row, column)


def is_unicode(value: str) -> bool:
    """Say whether a text has no lone surrogates: JSON can spell these, but no tokenizer reads them."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def number_in(row: Row, column: str) -> float:
    """Return the finite number in `column`; a CSV cell holds it as text."""
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
"""Spellings of a label in tools and CSV cells; True is good, False is bad."""


def good_or_bad(value: object) -> bool | None:
    """Return True if a label calls an answer good, False if bad, None if neither."""
    return _WORDS.get(str(value).strip().lower()) if isinstance(value, (str, int, float)) else None


def margin(row: Row) -> float:
    """Return the optional `margin`, 0 for null or an empty cell: the pair is not graded."""
    value = row.get("margin")
    if value is None or value == "":
        return 0.0
    found = number_in(row, "margin")
    if found < 0:
        raise RowError("margin is negative")
    return found


def items(row: Row, column: str) -> list[Any]:
    """Return the list in `column`; a CSV cell holds it as JSON."""
    value = _parsed(row, column)
    if not isinstance(value, list):
        raise RowError(f"{column} is not a list")
    return value


def mapping(row: Row, column: str) -> Row:
    """Return the object in `column`; a CSV cell holds it as JSON."""
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
    """Return a hint if a list or object is written as Python prints it, else nothing."""
    return ", but as Python prints it; write it with json.dumps" if value[1:].lstrip("[{ ")[:1] == "'" else ""


def objects(row: Row, column: str) -> list[Row]:
    """Return the list of objects in `column`, at least one."""
    found = items(row, column)
    if not found or not all(isinstance(item, dict) for item in found):
        raise RowError(f"{column} is not a list of objects")
    return found


# --- notes


def note(what: str) -> None:
    """Note something about the row that is being read; the reader of the file counts it with the row's number."""
    said = _SAID.get()
    if said is not None:
        said.append(what)


def noted(read: Callable[[Row, Origin], R], row: Row, origin: Origin, counts: RowCounts) -> R:
    """Read a row and count the notes on it; a dropped row is counted by its reason and has no notes."""
    said: list[str] = []
    token = _SAID.set(said)
    try:
        found = read(row, origin)
    finally:
        _SAID.reset(token)
    for what in dict.fromkeys(said) if said else ():
        counts.note(what, origin.row)
    return found


# --- columns without a meaning to Keel


def others(row: Row, known: Collection[str]) -> Row | None:
    """Return the columns that are not `known`, to be given back on export; None if there are none."""
    if all(column in known for column in row):
        return None
    kept = {
        column if isinstance(column, str) and is_unicode(column) else jsonable(str(column)): jsonable(value)
        for column, value in row.items()
        if column not in known and value is not None
    }
    return kept or None


def jsonable(value: Any, depth: int = 0) -> Any:
    """Return a value for strict JSON: text for all that it cannot hold (not finite, bytes, dates, lone surrogates)."""
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
