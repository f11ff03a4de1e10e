"""A browser, a server of the annotation page over a store of its own, and a page that is watched for mischief."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from keel.data import people
from keel.data.store import Store
from keel.data.tasks import NewTask, Queue
from keel.raters.rubric import DEFAULT, Rubric
from keel.records import Judgment

from . import stub

CHROMIUM = Path("/usr/bin/chromium")
AXE = Path(__file__).parents[2] / ".venv-axe/node_modules/axe-core/axe.min.js"
PEOPLE = {"ana": "rater", "ben": "rater", "eva": "admin"}
GUIDELINES = "# How to judge\n\nRead both answers to the end.\n\n- **Do not** reward length.\n- Look up what you doubt."


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
    """`serve(tasks, rubric=…, lease=…, overlap=…, guidelines=…, accounts=…)` starts a server."""
    with ExitStack() as stack:

        def start(
            tasks: list[NewTask],
            *,
            rubric: Rubric = DEFAULT,
            lease: float = 900.0,
            overlap: int = 1,
            guidelines: str = GUIDELINES,
            accounts: dict[str, str] = PEOPLE,
        ) -> Server:
            store = stack.enter_context(Store(f"store:{tmp_path}/annotate.db", create=True))
            queue = Queue(store, lease=lease)
            queue.add(tasks, overlap=overlap)
            tokens = {name: people.add(store, name, role) for name, role in accounts.items()}
            url = stack.enter_context(stub.serving(stub.build(store, queue, rubric, guidelines)))
            return Server(url, tokens, store, queue)

        yield start


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
        page.set_default_timeout(10_000)
        watch(page, server.url, watched := Watched(failures=failures))
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
