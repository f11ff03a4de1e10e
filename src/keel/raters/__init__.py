"""Raters: people, rules, LLM judges, simulated people. All give the same `Judgment`, by one Protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from keel.records import Answer, Judgment, Prompt


@dataclass(frozen=True, slots=True)
class Task:
    """Two answers to one prompt, in the order in which they are to be shown."""

    prompt: Prompt
    first: Answer
    second: Answer


@dataclass(frozen=True, slots=True)
class Missing:
    """No judgment, and the reason. It is counted and asked again next time, never stored.

    `waiting` says that nothing failed: people have been asked, and will answer in their own time.
    """

    reason: str
    waiting: bool = False


class Rater(Protocol):
    """Says which of two answers is better, in each dimension of its rubric."""

    identity: str
    """Name and version. Two raters with one identity would say the same, so nothing is asked twice."""

    def rate(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[Judgment] | Missing]]:
        """Yield (index of a task, its judgments), as they come and in any order; tasks left out were not begun.

        The caller may stop for good between two results: what was yielded counts, the rest is as if never asked.
        """
        ...

    def note(self) -> str:
        """Return what a progress bar should show beside it, such as the cost so far; may be empty."""
        ...
