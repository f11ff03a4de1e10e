"""Runs that are killed, run out of disk, are stopped or moved end as if nothing had happened. Real processes.

The oracle is the unkilled run's folder, compared file by file with libraries other than Keel.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

METHODS = ("sft", "reward", "dpo", "ppo")
CLOCK = {"seconds", "train_seconds", "examples_per_second", "peak_rss_gb"}
SMALL = {"steps": 5, "save_every": 2, "eval_every": 2, "weight_decay": 0.1, "holdout": 0.25}


class Warm:
    """A process that has imported everything, and runs commands in children."""

    def __init__(self, log: Path) -> None:
        script = Path(__file__).with_name("killing.py")
        self.process = subprocess.Popen(
            [sys.executable, script, log], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, arguments, folder, **how):
        job = {"arguments": [str(a) for a in arguments], "folder": str(folder), **how}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    driver = Warm(tmp_path_factory.mktemp("warm") / "log")
    yield driver
    driver.process.stdin.close()
    driver.process.wait(timeout=30)


@pytest.fixture
def small(configure):
    """`small("ppo", lora=True)`: a config of five steps with evaluations and a checkpoint every second step."""

    def make(method, lora=False, **changes):
        options = dict(SMALL)
        options |= {"target_kl": 0.05, "kl_horizon": 40} if method == "ppo" else {}
        options |= {"lora": True, "lora_rank": 4} if lora else {}
        return configure(method, **{**options, **changes})

    return make


def start(config):
    """Arguments of the command that begins the run."""
    file = config.out.with_suffix(".yaml")
    file.write_text(config.to_yaml())
    return ["--config", str(file)]


def go_on(config):
    """Arguments that go on with it: all options if none are kept yet, else its folder alone."""
    begun = (config.out / "config.yaml").exists()
    return ["--resume", "--out", str(config.out)] if begun else [*start(config), "--resume"]


# --- the oracle


def content(folder):
    """All that a run leaves, by file: bytes, but parsed if a clock or the folder's own name stands in it."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.name == "state.pt":
            found[name] = {k: v for k, v in torch.load(path, weights_only=True).items() if k != "loop_seconds"}
        elif name == "summary.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in CLOCK}
        elif name == "config.yaml":
            found[name] = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k not in ("out", "resume")}
        else:
            found[name] = path.read_bytes()
    return found


def same(one, other):
    """Equality of nested records with tensors in them, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def assert_same_run(folder, whole):
    found = content(folder)
    assert sorted(found) == sorted(whole)
    assert [name for name in found if not same(found[name], whole[name])] == []


def assert_whole_or_absent(folder, whole):
    """After a kill, each file under its own name is as in the whole run, and a checkpoint has all of its files."""
    found = content_of_named(folder)
    for name, value in found.items():
        if name in whole:
            assert same(value, whole[name]), name
    for step in {name.split("/")[1] for name in found if name.startswith("checkpoints/")}:
        assert f"checkpoints/{step}/state.pt" in found


def content_of_named(folder):
    """What stands under its own name, without lines that are still growing."""
    if not folder.exists():
        return {}
    copy = folder.with_name(folder.name + "-seen")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.partial", "*.removed", "*.jsonl"))
    found = content(copy)
    shutil.rmtree(copy)
    return found


def test_the_oracle_sees_a_difference(warm, small):
    """Another seed is another run; an optimiser's moment that differs in its last place is seen."""
    folders = []
    for seed in (0, 0, 1):
        config = small("sft", seed=seed)
        assert warm.run(["sft", *start(config)], config.out)["code"] == 0
        folders.append(config.out)
    assert_same_run(folders[1], content(folders[0]))
    with pytest.raises(AssertionError):
        assert_same_run(folders[2], content(folders[0]))
    (file,) = folders[1].glob("checkpoints/step-4/state.pt")
    state = torch.load(file, weights_only=True)
    moment = state["optimizers"]["policy"]["adam"]["state"][0]["exp_avg"]
    moment.view(torch.int32).flatten()[0] += 1
    torch.save(state, file)
    with pytest.raises(AssertionError):
        assert_same_run(folders[1], content(folders[0]))


# --- kill -9


def ten_points(events, draw):
    """Ten events: at the places that matter, and one at random in each tenth of the run."""
    named = [
        first(events, "os.mkdir /checkpoints/step-2.partial"),  # an empty partial checkpoint
        first(events, "open /config.yaml.partial"),  # not begun yet
        first(events, "half of state.pt"),
        first(events, "os.rename /checkpoints/step-4.partial"),  # whole, but without its name
        first(events, "os.rename /checkpoints/step-2"),  # about to be pruned
        first(events, "os.rename /final.partial"),
        first(events, "open /summary.json.partial"),
    ]
    size = len(events)
    return named, [draw.randint(size * i // 10 + 1, size * (i + 1) // 10) for i in range(10)]


def first(events, beginning):
    """Number (from 1) of the first event that begins so."""
    return next(i for i, event in enumerate(events, 1) if event.startswith(beginning))


@pytest.mark.parametrize("method", METHODS)
def test_killed_anywhere_and_resumed_equals_unkilled(warm, small, method):
    """Ten random points and those between the files of a checkpoint, with and without adapters, some killed twice."""
    draw = random.Random(f"kill {method}")
    whole, points = {}, {}
    for lora in (False, True):
        config = small(method, lora)
        done = warm.run([method, *start(config)], config.out)
        assert done["code"] == 0, done["said"]
        whole[lora] = content(config.out)
        points[lora] = ten_points(done["events"], draw)
    places = [(lora, at) for i, at in enumerate(zip(*[points[k][1] for k in (False, True)], strict=True))
              for lora, at in [(i % 2 == 1, at[i % 2])]]  # fmt: skip
    places += [(i % 2 == 0, at) for i, at in enumerate(points[False][0])]
    for number, (lora, at) in enumerate(places):
        config = small(method, lora)
        killed = warm.run([method, *start(config)], config.out, kill=at)
        where = (method, lora, at, killed["events"][-1])
        assert killed["code"] == -signal.SIGKILL, where
        assert_whole_or_absent(config.out, whole[lora])
        if number % 3 == 0:  # killed twice: the second time while it resumes, or soon after
            warm.run([method, *go_on(config)], config.out, kill=draw.randint(1, 20))
            assert_whole_or_absent(config.out, whole[lora])
        resumed = warm.run([method, *go_on(config)], config.out)
        assert resumed["code"] == 0, (where, resumed["said"])
        assert_same_run(config.out, whole[lora])
        shutil.rmtree(config.out)
