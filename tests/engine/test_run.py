"""A run as a whole: schedule, interruption, resume bit for bit, non-finite numbers, checkpoints, refusals."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from keel import cli
from keel.engine import run as run_module
from keel.engine.adamw import Optimizer
from keel.engine.optimisation import schedule
from keel.engine.run import Run, open_run
from keel.engine.run_folder import RunFolder, bytes_of_checkpoint
from keel.errors import InputError, RunFailed
from keel.models import checkpoints
from keel.models.roles import Role
from keel.records import Bundle, Completion

METHODS = ("sft", "reward", "dpo", "ppo")
CLOCK = {"seconds", "train_seconds", "examples_per_second", "peak_rss_gb"}


class KilledError(Exception):
    """What stands for a kill in these tests."""


def fail_at(monkeypatch, step: int, action, update: int = 1) -> None:
    """Do `action` before the step's update-th optimiser update (both from 1)."""
    real, seen = Run.update, []

    def patched(self, *roles):
        seen.append(self.step + 1)
        if self.step + 1 == step and seen.count(step) == update:
            action()
        real(self, *roles)

    monkeypatch.setattr(Run, "update", patched)


def kill():
    raise KilledError


def figures(summary):
    return {k: v for k, v in summary.items() if k not in CLOCK}


def assert_equal_runs(one, other, weights, metrics_of):
    a, b = weights(one.final), weights(other.final)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert metrics_of(one.folder) == metrics_of(other.folder)
    assert figures(one.summary) == figures(other.summary)
    samples = [f / "samples.jsonl" for f in (one.folder, other.folder)]
    assert samples[0].exists() == samples[1].exists()
    if samples[0].exists():
        assert samples[0].read_text() == samples[1].read_text()


# --- schedule and bookkeeping


def test_schedule_by_hand():
    assert [schedule("linear", s, 10, 0.2) for s in range(10)] == pytest.approx(
        [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    assert [schedule("constant", s, 4, 0.5) for s in range(4)] == [0.5, 1, 1, 1]
    assert [schedule("cosine", s, 4, 0.0) for s in range(4)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    assert schedule("linear", 0, 1, 0.0) == 1
    assert schedule("linear", 3, 4, 1.0) == 1


def test_schedule_is_the_one_used(train, metrics_of):
    result = train("sft", steps=5, warmup=0.4, schedule="linear", learning_rate=1e-2)
    rates = [m["learning_rate"] for m in metrics_of(result.folder)]
    assert rates == pytest.approx([5e-3, 1e-2, 1e-2, 2e-2 / 3, 1e-2 / 3])


def test_first_step_is_adam_at_that_rate(train, base, weights):
    """Adam's first step moves a weight by at most the learning rate, and most by just that."""
    result = train("sft", steps=1, learning_rate=1e-4, warmup=0.0)
    before, after = weights(base), weights(result.final)
    moved = torch.cat([(after[k] - before[k]).abs().flatten() for k in before])
    assert float(moved.max()) <= 1.01e-4
    assert float(moved.median()) == pytest.approx(1e-4, rel=0.01)


def test_small_steps_are_not_lost_in_bf16():
    """bf16 resolves 1/128 at 1: a thousand steps of 1e-4 must add up all the same."""
    layer = torch.nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(layer.weight)
    optimizer = Optimizer(layer.parameters(), weight_decay=0.0, eps=1e-8)
    for _ in range(1000):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step(1e-4)
    assert layer.weight.tolist()[0] == pytest.approx([0.9] * 4, abs=0.005)


def test_the_first_small_step_moves_the_mean_in_bf16():
    """Each weight moves by a step of bf16 or not at all; together they move by the learning rate, at either sign."""
    layer = torch.nn.Linear(1000, 1000, bias=False).to(torch.bfloat16)
    torch.nn.init.normal_(layer.weight, std=0.02, generator=torch.Generator().manual_seed(1))
    before = layer.weight.detach().clone()
    optimizer = Optimizer(layer.parameters(), weight_decay=0.0, eps=1e-8)
    optimizer.step(0.0)
    assert torch.equal(layer.weight, before)
    for sign in (1, -1):
        layer.weight.data.copy_(before)
        optimizer = Optimizer(layer.parameters(), weight_decay=0.0, eps=1e-12)
        layer.weight.grad = torch.full_like(layer.weight, sign)
        optimizer.step(1e-6)
        moved = (before.double() - layer.weight.detach().double()).mean()
        assert float(moved) == pytest.approx(sign * 1e-6, rel=0.05)


@pytest.mark.parametrize("number", [0.0, 1.0, -1.0, 0.02, 255.0, 1e-30, -3e38])
def test_an_fp32_copy_rounds_to_its_weight(number):
    """Whatever the number, powers of two and zero among them."""
    layer = torch.nn.Linear(100_000, 1, bias=False).to(torch.bfloat16)
    torch.nn.init.constant_(layer.weight, number)
    (copy,) = Optimizer(layer.parameters(), weight_decay=0.0, eps=1e-8).state_dict()["masters"]
    assert torch.equal(copy.to(torch.bfloat16), layer.weight)
    assert len(copy.unique()) > 10_000 or number == 0
    nearest = layer.weight.detach()[0, 0]
    for side in (torch.inf, -torch.inf):
        beyond = torch.nextafter(nearest, torch.tensor(side, dtype=torch.bfloat16)).double()
        reached = copy.double().max() if side > 0 else copy.double().min()
        share = float((reached - nearest.double()) / (beyond - nearest.double()))
        assert number == 0 or share == pytest.approx(0.5, abs=0.01)


def test_means_weigh_examples_and_missing_is_not_zero(configure, base):
    config = configure("sft")
    model, text = checkpoints.load_policy(str(base), config), checkpoints.load_text(str(base))
    run = open_run("sft", config, [Role("policy", model)], text, total_steps=1, manifest={})
    for _ in run.steps():
        run.observe({"x": torch.tensor([1.0, 0.0, 0.0])})
        run.observe({"x": torch.tensor([1.0])})
        run.observe({"y": torch.tensor([])})
    row = json.loads((config.out / "metrics.jsonl").read_text())
    assert row["x"] == 0.5  # not (1/3 + 1) / 2
    assert "y" not in row


def test_samples_stand_beside_their_own_figures(configure, base):
    """Figures are flat over the completions of a whole rollout; its first bundles are kept."""
    config = configure("sft")
    model, text = checkpoints.load_policy(str(base), config), checkpoints.load_text(str(base))
    run = open_run("sft", config, [Role("policy", model)], text, total_steps=2, manifest={})
    bundles = [
        Bundle([1], [Completion([4], text=f"{prompt}{i}", truncated=i == 1) for i in range(2)], prompt=prompt)
        for prompt in "abc"
    ]
    for _ in run.steps():
        run.record_samples(bundles[:2], score=torch.arange(6.0) + 10 * run.step, kl=-torch.arange(6.0))
    rows = [json.loads(line) for line in (config.out / "samples.jsonl").read_text().splitlines()]
    assert rows == [
        {
            "step": step,
            "prompt": p,
            "completion": f"{p}{i}",
            "truncated": i == 1,
            "score": at + 10 * (step - 1),
            "kl": -at,
        }
        for step in (1, 2)
        for at, (p, i) in enumerate((p, i) for p in "ab" for i in range(2))
    ]


def test_losses_are_divided_by_the_whole_batch(configure, base):
    """Two passes of 1 and 3 examples, each a sum: the gradient of the mean of all four, 10 / 4."""
    config = configure("sft")
    model, text = checkpoints.load_policy(str(base), config), checkpoints.load_text(str(base))
    run = open_run("sft", config, [Role("policy", model)], text, total_steps=1, manifest={})
    weight = next(model.parameters())
    run.backward(weight.flatten()[0] * 1.0, 4, [])
    run.backward((weight.flatten()[0] * torch.tensor([2.0, 3.0, 4.0])).sum(), 4, [])
    assert weight.grad.flatten()[0] == 2.5


@pytest.mark.parametrize(("values", "higher"), [([2.0, 1.0, 1.0, 3.0], False), ([1.0, 3.0, 3.0, 2.0], True)])
def test_the_first_of_equally_good_evaluations_is_the_best(configure, base, metrics_of, values, higher):
    config = configure("sft")
    model, text = checkpoints.load_policy(str(base), config), checkpoints.load_text(str(base))
    run = open_run("sft", config, [Role("policy", model)], text, total_steps=4, manifest={})
    for step in run.steps():
        run.record_evaluation({"x": {"mean": values[step]}, "y": -values[step]}, best="x", higher=higher)
    summary = run.finish(examples=1).summary
    assert summary["best"] == {"step": 2, "metric": "x", "value": values[1]}
    assert summary["eval"] == {"step": 2, "x": {"mean": values[1]}, "y": -values[1]}
    assert [(line["eval/x"], line["eval/y"]) for line in metrics_of(config.out)] == [(v, -v) for v in values]


# --- killed and resumed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("evaluating", [False, True])
def test_killed_and_resumed_equals_uninterrupted(
    train, configure, monkeypatch, weights, metrics_of, method, evaluating
):
    """The kill falls two whole steps after a checkpoint, and into the middle of a third if it has several updates."""
    options = {"steps": 7, "save_every": 3, "weight_decay": 0.1}
    options |= {"holdout": 0.25, "eval_every": 3} if evaluating else {}
    options |= {"target_kl": 0.05, "kl_horizon": 40} if method == "ppo" else {}
    whole = train(method, **options)
    config = configure(method, **options)
    with monkeypatch.context() as patch:
        fail_at(patch, 6, kill, update=2 if method == "ppo" else 1)
        with pytest.raises(KilledError):
            train(method, config=config)
    assert not (config.out / "final").exists()
    assert (config.out / "checkpoints" / "step-3" / "state.pt").exists()
    resumed = train(method, config=config.model_copy(update={"resume": True}))
    assert_equal_runs(whole, resumed, weights, metrics_of)


def test_killed_before_the_first_checkpoint(train, configure, monkeypatch, weights, metrics_of):
    whole = train("sft", save_every=3)
    config = configure("sft", save_every=3)
    with monkeypatch.context() as patch:
        fail_at(patch, 2, kill)
        with pytest.raises(KilledError):
            train("sft", config=config)
    assert_equal_runs(whole, train("sft", config=config.model_copy(update={"resume": True})), weights, metrics_of)


def test_a_resumed_run_counts_the_seconds_before_it_was_killed(configure, base):
    """A hundred that were charged by the first process; what the second one charges, it has counted already."""
    config = configure("sft", save_every=1)

    def start(resume):
        changed = config.model_copy(update={"resume": resume})
        model, text = checkpoints.load_policy(str(base), changed), checkpoints.load_text(str(base))
        run = open_run("sft", changed, [Role("policy", model)], text, total_steps=2, manifest={})
        run.charge(100.0)
        return run

    killed = start(False).steps()
    assert [next(killed), next(killed)] == [0, 1]
    with pytest.raises(KilledError):
        killed.throw(KilledError)
    run = start(True)
    assert list(run.steps()) == [1]
    summary = run.finish(examples=50).summary
    assert 100 <= summary["train_seconds"] < 200
    assert summary["examples_per_second"] == pytest.approx(50 / summary["train_seconds"], rel=1e-3)


def test_killed_twice(train, configure, monkeypatch, weights, metrics_of):
    whole = train("dpo", steps=6, save_every=1)
    config = configure("dpo", steps=6, save_every=1)
    for step in (3, 5):
        with monkeypatch.context() as patch:
            fail_at(patch, step, kill)
            with pytest.raises(KilledError):
                train("dpo", config=config)
        config = config.model_copy(update={"resume": True})
    assert_equal_runs(whole, train("dpo", config=config), weights, metrics_of)


def test_sigkill_in_another_process(train, configure, weights, metrics_of):
    """A real kill -9, in the middle of PPO's third rollout."""
    whole = train("ppo", save_every=2)
    config = configure("ppo", save_every=2)
    file = config.out.with_suffix(".yaml")
    file.write_text(config.to_yaml())
    script = (
        "import os, signal, sys\n"
        "from keel import cli\n"
        "from keel.engine.run import Run\n"
        "real, calls = Run.update, []\n"
        "def update(self, *roles):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2 * 4 + 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(self, *roles)\n"
        "Run.update = update\n"
        "sys.exit(cli.main(['ppo', '--config', sys.argv[1]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = train("ppo", config=config.model_copy(update={"resume": True}))
    assert_equal_runs(whole, resumed, weights, metrics_of)


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_half_written_line_is_dropped(train, configure, monkeypatch, weights, metrics_of, name):
    """A kill can fall into the writing of a line."""
    whole = train("ppo", save_every=2)
    config = configure("ppo", save_every=2)
    with monkeypatch.context() as patch:
        fail_at(patch, 4, kill)
        with pytest.raises(KilledError):
            train("ppo", config=config)
    with (config.out / name).open("a") as file:
        file.write('{"step": 4, "lo')
    assert_equal_runs(whole, train("ppo", config=config.model_copy(update={"resume": True})), weights, metrics_of)


def test_a_half_written_checkpoint_is_not_one(train, configure, monkeypatch, weights, metrics_of):
    whole = train("sft", save_every=1)
    config = configure("sft", save_every=1)
    real = torch.save

    def save(state, path):
        if state["step"] == 2:
            raise KilledError
        real(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.torch, "save", save)
        with pytest.raises(KilledError):
            train("sft", config=config)
    assert_equal_runs(whole, train("sft", config=config.model_copy(update={"resume": True})), weights, metrics_of)


# --- interrupted


@pytest.mark.parametrize(("method", "number"), [("sft", signal.SIGTERM), ("ppo", signal.SIGINT)])
def test_interrupt_saves_and_resumes(train, configure, monkeypatch, capsys, weights, metrics_of, method, number):
    """By Ctrl-C or as a scheduler stops a job; the run's folder is all that is needed to go on."""
    whole = train(method, save_every=4)
    config = configure(method, save_every=4)
    file = config.out.with_suffix(".yaml")
    file.write_text(config.to_yaml())
    handlers = [signal.getsignal(some) for some in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        fail_at(patch, 2, lambda: signal.raise_signal(number))
        code = cli.main([method, "--config", str(file)])
    assert code == 128 + number
    assert [signal.getsignal(some) for some in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (config.out / "checkpoints" / "step-2" / "state.pt").exists()
    assert len(metrics_of(config.out)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    name = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[number]
    assert last.startswith(f"keel {method}: stopped by {name} after step 2; ")
    assert last.endswith(f"go on with: keel {method} --resume --out {config.out}")
    assert cli.main(last.rpartition("keel ")[2].split()) == 0
    summary = json.loads((config.out / "summary.json").read_text())
    assert_equal_runs(whole, run_module.Result(config.out, summary), weights, metrics_of)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_interrupt_stops_at_once(configure, monkeypatch, number):
    config = configure("sft")
    file = config.out.with_suffix(".yaml")
    file.write_text(config.to_yaml())

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(number)

    fail_at(monkeypatch, 2, twice)
    assert cli.main(["sft", "--config", str(file)]) == 128 + number
    assert not (config.out / "checkpoints" / "step-2").exists()


def test_a_run_that_is_gone_on_with_keeps_its_settings(configure, capsys):
    """What is given beside --resume wins over the run's own, and is refused there if it differs."""
    config = configure("dpo", beta=0.3)
    config.out.mkdir()
    (config.out / "config.yaml").write_text(config.to_yaml())
    (config.out / "manifest.json").write_text("{}")
    assert cli.main(["dpo", "--resume", f"--out={config.out}", "--beta", "0.4"]) == 2
    assert "other settings of beta;" in capsys.readouterr().err


# --- non-finite numbers


@pytest.fixture
def poisoned(base, monkeypatch):
    """A model for which the letter H is not a number, as if that had come about after it was loaded."""
    from transformers import AutoTokenizer

    (letter,) = AutoTokenizer.from_pretrained(base)("H", add_special_tokens=False).input_ids
    real = checkpoints._load

    def load(*arguments, **options):
        model = real(*arguments, **options)
        with torch.no_grad():
            model.get_input_embeddings().weight[letter] = math.nan
        return model

    monkeypatch.setattr(checkpoints, "_load", load)
    return base


def spoiled_file(method, tmp_path, write_rows, pair_table):
    """Row 6 holds the letter."""
    rows = [dict(row) for row in pair_table]
    if method == "sft":
        rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows]
    rows[5]["prompt"] = "H" + rows[5]["prompt"]
    return write_rows(tmp_path / "spoiled.jsonl", rows)


def count_optimizer_steps(monkeypatch):
    calls: list[int] = []
    real = Optimizer.step
    monkeypatch.setattr(Optimizer, "step", lambda self, rate: calls.append(1) or real(self, rate))
    return calls


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_a_non_finite_loss_stops_before_the_update(
    train, configure, monkeypatch, tmp_path, write_rows, pair_table, poisoned, method, seed
):
    """Whichever step the row falls into: nothing is updated by it, its number is named, its batch is kept."""
    calls = count_optimizer_steps(monkeypatch)
    data = spoiled_file(method, tmp_path, write_rows, pair_table)
    config = configure(method, model=str(poisoned), data=str(data), micro_tokens=1, seed=seed)
    with pytest.raises(RunFailed) as caught:
        train(method, config=config)
    lines = metrics = (config.out / "metrics.jsonl").read_text().splitlines() if calls else []
    assert len(calls) == len(metrics)  # no update in the step that failed
    assert not (config.out / "final").exists()
    evidence = config.out / "failed-batch.jsonl"
    assert str(evidence) in str(caught.value)
    assert "6" in str(caught.value)
    rows = [json.loads(line) for line in evidence.read_text().splitlines()]
    assert 6 in [r["row"] for r in rows]
    assert {r["file"] for r in rows} == {str(data)}
    assert all(math.isfinite(v) for line in lines for v in json.loads(line).values())


def hook_gradient(monkeypatch, loader, parameter):
    """The gradient of the first model that `loader` returns becomes infinite."""
    real, done = getattr(checkpoints, loader), []

    def load(*args, **kwargs):
        model = real(*args, **kwargs)
        if not done:
            done.append(1)
            dict(model.named_parameters())[parameter].register_hook(lambda g: g * math.inf)
        return model

    monkeypatch.setattr(checkpoints, loader, load)


@pytest.mark.parametrize(
    ("method", "loader", "parameter"),
    [
        ("sft", "load_policy", "lm_head.weight"),
        ("reward", "new_scalar_model", "score.weight"),
        ("dpo", "load_policy", "model.layers.0.mlp.up_proj.weight"),
        ("ppo", "load_policy", "lm_head.weight"),
    ],
)
def test_a_non_finite_gradient_stops_before_the_update(train, configure, monkeypatch, method, loader, parameter):
    calls = count_optimizer_steps(monkeypatch)
    hook_gradient(monkeypatch, loader, parameter)
    config = configure(method, micro_tokens=1)
    with pytest.raises(RunFailed) as caught:
        train(method, config=config)
    assert parameter in str(caught.value)
    assert calls == []
    assert len((config.out / "failed-batch.jsonl").read_text().splitlines()) >= 1


def test_a_gradient_s_evidence_is_the_whole_batch(train, configure, monkeypatch):
    """The gradient is a sum over all passes of the step: any of its rows may be the culprit."""
    hook_gradient(monkeypatch, "load_policy", "lm_head.weight")
    config = configure("sft", micro_tokens=1, batch_size=4)
    with pytest.raises(RunFailed):
        train("sft", config=config)
    assert len((config.out / "failed-batch.jsonl").read_text().splitlines()) == 4


def test_a_loss_s_message_names_the_rows_of_its_own_pass(train, configure, tmp_path, write_rows, pair_table, poisoned):
    """The whole batch is evidence, but only the pass that failed is under suspicion."""
    data = spoiled_file("sft", tmp_path, write_rows, pair_table)
    config = configure("sft", model=str(poisoned), data=str(data), micro_tokens=1, batch_size=16)
    with pytest.raises(RunFailed, match=r"\(rows 6\)"):
        train("sft", config=config)
    rows = [json.loads(line)["row"] for line in (config.out / "failed-batch.jsonl").read_text().splitlines()]
    assert 6 in rows


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_a_number_that_is_none_in_the_first_batch_is_not_called_an_identity(
    train, configure, tmp_path, write_rows, pair_table, poisoned, method
):
    data = spoiled_file(method, tmp_path, write_rows, pair_table)
    config = configure(method, model=str(poisoned), data=str(data), batch_size=16)
    with pytest.raises(RunFailed, match="the loss is nan at step 1"):
        train(method, config=config)


def test_separators_inside_a_sample_are_no_line_ends(tmp_path):
    """JSON may hold U+2028 and U+0085 as they are; a resumed run must not cut there."""
    file = tmp_path / "samples.jsonl"
    rows = [{"step": s, "completion": "a\u2028b\u0085c"} for s in (1, 2, 3)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text + '{"step": 3, "compl\u00e9', encoding="utf-8")
    RunFolder(tmp_path, "ppo").forget_after(2)
    assert [json.loads(line) for line in file.read_bytes().split(b"\n") if line] == rows[:2]


def test_no_role_moves_when_another_s_gradient_is_not_finite(train, configure, monkeypatch):
    """PPO's policy must not step before the value model's gradient has been looked at."""
    calls = count_optimizer_steps(monkeypatch)
    real = checkpoints.load_reward
    loaded = []

    def load(*args, **kwargs):
        model = real(*args, **kwargs)
        loaded.append(model)
        if len(loaded) == 2:  # the first one is the frozen scorer
            model.score.weight.register_hook(lambda g: g * math.inf)
        return model

    monkeypatch.setattr(checkpoints, "load_reward", load)
    with pytest.raises(RunFailed, match=r"value\.score\.weight"):
        train("ppo", config=configure("ppo"))
    assert calls == []


def test_a_failed_run_is_exit_code_1_on_one_line(configure, monkeypatch, capsys):
    hook_gradient(monkeypatch, "load_policy", "lm_head.weight")
    config = configure("sft")
    file = config.out.with_suffix(".yaml")
    file.write_text(config.to_yaml())
    assert cli.main(["sft", "--config", str(file)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("keel sft: ")
    assert "failed-batch.jsonl" in last


# --- checkpoints


def test_pruning_keeps_the_newest_and_the_best(train, monkeypatch):
    seen = []
    real = Run._prune

    def prune(self):
        real(self)
        seen.append((sorted(self.files.checkpoints()), self._best.get("step")))

    monkeypatch.setattr(Run, "_prune", prune)
    train("sft", steps=8, save_every=1, keep_checkpoints=2)
    assert [steps for steps, _ in seen] == [[1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6], [6, 7], [6, 7]]
    seen.clear()
    train("sft", steps=8, save_every=1, keep_checkpoints=1, holdout=0.25, eval_every=1, learning_rate=0.1)
    assert all(best in steps and len(steps) <= 2 for steps, best in seen[:-1])
    assert any(best < max(steps) for steps, best in seen)


def test_final_is_the_best_held_out_checkpoint(train, configure, metrics_of, weights):
    """A learning rate at which held-out loss turns up again."""
    result = train("sft", steps=8, eval_every=1, save_every=8, holdout=0.25, learning_rate=0.02, schedule="constant")
    losses = [m["eval/loss"] for m in metrics_of(result.folder)]
    best = min(range(8), key=losses.__getitem__)
    assert best < 7
    assert result.summary["best"] == {"step": best + 1, "metric": "loss", "value": losses[best]}
    assert result.summary["eval"]["loss"]["mean"] == losses[best]
    final = weights(result.final)
    kept = weights(result.folder / "checkpoints" / f"step-{best + 1}" / "policy")
    assert all(torch.equal(final[k], kept[k]) for k in kept)
    last = train(
        "sft", steps=8, eval_every=1, save_every=8, holdout=0.25, learning_rate=0.02, schedule="constant", seed=0
    )
    assert all(torch.equal(v, weights(last.final)[k]) for k, v in final.items())


def test_a_run_folder_holds_what_the_design_says(train):
    result = train("dpo", holdout=0.25)
    folder = result.folder
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "checkpoints",
        "final",
        "summary.json",
        "reference-logps.safetensors",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    assert {
        "command",
        "seconds",
        "train_seconds",
        "examples",
        "examples_per_second",
        "peak_rss_gb",
        "metrics",
        "eval",
        "rows",
    } <= summary.keys()
    assert summary["examples"] == 4 * 4
    assert summary["rows"]["read"] == 16
    assert all(set(rate) == {"mean", "low", "high", "n"} for rate in summary["eval"].values() if isinstance(rate, dict))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["policy"] == manifest["reference"]
    assert {"tokenizer", "data_hash", "seed", "versions", "command"} <= manifest.keys()


# --- refusals


def test_an_existing_folder_is_refused(train, configure):
    result = train("sft", steps=1)
    before = sorted(p.name for p in result.folder.iterdir())
    with pytest.raises(InputError, match=r"already exists.*--out"):
        train("sft", config=configure("sft", out=result.folder))
    assert sorted(p.name for p in result.folder.iterdir()) == before


def test_a_finished_run_is_not_resumed(train, configure):
    result = train("sft", steps=1)
    with pytest.raises(InputError, match="finished"):
        train("sft", config=configure("sft", steps=1, out=result.folder, resume=True))


@pytest.fixture
def killed_run(train, configure, monkeypatch):
    """A run of five steps that was killed in its fourth."""
    config = configure("sft", steps=5, save_every=2)
    with monkeypatch.context() as patch:
        fail_at(patch, 4, kill)
        with pytest.raises(KilledError):
            train("sft", config=config)
    return config


def test_other_settings_are_refused(train, killed_run):
    with pytest.raises(InputError, match="learning_rate, seed"):
        train("sft", config=killed_run.model_copy(update={"resume": True, "learning_rate": 1.0, "seed": 3}))
    assert not (killed_run.out / "final").exists()


def test_other_data_are_refused(train, killed_run, tmp_path, write_rows):
    """Settings may be the same while the file behind them is not: the manifest knows its hash."""
    data = Path(killed_run.data)
    copy = tmp_path / "copy.jsonl"
    copy.write_text(data.read_text())
    config = killed_run.model_copy(update={"data": str(copy), "out": tmp_path / "other"})
    shutil.copytree(killed_run.out, config.out)
    (config.out / "config.yaml").write_text(config.to_yaml())
    rows = [json.loads(line) for line in copy.read_text().splitlines()]
    write_rows(copy, [{**r, "completion": " something else"} for r in rows])
    with pytest.raises(InputError, match="data"):
        train("sft", config=config.model_copy(update={"resume": True}))


def test_resume_where_there_is_no_run_is_refused(train, configure, tmp_path):
    """A folder of something else is not to be written into."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "bear.txt").write_text("a bear")
    with pytest.raises(InputError):
        train("sft", config=configure("sft", out=folder, resume=True))
    assert [p.name for p in folder.iterdir()] == ["bear.txt"]


def test_a_full_disk_is_seen_before_the_start(train, configure, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
    config = configure("sft")
    with pytest.raises(InputError, match=r"need about \d+\.\d kB, 1\.0 kB are free; free space there, choose"):
        train("sft", config=config)
    assert not config.out.exists()


def test_checkpoints_that_are_there_need_no_more_room(train, killed_run, weights, monkeypatch):
    """A run fits where there is room for all but what it has written, and does not where there is less."""
    usage = namedtuple("usage", "total used free")
    trained = sum(w.nbytes for w in weights(Path(killed_run.model)).values())
    there = sum(p.stat().st_size for p in (killed_run.out / "checkpoints" / "step-2").rglob("*") if p.is_file())
    needed = 3 * 3 * trained + trained - there  # three checkpoints of weights and two moments, and final/
    config = killed_run.model_copy(update={"resume": True})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed - 1))
    with pytest.raises(InputError, match="checkpoints need about"):
        train("sft", config=config)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed))
    train("sft", config=config)


def test_bf16_weights_need_room_for_their_fp32_copies(base, configure):
    """2 bytes of weight, 4 of its copy, 8 of moments; what torch.save writes is as large."""
    config = configure("sft", precision="bf16")
    role = Role("policy", checkpoints.load_policy(str(base), config))
    optimizer = Optimizer(role.parameters().values(), weight_decay=0.0, eps=1e-8)
    for parameter in role.parameters().values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(1e-4)
    count = sum(p.numel() for p in role.parameters().values())
    assert bytes_of_checkpoint([role]) == 14 * count
    written = io.BytesIO()
    torch.save(optimizer.state_dict(), written)
    assert written.tell() == pytest.approx(12 * count, rel=0.2)


def test_the_disk_estimate_covers_what_a_run_leaves(train, configure, monkeypatch):
    """With as much free as is asked for, everything that lies there at once fits."""
    asked = []
    usage = namedtuple("usage", "total used free")

    def disk(path):
        asked.append(path)
        return usage(0, 0, 10**12)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    result = train("ppo", holdout=0.25, save_every=1, keep_checkpoints=2)
    assert asked
    left = sum(p.stat().st_size for p in result.folder.rglob("*.safetensors"))
    left += sum(p.stat().st_size for p in result.folder.rglob("state.pt"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, left))
    with pytest.raises(InputError):
        train("ppo", config=configure("ppo", keep_checkpoints=2))


def test_same_draws_in_any_process():
    """Generators are named, not counted: the number is fixed for good."""
    first = torch.randint(1000, (3,), generator=run_module.generator(0, "rollout", 17)).tolist()
    script = (
        "import torch; from keel.seeds import generator;"
        "print(torch.randint(1000, (3,), generator=generator(0, 'rollout', 17)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert done.stdout.strip() == str(first)
    others = [(1, "rollout", 17), (0, "order", 17), (0, "rollout", 18)]
    assert all(torch.randint(1000, (3,), generator=run_module.generator(*o)).tolist() != first for o in others)
