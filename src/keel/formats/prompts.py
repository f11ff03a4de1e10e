"""Formats of prompts: what a row asks. Logs of chats are read up to their last question.

A chat that ends with an answer asks what its last user turn asks: the turns after that one are left out, with a note.
So the log of a service is a file of prompts. Other chats are read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from keel.files.fields import Row, RowError, text
from keel.formats.demonstrations import alpaca_question
from keel.formats.judgments import JUDGED, Judged
from keel.formats.judgments.base import no_remarks
from keel.formats.messages import ROLES, around, messages
from keel.records import Origin, Prompt, PromptRow

__all__ = ["PROMPTED", "Prompted"]

LEFT_OUT = "turns after the last user turn left out"


@dataclass(frozen=True)
class Prompted:
    """A format of prompts.

    `needs` are its columns; `fits` tells it from other formats with these columns. `convert` reads a row, or raises
    `RowError` with the reason; `remarks` become notes with the row's number.
    """

    name: str
    needs: tuple[str, ...]
    convert: Callable[[Row, Origin], PromptRow]
    fits: Callable[[Row], bool] = lambda row: True
    remarks: Callable[[Row], Iterable[str]] = no_remarks


# --- chats and logs of chats ----------------------------------------------------------------------


def _is_log(turns: object) -> bool:
    """Say whether a chat ends with an answer."""
    return isinstance(turns, list) and bool(turns) and _role(turns[-1]) == "assistant"


def _role(turn: object) -> str | None:
    if not isinstance(turn, dict):
        return None
    word = turn.get("from") if turn.get("role") is None else turn["role"]
    return ROLES.get(word.strip().lower()) if isinstance(word, str) else None


def _question(row: Row, column: str) -> Prompt:
    """Return the chat in `column` up to the turn to answer.

    It is cut before it is checked: tool calls, which have no text, may stand in what is left out.
    """
    turns: Any = row.get(column)
    if _is_log(turns):
        users = [place for place, turn in enumerate(turns) if _role(turn) == "user"]
        if not users:
            raise RowError(f"{column} has no user turn")
        turns = turns[: users[-1] + 1]
    return around(row, messages({column: turns}, column))


def _of_chat(column: str) -> Prompted:
    return Prompted(
        column, (column,), lambda row, origin: PromptRow(_question(row, column), origin), remarks=_remarks(column)
    )


def _remarks(column: str) -> Callable[[Row], Iterable[str]]:
    return lambda row: (LEFT_OUT,) if _is_log(row.get(column)) else ()


def _of_prompt(row: Row, origin: Origin) -> PromptRow:
    chat = isinstance(row.get("prompt"), list)
    return PromptRow(_question(row, "prompt") if chat else around(row, text(row, "prompt")), origin)


# --- the table ------------------------------------------------------------------------------------


def _prompts_of(judged: Judged) -> Prompted:
    """Return the prompt format of a format of judgments; that of pairs gets a name that says so."""
    name = f"{judged.name}-pairs" if judged.name in ("hh", "trl") else judged.name
    return Prompted(name, judged.needs, lambda row, origin: PromptRow(judged.prompt(row), origin), judged.fits)


PROMPTED: tuple[Prompted, ...] = (
    *(_prompts_of(judged) for judged in JUDGED),
    Prompted("prompt", ("prompt",), _of_prompt, remarks=_remarks("prompt")),
    _of_chat("messages"),
    _of_chat("conversations"),
    Prompted("instruction", ("instruction",), lambda row, origin: PromptRow(alpaca_question(row), origin)),
    Prompted("text", ("text",), lambda row, origin: PromptRow(around(row, text(row, "text")), origin)),
)
