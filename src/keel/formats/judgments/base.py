"""What a format of judgments is, and what several of them share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from keel.files.fields import Row, RowError, is_unicode, text, text_or
from keel.formats.messages import read_message, texts_alone
from keel.records import (
    OVERALL,
    Answer,
    Judgment,
    Message,
    Origin,
    Outcome,
    Preference,
    Prompt,
    Ranking,
    Score,
    Verdict,
)

FIRST, SECOND = Preference("first"), Preference("second")
TIE = Preference("tie")


def no_remarks(row: Row) -> Iterable[str]:
    """Nothing worth a note."""
    return ()


@dataclass(frozen=True)
class Judged:
    """A way to write judgments.

    `needs` are its columns, `fits` tells it from another with these columns. `read` gives a row's judgments, `write`
    rows of judgments that stood together; both raise `RowError` with the reason where they cannot. `prompt` reads the
    prompt alone, so that a row without a verdict still asks something. `becomes` is what the format's own rule makes
    of a judgment's texts, such as a chat that becomes a transcript. `remarks` are worth a note beside the row's
    number. `spread`: what belongs together stands on consecutive rows with the same prompt. `over` is the format with
    what only the values of the first rows tell, such as the meaning of bare numbers, or `RowError` where they do not.
    """

    name: str
    needs: tuple[str, ...]
    read: Callable[[Row, Origin], list[Judgment]]
    write: Callable[[Sequence[Judgment]], list[Row]]
    prompt: Callable[[Row], Prompt]
    fits: Callable[[Row], bool] = lambda row: True
    becomes: Callable[[Judgment], Judgment] = lambda judgment: judgment
    remarks: Callable[[Row], Iterable[str]] = no_remarks
    spread: bool = False
    over: Callable[[Sequence[Row]], Judged] | None = None


# --- prompts


def as_chat(instruction: str) -> list[Message]:
    """An instruction to a chat model: one user message."""
    if not instruction.strip():
        raise RowError("empty instruction")
    return [read_message("user", instruction)]


def read_instruction(column: str) -> Callable[[Row], list[Message]]:
    """Reads the instruction in `column`."""
    return lambda row: as_chat(text(row, column))


def ask_with_input(row: Row) -> list[Message]:
    """`instruction`, and below it `input` where there is one."""
    turns, context = as_chat(text(row, "instruction")), text_or(row, "input")
    return [read_message("user", f"{turns[0]['content']}\n{context}")] if context.strip() else turns


def one_text(prompt: Prompt) -> str:
    """The text of a prompt that is plain or a single user message; other chats are refused."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return texts_alone(prompt)[0]["content"]
    raise RowError("the prompt has several turns or a system message, and there is place for one text")


def as_turns(prompt: Prompt) -> list[Message]:
    """A prompt as a chat; plain text is one user message."""
    return [read_message("user", prompt)] if isinstance(prompt, str) else prompt


def becomes_chat(judgment: Judgment) -> Judgment:
    """The rule of formats of questions to a chat model: plain text comes back as one user message."""
    return replace(judgment, prompt=as_turns(judgment.prompt))


def becomes_text(judgment: Judgment) -> Judgment:
    """The rule of formats of plain text: one user message comes back as its text."""
    prompt = judgment.prompt
    alone = not isinstance(prompt, str) and len(prompt) == 1 and prompt[0]["role"] == "user"
    return replace(judgment, prompt=one_text(prompt)) if alone else judgment


# --- verdicts


def as_preference(judgment: Judgment) -> Preference:
    """The verdict of a judgment of two answers, where it is one; `RowError` for a score or a ranking."""
    verdict = judgment.verdict
    if isinstance(verdict, Score):
        raise RowError("a score of one answer is no preference between two")
    if isinstance(verdict, Ranking):
        raise RowError(f"a ranking of {len(judgment.answers)} answers is no preference between two")
    return verdict


def sides(judgment: Judgment) -> tuple[Answer, Answer]:
    """(the better, the worse) answer; `RowError` where neither is better."""
    outcome = as_preference(judgment).outcome
    first, second = judgment.answers
    if outcome == "tie":
        raise RowError("a tie has no chosen and no rejected answer")
    if outcome == "both_bad":
        raise RowError("of two bad answers none is chosen")
    return (first, second) if outcome == "first" else (second, first)


def outcome_in(judgment: Judgment, places: dict[Outcome, int]) -> int:
    """The format's code for a preference's outcome, or `RowError`."""
    outcome = as_preference(judgment).outcome
    if outcome not in places:
        raise RowError({"tie": "a tie has no place", "both_bad": "'both bad' has no place"}[outcome])
    return places[outcome]


def score(judgment: Judgment) -> float:
    """The value of a score; `RowError` for another verdict."""
    if not isinstance(judgment.verdict, Score):
        raise RowError(f"a {type(judgment.verdict).__name__.lower()} of several answers is no score")
    return judgment.verdict.value


def ranks(judgment: Judgment) -> tuple[int, ...]:
    """The ranks of a ranking; `RowError` for another verdict."""
    if not isinstance(judgment.verdict, Ranking):
        raise RowError(f"a {type(judgment.verdict).__name__.lower()} is no ranking")
    return judgment.verdict.ranks


def shape(value: float) -> int | float:
    """A whole number without its decimal point, as the data sets write it."""
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else value


# --- rows


def overall(group: Iterable[Judgment]) -> Iterator[Judgment]:
    """The judgments of a format without dimensions, each of which must be overall."""
    for judgment in group:
        if judgment.dimension != OVERALL:
            raise RowError(f"the dimension {judgment.dimension[:40]!r} has no place, only an overall verdict")
        yield judgment


def with_extra(judgment: Judgment, row: Row, without: Sequence[str] = ()) -> Row:
    """A row with the columns that came with the judgment, those of the format's own last in precedence."""
    extra = {c: v for c, v in (judgment.extra or {}).items() if c not in without}
    if taken := next((column for column in extra if column in row), None):
        raise RowError(f"the further column {str(taken)[:40]!r} has the name of one of the format's own")
    return row | extra


def same_text(value: object) -> str:
    """A rater's or a model's name: text as it is, a whole number as text; else `RowError`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and is_unicode(value):
        return value
    raise RowError("a name is neither text nor a whole number")


def name_in(row: Row, column: str) -> str:
    """The optional name in `column`."""
    value = row.get(column)
    try:
        return "" if value is None else same_text(value)
    except RowError:
        raise RowError(f"{column} is no name") from None


def verdict_of(sign: int, strength: float = 0.0) -> Verdict:
    """A preference from -1 (first), 0 (tie) or 1 (second)."""
    return Preference(("tie", "second", "first")[sign], strength)


def json_line(value: object) -> str:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False)
