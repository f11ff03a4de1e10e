"""A real server in a process of its own, over a store in each database, and clients that sign in to it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import httpx

from keel.annotation import accounts
from keel.annotation.queue import Queue
from keel.annotation.tasks import NewTask
from keel.records import Answer
from keel.store.store import Store

PATIENCE = 30
"""Seconds in which a browser on a busy machine shows what is waited for."""


class Server:
    """`keel annotate` over a store; `restart` is `kill -9` and a new process on the same port."""

    def __init__(self, source: str, **options: Any) -> None:
        self.source, self.options = source, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        flags = {"store": self.source, "port": self.port} | self.options
        words = [str(part) for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
        command = [sys.executable, "-m", "keel.cli", "annotate", *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for _ in range(300):
            try:
                httpx.get(self.url, timeout=5)
                return
            except httpx.TransportError:
                if self.process.poll() is not None:
                    assert self.process.stderr is not None
                    raise AssertionError(self.process.stderr.read()) from None
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()


class Client(httpx.Client):
    """Somebody who has signed in."""

    def __init__(self, url: str, token: str, **options: Any) -> None:
        super().__init__(base_url=url, timeout=30, **options)
        self.signed = self.post("/api/sign-in", json={"token": token})
        if self.signed.status_code == 200:
            found = re.search(r'name="csrf" content="([^"]+)"', self.get("/").text)
            assert found is not None
            self.headers["X-Keel-CSRF"] = found[1]

    def task(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/api/task").json()
        return found


def pairs(count: int) -> list[NewTask]:
    return [
        NewTask(f"prompt {i}", (Answer(f"left {i}", model="secret-one"), Answer(f"right {i}", model="secret-two")))
        for i in range(count)
    ]


def fill(
    source: str, count: int, raters: tuple[str, ...] = ("ana", "ben"), overlap: int = 1
) -> tuple[str, dict[str, str]]:
    with Store(source, create=True) as store:
        Queue(store).add(pairs(count), overlap=overlap)
        tokens = {name: accounts.add(store, name) for name in raters}
        tokens["zoe"] = accounts.add(store, "zoe", "admin")
    return source, tokens
