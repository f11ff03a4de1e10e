"""What bad input gets: rows that teach nothing, or the wrong thing, are dropped, counted and numbered (law
6).

The readers in `formats` judge a row's *form*; the checks here judge its *content*, for records from any
source. Above a stated share of bad rows, both kinds together, a command refuses: then something else is wrong
with the file. Rows that are right but make no pair, such as ties, are no part of that share. Each `check_*` takes
the records with the counts that a reader made of them, and keeps `read == used + dropped + neutral`.

Exact duplicates stay, since two people who vote alike are two votes; they are noted with their row numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from keel.data.messages import answer_key
from keel.data.store import is_store
from keel.data.text import prompt_key
from keel.errors import InputError
from keel.records import Answer, Demonstration, Fields, Pair, Prompt, PromptRow, RowCounts

__all__ = [
    "check_demonstrations",
    "check_pairs",
    "check_prompts",
    "counted",
    "one_dimension",
    "reasons",
    "refuse_bad",
    "split_by_prompt",
    "summarise",
    "which",
]

Record = TypeVar("Record", Pair, Demonstration, PromptRow)

CONTRADICTORY = "contradictory pair"


# --- the three checks


def check_pairs(pairs: Sequence[Pair], counts: RowCounts, max_bad_share: float, source: str = "") -> list[Pair]:
    """The pairs worth training on; `counts` learns of the others.

    Of a contradiction (the same prompt and texts, chosen and rejected swapped) every pair goes, on both
    sides: which side is right is not ours to say. `source` names the file in a refusal; by default the first
    record's origin does.
    """
    sound = _keep(pairs, counts, pair_fault)
    orders: dict[Hashable, set[tuple[str, str]]] = defaultdict(set)
    for pair in sound:
        orders[_contest(pair)].add(_sides(pair))
    both = {contest for contest, seen in orders.items() if len(seen) > 1}
    kept = _keep(sound, counts, lambda pair: CONTRADICTORY if _contest(pair) in both else None)
    return _settle(kept, pairs, counts, max_bad_share, source)


def check_demonstrations(
    rows: Sequence[Demonstration], counts: RowCounts, max_bad_share: float, source: str = ""
) -> list[Demonstration]:
    """The demonstrations worth imitating. An empty text prompt is right here: it stands for plain text."""
    return _settle(_keep(rows, counts, demonstration_fault), rows, counts, max_bad_share, source)


def check_prompts(
    rows: Sequence[PromptRow], counts: RowCounts, max_bad_share: float, source: str = ""
) -> list[PromptRow]:
    """The prompts that ask something."""
    return _settle(_keep(rows, counts, prompt_fault), rows, counts, max_bad_share, source)


# --- what is wrong with one record


def pair_fault(pair: Pair) -> str | None:
    """Why a pair cannot be used, or None. Texts that differ in outer white space only count as equal."""
    if fault := _prompt_fault(pair.prompt) or _answer_fault("chosen", pair.chosen, pair.fields[0]):
        return fault
    if fault := _answer_fault("rejected", pair.rejected, pair.fields[1]):
        return fault
    if pair.chosen.strip() == pair.rejected.strip() and pair.fields[0] == pair.fields[1]:
        return "chosen equals rejected"
    if not math.isfinite(pair.margin):
        return "margin is not finite"
    return "margin is negative" if pair.margin < 0 else None


def demonstration_fault(row: Demonstration) -> str | None:
    """Why a demonstration cannot be used, or None."""
    plain = isinstance(row.prompt, str) and not row.prompt.strip()
    return (None if plain else _prompt_fault(row.prompt)) or _answer_fault("completion", row.completion, row.fields)


def prompt_fault(row: PromptRow) -> str | None:
    """Why a prompt cannot be used, or None."""
    return _prompt_fault(row.prompt)


def _answer_fault(side: str, text: object, fields: Fields | None) -> str | None:
    """An answer says something, or calls a tool."""
    if not isinstance(text, str):
        return f"{side} is not text"
    return None if text.strip() or (fields and fields.get("tool_calls")) else f"empty {side}"


def _prompt_fault(prompt: Prompt | None) -> str | None:
    if isinstance(prompt, str):
        return None if prompt.strip() else "empty prompt"
    if not isinstance(prompt, list):
        return "prompt is neither text nor messages"
    if not prompt or not prompt[-1]["content"].strip():
        return "empty prompt"
    return "prompt ends with an assistant turn" if prompt[-1]["role"] == "assistant" else None


def _contest(pair: Pair) -> Hashable:
    """The same for two pairs of one prompt and the same two texts, in whatever order."""
    return prompt_key(pair.prompt), frozenset(_sides(pair))


def _sides(pair: Pair) -> tuple[str, str]:
    """(chosen, rejected), each as one string, whatever white space surrounds its text."""
    chosen, rejected = (
        answer_key(Answer(text.strip(), fields=fields)) if fields else text.strip()
        for text, fields in zip((pair.chosen, pair.rejected), pair.fields, strict=True)
    )
    return chosen, rejected


# --- counting and refusing


def _keep(rows: Iterable[Record], counts: RowCounts, fault: Callable[[Record], str | None]) -> list[Record]:
    kept = []
    for row in rows:
        reason = fault(row)
        if reason is None:
            kept.append(row)
        else:
            counts.drop(reason, row.origin.row)
    return kept


def _settle(
    kept: list[Record], rows: Sequence[Record], counts: RowCounts, max_bad_share: float, source: str
) -> list[Record]:
    """Close the books: count what is used and refuse where too little is."""
    counts.used = len(kept)
    accounted = counts.used + counts.dropped_total + counts.neutral_total
    counts.read = max(counts.read, accounted)  # records that no reader counted
    name = source or (rows[0].origin.file if rows else "") or "the data"
    if counts.read == 0:
        raise InputError(f"{name}: no rows; give a file with at least one")
    if not kept:
        why = reasons(counts, neutral=True)
        mend = f"mend them{one_dimension(counts, name)}"
        raise InputError(f"{name}: none of {counts.read} rows can be used ({why}); {mend}")
    refuse_bad(counts, max_bad_share, name)
    _note_repeats(kept, counts)
    return kept


def refuse_bad(counts: RowCounts, max_bad_share: float, name: str) -> None:
    """Refuse where more than this share of the rows was dropped."""
    if counts.dropped_total > max_bad_share * counts.read:
        raise InputError(
            f"{name}: {counts.dropped_total} of {counts.read} rows are bad ({reasons(counts)}), above the limit of "
            f"{100 * max_bad_share:g} %; mend them or raise --max-bad-share{one_dimension(counts, name)}"
        )


def one_dimension(counts: RowCounts, source: str) -> str:
    """Half a sentence on what else helps against contradictions in a store; empty where there are none."""
    if CONTRADICTORY not in counts.dropped or not is_store(source) or "dimension=" in source:
        return ""
    return f", or take one dimension: {source}{'&' if '?' in source else '?'}dimension=NAME"


def reasons(counts: RowCounts, first: int = 5, neutral: bool = False) -> str:
    """`8 'chosen equals rejected': rows 3, 9, …; 2 'broken JSON': rows 1, 2`, the most frequent first.

    Of dropped rows, and with `neutral` of those too.
    """
    tables = (counts.dropped, counts.neutral) if neutral else (counts.dropped,)
    ordered = [item for table in tables for item in sorted(table.items(), key=lambda item: -item[1][0])]
    return "; ".join(f"{count} '{reason}': {which(count, rows[:first])}" for reason, (count, rows) in ordered)


def which(count: int, rows: Sequence[int]) -> str:
    """`row 3`, `rows 3, 9, …`: the first of so many, by number."""
    listed = ", ".join(str(row) for row in rows) + (", …" if count > len(rows) else "")
    return f"row {listed}" if count == 1 else f"rows {listed}"


def _note_repeats(rows: Iterable[Record], counts: RowCounts) -> None:
    seen: set[Hashable] = set()
    for row in rows:
        answers: tuple[str, ...] = ()
        if isinstance(row, Pair):
            answers = (row.chosen, row.rejected, str(row.fields) if any(row.fields) else "")
        elif isinstance(row, Demonstration):
            answers = (row.completion, str(row.fields or ""))
        record = (prompt_key(row.prompt), answers)
        if record in seen:
            counts.note("exact duplicate of an earlier row, kept", row.origin.row)
        seen.add(record)


def summarise(counts: RowCounts, source: str, format: str) -> str:
    """What a run prints at its start: the format recognised and every row's fate, one reason a line."""
    fate = f"{counted(counts.read, 'row')} read, {counts.used:,} used, {counts.dropped_total:,} dropped"
    fate += f", {counts.neutral_total:,} neutral" if counts.neutral else ""
    lines = [f"{source}: format {format}; {fate}"]
    for verb, table in (("dropped", counts.dropped), ("neutral", counts.neutral), ("note:", counts.notes)):
        for what, (count, rows) in sorted(table.items(), key=lambda item: -item[1][0]):
            lines.append(f"  {verb} {count} '{what}': {which(count, rows)}")
    return "\n".join(lines)


def counted(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


# --- splitting


def split_by_prompt(rows: Sequence[Record], holdout: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training rows, held-out rows), each in the order of the file and no prompt on both sides.

    Prompts are taken in the order of a hash of seed and prompt, as they fit into `holdout` of the rows, so
    that the share is as exact as whole prompts allow and does not depend on the order of the file. Plain
    text, which has no prompt, is split by its text.
    """
    groups: dict[str, int] = defaultdict(int)
    for row in rows:
        groups[_split_key(row)] += 1
    order = sorted(groups, key=lambda key: (_draw(seed, key), key))
    target, total = holdout * len(rows), 0
    held: set[str] = set()
    for key in order:
        if total + groups[key] <= target:
            held.add(key)
            total += groups[key]
    rest = [key for key in order if key not in held]
    nearest = min(rest, key=lambda key: groups[key], default=None)
    if nearest is not None and total + groups[nearest] - target <= target - total:
        held.add(nearest)
    kept = [row for row in rows if _split_key(row) not in held]
    out = [row for row in rows if _split_key(row) in held]
    if not kept or not out:
        name = rows[0].origin.file if rows else "the data"
        raise InputError(
            f"{name}: a holdout of {holdout:g} leaves one side empty ({counted(len(rows), 'row')}, "
            f"{counted(len(groups), 'distinct prompt')}); give more prompts, another --holdout, "
            "or --eval-data"
        )
    return kept, out


def _split_key(row: Pair | Demonstration | PromptRow) -> str:
    key = prompt_key(row.prompt)
    return row.completion if not key.strip() and isinstance(row, Demonstration) else key


def _draw(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()
