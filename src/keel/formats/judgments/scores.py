"""Scores of one answer at a time: UltraFeedback and HelpSteer2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from keel.files.fields import Row, RowError, number_in, objects, others, text, text_or
from keel.formats.judgments.base import (
    Judged,
    as_chat,
    becomes_chat,
    name_in,
    one_text,
    read_instruction,
    score,
    shape,
    with_extra,
)
from keel.formats.messages import without_fields
from keel.records import OVERALL, Answer, Judgment, Origin, Score

# --- UltraFeedback

ULTRA = frozenset(("instruction", "completions"))
_MISSING = (None, "", "N/A")  # instead of a rating: the annotator gave none


def _read_ultra(row: Row, origin: Origin) -> list[Judgment]:
    """Read a judge's score per completion and aspect. Other fields of a completion or annotation stay in `extra`."""
    before, extra = as_chat(text(row, "instruction")), others(row, ULTRA) or {}
    found = []
    for completion in objects(row, "completions"):
        answer = Answer(text(completion, "response"), model=name_in(completion, "model"))
        rest = others(completion, ("response", "model", "annotations"))
        for aspect, annotation in _annotations(completion):
            notes = others(annotation, ("Rating", "Rationale"))
            more = extra | ({"completion": rest} if rest else {}) | ({"annotation": notes} if notes else {})
            found.append(
                Judgment(
                    before,
                    (answer,),
                    Score(number_in(annotation, "Rating")),
                    kind="judge",
                    dimension=aspect,
                    comment=text_or(annotation, "Rationale"),
                    extra=more or None,
                    origin=origin,
                )
            )
    if not found:
        raise RowError("no rating")
    return found


def _annotations(completion: Row) -> Iterator[tuple[str, Row]]:
    """Yield (aspect, annotation) for each rating."""
    annotations = completion.get("annotations")
    if not isinstance(annotations, dict):
        raise RowError("annotations is not an object")
    for aspect, annotation in annotations.items():
        if annotation is None:
            continue
        if not isinstance(annotation, dict):
            raise RowError("an annotation is not an object")
        if annotation.get("Rating") not in _MISSING:
            yield text({"aspect": aspect}, "aspect") or OVERALL, annotation


def _unrated(row: Row) -> Iterator[str]:
    for completion in objects(row, "completions"):
        for annotation in completion["annotations"].values():
            if annotation is None or annotation.get("Rating") in _MISSING:
                yield "a rating is missing"


def _write_ultra(group: Sequence[Judgment]) -> list[Row]:
    """Return one row; a new completion begins when the answer changes or an aspect comes again."""
    completions: list[Row] = []
    last: tuple[Answer, Any] | None = None
    shared = {k: v for k, v in (group[0].extra or {}).items() if k not in ("completion", "annotation")}
    for judgment in group:
        own = judgment.extra or {}
        rating, answer, rest = str(shape(score(judgment))), judgment.answers[0], _object(own.get("completion"))
        if last != (answer, rest) or judgment.dimension in completions[-1]["annotations"]:
            completions.append(rest | {"model": answer.model, "response": without_fields(answer), "annotations": {}})
            last = answer, rest
        annotation = _object(own.get("annotation")) | {"Rating": rating, "Rationale": judgment.comment}
        completions[-1]["annotations"][judgment.dimension] = annotation
    return [{"instruction": one_text(group[0].prompt), "completions": completions} | shared]


def _object(value: object) -> Row:
    return value if isinstance(value, dict) else {}


# --- HelpSteer2

DIMENSIONS = "helpfulness", "correctness", "coherence", "complexity", "verbosity"
_STEER = frozenset(("prompt", "response", *DIMENSIONS))


def _read_steer(row: Row, origin: Origin) -> list[Judgment]:
    """Read people's scores in five dimensions."""
    before, answers = as_chat(text(row, "prompt")), (Answer(text(row, "response")),)
    extra = others(row, _STEER)
    return [
        Judgment(
            before, answers, Score(number_in(row, name)), kind="person", dimension=name, extra=extra, origin=origin
        )
        for name in DIMENSIONS
    ]


def _write_steer(group: Sequence[Judgment]) -> list[Row]:
    """Return a row per answer; a new one begins when answer or further columns change or a dimension comes again."""
    rows: list[Row] = []
    last: Judgment | None = None
    for judgment in group:
        value = shape(score(judgment))
        if judgment.dimension not in DIMENSIONS:
            raise RowError(f"the dimension {judgment.dimension[:40]!r} has no place, only {', '.join(DIMENSIONS)}")
        same = last is not None and (last.prompt, last.answers, last.extra) == (
            judgment.prompt,
            judgment.answers,
            judgment.extra,
        )
        if not same or judgment.dimension in rows[-1]:
            row = {"prompt": one_text(judgment.prompt), "response": without_fields(judgment.answers[0])}
            rows.append(with_extra(judgment, row))
        rows[-1][judgment.dimension] = value
        last = judgment
    for row in rows:
        if absent := [name for name in DIMENSIONS if name not in row]:
            raise RowError(f"an answer has no score for {', '.join(absent)}")
    return rows


SCORES = (
    Judged(
        "ultrafeedback",
        ("instruction", "completions"),
        _read_ultra,
        _write_ultra,
        read_instruction("instruction"),
        becomes=becomes_chat,
        remarks=_unrated,
    ),
    Judged(
        "helpsteer2",
        ("prompt", "response", *DIMENSIONS),
        _read_steer,
        _write_steer,
        read_instruction("prompt"),
        becomes=becomes_chat,
        spread=True,
    ),
)
