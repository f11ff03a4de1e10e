"""Runs that are killed, run out of disk, are stopped or moved end as if nothing had happened. Real processes.

The oracle is the unkilled run's folder, compared file by file with libraries other than Keel.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError

from keel.engine.run_folder import RunFolder
from keel.errors import Interrupted, RunFailed
from keel.files.disk import whole_folder, writing

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
        options |= {"target_kl": 0.05, "kl_horizon": 40, "steps": 7} if method == "ppo" else {}
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
    folders = {name.partition("/")[0] for name in found if name.startswith("final/")}
    folders |= {"/".join(name.split("/")[:2]) for name in found if name.startswith("checkpoints/")}
    for inside in folders:  # all checkpoints have the same files
        like = inside if inside == "final" else next(n[: n.rindex("/state")] for n in whole if n.endswith("/state.pt"))
        there, all_of_it = (
            {name.removeprefix(f"{one}/") for name in files if name.startswith(f"{one}/")}
            for one, files in ((inside, found), (like, whole))
        )
        assert there == all_of_it, inside


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


def points_of(events, draw):
    """Events at the places that matter, and ten at random: one in each tenth of the run."""
    pruned = next(i for i, event in enumerate(events, 1) if re.match(r"os\.rename /checkpoints/step-\d+ ", event))
    named = [
        first(events, "os.mkdir /checkpoints/step-2.partial"),  # an empty partial checkpoint
        first(events, "open /config.yaml.partial"),  # not begun yet
        first(events, "half of state.pt"),
        first(events, "os.rename /checkpoints/step-4.partial"),  # whole, but without its name
        pruned,
        pruned + first(events[pruned:], "os.remove") + 1,  # half of it is deleted
        first(events, "open /final") + 1,  # between its files
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
        points[lora] = points_of(done["events"], draw)
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


# --- a full disk


def weights_of(config):
    """Bytes of a small model's weights."""
    return (Path(config.model) / "model.safetensors").stat().st_size


def assert_one_line(done, name, *needles):
    """Exit code 1, and one line of the command that holds every needle, last; no traceback."""
    assert done["code"] == 1, done["said"]
    assert not any("Traceback" in line for line in done["said"])
    (line,) = [line for line in done["said"] if line.startswith(f"keel {name}: ")]
    assert done["said"][-1] == line
    for needle in needles:
        assert str(needle) in line, line


def lines_of(file):
    """The objects of a file that ends with a whole line."""
    text = file.read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


FULL = {
    "weights": ("checkpoints/step-2", lambda config, whole: weights_of(config) - 1),
    "state": ("checkpoints/step-2", lambda config, whole: weights_of(config) + 4096),
    "final": ("final", lambda config, whole: weights_of(config) - 1),
    "lines": ("metrics.jsonl", lambda config, whole: len(whole["metrics.jsonl"]) - 10),
    "samples": ("samples.jsonl", lambda config, whole: len(whole["samples.jsonl"]) - 10),
}
"""The file that cannot be written, and the size beyond which no file may grow."""


@pytest.mark.parametrize("what", FULL)
def test_a_run_without_room_ends_on_one_line_and_goes_on(warm, small, what):
    """RLIMIT_FSIZE fails writes as a full disk does, in Python, torch and safetensors alike."""
    method = "ppo" if what == "samples" else "sft"
    options = {}
    if what in ("final", "lines", "samples"):  # no checkpoint before
        options = {"holdout": 0.0, "eval_every": None, "save_every": 50}
        options |= {"final": {}, "lines": {"steps": 40}, "samples": {"keep_samples": 4}}[what]
    config = small(method, **options)
    assert warm.run([method, *start(config)], config.out)["code"] == 0
    whole = content(config.out)
    name, largest = FULL[what]
    config = small(method, **options)
    failed = warm.run([method, *start(config)], config.out, largest=largest(config, whole))
    assert_one_line(failed, method, config.out / name, "ulimit -f", f"keel {method} --resume --out {config.out}")
    assert_whole_or_absent(config.out, whole)
    assert not [p for p in config.out.rglob("*") if p.name.endswith((".partial", ".removed"))], "it takes room"
    assert not (config.out / "summary.json").exists()
    assert not (config.out / "final").exists()
    for file in config.out.glob("*.jsonl"):
        assert lines_of(file)
    resumed = warm.run([method, *go_on(config)], config.out)
    assert resumed["code"] == 0, resumed["said"]
    assert_same_run(config.out, whole)


def test_answers_without_room_are_absent(warm, base, prompts_file, tmp_path):
    out = tmp_path / "answers.jsonl"
    done = warm.run(
        ["generate", "--model", base, "--prompts", prompts_file, "--out", out, "--device", "cpu", "--n", 32],
        tmp_path,
        largest=4096,
    )
    assert_one_line(done, "generate", out, "free space there, or choose another --out")
    assert list(tmp_path.iterdir()) == []


# --- stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_the_files_of_a_checkpoint_waits_for_the_step_s_end(warm, small, number):
    config = small("dpo")
    done = warm.run(["dpo", *start(config)], config.out)
    whole, at = content(config.out), first(done["events"], "os.mkdir /checkpoints/step-2.partial")
    config = small("dpo")
    stopped = warm.run(["dpo", *start(config)], config.out, kill=at, signal=number)
    name = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[number]
    assert stopped["code"] == 128 + number
    remedy = f"keel dpo --resume --out {config.out}"
    assert stopped["said"][-1] == f"keel dpo: stopped by {name} after step 2; go on with: {remedy}"
    assert any(f"({name} again stops at once)" in line for line in stopped["said"])
    assert warm.run(remedy.split()[1:], config.out)["code"] == 0
    assert_same_run(config.out, whole)


def commands_without_checkpoints(base, reward_folder, prompts_file, pairs_file, rules, out):
    sampling = ["--model", base, "--prompts", prompts_file, "--device", "cpu", "--max-new-tokens", 4, "--n", 2]
    return {
        "generate": [*sampling, "--out", out],
        "best-of-n": [*sampling, "--reward", reward_folder, "--out", out],
        "collect": [*sampling, "--rater", rules, "--store", f"store:{out}.db", "--out", out],
        "data check": ["--data", pairs_file, "--out", out],
    }


@pytest.mark.parametrize("name", ["generate", "best-of-n", "collect", "data check"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_other_commands_with_one_line(
    warm, base, reward_folder, prompts_file, pairs_file, rules, tmp_path, name, number
):
    out = tmp_path / ("out.jsonl" if name in ("generate", "best-of-n") else "out.json")
    flags = commands_without_checkpoints(base, reward_folder, prompts_file, pairs_file, rules, out)[name]
    done = warm.run([*name.split(), *flags], out, kill=1, signal=number)
    assert done["code"] == 128 + number, done["said"]
    kept = "; what was drawn and judged is kept: the same call goes on" if name == "collect" else ""
    who = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[number]
    assert done["said"][-1] == f"keel {name}: stopped by {who}{kept}"
    assert not any("Traceback" in line for line in done["said"])
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(out.name) and not p.name.endswith(".db")]


# --- moved


@pytest.mark.parametrize(("method", "lora"), [("dpo", False), ("ppo", True)])
def test_a_moved_or_copied_run_goes_on_where_it_is(warm, small, method, lora):
    config = small(method, lora)
    done = warm.run([method, *start(config)], config.out)
    whole, at = content(config.out), first(done["events"], "os.rename /checkpoints/step-4.partial") - 3
    config = small(method, lora)
    assert warm.run([method, *start(config)], config.out, kill=at)["code"] == -signal.SIGKILL
    copied, moved = (config.out.with_name(f"{method} {word}") for word in ("copied", "moved"))
    shutil.copytree(config.out, copied)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in config.out.rglob("*") if p.is_file()}
    resumed = warm.run([method, "--resume", "--out", copied], copied)
    assert resumed["code"] == 0, resumed["said"]
    assert_same_run(copied, whole)
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in config.out.rglob("*") if p.is_file()}
    config.out.rename(moved)
    assert warm.run([method, "--resume", "--out", moved], moved)["code"] == 0
    assert_same_run(moved, whole)
    assert not config.out.exists()


def test_later_lines_are_dropped_without_room_and_at_once(tmp_path):
    """A resumed run on a full disk, or one that is killed again, must not lose the lines that it keeps."""
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"ste')
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a file may shrink, but nothing can be written
        try:
            RunFolder(tmp_path, "sft").forget_after(2)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert lines_of(file) == [{"step": 1}, {"step": 2}]


def raising(error, context=None):
    try:
        if context is not None:
            raise context
    except OSError:
        raise error  # noqa: B904  (as torch does: its own error, while the system's is handled)
    raise error


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "context"),
    [
        (NO_SPACE, None),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), NO_SPACE),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), None),
        (Exception("No space left on device (os error 28)"), None),
    ],
)
def test_a_full_disk_is_said_with_what_is_needed_and_free(tmp_path, monkeypatch, error, context):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(1_234_000))
    said = "step-2: not written, since the disk is full (it needs about 1.3 GB, 1.2 MB are free); free some"
    with pytest.raises(RunFailed) as caught, writing(tmp_path / "step-2", 1_250_000_001, "free some"):
        raising(error, context)
    assert str(caught.value) == f"{tmp_path}/{said}"


def test_other_errors_are_not_the_disk_s(tmp_path):
    with pytest.raises(ValueError, match="a bug"), writing(tmp_path / "step-2"):
        raise ValueError("a bug")


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A power cut after the rename must not leave empty files: files, then folders, the rename, then its folder."""
    done = []
    real_sync, real_rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda f: done.append(os.readlink(f"/proc/self/fd/{f}")) or real_sync(f))
    monkeypatch.setattr(Path, "rename", lambda self, to: done.append(f"-> {to}") or real_rename(self, to))
    with whole_folder(tmp_path / "step-1") as partial:
        (partial / "policy").mkdir()
        (partial / "policy" / "weights").write_text("w")
        (partial / "state").write_text("s")
    at = done.index(f"-> {tmp_path}/step-1")
    inside = {f"{partial}{name}" for name in ("", "/policy", "/policy/weights", "/state")}
    assert set(done[:at]) == inside
    assert done[at + 1 :] == [str(tmp_path)]


def test_an_unreadable_checkpoint_is_said_with_its_remedy(warm, small):
    config = small("sft", keep_checkpoints=2)
    done = warm.run(["sft", *start(config)], config.out)
    whole, at = content(config.out), first(done["events"], "os.rename /final.partial")
    config = small("sft", keep_checkpoints=2)
    warm.run(["sft", *start(config)], config.out, kill=at)
    file = config.out / "checkpoints" / "step-4" / "state.pt"
    file.write_bytes(file.read_bytes()[:1000])
    assert_one_line(warm.run(["sft", *go_on(config)], config.out), "sft", file, f"remove {file.parent}")
    shutil.rmtree(file.parent)
    assert warm.run(["sft", *go_on(config)], config.out)["code"] == 0
    assert_same_run(config.out, whole)


def test_an_interrupt_passes_from_a_worker_process():
    stop = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM, " after step 2")))
    assert (stop.exit_code, str(stop)) == (143, "stopped by SIGTERM after step 2")
