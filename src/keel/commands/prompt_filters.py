"""Filters for the prompts of a file: none is asked twice; personal data and near-duplicates go as the caller wishes.

Each function takes rows with the counts that a reader made of them, and keeps `read == used + dropped + neutral`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from keel.data import checks
from keel.errors import InputError
from keel.records import Message, Prompt, PromptRow, RowCounts
from keel.text import personal
from keel.text.near_duplicates import near_duplicates
from keel.text.same import fold, fold_layout
from keel.text.tokenisation import further

Personal = Literal["keep", "mask", "drop"]
DONE: dict[Personal, str] = {"keep": "kept", "mask": "masked", "drop": "dropped"}


def choose(
    rows: Iterable[PromptRow], counts: RowCounts, personal_data: Personal = "keep", drop_near: bool = False
) -> list[PromptRow]:
    """Return the rows to ask, in order; masked ones are compared as they are asked. Raises `InputError` for none."""
    found = mind_personal(rows, counts, personal_data)
    found = distinct(found, counts)
    found = mind_near(found, counts, drop_near)
    if not found:
        raise InputError(f"none of {counts.read} prompts is left to ask ({checks.reasons(counts)}); give others")
    return found


def mind_personal(rows: Iterable[PromptRow], counts: RowCounts, how: Personal) -> list[PromptRow]:
    """Return rows with personal data kept, masked in all turns and their fields, or dropped; notes count each kind."""
    kept = []
    for row in rows:
        masked, kinds = _masked(row.prompt)
        for kind in sorted(kinds):
            counts.note(f"personal data {DONE[how]}: {kind}", row.origin.row)
        if kinds and how == "drop":
            _drop(counts, "personal data", row)
        else:
            kept.append(replace(row, prompt=masked) if kinds and how == "mask" else row)
    return kept


def _masked(prompt: Prompt) -> tuple[Prompt, Counter[str]]:
    if isinstance(prompt, str):
        return personal.mask(prompt)
    turns: list[Message] = []
    kinds: Counter[str] = Counter()
    for turn in prompt:
        content, found = personal.mask(turn["content"])
        more, found_there = personal.mask_in(further(turn))
        turns.append({**turn, "content": content, **more})
        kinds += found + found_there
    return turns, kinds


def distinct(rows: Iterable[PromptRow], counts: RowCounts) -> list[PromptRow]:
    """Return each prompt once, in the bytes of its first row. Layout counts; a chat is not the text that it asks."""
    first: dict[str, PromptRow] = {}
    for row in rows:
        if first.setdefault(fold_layout(row.prompt), row) is not row:
            _drop(counts, "prompt of an earlier row", row)
    return list(first.values())


def mind_near(rows: Sequence[PromptRow], counts: RowCounts, drop: bool) -> list[PromptRow]:
    """Return the first of each group of near-duplicates, or all with a note.

    System turns are not compared, or all chats of one service would be near each other. Chats are near-duplicates only
    if these turns are equal.
    """
    later: set[int] = set()
    for group in near_duplicates([_text(row.prompt, system=False) for row in rows]):
        alike: dict[str, list[int]] = defaultdict(list)
        for index in group:
            alike[fold(_text(rows[index].prompt, system=True))].append(index)
        later.update(index for same in alike.values() for index in same[1:])
    for index in sorted(later):
        if drop:
            _drop(counts, "near-duplicate of an earlier prompt", rows[index])
        else:
            counts.note("near-duplicate of an earlier prompt, kept", rows[index].origin.row)
    return [row for index, row in enumerate(rows) if not (drop and index in later)]


def _text(prompt: Prompt, system: bool) -> str:
    """Return the system turns of a prompt, or all others."""
    if isinstance(prompt, str):
        return "" if system else prompt
    return "\n".join(turn["content"] for turn in prompt if (turn["role"] == "system") is system)


def _drop(counts: RowCounts, reason: str, row: PromptRow) -> None:
    counts.used -= 1
    counts.drop(reason, row.origin.row)
