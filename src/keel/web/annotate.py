"""`keel annotate` and `keel raters`: tasks are put into the store, people are let in, and the page is served."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import uvicorn
from rich.console import Console
from rich.table import Table

from keel.config import AnnotateConfig, RatersAddConfig, RatersListConfig, RatersRevokeConfig
from keel.data import formats, people
from keel.data.store import Store
from keel.data.tasks import NewTask, Queue, tasks_of, tasks_of_store
from keel.engine.progress import Bar, say
from keel.errors import InputError
from keel.raters.rubric import DEFAULT, Rubric, load_rubric
from keel.records import Preference
from keel.web.app import make_app


def annotate(config: AnnotateConfig) -> None:
    """Put tasks in, then serve until interrupted."""
    rubric = DEFAULT if config.rubric is None else load_rubric(config.rubric)
    with Store(config.store, create=True) as store:
        queue = Queue(store, lease=60 * config.lease, gold_every=config.gold_every)
        put_in(config, store, queue, rubric)
        progress = queue.progress("")
        if not progress.total:
            raise InputError(f"{config.store}: nothing to judge; give --tasks FILE, or collect answers into it first")
        say(f"{config.store}: {progress.team:,} of {progress.total:,} judgments are there")
        if not any(account.revoked is None for account in people.everyone(store)):
            say(f"nobody may sign in yet: keel raters add --store {config.store} --name NAME")
        loopback = config.host in ("127.0.0.1", "localhost", "::1")
        app = make_app(
            store,
            queue,
            rubric,
            hosts=["127.0.0.1", "localhost", "[::1]"] if loopback else None,
            secure=config.https,
        )
        say(f"http://{config.host}:{config.port}  (Ctrl-C ends it; nothing is lost)")
        uvicorn.run(app, host=config.host, port=config.port, log_level="warning", server_header=False)


def put_in(config: AnnotateConfig, store: Store, queue: Queue, rubric: Rubric) -> None:
    """Tasks from the file or the store, and those with a known verdict."""
    dimensions = rubric.names if config.one_at_a_time else ("",)
    found = tasks_of_store(store, config.kind) if config.tasks is None else tasks_of_file(config)
    with Bar("tasks", None) as bar:
        added = queue.add(_each(found, dimensions, bar), config.overlap)
    say(f"{added:,} tasks more")
    if config.gold is not None:
        say(f"{queue.add(known(config, dimensions, rubric)):,} gold tasks more")


def _each(found: Iterable[NewTask], dimensions: Iterable[str], bar: Bar) -> Iterator[NewTask]:
    """A task for each dimension that is asked by itself."""
    for task in found:
        bar.advance(1)
        yield from task.for_each(dimensions)


def tasks_of_file(config: AnnotateConfig) -> Iterator[NewTask]:
    """Answers to judge, of each prompt in a file; what the file says of them is left aside."""
    assert config.tasks is not None
    groups, counts, _ = formats.open_judgments(config.tasks, limit=config.limit)
    for group in groups:
        answers = list({answer.text: answer for judgment in group for answer in judgment.answers}.values())
        yield from tasks_of(group[0].prompt, answers, config.kind, group[0].origin)
    say(f"{config.tasks}: {counts.read:,} rows read, {counts.used:,} used, {counts.dropped_total:,} dropped")


def known(config: AnnotateConfig, dimensions: Iterable[str], rubric: Rubric) -> Iterator[NewTask]:
    """Pairs whose verdict is known, in every dimension that is not told apart."""
    assert config.gold is not None
    groups, _, _ = formats.open_judgments(config.gold, limit=config.limit)
    for judgment in (j for group in groups for j in group):
        if isinstance(judgment.verdict, Preference):
            asked = rubric.names if judgment.dimension == "overall" else (judgment.dimension,)
            gold = dict.fromkeys(asked, judgment.verdict.outcome)
            task = NewTask(judgment.prompt, judgment.answers, "pair", gold=gold, origin=judgment.origin)
            yield from task.for_each(dimensions)


# --- people ---------------------------------------------------------------------------------------


def add_rater(config: RatersAddConfig) -> None:
    """Print a token, and a link that brings it along without sending it to anybody."""
    with Store(config.store, create=True) as store:
        token = people.add(store, config.name, config.role)
    print(f"{config.name} ({config.role}): give this link to nobody else; the token is kept nowhere\n")
    print(f"  {config.address.rstrip('/')}/#token={token}\n")


def list_raters(config: RatersListConfig) -> None:
    """A table of accounts."""
    with Store(config.store) as store:
        found = people.everyone(store)
    table = Table("name", "role", "since", "token", box=None, pad_edge=False)
    for one in found:
        since = time.strftime("%Y-%m-%d", time.gmtime(one.made))
        table.add_row(one.name, one.role, since, "revoked" if one.revoked else "valid")
    Console(highlight=False, soft_wrap=True).print(table if found else "nobody: keel raters add --name NAME")


def revoke_rater(config: RatersRevokeConfig) -> None:
    """Close an account."""
    with Store(config.store) as store:
        people.revoke(store, config.name)
    say(f"{config.name}: the token opens nothing any more; judgments stay")
