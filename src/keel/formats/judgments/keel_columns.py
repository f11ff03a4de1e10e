"""Keel's own columns beside TRL's: who judged, what, and who wrote the answers. Trainers ignore them.

`rater`, `feedback` (whose: "ai", "human", "rule", "simulated"), `dimension`, `rubric`, `seconds`, `comment`, `raw`,
`chosen_shown` ("second" if the rater saw the chosen answer on the right), and for each side the fields of `Answer`:
`chosen_model`, `rejected_logp`, …; `chosen_ids`, the tokens as they were drawn. The fingerprint of their tokenizer is
in `tokenizer`, or in `chosen_tokenizer` if the answers' differ. Only what is known is written. A column with one of
these names that holds something else is not ours: it is kept as a column that means nothing to Keel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keel.files.fields import Row, RowError, is_unicode, jsonable
from keel.formats.judgments.base import same_text, with_extra
from keel.records import Answer, Drawn, Judgment, Preference, RaterKind

FEEDBACK: dict[str, RaterKind] = {
    "ai": "judge",
    "human": "person",
    "adjudicator": "adjudicator",
    "rule": "rule",
    "simulated": "simulated",
}
_WORDS = {kind: word for word, kind in FEEDBACK.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str) or not is_unicode(value):
        raise ValueError
    return value


def _name(value: Any) -> str:
    try:
        return same_text(value)
    except RowError:
        raise ValueError from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _count(value: Any) -> int:
    found = _number(value)
    if found < 0 or not found.is_integer():
        raise ValueError
    return int(found)


def _truth(value: Any) -> bool:
    if value in (True, "true", "True"):
        return True
    if value in (False, "false", "False"):
        return False
    raise ValueError


def _numbers(value: Any) -> dict[str, float]:
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise ValueError
    return {_text(key): inner for key, inner in found.items() if inner is not None and math.isfinite(_number(inner))}


def drawn_in(tokenizer: object, ids: object) -> Drawn | None:
    """Return the tokens of an answer if both are there and well formed, else None; a cell holds the list as JSON."""
    if isinstance(ids, str):
        try:
            ids = json.loads(ids)
        except (ValueError, RecursionError):
            return None
    if not isinstance(tokenizer, str) or not tokenizer or not is_unicode(tokenizer) or not isinstance(ids, list):
        return None
    if not ids or not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        return None
    return Drawn(tokenizer, tuple(ids))


def _second(value: Any) -> bool:
    if value != "second":
        raise ValueError
    return True


JUDGMENT: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "rater": ("rater", _name),
    "feedback": ("kind", lambda value: FEEDBACK[_text(value)]),
    "dimension": ("dimension", _text),
    "rubric": ("rubric", _text),
    "seconds": ("seconds", _number),
    "comment": ("comment", _text),
    "raw": ("raw", _text),
}
ANSWER: dict[str, Callable[[Any], Any]] = {
    "model": _text,
    "model_hash": _text,
    "sampling": _numbers,
    "logp": _number,
    "tokens": _count,
    "truncated": _truth,
    "draw": _count,
}


@dataclass(slots=True)
class Details:
    """Contents of further columns: on the judgment, on each answer by side, the order shown, and columns not ours."""

    judgment: dict[str, Any]
    answers: dict[str, dict[str, Any]]
    swapped: bool = False
    extra: Row | None = None


def read_details(row: Row, known: Iterable[str], sides: Sequence[str]) -> Details | None:
    """Read the further columns of a row beside the `known`; None if there are none."""
    further = row.keys() - known
    if not further:
        return None
    found = Details({}, {side: {} for side in sides})
    extra: Row = {}
    further -= _take_drawn(row, found)
    for column in (c for c in row if c in further and row[c] is not None):
        try:
            ours = _take(column, row[column], found)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            ours = False
        if not ours:
            extra[jsonable(str(column))] = jsonable(row[column])
    found.extra = extra or None
    return found


def _take_drawn(row: Row, found: Details) -> set[str]:
    """Read tokens as drawn into `found`; return the columns of the tokens and their tokenizer."""
    taken: set[str] = set()
    for side, known in found.answers.items():
        if (column := f"{side}_ids") not in row:
            continue
        spelt = f"{side}_tokenizer" if row.get(f"{side}_tokenizer") else "tokenizer"
        if drawn := drawn_in(row.get(spelt), row[column]):
            known["drawn"] = drawn
            taken |= {column, spelt}
    return taken


def _take(column: str, value: Any, found: Details) -> bool:
    """Read a column into `found`, and say whether it is one of ours; an empty cell of one of ours says nothing."""
    if column in JUDGMENT:
        field, read = JUDGMENT[column]
        found.judgment |= {} if value == "" else {field: read(value)}
        return True
    side, _, field = column.partition("_")
    if side not in found.answers:
        return False
    if field in ANSWER:
        found.answers[side] |= {} if value == "" else {field: ANSWER[field](value)}
        return True
    if column == "chosen_shown":
        found.swapped = value != "" and _second(value)
        return True
    return False


def write_details(judgment: Judgment, row: Row, sides: dict[str, Answer]) -> Row:
    """Return the row with what is known of the judgment and its answers, and the columns that came with it."""
    for column, (field, _) in JUDGMENT.items():
        value = getattr(judgment, field)
        if value not in ("", "unknown", None) and (column, value) != ("dimension", "overall"):
            row[column] = _WORDS[value] if column == "feedback" else value
    for side, answer in sides.items():
        for field in ANSWER:
            value = getattr(answer, field)
            if value not in ("", None, False) or (field in ("logp", "tokens") and value is not None):
                row[f"{side}_{field}"] = dict(value) if field == "sampling" else value
    _write_drawn({side: answer.drawn for side, answer in sides.items() if answer.drawn}, row)
    if isinstance(judgment.verdict, Preference) and judgment.verdict.outcome == "second":
        row["chosen_shown"] = "second"
    return with_extra(judgment, row)


def _write_drawn(drawn: Mapping[str, Drawn], row: Row) -> None:
    shared = len({it.tokenizer for it in drawn.values()}) == 1
    for side, it in drawn.items():
        row[f"{side}_ids"] = list(it.ids)
        row["tokenizer" if shared else f"{side}_tokenizer"] = it.tokenizer
