"""A browser, a server of the annotation page over a store of its own, and a page that is watched for mischief."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from tests.web.served import PATIENCE, fill
from tests.web.served import Server as Process

from keel.annotation import accounts
from keel.annotation.queue import Queue
from keel.annotation.tasks import NewTask
from keel.guidelines import DEFAULT_RUBRIC, Rubric
from keel.records import Judgment
from keel.store.store import Store
from keel.web.app import make_app

CHROMIUM = Path("/usr/bin/chromium")
AXE = Path(__file__).parents[2] / ".venv-axe/node_modules/axe-core/axe.min.js"
PEOPLE = {"ana": "rater", "ben": "rater", "eva": "admin"}


@dataclass
class Server:
    """A running server: its address, a token for each person, and the queue behind it."""

    url: str
    tokens: dict[str, str]
    store: Store
    queue: Queue

    def said(self, rater: str = "ana") -> list[Judgment]:
        """The judgments of a rater that stand."""
        return [one for group in self.store.groups() for _, one in group if one.rater == rater]


@dataclass
class Watched:
    """What a page must not do, and whether failed requests are part of the test."""

    trouble: list[str] = field(default_factory=list)
    failures: bool = False


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`serve(tasks, rubric=…, lease=…, overlap=…, guidelines=…, team=…)` starts a server."""
    with ExitStack() as stack:

        def start(
            tasks: list[NewTask],
            *,
            rubric: Rubric = DEFAULT_RUBRIC,
            lease: float = 900.0,
            overlap: int = 1,
            team: dict[str, str] = PEOPLE,
        ) -> Server:
            store = stack.enter_context(Store(f"store:{tmp_path}/annotate.db", create=True))
            queue = Queue(store, lease=lease)
            queue.add(tasks, overlap=overlap)
            tokens = {name: accounts.add(store, name, role) for name, role in team.items()}
            url = stack.enter_context(serving(make_app(store, queue, rubric)))
            return Server(url, tokens, store, queue)

        yield start


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The app on a free port of this machine, in a thread: its address."""
    place = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    end = time.monotonic() + PATIENCE
    while not server.started and thread.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    assert server.started, "the server did not start"
    yield f"http://127.0.0.1:{place.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    place.close()


@pytest.fixture
def run_server() -> Iterator[Callable[..., Process]]:
    """`run_server(source, overlap=2)`: `keel annotate` in a process of its own, gone at the end."""
    running: list[Process] = []

    def start(source: str, **options: Any) -> Process:
        running.append(Process(source, **options))
        return running[-1]

    yield start
    for server in running:
        server.kill()


@pytest.fixture
def filled(tmp_path: Path) -> tuple[str, dict[str, str]]:
    """A store with six tasks, and the tokens of ana, ben (raters) and zoe (admin)."""
    return fill(f"store:{tmp_path}/votes.db", 6)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    if not CHROMIUM.exists():
        pytest.skip("there is no /usr/bin/chromium (Debian package chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip package playwright)")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """`visit(server, "ana", width=…, height=…, scheme=…)`: a page on which she has signed in; None: nobody has.

    When the test is over, no page may have logged an error, opened a dialog, asked another origin for anything, or run
    what a text smuggled in.
    """
    opened: list[tuple[Any, Any, Watched]] = []

    def go(
        server: Server,
        who: str | None = "ana",
        *,
        at: str = "/",
        width: int = 1280,
        height: int = 800,
        scheme: str = "light",
        failures: bool = False,
        script: str = "",
    ) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=width < 500, locale="en-GB"
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        watch(page, server.url, watched := Watched(failures=failures))
        if failures:  # routes that are added once a page stands can miss its next request
            page.route("**/api/**", lambda route: route.continue_())
        opened.append((context, page, watched))
        if script:
            page.add_init_script(script)
        if who is None:
            page.goto(server.url + at)
            return page
        page.goto(f"{server.url}/#token={server.tokens[who]}")
        page.wait_for_selector("#task:not([hidden]), #nothing:not([hidden])")
        if at != "/":
            page.goto(server.url + at)
        return page

    yield go
    for context, page, watched in opened:
        if page.evaluate("window.__hacked") is not None:
            watched.trouble.append("what a text smuggled in has run")
        context.close()
        assert watched.trouble == []


def watch(page: Any, origin: str, watched: Watched) -> None:
    def console(message: Any) -> None:
        failed = "Failed to load resource" in message.text
        if message.type in ("error", "warning") and not (failed and watched.failures):
            watched.trouble.append(f"console: {message.text}")

    def dialog(opened: Any) -> None:
        watched.trouble.append(f"a dialog: {opened.message}")
        opened.dismiss()

    def request(asked: Any) -> None:
        if not asked.url.startswith((origin + "/", "data:")):
            watched.trouble.append(f"a request to {asked.url}")

    page.on("console", console)
    page.on("dialog", dialog)
    page.on("request", request)
    page.on("pageerror", lambda error: watched.trouble.append(f"an error: {error}"))
    page.on("popup", lambda other: watched.trouble.append(f"a window: {other.url}"))


@pytest.fixture
def shot(tmp_path: Path) -> Callable[[Any, str], None]:
    """`shot(page, "pair-phone")` keeps a picture in the folder that KEEL_SCREENSHOTS names, else in a temporary one."""
    folder = Path(os.environ.get("KEEL_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png", animations="disabled")


@pytest.fixture(scope="session")
def violations() -> Callable[[Any], list[str]]:
    """`violations(page)`: what axe-core finds of serious or critical impact, one line each."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed; `make test` fetches it where npm is there")
    source = AXE.read_text(encoding="utf-8")

    def check(page: Any) -> list[str]:
        page.evaluate(source + "\n;0")
        found = page.evaluate("axe.run()")
        assert len(found["passes"]) > 5, "axe has looked at nothing"
        grave = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        return [f"{one['id']}: {node['html'][:160]}: {node['any'][:1]}" for one in grave for node in one["nodes"]]

    return check
