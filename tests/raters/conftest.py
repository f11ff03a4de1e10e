"""Tasks, and a judge at a stub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from keel.guidelines import DEFAULT_RUBRIC, Rubric
from keel.raters import Task
from keel.raters.judge import Judge, JudgeConfig
from keel.records import Answer

from .stub import Stub

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return KEY


@pytest.fixture(scope="session")
def make_tasks() -> Callable[[int], list[Task]]:
    """Distinct questions with a good answer first and a bad one second."""
    return lambda n: [Task(f"question {i}?", Answer(f"good reply {i}"), Answer(f"bad reply {i}")) for i in range(n)]


@pytest.fixture(scope="session")
def make_judge() -> Callable[..., Judge]:
    """`make_judge(stub, retries=1)`: a judge that does not wait long."""

    def make(stub: Stub, rubric: Rubric = DEFAULT_RUBRIC, **changes: Any) -> Judge:
        quick = {"timeout": 5.0, "deadline": 10.0, "first_wait": 0.01, "concurrency": 1}
        return Judge(JudgeConfig(**{"model": "judge-1", "base_url": stub.url, **quick, **changes}), rubric)

    return make
