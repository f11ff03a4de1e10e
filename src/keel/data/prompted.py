"""Formats of prompts: what a row asks. Logs of chats are read up to their last question.

A chat that ends with an answer asks what its last user turn asks: the turns after that one are left out, with a note.
So the log of a service is a file of prompts. Chats that end otherwise stand as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from keel.data.demonstrations import alpaca_prompt
from keel.data.judged import JUDGED, Judged
from keel.data.judged.base import no_remarks
from keel.data.rows import Row, RowError, messages, said, text, text_or
from keel.records import Message, Origin, PromptRow

__all__ = ["PROMPTED", "Prompted"]

LEFT_OUT = "turns after the last user turn left out"
SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    **{role: role for role in ("user", "assistant", "system", "tool")},
}
"""Who speaks in ShareGPT's conversations, and as which role."""


@dataclass(frozen=True)
class Prompted:
    """A way to write prompts.

    `needs` are its columns, and `fits` tells it from another with these columns. `convert` reads a row, or raises
    `RowError` with the reason; `remarks` are worth a note beside the row's number.
    """

    name: str
    needs: tuple[str, ...]
    convert: Callable[[Row, Origin], PromptRow]
    fits: Callable[[Row], bool] = lambda row: True
    remarks: Callable[[Row], Iterable[str]] = no_remarks


# --- chats and logs of chats ----------------------------------------------------------------------


def _is_log(turns: object) -> bool:
    """Whether a chat ends with an answer."""
    return isinstance(turns, list) and bool(turns) and _role(turns[-1]) == "assistant"


def _role(turn: object) -> object:
    if not isinstance(turn, dict):
        return None
    return turn["role"] if "role" in turn else SPEAKERS.get(str(turn.get("from")))


def _question(row: Row, column: str) -> list[Message]:
    """The chat in `column` up to what is to be answered.

    It is cut before it is checked: calls of tools, which have no text, may stand in what is left out.
    """
    turns: Any = row.get(column)
    if _is_log(turns):
        users = [place for place, turn in enumerate(turns) if _role(turn) == "user"]
        if not users:
            raise RowError(f"{column} has no user turn")
        turns = turns[: users[-1] + 1]
    return messages({column: turns}, column)


def _remarks(column: str) -> Callable[[Row], Iterable[str]]:
    return lambda row: (LEFT_OUT,) if _is_log(row.get(column)) else ()


def _of_prompt(row: Row, origin: Origin) -> PromptRow:
    chat = isinstance(row.get("prompt"), list)
    return PromptRow(_question(row, "prompt") if chat else text(row, "prompt"), origin)


def _of_conversations(row: Row, origin: Origin) -> PromptRow:
    turns = row.get("conversations")
    turns = [_spoken(turn) for turn in turns] if isinstance(turns, list) else turns
    system = text_or(row, "system")
    before = [said("system", system)] if system else []
    return PromptRow(before + _question({"conversations": turns}, "conversations"), origin)


def _spoken(turn: Any) -> Any:
    """A turn of ShareGPT's as a message; one that is a message already, or nothing known, as it stands."""
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    return {"role": SPEAKERS.get(str(turn["from"])), "content": turn.get("value")}


# --- the table ------------------------------------------------------------------------------------


def _prompts_of(judged: Judged) -> Prompted:
    """The prompts of a format of judgments; those of pairs under a name that says so."""
    name = f"{judged.name}-pairs" if judged.name in ("hh", "trl") else judged.name
    return Prompted(name, judged.needs, lambda row, origin: PromptRow(judged.prompt(row), origin), judged.fits)


PROMPTED: tuple[Prompted, ...] = (
    *(_prompts_of(judged) for judged in JUDGED),
    Prompted("prompt", ("prompt",), _of_prompt, remarks=_remarks("prompt")),
    Prompted(
        "messages",
        ("messages",),
        lambda row, origin: PromptRow(_question(row, "messages"), origin),
        remarks=_remarks("messages"),
    ),
    Prompted("conversations", ("conversations",), _of_conversations, remarks=_remarks("conversations")),
    Prompted("instruction", ("instruction",), lambda row, origin: PromptRow(alpaca_prompt(row), origin)),
    Prompted("text", ("text",), lambda row, origin: PromptRow(text(row, "text"), origin)),
)
