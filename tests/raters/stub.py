"""A server on 127.0.0.1 that speaks the OpenAI protocol, as well or as badly as a script says, and counts.

with Stub(lambda call: say(verdict("A"))) as stub:
    …  # stub.url, stub.calls, stub.most_at_once
"""

from __future__ import annotations

import itertools
import json
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal


@dataclass
class Call:
    """One request as the server saw it."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float = field(default_factory=time.monotonic)

    @property
    def user(self) -> str:
        return self.body["messages"][-1]["content"]

    @property
    def format(self) -> str:
        return self.body.get("response_format", {}).get("type", "none")


@dataclass
class Reply:
    """What the server does: a body, whole or (`manner`) late, dripping, broken off, or a connection closed on it."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    manner: Literal["whole", "hang", "drip", "cut", "close"] = "whole"
    delay: float = 0.0


def verdict(letter: str, strength: int = 2, names: tuple[str, ...] = ("overall",)) -> str:
    """A reply as it was asked for."""
    return json.dumps(
        {n: {"rationale": f"because of {letter}", "verdict": letter, "strength": strength} for n in names}
    )


def say(
    text: str | None,
    usage: tuple[int, int] | None = (100, 20),
    finish: str = "stop",
    delay: float = 0.0,
    **message: Any,
) -> Reply:
    """A chat completion that says `text`."""
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge-1",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
        ],
    }
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Reply(body=body, delay=delay)


def fail(status: int, message: str = "no", headers: dict[str, str] | None = None, **error: Any) -> Reply:
    """An error in the form of the protocol."""
    return Reply(status, {"error": {"message": message, "type": "error", **error}}, headers or {})


def good_wins(call: Call) -> str:
    """The letter of the answer that says "good", found by where the two answers stand."""
    return "A" if call.user.index("good") < call.user.index("bad") else "B"


class Stub:
    """The server; it runs inside the `with` block."""

    def __init__(self, script: Callable[[Call], Reply]) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.most_at_once = self.hung_up = 0
        self._open = 0
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self.over = threading.Event()

    def __enter__(self) -> Stub:
        stub = self

        class Handler(_Handler):
            server_stub = stub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def enter(self, call: Call) -> None:
        with self._lock:
            self.calls.append(call)
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)

    def leave(self) -> None:
        with self._lock:
            self._open -= 1

    def number(self) -> int:
        return next(self._numbers)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_stub: Stub

    def do_POST(self) -> None:
        stub = self.server_stub
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        call = Call(stub.number(), self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        stub.enter(call)
        reply = stub.script(call)
        time.sleep(reply.delay)
        stub.leave()
        try:
            self._send(reply)
        except (BrokenPipeError, ConnectionResetError):
            stub.hung_up += 1
            self.close_connection = True

    def _send(self, reply: Reply) -> None:
        if reply.manner == "hang":
            self._hold()
            return
        if reply.manner == "close":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if reply.manner == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif reply.manner == "drip":
            for byte in body:  # each byte well within a read's time-out, the whole far beyond a call's
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.server_stub.over.wait(0.05):
                    return
        else:
            self.wfile.write(body)

    def _hold(self) -> None:
        """Say nothing until the client hangs up or the test is over."""
        self.close_connection = True
        while not self.server_stub.over.wait(0.02):
            if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                self.server_stub.hung_up += 1
                return

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
