"""LLaMA-Factory's pairs: around an instruction with its history, or a conversation as ShareGPT writes it."""

from __future__ import annotations

from collections.abc import Sequence

from keel.data.judged.base import FIRST, Judged, ask_with_input, becomes_chat, overall, sides, turns_of, with_extra
from keel.data.rows import Row, RowError, items, mapping, objects, others, reply, said, text, text_or
from keel.records import Answer, Judgment, Message, Origin

FACTORY = frozenset(("instruction", "input", "system", "history", "chosen", "rejected"))
SHAREGPT = frozenset(("conversations", "system", "chosen", "rejected"))
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


def _system(row: Row) -> list[Message]:
    content = text_or(row, "system")
    return [said("system", content)] if content else []


def _factory_prompt(row: Row) -> list[Message]:
    turns = _system(row)
    for exchange in items(row, "history") if row.get("history") else []:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise RowError("history is not a list of question and answer")
        question, answer = (text({"history": part}, "history") for part in exchange)
        turns += [said("user", question), said("assistant", answer)]
    return turns + ask_with_input(row)


def _read_factory(row: Row, origin: Origin) -> list[Judgment]:
    answers = Answer(text(row, "chosen")), Answer(text(row, "rejected"))
    return [Judgment(_factory_prompt(row), answers, FIRST, extra=others(row, FACTORY), origin=origin)]


def _write_factory(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        better, worse = sides(judgment)
        turns = turns_of(judgment.prompt)
        system = turns[0]["content"] if turns and turns[0]["role"] == "system" else ""
        turns = turns[1:] if system else turns
        if [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise RowError("the prompt does not alternate between user and assistant, the user first and last")
        contents = [turn["content"] for turn in turns]
        row: Row = {"instruction": contents[-1], "input": "", "chosen": better.text, "rejected": worse.text}
        row |= {"system": system} if system else {}
        history = [list(two) for two in zip(contents[:-1:2], contents[1::2], strict=True)]
        row |= {"history": history} if history else {}
        rows.append(with_extra(judgment, row))
    return rows


def _spoken(value: Row, column: str) -> Message:
    speaker = value.get("from")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise RowError(f"{column} has a turn that is not from human, gpt or system")
    return said(ROLES[speaker], text(value, "value"))


def _sharegpt_prompt(row: Row) -> list[Message]:
    turns = _system(row) + [_spoken(turn, "conversations") for turn in objects(row, "conversations")]
    if turns[-1]["role"] != "user":
        raise RowError("conversations do not end with a human turn")
    return turns


def _sharegpt_answer(row: Row, column: str) -> Answer:
    turn = _spoken(mapping(row, column), column)
    return Answer(reply([], [turn], column))


def _read_sharegpt(row: Row, origin: Origin) -> list[Judgment]:
    answers = _sharegpt_answer(row, "chosen"), _sharegpt_answer(row, "rejected")
    return [Judgment(_sharegpt_prompt(row), answers, FIRST, extra=others(row, SHAREGPT), origin=origin)]


def _write_sharegpt(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        better, worse = sides(judgment)
        turns = turns_of(judgment.prompt)
        if unknown := next((turn["role"] for turn in turns if turn["role"] not in SPEAKERS), None):
            raise RowError(f"a turn of the role {unknown[:40]!r} has no place")
        row = {"conversations": [{"from": SPEAKERS[turn["role"]], "value": turn["content"]} for turn in turns]}
        answers = {side: {"from": "gpt", "value": a.text} for side, a in (("chosen", better), ("rejected", worse))}
        rows.append(with_extra(judgment, row | answers))
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
