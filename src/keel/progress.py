"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import resource
import sys
import time
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from keel.says import console, say, speaks

LINE_EVERY = 10.0
"""Seconds between two plain lines."""
plain_screen = False
"""Plain lines on a terminal, too: for one of several processes that report at once."""


def peak_rss_gb() -> float:
    """Return the largest resident memory of this process so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


def peak_gpu_gb() -> float | None:
    """Return the most memory that tensors of this process took on its GPUs so far, in GB; None if it used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    taken: int = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return round(taken / 1e9, 3)


def peaks_gb() -> dict[str, float | None]:
    """Return both peaks by the names that they have in a run's summary."""
    return {"peak_rss_gb": peak_rss_gb(), "peak_gpu_gb": peak_gpu_gb()}


class Bar:
    """Progress over `total` items (None if unknown); `advance(k, note)` counts k of them."""

    def __init__(self, title: str, total: int | None, start: int = 0) -> None:
        self.title, self.total, self.done = title, total, start
        self._first, self._started = start, time.perf_counter()
        self._last = self._started
        self._rich: Progress | None = None

    def __enter__(self) -> Bar:
        if console().is_terminal and not plain_screen and speaks():
            self._rich = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console(),
                transient=False,
            )
            self._task = self._rich.add_task(self.title, total=self.total, completed=self.done, note="", rate="")
            self._rich.start()
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        if self._rich is not None:
            extra = {"note": note} if note else {}
            self._rich.update(self._task, completed=self.done, rate=f"{self.rate():.3g}/s", **extra)  # type: ignore[arg-type]
        elif time.perf_counter() - self._last >= LINE_EVERY or (self.total is not None and self.done >= self.total):
            self._last = time.perf_counter()
            if self.total is None:
                say(f"{self.title}: {self.done}  {self.rate():.3g}/s  {note}".rstrip())
                return
            left = f"{(self.total - self.done) / self.rate():.0f} s left  " if self.rate() > 0 else ""
            say(f"{self.title}: {self.done}/{self.total}  {self.rate():.3g}/s  {left}{note}".rstrip())

    def rate(self) -> float:
        """Return the items per second since the start."""
        return (self.done - self._first) / max(1e-9, time.perf_counter() - self._started)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._rich is not None:
            self._rich.stop()
