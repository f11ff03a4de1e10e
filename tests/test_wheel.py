"""The package that others install: the wheel has every file that the source has, and works from its own folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(out), str(source)], check=True, capture_output=True, text=True)
    (file,) = out.glob("keel_tune-*.whl")
    return file


def test_the_wheel_holds_every_file_of_the_source(wheel):
    files = {
        str(file.relative_to(ROOT / "src"))
        for file in (ROOT / "src/keel").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("keel/")} == files


def test_the_wheel_s_commands_run_where_no_source_is(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Hi", "chosen": "Hello there.", "rejected": "Go away."}\n' * 3)

    def keel(*words: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, "-m", "keel.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    assert "keel best-of-n" in keel("--help")
    keel("data", "check", "--data", "pairs.jsonl", "--out", "check.json", "--page", "check.html")
    assert "</html>" in (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "site" in subprocess.run(
        [sys.executable, "-c", "import keel; print(keel.__file__)"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True,
    ).stdout  # fmt: skip
