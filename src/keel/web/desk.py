"""State shared by the routes: turns as a page gets them, verdicts into the queue, the figures of the admin page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from keel.annotation import team
from keel.annotation.accounts import Session
from keel.annotation.counts import CampaignProgress
from keel.annotation.queue import Queue
from keel.annotation.turns import Turn
from keel.files.jsonl import finite_only
from keel.guidelines import Rubric
from keel.records import Answer, Prompt, Verdict
from keel.store import survey
from keel.store.store import Store
from keel.text.shown import text_of, turns_of
from keel.web.bodies import JudgmentBody, RefusedError, checked_verdict
from keel.web.guard import Attempts
from keel.web.render import sound, to_html

FRESH = 5.0
"""Seconds for which the figures of the admin page are kept, at least."""


class Desk:
    """State shared by the routes: store, queue, rubric, and failed attempts to sign in."""

    def __init__(self, store: Store, queue: Queue, rubric: Rubric, secure: bool) -> None:
        self.store, self.queue, self.rubric, self.secure = store, queue, rubric, secure
        self.guidelines = dict(rubric.dimensions)
        self.attempts = Attempts()
        self.figures: tuple[float, dict[str, Any]] = (0.0, {})
        self.counting = threading.Lock()

    # --- turns

    def asked(self, turn: Turn) -> tuple[str, ...]:
        """Return the dimensions that a turn asks about."""
        return (turn.dimension,) if turn.dimension else self.rubric.names

    def serve(self, session: Session) -> dict[str, Any]:
        """Return the rater's next turn as the page gets it."""
        return self.show(session, *self.queue.serve(session.name))

    def show(self, session: Session, turn: Turn | None, progress: CampaignProgress) -> dict[str, Any]:
        """Return a turn as the page gets it, without models' names or other raters' verdicts."""
        return {
            "task": None if turn is None else self._task(turn),
            "progress": {name: getattr(progress, name) for name in progress.__slots__},
            "me": {"name": session.name, "role": session.role},
        }

    def _task(self, turn: Turn) -> dict[str, Any]:
        return {
            "key": turn.key,
            "kind": turn.kind,
            "prompt": shown_prompt(turn.prompt),
            "answers": shown_answers(turn.answers),
            "dimensions": self.dimensions(turn.kind, self.asked(turn)),
            "seconds_left": turn.seconds_left,
            "said": turn.said,
        }

    def dimensions(self, kind: str, names: tuple[str, ...]) -> list[dict[str, str]]:
        """Return the name, question and guideline of each dimension."""
        what = {"pair": "Which answer is better?", "score": "How good is the answer?", "ranking": "Best answer first"}[
            kind
        ]
        return [
            {
                "name": name,
                "question": what,
                "guideline_html": html_of(self.guidelines.get(name, "")),
            }
            for name in names
        ]

    def judge(self, session: Session, key: str, body: JudgmentBody) -> None:
        """Store a rater's verdicts on their turn; `RefusedError` unless each dimension asked about has one."""

        def verdicts(turn: Turn) -> dict[str, Verdict]:
            if set(body.verdicts) != set(self.asked(turn)):
                raise RefusedError(f"give a verdict in each of: {', '.join(self.asked(turn))}")
            return {name: checked_verdict(turn.kind, said, len(turn.answers)) for name, said in body.verdicts.items()}

        options = {"rubric": self.rubric.version, "comment": body.comment.strip(), "seconds": body.seconds}
        self.queue.judge(session.name, key, verdicts, **options)  # type: ignore[arg-type]

    # --- the admin page

    def overview(self) -> dict[str, Any]:
        """Return the admin page's figures, counted anew after `FRESH` seconds or ten times the counting time."""
        with self.counting:
            until, found = self.figures
            if time.monotonic() > until or not found:
                began = time.monotonic()
                found = self._overview()
                took = time.monotonic() - began
                self.figures = (began + max(FRESH, 10 * took), found)
            return found

    def _overview(self) -> dict[str, Any]:
        agreed = survey.agreement(survey.said_in_store(self.store, "person"))
        found = {
            "progress": team.totals(self.store),
            "agreement": [
                {
                    "dimension": one.dimension,
                    "kind": "score" if one.scored else "preference",
                    "shared": one.shared,
                    "agree": one.agree.as_dict() if one.shared else None,
                    "alpha": one.alpha.as_dict() if one.shared else None,
                    "fleiss": one.fleiss,
                    "raters": one.as_dict()["raters"],
                }
                for one in agreed
            ],
            "raters": [worker.as_dict() for worker in team.workers(self.store)],
            "disagreements": [self._disagreement(one) for one in team.disagreements(self.store)],
            "flags": [self._flag(flag) for flag in team.flags(self.store)],
        }
        return finite_only(found)  # type: ignore[no-any-return]

    def _flag(self, flag: dict[str, Any]) -> dict[str, Any]:
        kept = {name: flag[name] for name in ("task", "kind", "rater", "note")}
        return kept | {"prompt_text": _plain(flag["prompt"]), "answers": shown_answers(flag["answers"])}

    def _disagreement(self, one: team.Disagreement) -> dict[str, Any]:
        names = tuple(dict.fromkeys(verdict["dimension"] for verdict in one.verdicts))
        return {
            "task": one.task,
            "kind": one.kind,
            "prompt": shown_prompt(one.prompt),
            "answers": shown_answers(one.answers),
            "verdicts": one.verdicts,
            "adjudicated": False,
            "dimensions": self.dimensions(one.kind, names),
        }

    def decide(self, session: Session, task: int, body: JudgmentBody) -> None:
        """Store an adjudicator's verdicts on a task."""
        kind, answers = self.queue.kind_of(task)
        verdicts = {name: checked_verdict(kind, said, answers) for name, said in body.verdicts.items()}
        if not verdicts or not set(verdicts) <= set(self.rubric.names):
            raise RefusedError(f"give a verdict in some of: {', '.join(self.rubric.names)}")
        options = {"rubric": self.rubric.version, "comment": body.comment.strip()}
        self.queue.adjudicate(session.name, task, verdicts, **options)
        with self.counting:
            self.figures = (0.0, {})


def shown_answers(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """Return answers as the page gets them: safe HTML, the text itself, its length; nothing about who wrote it."""
    texts = [(text_of(one), len(one.text)) for one in answers]
    return [{"html": html_of(text), "text": sound(text), "characters": length} for text, length in texts]


def shown_prompt(prompt: Prompt) -> list[dict[str, str]]:
    """Return a prompt's turns as safe HTML and as text; a plain text is one turn without a speaker."""
    return [{"role": role, "html": html_of(text), "text": sound(text)} for role, text in turns_of(prompt)]


def _plain(prompt: Prompt) -> str:
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return text[:300]


@lru_cache(maxsize=1024)
def html_of(text: str) -> str:
    """Return Markdown as safe HTML; cached, since every rater gets the same texts."""
    return to_html(text)
