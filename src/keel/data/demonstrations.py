"""Formats of demonstrations: a row into a prompt with the answer to imitate, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from keel.data.rows import Row, RowError, last_turn, messages, prompt, reply, said, text, text_or
from keel.records import Demonstration, Message, Origin

__all__ = ["DEMONSTRATED", "Demonstrated", "alpaca_prompt"]


@dataclass(frozen=True)
class Demonstrated:
    """A way to write demonstrations.

    `needs` are its columns and `may` those it reads besides; `fits` tells it from another with these columns.
    `convert` reads a row, `write` writes one; both raise `RowError` with the reason where they cannot. `becomes` is
    what the format's own rule makes of a demonstration's texts.
    """

    name: str
    needs: tuple[str, ...]
    convert: Callable[[Row, Origin], Demonstration]
    write: Callable[[Demonstration], Row]
    fits: Callable[[Row], bool] = lambda row: True
    becomes: Callable[[Demonstration], Demonstration] = lambda demonstration: demonstration
    may: tuple[str, ...] = ()


def _read_completion(row: Row, origin: Origin) -> Demonstration:
    before, completion = prompt(row, "prompt"), prompt(row, "completion")
    answer = completion if isinstance(completion, str) else reply(before, completion, "completion")
    return Demonstration(before, answer, origin)


def _write_completion(it: Demonstration) -> Row:
    answer = it.completion if isinstance(it.prompt, str) else [said("assistant", it.completion)]
    return {"prompt": it.prompt, "completion": answer}


def _unlabelled(row: Row) -> bool:
    """Without a verdict: answers judged bad are not to be imitated."""
    label = row.get("label")
    return not isinstance(label, bool) and not (isinstance(label, str) and label.lower() in ("true", "false"))


def _read_chat(row: Row, origin: Origin) -> Demonstration:
    """A chat whose last turn is the answer to imitate; earlier assistant turns are context."""
    before, completion = last_turn(messages(row, "messages"), "messages")
    return Demonstration(before, completion, origin)


def _write_chat(it: Demonstration) -> Row:
    return {"messages": [*_turns(it), said("assistant", it.completion)]}


def _turns(it: Demonstration) -> list[Message]:
    if it.prompt == "":
        raise RowError("plain text has no prompt that could be a user's turn")
    return [said("user", it.prompt)] if isinstance(it.prompt, str) else it.prompt


ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
INSTRUCTION, INPUT, RESPONSE = "### Instruction:\n", "\n\n### Input:\n", "\n\n### Response:\n"


def alpaca_prompt(row: Row) -> str:
    """The text that Alpaca's authors wrote around an instruction and its optional input."""
    instruction, context = text(row, "instruction"), text_or(row, "input")
    if not instruction.strip():
        raise RowError("empty instruction")
    if not context.strip():
        return f"{ALPACA}{INSTRUCTION}{instruction}{RESPONSE}"
    return f"{ALPACA_INPUT}{INSTRUCTION}{instruction}{INPUT}{context}{RESPONSE}"


def _alpaca_row(it: Demonstration) -> Row:
    """Instruction and input: those inside Alpaca's text, or a prompt that is one text."""
    if isinstance(it.prompt, str):
        whole = it.prompt
    elif len(it.prompt) == 1 and it.prompt[0]["role"] == "user":
        whole = it.prompt[0]["content"]
    else:
        raise RowError("the prompt has several turns or a system message, and there is place for one instruction")
    for head in (ALPACA + INSTRUCTION, ALPACA_INPUT + INSTRUCTION):
        if whole.startswith(head) and whole.endswith(RESPONSE):
            middle = whole.removeprefix(head).removesuffix(RESPONSE)
            instruction, _, context = middle.partition(INPUT) if head.startswith(ALPACA_INPUT) else (middle, "", "")
            row = {"instruction": instruction, "input": context}
            if alpaca_prompt(row) == whole:
                return row
    return {"instruction": whole, "input": ""}


def _write_alpaca(it: Demonstration) -> Row:
    return _alpaca_row(it) | {"output": it.completion}


def _write_text(it: Demonstration) -> Row:
    if it.prompt != "":
        raise RowError("a prompt has no place in plain text")
    return {"text": it.completion}


DEMONSTRATED: tuple[Demonstrated, ...] = (
    Demonstrated("prompt-completion", ("prompt", "completion"), _read_completion, _write_completion, fits=_unlabelled),
    Demonstrated("messages", ("messages",), _read_chat, _write_chat, becomes=lambda it: replace(it, prompt=_turns(it))),
    Demonstrated(
        "alpaca",
        ("instruction", "output"),
        lambda row, origin: Demonstration(alpaca_prompt(row), text(row, "output"), origin),
        _write_alpaca,
        becomes=lambda it: replace(it, prompt=alpaca_prompt(_alpaca_row(it))),
        may=("input",),
    ),
    Demonstrated("text", ("text",), lambda row, origin: Demonstration("", text(row, "text"), origin), _write_text),
)
