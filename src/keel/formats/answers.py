"""Formats of answers that nobody has judged yet: each turns a row into a prompt and its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from keel.files.fields import Row, RowError, items
from keel.formats.judgments.keel_columns import drawn_in
from keel.formats.messages import around, messages, prompt, read_side, reply
from keel.records import Answer, Prompt

__all__ = ["UNJUDGED", "Unjudged"]


@dataclass(frozen=True)
class Unjudged:
    """A format of answers: `needs` are its columns; `fits` tells it from other formats with these columns."""

    name: str
    needs: tuple[str, ...]
    convert: Callable[[Row], tuple[Prompt, list[Answer]]]
    fits: Callable[[Row], bool] = lambda row: True


def _listed(column: str) -> Callable[[Row], tuple[Prompt, list[Answer]]]:
    """Return a reader of answers in a list: texts, messages, or `{"text": …}`, as `keel generate` writes them."""

    def convert(row: Row) -> tuple[Prompt, list[Answer]]:
        given = enumerate(items(row, column), 1)
        answers = [_answer(value, f"{column} {at}", row.get("tokenizer")) for at, value in given]
        return around(row, prompt(row, "prompt")), answers

    return convert


def _answer(value: object, name: str, tokenizer: object) -> Answer:
    if isinstance(value, dict) and "text" not in value and not {"role", "from"}.isdisjoint(value):
        return reply([], messages({name: [value]}, name), name)
    said = value.get("text") if isinstance(value, dict) else value
    if not isinstance(said, str):
        raise RowError(f"{name} is neither a text nor has one")
    if not isinstance(value, dict):
        return Answer(said)
    return Answer(said, truncated=value.get("truncated") is True, drawn=drawn_in(tokenizer, value.get("ids")))


def _two(first: str, second: str) -> Unjudged:
    """Return the format of two answers in columns of their own."""
    return Unjudged(
        f"{first}, {second}",
        ("prompt", first, second),
        lambda row: (around(row, prompt(row, "prompt")), [_side(row, first), _side(row, second)]),
    )


def _side(row: Row, column: str) -> Answer:
    found = read_side(row, column)
    return Answer(found) if isinstance(found, str) else reply([], found, column)


UNJUDGED: tuple[Unjudged, ...] = (
    *(
        Unjudged(name, ("prompt", name), _listed(name))
        for name in ("completions", "candidates", "responses", "answers")
    ),
    *(
        _two(f"{word}_{a}", f"{word}_{b}")
        for word in ("response", "answer", "completion", "output")
        for a, b in (("a", "b"), ("1", "2"))
    ),
)
"""Formats in the order of trial, after those that hold judgments."""
