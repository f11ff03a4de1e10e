"""Benchmarks of judges and reward models: LLMBar, JudgeBench and RM-Bench; and lists of chosen and rejected answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keel.files.fields import Row, RowError, items, margin, number_in, others, text
from keel.formats.judgments.base import (
    Judged,
    as_chat,
    becomes_chat,
    name_in,
    one_text,
    outcome_in,
    overall,
    ranks,
    read_instruction,
    verdict_of,
    with_extra,
)
from keel.formats.judgments.pairs import asked_in_columns
from keel.formats.messages import AROUND, around, messages, prompt, reply, says, without_fields
from keel.records import Answer, Judgment, Origin, Prompt, Ranking

# --- LLMBar

LLMBAR = frozenset(("input", "output_1", "output_2", "label"))


def _read_llmbar(row: Row, origin: Origin) -> list[Judgment]:
    value = number_in(row, "label")
    if value not in (1, 2):
        raise RowError("label is neither 1 nor 2")
    answers = Answer(text(row, "output_1")), Answer(text(row, "output_2"))
    verdict = verdict_of(2 * int(value) - 3)
    return [Judgment(as_chat(text(row, "input")), answers, verdict, extra=others(row, LLMBAR), origin=origin)]


def _write_llmbar(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        label, (first, second) = outcome_in(judgment, {"first": 1, "second": 2}), judgment.answers
        row: Row = {"input": one_text(judgment.prompt), "output_1": without_fields(first)}
        rows.append(with_extra(judgment, row | {"output_2": without_fields(second), "label": label}))
    return rows


# --- JudgeBench

JUDGEBENCH = frozenset(("question", "response_A", "response_B", "label", "response_model"))
SIGNS = {"A>B": -1, "A=B": 0, "B>A": 1}


def _read_judgebench(row: Row, origin: Origin) -> list[Judgment]:
    """Read a pair whose label says which response is right; both are by the same model."""
    label = text(row, "label").replace(" ", "")
    if label not in SIGNS:
        raise RowError("label is neither A>B nor B>A")
    before, model = as_chat(text(row, "question")), name_in(row, "response_model")
    answers = Answer(text(row, "response_A"), model=model), Answer(text(row, "response_B"), model=model)
    return [Judgment(before, answers, verdict_of(SIGNS[label]), extra=others(row, JUDGEBENCH), origin=origin)]


def _write_judgebench(group: Sequence[Judgment]) -> list[Row]:
    rows, labels = [], {sign: label for label, sign in SIGNS.items()}
    for judgment in overall(group):
        code, (first, second) = outcome_in(judgment, {"first": -1, "tie": 0, "second": 1}), judgment.answers
        row: Row = {"question": one_text(judgment.prompt), "response_A": without_fields(first)}
        row |= {"response_B": without_fields(second), "label": labels[code]}
        row |= {"response_model": first.model} if first.model and first.model == second.model else {}
        rows.append(with_extra(judgment, row))
    return rows


# --- lists of chosen and rejected answers, RM-Bench's among them

LISTED = frozenset(("prompt", "chosen", "rejected", *AROUND))


def _question(row: Row) -> Prompt:
    return around(row, prompt(row, "prompt"))


def _read_lists(ask_row: Callable[[Row], Prompt]) -> Callable[[Row, Origin], list[Judgment]]:
    """Return a reader that ranks the chosen answers 1 and the rejected ones 2."""

    def read(row: Row, origin: Origin) -> list[Judgment]:
        before = ask_row(row)
        if margin(row):
            raise RowError("a margin has no place beside a list of answers")
        right, wrong = _several(row, "chosen", before), _several(row, "rejected", before)
        verdict = Ranking((1,) * len(right) + (2,) * len(wrong))
        return [Judgment(before, (*right, *wrong), verdict, extra=others(row, LISTED), origin=origin)]

    return read


def _several(row: Row, column: str, before: Prompt) -> list[Answer]:
    """Return the answers in a list, or a single one: each is a text, a message, or a list of one message."""
    value = row.get(column)
    if isinstance(value, str) and not value.startswith("["):
        return [Answer(text(row, column))]
    found = items(row, column)
    if not found:
        raise RowError(f"{column} is empty")
    if all(isinstance(item, dict) for item in found):  # one message
        found = [found]
    return [_one(item, column, before) for item in found]


def _one(item: Any, column: str, before: Prompt) -> Answer:
    if isinstance(item, list):
        return reply(before, messages({column: item}, column), column)
    return Answer(text({column: item}, column))


def _write_lists(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        row = asked_in_columns(judgment.prompt)
        for name, answers in zip(("chosen", "rejected"), _placed(judgment), strict=True):
            plain = isinstance(judgment.prompt, str)
            row[name] = [without_fields(answer) if plain else [says(answer)] for answer in answers]
        rows.append(with_extra(judgment, row))
    return rows


def _write_rm_bench(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        right, wrong = _placed(judgment)
        if not (judgment.extra or {}).get("domain"):
            raise RowError("no domain, by which RM-Bench counts")
        if len(right) != len(wrong):
            raise RowError("RM-Bench has as many chosen as rejected answers, one in each style")
        row: Row = {"prompt": one_text(judgment.prompt), "chosen": [without_fields(answer) for answer in right]}
        rows.append(with_extra(judgment, row | {"rejected": [without_fields(answer) for answer in wrong]}))
    return rows


def _placed(judgment: Judgment) -> tuple[list[Answer], list[Answer]]:
    """Return (the chosen, the rejected) answers of a ranking with two ranks."""
    places = ranks(judgment)
    if set(places) != {1, 2}:
        raise RowError("the ranks are not 1 for the chosen and 2 for the rejected answers")
    placed = list(zip(places, judgment.answers, strict=True))
    return [answer for place, answer in placed if place == 1], [answer for place, answer in placed if place == 2]


def _looks_like_lists(row: Row) -> bool:
    """Say whether one of the sides holds several answers."""
    return row.get("prompt") is not None and any(_holds_several(row.get(name)) for name in ("chosen", "rejected"))


def _holds_several(value: object) -> bool:
    if isinstance(value, str):  # a CSV cell
        return value.startswith(('["', "[["))
    return isinstance(value, list) and len(value) > 1 and all(isinstance(item, (str, list)) for item in value)


def _looks_like_rm_bench(row: Row) -> bool:
    values = row.get("chosen"), row.get("rejected")
    texts = all(isinstance(v, str) or (isinstance(v, list) and v and isinstance(v[0], str)) for v in values)
    return isinstance(row.get("prompt"), str) and all(map(_holds_several, values)) and texts


LISTS = (
    Judged(
        "rm-bench",
        ("prompt", "chosen", "rejected", "domain"),
        _read_lists(read_instruction("prompt")),
        _write_rm_bench,
        read_instruction("prompt"),
        fits=_looks_like_rm_bench,
        becomes=becomes_chat,
    ),
    Judged(
        "lists",
        ("prompt", "chosen", "rejected"),
        _read_lists(_question),
        _write_lists,
        _question,
        fits=_looks_like_lists,
    ),
)
BENCHES = (
    Judged(
        "llmbar",
        ("input", "output_1", "output_2", "label"),
        _read_llmbar,
        _write_llmbar,
        read_instruction("input"),
        becomes=becomes_chat,
    ),
    Judged(
        "judgebench",
        ("question", "response_A", "response_B", "label"),
        _read_judgebench,
        _write_judgebench,
        read_instruction("question"),
        becomes=becomes_chat,
    ),
)
