"""What people are asked: tasks over a store, handed out one turn at a time, each to as many people as it wants.

A task is one, two or more answers to one prompt. A *turn* is one rater at one task: leased until a moment, then judged,
skipped, flagged or expired. `wants` of a task counts the people that it still waits for; handing it out takes one,
letting it go gives one back, both in the transaction that changes the turn. So nobody is handed what others hold beyond
the overlap, a killed server loses no turn, and judging twice with one key stores one judgment.

Tasks that somebody has begun come before fresh ones, so that overlap is soon complete. Tasks with a known verdict
(gold) come up among the others, to every rater, and count towards nobody's overlap.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, groupby, islice
from typing import Any, Literal

import sqlalchemy as sa

from keel.errors import InputError
from keel.records import (
    MIRROR,
    Answer,
    Judgment,
    Origin,
    Preference,
    Prompt,
    PromptRow,
    Ranking,
    RaterKind,
    Score,
    Verdict,
)
from keel.store.keys import answer_id, prompt_id, said_key
from keel.store.rows import rows_of, stored_answer, stored_prompt
from keel.store.schema import ADJUDICATOR, answers, prompts, settings, shown, tasks, turns
from keel.store.store import Store
from keel.text.shown import bare

Kind = Literal["pair", "score", "ranking"]

LEASED, EXPIRED, JUDGED, SKIPPED, FLAGGED = "leased", "expired", "judged", "skipped", "flagged"
PLAIN = tasks.c.gold == ""
"""Tasks whose verdict nobody knows yet."""
BY_RATERS = ~turns.c.rater.endswith(ADJUDICATOR, autoescape=True)
"""Turns of those who rate, not of those who decide."""
CHUNK = 2_000
"""Tasks that are put in at once."""
LOOK = 500
"""Begun tasks that are looked through for one that a rater has not had, before a fresh one is taken."""


class GoneError(InputError):
    """A turn that cannot be judged any more: its time was up and others took the task, or it was skipped."""


@dataclass(frozen=True, slots=True)
class NewTask:
    """What to ask: answers to a prompt, in their own order; `gold` holds the known outcome by dimension."""

    prompt: Prompt
    answers: Sequence[Answer]
    kind: Kind = "pair"
    dimension: str = ""
    gold: Mapping[str, str] | None = None
    origin: Origin = field(default_factory=Origin)

    def for_each(self, dimensions: Iterable[str]) -> Iterator[NewTask]:
        """One task for each dimension; an empty one stands for all at once."""
        for dimension in dimensions:
            gold = self.gold
            if gold is not None and dimension:
                gold = {dimension: gold[dimension]} if dimension in gold else None
                if gold is None:
                    continue
            yield replace(self, dimension=dimension, gold=gold)


@dataclass(frozen=True, slots=True)
class Turn:
    """A task in a rater's hands: the answers as they are to be shown, the first one left."""

    key: str
    task: int
    kind: Kind
    prompt: Prompt
    answers: tuple[Answer, ...]
    dimension: str
    """The one that is asked about; empty: all of the rubric's."""
    seconds_left: float
    said: Mapping[str, Any] | None = None
    """Verdicts by dimension that were given before they were undone."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one is, and all together; `total` counts people who are wanted over all tasks but gold ones."""

    mine: int
    mine_today: int
    team: int
    total: int
    can_undo: bool


class Queue:
    """The tasks of a store."""

    def __init__(self, store: Store, *, lease: float = 900.0, gold_every: int = 10) -> None:
        """`lease` is seconds in which a rater is to judge; one in `gold_every` tasks is a gold one, while there are."""
        self.store, self.lease, self.gold_every = store, lease, gold_every
        self.seed = self._side_seed()
        self._team = (0.0, 0, 0)

    def _side_seed(self) -> str:
        """What flips the sides, drawn once for each store and kept in it."""
        with self.store.writing() as connection:
            found = connection.scalar(sa.select(settings.c.value).where(settings.c.name == "side seed"))
            if found is None:
                found = secrets.token_hex(8)
                connection.execute(sa.insert(settings).values(name="side seed", value=found))
        return str(found)

    # --- putting tasks in -------------------------------------------------------------------------

    def add(self, found: Iterable[NewTask], overlap: int = 1) -> int:
        """Put tasks in; returns how many are new. The same answers asked about again are the same task.

        A task that is there already wants more people where `overlap` is higher than it was, and is a gold one from now
        on (which counts as new) where its verdict is known.
        """
        added = 0
        source = iter(found)
        while some := list(islice(source, CHUNK)):
            self.store.add_answers((PromptRow(task.prompt, task.origin), task.answers) for task in some)
            with self.store.writing() as connection:
                added += self._add(connection, {_key(task): task for task in some}, overlap)
        self._team = (0.0, 0, 0)
        return added

    def _add(self, connection: sa.Connection, new: dict[bytes, NewTask], overlap: int) -> int:
        """Insert those that are not there; the others may want more people."""
        there = set(connection.scalars(sa.select(tasks.c.key).where(tasks.c.key.in_(new))))
        more = {"overlap": overlap, "wants": tasks.c.wants + (overlap - tasks.c.overlap)}
        wider = tasks.c.key.in_(there), tasks.c.overlap < overlap, tasks.c.gold == ""
        connection.execute(sa.update(tasks).where(*wider).values(**more))
        known = sum(self._know(connection, key, new[key]) for key in there if new[key].gold)
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

    def _know(self, connection: sa.Connection, key: bytes, task: NewTask) -> bool:
        """Make a gold task of one that is there, and tell of those who have judged it whether they were right."""
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
            self._change(connection, found, rater, right=_right(gold, json.loads(settled)))
        return True

    # --- handing out ------------------------------------------------------------------------------

    def next(self, rater: str) -> Turn | None:
        """What a rater is to judge now: what he holds already, else the next task that he has not had."""
        now = time.time()
        with self.store.writing() as connection:
            self._sweep(connection, now)
            held = connection.execute(
                sa.select(turns.c.task).where(turns.c.rater == rater, turns.c.state == LEASED).order_by(turns.c.made)
            ).first()
            task = held.task if held else self._pick(connection, rater)
            if task is None:
                return None
            if held:
                self._change(connection, task, rater, expires=now + self.lease)
            else:
                self._lease(connection, task, rater, now)
            return self._turn(connection, task, rater, now)

    def _sweep(self, connection: sa.Connection, now: float) -> None:
        """Take back what was held too long. Of two servers one does it at a time."""
        if not self.store.sqlite and not connection.scalar(sa.text("SELECT pg_try_advisory_xact_lock(7355609)")):
            return
        late = sa.update(turns).where(turns.c.state == LEASED, turns.c.expires < now).values(state=EXPIRED)
        for (task,) in connection.execute(late.returning(turns.c.task)).all():
            self._give_back(connection, task)

    def _give_back(self, connection: sa.Connection, task: int) -> None:
        """One more person is wanted again; of gold tasks nobody counts."""
        back = tasks.c.wants + 1
        connection.execute(sa.update(tasks).where(tasks.c.id == task, tasks.c.gold == "").values(wants=back))

    def _take(self, connection: sa.Connection, task: int) -> bool:
        """One person less is wanted; False where none is. Gold tasks want everybody."""
        one = sa.update(tasks).where(tasks.c.id == task, sa.or_(tasks.c.wants > 0, tasks.c.gold != ""))
        wants = sa.case((tasks.c.gold == "", tasks.c.wants - 1), else_=tasks.c.wants)
        return connection.execute(one.values(wants=wants, begun=True)).rowcount == 1

    def _pick(self, connection: sa.Connection, rater: str) -> int | None:
        """The next task for a rater: now and then a gold one, else one that others have begun, else a fresh one."""
        count = sa.select(sa.func.count()).where(turns.c.rater == rater, turns.c.state == JUDGED)
        if (connection.scalar(count) or 0) % self.gold_every == self.gold_every // 2:
            gold = connection.scalar(self._free(rater).where(tasks.c.gold != "").order_by(tasks.c.id).limit(1))
            if gold is not None:
                return int(gold)
        begun = tasks.c.wants > 0, tasks.c.begun
        looked = sa.select(tasks.c.id).where(*begun).order_by(tasks.c.id).limit(LOOK)
        for free in (
            self._free(rater).where(tasks.c.id.in_(looked), *begun),
            self._free(rater).where(tasks.c.wants > 0, sa.not_(tasks.c.begun)),
            self._free(rater).where(*begun),
        ):
            found = connection.scalar(free.order_by(tasks.c.id).limit(1).with_for_update(skip_locked=True))
            if found is not None:
                return int(found)
        return None

    def _free(self, rater: str) -> sa.Select[Any]:
        """Tasks that a rater has not had, or had and let go of."""
        had = sa.exists().where(turns.c.task == tasks.c.id, turns.c.rater == rater, turns.c.state != EXPIRED)
        return sa.select(tasks.c.id).where(~had)

    def _lease(self, connection: sa.Connection, task: int, rater: str, now: float) -> None:
        self._take(connection, task)
        again = {"state": LEASED, "expires": now + self.lease}
        if connection.execute(self._of(task, rater).values(**again)).rowcount:
            return
        places = connection.scalar(sa.select(sa.func.count()).where(shown.c.task == task)) or 0
        fresh = {"key": secrets.token_hex(16), "order": self._order(task, rater, places), "made": now}
        blank = {"said": "", "settled": "", "judgments": "", "note": ""}
        connection.execute(sa.insert(turns).values(task=task, rater=rater, **again, **fresh, **blank))

    def _order(self, task: int, rater: str, places: int) -> str:
        """Places of the answers as this rater sees them: a permutation that the store's seed decides."""
        order = list(range(places))
        random.Random(f"{self.seed} {task} {rater}").shuffle(order)
        return ",".join(map(str, order))

    def _of(self, task: int, rater: str) -> sa.Update:
        return sa.update(turns).where(turns.c.task == task, turns.c.rater == rater)

    def _change(self, connection: sa.Connection, task: int, rater: str, **values: Any) -> None:
        connection.execute(self._of(task, rater).values(**values))

    def _row(self, connection: sa.Connection, *which: sa.ColumnElement[bool]) -> sa.Row[Any] | None:
        """One turn with what its task and prompt say."""
        columns = tasks.c.kind, tasks.c.dimension, tasks.c.gold, prompts.c.content, prompts.c.chat
        joined = sa.select(turns, *columns).join(tasks, tasks.c.id == turns.c.task)
        return connection.execute(joined.join(prompts, prompts.c.key == tasks.c.prompt).where(*which)).first()

    def _turn(self, connection: sa.Connection, task: int, rater: str, now: float) -> Turn:
        """A turn as the page needs it."""
        row = self._row(connection, turns.c.task == task, turns.c.rater == rater)
        assert row is not None
        return self._shown(connection, row, now)

    def _shown(self, connection: sa.Connection, row: sa.Row[Any], now: float) -> Turn:
        said = json.loads(row.said) if row.said else None
        seen, left = _as_shown(connection, row), row.expires - now
        return Turn(row.key, row.task, row.kind, stored_prompt(row), seen, row.dimension, left, said)

    def held(self, rater: str, key: str) -> Turn:
        """A turn of a rater by its key, whatever its state; `GoneError` where there is none."""
        with self.store.reading() as connection:
            return self._shown(connection, self._mine(connection, rater, key), time.time())

    def kind_of(self, task: int) -> tuple[Kind, int]:
        """A task's kind, and how many answers it has; `GoneError` where there is none."""
        statement = sa.select(tasks.c.kind).join(shown, shown.c.task == tasks.c.id).where(tasks.c.id == task)
        found = self.store.read(statement)
        if not found:
            raise GoneError(f"there is no task {task}")
        return found[0].kind, len(found)

    # --- taking verdicts --------------------------------------------------------------------------

    def judge(
        self,
        rater: str,
        key: str,
        verdicts: Mapping[str, Verdict],
        *,
        rubric: str = "",
        comment: str = "",
        seconds: float | None = None,
    ) -> None:
        """Store what a rater says of the answers as they were shown; said again, nothing happens.

        Raises `GoneError` where the turn is over: judged otherwise in another window, skipped, or expired and taken by
        others.
        """
        with self.store.writing() as connection:
            row = self._mine(connection, rater, key)
            if row.state == JUDGED:
                if json.loads(row.said) != _said(verdicts):
                    raise GoneError("you have judged this task already, and otherwise; undo that to change it")
                return
            if row.state in (SKIPPED, FLAGGED):
                raise GoneError("you have skipped this task; undo that first")
            if row.state == EXPIRED and not self._take(connection, row.task):
                raise GoneError("your time for this task was up and others have taken it; go on with the next one")
            self._store(connection, row, rater, "person", verdicts, rubric, comment, seconds)
        self._noted(row.gold, 1)

    def _noted(self, gold: str, count: int) -> None:
        """What this server does stands in the team's count at once; what others do, within seconds."""
        if not gold:
            at, judged, wanted = self._team
            self._team = at, judged + count, wanted

    def _mine(self, connection: sa.Connection, rater: str, key: str) -> sa.Row[Any]:
        row = self._row(connection, turns.c.key == key, turns.c.rater == rater)
        if row is None:
            raise GoneError("there is no such task in your hands; go on with the next one")
        return row

    def _store(
        self,
        connection: sa.Connection,
        row: sa.Row[Any],
        rater: str,
        kind: RaterKind,
        verdicts: Mapping[str, Verdict],
        rubric: str,
        comment: str,
        seconds: float | None,
    ) -> None:
        """Append the judgments and close the turn, in one transaction."""
        seen = _as_shown(connection, row)
        made = []
        for dimension, verdict in verdicts.items():
            judgment = Judgment(
                stored_prompt(row),
                seen,
                verdict,
                rater=rater,
                kind=kind,
                dimension=dimension,
                rubric=rubric,
                seconds=seconds,
                comment=comment,
            )
            made.append((said_key(judgment), judgment))
        for some in rows_of(made):
            self.store.add_in(connection, some)
        said = _said(verdicts)
        settled = {dimension: _without_strength(in_own_order(one, row.order)) for dimension, one in said.items()}
        self._change(
            connection,
            row.task,
            rater,
            state=JUDGED,
            done=time.time(),
            said=json.dumps(said),
            settled=json.dumps(settled, sort_keys=True),
            judgments=",".join(key.hex() for key, _ in made),
            right=_right(json.loads(row.gold) if row.gold else {}, settled),
            seconds=seconds,
            note="",
        )

    def skip(self, rater: str, key: str) -> None:
        """Leave a task to others, for good."""
        self._let_go(rater, key, SKIPPED, "")

    def flag(self, rater: str, key: str, note: str) -> None:
        """The same, with a word on what is wrong with it."""
        self._let_go(rater, key, FLAGGED, note)

    def _let_go(self, rater: str, key: str, state: str, note: str) -> None:
        with self.store.writing() as connection:
            row = self._mine(connection, rater, key)
            if row.state == JUDGED:
                raise GoneError("you have judged this task already; undo that first")
            if row.state == LEASED:
                self._give_back(connection, row.task)
            if row.state in (LEASED, EXPIRED):
                self._change(connection, row.task, rater, state=state, done=time.time(), note=note)

    def undo(self, rater: str) -> Turn:
        """Take back a rater's last word: judgments are retracted, the task is in his hands again with what he said.

        What he held meanwhile goes back to the queue. `GoneError` where there is nothing to take back.
        """
        now = time.time()
        with self.store.writing() as connection:
            mine = turns.c.rater == rater, turns.c.state.in_((JUDGED, SKIPPED, FLAGGED))
            latest = sa.select(turns, tasks.c.gold).join(tasks).where(*mine).order_by(turns.c.done.desc()).limit(1)
            last = connection.execute(latest).first()
            if last is None:
                raise GoneError("there is nothing to undo")
            if last.state != JUDGED and not self._take(connection, last.task):
                raise GoneError("others have taken the task that you left; it cannot be undone")
            held = sa.select(turns.c.task).where(turns.c.rater == rater, turns.c.state == LEASED)
            for (task,) in connection.execute(held).all():
                self._change(connection, task, rater, state=EXPIRED, said="")
                self._give_back(connection, task)
            for key in filter(None, last.judgments.split(",")):
                self.store.retract_in(connection, bytes.fromhex(key), "undone")
            again = {"state": LEASED, "expires": now + self.lease, "done": None, "right": None}
            self._change(connection, last.task, rater, **again, judgments="", settled="")
            turn = self._turn(connection, last.task, rater, now)
        if last.state == JUDGED:
            self._noted(last.gold, -1)
        return turn

    def adjudicate(
        self, name: str, task: int, verdicts: Mapping[str, Verdict], *, rubric: str = "", comment: str = ""
    ) -> None:
        """Decide where raters disagree, the answers shown in the task's own order; deciding again replaces it."""
        rater = name + ADJUDICATOR
        now = time.time()
        with self.store.writing() as connection:
            places = len(answers_of(connection, task))
            if not places:
                raise GoneError(f"there is no task {task}")
            former = sa.select(turns.c.key, turns.c.judgments).where(turns.c.task == task, turns.c.rater == rater)
            found = connection.execute(former).first()
            if found is None:
                blank = {"said": "", "settled": "", "judgments": "", "note": "", "made": now, "expires": now}
                order = ",".join(map(str, range(places)))
                fresh = {"key": secrets.token_hex(16), "state": EXPIRED, "order": order}
                connection.execute(sa.insert(turns).values(task=task, rater=rater, **fresh, **blank))
            else:
                for key in filter(None, found.judgments.split(",")):
                    self.store.retract_in(connection, bytes.fromhex(key), "decided again")
            key = connection.scalar(sa.select(turns.c.key).where(turns.c.task == task, turns.c.rater == rater))
            row = self._mine(connection, rater, str(key))
            self._store(connection, row, rater, "adjudicator", verdicts, rubric, comment, None)
            connection.execute(sa.update(tasks).where(tasks.c.id == task).values(adjudicated=True))

    # --- how far ----------------------------------------------------------------------------------

    def progress(self, rater: str) -> Progress:
        """How far a rater and all together are; the team's count is up to two seconds old."""
        now = time.time()
        if now - self._team[0] > 2.0:
            self._team = (now, *tuple(self.store.read(sa.select(*judged_and_wanted()))[0]))
        midnight = now - now % 86_400
        count = sa.func.count()
        judged_by = turns.c.rater == rater, turns.c.state == JUDGED
        ended = sa.select(sa.literal(1)).where(turns.c.rater == rater, turns.c.state.in_((JUDGED, SKIPPED, FLAGGED)))
        columns: list[Any] = [
            sa.select(count).where(*judged_by).scalar_subquery(),
            sa.select(count).where(*judged_by, turns.c.done >= midnight).scalar_subquery(),
            sa.exists(ended),
        ]
        mine, today, undoable = tuple(self.store.read(sa.select(*columns))[0])
        return Progress(mine, today, self._team[1], self._team[2], bool(undoable))


def _key(task: NewTask) -> bytes:
    """The same for the same answers asked about in the same way, in whatever order they come."""
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


def judged_and_wanted() -> tuple[sa.ScalarSelect[Any], sa.ScalarSelect[Any]]:
    """Subqueries: turns that raters have judged, and turns that are wanted in all, gold tasks left out."""
    judged = sa.select(sa.func.count()).select_from(turns).join(tasks).where(turns.c.state == JUDGED, PLAIN, BY_RATERS)
    wanted = sa.select(sa.func.coalesce(sa.func.sum(tasks.c.overlap), 0)).where(PLAIN)
    return judged.scalar_subquery(), wanted.scalar_subquery()


def answers_of(connection: sa.Connection, task: int) -> list[Answer]:
    """A task's answers in its own order."""
    columns = (c.label(f"a_{c.name}") for c in answers.columns)
    statement = sa.select(*columns).join(shown, shown.c.answer == answers.c.key).where(shown.c.task == task)
    return [stored_answer(row, "a") for row in connection.execute(statement.order_by(shown.c.place))]


def _as_shown(connection: sa.Connection, row: sa.Row[Any]) -> tuple[Answer, ...]:
    """The answers of a turn in the order in which its rater sees them."""
    given = answers_of(connection, row.task)
    return tuple(given[place] for place in _places(row.order))


def _places(order: str) -> list[int]:
    return [int(place) for place in order.split(",")]


def _said(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """Verdicts as they are kept beside a turn, sides as they were shown."""
    return {dimension: verdict_json(verdict) for dimension, verdict in verdicts.items()}


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as the page sends it."""
    match verdict:
        case Preference(outcome, strength):
            return {"outcome": outcome} | ({"strength": int(strength)} if strength else {})
        case Score(value):
            return {"value": value}
        case Ranking(ranks):
            return {"ranks": list(ranks)}


def in_own_order(said: Mapping[str, Any], order: str) -> dict[str, Any]:
    """A verdict as the page sent it, turned to the task's own order."""
    places = _places(order)
    if "ranks" in said:
        return {"ranks": [rank for _, rank in sorted(zip(places, said["ranks"], strict=True))]}
    if "outcome" in said and places == [1, 0]:
        return {**said, "outcome": MIRROR.get(said["outcome"], said["outcome"])}
    return dict(said)


def _right(gold: Mapping[str, Any], settled: Mapping[str, Any]) -> float | None:
    """The share of dimensions in which a verdict is the known one; None where none is known."""
    asked = [dimension for dimension in gold if dimension in settled]
    return sum(settled[d] == gold[d] for d in asked) / len(asked) if asked else None


def _without_strength(verdict: Mapping[str, Any]) -> Any:
    """What of a verdict is compared with another rater's, and with gold."""
    return next(verdict[name] for name in ("outcome", "value", "ranks") if name in verdict)


def tasks_of_store(store: Store, kind: Kind = "pair") -> Iterator[NewTask]:
    """What there is to ask about the answers that a store holds."""
    columns = (c.label(f"a_{c.name}") for c in answers.columns)
    statement = sa.select(prompts.c.key, prompts.c.content, prompts.c.chat, *columns)
    statement = statement.join(answers, answers.c.prompt == prompts.c.key).order_by(prompts.c.key, answers.c.key)
    for _, rows in groupby(store.stream(statement), key=lambda row: row.key):
        some = list(rows)
        yield from tasks_of(stored_prompt(some[0]), [stored_answer(row, "a") for row in some], kind)


def tasks_of(prompt: Prompt, found: Sequence[Answer], kind: Kind, origin: Origin | None = None) -> Iterator[NewTask]:
    """Every two answers that differ, each answer, or all of them, where there are two at least."""
    distinct = list({bare(answer): answer for answer in found}.values())
    if kind == "score":
        shown_together: Iterable[Sequence[Answer]] = ((answer,) for answer in distinct)
    elif kind == "ranking":
        shown_together = [distinct] if len(distinct) > 1 else []
    else:
        shown_together = combinations(distinct, 2)
    for some in shown_together:
        yield NewTask(prompt, tuple(some), kind, origin=origin or Origin())
