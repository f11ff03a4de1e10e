"""Formats of answers that nobody has judged yet: a row into a prompt and its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from keel.data.rows import Row, RowError, items, prompt, text
from keel.records import Answer, Prompt

__all__ = ["UNJUDGED", "Unjudged"]


@dataclass(frozen=True)
class Unjudged:
    """A way to write answers: `needs` are its columns, `fits` tells it from another with these columns."""

    name: str
    needs: tuple[str, ...]
    convert: Callable[[Row], tuple[Prompt, list[Answer]]]
    fits: Callable[[Row], bool] = lambda row: True


def _listed(column: str) -> Callable[[Row], tuple[Prompt, list[Answer]]]:
    """Answers in a list, as texts or as `{"text": …}`, which is how `keel generate` writes them."""

    def convert(row: Row) -> tuple[Prompt, list[Answer]]:
        answers = []
        for at, value in enumerate(items(row, column), 1):
            said = value.get("text") if isinstance(value, dict) else value
            if not isinstance(said, str):
                raise RowError(f"{column} {at} is neither a text nor has one")
            cut = isinstance(value, dict) and value.get("truncated") is True
            answers.append(Answer(said, truncated=cut))
        return prompt(row, "prompt"), answers

    return convert


def _two(first: str, second: str) -> Unjudged:
    """Two answers in columns of their own."""
    return Unjudged(
        f"{first}, {second}",
        ("prompt", first, second),
        lambda row: (prompt(row, "prompt"), [Answer(text(row, first)), Answer(text(row, second))]),
    )


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
"""In the order in which they are tried, after formats that hold judgments."""
