"""`keel annotate` and `keel raters`: put tasks into the store, let people in, and serve the page."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import uvicorn
from rich.console import Console
from rich.table import Table

from keel.annotation import accounts
from keel.annotation.campaign import Campaign, campaign_of, save_campaign
from keel.annotation.queue import Queue
from keel.annotation.tasks import NewTask, tasks_of, tasks_of_store
from keel.annotation.turns import TaskKind
from keel.config import AnnotateConfig, RatersAddConfig, RatersListConfig, RatersRevokeConfig
from keel.data import checks
from keel.data.source import Answered, Source, columns_of_two, open_source
from keel.errors import InputError
from keel.guidelines import load_rubric
from keel.progress import Bar
from keel.records import Judgment, Preference
from keel.says import say
from keel.store.store import Store
from keel.web.app import make_app

T = TypeVar("T")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def annotate(config: AnnotateConfig) -> None:
    """Add tasks, then serve until interrupted. Nothing is written before files and address are known to be good."""
    if config.rubric is not None:
        load_rubric(config.rubric)
    if config.columns is not None and config.tasks is None and config.gold is None:
        raise InputError("--columns names the columns of a file; give --tasks or --gold, or leave it out")
    found = None if config.tasks is None else answers_of_file(config)
    gold = None if config.gold is None else verdicts_of_file(config)
    with listening(config) as door, Store(config.store, create=True) as store:
        campaign = campaign_of(config, store)
        queue = Queue(store, lease=60 * config.lease, gold_every=config.gold_every)
        _put_in(config, store, queue, campaign, found, gold)
        save_campaign(store, campaign)
        _tell(config, store, queue, door)
        app = make_app(
            store,
            queue,
            campaign.rubric,
            hosts=["127.0.0.1", "localhost", "[::1]"] if config.host in LOOPBACK else None,
            secure=config.https,
        )
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[door])


@contextmanager
def listening(config: AnnotateConfig) -> Iterator[socket.socket]:
    """Listen on the address before anything is written."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        door = socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        taken = f"port {config.port}: something listens there; give --port another number, or 0 for any that is free"
        elsewhere = f"--host {config.host}: {error.strerror}; give an address of this machine, 127.0.0.1 or 0.0.0.0"
        refused = f"port {config.port}: not allowed to listen there; give --port a number from 1024 on"
        why = {errno.EADDRINUSE: taken, errno.EACCES: refused}.get(error.errno or 0, elsewhere)
        raise InputError(why) from error
    with door:
        # asyncio sets this for sockets that it makes itself. Without it each answer to a POST waits 40 ms for an ACK.
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield door


def _tell(config: AnnotateConfig, store: Store, queue: Queue, door: socket.socket) -> None:
    """Print how far annotation is, whether nobody may sign in yet, and the address."""
    progress = queue.progress("")
    if not progress.total:
        raise InputError(f"{config.store}: nothing to judge; {_remedy(config)}")
    say(f"{config.store}: {progress.team:,} of {checks.counted(progress.total, 'judgment')} done")
    if not any(account.revoked is None for account in accounts.everyone(store)):
        say(f"nobody may sign in yet: keel raters add --store {config.store} --name NAME")
    host = f"[{config.host}]" if ":" in config.host else config.host
    say(f"http://{host}:{door.getsockname()[1]}  (Ctrl-C ends it; nothing is lost)")
    if config.host not in LOOPBACK and not config.https:
        say("  other machines reach it without HTTPS: anyone on the network path can read tokens and answers")


def _remedy(config: AnnotateConfig) -> str:
    if config.tasks is None:
        return "give --tasks FILE, or collect answers into it first"
    return f"no prompt of {config.tasks} has two answers that differ; give another --tasks"


# --- tasks ----------------------------------------------------------------------------------------


def answers_of_file(config: AnnotateConfig) -> list[Answered]:
    """Return prompts with answers to judge; bad rows are counted, and refused past --max-bad-share."""
    assert config.tasks is not None
    columns, _, _ = columns_of_two(config.tasks, config.gold, config.columns)
    with open_source(config.tasks, limit=config.limit, columns=columns) as source:
        found = list(source.answers())
    return _checked(config, source, found)


def verdicts_of_file(config: AnnotateConfig) -> list[Judgment]:
    """Return preferences to use as gold: pairs whose verdict is known."""
    assert config.gold is not None
    if config.kind in ("score", "ranking"):
        raise InputError(f"--gold holds pairs, which have no place among tasks of --kind {config.kind}; leave it out")
    columns, noted = config.columns, ""
    if config.tasks is not None:
        _, columns, noted = columns_of_two(config.tasks, config.gold, columns)
    with open_source(config.gold, limit=config.limit, columns=columns) as source:
        found = [judgment for group in source.judgments() for judgment in group]
    if noted:
        source.counts.note(noted, 1)
    for judgment in found:
        if not isinstance(judgment.verdict, Preference):
            source.counts.note("no preference between two answers: not used as gold", judgment.origin.row)
    return _checked(config, source, [j for j in found if isinstance(j.verdict, Preference)])


def _checked(config: AnnotateConfig, source: Source, found: list[T]) -> list[T]:
    say(checks.summarise(source.counts, source.name, source.format))
    checks.refuse_bad(source.counts, config.max_bad_share, source.name)
    return found


def _put_in(
    config: AnnotateConfig,
    store: Store,
    queue: Queue,
    campaign: Campaign,
    found: list[Answered] | None,
    gold: list[Judgment] | None,
) -> None:
    """Add tasks from the file or the store, and gold tasks; those already there are not added again."""
    lone: list[int] = []
    source = tasks_of_store(store, campaign.kind) if found is None else _tasks(found, campaign.kind, lone)
    with Bar("tasks", None) as bar:
        added = queue.add(_each(source, campaign.dimensions, bar), config.overlap)
    if lone:
        rows = checks.which(len(lone), lone[:5])
        say(f"  {checks.counted(len(lone), 'prompt')} without two answers that differ, nothing to compare: {rows}")
    say(checks.counted(added, "new task"))
    if gold is not None:
        say(checks.counted(queue.add(known(gold, campaign)), "new gold task"))


def _tasks(found: list[Answered], kind: TaskKind, lone: list[int]) -> Iterator[NewTask]:
    """Yield the tasks of each prompt; rows that give none are added to `lone`."""
    for prompt, answers, origin in found:
        made = list(tasks_of(prompt, answers, kind, origin))
        if not made:
            lone.append(origin.row)
        yield from made


def _each(found: Iterable[NewTask], dimensions: Iterable[str], bar: Bar) -> Iterator[NewTask]:
    """Yield a task for each dimension that is asked by itself."""
    for task in found:
        bar.advance(1)
        yield from task.for_each(dimensions)


def known(gold: Iterable[Judgment], campaign: Campaign) -> Iterator[NewTask]:
    """Yield tasks for pairs whose verdict is known; an overall verdict holds in every dimension of the rubric."""
    for judgment in gold:
        assert isinstance(judgment.verdict, Preference)
        asked = campaign.rubric.names if judgment.dimension == "overall" else (judgment.dimension,)
        known_as = dict.fromkeys(asked, judgment.verdict.outcome)
        task = NewTask(judgment.prompt, judgment.answers, "pair", gold=known_as, origin=judgment.origin)
        yield from task.for_each(campaign.dimensions)


# --- people ---------------------------------------------------------------------------------------


def add_rater(config: RatersAddConfig) -> None:
    """Print a link with a new token behind `#`: browsers send that part to nobody."""
    with Store(config.store, create=True) as store:
        token = accounts.add(store, config.name, config.role)
    print(f"{config.name} ({config.role}): give this link to nobody else; the token is not stored\n")
    print(f"  {config.address.rstrip('/')}/#token={token}\n")


def list_raters(config: RatersListConfig) -> None:
    """Print a table of accounts."""
    with Store(config.store) as store:
        found = accounts.everyone(store)
    table = Table("name", "role", "since", "token", box=None, pad_edge=False)
    for one in found:
        since = time.strftime("%Y-%m-%d", time.gmtime(one.made))
        table.add_row(one.name, one.role, since, "revoked" if one.revoked else "valid")
    Console(highlight=False, soft_wrap=True).print(table if found else "nobody: keel raters add --name NAME")


def revoke_rater(config: RatersRevokeConfig) -> None:
    """Close an account."""
    with Store(config.store) as store:
        accounts.revoke(store, config.name)
    say(f"{config.name}: the token no longer works; judgments stay")
