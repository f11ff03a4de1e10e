"""Votes between two answers: HelpSteer2's pairs, HelpSteer3, SHP, OpenAI's summaries, PandaLM, AlpacaEval."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from keel.files.fields import Row, RowError, mapping, number_in, objects, others, text
from keel.formats.judgments.base import (
    TIE,
    Judged,
    as_chat,
    as_preference,
    as_turns,
    ask_with_input,
    becomes_chat,
    becomes_text,
    json_line,
    name_in,
    one_text,
    outcome_in,
    overall,
    read_instruction,
    verdict_of,
    with_extra,
)
from keel.formats.messages import AROUND, around, messages, without_fields, without_tools
from keel.records import Answer, Judgment, Origin, Prompt, Verdict

# --- HelpSteer2 pairs

STRENGTH = "preference_strength"
_STEER = frozenset(("prompt", "response_1", "response_2", STRENGTH))


def _read_steer(row: Row, origin: Origin) -> list[Judgment]:
    """Read a whole number from -3 (the first is much better) over 0 (a tie) to 3."""
    verdict = _steered(row, STRENGTH)
    answers = Answer(text(row, "response_1")), Answer(text(row, "response_2"))
    before, extra = as_chat(text(row, "prompt")), others(row, _STEER)
    return [Judgment(before, answers, verdict, kind="person", extra=extra, origin=origin)]


def _steered(row: Row, column: str) -> Verdict:
    value = number_in(row, column)
    if value not in range(-3, 4):
        raise RowError(f"{column} is not a whole number from -3 to 3")
    return verdict_of((value > 0) - (value < 0), abs(value))


def _steer_code(judgment: Judgment) -> int:
    sign, strength = outcome_in(judgment, {"first": -1, "tie": 0, "second": 1}), as_preference(judgment).strength
    if sign and strength not in (1, 2, 3):
        raise RowError("the preference has no strength of 1, 2 or 3")
    return sign * int(strength)


def _write_steer(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        code, (first, second) = _steer_code(judgment), judgment.answers
        row = {"prompt": one_text(judgment.prompt), "response_1": without_fields(first)}
        rows.append(with_extra(judgment, row | {"response_2": without_fields(second), STRENGTH: code}))
    return rows


# --- HelpSteer3

OVERALL_PREFERENCE = "overall_preference"
STEER3 = frozenset(("context", "response1", "response2", OVERALL_PREFERENCE, *AROUND))


def _context(row: Row) -> Prompt:
    return around(row, messages(row, "context"))


def _read_steer3(row: Row, origin: Origin) -> list[Judgment]:
    """Read a whole number from -3 to 3 for a chat; what each annotator said of it stays in `extra`."""
    verdict = _steered(row, OVERALL_PREFERENCE)
    answers = Answer(text(row, "response1")), Answer(text(row, "response2"))
    return [Judgment(_context(row), answers, verdict, kind="person", extra=others(row, STEER3), origin=origin)]


def _write_steer3(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        turns, tools = without_tools(as_turns(judgment.prompt))
        code, (first, second) = _steer_code(judgment), judgment.answers
        row = {"context": turns, **tools, "response1": without_fields(first), "response2": without_fields(second)}
        rows.append(with_extra(judgment, row | {OVERALL_PREFERENCE: code}))
    return rows


# --- SHP

SHP = frozenset(("history", "human_ref_A", "human_ref_B", "labels"))


def _read_shp(row: Row, origin: Origin) -> list[Judgment]:
    value = number_in(row, "labels")
    if value not in (0, 1):
        raise RowError("labels is neither 0 nor 1")
    answers = Answer(text(row, "human_ref_A")), Answer(text(row, "human_ref_B"))
    before, extra = as_chat(text(row, "history")), others(row, SHP)
    return [Judgment(before, answers, verdict_of(1 - 2 * int(value)), kind="person", extra=extra, origin=origin)]


def _write_shp(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        labels = outcome_in(judgment, {"first": 1, "second": 0})
        first, second = judgment.answers
        row = {"history": one_text(judgment.prompt), "human_ref_A": without_fields(first)}
        row |= {"human_ref_B": without_fields(second)}
        rows.append(with_extra(judgment, row | {"labels": labels}))
    return rows


# --- OpenAI summaries

SUMMARIES = frozenset(("info", "summaries", "choice", "worker"))
POST = re.compile(
    r"(?:SUBREDDIT: r/(?P<subreddit>[^\n]*)\n\n)?(?:TITLE: (?P<title>[^\n]*)\n\n)?POST: (?P<post>.*)\n\nTL;DR:",
    re.DOTALL,
)


HEADS = {"subreddit": "SUBREDDIT: r/", "title": "TITLE: ", "post": "POST: ", "article": "ARTICLE: "}


def _rendered(info: Row) -> str:
    """Return a post as the data set's authors gave it to their models, to be continued by a summary."""
    parts = []
    for name, head in HEADS.items():
        if info.get(name) is not None and info[name] != "":
            parts.append(head + text(info, name))
    if not info.get("post") and not info.get("article"):
        raise RowError("info has neither post nor article")
    return "\n\n".join([*parts, "TL;DR:"])


def _read_summaries(row: Row, origin: Origin) -> list[Judgment]:
    """Read a choice of two; `info` and other fields of a summary stay in `extra`, so that they come back."""
    info, summaries = mapping(row, "info"), objects(row, "summaries")
    if len(summaries) != 2:
        raise RowError("summaries are not two")
    choice = number_in(row, "choice")
    if choice not in (0, 1):
        raise RowError("choice is neither 0 nor 1")
    answers = [Answer(text(summary, "text"), model=name_in(summary, "policy")) for summary in summaries]
    rest = [others(summary, ("text", "policy")) or {} for summary in summaries]
    kept = {"info": info, "summaries": rest} if any(rest) else {"info": info}
    return [
        Judgment(
            _rendered(info),
            (answers[0], answers[1]),
            verdict_of(2 * int(choice) - 1),
            rater=name_in(row, "worker"),
            kind="person",
            extra=(others(row, SUMMARIES) or {}) | (others(kept, ()) or {}),
            origin=origin,
        )
    ]


def _write_summaries(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        choice, extra = outcome_in(judgment, {"first": 0, "second": 1}), judgment.extra or {}
        rest = extra.get("summaries")
        if not (isinstance(rest, list) and len(rest) == 2 and all(isinstance(r, dict) for r in rest)):
            rest = [{}, {}]
        summaries = [
            {"text": without_fields(a)} | ({"policy": a.model} if a.model else {}) | more
            for a, more in zip(judgment.answers, rest, strict=True)
        ]
        row = {"info": _info(judgment), "summaries": summaries, "choice": choice}
        row |= {"worker": judgment.rater} if judgment.rater else {}
        rows.append(with_extra(judgment, row, without=("info", "summaries")))
    return rows


def _info(judgment: Judgment) -> Row:
    """Return the post of a prompt: the one that came with it, or the one in its text."""
    prompt, info = one_text(judgment.prompt), (judgment.extra or {}).get("info")
    if isinstance(info, dict) and _rendered(info) == prompt:
        return info
    found = POST.fullmatch(prompt)
    if not found:
        raise RowError("the prompt is no post with TL;DR to summarise")
    return {name: value for name, value in found.groupdict().items() if value is not None}


# --- PandaLM

ANNOTATORS = "annotator1", "annotator2", "annotator3"
PANDA = frozenset(("instruction", "input", "response1", "response2", *ANNOTATORS))


def _read_panda(row: Row, origin: Origin) -> list[Judgment]:
    """Read three people's votes: 0 a tie, 1 the first, 2 the second."""
    before, extra = ask_with_input(row), others(row, PANDA)
    answers = Answer(text(row, "response1")), Answer(text(row, "response2"))
    found = []
    for name in ANNOTATORS:
        if row.get(name) in (None, ""):
            continue
        value = number_in(row, name)
        if value not in (0, 1, 2):
            raise RowError(f"{name} is neither 0, 1 nor 2")
        verdict = verdict_of((0, -1, 1)[int(value)])
        found.append(Judgment(before, answers, verdict, rater=name, kind="person", extra=extra, origin=origin))
    if not found:
        raise RowError("no annotator1, annotator2 or annotator3")
    return found


def _silent_annotators(row: Row) -> Iterable[str]:
    return (f"no {name}" for name in ANNOTATORS if row.get(name) in (None, ""))


def _write_panda(group: Sequence[Judgment]) -> list[Row]:
    """Return rows of up to three votes; a new one begins when answers or further columns change or a place is taken."""
    rows: list[Row] = []
    last: Judgment | None = None
    for judgment in overall(group):
        code = outcome_in(judgment, {"tie": 0, "first": 1, "second": 2})
        free = [name for name in ANNOTATORS if rows and rows[-1][name] is None]
        name = judgment.rater if judgment.rater in ANNOTATORS else next(iter(free), ANNOTATORS[0])
        if last is None or (last.prompt, last.answers, last.extra) != (
            judgment.prompt, judgment.answers, judgment.extra
        ) or name not in free:  # fmt: skip
            name = judgment.rater if judgment.rater in ANNOTATORS else ANNOTATORS[0]
            first, second = judgment.answers
            row: Row = {"instruction": one_text(judgment.prompt), "input": ""}
            row |= {"response1": without_fields(first), "response2": without_fields(second)}
            row |= dict.fromkeys(ANNOTATORS)
            rows.append(with_extra(judgment, row))
        rows[-1][name] = code
        last = judgment
    return rows


# --- AlpacaEval

_ALPACA = frozenset(("instruction", "output_1", "output_2", "generator_1", "generator_2", "annotator", "preference"))


def _read_alpaca(row: Row, origin: Origin) -> list[Judgment]:
    """Read a judge's preference from 1 (the first) to 2; 1.5 and the older code 0 are ties. `raw` keeps the number."""
    value = number_in(row, "preference")
    if value != 0 and not 1 <= value <= 2:
        raise RowError("preference is neither 0 nor from 1 to 2")
    first = Answer(text(row, "output_1"), model=name_in(row, "generator_1"))
    second = Answer(text(row, "output_2"), model=name_in(row, "generator_2"))
    return [
        Judgment(
            as_chat(text(row, "instruction")),
            (first, second),
            TIE if value in (0, 1.5) else verdict_of(1 if value > 1.5 else -1),
            rater=name_in(row, "annotator"),
            kind="judge",
            raw=json_line(row["preference"]) if not isinstance(row["preference"], str) else row["preference"],
            extra=others(row, _ALPACA),
            origin=origin,
        )
    ]


def _older_ties(row: Row) -> Iterable[str]:
    return ("preference 0, the older code for a tie",) if number_in(row, "preference") == 0 else ()


def _write_alpaca(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        first, second = judgment.answers if len(judgment.answers) == 2 else (Answer(""), Answer(""))
        row: Row = {"instruction": one_text(judgment.prompt), "preference": _alpaca_code(judgment)}
        row |= {"output_1": without_fields(first), "output_2": without_fields(second)}
        row |= {"generator_1": first.model, "generator_2": second.model}
        row |= {"annotator": judgment.rater} if judgment.rater else {}
        rows.append(with_extra(judgment, row))
    return rows


def _alpaca_code(judgment: Judgment) -> float:
    """Return the number that the judge gave, if it is kept and says the same; else that of the outcome."""
    code = outcome_in(judgment, {"first": 1, "tie": 0, "second": 2})
    try:
        kept = json.loads(judgment.raw)
    except (ValueError, RecursionError):
        kept = None
    known = isinstance(kept, (int, float)) and not isinstance(kept, bool) and (kept == 0 or 1 <= kept <= 2)
    if not known or (0 if kept in (0, 1.5) else 1 if kept < 1.5 else 2) != code:
        return code or 1.5
    return float(kept) if isinstance(kept, float) else int(kept)


VOTES = (
    Judged(
        "helpsteer2-pairs",
        ("prompt", "response_1", "response_2", STRENGTH),
        _read_steer,
        _write_steer,
        read_instruction("prompt"),
        becomes=becomes_chat,
    ),
    Judged(
        "helpsteer3",
        ("context", "response1", "response2", OVERALL_PREFERENCE),
        _read_steer3,
        _write_steer3,
        _context,
        becomes=becomes_chat,
    ),
    Judged(
        "shp",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        _read_shp,
        _write_shp,
        read_instruction("history"),
        becomes=becomes_chat,
    ),
    Judged(
        "openai-summaries",
        ("info", "summaries", "choice"),
        _read_summaries,
        _write_summaries,
        lambda row: _rendered(mapping(row, "info")),
        becomes=becomes_text,
    ),
    Judged(
        "pandalm",
        ("instruction", "response1", "response2", "annotator1"),
        _read_panda,
        _write_panda,
        ask_with_input,
        becomes=becomes_chat,
        remarks=_silent_annotators,
    ),
    Judged(
        "alpacaeval",
        ("instruction", "output_1", "output_2", "preference"),
        _read_alpaca,
        _write_alpaca,
        read_instruction("instruction"),
        becomes=becomes_chat,
        remarks=_older_ties,
    ),
)
