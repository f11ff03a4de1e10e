"""Formats of demonstrations: each turns a row into a prompt with the answer to imitate, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from keel.files.fields import Row, RowError, good_or_bad, note, text, text_or
from keel.formats.messages import (
    AROUND,
    around,
    last_turn,
    messages,
    prompt,
    read_message,
    reply,
    says,
    spoken,
    texts_alone,
    turn_spoken,
    without_fields,
    without_tools,
)
from keel.records import Answer, Demonstration, Drawn, Message, Origin, Prompt

__all__ = ["DEMONSTRATED", "Demonstrated", "alpaca_question"]

_LABELS = "label", "kto_tag", "is_good", "preferred"
"""Columns that may say whether the answer is good."""
RATINGS = "score", "rating", "reward"
BESIDE = (*sorted(AROUND), *_LABELS, *RATINGS)
"""Columns that every format of demonstrations reads besides its own."""


@dataclass(frozen=True)
class Demonstrated:
    """A format of demonstrations.

    `needs` are its columns and `may` those it reads besides; `fits` tells it from other formats with these columns.
    `convert` reads a row, `write` writes one; both raise `RowError` with the reason if they cannot. `becomes` applies
    the format's own rule to a demonstration's texts.
    """

    name: str
    needs: tuple[str, ...]
    convert: Callable[[Row, Origin], Demonstration]
    write: Callable[[Demonstration], Row]
    fits: Callable[[Row], bool] = lambda row: True
    becomes: Callable[[Demonstration], Demonstration] = lambda demonstration: demonstration
    may: tuple[str, ...] = BESIDE


def _shown(row: Row, before: Prompt, answer: Answer, origin: Origin, classes: bool = False) -> Demonstration:
    """Return an answer to imitate. One that a column calls bad is dropped; a rating beside it is noted.

    `classes`: a number in the column label names a class and is no verdict.
    """
    for column in _LABELS:
        good = good_or_bad(row.get(column))
        if classes and column == "label" and str(row.get(column)).strip()[:1].isdigit():
            good = None
        if good is False:
            raise RowError(f"{column} says that the answer is bad")
        if good is None:
            _not_minded(row, column)
    for column in RATINGS:
        if not (column == "score" and _candidate(row.get("candidates"), row.get("best"))):  # that made it the best
            _not_minded(row, column)
    return Demonstration(around(row, before), answer.text, origin, answer.fields)


def _not_minded(row: Row, column: str) -> None:
    """Note a column that may say that an answer is not to be imitated, but not clearly."""
    if row.get(column) not in (None, ""):
        note(f"{column} is not used: the answer is imitated all the same, which may change what is learnt")


def _answer(it: Demonstration) -> Answer:
    return Answer(it.completion, fields=it.fields)


def _read_completion(row: Row, origin: Origin) -> Demonstration:
    before, completion = prompt(row, "prompt"), row.get("completion")
    if isinstance(completion, list):
        return _shown(row, before, reply(before, messages(row, "completion", imitated=True), "completion"), origin)
    found = _shown(row, before, Answer(text(row, "completion")), origin)
    return _as_drawn(row, found) if "candidates" in row and "best" in row else found


def _as_drawn(row: Row, found: Demonstration) -> Demonstration:
    """Add what `keel best-of-n` wrote of the best candidate: whether it was cut, and its tokens."""
    kept = _candidate(row.get("candidates"), row.get("best"))
    if kept is None:
        note("the columns best and candidates are not those of best-of-n, and are left out")
        return found
    if kept["text"] != found.completion:
        note("completion is not the text of the best candidate: its tokens and its end are left out")
        return found
    ids, tokenizer = kept.get("ids"), row.get("tokenizer")
    drawn = None
    if isinstance(tokenizer, str) and isinstance(ids, list) and all(type(it) is int for it in ids):
        drawn = Drawn(tokenizer, tuple(ids))
    return replace(found, cut=kept.get("truncated") is True, drawn=drawn)


def _candidate(candidates: object, best: object) -> dict[str, Any] | None:
    """Return the candidate at `best` if these are what best-of-n writes, else None."""
    if not isinstance(candidates, list) or type(best) is not int or not 0 <= best < len(candidates):
        return None
    found = candidates[best]
    return found if isinstance(found, dict) and isinstance(found.get("text"), str) else None


def _write_completion(it: Demonstration) -> Row:
    if isinstance(it.prompt, str):
        return {"prompt": it.prompt, "completion": without_fields(_answer(it))}
    turns, tools = without_tools(it.prompt)
    return {"prompt": turns, **tools, "completion": [says(_answer(it))]}


def _unlabelled(row: Row) -> bool:
    """Say whether a row has no verdict: answers judged bad are not to be imitated."""
    return good_or_bad(row.get("label")) is None


def _read_chat(row: Row, origin: Origin) -> Demonstration:
    """Read a chat whose last turn is the answer to imitate; earlier assistant turns are context."""
    return _read_turns(row, "messages", origin)


def _read_sharegpt(row: Row, origin: Origin) -> Demonstration:
    return _read_turns(row, "conversations", origin)


def _read_turns(row: Row, column: str, origin: Origin) -> Demonstration:
    before, answer = last_turn(messages(row, column, imitated=True), column)
    return _shown(row, before, answer, origin)


def _write_chat(it: Demonstration) -> Row:
    turns, tools = without_tools(_turns(it))
    return {"messages": [*turns, says(_answer(it))], **tools}


def _write_sharegpt(it: Demonstration) -> Row:
    row = spoken(_turns(it))
    return row | {"conversations": [*row["conversations"], turn_spoken(says(_answer(it)))]}


def _turns(it: Demonstration) -> list[Message]:
    if it.prompt == "":
        raise RowError("plain text has no prompt that could be a user's turn")
    return [read_message("user", it.prompt)] if isinstance(it.prompt, str) else it.prompt


_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
INSTRUCTION, INPUT, RESPONSE = "### Instruction:\n", "\n\n### Input:\n", "\n\n### Response:\n"


HISTORY = "history has no place in Alpaca's text; write the turns as messages"


def alpaca_question(row: Row) -> Prompt:
    """Return the prompt of an Alpaca row, with the system turn and tools that stand beside it."""
    if row.get("history"):
        raise RowError(HISTORY)
    return around(row, _alpaca_text(row))


def _alpaca_text(row: Row) -> str:
    """Return the text that Alpaca's authors wrote around an instruction and its optional input."""
    instruction, context = text(row, "instruction"), text_or(row, "input")
    if not instruction.strip():
        raise RowError("empty instruction")
    if not context.strip():
        return f"{_ALPACA}{INSTRUCTION}{instruction}{RESPONSE}"
    return f"{ALPACA_INPUT}{INSTRUCTION}{instruction}{INPUT}{context}{RESPONSE}"


def _alpaca_row(it: Demonstration) -> Row:
    """Return instruction and input: those inside Alpaca's text, or a prompt that is one text."""
    if isinstance(it.prompt, str):
        whole = it.prompt
    elif len(it.prompt) == 1 and it.prompt[0]["role"] == "user":
        whole = texts_alone(it.prompt)[0]["content"]
    else:
        raise RowError("the prompt has several turns or a system message, but the format holds one instruction")
    for head in (_ALPACA + INSTRUCTION, ALPACA_INPUT + INSTRUCTION):
        if whole.startswith(head) and whole.endswith(RESPONSE):
            middle = whole.removeprefix(head).removesuffix(RESPONSE)
            instruction, _, context = middle.partition(INPUT) if head.startswith(ALPACA_INPUT) else (middle, "", "")
            row = {"instruction": instruction, "input": context}
            if _alpaca_text(row) == whole:
                return row
    return {"instruction": whole, "input": ""}


def _write_alpaca(it: Demonstration) -> Row:
    return _alpaca_row(it) | {"output": without_fields(_answer(it))}


def _write_text(it: Demonstration) -> Row:
    if it.prompt != "":
        raise RowError("a prompt has no place in plain text")
    return {"text": without_fields(_answer(it))}


def _read_alpaca(row: Row, origin: Origin) -> Demonstration:
    if row.get("history"):
        raise RowError(HISTORY)
    return _shown(row, _alpaca_text(row), Answer(text(row, "output")), origin)


def _read_text(row: Row, origin: Origin) -> Demonstration:
    if taken := next((name for name in AROUND if row.get(name)), None):
        raise RowError(f"plain text has no place for the column {taken}")
    return _shown(row, "", Answer(text(row, "text")), origin, classes=True)


def _chat(it: Demonstration) -> Demonstration:
    return replace(it, prompt=_turns(it))


DEMONSTRATED: tuple[Demonstrated, ...] = (
    Demonstrated("prompt-completion", ("prompt", "completion"), _read_completion, _write_completion, fits=_unlabelled),
    Demonstrated("messages", ("messages",), _read_chat, _write_chat, fits=_unlabelled, becomes=_chat),
    Demonstrated("sharegpt", ("conversations",), _read_sharegpt, _write_sharegpt, becomes=_chat),
    Demonstrated(
        "alpaca",
        ("instruction", "output"),
        _read_alpaca,
        _write_alpaca,
        becomes=lambda it: replace(it, prompt=_alpaca_text(_alpaca_row(it))),
        may=("input", "history", *BESIDE),
    ),
    Demonstrated("text", ("text",), _read_text, _write_text),
)
