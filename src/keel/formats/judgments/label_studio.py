"""Label Studio's exports of pairwise comparisons: whole tasks, and the short form of one row for each annotation.

A task's `data` holds the prompt and two answers, in columns named as in an Argilla export. Each of its `annotations`
holds results; those of the type `pairwise` (or a choice of one) select `left`, `right`, or neither. In the short form
these columns stand side by side, and the selection stands in a column named after the question.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from keel.files.fields import Neutral, Row, RowError, mapping, note, number_in, objects, one_line, others, text
from keel.formats.judgments.argilla import NUMBER, OUTCOMES, PROMPT_COLUMNS, USUAL, answers_in, prompt_in
from keel.formats.judgments.base import Judged, as_preference, becomes_chat, name_in, one_text, with_extra
from keel.formats.messages import without_fields
from keel.records import OVERALL, Answer, Judgment, Origin, Outcome, Preference, Prompt

SELECTED: dict[str, Outcome] = {"left": "first", "right": "second", **OUTCOMES}
del SELECTED["none"]  # here: nothing is selected
_DEFAULT = "comparison"
USUAL_NAMES = USUAL | {_DEFAULT, "pairwise", "pw"}
TASK = frozenset(("data", "annotations"))
ANNOTATION = frozenset(("result", "completed_by", "lead_time", "was_cancelled"))
SHORT = "annotator", "lead_time"
STAMPS = frozenset(("id", "annotation_id", "created_at", "updated_at", "inner_id", *SHORT))
NOT_SUBMITTED = "no comparison was submitted"


def _prompt(data: Row) -> Prompt:
    return prompt_in(data)


def _selected(value: object) -> str | None:
    """Return the word in a selection: itself, or in an object or a list of one, which a CSV cell holds as JSON."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("selected")
    return value.strip().lower() if isinstance(value, str) and value.strip().lower() in SELECTED else None


def _dimension(name: str) -> str:
    return OVERALL if name.lower() in USUAL_NAMES else name


def _two(data: Row, order: object = None) -> tuple[dict[str, str], Answer, Answer]:
    """Return the answers by column, then left and right: in the order that the result names, else in column order."""
    found = answers_in(data)
    if len(found) != 2:
        raise RowError(f"a comparison is between two answers, and there are {len(found)}")
    names = [name.strip() for name in order.split(",")] if isinstance(order, str) else []
    left, right = names if set(names) == set(found) else list(found)
    return found, Answer(found[left]), Answer(found[right])


# --- whole tasks


def _read_tasks(row: Row, origin: Origin) -> list[Judgment]:
    """Read a judgment from each comparison in each annotation that was not cancelled."""
    data, found = mapping(row, "data"), list[Judgment]()
    rest = others(data, {_prompt_column(data), *_two(data)[0]})
    extra = (others(row, TASK) or {}) | ({"data": rest} if rest else {})
    for annotation in objects(row, "annotations") if row.get("annotations") else []:
        if annotation.get("was_cancelled") is True:
            note("an annotation was cancelled")
            continue
        found += _annotated(data, annotation, extra, origin)
    if not found:
        raise Neutral(NOT_SUBMITTED)
    return found


def _annotated(data: Row, annotation: Row, extra: Row, origin: Origin) -> Iterator[Judgment]:
    results = objects(annotation, "result") if annotation.get("result") else []
    rater, rest = _rater(annotation.get("completed_by")), others(annotation, ANNOTATION)
    comment = "\n".join(words for result in results for words in _comments(result))
    for result in results:
        word = _choice(result)
        if word is None:
            continue
        _, left, right = _two(data, result.get("to_name"))
        name = _text_of(result.get("from_name"))
        yield Judgment(
            _prompt(data),
            (left, right),
            Preference(SELECTED[word]),
            rater=rater,
            kind="person",
            dimension=_dimension(name or _DEFAULT),
            seconds=number_in(annotation, "lead_time") if annotation.get("lead_time") is not None else None,
            comment=comment,
            extra=(extra | ({"annotation": rest} if rest else {})) or None,
            origin=origin,
        )


def _choice(result: Row) -> str | None:
    """Return the word of a comparison; None for another question, which is noted unless it is a comment."""
    kind, value = result.get("type"), result.get("value")
    value = value if isinstance(value, dict) else {}
    if kind == "pairwise":
        word = _selected(value)
        if word is None:
            raise RowError("a comparison selects neither left nor right, nor says that they are equal")
        return word
    choices = value.get("choices")
    if kind == "choices" and (word := _selected(choices)) is not None:
        return word
    if not list(_comments(result)):
        note(f"a result of the type {one_line(kind)} is left out")
    return None


def _comments(result: Row) -> Iterator[str]:
    value = result.get("value")
    if result.get("type") == "textarea" and isinstance(value, dict):
        words = value.get("text")
        yield from (_text_of(it) for it in (words if isinstance(words, list) else [words]) if it)


def _text_of(value: object) -> str:
    """Return a text, empty if there is none."""
    return "" if value is None else text({"a name": value}, "a name")


def _rater(value: object) -> str:
    """Return the annotator, given as a number, a name, or an object that holds one."""
    if isinstance(value, dict):
        value = next((value[name] for name in ("email", "username", "id") if value.get(name)), None)
    return name_in({"an annotator": value}, "an annotator")


def _prompt_column(data: Row) -> str:
    return next((name for name in PROMPT_COLUMNS if data.get(name) is not None), "")


def _write_tasks(group: Sequence[Judgment]) -> list[Row]:
    """Return a task for answers that were judged together; a new one begins when these or further columns change."""
    rows: list[Row] = []
    last: Any = None
    for judgment in group:
        extra = judgment.extra or {}
        shared = {name: value for name, value in extra.items() if name != "annotation"}
        here = judgment.prompt, [answer.text for answer in judgment.answers], shared
        if last != here:
            data = _asked(judgment) | _object(shared.get("data"))
            rows.append(
                {"data": data, "annotations": []}
                | {k: v for k, v in shared.items() if k not in ("data", "annotations")}
            )
            last = here
        more = _object(extra.get("annotation"))
        annotation: Row = {"result": [_result(judgment)], "completed_by": judgment.rater or None}
        if judgment.comment:
            value = {"text": [judgment.comment]}
            annotation["result"].append({"from_name": "comment", "type": "textarea", "value": value})
        rows[-1]["annotations"].append(annotation | {"lead_time": judgment.seconds, "was_cancelled": False} | more)
    return rows


def _object(value: object) -> Row:
    return value if isinstance(value, dict) else {}


def _asked(judgment: Judgment) -> Row:
    as_preference(judgment)
    first, second = judgment.answers
    return {
        "prompt": one_text(judgment.prompt), "answer1": without_fields(first), "answer2": without_fields(second)
    }  # fmt: skip


def _word(judgment: Judgment) -> str:
    words: dict[Outcome, str] = {"first": "left", "second": "right", "tie": "equal", "both_bad": "both_bad"}
    return words[as_preference(judgment).outcome]


def _name(judgment: Judgment) -> str:
    return _DEFAULT if judgment.dimension == OVERALL else judgment.dimension


def _result(judgment: Judgment) -> Row:
    value = {"selected": _word(judgment)}
    return {"from_name": _name(judgment), "to_name": "answer1,answer2", "type": "pairwise", "value": value}


# --- the short form


def _questions(row: Row) -> dict[str, str]:
    """Return the selections by question; a column whose name ends in a number or letter is an answer's."""
    known = {*STAMPS, _prompt_column(row)}
    names = [name for name in row if isinstance(name, str) and name not in known and not NUMBER.search(name)]
    found = {name: _selected(row[name]) for name in names}
    return {name: word for name, word in found.items() if word is not None}


def _short_data(row: Row) -> Row:
    questions = _questions(row)
    return {name: value for name, value in row.items() if name not in questions and name not in STAMPS}


def _read_short(row: Row, origin: Origin) -> list[Judgment]:
    data, questions = _short_data(row), _questions(row)
    columns, left, right = _two(data)
    if not questions:
        raise Neutral(NOT_SUBMITTED)
    known = {_prompt_column(row), *columns, *questions, *SHORT}
    seconds = number_in(row, "lead_time") if row.get("lead_time") not in (None, "") else None
    rater, extra = _rater(row.get("annotator")), others(row, known)
    return [
        Judgment(
            _prompt(data),
            (left, right),
            Preference(SELECTED[word]),
            rater=rater,
            kind="person",
            dimension=_dimension(name),
            seconds=seconds,
            extra=extra,
            origin=origin,
        )
        for name, word in questions.items()
    ]


def _write_short(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in group:
        row = _asked(judgment) | {_name(judgment): _word(judgment)}
        row |= {"annotator": judgment.rater or None, "lead_time": judgment.seconds}
        rows.append(with_extra(judgment, row))
    return rows


def _looks_like_tasks(row: Row) -> bool:
    """Say whether a task has annotations that compare."""
    annotations = row.get("annotations")
    if isinstance(annotations, str):  # a CSV cell
        return '"pairwise"' in annotations or '"choices"' in annotations
    found = annotations if isinstance(annotations, list) else []
    results = [it.get("result") for it in found if isinstance(it, dict)]
    kinds = [it.get("type") for some in results if isinstance(some, list) for it in some if isinstance(it, dict)]
    return "pairwise" in kinds or "choices" in kinds


def _looks_short(row: Row) -> bool:
    return bool(_questions(row))


LABEL_STUDIO = (
    Judged(
        "label-studio",
        ("data", "annotations"),
        _read_tasks,
        _write_tasks,
        lambda row: _prompt(mapping(row, "data")),
        fits=_looks_like_tasks,
        becomes=becomes_chat,
    ),
    Judged(
        "label-studio-min",
        SHORT,
        _read_short,
        _write_short,
        lambda row: _prompt(_short_data(row)),
        fits=_looks_short,
        becomes=becomes_chat,
    ),
)
