"""Protection of the server: security headers, a limit on the size of requests, a limit on wrong tokens."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST = 64 * 1024
"""Largest request in bytes; a verdict with a long comment has a hundredth of it."""
FAILURES, WINDOW = 10, 300.0
"""Number of wrong tokens from one address within `WINDOW` seconds after which it must wait."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Attempts:
    """Recent wrong tokens, by the address that they came from."""

    def __init__(self) -> None:
        self._failures: dict[str, deque[float]] = defaultdict(deque)
        self._lock = threading.Lock()

    def must_wait(self, address: str) -> bool:
        """Say whether an address has sent too many wrong tokens in the last `WINDOW` seconds."""
        with self._lock:
            found = self._failures[address]
            while found and found[0] < time.monotonic() - WINDOW:
                found.popleft()
            if not found:
                del self._failures[address]
            return len(found) >= FAILURES

    def failed(self, address: str) -> None:
        """Count a wrong token."""
        with self._lock:
            if len(self._failures) > 10_000:  # so many addresses mean an attack: start over
                self._failures.clear()
            self._failures[address].append(time.monotonic())


class Guard:
    """Middleware: adds `HEADERS` to every answer and refuses bodies above `LARGEST`, whatever length is declared."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = dict(HEADERS)
                if not scope["path"].startswith("/static/"):
                    extra["Cache-Control"] = "no-store"
                own = ((name.lower().encode(), value.encode()) for name, value in extra.items())
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        body = await _whole(receive)
        if body is None:
            await JSONResponse({"error": "the request is too large"}, 413)(scope, receive, guarded)
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def again() -> Message:
            return next(messages, None) or await receive()

        await self.app(scope, again, guarded)


async def _whole(receive: Receive) -> bytes | None:
    """Return a request's body; None as soon as it exceeds `LARGEST`."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > LARGEST:
            return None
    return b"".join(parts)
