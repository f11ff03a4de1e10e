"""A run's memory as it is foretold, against what the run takes; and what becomes of runs that do not fit."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from keel.config import Machine
from keel.engine import budget, memory, rehearsal
from keel.engine.forward import token_logps
from keel.errors import InputError
from keel.models import checkpoints
from keel.models.machine import multiplies_bf16
from keel.models.roles import Role, load_policy_role
from keel.records import Bundle, Completion

CPU = Machine(device="cpu", precision="fp32")

# --- against what runs take


MEASURE = """
import importlib, json, sys
from keel import config
method, kind, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
importlib.import_module("keel.methods." + method).train(getattr(config, kind)(**given))
# not ru_maxrss, which a process takes over from the one that started it
print(1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]))
"""
SHAPE = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 1408,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 16_000,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
}
"""Forty million weights."""
KINDS = {"sft": "SFTConfig", "dpo": "DPOConfig", "reward": "RewardConfig", "ppo": "PPOConfig"}
FAST = "bf16" if multiplies_bf16() else "fp32"


def text_of(length: int, draw: random.Random) -> str:
    return "".join(draw.choice("abcdefghij klmno") for _ in range(length))


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux tells it")
@pytest.mark.parametrize(
    ("method", "how", "precision", "length", "batch"),
    [
        ("sft", "full", "fp32", 100, 6),
        ("sft", "lora", "fp32", 300, 2),
        ("dpo", "full", FAST, 300, 2),
        ("dpo", "lora", "fp32", 100, 4),
        ("reward", "full", "fp32", 100, 4),
        ("reward", "lora", FAST, 300, 3),
        ("ppo", "full", "fp32", 100, 2),
        ("ppo", "lora", FAST, 200, 3),
    ],
)
def test_a_run_takes_what_was_foretold(make_model, make_reward, tmp_path, method, how, precision, length, batch):
    """Predicted and measured peak differ by 15 % at most; a process takes half a gigabyte before it has a model."""
    draw = random.Random(0)
    rows = [{key: text_of(length, draw) for key in ("prompt", "chosen", "rejected")} for _ in range(2 * batch)]
    given = {
        "model": str(make_model("llama", tokenizer="bytes", **SHAPE)),
        "out": str(tmp_path / "run"),
        "batch_size": batch,
        "steps": 2,
        "device": "cpu",
        "precision": precision,
        "lora": how == "lora",
    }
    file = tmp_path / "rows.jsonl"
    if method == "ppo":
        rows = [{"prompt": row["prompt"]} for row in rows]
        reward = str(make_reward("llama", tokenizer="bytes", **SHAPE))
        given |= {"reward": reward, "prompts": str(file), "rollout_size": batch, "max_new_tokens": length, "epochs": 1}
    else:
        given["data"] = str(file)
    if method == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, method, KINDS[method], json.dumps(given)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    predicted = float(re.search(r"about ([\d.]+) GB at its peak", done.stderr)[1]) * 1e9
    measured = int(done.stdout.splitlines()[-1])
    print(
        f"| {method} | {how} | {precision} | {batch} of {length} + {length} | {predicted / 1e9:.2f} | "
        f"{measured / 1e9:.2f} | {predicted / measured - 1:+.1%} |"
    )
    assert measured > 0.9e9
    assert abs(predicted - measured) <= 0.15 * measured


# --- the rehearsal


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_a_rehearsal_holds_what_the_step_holds(make_model, architecture, configure, lora, twice):
    """Operation by operation: the fake model is fused, packed and adapted as the loaded one is."""
    config = configure("sft", model=str(make_model(architecture)), lora=lora)
    bundles = [Bundle([5, 6, at], [Completion([8, 9, at, 1, 1]), Completion([9, 1, at])]) for at in range(3)]
    role = load_policy_role(config, config.model)
    ahead, _ = budget._roles(config).trained[0]
    if twice:
        for each in (role, ahead):
            memory.checkpoint_layers(each.model)
    with rehearsal.Live() as live:
        rehearsal.run_passes([(role, token_logps)], [bundles])
    foretold = rehearsal.rehearse([(ahead, token_logps)], bundles, 8192)
    assert foretold == pytest.approx(live.peak, rel=0.02)


def test_a_second_pass_adds_to_gradients(base):
    """What one pass leaves behind is there in the next: one gradient more, at least."""
    model = rehearsal.outline(str(base), CPU)
    rehearsal.fake([model])
    rehearsal.assume(model)
    role = Role("policy", model)
    bundles = [Bundle([5, at], [Completion([8] * 6)]) for at in range(2)]
    one, two = (rehearsal.rehearse([(role, token_logps)], some, 8) for some in (bundles[:1], bundles))
    assert two > one


def test_many_bundles_are_as_few(base):
    model = checkpoints.load_policy(str(base), CPU)
    bundles = [Bundle([5, at], [Completion([8] * 6), Completion([9] * 4)]) for at in range(12)]
    few = rehearsal._merged(model, bundles)
    assert len(few) == rehearsal.PARTS
    assert sum(len(b.prompt_ids) for b in few) == 12 * 2
    assert sum(len(b.completions[0]) for b in few) == 12 * 10


def test_shared_weights_stay_shared_and_count_once(make_model):
    model = rehearsal.outline(str(make_model("gemma")), CPU)
    rehearsal.fake([model])
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert rehearsal.bytes_of_model(model) == sum(
        4 * p.numel() for p in checkpoints.load_policy(str(make_model("gemma")), CPU).parameters()
    )


# --- the phases


BATCH = [Bundle([5, 6, 7], [Completion([8] * 40), Completion([9] * 30)]) for _ in range(4)]


def weights_of(config) -> tuple[float, float]:
    """Bytes of the base, and of what is trained."""
    cast = budget._roles(config)
    trained = sum(p.numel() * p.element_size() for role, _ in cast.trained for p in role.parameters().values())
    return cast.loads[0][0], trained


def phases(config, **options):
    return list(budget._phases(config, budget._roles(config), *options.values()))


def test_moments_are_those_of_what_is_trained(configure):
    """AdamW's two moments in fp32; the models mapped from their files; gradients and activations are the step's."""
    whole, low = configure("sft"), configure("sft", lora=True)
    base, trained = weights_of(whole)
    assert base == trained
    assert phases(whole, step=7.0, sampling=0.0, held_out=False)[2] == budget.Phase(2 * base + 7, base)
    _, adapter = weights_of(low)
    found = phases(low, step=7.0, sampling=0.0, held_out=False)[-1]
    assert found == budget.Phase(budget.ADAPTING + 3 * adapter + 7, base)


def test_models_of_each_method(configure, reward_folder):
    def count(method: str, **options):
        return len(budget._roles(configure(method, **options)).loads)

    assert [count(method) for method in ("sft", "reward", "dpo", "ppo")] == [1, 1, 2, 4]
    assert [count(method, lora=True) for method in ("sft", "reward", "dpo", "ppo")] == [1, 1, 1, 2]
    assert count("ppo", reward="rule:keel.world:gold") == 3
    assert len(budget._roles(configure("ppo", lora=True)).trained) == 2


def test_converted_weights_have_copies_and_a_file_beside_them(configure):
    config = configure("sft", precision="bf16")
    size, _ = weights_of(config)
    first, made, step, again = phases(config, step=0.0, sampling=0.0, held_out=False)
    assert first == budget.Phase(size, 0.0, 2 * size)
    assert made.heap > size + 2 * size
    assert step.heap > size + 2 * size + 4 * size
    assert again.passing == size


def test_held_out_data_load_the_start_again(configure):
    without, held = (phases(configure("sft"), step=0.0, sampling=0.0, held_out=so) for so in (False, True))
    assert len(held) == len(without) + 1
    assert held[-1].held == 2 * held[0].held
    assert len(phases(configure("sft", lora=True), step=0.0, sampling=0.0, held_out=True)) == 3


def test_freed_memory_stays_with_the_process():
    found = budget.Forecast.of([budget.Phase(1e9, 0.0), budget.Phase(0.1e9, 0.2e9, 0.3e9)], base=5.0)
    assert found.peak == pytest.approx(5 + budget.OTHER + budget.GAPS * 1e9 + 0.5e9)
    assert found.need == pytest.approx(budget.OTHER + budget.GAPS * 1e9 + 0.2e9)
    much = budget.Forecast.of([budget.Phase(9e9, 0.0), budget.Phase(0.0, 8e9)], base=0.0)
    assert much.need == pytest.approx(budget.OTHER + 8e9 + budget.RETAINED)


def test_sampling_counts(configure):
    config = configure("ppo")
    asked = []
    plain = budget.forecast(config, BATCH, False)
    found = budget.forecast(config, BATCH, False, lambda model: asked.append(model) or 1e9)
    assert asked
    assert found.need > plain.need + 0.9e9


def test_the_largest_batch_counts():
    steps = [[Bundle([1] * n, [Completion([2] * n)])] for n in (3, 9, 4)]
    assert budget.largest_batch(iter(steps)) is steps[1]


# --- what does not fit


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def load(*_, **__):
        raise AssertionError("a weight was loaded")

    monkeypatch.setattr(checkpoints, "_load", load)


@pytest.fixture
def with_room(configure, monkeypatch):
    """`with_room(method, share)`: plan with so much free memory between what the run takes lightly and plainly."""

    def make(share: float, batch=None, **options):
        config = configure("sft", **options)
        many = batch or [Bundle([5, at], [Completion([8] * 100)]) for at in range(400)]
        plain, light = (budget.forecast(config, many, False, twice=twice).need for twice in (False, True))
        assert light < plain
        monkeypatch.setattr(memory, "free_bytes", lambda device: light + share * (plain - light))
        return budget.plan(config, [many], False)

    return make


@pytest.mark.usefixtures("nothing_is_loaded")
def test_what_fits_is_said_before_it_is_loaded(with_room, capsys):
    assert with_room(1.01) == budget.Plan()
    assert re.search(r"takes about \d\.\d\d GB at its peak.* \d\.\d\d GB are free\n", capsys.readouterr().err)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_layers_are_computed_twice_if_that_makes_it_fit(with_room, capsys):
    assert with_room(0.5) == budget.Plan(twice=True)
    assert "computed again" in capsys.readouterr().err


@pytest.mark.usefixtures("nothing_is_loaded")
def test_nearly_enough_is_tried(with_room, capsys):
    assert with_room(-0.01) == budget.Plan(twice=True)
    assert "may just not be enough" in capsys.readouterr().err


@pytest.mark.usefixtures("nothing_is_loaded")
def test_what_does_not_fit_is_refused_with_options_that_do(configure, monkeypatch):
    """Each with its number, in order; a run under the option then fits."""
    many = [Bundle([5, at], [Completion([8] * 100)]) for at in range(2000)]
    config = configure("sft", micro_tokens=100_000)
    need = budget.forecast(config, many, False, twice=True).need
    monkeypatch.setattr(memory, "free_bytes", lambda device: need / 1.2)
    with pytest.raises(InputError, match="would fit with") as refusal:
        budget.plan(config, [many], False)
    found = re.findall(r"(--[^;:]+): (\d+\.\d\d) GB", str(refusal.value))
    assert [name for name, _ in found][:2] == ["--micro-tokens 102", "--precision bf16"]
    assert all(float(number) * 1e9 <= need / 1.2 + 0.005e9 for _, number in found)
    assert budget.plan(config.model_copy(update={"micro_tokens": 102}), [many], False).known
    assert budget.plan(config.model_copy(update={"precision": "bf16"}), [many], False).known


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
@pytest.mark.usefixtures("nothing_is_loaded")
def test_every_training_command_refuses_before_it_loads(train, monkeypatch, method):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000.0)
    with pytest.raises(InputError, match="use a smaller model or a larger machine"):
        train(method)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_the_command_refuses_with_code_2(monkeypatch, capsys, base, pairs_file, tmp_path):
    from keel import cli

    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000.0)
    given = ["--model", str(base), "--data", str(pairs_file), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main(["dpo", *given]) == 2
    assert "GB more than now, even with layers computed twice" in capsys.readouterr().err


@pytest.mark.usefixtures("nothing_is_loaded")
def test_options_that_do_not_apply_are_not_named(configure, monkeypatch):
    """One bundle cannot be cut, and a run with adapters in bf16 has nothing left to change."""
    config = configure("sft", lora=True, precision="bf16")
    assert list(budget._options(config, BATCH[:1], budget.forecast)) == []
    monkeypatch.setattr(budget, "forecast", None)
    broken = configure("sft", lora=False, precision="bf16")
    assert list(budget._options(broken, BATCH[:1], lambda *_, **__: 1 / 0)) == []


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
def test_a_plan_is_kept(train, monkeypatch, method):
    """The models that are trained compute their layers twice, and nothing is reckoned a second time."""
    done = []
    monkeypatch.setattr(budget, "plan", lambda *_, **__: budget.Plan(twice=True))
    monkeypatch.setattr(memory, "checkpoint_layers", lambda model: done.append(model))
    monkeypatch.setattr(memory, "require", lambda *_, **__: pytest.fail("reckoned twice"))
    train(method, steps=1)
    assert len(done) == (2 if method == "ppo" else 1)


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
def test_a_model_that_cannot_be_rehearsed_is_reckoned_once_it_is_loaded(train, monkeypatch, capsys, method):
    asked = []

    def fail(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(budget, "_at_most", lambda *_: None)
    monkeypatch.setattr(rehearsal, "rehearse", fail)
    monkeypatch.setattr(memory, "require", lambda *arguments: asked.append(arguments))
    train(method, steps=1)
    assert len(asked) == 1
    assert "not foretold for this kind of model (NotImplementedError)" in capsys.readouterr().err


def test_code_of_folders_is_not_rehearsed(base):
    """It may keep tensors for later calls (`functools.cache`), and these would be fake."""
    model = rehearsal.outline(str(base), CPU)
    model.__class__ = type("Own", (type(model),), {"__module__": "transformers_modules.own"})
    with pytest.raises(NotImplementedError, match="Own"):
        rehearsal.fake([model])


def test_positions_are_known_before_loading(make_model, configure):
    folder = make_model("gpt2", n_positions=32)
    assert budget.limit_ahead(str(folder), configure("sft")) == 32


def test_the_config_names_the_files_precision(base):
    model = rehearsal.outline(str(base), CPU)
    assert rehearsal.stored_bytes(str(base), model) == 0
    half = model.to(torch.bfloat16)
    assert rehearsal.stored_bytes(str(base), half) == 2 * rehearsal.bytes_of_model(half)
    assert Path(base, "config.json").exists()


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
@pytest.mark.parametrize("lora", [False, True])
def test_a_small_run_is_bounded_and_not_rehearsed(configure, monkeypatch, capsys, method, lora):
    """The bound lies above the forecast."""
    config = configure(method, lora=lora)
    bound, found = budget._at_most(config, BATCH), budget.forecast(config, BATCH, True)
    assert found.peak < bound < found.peak + 1e9
    monkeypatch.setattr(budget, "forecast", None)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 17 * bound)
    assert budget.plan(config, [BATCH], True) == budget.Plan()
    assert "memory: the run takes less than" in capsys.readouterr().err
    monkeypatch.setattr(budget, "_at_most", lambda *_: None)
    monkeypatch.setattr(budget, "forecast", lambda *_, **__: found)
    budget.plan(config, [BATCH], True)
    assert "memory: the run takes about" in capsys.readouterr().err
