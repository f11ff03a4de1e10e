"""People as raters: tasks are put into the queue of `keel annotate`, and the verdicts come later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from keel.annotation.queue import Queue
from keel.annotation.tasks import NewTask
from keel.config import CollectConfig
from keel.raters import Missing, Rater, Task
from keel.records import Judgment
from keel.store.store import Store


def make(name: str, config: CollectConfig) -> Rater:
    """Return the rater of `--rater people`."""
    return People(config.store)


class People:
    """A `Rater` whose verdicts are in the store already, or not given yet: it never waits for anybody."""

    identity = "people"

    def __init__(self, source: str) -> None:
        self.source = source
        self._put = 0

    def rate(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[Judgment] | Missing]]:
        """Put each task to people once, however often it is asked; the page shows it in the order of its own seed."""
        with Store(self.source) as store:
            self._put += Queue(store).add(NewTask(task.prompt, (task.first, task.second)) for task in tasks)
        for index in range(len(tasks)):
            yield index, Missing(f"put to people: keel annotate --store {self.source}", waiting=True)

    def note(self) -> str:
        """Return how many tasks are new in the queue, or nothing."""
        return f"{self._put:,} tasks put to people" if self._put else ""
