"""Connection to an OpenAI-compatible server, and the meaning of its refusals; shared by judge and sampler."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from keel.errors import InputError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

AGAIN = (408, 409, 425, 429)
"""Statuses below 500 of requests that fail only for a while."""


@contextmanager
def in_thread(client: AsyncOpenAI, name: str) -> Iterator[asyncio.AbstractEventLoop]:
    """Yield an event loop that runs in a thread of that name, and close the client in the end.

    In a thread of its own, time-outs are right however long the caller pauses.
    """
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name=name, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(_leave(client), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _leave(client: AsyncOpenAI) -> None:
    """Leave no task and no connection behind."""
    with suppress(TimeoutError):
        async with asyncio.timeout(10):
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.close()


def server_said(error: Any, key: str) -> str:
    """Return the words of a refusal, `429: rate limit reached`, without the key, which some servers repeat."""
    body = error.body if isinstance(error.body, Mapping) else {}
    words = " ".join(str(body.get("message") or error.message).split())
    return f"{error.status_code}: {words.replace(key, '…') if key else words}"[:300]


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that the server asks to wait, as a number or a date; 0 if it does not say."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def public_address(url: str) -> str:
    """Return a server's address as it may be kept and shown: no user, password or query, ending in a path.

    Raises `InputError` if `url` is not an address.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port out of range, half an IPv6 address
        sound = False
    if not sound:
        raise InputError(f"{url}: not an address; give one such as http://localhost:8000/v1")
    path = parts.path.rstrip("/") or "/v1"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its class name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
