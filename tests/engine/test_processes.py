"""Two real processes on one run give what one process gives; and what happens when one of them dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from keel.engine import processes
from keel.records import Bundle, Completion

SCRIPT = Path(__file__).parent / "two_processes.py"


def start(method, settings, file, size=2):
    """Start the processes as torchrun would."""
    file.write_text(settings.to_yaml())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), method, str(file)],
            env=os.environ | shared | {"RANK": str(k), "LOCAL_RANK": str(k), "CUDA_VISIBLE_DEVICES": ""},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in range(size)
    ]


def ended(started, timeout=120):
    """(exit code, standard error) of each process."""
    said = [p.communicate(timeout=timeout)[1] for p in started]
    return [(p.returncode, text) for p, text in zip(started, said, strict=True)]


def together(method, settings, tmp_path, size=2):
    found = ended(start(method, settings, tmp_path / f"{settings.out.name}.yaml", size))
    assert [code for code, _ in found] == [0] * size, found
    return found


@pytest.fixture
def uneven(write_rows, tmp_path):
    """Pairs of very different length, an odd number of them, two of one prompt; and demonstrations of the same."""
    words = ["rain", "snow", "park", "sun", "wind", "bath", "tent", "boat", "hall", "lane", "hug", "nap", "hop"]
    lengths = [(1, 1, 14), (9, 2, 1), (3, 12, 11), (1, 1, 14), (12, 1, 3)]
    rows = []
    for i, counts in enumerate([*lengths, *lengths, (2, 3, 5)]):
        prompt, chosen, rejected = (" ".join(words[(i + k) % len(words)] for k in range(n)) for n in counts)
        rows.append({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"})
    pairs = write_rows(tmp_path / "uneven.jsonl", rows)
    shown = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows]
    return (
        pairs,
        write_rows(tmp_path / "shown.jsonl", shown),
        write_rows(tmp_path / "asked.jsonl", [{"prompt": r["prompt"]} for r in rows]),
    )


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
def test_two_processes_make_the_run_of_one(configure, train, uneven, metrics_of, method, lora, tmp_path):
    pairs, shown, asked = uneven
    changes = {"steps": 4, "holdout": 0.25, "micro_tokens": 40, "save_every": 2, "keep_checkpoints": 9}
    changes |= {"lora": True, "lora_rank": 3} if lora else {}
    if method == "ppo":
        changes |= {"prompts": str(asked), "rollout_size": 5, "batch_size": 3, "truncation": "bootstrap"}
    else:
        changes |= {"data": str(shown if method == "sft" else pairs), "batch_size": 3}
    alone = train(method, out=tmp_path / "alone", **changes)
    settings = configure(method, out=tmp_path / "both", **changes)
    (_, first), (_, second) = together(method, settings, tmp_path)
    assert "reached:" in first
    assert "reached:" not in second
    ours, theirs = metrics_of(tmp_path / "both"), metrics_of(alone.folder)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for own, other in zip(ours, theirs, strict=True):
        assert own == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert (tmp_path / "both" / "samples.jsonl").exists() == (method == "ppo")
    for folder in ("final", *(f"checkpoints/step-{step}/{r}" for step in (2,) for r in roles_in(alone.folder, step))):
        one, two = (weights_in(path / folder) for path in (alone.folder, tmp_path / "both"))
        assert one.keys() == two.keys()
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5)


def roles_in(folder, step):
    return [path.name for path in (folder / "checkpoints" / f"step-{step}").iterdir() if path.is_dir()]


def weights_in(folder):
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def cut_back(folder, step):
    """Make of a finished run one that was killed after a step: its final weights and later checkpoints are gone."""
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "final")
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


@pytest.mark.parametrize("begun", [1, 2])
@pytest.mark.parametrize("method", ["sft", "ppo"])
def test_a_checkpoint_goes_on_with_another_number_of_processes(configure, train, tmp_path, metrics_of, method, begun):
    changes = {"steps": 4, "save_every": 2, "keep_checkpoints": 9}
    whole = train(method, out=tmp_path / "whole", **changes)
    settings = configure(method, out=tmp_path / "cut", **changes)
    if begun == 1:
        train(method, config=settings)
    else:
        together(method, settings, tmp_path)
    cut_back(settings.out, 2)
    again = settings.model_copy(update={"resume": True})
    if begun == 1:
        together(method, again, tmp_path)
    else:
        train(method, config=again)
    assert [row["step"] for row in metrics_of(settings.out)] == [1, 2, 3, 4]
    for name, weight in weights_in(whole.folder / "final").items():
        torch.testing.assert_close(weights_in(settings.out / "final")[name], weight, rtol=0, atol=1e-5)


def test_a_process_that_is_killed_ends_the_other(configure, tmp_path):
    """Which says so, with exit code 1, long before the deadline."""
    settings = configure("sft", out=tmp_path / "run", steps=100_000, epochs=100_000, save_every=5)
    started = start("sft", settings, tmp_path / "run.yaml")
    wait_for(settings.out / "checkpoints" / "step-5", started)
    started[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    (code, said), (killed, _) = ended(started, 60)
    assert (code, killed) == (1, -signal.SIGKILL)
    assert "process 0 of 2 lost the others" in said
    assert "--resume" in said
    assert time.monotonic() - began < 30


def wait_for(path, started, seconds=60):
    until = time.monotonic() + seconds
    while not path.exists():
        assert all(p.poll() is None for p in started), ended(started)
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_signal_to_one_stops_both_with_a_checkpoint(configure, tmp_path):
    settings = configure("sft", out=tmp_path / "run", steps=100_000, epochs=100_000, save_every=1000)
    started = start("sft", settings, tmp_path / "run.yaml")
    wait_for(settings.out / "metrics.jsonl", started)
    started[1].send_signal(signal.SIGTERM)
    found = ended(started, 60)
    assert all(code != 0 for code, _ in found)
    assert len(list((settings.out / "checkpoints").iterdir())) == 1


def test_more_processes_than_rows_are_refused(configure, write_rows, tmp_path):
    data = write_rows(tmp_path / "one.jsonl", [{"prompt": "rain", "completion": " park"}])
    settings = configure("sft", out=tmp_path / "run", data=str(data))
    found = ended(start("sft", settings, tmp_path / "run.yaml"))
    assert [code for code, _ in found] == [2, 2]
    assert "2 processes, but rows to train on: 1" in found[0][1]


def test_an_out_that_exists_is_refused_by_all(configure, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    found = ended(start("sft", configure("sft", out=tmp_path / "run"), tmp_path / "run.yaml"))
    assert [code for code, _ in found] == [2, 2]


def bundles():
    shapes = [(3, [4, 5]), (3, [1]), (20, [2, 2]), (1, [1]), (7, [30]), (2, [2])]
    return [Bundle([p] * p, [Completion([1] * n) for n in cs]) for p, cs in shapes]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_shares(monkeypatch, size):
    """Each bundle is in one share; a prompt's bundles are in one if there are prompts enough; loads are alike."""
    monkeypatch.setattr(processes, "world_size", lambda: size)
    some = bundles()
    shares = processes.shares_of(some)
    assert len(shares) == size
    assert sorted(i for share in shares for i in share) == list(range(len(some)))
    if size <= 5:
        assert any({0, 1} <= set(share) for share in shares)
        assert all(shares)
    loads = [sum(len(some[i].prompt_ids) + sum(map(len, some[i].completions)) for i in share) for share in shares]
    assert max(loads) - min(loads) <= 37
