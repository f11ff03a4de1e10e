"""Tiny models of the most used families through `keel sft`, `generate`, `reward`, `dpo` and `ppo`.

By default all commands run in fp32, and two of them in bf16; `KEEL_ZOO=all` runs all of them in both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .commands import FAMILIES, JOBS, JOBS_IN_CI, NEW, NOISE, set_up
from .families import VARIANTS
from .sweep import COMMANDS, Results

pytestmark = pytest.mark.zoo
ASKED = JOBS if os.environ.get("KEEL_ZOO") == "all" else JOBS_IN_CI


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Results:
    """The jobs that this session asks for, at work."""
    asked = [item.callspec.params.get("job") for item in request.session.items if hasattr(item, "callspec")]
    return Results([job for job in asked if job], COMMANDS)


@pytest.mark.parametrize("job", ASKED)
def test_a_family_goes_through_the_command_line(results: Results, job: str):
    faults = results.of(job)["faults"]
    assert not faults, "\n".join(f"keel {f['check']}: {f['line']}" for f in faults)


def test_thirty_families_go_through_it():
    assert len(set(FAMILIES)) == len(FAMILIES) >= 30
    assert {variant.name for variant in VARIANTS} >= set(FAMILIES)


@pytest.mark.parametrize("name", ["mamba", "apertus"])
def test_what_transformers_notes_does_not_bury_our_lines(tmp_path: Path, name: str):
    """It tells of kernels that are not installed, and of settings that it finds odd."""
    desk = set_up(name, "fp32", tmp_path)
    flags = ["--model", desk.model, "--prompts", desk.prompts(), "--out", tmp_path / "answers.jsonl"]
    command = [sys.executable, "-m", "keel.cli", "generate", *flags, "--max-new-tokens", NEW, "--device", "cpu"]
    environment = {key: value for key, value in os.environ.items() if key != "TRANSFORMERS_VERBOSITY"}
    ended = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=True)
    lines = ended.stderr.strip().splitlines()
    assert [line for line in lines if any(word in line for word in NOISE)] == []
    assert any("computing in fp32" in line for line in lines)
