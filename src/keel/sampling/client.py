"""What judge and sampler share of an OpenAI-compatible server: the connection, and what its refusals mean."""

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
"""Statuses below 500 of what fails for a while only."""


@contextmanager
def in_thread(client: AsyncOpenAI, name: str) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of that name: time-outs run right however long the caller pauses. Closes the client."""
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
    """What a refusal says, `429: rate limit reached`, without the key, which some servers repeat."""
    body = error.body if isinstance(error.body, Mapping) else {}
    words = " ".join(str(body.get("message") or error.message).split())
    return f"{error.status_code}: {words.replace(key, '…') if key else words}"[:300]


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait, as a number or a date; 0 where it does not say."""
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
    """A server's address as it may be kept and shown: without user, password and query, ending in a path.

    Raises `InputError` for what is none.
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
    """What an exception says first, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
