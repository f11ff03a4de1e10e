"""Tasks: questions about the answers to a prompt, and how they are put into a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, groupby
from typing import Any

import sqlalchemy as sa

from keel.annotation.turns import JUDGED, TaskKind, change
from keel.annotation.verdicts import share_right
from keel.records import MIRROR, Answer, Origin, Prompt
from keel.store.keys import answer_id, prompt_id
from keel.store.rows import stored_answer, stored_prompt
from keel.store.schema import answers, prompts, shown, tasks, turns
from keel.store.store import Store
from keel.text.shown import stripped


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to put in: answers to a prompt, in the task's own order; `gold` is the known outcome by dimension."""

    prompt: Prompt
    answers: Sequence[Answer]
    kind: TaskKind = "pair"
    dimension: str = ""
    gold: Mapping[str, str] | None = None
    origin: Origin = field(default_factory=Origin)

    def for_each(self, dimensions: Iterable[str]) -> Iterator[NewTask]:
        """Yield one task for each dimension; an empty one stands for all at once. Gold skips dimensions it lacks."""
        for dimension in dimensions:
            gold = self.gold
            if gold is not None and dimension:
                gold = {dimension: gold[dimension]} if dimension in gold else None
                if gold is None:
                    continue
            yield replace(self, dimension=dimension, gold=gold)


def tasks_of_store(store: Store, kind: TaskKind = "pair") -> Iterator[NewTask]:
    """Yield the tasks of a kind for all answers that a store holds."""
    columns = (c.label(f"a_{c.name}") for c in answers.columns)
    statement = sa.select(prompts.c.key, prompts.c.content, prompts.c.chat, *columns)
    statement = statement.join(answers, answers.c.prompt == prompts.c.key).order_by(prompts.c.key, answers.c.key)
    for _, rows in groupby(store.stream(statement), key=lambda row: row.key):
        some = list(rows)
        yield from tasks_of(stored_prompt(some[0]), [stored_answer(row, "a") for row in some], kind)


def tasks_of(
    prompt: Prompt, found: Sequence[Answer], kind: TaskKind, origin: Origin | None = None
) -> Iterator[NewTask]:
    """Yield tasks of every two answers that differ, of each answer, or of all answers if there are at least two."""
    distinct = list({stripped(answer): answer for answer in found}.values())
    if kind == "score":
        shown_together: Iterable[Sequence[Answer]] = ((answer,) for answer in distinct)
    elif kind == "ranking":
        shown_together = [distinct] if len(distinct) > 1 else []
    else:
        shown_together = combinations(distinct, 2)
    for some in shown_together:
        yield NewTask(prompt, tuple(some), kind, origin=origin or Origin())


# --- into a store ---------------------------------------------------------------------------------


def put_in(connection: sa.Connection, new: dict[bytes, NewTask], overlap: int) -> int:
    """Insert the tasks that are not there yet; the others may want more people. Return how many are new."""
    there = set(connection.scalars(sa.select(tasks.c.key).where(tasks.c.key.in_(new))))
    more = {"overlap": overlap, "wants": tasks.c.wants + (overlap - tasks.c.overlap)}
    wider = tasks.c.key.in_(there), tasks.c.overlap < overlap, tasks.c.gold == ""
    connection.execute(sa.update(tasks).where(*wider).values(**more))
    known = sum(_know(connection, key, new[key]) for key in there if new[key].gold)
    fresh = {key: task for key, task in new.items() if key not in there}
    if not fresh:
        return known
    connection.execute(sa.insert(tasks), [_task_row(key, task, overlap) for key, task in fresh.items()])
    numbers = dict(
        tuple(row) for row in connection.execute(sa.select(tasks.c.key, tasks.c.id).where(tasks.c.key.in_(fresh)))
    )
    rows = [
        {"task": numbers[key], "place": place, "answer": answer_id(prompt_id(task.prompt), answer)}
        for key, task in fresh.items()
        for place, answer in enumerate(task.answers)
    ]
    connection.execute(sa.insert(shown), rows)
    return known + len(fresh)


def _know(connection: sa.Connection, key: bytes, task: NewTask) -> bool:
    """Turn a stored plain task into a gold one and note who judged it right; False if it is gold already."""
    plain = sa.select(tasks.c.id).where(tasks.c.key == key, tasks.c.gold == "")
    if (found := connection.scalar(plain)) is None:
        return False
    assert task.gold is not None
    own = connection.scalar(sa.select(shown.c.answer).where(shown.c.task == found, shown.c.place == 0))
    same = own == answer_id(prompt_id(task.prompt), task.answers[0])
    gold = {d: outcome if same else MIRROR.get(outcome, outcome) for d, outcome in task.gold.items()}  # type: ignore[call-overload]
    row = {"gold": json.dumps(gold), "wants": 0}
    connection.execute(sa.update(tasks).where(tasks.c.id == found).values(**row))
    judged = sa.select(turns.c.rater, turns.c.settled).where(turns.c.task == found, turns.c.state == JUDGED)
    for rater, settled in connection.execute(judged).all():
        change(connection, found, rater, right=share_right(gold, json.loads(settled)))
    return True


def key_of(task: NewTask) -> bytes:
    """Return a task's key: the same for the same answers, kind and dimension, in any order of the answers."""
    prompt = prompt_id(task.prompt)
    keys = sorted(answer_id(prompt, answer) for answer in task.answers)
    return hashlib.sha256(b"\xff".join([task.kind.encode(), task.dimension.encode(), *keys])).digest()[:20]


def _task_row(key: bytes, task: NewTask, overlap: int) -> dict[str, Any]:
    return {
        "key": key,
        "kind": task.kind,
        "prompt": prompt_id(task.prompt),
        "dimension": task.dimension,
        "overlap": overlap,
        "wants": 0 if task.gold else overlap,
        "begun": False,
        "gold": json.dumps(dict(task.gold)) if task.gold else "",
        "adjudicated": False,
    }
