"""What must hold for every method: step-0 identities, accumulated = batch, reload = in memory, same seed = same run,
and nothing trained on a token that was not sampled (or, in supervised methods, not given)."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from keel.engine import forward
from keel.engine.adamw import Optimizer
from keel.errors import RunFailed
from keel.methods import ppo
from keel.models import checkpoints

METHODS = ("sft", "reward", "dpo", "ppo")
LN2 = math.log(2)


# --- oracles: plain Hugging Face, one sequence at a time


def ids_of(tokenizer, prompt, completion):
    """(BOS and prompt, completion and EOS), tokenised apart."""
    before = tokenizer(prompt).input_ids
    after = tokenizer(completion, add_special_tokens=False).input_ids
    return before, [*after, tokenizer.eos_token_id]


def logps(model, before, after, temperature=1.0):
    logits = model(input_ids=torch.tensor([before + after]), use_cache=False).logits[0] / temperature
    return torch.log_softmax(logits[len(before) - 1 : -1], -1)[torch.arange(len(after)), torch.tensor(after)]


def read(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def policy_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def capture_gradients(monkeypatch):
    """Gradients at each optimiser step, by parameter order, before the step clears them."""
    seen: list[list[torch.Tensor]] = []
    real = Optimizer.step

    def step(self, rate):
        seen.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self._parameters])
        real(self, rate)

    monkeypatch.setattr(Optimizer, "step", step)
    return seen


def assert_close_gradients(ours, theirs, tolerance=1e-5):
    scale = max(float(g.norm()) for g in theirs)
    assert scale > 0
    for got, expected in zip(ours, theirs, strict=True):
        assert float((got - expected).norm()) <= tolerance * max(float(expected.norm()), 1e-3 * scale)


# --- step 0


def test_sft_starts_at_the_model_s_own_loss(train, metrics_of, base, demonstrations_file):
    model, tokenizer = policy_of(base)
    flat = torch.cat(
        [logps(model, *ids_of(tokenizer, r["prompt"], r["completion"])) for r in read(demonstrations_file)]
    )
    first = metrics_of(train("sft", batch_size=16, steps=1).folder)[0]
    assert first["loss"] == pytest.approx(float(-flat.mean().detach()), abs=1e-5)
    assert first["num_tokens"] == len(flat)


def test_reward_starts_at_ln_2(train, metrics_of):
    first = metrics_of(train("reward", steps=1).folder)[0]
    assert first["loss"] == pytest.approx(LN2, abs=1e-6)
    assert first["accuracy"] == 0.5
    assert first["margin"] == first["mean_reward"] == 0


def test_reward_with_margins_starts_at_its_closed_form(train, metrics_of, tmp_path, write_rows, pair_table):
    margins = [0.0, 0.5, 1.0, 3.0] * 4
    file = write_rows(tmp_path / "graded.jsonl", [r | {"margin": m} for r, m in zip(pair_table, margins, strict=True)])
    first = metrics_of(train("reward", steps=1, batch_size=16, data=str(file)).folder)[0]
    assert first["loss"] == pytest.approx(sum(math.log1p(math.exp(m)) for m in margins) / 16, abs=1e-6)


DPO_STARTS = [
    ({}, LN2),
    ({"label_smoothing": 0.2}, LN2),
    ({"loss": "robust", "label_smoothing": 0.2}, LN2),
    ({"loss": "hinge"}, 1.0),
    ({"loss": "ipo", "beta": 0.1}, 25.0),
    ({"loss": "ipo", "beta": 0.5}, 1.0),
]


@pytest.mark.parametrize(("options", "expected"), DPO_STARTS)
def test_dpo_starts_at_its_closed_form(train, metrics_of, options, expected):
    first = metrics_of(train("dpo", steps=1, **options).folder)[0]
    assert first["loss"] == pytest.approx(expected, rel=1e-4)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)


def test_dpo_accuracy_starts_at_one_half(train, metrics_of):
    """Ties count one half. They are exact where reference and policy see the same passes."""
    first = metrics_of(train("dpo", steps=1, batch_size=16, reference_logps="live").folder)[0]
    assert first["rewards/accuracies"] == 0.5


def test_dpo_from_another_reference_starts_elsewhere(train, metrics_of, make_model, base, pairs_file):
    """No identity holds there, and none is demanded; the loss is that of the two models' log-probabilities."""
    other = make_model("llama", seed=1)
    first = metrics_of(train("dpo", steps=1, batch_size=16, reference=str(other), beta=0.3).folder)[0]
    losses = []
    (policy, tokenizer), (reference, _) = policy_of(base), policy_of(other)
    with torch.no_grad():
        for row in read(pairs_file):
            h = 0.0
            for side, sign in (("chosen", 1), ("rejected", -1)):
                ids = ids_of(tokenizer, row["prompt"], row[side])
                h += sign * float((logps(policy, *ids) - logps(reference, *ids)).sum())
            losses.append(math.log1p(math.exp(-0.3 * h)))
    assert first["loss"] == pytest.approx(sum(losses) / 16, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ppo_starts_at_kl_0_and_ratio_1(train, metrics_of, temperature):
    """One minibatch per rollout: in every rollout the ratio is 1, nothing is clipped and nothing has moved."""
    lines = metrics_of(train("ppo", epochs=1, batch_size=8, temperature=temperature).folder)
    assert lines[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert lines[0]["objective/non_score_reward"] == pytest.approx(0, abs=1e-5)
    assert abs(lines[-1]["objective/kl"]) > 1e-3
    for line in lines:
        assert line["val/ratio"] == pytest.approx(1, abs=1e-5)
        assert line["policy/clipfrac_avg"] == line["val/clipfrac_avg"] == 0
        assert line["policy/approxkl_avg"] == pytest.approx(0, abs=1e-6)
        assert line["sampler/logp_gap"] < 1e-4


# --- and what breaks them is noticed


def patch_loader(monkeypatch, name, change, nth):
    """`change` the nth model (from 1) that `checkpoints.<name>` returns."""
    real, count = getattr(checkpoints, name), iter(range(1, 1000))

    def load(*args, **kwargs):
        model = real(*args, **kwargs)
        if next(count) == nth:
            change(model)
        return model

    monkeypatch.setattr(checkpoints, name, load)


def perturb(model):
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.05)


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_a_changed_reference_is_noticed(train, monkeypatch, method):
    patch_loader(monkeypatch, "load_policy", perturb, 2)
    if method == "dpo":  # it may differ on purpose there, which the hashes tell
        monkeypatch.setattr(checkpoints, "weights_hash", lambda model: "same")
    with pytest.raises(RunFailed, match="step 0"):
        train(method)


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_dropout_left_on_is_noticed(train, make_model, make_reward, monkeypatch, method):
    options = {"model": str(make_model("gpt2"))} | ({"reward": str(make_reward("gpt2"))} if method == "ppo" else {})
    patch_loader(monkeypatch, "load_policy", lambda model: model.train(), 1)
    with pytest.raises(RunFailed, match="step 0"):
        train(method, **options)


@pytest.mark.parametrize("method", METHODS)
def test_dropout_is_off(train, make_model, make_reward, monkeypatch, method):
    """GPT-2's default dropout of 0.1: no module is in training mode in any pass, of any role."""
    modes: set[bool] = set()
    real = torch.nn.Dropout.forward
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: modes.add(self.training) or real(self, x))
    model = str(make_model("gpt2"))
    train(method, model=model, steps=2, **({"reward": str(make_reward("gpt2"))} if method == "ppo" else {}))
    assert modes == {False}


def test_a_reward_head_that_does_not_start_at_zero_is_noticed(train, monkeypatch):
    patch_loader(monkeypatch, "new_scalar_model", lambda m: torch.nn.init.normal_(m.score.weight), 1)
    with pytest.raises(RunFailed, match="step 0"):
        train("reward")


def test_another_temperature_in_the_update_is_noticed(train, monkeypatch):
    real = ppo.token_scores
    monkeypatch.setattr(ppo, "token_scores", lambda model, bundles, temperature: real(model, bundles, 1.0))
    with pytest.raises(RunFailed, match="ratio"):
        train("ppo", temperature=0.7)


def test_another_temperature_in_the_sampler_shows(train, metrics_of, monkeypatch):
    real = ppo.sample
    monkeypatch.setattr(
        ppo,
        "sample",
        lambda sampler, *args: real(
            replace(sampler, options=replace(sampler.options, temperature=2 * sampler.options.temperature)), *args
        ),
    )
    assert metrics_of(train("ppo", steps=1).folder)[0]["sampler/logp_gap"] > 0.01


def test_a_shifted_old_log_probability_is_noticed(train, monkeypatch):
    real = ppo.roll_out

    def shifted(*args):
        rollout = real(*args)
        rollout.old_logps = [torch.roll(t, 1) for t in rollout.old_logps]
        return rollout

    monkeypatch.setattr(ppo, "roll_out", shifted)
    with pytest.raises(RunFailed, match="ratio"):
        train("ppo")


# --- accumulated = batch


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_change_nothing(train, monkeypatch, metrics_of, method):
    """Gradients of the first step (of each role), then the metrics and weights of a run with gentle steps."""
    captured, lines, finals = [], [], []
    for micro_tokens in (1, 60, 8192):
        with monkeypatch.context() as patch:
            seen = capture_gradients(patch)
            result = train(method, micro_tokens=micro_tokens, max_grad_norm=1e9, learning_rate=1e-6)
            captured.append(seen[: 2 if method == "ppo" else 1])
        lines.append(metrics_of(result.folder))
        lines[-1][0].pop("rewards/accuracies", None)  # every margin is 0 then, and the sign of rounding is no figure
        finals.append(result.summary["examples"])
    for other in (0, 1):
        for ours, theirs in zip(captured[other], captured[2], strict=True):
            assert_close_gradients(ours, theirs)
        for a, b in zip(lines[other], lines[2], strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    assert len(set(finals)) == 1


def hand_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def test_sft_gradient_by_hand(train, monkeypatch, base, demonstrations_file):
    """The mean over all tokens of the batch, however the batch is cut."""
    seen = capture_gradients(monkeypatch)
    train("sft", steps=1, batch_size=16, micro_tokens=50, max_grad_norm=1e9)
    model, tokenizer = policy_of(base)
    flat = torch.cat(
        [logps(model, *ids_of(tokenizer, r["prompt"], r["completion"])) for r in read(demonstrations_file)]
    )
    assert_close_gradients(seen[0], hand_gradients(model, -flat.mean()))


@pytest.mark.parametrize(
    ("options", "slope"),
    [
        ({"beta": 0.3}, -0.15),
        ({"beta": 0.3, "label_smoothing": 0.2}, -0.15 * 0.6),
        ({"beta": 0.3, "loss": "hinge"}, -0.3),
        ({"beta": 0.5, "loss": "ipo"}, -2.0),
        ({"beta": 0.3, "loss": "robust", "label_smoothing": 0.2}, -0.15 / 0.6),
    ],
)
def test_dpo_gradient_by_hand(train, monkeypatch, base, pairs_file, options, slope):
    """At zero margin the gradient is the slope of the loss there, times the gradient of the log-probability gap.

    sigmoid: -beta/2; cDPO: (1 - 2e) of it; hinge: -beta; IPO: -2 / 2tau; rDPO: -beta/2 / (1 - 2e).
    """
    seen = capture_gradients(monkeypatch)
    train("dpo", steps=1, batch_size=16, micro_tokens=50, max_grad_norm=1e9, **options)
    model, tokenizer = policy_of(base)
    gap = sum(
        logps(model, *ids_of(tokenizer, r["prompt"], r["chosen"])).sum()
        - logps(model, *ids_of(tokenizer, r["prompt"], r["rejected"])).sum()
        for r in read(pairs_file)
    )
    assert_close_gradients(seen[0], hand_gradients(model, slope * gap / 16), 1e-4)


def test_reward_gradient_by_hand(train, monkeypatch, base, pairs_file):
    """A zero head gets -1/2 of the mean gap between last hidden states; the backbone gets nothing yet."""
    seen = capture_gradients(monkeypatch)
    train("reward", steps=1, batch_size=16, micro_tokens=50, max_grad_norm=1e9)
    model, tokenizer = policy_of(base)
    with torch.no_grad():
        gap = torch.zeros(32)
        for row in read(pairs_file):
            for side, sign in (("chosen", 1), ("rejected", -1)):
                before, after = ids_of(tokenizer, row["prompt"], row[side])
                gap += sign * model.model(input_ids=torch.tensor([before + after])).last_hidden_state[0, -1]
    *backbone, head = seen[0]
    torch.testing.assert_close(head[0], -gap / 32, rtol=1e-4, atol=1e-6)
    assert all(float(g.abs().max()) == 0 for g in backbone)


# --- reload = in memory


def keep_trained(monkeypatch):
    kept = []
    real = checkpoints.require_reload
    monkeypatch.setattr(checkpoints, "require_reload", lambda model, folder: kept.append(model) or real(model, folder))
    return kept


@pytest.mark.parametrize("method", ["sft", "dpo", "ppo"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "qwen3", "mistral-window"])
def test_a_policy_reloads_to_the_same_numbers(train, make_model, make_reward, monkeypatch, pairs_file, method, family):
    kept = keep_trained(monkeypatch)
    folder = make_model(family)
    options = {"reward": str(make_reward(family))} if method == "ppo" else {}
    result = train(method, model=str(folder), steps=2, **options)
    model, tokenizer = policy_of(result.final)
    assert type(model).__name__.endswith("ForCausalLM") or type(model).__name__ == "GPT2LMHeadModel"
    moved = 0.0
    start, _ = policy_of(folder)
    with torch.no_grad():
        for row in read(pairs_file)[:4]:
            ids = ids_of(tokenizer, row["prompt"], row["chosen"])
            torch.testing.assert_close(logps(model, *ids), logps(kept[0], *ids), rtol=0, atol=1e-5)
            moved += float((logps(model, *ids) - logps(start, *ids)).abs().sum())
    assert moved > 1e-3


@pytest.mark.parametrize("tokenizer", ["plain", "pad-eos", "no-pad"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "qwen3", "mistral"])
def test_a_reward_model_reloads_to_the_same_numbers(train, make_model, monkeypatch, pairs_file, family, tokenizer):
    """Also when Hugging Face's classifier scores a padded batch by itself: its last non-pad token is ours."""
    from keel.engine.forward import scalars_at_end
    from keel.records import Bundle, Completion

    kept = keep_trained(monkeypatch)
    result = train("reward", model=str(make_model(family, tokenizer=tokenizer)), steps=2)
    model = AutoModelForSequenceClassification.from_pretrained(result.final, dtype=torch.float32).eval()
    tok = AutoTokenizer.from_pretrained(result.final)
    assert model.config.num_labels == 1
    assert tok.pad_token_id == model.config.pad_token_id
    assert tok.pad_token_id not in (None, tok.eos_token_id)
    assert model.get_input_embeddings().weight.shape[0] > tok.pad_token_id
    rows = [ids_of(tok, r["prompt"], r[side]) for r in read(pairs_file) for side in ("chosen", "rejected")]
    assert len({len(a) + len(b) for a, b in rows}) > 3
    ours = scalars_at_end(kept[0], [Bundle(a, [Completion(b)]) for a, b in rows])
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([a + b])).logits[0] for a, b in rows])
        padded = model(**tok.pad({"input_ids": [a + b for a, b in rows]}, return_tensors="pt")).logits[:, 0]
        by_ids = model(input_ids=tok.pad({"input_ids": [a + b for a, b in rows]}, return_tensors="pt").input_ids)
    assert float(ours.std()) > 1e-3
    for theirs in (alone, padded, by_ids.logits[:, 0]):
        torch.testing.assert_close(theirs, ours.detach(), rtol=0, atol=1e-5)


def test_a_reload_that_differs_fails_the_run(train, monkeypatch):
    real = checkpoints.save

    def save(model, text, folder):
        real(model, text, folder)
        if folder.name.startswith("final"):
            with torch.no_grad():
                model.lm_head.weight.add_(1e-3)

    monkeypatch.setattr(checkpoints, "save", save)
    with pytest.raises(RunFailed, match=r"lm_head\.weight"):
        train("sft", steps=1)


# --- same seed = same run


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_run(train, weights, metrics_of, method):
    one, same, other = (train(method, seed=seed) for seed in (3, 3, 4))
    a, b, c = (weights(r.final) for r in (one, same, other))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert metrics_of(one.folder) == metrics_of(same.folder)
    assert any(not torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize("method", METHODS)
def test_the_global_seed_does_not_matter(train, weights, method):
    """Every draw has a name; nothing depends on what else has drawn."""
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        results.append(weights(train(method, steps=2).final))
    assert all(torch.equal(v, results[1][k]) for k, v in results[0].items())


# --- nothing trained on an unsampled token


def watch_hidden_gradients(monkeypatch, loader, nth=1):
    """Every pass that is gone back through in the nth loaded model: its ids, and which hidden states get a gradient."""
    passes: list[tuple[torch.Tensor, torch.Tensor]] = []

    def attach(model):
        def hook(module, args, kwargs, output):
            hidden = output.last_hidden_state
            if hidden.requires_grad and torch.is_grad_enabled():
                ids = kwargs["input_ids"].clone()
                hidden.register_hook(lambda g: passes.append((ids, g.abs().sum(-1) > 0)))

        model.base_model.register_forward_hook(hook, with_kwargs=True)

    patch_loader(monkeypatch, loader, attach, nth)
    return passes


def trained_positions(passes):
    """(ids up to the last trained token, positions from which something was predicted) of every row."""
    rows = []
    for ids, grad in passes:
        for row, mask in zip(ids.tolist(), grad, strict=True):
            at = torch.nonzero(mask).flatten().tolist()
            rows.append((tuple(row), tuple(at)))
    return rows


def assert_trained_exactly(rows, sequences, times=1):
    """`sequences`: (prompt ids, completion ids); each is trained `times` over, at its completion tokens alone."""
    wanted = Counter()
    for before, after in sequences:
        wanted[(tuple(before + after), tuple(range(len(before) - 1, len(before) + len(after) - 1)))] += times
    got = Counter()
    for row, at in rows:
        length = at[-1] + 2
        got[(row[:length], at)] += 1
    assert got == wanted


@pytest.fixture
def rows_of_their_own(monkeypatch):
    """These probes read one completion a row; tests/engine/test_forward.py shows that packing changes no number."""
    monkeypatch.setattr(forward, "PACK", False)


@pytest.mark.usefixtures("rows_of_their_own")
@pytest.mark.parametrize("role", ["policy", "value"])
@pytest.mark.parametrize("micro_tokens", [30, 8192])
def test_ppo_trains_sampled_tokens_alone(train, monkeypatch, role, micro_tokens):
    """Each sampled token once per epoch; no prompt token, no padding, no EOS that a cut answer does not have."""
    loader, nth = ("load_policy", 1) if role == "policy" else ("load_reward", 2)
    passes = watch_hidden_gradients(monkeypatch, loader, nth)
    sampled = []
    real = ppo.sample
    monkeypatch.setattr(ppo, "sample", lambda *a, **k: sampled.append(real(*a, **k)) or sampled[-1])
    train("ppo", steps=2, epochs=1, batch_size=8, micro_tokens=micro_tokens, samples_per_prompt=8)
    completions = [(b.prompt_ids, c) for bundles in sampled for b in bundles for c in b.completions]
    assert {c.truncated for _, c in completions} == {True, False}
    assert all(1 not in c.ids and len(c) == 8 for _, c in completions if c.truncated)
    assert_trained_exactly(trained_positions(passes), [(p, c.ids) for p, c in completions])


@pytest.mark.parametrize("role", ["policy", "value"])
def test_ppo_trains_sampled_tokens_alone_where_they_share_a_row(train, monkeypatch, role):
    """One prompt a rollout, so that a row is the prompt and its completions: each token is predicted from before it.

    A completion's first token is predicted from the prompt's end, and from its own last token nothing is.
    """
    loader, nth = ("load_policy", 1) if role == "policy" else ("load_reward", 2)
    passes = watch_hidden_gradients(monkeypatch, loader, nth)
    sampled = []
    real = ppo.sample
    monkeypatch.setattr(ppo, "sample", lambda *a, **k: sampled.append(real(*a, **k)) or sampled[-1])
    train("ppo", steps=2, epochs=1, batch_size=1, rollout_size=1, samples_per_prompt=8)
    wanted = []
    for (bundle,) in sampled:
        ids, at = list(bundle.prompt_ids), [len(bundle.prompt_ids) - 1]
        for c in bundle.completions:
            at += range(len(ids), len(ids) + len(c) - 1)
            ids += c.ids
        wanted.append((ids, at))
    got = [(ids[0].tolist(), torch.nonzero(grad[0]).flatten().tolist()) for ids, grad in passes]
    assert got == wanted


@pytest.mark.usefixtures("rows_of_their_own")
@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("max_length", [18, 1024])
def test_supervised_methods_train_given_tokens_alone(
    train, monkeypatch, base, pairs_file, demonstrations_file, method, max_length
):
    """The completion and its one EOS; where the length limit cuts, no EOS."""
    passes = watch_hidden_gradients(monkeypatch, "load_policy")
    train(method, steps=1, batch_size=16, max_length=max_length)
    _, tokenizer = policy_of(base)
    file, sides = (demonstrations_file, ["completion"]) if method == "sft" else (pairs_file, ["chosen", "rejected"])
    sequences = []
    for row in read(file):
        for side in sides:
            before, after = ids_of(tokenizer, row["prompt"], row[side])
            sequences.append((before, after[: max_length - len(before)]))
    assert (max_length == 18) == any(after[-1] != 1 for _, after in sequences)
    assert_trained_exactly(trained_positions(passes), sequences)


@pytest.mark.usefixtures("rows_of_their_own")
def test_reward_reads_the_last_token_alone(train, monkeypatch, base, pairs_file):
    """After the first step the head is no longer zero, so that hidden states get gradients."""
    passes = watch_hidden_gradients(monkeypatch, "new_scalar_model")
    train("reward", steps=2, batch_size=16)
    _, tokenizer = policy_of(base)
    rows = trained_positions(passes)
    wanted = Counter()
    for row in read(pairs_file):
        for side in ("chosen", "rejected"):
            before, after = ids_of(tokenizer, row["prompt"], row[side])
            wanted[(tuple(before + after), (len(before) + len(after) - 1,))] += 1
    assert Counter((row[: at[-1] + 1], at) for row, at in rows if at) == wanted


def test_the_frozen_models_do_not_change(train, monkeypatch):
    """Reference and scorer are the same bits after the run as before it (PPO statement 13)."""
    kept = []
    for name in ("load_policy", "load_reward"):
        real = getattr(checkpoints, name)

        def load(*args, real=real, name=name, **kwargs):
            model = real(*args, **kwargs)
            kept.append((name, model, checkpoints.weights_hash(model)))
            return model

        monkeypatch.setattr(checkpoints, name, load)
    train("ppo")
    changed = [(name, checkpoints.weights_hash(model) != before) for name, model, before in kept]
    assert changed == [("load_policy", True), ("load_policy", False), ("load_reward", False), ("load_reward", True)]
    kept.clear()
    train("dpo")
    assert [checkpoints.weights_hash(model) != before for _, model, before in kept] == [True, False]
