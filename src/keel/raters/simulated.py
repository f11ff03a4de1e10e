"""People of the embedded world as raters: they see a prompt and two answers and say which they prefer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from keel import world
from keel.config import CollectConfig
from keel.errors import InputError
from keel.raters import Missing, Rater, Task
from keel.records import Judgment, Preference, PromptRow
from keel.text.tokenisation import prompt_text


def make(name: str, config: CollectConfig) -> Rater:
    """Return the rater of `--rater simulated`."""
    return Simulated(config.seed)


class Simulated:
    """A `Rater` that is a crowd: one person, drawn anew from the seed and the task, judges each task."""

    def __init__(self, seed: int, population: world.Population | None = None) -> None:
        self.seed, self.population = seed, population or world.Population()
        self.identity = f"simulated people, seed {seed}"

    def rate(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[Judgment] | Missing]]:
        """Yield one vote per task, in order; the same task gets the same vote whenever it is asked."""
        for index, task in enumerate(tasks):
            prompt, first, second = prompt_text(task.prompt).strip(), task.first, task.second
            shown = (f"{answer.draw}\0{answer.text}" for answer in (first, second))
            rng = random.Random("\0".join((str(self.seed), prompt, *shown)))
            if not _knows(prompt):  # checked first, since careless people vote without reading
                yield index, Missing("simulated people judge answers to prompts of the embedded world only")
                continue
            vote = world.vote(prompt, first.text, second.text, rng, self.population)
            verdict = Preference(vote.outcome)
            yield index, [Judgment(task.prompt, (first, second), verdict, rater=vote.rater, kind="simulated")]

    def require_known(self, rows: Sequence[PromptRow], source: str) -> None:
        """Refuse prompts if none is of the embedded world, before anything is drawn for them."""
        if not any(_knows(prompt_text(row.prompt).strip()) for row in rows):
            raise InputError(
                f"{source}: simulated people judge answers to prompts of the embedded world only, and none of these "
                f"{len(rows)} is one; take rule:FILE.yaml, judge:NAME, local:MODEL or people as --rater"
            )

    def note(self) -> str:
        """Return nothing: simulated people ask for no money."""
        return ""


def _knows(prompt: str) -> bool:
    """Say whether a prompt is of the embedded world."""
    try:
        world.utility(prompt, "")
    except ValueError:
        return False
    return True
