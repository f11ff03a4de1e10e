"""The queue of tasks that people judge: handed out one turn at a time, each task to as many people as it wants.

A task is one, two or more answers to one prompt. A *turn* is one rater at one task: leased until a time, then judged,
skipped, flagged or expired. `wants` of a task counts its open places. Handing the task out fills one,
letting it go opens it again, both in the transaction that changes the turn. So a task never goes to more people than
its overlap, a killed server loses no turn, and judging twice with one key stores one judgment.

Tasks that somebody has begun come before fresh ones, so that overlap is soon complete. Tasks with a known verdict
(gold) come up among the others for every rater and fill no place in the overlap.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import sqlalchemy as sa

from keel.annotation.counts import CampaignProgress, judged_and_wanted, own_counts
from keel.annotation.leases import give_back, hand_out, pick_task, side_seed, sweep, take
from keel.annotation.tasks import NewTask, key_of, put_in
from keel.annotation.turns import (
    EXPIRED,
    FLAGGED,
    JUDGED,
    LEASED,
    SKIPPED,
    GoneError,
    TaskKind,
    Turn,
    answers_of,
    as_shown,
    change,
    row_of,
    shown_turn,
    turn_of,
)
from keel.annotation.verdicts import compared, in_own_order, share_right, verdicts_json
from keel.records import Answer, Judgment, PromptRow, RaterKind, Verdict
from keel.store.keys import said_key
from keel.store.rows import rows_of, stored_prompt
from keel.store.schema import ADJUDICATOR, shown, tasks, turns
from keel.store.store import Store

_CHUNK = 2_000
"""Tasks that are put in with one transaction."""


class Queue:
    """The tasks of a store."""

    def __init__(self, store: Store, *, lease: float = 900.0, gold_every: int = 10) -> None:
        """`lease`: seconds that a rater has for a task; one task in `gold_every` is gold, while there are any."""
        self.store, self.lease, self.gold_every = store, lease, gold_every
        self.seed = side_seed(store)
        self._team = (0.0, 0, 0)

    # --- putting tasks in -------------------------------------------------------------------------

    def add(self, found: Iterable[NewTask], overlap: int = 1) -> int:
        """Put tasks in and return how many are new. The same answers asked about again are the same task.

        An existing task wants more people if `overlap` is higher than it was. If its verdict is now known, it becomes a
        gold task, which counts as new.
        """
        added = 0
        source = iter(found)
        while some := list(islice(source, _CHUNK)):
            self.store.add_answers((PromptRow(task.prompt, task.origin), task.answers) for task in some)
            with self.store.writing() as connection:
                added += put_in(connection, {key_of(task): task for task in some}, overlap)
        self._team = (0.0, 0, 0)
        return added

    # --- handing out ------------------------------------------------------------------------------

    def next(self, rater: str) -> Turn | None:
        """Return the turn that a rater holds already, else one at the next task; None if there is no task for them."""
        return self.serve(rater)[0]

    def serve(self, rater: str) -> tuple[Turn | None, CampaignProgress]:
        """Return what `next` and `progress` return, in one transaction."""
        now = time.time()
        with self.store.writing() as connection:
            turn = self._next(connection, rater, now)
            return turn, self._progress(connection, rater, now)

    def _next(self, connection: sa.Connection, rater: str, now: float) -> Turn | None:
        sweep(connection, now)
        held = connection.execute(
            sa.select(turns.c.task).where(turns.c.rater == rater, turns.c.state == LEASED).order_by(turns.c.made)
        ).first()
        task = held.task if held else pick_task(connection, rater, self.gold_every)
        if task is None:
            return None
        if held:
            change(connection, task, rater, expires=now + self.lease)
        else:
            hand_out(connection, task, rater, now, now + self.lease, self.seed)
        return turn_of(connection, task, rater, now)

    def kind_of(self, task: int) -> tuple[TaskKind, int]:
        """Return a task's kind and its number of answers; `GoneError` if there is no such task."""
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
        verdicts: Mapping[str, Verdict] | Callable[[Turn], Mapping[str, Verdict]],
        *,
        rubric: str = "",
        comment: str = "",
        seconds: float | None = None,
    ) -> None:
        """Store a rater's verdicts on the answers as they were shown; repeating a call changes nothing.

        `verdicts` may be a function that reads them from the turn, and raises if they do not fit it. Raises `GoneError`
        if the turn is over: judged differently in another window, skipped, or expired and taken by others.
        """
        with self.store.writing() as connection:
            row = row_of(connection, rater, key)
            turn = shown_turn(connection, row, time.time())
            verdicts = verdicts(turn) if callable(verdicts) else verdicts
            if row.state == JUDGED:
                if json.loads(row.said) != verdicts_json(verdicts):
                    raise GoneError("you have already judged this task differently; undo that to change it")
                return
            if row.state in (SKIPPED, FLAGGED):
                raise GoneError("you have skipped this task; undo that first")
            if row.state == EXPIRED and not take(connection, row.task):
                raise GoneError("your time for this task was up and others have taken it; go on with the next one")
            self._store(connection, row, turn.answers, rater, "person", verdicts, rubric, comment, seconds)
        self._noted(row.gold, 1)

    def _noted(self, gold: str, count: int) -> None:
        """Count this server's verdicts at once; those of other servers are counted within seconds."""
        if not gold:
            at, judged, wanted = self._team
            self._team = at, judged + count, wanted

    def _store(
        self,
        connection: sa.Connection,
        row: sa.Row[Any],
        seen: tuple[Answer, ...],
        rater: str,
        kind: RaterKind,
        verdicts: Mapping[str, Verdict],
        rubric: str,
        comment: str,
        seconds: float | None,
    ) -> None:
        """Append the judgments and close the turn, in one transaction."""
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
        said = verdicts_json(verdicts)
        settled = {dimension: compared(in_own_order(one, row.order)) for dimension, one in said.items()}
        change(
            connection,
            row.task,
            rater,
            state=JUDGED,
            done=time.time(),
            said=json.dumps(said),
            settled=json.dumps(settled, sort_keys=True),
            judgments=",".join(key.hex() for key, _ in made),
            right=share_right(json.loads(row.gold) if row.gold else {}, settled),
            seconds=seconds,
            note="",
        )

    def skip(self, rater: str, key: str) -> None:
        """Leave a task to others, for good."""
        self._let_go(rater, key, SKIPPED, "")

    def flag(self, rater: str, key: str, note: str) -> None:
        """Leave a task to others, with a note on what is wrong with it."""
        self._let_go(rater, key, FLAGGED, note)

    def _let_go(self, rater: str, key: str, state: str, note: str) -> None:
        with self.store.writing() as connection:
            row = row_of(connection, rater, key)
            if row.state == JUDGED:
                raise GoneError("you have judged this task already; undo that first")
            if row.state == LEASED:
                give_back(connection, row.task)
            if row.state in (LEASED, EXPIRED):
                change(connection, row.task, rater, state=state, done=time.time(), note=note)

    def undo(self, rater: str) -> Turn:
        """Undo a rater's last turn: retract its judgments and lease the task to them again, with their verdicts.

        The task that they held meanwhile goes back to the queue. `GoneError` if there is nothing to undo, or if others
        have taken the task that was skipped.
        """
        now = time.time()
        with self.store.writing() as connection:
            mine = turns.c.rater == rater, turns.c.state.in_((JUDGED, SKIPPED, FLAGGED))
            latest = sa.select(turns, tasks.c.gold).join(tasks).where(*mine).order_by(turns.c.done.desc()).limit(1)
            last = connection.execute(latest).first()
            if last is None:
                raise GoneError("there is nothing to undo")
            if last.state != JUDGED and not take(connection, last.task):
                raise GoneError("others have taken the task that you left; it cannot be undone")
            held = sa.select(turns.c.task).where(turns.c.rater == rater, turns.c.state == LEASED)
            for (task,) in connection.execute(held).all():
                change(connection, task, rater, state=EXPIRED, said="")
                give_back(connection, task)
            for key in filter(None, last.judgments.split(",")):
                self.store.retract_in(connection, bytes.fromhex(key), "undone")
            again = {"state": LEASED, "expires": now + self.lease, "done": None, "right": None}
            change(connection, last.task, rater, **again, judgments="", settled="")
            turn = turn_of(connection, last.task, rater, now)
        if last.state == JUDGED:
            self._noted(last.gold, -1)
        return turn

    def adjudicate(
        self, name: str, task: int, verdicts: Mapping[str, Verdict], *, rubric: str = "", comment: str = ""
    ) -> None:
        """Store an adjudicator's verdicts, answers in the task's own order; deciding again replaces them."""
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
                # expired from the start: a decision fills no place of the task and is never handed out
                fresh = {"key": secrets.token_hex(16), "state": EXPIRED, "order": order}
                connection.execute(sa.insert(turns).values(task=task, rater=rater, **fresh, **blank))
            else:
                for key in filter(None, found.judgments.split(",")):
                    self.store.retract_in(connection, bytes.fromhex(key), "decided again")
            key = connection.scalar(sa.select(turns.c.key).where(turns.c.task == task, turns.c.rater == rater))
            row = row_of(connection, rater, str(key))
            seen = as_shown(connection, row)
            self._store(connection, row, seen, rater, "adjudicator", verdicts, rubric, comment, None)
            connection.execute(sa.update(tasks).where(tasks.c.id == task).values(adjudicated=True))

    # --- progress ---------------------------------------------------------------------------------

    def progress(self, rater: str) -> CampaignProgress:
        """Return the progress of a rater and of the team; the team's count is up to two seconds old."""
        with self.store.reading() as connection:
            return self._progress(connection, rater, time.time())

    def _progress(self, connection: sa.Connection, rater: str, now: float) -> CampaignProgress:
        if now - self._team[0] > 2.0:
            self._team = (now, *tuple(connection.execute(sa.select(*judged_and_wanted())).one()))
        mine, today, undoable = own_counts(connection, rater, now)
        return CampaignProgress(mine, today, self._team[1], self._team[2], undoable)
