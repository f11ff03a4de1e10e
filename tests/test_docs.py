"""README and the pages in docs: every command is one, every link leads somewhere, and examples run."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from keel import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def commands() -> list[tuple[str, str]]:
    """(page, line) of every `keel …` that stands in a block of shell."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            found += [(page.name, line.strip()) for line in block.splitlines() if line.strip().startswith("keel ")]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_of_the_documents_is_understood(page, line):
    words = shlex.split(line, comments=True)[1:]
    name = next(" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in cli.COMMANDS)
    kind = getattr(importlib.import_module("keel.config"), cli.COMMANDS[name][0])
    assert isinstance(cli._parse(name, kind, words[len(name.split()) :]), kind)


def test_every_command_has_its_lines_in_the_documents():
    shown = {" ".join(line.split()[1:3]) for _, line in commands()}
    words = {word for two in shown for word in (two, two.split()[0])}
    assert set(cli.COMMANDS) <= words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_lines_that_score_a_text_with_a_reward_folder_agree_with_keel(make_model, make_reward):
    """In plain transformers, as docs/rewards.md has it."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from keel.config import Machine
    from keel.engine.forward import scalars_at_end
    from keel.models import checkpoints
    from keel.records import Bundle, Completion

    folder = make_reward("llama")
    page = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    given = {
        "torch": torch,
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "model": AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        "prompt": "what can teddy do in the rain?",
        "completion": " nap near it",
    }
    exec(code, given)  # the page's own lines
    cpu = Machine(device="cpu", precision="fp32")
    text, model = checkpoints.load_text(str(folder)), checkpoints.load_reward(str(folder), cpu)
    prompt = given["prompt"]
    bundle = Bundle(text.prompt_ids(prompt), [Completion(text.completion_ids(prompt, given["completion"]))])
    with torch.no_grad():
        assert given["score"] == pytest.approx(scalars_at_end(model, [bundle]).item(), abs=1e-5)


def test_the_example_of_objects_from_python_runs(make_model, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    page = (ROOT / "docs/runs.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    folder = make_model("llama", tokenizer="bytes")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = {"model": model, "tokenizer": tokenizer}
    exec(code, found)
    assert found["result"].summary["examples"] == 4
    (row,) = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    assert row["score"] == -min(len(c["text"]) for c in row["candidates"])


DAYS = {  # the tests that a change of CONTRIBUTING touches
    "objectives.py": ["tests/test_objectives.py"],
    "pairs.py": ["tests/formats/test_judgments.py", "-k", "duel and (becomes or says or derived or prompts)"],
    "coin.py": ["tests/test_floors.py", "-k", "coin or one_thing or read_once"],
}


@pytest.mark.parametrize("name", DAYS)
def test_a_day_s_work_is_as_contributing_shows_it(tmp_path, name, prompts_file, base):
    """The diff applies to the tree as it is, and its own tests pass; the rater judges."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (diff,) = (d for d in re.findall(r"```diff\n(.*?)```", page, re.DOTALL) if f"/{name}" in d)
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    done = subprocess.run(["git", "apply", "-"], input=diff, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    own = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *DAYS[name]]
    done = subprocess.run(line, cwd=tmp_path, env=own, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout or "[100%]" in done.stdout
    if name == "coin.py":
        store = f"store:{tmp_path}/s.db"
        flags = [
            "--model",
            base,
            "--prompts",
            prompts_file,
            "--store",
            store,
            "--rater",
            "coin:1",
            "--max-new-tokens",
            4,
        ]
        line = [sys.executable, "-m", "keel.cli", "collect", *map(str, flags), "--n", "2", "--device", "cpu"]
        done = subprocess.run(line, cwd=tmp_path, env=own, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert re.search(r"coin:1: [1-9]\d* new judgments", done.stderr), done.stderr
