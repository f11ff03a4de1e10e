"""Chosen and rejected answers: TRL's pairs, HH transcripts, OpenAI's preference fine-tuning; and TRL's KTO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from keel.files.fields import Row, RowError, good_or_bad, mapping, margin, objects, others, text
from keel.formats.judgments.base import (
    FIRST,
    Judged,
    as_turns,
    becomes_chat,
    one_text,
    overall,
    score,
    sides,
    with_extra,
)
from keel.formats.judgments.keel_columns import read_details, write_details
from keel.formats.messages import (
    AROUND,
    TOOLS,
    around,
    last_turn,
    messages,
    prompt,
    read_side,
    reply,
    says,
    texts_alone,
    tools_of,
    without_fields,
    without_tools,
)
from keel.records import Answer, Judgment, Message, Origin, Preference, Prompt, Score

# --- TRL pairs

TRL = frozenset(("prompt", "chosen", "rejected", "margin", *AROUND))
_SIDES = "chosen", "rejected"
APART = "transcripts differ before the last assistant turn"


def trl_sides(row: Row) -> tuple[Prompt, Answer, Answer]:
    """Read TRL's `chosen` and `rejected`: text, one assistant message each, or whole lists of messages.

    In the last case the prompt is what both share before the last assistant turn. A `prompt` column beside them is
    the beginning of that, or what comes before it, or, as text, one of its user turns.
    """
    before = None if row.get("prompt") is None else prompt(row, "prompt")
    before, chosen, rejected = two_sides(before, read_side(row, "chosen"), read_side(row, "rejected"))
    return around(row, before), chosen, rejected


def two_sides(before: Prompt | None, chosen: Prompt, rejected: Prompt) -> tuple[Prompt, Answer, Answer]:
    """Return a prompt, which the sides may hold, and the answer of each side."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        if before is None:
            raise RowError("no prompt, and the answers are plain text")
        return before, Answer(chosen), Answer(rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowError("one answer is text and the other messages")
    if before is not None and len(chosen) == len(rejected) == 1:
        return before, reply(before, chosen, "chosen"), reply(before, rejected, "rejected")
    goes_on = before is not None
    shared, better = last_turn(chosen, "chosen", goes_on)
    other, worse = last_turn(rejected, "rejected", goes_on)
    if shared != other:
        raise RowError(APART)
    return _whole(before, shared), better, worse


def _whole(before: Prompt | None, shared: list[Message]) -> list[Message]:
    """Return the prompt of two sides that share these turns."""
    if before is None:
        return shared
    if isinstance(before, str):
        if before in [turn["content"] for turn in shared if turn["role"] == "user"]:
            return shared
        raise RowError("prompt is not the one in the transcripts")
    lead = shared[0]["role"] == "system" and before[0] != shared[0]
    if shared[lead : lead + len(before)] == before:
        return shared
    if shared[0]["role"] in ("assistant", "tool"):
        return before + shared
    raise RowError("prompt is not the one in the transcripts")


def _read_trl(row: Row, origin: Origin) -> list[Judgment]:
    before, chosen, rejected = trl_sides(row)
    strength = margin(row)
    verdict = Preference("first", strength) if strength else FIRST
    found = read_details(row, TRL, _SIDES)
    if found is None:
        return [Judgment(before, (chosen, rejected), verdict, origin=origin)]
    better, worse = (
        replace(answer, **known) if (known := found.answers[name]) else answer
        for name, answer in zip(_SIDES, (chosen, rejected), strict=True)
    )
    answers = better, worse
    if found.swapped:
        answers, verdict = (worse, better), Preference("second", strength)
    return [Judgment(before, answers, verdict, extra=found.extra, origin=origin, **found.judgment)]


def _write_trl(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in group:
        better, worse = sides(judgment)
        row = asked_in_columns(judgment.prompt)
        for name, answer in zip(_SIDES, (better, worse), strict=True):
            row[name] = _answered(judgment.prompt, answer)
        assert isinstance(judgment.verdict, Preference)
        if judgment.verdict.strength:
            row["margin"] = judgment.verdict.strength
        rows.append(write_details(judgment, row, dict(zip(_SIDES, (better, worse), strict=True))))
    return rows


def asked_in_columns(before: Prompt) -> Row:
    """Return the column of a prompt, and that of its tools if there are any."""
    if isinstance(before, str):
        return {"prompt": before}
    turns, tools = without_tools(before)
    return {"prompt": turns, **tools}


def _answered(before: Prompt, answer: Answer) -> Prompt:
    """Return an answer as TRL has it after such a prompt: text, or one message."""
    return without_fields(answer) if isinstance(before, str) else [says(answer)]


# --- TRL's KTO

KTO = frozenset(("prompt", "completion", "label", *AROUND))
KTO_CHAT = frozenset(("messages", "label", *AROUND))


def _label(row: Row) -> float:
    """Return 1 for a good answer, else 0; CSV cells and some tools hold the label as text or as a number."""
    value = row.get("label")
    if value is None or value == "":
        raise RowError("no label")
    good = good_or_bad(value)
    if good is None:
        raise RowError("label is neither true nor false")
    return float(good)


def _kto_prompt(row: Row) -> Prompt:
    return around(row, prompt(row, "prompt"))


def _read_kto(row: Row, origin: Origin) -> list[Judgment]:
    before, completion = prompt(row, "prompt"), read_side(row, "completion")
    answer = Answer(completion) if isinstance(completion, str) else reply(before, completion, "completion")
    return [_labelled(row, around(row, before), answer, KTO, origin)]


def _chat_prompt(row: Row) -> Prompt:
    return around(row, last_turn(messages(row, "messages"), "messages")[0])


def _read_kto_chat(row: Row, origin: Origin) -> list[Judgment]:
    """Read a chat whose label is about its last turn."""
    before, answer = last_turn(messages(row, "messages"), "messages")
    return [_labelled(row, around(row, before), answer, KTO_CHAT, origin)]


def _labelled(row: Row, before: Prompt, answer: Answer, known: frozenset[str], origin: Origin) -> Judgment:
    label = _label(row)
    found = read_details(row, known, ("completion",))
    if found is None:
        return Judgment(before, (answer,), Score(label), origin=origin)
    answers = (replace(answer, **found.answers["completion"]),)
    return Judgment(before, answers, Score(label), extra=found.extra, origin=origin, **found.judgment)


def _write_kto(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in group:
        answer, label = judgment.answers[0], _verdict(judgment)
        row = asked_in_columns(judgment.prompt)
        row |= {"completion": _answered(judgment.prompt, answer), "label": label}
        rows.append(write_details(judgment, row, {"completion": answer}))
    return rows


def _write_kto_chat(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in group:
        answer, label = judgment.answers[0], _verdict(judgment)
        turns, tools = without_tools(as_turns(judgment.prompt))
        row = {"messages": [*turns, says(answer)], **tools, "label": label}
        rows.append(write_details(judgment, row, {"completion": answer}))
    return rows


def _verdict(judgment: Judgment) -> bool:
    value = score(judgment)
    if value not in (0, 1):
        raise RowError(f"a score of {value:g} is neither 0 nor 1, and a label is true or false")
    return bool(value)


def _is_verdict(row: Row) -> bool:
    """Say whether a chat's label calls its last turn good or bad."""
    return good_or_bad(row.get("label")) is not None and isinstance(row.get("messages"), list)


# --- Anthropic HH

ASSISTANT, HUMAN = "\n\nAssistant:", "\n\nHuman:"


def hh_sides(row: Row) -> tuple[str, str, str]:
    """Split Anthropic HH's two whole transcripts at the last assistant turn and nowhere else.

    The prompt ends with "\n\nAssistant:" and the completion keeps its leading space.
    """
    split = {}
    for name in _SIDES:
        before, turn, answer = text(row, name).rpartition(ASSISTANT)
        if not turn:
            raise RowError(f"{name} has no Assistant turn")
        if HUMAN in answer:
            raise RowError(f"{name} ends with a Human turn")
        split[name] = before, answer
    (before, chosen), (other, rejected) = split["chosen"], split["rejected"]
    if before != other:
        raise RowError(APART)
    if not before.strip():
        raise RowError("empty prompt")
    if taken := next((name for name in AROUND if row.get(name)), None):
        raise RowError(f"a transcript has no place for the column {taken}")
    return before + ASSISTANT, chosen, rejected


def _read_hh(row: Row, origin: Origin) -> list[Judgment]:
    before, chosen, rejected = hh_sides(row)
    verdict = Preference("first", margin(row))
    return [Judgment(before, (Answer(chosen), Answer(rejected)), verdict, extra=others(row, TRL), origin=origin)]


def _transcript(turns: list[Message]) -> str:
    """Return a transcript of alternating user and assistant turns, from a user's to the start of the next answer."""
    names = {"user": HUMAN, "assistant": ASSISTANT}
    for i, turn in enumerate(texts_alone(turns)):
        if turn["role"] != ("user", "assistant")[i % 2]:
            raise RowError("a transcript alternates between user and assistant, the user first")
        if HUMAN in turn["content"] or ASSISTANT in turn["content"]:
            raise RowError("a turn holds the start of another turn of a transcript")
    if len(turns) % 2 == 0:
        raise RowError("the prompt ends with an assistant turn")
    return "".join(f"{names[turn['role']]} {turn['content']}" for turn in turns) + ASSISTANT


def _becomes_hh(judgment: Judgment) -> Judgment:
    """Turn a chat into a transcript, in which an answer begins with a space."""
    if isinstance(judgment.prompt, str):
        return judgment
    answers = tuple(replace(answer, text=" " + without_fields(answer)) for answer in judgment.answers)
    return replace(judgment, prompt=_transcript(judgment.prompt), answers=answers)


def _write_hh(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in map(_becomes_hh, overall(group)):
        before, (better, worse) = one_text(judgment.prompt), sides(judgment)
        if not before.endswith(ASSISTANT) or HUMAN not in before:
            raise RowError("the prompt is plain text, not a transcript of Human and Assistant turns")
        if any(name in answer.text for name in (HUMAN, ASSISTANT) for answer in (better, worse)):
            raise RowError("an answer holds the start of another turn of a transcript")
        row: Row = {"chosen": before + without_fields(better), "rejected": before + without_fields(worse)}
        assert isinstance(judgment.verdict, Preference)
        if judgment.verdict.strength:
            row["margin"] = judgment.verdict.strength
        rows.append(with_extra(judgment, row))
    return rows


def _looks_like_hh(row: Row) -> bool:
    return row.get("prompt") is None and isinstance(row.get("chosen"), str) and ASSISTANT in row["chosen"]


# --- OpenAI preference fine-tuning

OPENAI = frozenset(("input", "preferred_output", "non_preferred_output"))


def _openai_prompt(row: Row) -> Prompt:
    asked = mapping(row, "input")
    return around({"tools": tools_of(asked)}, messages(asked, "messages"))


def _openai_output(row: Row, column: str) -> Answer:
    turns = messages({column: objects(row, column)}, column)
    return reply([], turns, column)


def _read_openai(row: Row, origin: Origin) -> list[Judgment]:
    before = _openai_prompt(row)
    answers = _openai_output(row, "preferred_output"), _openai_output(row, "non_preferred_output")
    extra, rest = others(row, OPENAI), others(mapping(row, "input"), ("messages", *TOOLS))
    if rest:
        extra = (extra or {}) | {"input": rest}
    return [Judgment(before, answers, FIRST, extra=extra, origin=origin)]


def _write_openai(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        better, worse = sides(judgment)
        rest, (turns, tools) = (judgment.extra or {}).get("input"), without_tools(as_turns(judgment.prompt))
        asked = {"messages": turns} | {name: json.loads(value) for name, value in tools.items()}
        row = {
            "input": asked | (rest if isinstance(rest, dict) else {}),
            "preferred_output": [says(better)],
            "non_preferred_output": [says(worse)],
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
PAIR_FORMATS = (
    Judged("trl", ("chosen", "rejected"), _read_trl, _write_trl, lambda row: trl_sides(row)[0]),
    Judged("kto", ("prompt", "completion", "label"), _read_kto, _write_kto, _kto_prompt, spread=True),
    Judged(
        "kto-messages",
        ("messages", "label"),
        _read_kto_chat,
        _write_kto_chat,
        _chat_prompt,
        fits=_is_verdict,
        becomes=becomes_chat,
        spread=True,
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
