"""Tasks, a judge at a stub, and llama.cpp's server."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keel.raters import Task
from keel.raters.judge import Judge, JudgeConfig
from keel.raters.rubric import DEFAULT, Rubric
from keel.records import Answer

from .stub import Stub

ROOT = Path(__file__).parents[2]
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

    def make(stub: Stub, rubric: Rubric = DEFAULT, **changes: Any) -> Judge:
        quick = {"timeout": 5.0, "deadline": 10.0, "first_wait": 0.01, "concurrency": 1}
        return Judge(JudgeConfig(**{"model": "judge-1", "base_url": stub.url, **quick, **changes}), rubric)

    return make


@pytest.fixture(scope="session")
def llama_url(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of llama.cpp's server with a very small model that tells stories."""
    environment = ROOT / ".venv-llama"
    if not (environment / ".installed").exists():
        why = environment / "why-not"
        pytest.skip(
            why.read_text().strip() if why.exists() else "no .venv-llama: `make .venv-llama/.installed` makes it"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = shared / "models" / "stories260K.gguf"
    command = [environment / "bin" / "python", "-m", "llama_cpp.server", "--model", model, "--host", "127.0.0.1"]
    log = tmp_path_factory.mktemp("llama") / "log"
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with log.open("w") as out:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--n_ctx", "2048", "--n_threads", "1"], stdout=out, stderr=out, env=own
        )
    try:
        _wait_for(server, f"http://127.0.0.1:{port}/v1/models", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
    raise AssertionError(f"no server after a minute: {log.read_text()[-2000:]}")
