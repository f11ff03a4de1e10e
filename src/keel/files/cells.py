"""Values of a row as formats read them: messages written as JSON text in a cell, decimals, objects around messages.

One rule for every container, so that a table means the same as JSONL, JSON, CSV and Parquet. Text is read as messages
only if it is JSON of turns and nothing else; other text that begins with a bracket stays text.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal

from keel.files.fields import Row, RowError, one_line

__all__ = ["number_of", "refuse_ambiguous", "unfold"]

TURNS = re.compile(r"[\[{]\s*(?:\{\s*)?([\"'])(?:role|content|from|value|messages)\1\s*:")
"""Beginning of one turn or several, as JSON or as Python prints them."""
SPEAKS = {"role": ("content", "tool_calls"), "from": ("value",)}
"""Key of the speaker in each notation, and the other keys of which a turn must have one."""
DECODER = json.JSONDecoder()


def unfold(row: Row) -> RowError | None:
    """Replace JSON text by messages and decimals by numbers, in place; return an error for broken messages."""
    for column, value in row.items():
        kind = value.__class__
        if kind is str:
            if value and value[0] in "[{" and TURNS.match(value):
                try:
                    row[column] = _bare(column, _messages(value))
                except RowError as error:
                    return RowError(f"{one_line(column)} {error}")
        elif kind is dict:
            row[column] = _bare(column, value)
        elif kind is Decimal:
            row[column] = number_of(value)
    return None


def _messages(text: str) -> object:
    """Return the messages of a cell that begins like messages, or the text unchanged if it holds something else."""
    if TURNS.match(text)[1] == "'":  # type: ignore[index]
        if text.rstrip()[-1] in "]}":
            raise RowError("holds messages as Python prints them, not JSON; write the cell with json.dumps")
        return text
    try:
        value, end = DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        raise RowError("holds messages that are not JSON") from None
    return value if not text[end:].strip() and _is_chat(value) else text


def _is_chat(value: object) -> bool:
    """Say whether a value is a turn, a list of turns, or an object of messages."""
    if isinstance(value, list):
        return bool(value) and all(_is_turn(turn) for turn in value)
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        return _is_chat(value["messages"])
    return _is_turn(value)


def _is_turn(value: object) -> bool:
    return isinstance(value, dict) and any(
        who in value and any(name in value for name in what) for who, what in SPEAKS.items()
    )


def _bare(column: str, value: object) -> object:
    """Return the messages of an object that holds nothing else; not for `input`, which a format uses so."""
    alone = isinstance(value, dict) and len(value) == 1 and column != "input"
    turns = value.get("messages") if alone and isinstance(value, dict) else None
    return turns if isinstance(turns, list) else value


def number_of(value: Decimal) -> float | int:
    """Return a decimal as a number; one without decimal places becomes an int."""
    if not value.is_finite():
        return float("inf") if value.is_infinite() else float("nan")
    return int(value) if value.as_tuple().exponent == 0 else float(value)


def refuse_ambiguous(row: Row) -> None:
    """Raise `RowError` if text of a row would be read back as messages."""
    for column, value in row.items():
        if value.__class__ is str and value[:1] in ("[", "{") and TURNS.match(value):
            try:
                same = _messages(value) is value
            except RowError:
                same = False
            if not same:
                raise RowError(f"{one_line(column)} is text that a reader would take for messages")
