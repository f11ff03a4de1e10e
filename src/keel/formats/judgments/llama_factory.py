"""LLaMA-Factory's pairs: beside an instruction with its history, or beside a conversation as ShareGPT writes it."""

from __future__ import annotations

from collections.abc import Sequence

from keel.files.fields import Row, RowError, items, others, text
from keel.formats.judgments.base import (
    FIRST,
    Judged,
    as_turns,
    ask_with_input,
    becomes_chat,
    overall,
    sides,
    with_extra,
)
from keel.formats.messages import (
    AROUND,
    around,
    messages,
    one_side,
    read_message,
    reply,
    says,
    spoken,
    texts_alone,
    turn_spoken,
    without_fields,
    without_tools,
)
from keel.records import Answer, Judgment, Message, Origin, Prompt

FACTORY = frozenset(("instruction", "input", "history", "chosen", "rejected", *AROUND))
_SHAREGPT = frozenset(("conversations", "chosen", "rejected", *AROUND))


def _factory_prompt(row: Row) -> Prompt:
    turns: list[Message] = []
    for exchange in items(row, "history") if row.get("history") else []:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise RowError("history is not a list of question and answer")
        question, answer = (text({"history": part}, "history") for part in exchange)
        turns += [read_message("user", question), read_message("assistant", answer)]
    return around(row, turns + ask_with_input(row))


def _read_factory(row: Row, origin: Origin) -> list[Judgment]:
    answers = Answer(text(row, "chosen")), Answer(text(row, "rejected"))
    return [Judgment(_factory_prompt(row), answers, FIRST, extra=others(row, FACTORY), origin=origin)]


def _write_factory(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        better, worse = sides(judgment)
        turns, tools = without_tools(as_turns(judgment.prompt))
        texts_alone(turns)
        system = turns[0]["content"] if turns and turns[0]["role"] == "system" else ""
        turns = turns[1:] if system else turns
        if [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise RowError("the prompt does not alternate between user and assistant, the user first and last")
        contents = [turn["content"] for turn in turns]
        row: Row = {"instruction": contents[-1], "input": "", **tools}
        row |= {"chosen": without_fields(better), "rejected": without_fields(worse)}
        row |= {"system": system} if system else {}
        history = [list(two) for two in zip(contents[:-1:2], contents[1::2], strict=True)]
        row |= {"history": history} if history else {}
        rows.append(with_extra(judgment, row))
    return rows


def _sharegpt_prompt(row: Row) -> Prompt:
    turns = messages(row, "conversations")
    if turns[-1]["role"] == "assistant":
        raise RowError("conversations end with an assistant turn")
    return around(row, turns)


def _sharegpt_answer(row: Row, column: str) -> Answer:
    found = one_side(row, column)
    return Answer(found) if isinstance(found, str) else reply([], found, column)


def _read_sharegpt(row: Row, origin: Origin) -> list[Judgment]:
    answers = _sharegpt_answer(row, "chosen"), _sharegpt_answer(row, "rejected")
    return [Judgment(_sharegpt_prompt(row), answers, FIRST, extra=others(row, _SHAREGPT), origin=origin)]


def _write_sharegpt(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        better, worse = sides(judgment)
        row: Row = spoken(as_turns(judgment.prompt))
        row |= {"chosen": turn_spoken(says(better)), "rejected": turn_spoken(says(worse))}
        rows.append(with_extra(judgment, row))
    return rows


LLAMA_FACTORY = (
    Judged(
        "llama-factory",
        ("instruction", "chosen", "rejected"),
        _read_factory,
        _write_factory,
        _factory_prompt,
        fits=lambda row: row.get("prompt") is None and isinstance(row.get("chosen"), str),
        becomes=becomes_chat,
    ),
    Judged(
        "llama-factory-sharegpt",
        ("conversations", "chosen", "rejected"),
        _read_sharegpt,
        _write_sharegpt,
        _sharegpt_prompt,
        fits=lambda row: row.get("prompt") is None,
        becomes=becomes_chat,
    ),
)
