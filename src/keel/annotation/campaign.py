"""Annotation settings (rubric, kind of task), stored so that a restart asks the same questions."""

from __future__ import annotations

import json
from dataclasses import dataclass

import sqlalchemy as sa

from keel.annotation.turns import TaskKind
from keel.config import AnnotateConfig
from keel.errors import InputError
from keel.guidelines import DEFAULT_RUBRIC, Rubric, load_rubric
from keel.says import say
from keel.store.schema import settings, tasks
from keel.store.store import Store

_NAME = "campaign"


@dataclass(frozen=True, slots=True)
class Campaign:
    """The rubric, whether its dimensions are asked one at a time, and the kind of task that is made from answers."""

    rubric: Rubric = DEFAULT_RUBRIC
    one_at_a_time: bool = False
    kind: TaskKind = "pair"

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Return the dimensions that get a task each; an empty one stands for all at once."""
        return self.rubric.names if self.one_at_a_time else ("",)

    def as_json(self) -> str:
        """Return the JSON that the store keeps."""
        kept = {"dimensions": self.rubric.dimensions, "one at a time": self.one_at_a_time, "kind": self.kind}
        return json.dumps(kept)


def campaign_of(config: AnnotateConfig, store: Store) -> Campaign:
    """Return the settings of the options; for options that are not given, those that the store keeps.

    Raises `InputError` if the store has tasks and they would be asked by other dimensions, or no longer all on a page:
    earlier and later verdicts could not be compared.
    """
    former = _kept(store)
    base = former or Campaign()
    wanted = Campaign(
        base.rubric if config.rubric is None else load_rubric(config.rubric),
        config.one_at_a_time or base.one_at_a_time,
        config.kind or base.kind,
    )
    if former is not None and store.read(sa.select(tasks.c.id).limit(1)):
        _require_alike(config, former, wanted)
    return wanted


def _require_alike(config: AnnotateConfig, former: Campaign, wanted: Campaign) -> None:
    asked = ", ".join(former.rubric.names)
    if set(former.rubric.names) != set(wanted.rubric.names):
        raise InputError(
            f"{config.rubric}: the tasks in {config.store} ask about {asked}; leave out --rubric to go on with these "
            "dimensions, or use another store for others"
        )
    if former.one_at_a_time != wanted.one_at_a_time:
        raise InputError(
            f"--one-at-a-time: the tasks in {config.store} ask about all of {asked} on one page; leave out the option, "
            "or use another store"
        )
    if former.rubric.version != wanted.rubric.version:
        say(f"{config.rubric}: the guidelines have changed; each verdict keeps the version it was given under")


def save_campaign(store: Store, campaign: Campaign) -> None:
    """Store the settings for the next start."""
    with store.writing() as connection:
        connection.execute(sa.delete(settings).where(settings.c.name == _NAME))
        connection.execute(sa.insert(settings).values(name=_NAME, value=campaign.as_json()))


def _kept(store: Store) -> Campaign | None:
    found = store.read(sa.select(settings.c.value).where(settings.c.name == _NAME))
    if not found:
        return None
    kept = json.loads(found[0].value)
    rubric = Rubric(tuple((name, guideline) for name, guideline in kept["dimensions"]))
    return Campaign(rubric, kept["one at a time"], kept["kind"])
