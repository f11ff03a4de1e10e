"""The interface of a format of judgments, and helpers that several formats share."""

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
    """Return no remarks."""
    return ()


@dataclass(frozen=True)
class Judged:
    """A format of judgments.

    `needs` are its columns; `fits` tells it from other formats with these columns. `read` returns a row's judgments,
    `write` the rows of judgments that stood together; both raise `RowError` with the reason if they cannot. `prompt`
    reads the prompt alone, so that a row without a verdict still asks something. `becomes` applies the format's own
    rule to a judgment's texts; for example, a chat becomes a transcript. `remarks` become notes with the row's number.
    `spread`: judgments that belong together stand on consecutive rows with the same prompt. `over` returns the format
    completed by the values of the first rows, such as the meaning of bare numbers, or raises `RowError` if they do not
    tell.
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
    """Return an instruction to a chat model as one user message."""
    if not instruction.strip():
        raise RowError("empty instruction")
    return [read_message("user", instruction)]


def read_instruction(column: str) -> Callable[[Row], list[Message]]:
    """Return a reader of the instruction in `column`."""
    return lambda row: as_chat(text(row, column))


def ask_with_input(row: Row) -> list[Message]:
    """Return `instruction`, with `input` below it if there is any."""
    turns, context = as_chat(text(row, "instruction")), text_or(row, "input")
    return [read_message("user", f"{turns[0]['content']}\n{context}")] if context.strip() else turns


def one_text(prompt: Prompt) -> str:
    """Return the text of a prompt that is plain or a single user message; refuse other chats."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return texts_alone(prompt)[0]["content"]
    raise RowError("the prompt has several turns or a system message, but the format holds one text")


def as_turns(prompt: Prompt) -> list[Message]:
    """Return a prompt as a chat; plain text is one user message."""
    return [read_message("user", prompt)] if isinstance(prompt, str) else prompt


def becomes_chat(judgment: Judgment) -> Judgment:
    """Apply the rule of formats that ask a chat model: plain text comes back as one user message."""
    return replace(judgment, prompt=as_turns(judgment.prompt))


def becomes_text(judgment: Judgment) -> Judgment:
    """Apply the rule of formats of plain text: one user message comes back as its text."""
    prompt = judgment.prompt
    alone = not isinstance(prompt, str) and len(prompt) == 1 and prompt[0]["role"] == "user"
    return replace(judgment, prompt=one_text(prompt)) if alone else judgment


# --- verdicts


def as_preference(judgment: Judgment) -> Preference:
    """Return the verdict of a judgment of two answers; raises `RowError` for a score or a ranking."""
    verdict = judgment.verdict
    if isinstance(verdict, Score):
        raise RowError("a score of one answer is no preference between two")
    if isinstance(verdict, Ranking):
        raise RowError(f"a ranking of {len(judgment.answers)} answers is no preference between two")
    return verdict


def sides(judgment: Judgment) -> tuple[Answer, Answer]:
    """Return (the better, the worse) answer; raises `RowError` if neither is better."""
    outcome = as_preference(judgment).outcome
    first, second = judgment.answers
    if outcome == "tie":
        raise RowError("a tie has no chosen and no rejected answer")
    if outcome == "both_bad":
        raise RowError("of two bad answers none is chosen")
    return (first, second) if outcome == "first" else (second, first)


def outcome_in(judgment: Judgment, places: dict[Outcome, int]) -> int:
    """Return the format's code for a preference's outcome; raises `RowError` if it has none."""
    outcome = as_preference(judgment).outcome
    if outcome not in places:
        raise RowError({"tie": "a tie has no place", "both_bad": "'both bad' has no place"}[outcome])
    return places[outcome]


def score(judgment: Judgment) -> float:
    """Return the value of a score; raises `RowError` for another verdict."""
    if not isinstance(judgment.verdict, Score):
        raise RowError(f"a {type(judgment.verdict).__name__.lower()} of several answers is no score")
    return judgment.verdict.value


def ranks(judgment: Judgment) -> tuple[int, ...]:
    """Return the ranks of a ranking; raises `RowError` for another verdict."""
    if not isinstance(judgment.verdict, Ranking):
        raise RowError(f"a {type(judgment.verdict).__name__.lower()} is no ranking")
    return judgment.verdict.ranks


def shape(value: float) -> int | float:
    """Return a whole number without its decimal point, as the data sets write it; other numbers as they are."""
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else value


# --- rows


def overall(group: Iterable[Judgment]) -> Iterator[Judgment]:
    """Yield judgments for a format without dimensions; raises `RowError` unless each is overall."""
    for judgment in group:
        if judgment.dimension != OVERALL:
            raise RowError(f"the dimension {judgment.dimension[:40]!r} has no place, only an overall verdict")
        yield judgment


def with_extra(judgment: Judgment, row: Row, without: Sequence[str] = ()) -> Row:
    """Return a row with the columns that came with the judgment; raises `RowError` if one is also the format's own."""
    extra = {c: v for c, v in (judgment.extra or {}).items() if c not in without}
    if taken := next((column for column in extra if column in row), None):
        raise RowError(f"the further column {str(taken)[:40]!r} has the name of one of the format's own")
    return row | extra


def same_text(value: object) -> str:
    """Return a rater's or a model's name: text as it is, a whole number as text; raises `RowError` otherwise."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and is_unicode(value):
        return value
    raise RowError("a name is neither text nor a whole number")


def name_in(row: Row, column: str) -> str:
    """Return the optional name in `column`; empty if there is none."""
    value = row.get(column)
    try:
        return "" if value is None else same_text(value)
    except RowError:
        raise RowError(f"{column} is no name") from None


def verdict_of(sign: int, strength: float = 0.0) -> Verdict:
    """Return a preference from -1 (first), 0 (tie) or 1 (second)."""
    return Preference(("tie", "second", "first")[sign], strength)


def json_line(value: object) -> str:
    """Return one line of JSON."""
    return json.dumps(value, ensure_ascii=False)
