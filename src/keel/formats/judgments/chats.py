"""Pairs beside a question or a chat in a column of its own: Orca's, ms-swift's, axolotl's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from keel.files.fields import Row, RowError, margin, others, text
from keel.formats.judgments.base import FIRST, Judged, as_chat, as_turns, becomes_chat, overall, sides, with_extra
from keel.formats.judgments.pairs import APART, two_sides
from keel.formats.messages import (
    AROUND,
    around,
    last_turn,
    messages,
    one_side,
    read_side,
    says,
    texts_alone,
    without_fields,
    without_tools,
)
from keel.records import Answer, Judgment, Message, Origin, Preference, Prompt

Sides = tuple[Prompt, Answer, Answer]
"""The prompt, the better answer and the worse one."""


def _reader(split: Callable[[Row], Sides], *own: str) -> Callable[[Row, Origin], list[Judgment]]:
    known = frozenset((*own, "margin", *AROUND))

    def read(row: Row, origin: Origin) -> list[Judgment]:
        before, chosen, rejected = split(row)
        strength = margin(row)
        verdict = Preference("first", strength) if strength else FIRST
        return [Judgment(before, (chosen, rejected), verdict, extra=others(row, known), origin=origin)]

    return read


def _writer(put: Callable[[Prompt, Answer, Answer], Row]) -> Callable[[Sequence[Judgment]], list[Row]]:
    def write(group: Sequence[Judgment]) -> list[Row]:
        rows = []
        for judgment in overall(group):
            better, worse = sides(judgment)
            row = put(judgment.prompt, better, worse)
            assert isinstance(judgment.verdict, Preference)
            if judgment.verdict.strength:
                row["margin"] = judgment.verdict.strength
            rows.append(with_extra(judgment, row))
        return rows

    return write


# --- Orca: system, question, chosen, rejected


def _orca(row: Row) -> Sides:
    return around(row, as_chat(text(row, "question"))), Answer(text(row, "chosen")), Answer(text(row, "rejected"))


def _put_orca(before: Prompt, better: Answer, worse: Answer) -> Row:
    turns, tools = without_tools(as_turns(before))
    roles = [turn["role"] for turn in texts_alone(turns)]
    if roles not in (["user"], ["system", "user"]):
        raise RowError("the prompt has several turns, but the format holds one question")
    row: Row = {"system": turns[0]["content"]} if len(turns) > 1 else {}
    row |= {"question": turns[-1]["content"], **tools}
    return row | {"chosen": without_fields(better), "rejected": without_fields(worse)}


# --- ms-swift: messages that end with the chosen answer, and what was rejected in its place


def _swift(row: Row) -> Sides:
    before, chosen = last_turn(messages(row, "messages"), "messages")
    rejected = read_side(row, "rejected_response")
    if isinstance(rejected, str):
        return around(row, before), chosen, Answer(rejected)
    if len(rejected) != 1 or rejected[0]["role"] != "assistant":
        raise RowError("rejected_response is not one assistant message")
    return around(row, before), chosen, last_turn(rejected, "rejected_response", goes_on=True)[1]


def _put_swift(before: Prompt, better: Answer, worse: Answer) -> Row:
    turns, tools = without_tools(as_turns(before))
    return {"messages": [*turns, says(better)], **tools, "rejected_response": without_fields(worse)}


def _swift_chats(row: Row) -> Sides:
    before, chosen = last_turn(messages(row, "messages"), "messages")
    other, rejected = last_turn(messages(row, "rejected_messages"), "rejected_messages")
    if before != other:
        raise RowError(APART)
    return around(row, before), chosen, rejected


def _put_swift_chats(before: Prompt, better: Answer, worse: Answer) -> Row:
    turns, tools = without_tools(as_turns(before))
    return {"messages": [*turns, says(better)], "rejected_messages": [*turns, says(worse)], **tools}


# --- axolotl: messages, and one message for each side


def _axolotl(row: Row) -> Sides:
    turns: list[Message] = messages(row, "messages")
    if turns[-1]["role"] == "assistant":
        raise RowError("messages end with an assistant turn, before chosen and rejected")
    before, chosen, rejected = two_sides(turns, one_side(row, "chosen"), one_side(row, "rejected"))
    return around(row, before), chosen, rejected


def _put_axolotl(before: Prompt, better: Answer, worse: Answer) -> Row:
    turns, tools = without_tools(as_turns(before))
    return {"messages": turns, **tools, "chosen": says(better), "rejected": says(worse)}


def _alone(row: Row) -> bool:
    """Say whether each side is one answer, and not a transcript that holds the prompt."""
    found = [row.get(name) for name in ("chosen", "rejected")]
    one = all(isinstance(value, (str, dict)) or (isinstance(value, list) and len(value) == 1) for value in found)
    return one and row.get("prompt") is None and isinstance(row.get("messages"), list)


def _no_prompt(row: Row) -> bool:
    return row.get("prompt") is None


def _judged(
    name: str,
    columns: tuple[str, ...],
    split: Callable[[Row], Sides],
    put: Callable[[Prompt, Answer, Answer], Row],
    fits: Callable[[Row], bool] = lambda row: True,
) -> Judged:
    read = _reader(split, *columns)
    return Judged(name, columns, read, _writer(put), lambda row: split(row)[0], fits=fits, becomes=becomes_chat)


CHATS = (
    _judged("orca", ("question", "chosen", "rejected"), _orca, _put_orca, _no_prompt),
    _judged("ms-swift", ("messages", "rejected_response"), _swift, _put_swift),
    _judged("ms-swift-messages", ("messages", "rejected_messages"), _swift_chats, _put_swift_chats),
    _judged("axolotl", ("messages", "chosen", "rejected"), _axolotl, _put_axolotl, _alone),
)
