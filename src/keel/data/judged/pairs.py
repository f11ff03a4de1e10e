"""Chosen and rejected: TRL's pairs, HH transcripts, OpenAI's preference fine-tuning; and TRL's KTO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from keel.data.judged.base import (
    FIRST,
    Judged,
    becomes_chat,
    one_text,
    overall,
    score,
    sides,
    turns_of,
    with_extra,
)
from keel.data.judged.details import read_details, write_details
from keel.data.rows import (
    Row,
    RowError,
    last_turn,
    mapping,
    margin,
    messages,
    objects,
    others,
    prompt,
    reply,
    said,
    text,
)
from keel.records import Answer, Judgment, Message, Origin, Preference, Prompt, Score

# --- TRL pairs

TRL = frozenset(("prompt", "chosen", "rejected", "margin"))
SIDES = "chosen", "rejected"


def trl_sides(row: Row) -> tuple[Prompt, str, str]:
    """TRL: `chosen` and `rejected` as text, as one assistant message each, or as whole lists of messages.

    In the last case the prompt is what both share before the last assistant turn; a `prompt` column beside
    them must be that, or, as text, one of its user turns.
    """
    before = None if row.get("prompt") is None else prompt(row, "prompt")
    chosen, rejected = prompt(row, "chosen"), prompt(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if before is None:
            raise RowError("no prompt, and the answers are plain text")
        return before, chosen, rejected
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowError("one answer is text and the other messages")
    if before is not None and len(chosen) == len(rejected) == 1:
        return before, reply(before, chosen, "chosen"), reply(before, rejected, "rejected")
    (shared, better), (other, worse) = last_turn(chosen, "chosen"), last_turn(rejected, "rejected")
    if shared != other:
        raise RowError("transcripts differ before the last assistant turn")
    users = [message["content"] for message in shared if message["role"] == "user"]
    if before is not None and before != shared and before not in users:
        raise RowError("prompt is not the one in the transcripts")
    return shared, better, worse


def _read_trl(row: Row, origin: Origin) -> list[Judgment]:
    before, chosen, rejected = trl_sides(row)
    strength = margin(row)
    verdict = Preference("first", strength) if strength else FIRST
    found = read_details(row, TRL, SIDES)
    if found is None:
        return [Judgment(before, (Answer(chosen), Answer(rejected)), verdict, origin=origin)]
    better, worse = Answer(chosen, **found.answers["chosen"]), Answer(rejected, **found.answers["rejected"])
    answers = better, worse
    if found.swapped:
        answers, verdict = (worse, better), Preference("second", strength)
    return [Judgment(before, answers, verdict, extra=found.extra, origin=origin, **found.judgment)]


def _write_trl(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in group:
        better, worse = sides(judgment)
        row: Row = {"prompt": judgment.prompt}
        for side, answer in zip(SIDES, (better, worse), strict=True):
            row[side] = answer.text if isinstance(judgment.prompt, str) else [said("assistant", answer.text)]
        assert isinstance(judgment.verdict, Preference)
        if judgment.verdict.strength:
            row["margin"] = judgment.verdict.strength
        rows.append(write_details(judgment, row, dict(zip(SIDES, (better, worse), strict=True))))
    return rows


# --- TRL's KTO

KTO = frozenset(("prompt", "completion", "label"))
LABELS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}


def _label(row: Row) -> float:
    """1 for a good answer; CSV cells and some tools hold it as text or as a number."""
    value = row.get("label")
    if value is None or value == "":
        raise RowError("no label")
    word = str(value).lower() if isinstance(value, (str, bool, int, float)) else ""
    if word not in LABELS:
        raise RowError("label is neither true nor false")
    return LABELS[word]


def _read_kto(row: Row, origin: Origin) -> list[Judgment]:
    before, completion = prompt(row, "prompt"), prompt(row, "completion")
    answer = completion if isinstance(completion, str) else reply(before, completion, "completion")
    label = _label(row)
    found = read_details(row, KTO, ("completion",))
    if found is None:
        return [Judgment(before, (Answer(answer),), Score(label), origin=origin)]
    answers = (Answer(answer, **found.answers["completion"]),)
    return [Judgment(before, answers, Score(label), extra=found.extra, origin=origin, **found.judgment)]


def _write_kto(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in group:
        value = score(judgment)
        if value not in (0, 1):
            raise RowError(f"a score of {value:g} is neither 0 nor 1, and a label is true or false")
        answer = judgment.answers[0]
        plain = isinstance(judgment.prompt, str)
        completion: Any = answer.text if plain else [said("assistant", answer.text)]
        row = {"prompt": judgment.prompt, "completion": completion, "label": bool(value)}
        rows.append(write_details(judgment, row, {"completion": answer}))
    return rows


# --- Anthropic HH

ASSISTANT, HUMAN = "\n\nAssistant:", "\n\nHuman:"


def hh_sides(row: Row) -> tuple[str, str, str]:
    """Anthropic HH: two whole transcripts, split at the last assistant turn and nowhere else.

    The prompt ends with "\n\nAssistant:" and the completion keeps its leading space.
    """
    split = {}
    for side in SIDES:
        before, turn, answer = text(row, side).rpartition(ASSISTANT)
        if not turn:
            raise RowError(f"{side} has no Assistant turn")
        if HUMAN in answer:
            raise RowError(f"{side} ends with a Human turn")
        split[side] = before, answer
    (before, chosen), (other, rejected) = split["chosen"], split["rejected"]
    if before != other:
        raise RowError("transcripts differ before the last assistant turn")
    if not before.strip():
        raise RowError("empty prompt")
    return before + ASSISTANT, chosen, rejected


def _read_hh(row: Row, origin: Origin) -> list[Judgment]:
    before, chosen, rejected = hh_sides(row)
    verdict = Preference("first", margin(row))
    return [Judgment(before, (Answer(chosen), Answer(rejected)), verdict, extra=others(row, TRL), origin=origin)]


def _transcript(turns: list[Message]) -> str:
    """Alternating user and assistant turns, the last a user's, up to where the assistant starts to speak."""
    names = {"user": HUMAN, "assistant": ASSISTANT}
    for i, turn in enumerate(turns):
        if turn["role"] != ("user", "assistant")[i % 2]:
            raise RowError("a transcript alternates between user and assistant, the user first")
        if HUMAN in turn["content"] or ASSISTANT in turn["content"]:
            raise RowError("a turn holds the start of another turn of a transcript")
    if len(turns) % 2 == 0:
        raise RowError("the prompt ends with an assistant turn")
    return "".join(f"{names[turn['role']]} {turn['content']}" for turn in turns) + ASSISTANT


def _becomes_hh(judgment: Judgment) -> Judgment:
    """A chat as a transcript, in which an answer begins with a space."""
    if isinstance(judgment.prompt, str):
        return judgment
    answers = tuple(replace(answer, text=" " + answer.text) for answer in judgment.answers)
    return replace(judgment, prompt=_transcript(judgment.prompt), answers=answers)


def _write_hh(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in map(_becomes_hh, overall(group)):
        before, (better, worse) = one_text(judgment.prompt), sides(judgment)
        if not before.endswith(ASSISTANT) or HUMAN not in before:
            raise RowError("the prompt is plain text, not a transcript of Human and Assistant turns")
        if any(name in answer.text for name in (HUMAN, ASSISTANT) for answer in (better, worse)):
            raise RowError("an answer holds the start of another turn of a transcript")
        row: Row = {"chosen": before + better.text, "rejected": before + worse.text}
        assert isinstance(judgment.verdict, Preference)
        if judgment.verdict.strength:
            row["margin"] = judgment.verdict.strength
        rows.append(with_extra(judgment, row))
    return rows


def _looks_like_hh(row: Row) -> bool:
    return row.get("prompt") is None and isinstance(row.get("chosen"), str) and ASSISTANT in row["chosen"]


# --- OpenAI preference fine-tuning

OPENAI = frozenset(("input", "preferred_output", "non_preferred_output"))


def _openai_prompt(row: Row) -> list[Message]:
    return messages(mapping(row, "input"), "messages")


def _openai_output(row: Row, column: str) -> Answer:
    turns = messages({column: objects(row, column)}, column)
    return Answer(reply([], turns, column))


def _read_openai(row: Row, origin: Origin) -> list[Judgment]:
    before = _openai_prompt(row)
    answers = _openai_output(row, "preferred_output"), _openai_output(row, "non_preferred_output")
    extra, rest = others(row, OPENAI), others(mapping(row, "input"), ("messages",))
    if rest:
        extra = (extra or {}) | {"input": rest}
    return [Judgment(before, answers, FIRST, extra=extra, origin=origin)]


def _write_openai(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        better, worse = sides(judgment)
        rest = (judgment.extra or {}).get("input")
        row = {
            "input": {"messages": turns_of(judgment.prompt)} | (rest if isinstance(rest, dict) else {}),
            "preferred_output": [said("assistant", better.text)],
            "non_preferred_output": [said("assistant", worse.text)],
        }
        rows.append(with_extra(judgment, row, without=["input"] if isinstance(rest, dict) else []))
    return rows


HH = Judged(
    "hh",
    ("chosen", "rejected"),
    _read_hh,
    _write_hh,
    lambda row: hh_sides(row)[0],
    fits=_looks_like_hh,
    becomes=_becomes_hh,
)
PAIRS = (
    Judged("trl", ("chosen", "rejected"), _read_trl, _write_trl, lambda row: trl_sides(row)[0]),
    Judged(
        "kto", ("prompt", "completion", "label"), _read_kto, _write_kto, lambda row: prompt(row, "prompt"), spread=True
    ),
    Judged(
        "openai-preferences",
        ("input", "preferred_output", "non_preferred_output"),
        _read_openai,
        _write_openai,
        _openai_prompt,
        becomes=becomes_chat,
    ),
)
