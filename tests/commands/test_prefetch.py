"""A generator in a process of its own: order, errors, deaths, and no process left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from keel.commands.prefetch import WAITING, ahead
from keel.errors import InputError, RunFailed


def numbers(count, error=None, kill=False, log=None):
    for i in range(count):
        if log is not None:
            with open(log, "a") as file:
                file.write(f"{i}\n")
        yield i
    if error is not None:
        raise error
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)


def test_everything_comes_in_order():
    assert list(ahead(numbers, 50)) == list(range(50))
    assert list(ahead(numbers, 0)) == []


def test_errors_come_through_as_they_were_raised():
    taken = ahead(numbers, 2, InputError("file row 3: mend it"))
    assert [next(taken), next(taken)] == [0, 1]
    with pytest.raises(InputError, match="file row 3: mend it"):
        next(taken)


def test_a_killed_process_is_told():
    with pytest.raises(RunFailed, match="was killed"):
        list(ahead(numbers, 2, None, True))


def test_it_does_not_run_far_ahead_and_ends_when_closed(tmp_path):
    log = tmp_path / "log"
    taken = ahead(numbers, 10_000, None, False, str(log))
    next(taken)
    time.sleep(1.0)
    made = len(log.read_text().splitlines())
    assert made <= WAITING + 4
    taken.close()
    assert not multiprocessing.active_children()
    assert len(log.read_text().splitlines()) <= made + 2
