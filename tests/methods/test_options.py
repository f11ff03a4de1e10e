"""Every option of every training command does something: the result changes, and where it can be said, how."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from keel.engine import budget
from keel.engine.batches import Batches
from keel.errors import InputError
from keel.models import checkpoints
from keel.records import Bundle, Completion

METHODS = ("sft", "reward", "dpo", "ppo")
CUT = 18  # tokens: above every prompt, below the longer answers


def assert_other(a, b):
    """Other weights by more than rounding."""
    assert a.keys() == b.keys()
    assert max(float((a[k] - b[k]).abs().max()) for k in a) > 1e-6


# --- options shared by all training commands

SHARED = [
    {"seed": 1},
    {"learning_rate": 1e-3},
    {"batch_size": 3},
    {"steps": 3},
    {"schedule": "constant"},
    {"schedule": "cosine"},
    {"warmup": 1.0},
    {"weight_decay": 0.5},
    {"max_grad_norm": 1e-6},
    {"limit": 5},
    {"holdout": 0.4},
]


@pytest.mark.parametrize("method", METHODS)
def test_shared_options_change_the_weights(train, weights, method):
    expected = weights(train(method).final)
    for options in SHARED:
        assert_other(weights(train(method, **options).final), expected)


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_a_length_limit_changes_the_weights(train, weights, method):
    result = train(method, max_length=CUT)
    assert_other(weights(result.final), weights(train(method).final))
    (count, rows), *_ = result.summary["rows"]["notes"].values()
    assert count >= 1
    assert len(rows) == min(count, 10)


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_epochs_and_batch_size_make_the_steps(train, metrics_of, method):
    for batch_size, epochs, expected in ((16, 1, 1), (5, 2, 8), (4, 3, 12)):
        result = train(method, steps=None, batch_size=batch_size, epochs=epochs)
        assert len(metrics_of(result.folder)) == result.summary["steps"] == expected
        assert result.summary["examples"] == 16 * epochs


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_every_epoch_visits_every_example_once(train, metrics_of, monkeypatch, method):
    """In an order of its own; the last batch may be smaller."""
    real, seen = Batches.of, []

    def spy(self, step):
        batch = real(self, step)
        seen.append([b if isinstance(b, int) else b.origin.row - 1 for b in batch])
        return batch

    monkeypatch.setattr(Batches, "of", spy)
    monkeypatch.setattr(budget, "plan", lambda *_: budget.Plan())  # it looks at all batches, too
    train(method, steps=None, batch_size=6, epochs=2)
    assert [len(batch) for batch in seen] == [6, 6, 4] * 2
    first, second = ([i for batch in part for i in batch] for part in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second
    assert first != sorted(first)


def test_a_smaller_gradient_norm_moves_less_under_any_rate(train, weights, metrics_of):
    """Adam forgives the scale, its epsilon does not: far below it nearly nothing moves."""
    start = train("sft", learning_rate=1e-12)
    gentle = train("sft", max_grad_norm=1e-9)
    free = train("sft", max_grad_norm=1e9)
    a, b, c = (weights(r.final) for r in (start, gentle, free))
    near = sum(float((b[k] - a[k]).norm() ** 2) for k in a) ** 0.5
    far = sum(float((c[k] - a[k]).norm() ** 2) for k in a) ** 0.5
    assert near < 0.2 * far
    assert metrics_of(gentle.folder)[0]["grad_norm"] == pytest.approx(metrics_of(free.folder)[0]["grad_norm"])


def test_weight_decay_shrinks(train, weights):
    decayed, plain = (weights(train("sft", weight_decay=w).final) for w in (20.0, 0.0))
    assert sum(float(v.norm()) for v in decayed.values()) < 0.9 * sum(float(v.norm()) for v in plain.values())


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_options(train, metrics_of, method, write_rows, tmp_path, pair_table):
    held = [{**row, "prompt": row["prompt"].replace("what", "where")} for row in pair_table[:5]]
    if method == "sft":
        held = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in held]
    file = write_rows(tmp_path / "held.jsonl", held)
    result = train(method, steps=5, eval_data=file, eval_every=2)
    lines = metrics_of(result.folder)
    key = "eval/objective" if method == "ppo" else "eval/loss"
    assert [key in line for line in lines] == [False, True, False, True, True]
    (n,) = {rate["n"] for rate in result.summary["eval"].values() if isinstance(rate, dict)}
    assert n == 5
    assert result.summary["best"]["step"] in (2, 4, 5)
    assert "eval" in result.summary
    assert train(method, steps=5).summary["eval"] == {}


@pytest.mark.parametrize("method", METHODS)
def test_held_out_prompts_are_not_trained_on(train, configure, method):
    """`--eval-data` that repeats a training prompt is refused."""
    source = configure(method)
    with pytest.raises(InputError, match="also stand in"):
        train(method, eval_data=source.prompts if method == "ppo" else source.data)


@pytest.mark.parametrize("method", METHODS)
def test_held_out_prompts_in_other_bytes_are_not_trained_on(train, configure, tmp_path, write_rows, method):
    source = Path(configure(method).prompts if method == "ppo" else configure(method).data)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for row in rows[:2]:
        row["prompt"] = row["prompt"].replace(" ", "\u00a0") + "\u200b\n"
    for row in rows[2:]:
        row["prompt"] = f"and now: {row['prompt']}"
    held = write_rows(tmp_path / "held.jsonl", rows)
    with pytest.raises(
        InputError, match=r"2 of its prompts \(rows \[1, 2\]\) also stand in .*2 of them written otherwise"
    ):
        train(method, eval_data=str(held))


@pytest.mark.parametrize("method", METHODS)
def test_a_refusal_counts_the_rows_of_both_sides_of_a_holdout(train, configure, tmp_path, write_rows, method):
    """What is held out is no more tried alone than what is trained on."""
    source = Path(configure(method).prompts if method == "ppo" else configure(method).data)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    long = " ".join(["what can teddy do"] * 60)  # the model has 128 positions
    for bad in (len(rows) // 2, len(rows)):
        changed = [row | {"prompt": f"{long} {i}"} if i < bad else row for i, row in enumerate(rows)]
        file = str(write_rows(tmp_path / f"{bad}.jsonl", changed))
        with pytest.raises(InputError) as caught:
            train(method, holdout=0.25, **{"prompts" if method == "ppo" else "data": file})
        said = f"none of {bad} rows can be used" if bad == len(rows) else f"{bad} of {len(rows)} rows are unusable"
        assert said in str(caught.value)
        assert f"({bad} '" in str(caught.value)
        assert ("raise --max-bad-share" in str(caught.value)) is (bad < len(rows))


def test_a_side_of_which_nothing_is_left_is_refused(train, configure, tmp_path, write_rows):
    rows = [json.loads(line) for line in Path(configure("dpo").data).read_text().splitlines()]
    long = " ".join(["what can teddy do"] * 60)
    for seed in range(8):  # whichever side the draw puts it on, alone
        file = str(write_rows(tmp_path / f"{seed}.jsonl", [rows[0] | {"prompt": long}, rows[1]]))
        with pytest.raises(InputError, match=r"no row (held out|to train on) can be used \(1 '"):
            train("dpo", holdout=0.5, seed=seed, data=file, max_bad_share=0.9)


def test_save_every(train, monkeypatch):
    from keel.engine.run import Run

    saved = []
    real = Run.save_checkpoint
    monkeypatch.setattr(Run, "save_checkpoint", lambda self: saved.append(self.step) or real(self))
    train("sft", steps=7, save_every=3)
    assert saved == [3, 6]


@pytest.mark.parametrize("method", METHODS)
def test_bf16_trains_and_is_kept(train, weights, metrics_of, method):
    """The identities hold within bf16's rounding, and the checkpoint is bf16."""
    result = train(method, precision="bf16", holdout=0.25)
    assert {v.dtype for v in weights(result.final).values()} == {torch.bfloat16}
    assert all(math.isfinite(v) for line in metrics_of(result.folder) for v in line.values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("micro_tokens", [1, 8192])
def test_bf16_starts_whatever_the_cut(train, method, micro_tokens):
    """Passes of other shapes round otherwise: that is no reason to refuse."""
    assert train(method, precision="bf16", micro_tokens=micro_tokens, steps=2, holdout=0.25).summary["steps"] == 2


def test_a_device_that_is_not_there_is_refused(train):
    with pytest.raises(InputError, match="--device"):
        train("sft", device="cuda:77")


# --- SFT, reward, DPO


def test_sft_from_plain_text(train, write_rows, tmp_path, weights):
    file = write_rows(tmp_path / "texts.jsonl", [{"text": f"let teddy nap {i}."} for i in range(8)])
    result = train("sft", data=str(file), format="text")
    assert result.summary["rows"]["used"] == 8
    assert_other(weights(result.final), weights(train("sft").final))


def test_reward_goes_on_from_a_reward_folder(train, metrics_of, weights):
    first = train("reward")
    second = train("reward", model=str(first.folder), seed=1)
    assert metrics_of(second.folder)[0]["loss"] != pytest.approx(math.log(2), abs=1e-4)
    assert_other(weights(second.final), weights(first.final))


def test_margins_change_the_reward_model(train, weights, tmp_path, write_rows, pair_table):
    file = write_rows(tmp_path / "graded.jsonl", [r | {"margin": i / 4} for i, r in enumerate(pair_table)])
    assert_other(weights(train("reward", data=str(file)).final), weights(train("reward").final))


DPO = [
    {"beta": 0.5},
    {"loss": "ipo"},
    {"loss": "ipo", "ipo_average": True},
    {"loss": "hinge"},
    {"label_smoothing": 0.2},
    {"loss": "robust", "label_smoothing": 0.2},
    {"length_alpha": 0.5},
    {"loss": "hinge", "length_alpha": 0.5},
]


def test_dpo_options_change_the_weights(train, weights, make_model):
    expected = weights(train("dpo").final)
    seen = [expected]
    for options in [*DPO, {"reference": str(make_model("llama", seed=1))}]:
        got = weights(train("dpo", **options).final)
        for other in seen:
            assert_other(got, other)
        seen.append(got)


@pytest.mark.parametrize(("average", "expected"), [(False, [(4 - 2) ** 2]), (True, [(3 / 2 + 1 / 4 - 2) ** 2])])
def test_ipo_is_of_sums_or_of_averages_over_each_answer_s_own_tokens(configure, average, expected):
    """Log-ratios 3 over two tokens and -1 over four; 1 / (2 beta) is 2."""
    from keel.methods.dpo import pair_loss

    pair = Bundle([1], [Completion([4, 2]), Completion([5, 6, 7, 2])])
    config = configure("dpo", loss="ipo", beta=0.25, ipo_average=average)
    loss, _ = pair_loss(config, torch.tensor([-7.0, -9.0]), torch.tensor([-10.0, -8.0]), [pair])
    assert loss.tolist() == pytest.approx(expected)


def test_reference_log_probabilities_are_kept_in_a_file_until_they_are_others(
    train, monkeypatch, make_model, metrics_of, tmp_path
):
    """A second run on the same pairs and reference computes none; another reference, or other data, all anew."""
    from keel.methods import dpo

    passes = []
    real = dpo.in_batches
    monkeypatch.setattr(
        dpo, "in_batches", lambda f, m, bundles, t: passes.append(len(bundles)) or real(f, m, bundles, t)
    )
    file = tmp_path / "kept" / "reference.safetensors"
    options = {"reference_cache": file, "steps": 2}

    def computed(**more):
        passes.clear()
        result = train("dpo", **options, **more)
        return len(passes), [row["loss"] for row in metrics_of(result.folder)]

    first, expected = computed()
    again, losses = computed()
    assert (first, again) == (1, 0)
    assert losses == expected
    other = str(make_model("llama", seed=9))
    assert computed(reference=other)[0] == 1
    assert computed(reference=other)[0] == 0
    assert computed(reference=other, limit=10)[0] == 1
    assert computed(reference=other, limit=10, precision="bf16")[0] == 1
    file.write_bytes(b"no such thing")
    with pytest.raises(InputError, match="remove it"):
        computed()


def test_a_run_keeps_its_reference_log_probabilities_for_resuming(train):
    assert (train("dpo", steps=1).folder / "reference-logps.safetensors").exists()
    assert not (train("dpo", steps=1, reference_logps="live").folder / "reference-logps.safetensors").exists()


def test_live_and_cached_references_are_one(train, weights, metrics_of, make_model):
    """The same numbers at other times; they differ by the rounding of other passes at most."""
    options = {"reference": str(make_model("llama", seed=1)), "learning_rate": 1e-4, "holdout": 0.25}
    cached, live = (train("dpo", reference_logps=kind, **options) for kind in ("cached", "live"))
    for a, b in zip(metrics_of(cached.folder), metrics_of(live.folder), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    assert cached.summary["eval"]["loss"] == pytest.approx(live.summary["eval"]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"beta": -1.0},
        {"label_smoothing": 0.5},
        {"label_smoothing": 0.1, "loss": "ipo"},
        {"label_smoothing": 0.1, "loss": "hinge"},
        {"loss": "robust"},
        {"loss": "ipo", "length_alpha": 0.1},
        {"ipo_average": True},
        {"ipo_average": True, "loss": "hinge"},
        {"loss": "nonsense"},
        {"learning_rate": 0.0},
        {"batch_size": 0},
        {"holdout": 1.0},
        {"warmup": 1.5},
        {"surprise": 1},
    ],
)
def test_impossible_dpo_settings_are_refused(configure, options):
    with pytest.raises(ValueError, match=next(iter(options)) + "|loss"):
        configure("dpo", **options)


# --- PPO


PPO = [
    {"clip": 1e-4},
    {"value_clip": 1e-4},
    {"gamma": 0.5},
    {"lam": 0.0},
    {"beta": 1.0},
    {"beta": 0.0},
    {"target_kl": 1e-3, "kl_horizon": 20},
    {"target_kl": 1e-3, "kl_horizon": 60},
    {"truncation": "bootstrap"},
    {"truncation": "score"},
    {"missing_eos_score": -5.0},
    {"critic_warmup": 2},
    {"temperature": 0.5},
    {"value_learning_rate": 1e-5},
    {"epochs": 3},
    {"samples_per_prompt": 3},
    {"rollout_size": 3},
    {"max_new_tokens": 5},
]


def test_ppo_options_change_the_weights(train, weights):
    expected = weights(train("ppo").final)
    seen = [expected]
    for options in PPO:
        got = weights(train("ppo", **options).final)
        for other in seen:
            assert_other(got, other)
        seen.append(got)


def test_a_rule_is_a_reward(train, metrics_of, write_rule, weights):
    result = train("ppo", reward=write_rule("words: [1, 2]"))
    assert_other(weights(result.final), weights(train("ppo").final))
    scores = [line["objective/scores"] for line in metrics_of(result.folder)]
    assert all(0 <= s <= 1 for s in scores)


@pytest.fixture
def write_rule(tmp_path):
    def write(feature):
        file = tmp_path / "rule.yaml"
        file.write_text(f"rules:\n  - {{{feature}, weight: 1.0}}\n")
        return f"rule:{file}"

    return write


def test_critic_warmup_trains_the_value_model_alone(train, configure, weights, base, metrics_of):
    result = train("ppo", critic_warmup=4)
    before, after = weights(base), weights(result.final)
    assert all(torch.equal(before[k], after[k]) for k in before)
    lines = metrics_of(result.folder)
    assert all("grad_norm/value" in line and "grad_norm" not in line for line in lines)
    assert lines[-1]["objective/kl"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("target", "rises"), [(1e-6, True), (1e6, False)])
def test_beta_follows_the_kl(train, metrics_of, target, rises):
    """KL above target: beta rises by at most 20 % n / horizon a rollout; below: it falls."""
    lines = metrics_of(train("ppo", steps=4, target_kl=target, kl_horizon=16, beta=0.1, critic_warmup=0).folder)
    betas = [line["objective/beta"] for line in lines]
    kls = [line["objective/kl"] for line in lines]
    assert betas[0] == 0.1
    for before, after, kl in zip(betas, betas[1:], kls, strict=False):
        error = min(max(kl / target - 1, -0.2), 0.2)
        assert after == pytest.approx(before * (1 + error * 8 / 16))
    assert not rises or betas[-1] > betas[1] or min(kls) < 0


def test_keep_samples(train):
    for keep in (0, 1, 4):
        result = train("ppo", steps=2, keep_samples=keep)
        file = result.folder / "samples.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        assert [r["step"] for r in rows] == [1] * (2 * keep) + [2] * (2 * keep)
        assert all({"prompt", "completion", "truncated", "score", "kl"} <= r.keys() for r in rows)


def test_max_rows_bounds_the_sampler(train, monkeypatch):
    from keel.methods import ppo

    seen = []
    real = ppo.sample
    monkeypatch.setattr(ppo, "sample", lambda *a, **k: seen.append(a[0].options.max_rows) or real(*a, **k))
    train("ppo", max_rows=3, steps=1)
    assert seen == [3]


@pytest.mark.parametrize(
    "options",
    [
        {"kl_horizon": 1},
        {"steps": None},
        {"target_kl": 1.0, "beta": 0.0},
        {"temperature": 0.0},
        {"gamma": 0.0},
        {"lam": 1.1},
        {"clip": 0.0},
        {"beta": -0.1},
    ],
)
def test_impossible_ppo_settings_are_refused(configure, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        configure("ppo", **options)


def test_a_prompt_that_leaves_no_room_for_an_answer_is_dropped(train, make_model, make_reward, tmp_path, write_rows):
    """Prompt and full-length answer must fit the positions together."""
    small = {"max_position_embeddings": 24}
    model, scorer = make_model("llama", **small), make_reward("llama", **small)
    text = checkpoints.load_text(str(model))
    prompts = ["ok" * i + "." for i in range(1, 12)]
    fits = [len(text.prompt_ids(p)) + 8 <= 24 for p in prompts]
    assert {True, False} == set(fits)
    file = write_rows(tmp_path / "prompts.jsonl", [{"prompt": p} for p in prompts])
    result = train("ppo", model=str(model), reward=str(scorer), prompts=str(file), max_bad_share=0.9)
    ((count, rows),) = result.summary["rows"]["dropped"].values()
    assert rows == [i + 1 for i, fit in enumerate(fits) if not fit]
    assert count == fits.count(False)


def test_examples_are_the_completions_that_were_sampled(train, monkeypatch):
    """Eight prompts in rollouts of five: the second rollout of an epoch has three."""
    from keel.methods import ppo

    sampled = []
    real = ppo.sample
    monkeypatch.setattr(ppo, "sample", lambda *a, **k: sampled.append(real(*a, **k)) or sampled[-1])
    result = train("ppo", rollout_size=5, steps=4)
    assert result.summary["examples"] == sum(len(b.completions) for bundles in sampled for b in bundles)
