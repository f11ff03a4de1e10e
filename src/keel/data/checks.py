"""Checks of content: rows that teach nothing, or the wrong thing, are dropped, counted and numbered.

The readers in `source` judge a row's *form*; the checks here judge its *content*, for records from any source. A
command refuses a file if more than a stated share of its rows is bad in form or content: then something else is wrong
with it. Rows that are right but make no pair, such as ties, do not count towards that share. Each `check_*` takes the
records with the counts that a reader made of them, and keeps `read == used + dropped + neutral`.

Duplicates stay, since two people who vote alike are two votes. They are noted with their row numbers, as are the
findings of `doubts`. Texts that differ in bytes only count as the same text everywhere here (`same`).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TypeVar

from keel.data import doubts
from keel.errors import InputError
from keel.records import Demonstration, Fields, Pair, Prompt, PromptRow, RowCounts
from keel.text import same
from keel.text.tokenisation import further, prompt_key

__all__ = [
    "check_demonstrations",
    "check_pairs",
    "check_prompts",
    "counted",
    "leak",
    "one_dimension",
    "or_raise",
    "reasons",
    "refuse_bad",
    "split_by_prompt",
    "summarise",
    "which",
]

_Record = TypeVar("_Record", Pair, Demonstration, PromptRow)
AnyRow = Pair | Demonstration | PromptRow

CONTRADICTORY = "contradictory pair"
IN_BYTES = "white space, Unicode form or invisible characters"


# --- the three checks


def check_pairs(pairs: Sequence[Pair], counts: RowCounts, max_bad_share: float, source: str = "") -> list[Pair]:
    """Return the pairs worth training on; `counts` records the others.

    If pairs contradict each other (the same prompt and texts, chosen and rejected swapped), all of them are dropped:
    which side is right is not ours to say. `source` names the file in a refusal; by default the first record's origin
    does.
    """
    sound = _keep(pairs, counts, pair_fault)
    records = _records(sound)
    wrong = _contradictions(sound, records)
    for pair in compress(sound, wrong):
        counts.drop(CONTRADICTORY, pair.origin.row)
    right = [not is_wrong for is_wrong in wrong]
    kept = list(compress(sound, right))
    return _settle(kept, list(compress(records, right)), pairs, counts, max_bad_share, source)


def check_demonstrations(
    rows: Sequence[Demonstration], counts: RowCounts, max_bad_share: float, source: str = ""
) -> list[Demonstration]:
    """Return the demonstrations worth imitating. An empty text prompt is right here: it stands for plain text."""
    kept = _keep(rows, counts, demonstration_fault)
    return _settle(kept, _records(kept), rows, counts, max_bad_share, source)


def check_prompts(
    rows: Sequence[PromptRow], counts: RowCounts, max_bad_share: float, source: str = ""
) -> list[PromptRow]:
    """Return the prompts that ask something."""
    kept = _keep(rows, counts, prompt_fault)
    return _settle(kept, _records(kept), rows, counts, max_bad_share, source)


# --- what is wrong with one record

EQUAL = {"none": "chosen equals rejected", "bytes": f"chosen equals rejected but for {IN_BYTES}"}
"""Faults of pairs with equal answers, by the result of `same.difference`."""


def pair_fault(pair: Pair) -> str | None:
    """Return why a pair cannot be used, or None. Texts that look the same to a reader count as equal."""
    if fault := _prompt_fault(pair.prompt) or _answer_fault("chosen", pair.chosen, pair.fields[0]):
        return fault
    if fault := _answer_fault("rejected", pair.rejected, pair.fields[1]):
        return fault
    how = same.difference(pair.chosen, pair.rejected)
    if how in EQUAL and same.fold_fields(pair.fields[0]) == same.fold_fields(pair.fields[1]):
        return EQUAL[how]
    if not math.isfinite(pair.margin):
        return "margin is not finite"
    return "margin is negative" if pair.margin < 0 else None


def demonstration_fault(row: Demonstration) -> str | None:
    """Return why a demonstration cannot be used, or None."""
    plain = isinstance(row.prompt, str) and not row.prompt.strip()
    return (None if plain else _prompt_fault(row.prompt)) or _answer_fault("completion", row.completion, row.fields)


def prompt_fault(row: PromptRow) -> str | None:
    """Return why a prompt cannot be used, or None."""
    return _prompt_fault(row.prompt)


def _answer_fault(side: str, text: object, fields: Fields | None) -> str | None:
    """Return why an answer cannot be used, or None. It must have text or call a tool."""
    if not isinstance(text, str):
        return f"{side} is not text"
    calls = fields is not None and fields.get("tool_calls")
    return f"empty {side}" if same.is_blank(text) and not calls else None


def _prompt_fault(prompt: Prompt | None) -> str | None:
    if isinstance(prompt, str):
        return "empty prompt" if same.is_blank(prompt) else None
    if not isinstance(prompt, list):
        return "prompt is neither text nor messages"
    if not prompt or (same.is_blank(prompt[-1]["content"]) and not further(prompt[-1])):
        return "empty prompt"
    return "prompt ends with an assistant turn" if prompt[-1]["role"] == "assistant" else None


Told = tuple[str, Fields | None]
"""An answer's text and its other fields."""
Compared = tuple[Hashable, ...]
"""A row's prompt and answers, as they are compared; empty if no other row has the prompt."""


def _records(rows: Sequence[AnyRow]) -> list[Compared]:
    keys = _split_keys(rows)
    times = Counter(keys)
    answers = [_answers(row) if times[key] > 1 else () for row, key in zip(rows, keys, strict=True)]
    texts, groups = [], []
    for key, told in zip(keys, answers, strict=True):
        texts += [text for text, _ in told]
        groups += [key] * len(told)
    compared = iter(same.answer_keys(texts, groups))
    records: list[Compared] = []
    for key, told in zip(keys, answers, strict=True):
        alike = [_answer(next(compared), fields) for _, fields in told]
        records.append((key, *alike) if times[key] > 1 else ())
    return records


def _contradictions(pairs: Sequence[Pair], records: Sequence[Compared]) -> list[bool]:
    """Say of each pair whether another one prefers the other of the same two answers to the same prompt.

    Prompts with another layout may rightly have another verdict. Few pairs get as far as this comparison.
    """
    seen = set(records)
    likely = [bool(record) and (record[0], record[2], record[1]) in seen for record in records]
    places = [at for at, it in enumerate(likely) if it]
    asked = {at: same.fold_layout(pairs[at].prompt) for at in places}
    told = {(asked[at], *records[at][1:]) for at in places}
    for at in places:
        likely[at] = (asked[at], records[at][2], records[at][1]) in told
    return likely


def _answers(row: AnyRow) -> tuple[Told, ...]:
    if isinstance(row, Pair):
        return (row.chosen, row.fields[0]), (row.rejected, row.fields[1])
    return ((row.completion, row.fields),) if isinstance(row, Demonstration) else ()


def _answer(text: Hashable, fields: Fields | None) -> Hashable:
    return (text, same.fold_fields(fields)) if fields else text


# --- counting and refusing


def _keep(rows: Iterable[_Record], counts: RowCounts, fault: Callable[[_Record], str | None]) -> list[_Record]:
    kept = []
    for row in rows:
        reason = fault(row)
        if reason is None:
            kept.append(row)
        else:
            counts.drop(reason, row.origin.row)
    return kept


def _settle(
    kept: list[_Record],
    records: Sequence[Compared],
    rows: Sequence[_Record],
    counts: RowCounts,
    max_bad_share: float,
    source: str,
) -> list[_Record]:
    """Count the rows that are used, refuse the source if they are too few, and note repeats and doubts."""
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
    _note_repeats(kept, records, counts)
    doubts.note_doubts(kept, counts)
    return kept


def refuse_bad(counts: RowCounts, max_bad_share: float, name: str) -> None:
    """Refuse a source if more than this share of its rows was dropped."""
    if counts.dropped_total > max_bad_share * counts.read:
        raise InputError(
            f"{name}: {counts.dropped_total} of {counts.read} rows are bad ({reasons(counts)}), above the limit of "
            f"{100 * max_bad_share:g} %; mend them{or_raise(counts)}{one_dimension(counts, name)}"
        )


def or_raise(counts: RowCounts) -> str:
    """Return half a sentence on the option that allows more bad rows; empty if no row is left, as it cannot help."""
    return "" if counts.dropped_total + counts.neutral_total >= counts.read else " or raise --max-bad-share"


def one_dimension(counts: RowCounts, source: str) -> str:
    """Return half a sentence on another remedy for contradictions in a store; empty if there are none."""
    if CONTRADICTORY not in counts.dropped or not counts.stored or "dimension=" in source:
        return ""
    return f", or take one dimension: {source}{'&' if '?' in source else '?'}dimension=NAME"


def reasons(counts: RowCounts, first: int = 5, neutral: bool = False) -> str:
    """Return `8 'chosen equals rejected': rows 3, 9, …; 2 'broken JSON': rows 1, 2`, the most frequent first.

    These are the dropped rows and, with `neutral`, the neutral ones.
    """
    tables = (counts.dropped, counts.neutral) if neutral else (counts.dropped,)
    ordered = [item for table in tables for item in sorted(table.items(), key=lambda item: -item[1][0])]
    return "; ".join(f"{count} '{reason}': {which(count, rows[:first])}" for reason, (count, rows) in ordered)


def which(count: int, rows: Sequence[int]) -> str:
    """Return `row 3` or `rows 3, 9, …`: the first numbers of `count` rows."""
    listed = ", ".join(str(row) for row in rows) + (", …" if count > len(rows) else "")
    return f"row {listed}" if count == 1 else f"rows {listed}"


def _note_repeats(rows: Sequence[AnyRow], records: Sequence[Compared], counts: RowCounts) -> None:
    times = Counter(records)
    exact: set[Hashable] = set()
    seen: set[Compared] = set()
    for row, record in zip(rows, records, strict=True):
        if not record or times[record] == 1:
            continue
        told = [_answer(text, fields) for text, fields in _answers(row)]
        written = (prompt_key(row.prompt), *told)
        if written in exact:
            counts.note("exact duplicate of an earlier row, kept", row.origin.row)
        elif record in seen:
            counts.note(f"duplicate of an earlier row but for {IN_BYTES}, kept", row.origin.row)
        seen.add(record)
        exact.add(written)


def summarise(counts: RowCounts, source: str, format: str) -> str:
    """Return what a run prints at its start: the format, if it is known, and every row's fate, one reason per line."""
    fate = f"{counted(counts.read, 'row')} read, {counts.used:,} used, {counts.dropped_total:,} dropped"
    fate += f", {counts.neutral_total:,} neutral" if counts.neutral else ""
    lines = [f"{source}: format {format}; {fate}" if format else f"{source}: {fate}"]
    for verb, table in (("dropped", counts.dropped), ("neutral", counts.neutral), ("note:", counts.notes)):
        for what, (count, rows) in sorted(table.items(), key=lambda item: -item[1][0]):
            lines.append(f"  {verb} {count} '{what}': {which(count, rows)}")
    return "\n".join(lines)


def counted(count: int, noun: str) -> str:
    """Return `1 row`, `2,000 rows`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


# --- leaks and splits


@dataclass(frozen=True, slots=True)
class Leak:
    """Held-out rows whose prompts also stand in the data."""

    places: list[int]
    """Their indices in the held-out rows."""
    rows: list[int]
    """Their row numbers."""
    otherwise: str
    """Half a sentence on those that the data write in other bytes."""


def leak(rows: Sequence[AnyRow], held: Sequence[AnyRow]) -> Leak:
    """Find the held-out prompts that also stand in `rows`. Plain text has no prompt to compare."""
    keys = same.prompt_keys([row.prompt for row in (*rows, *held)])
    here = {key for row, key in zip(rows, keys, strict=False) if row.prompt}
    places = [at for at, key in enumerate(keys[len(rows) :]) if key in here]
    written = {prompt_key(row.prompt) for row in rows} if places else set()
    others = [at for at in places if prompt_key(held[at].prompt) not in written]
    otherwise = f", {len(others):,} of them written otherwise ({IN_BYTES}, chat or plain text)" if others else ""
    return Leak(places, [held[at].origin.row for at in places], otherwise)


def split_by_prompt(rows: Sequence[_Record], holdout: float, seed: int) -> tuple[list[_Record], list[_Record]]:
    """Return (training rows, held-out rows), each in file order, with no prompt on both sides.

    Prompts are held out in the order of a hash of seed and prompt, as long as they fit into `holdout` of the rows. So
    the share is as exact as whole prompts allow, and does not depend on the order of the file. Plain text has no
    prompt and is split by its text. Prompts that differ in bytes only are one; the spelling that sorts first is hashed.
    """
    keys = _split_keys(rows)
    groups = Counter(keys)
    least: dict[Hashable, str] = {}
    for row, key in zip(rows, keys, strict=True):
        written = prompt_key(_asked(row))
        least[key] = min(least.get(key, written), written)
    order = sorted(groups, key=lambda key: (_draw(seed, least[key]), least[key]))
    target, total = holdout * len(rows), 0
    held: set[Hashable] = set()
    for key in order:
        if total + groups[key] <= target:
            held.add(key)
            total += groups[key]
    rest = [key for key in order if key not in held]
    nearest = min(rest, key=lambda key: groups[key], default=None)
    if nearest is not None and total + groups[nearest] - target <= target - total:
        held.add(nearest)
    inside = [key in held for key in keys]
    kept, out = list(compress(rows, (not there for there in inside))), list(compress(rows, inside))
    if not kept or not out:
        name = rows[0].origin.file if rows else "the data"
        raise InputError(
            f"{name}: a holdout of {holdout:g} leaves one side empty ({counted(len(rows), 'row')}, "
            f"{counted(len(groups), 'distinct prompt')}); give more prompts, another --holdout, "
            "or --eval-data"
        )
    return kept, out


def _split_keys(rows: Sequence[AnyRow]) -> list[Hashable]:
    """Return the keys that group rows: the prompt or, for plain text, the text."""
    return same.prompt_keys([_asked(row) for row in rows])


def _asked(row: AnyRow) -> Prompt:
    if isinstance(row, Demonstration) and isinstance(row.prompt, str) and not row.prompt.strip():
        return row.completion
    return row.prompt


def _draw(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()
