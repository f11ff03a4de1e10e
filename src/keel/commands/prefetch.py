"""A generator that runs in a process of its own, ahead of its consumer."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator
from multiprocessing import get_context
from multiprocessing.queues import Queue
from queue import Empty
from typing import Any, TypeVar

from keel.errors import RunFailed

T = TypeVar("T")
WAITING = 4
"""Things that may wait to be taken: memory stays flat however slow the consumer is."""


def ahead(function: Callable[..., Iterator[T]], *arguments: Any) -> Generator[T, None, None]:
    """Yield what `function(*arguments)` yields. All of it must pickle; errors come through as they were raised.

    Closing the iterator ends the process.
    """
    context = get_context("spawn")
    queue: Queue[tuple[str, Any]] = context.Queue(WAITING)
    process = context.Process(target=_run, args=(queue, function, arguments), daemon=True)
    process.start()
    try:
        while True:
            kind, thing = _next(queue, process)
            if kind == "end":
                return
            if kind == "error":
                raise thing
            yield thing
    finally:
        process.terminate()
        process.join()


def _next(queue: Queue[tuple[str, Any]], process: Any) -> tuple[str, Any]:
    """Return the next thing; raise `RunFailed` if the process died without an error."""
    while True:
        try:
            return queue.get(timeout=1.0)
        except Empty:
            if not process.is_alive():
                raise RunFailed("a process that reads was killed; is there enough memory? Call again") from None


RARELY = 200_000
"""Objects made between two garbage collections in the reading process: it makes millions, and hardly any cycle."""


def _run(queue: Queue[tuple[str, Any]], function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
    gc.set_threshold(RARELY)
    try:
        for thing in function(*arguments):
            queue.put(("thing", thing))
        queue.put(("end", None))
    except BaseException as error:  # whatever it is, the caller gets it
        queue.put(("error", error))
