"""LoRA adapters: against PEFT's own layers, formulas written here, and whole models."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    TaskType,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from keel.commands.merge import merge_adapter
from keel.config import Machine, MergeConfig
from keel.engine import memory
from keel.engine.forward import scalars_at_end, sequence_logps
from keel.engine.scorers import load_scorer, load_scorer_beside
from keel.errors import InputError, RunFailed
from keel.models import adapters, checkpoints, roles
from keel.models.heads import scalar_head
from keel.records import Bundle, Completion

CPU = Machine(device="cpu", precision="fp32")
BUNDLES = [Bundle([5, 6, 7], [Completion([8, 9, 1]), Completion([9, 1])]), Bundle([4], [Completion([3, 12, 1])])]
LORA = {"lora": True, "lora_rank": 3, "learning_rate": 2e-2}


@pytest.fixture
def trained(train):
    """`trained("dpo")`: the final folder of a short run with an adapter, which has moved."""
    return lambda method, **changes: train(method, **{**LORA, **changes}).folder / "final"


@pytest.fixture
def own_base(base, tmp_path):
    """A copy of the base that a test may change."""
    return shutil.copytree(base, tmp_path / "base")


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logps(model):
    return sequence_logps(model, BUNDLES)


@torch.no_grad()
def one_by_one(model):
    """The same by the model's own logits, a text at a time."""
    found = []
    for bundle in BUNDLES:
        for completion in bundle.completions:
            out = model(input_ids=torch.tensor([bundle.prompt_ids + completion.ids])).logits[0].float()
            table = torch.log_softmax(out[len(bundle.prompt_ids) - 1 : -1], -1)
            found.append(table[torch.arange(len(completion)), torch.tensor(completion.ids)].sum())
    return torch.stack(found)


def by_hand(folder, model, transposed=False):
    """The base's weights with each product of the folder's adapter added, as LoRA's formula says."""
    told = json.loads((folder / "adapter_config.json").read_text())
    weights, parts = model.state_dict(), load_file(folder / "adapter_model.safetensors")
    for name in [n for n in parts if ".lora_A." in n]:
        delta = told["lora_alpha"] / told["r"] * parts[name.replace("lora_A", "lora_B")] @ parts[name]
        weight = weights[name.removeprefix("base_model.model.").replace(".lora_A", "")]
        weight += delta.T if transposed else delta
    return model


def test_a_folder_is_one_model_whoever_reads_it(trained, architecture, make_model, tmp_path):
    """By its formula, by Keel, merged by Keel, and by PEFT."""
    base = make_model(architecture)
    folder = trained("sft", model=str(base))
    expected = one_by_one(by_hand(folder, plain(base), transposed=architecture == "gpt2"))
    assert float((expected - one_by_one(plain(base))).abs().min()) > 1e-2
    merge_adapter(MergeConfig(model=str(folder), out=tmp_path / "merged"))
    for found in (
        logps(checkpoints.load_policy(str(folder), CPU)),
        one_by_one(plain(tmp_path / "merged")),
        one_by_one(AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_an_adapter_that_is_on_is_the_merged_model(trained, configure):
    folder = trained("sft")
    policy, reference = roles.load_policy_and_reference(configure("dpo", lora=True), str(folder))
    merged = logps(checkpoints.load_policy(str(folder), CPU))
    for role in (policy, reference):
        with role.active() as model:
            torch.testing.assert_close(logps(model), merged, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_folder_of_peft_is_read(make_model, architecture, tmp_path, configure):
    base = make_model(architecture)
    names = ["c_attn"] if architecture == "gpt2" else ["q_proj", "down_proj"]
    wrapped = get_peft_model(plain(base), LoraConfig(r=2, lora_alpha=5, target_modules=names, task_type="CAUSAL_LM"))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    wrapped.save_pretrained(tmp_path / "theirs")
    expected = one_by_one(wrapped.eval())
    assert float((expected - one_by_one(plain(base))).abs().min()) > 1e-2
    found = checkpoints.load_policy(str(tmp_path / "theirs"), CPU)
    torch.testing.assert_close(logps(found), expected, rtol=0, atol=2e-5)
    policy, _ = roles.load_policy_and_reference(configure("dpo", lora=True), str(tmp_path / "theirs"))
    with policy.active() as model:
        torch.testing.assert_close(logps(model), expected, rtol=0, atol=2e-5)


def test_a_reward_folder_keeps_its_head(trained, tmp_path):
    folder = trained("reward")
    stored = load_file(folder / "adapter_model.safetensors")
    assert bool(stored["base_model.model.score.weight"].any())
    model = checkpoints.load_reward(str(folder), CPU)
    with torch.no_grad():
        found = scalars_at_end(model, BUNDLES)
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()
    merge_adapter(MergeConfig(model=str(folder), out=tmp_path / "merged"))
    merged = checkpoints.load_reward(str(tmp_path / "merged"), CPU)
    texts = [b.prompt_ids + c.ids for b in BUNDLES for c in b.completions]
    with torch.no_grad():
        expected = torch.stack([theirs(input_ids=torch.tensor([ids])).logits[0, 0] for ids in texts])
        torch.testing.assert_close(scalars_at_end(merged, BUNDLES), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert float(expected.std()) > 1e-3


def test_a_head_that_is_missing_is_not_made_up(trained):
    folder = trained("reward")
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop("base_model.model.score.weight")
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"score\.weight"):
        checkpoints.load_reward(str(folder), CPU)


# --- the role's block


def roles_of(configure, trained, **changes):
    folder = trained("reward")
    config = configure("ppo", lora=True, lora_rank=2, reward=str(folder), **changes)
    policy, reference = roles.load_policy_and_reference(config, config.model)
    scorer = load_scorer_beside(policy, config)
    return policy, reference, roles.load_value_role(config, policy, as_reward=True), scorer, folder


def test_roles_on_one_trunk_do_not_touch_each_other(configure, trained):
    policy, reference, value, scorer, folder = roles_of(configure, trained)
    assert policy.trunk is reference.trunk is value.trunk is scorer.role.trunk
    with torch.no_grad():
        for weight in [*policy.parameters().values(), *value.parameters().values()]:
            weight.normal_(std=0.2)
    with reference.active() as model:
        before = logps(model)
    torch.testing.assert_close(before, one_by_one(plain(configure("dpo").model)), rtol=0, atol=1e-5)
    torch.testing.assert_close(scorer.score(BUNDLES), load_scorer(str(folder), CPU).score(BUNDLES), rtol=0, atol=1e-5)
    with policy.active() as model:
        sequence_logps(model, BUNDLES).sum().backward()
    assert all(bool(p.grad.any()) for p in policy.parameters().values())
    assert all(p.grad is None for p in value.parameters().values())
    for parameter in policy.parameters().values():
        parameter.grad = None
    with value.active() as model:
        scalars_at_end(model, BUNDLES).sum().backward()
    assert all(bool(p.grad.any()) for p in value.parameters().values())
    assert all(p.grad is None for p in policy.parameters().values())
    with reference.active() as model:
        assert not sequence_logps(model, BUNDLES).requires_grad
        torch.testing.assert_close(logps(model), before, rtol=0, atol=0)


def test_a_critic_on_the_trunk_starts_as_the_reward(configure, trained):
    _, _, value, scorer, _ = roles_of(configure, trained)
    with value.active() as model, torch.no_grad():
        torch.testing.assert_close(scalars_at_end(model, BUNDLES), scorer.score(BUNDLES), rtol=0, atol=1e-6)


def test_outside_its_block_a_role_does_not_compute(configure):
    """In the backward pass, too, where layers are computed again."""
    policy, _ = roles.load_policy_and_reference(configure("dpo", lora=True), configure("dpo").model)
    with pytest.raises(RunFailed, match=r"role\.active"):
        sequence_logps(policy.model, BUNDLES)
    memory.checkpoint_layers(policy.model)
    with policy.active() as model:
        total = sequence_logps(model, BUNDLES).sum()
    with pytest.raises(RunFailed, match=r"role\.active"):
        total.backward()
    with policy.active() as model:
        sequence_logps(model, BUNDLES).sum().backward()
    assert any(bool(p.grad.any()) for p in policy.parameters().values())


def test_why_it_refuses(base):
    """PEFT's own layers compute without the adapter if it is switched off before the backward pass, and say nothing."""
    found = []
    for off_too_early in (False, True):
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type=TaskType.CAUSAL_LM, init_lora_weights=False)
        model = get_peft_model(plain(base), config)
        layer = model.base_model.model.model.layers[0]
        hidden = torch.randn(1, 4, 32, requires_grad=True)
        turned = model.base_model.model.model.rotary_emb(hidden, torch.arange(4)[None])
        out = checkpoint(lambda h, t=turned, on=layer: on(h, position_embeddings=t), hidden, use_reentrant=True)
        if off_too_early:
            model.base_model.disable_adapter_layers()
        out.sum().backward()
        found.append(layer.self_attn.q_proj.lora_B["default"].weight.grad)
    assert bool(found[0].any())
    assert found[1] is None


# --- training


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_an_adapter_of_full_rank_learns_what_all_weights_learn(train, method, metrics_of):
    """A tiny model's layers have rank 32 at most; the embeddings stay, so the ends are near and not the same."""
    shared = {"steps": 100, "epochs": 100, "schedule": "constant", "warmup": 0.0}
    whole = metrics_of(train(method, **shared, learning_rate=3e-3).folder)
    adapter = metrics_of(train(method, **shared, lora=True, lora_rank=32, lora_alpha=32.0, learning_rate=1e-2).folder)
    assert adapter[0]["loss"] == pytest.approx(whole[0]["loss"], abs=1e-5)
    ends = [sum(row["loss"] for row in rows[-5:]) / 5 for rows in (whole, adapter)]
    assert ends[1] < ends[0] + 0.1 * whole[0]["loss"]


def test_dpo_on_an_adapter_has_that_adapter_as_its_reference(trained, train, metrics_of, monkeypatch):
    folder = trained("sft")
    run = train("dpo", model=str(folder), lora=True, learning_rate=2e-2, reference_logps="live")
    assert metrics_of(run.folder)[0]["loss"] == pytest.approx(0.6931472, abs=1e-5)
    weights = [load_file(f / "adapter_model.safetensors") for f in (folder, run.folder / "final")]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    told = [json.loads((f / "keel_base.json").read_text()) for f in (folder, run.folder / "final")]
    assert told[0] == told[1]


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
def test_only_adapters_and_heads_are_saved_and_moved(train, weights, base, method):
    run = train(method, **LORA, save_every=1, keep_checkpoints=9)
    names = set(load_file(run.folder / "final" / "adapter_model.safetensors"))
    heads = {n for n in names if "lora_" not in n}
    assert heads == ({"base_model.model.score.weight"} if method == "reward" else set())
    assert len(names - heads) == 2 * 7 * 2
    state = torch.load(run.folder / "checkpoints" / "step-2" / "state.pt", weights_only=True)["optimizers"]
    trained_names = {"reward": ["reward"], "ppo": ["policy", "value"]}.get(method, ["policy"])
    assert sorted(state) == trained_names
    for name in trained_names:
        moments = sum(s["exp_avg"].numel() for s in state[name]["adam"]["state"].values())
        stored = load_file(run.folder / "checkpoints" / "step-2" / name / "adapter_model.safetensors")
        assert moments == sum(w.numel() for w in stored.values())


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
def test_the_seed_decides_the_adapter(train, method):
    runs = [train(method, **LORA, seed=seed).folder / "final" for seed in (1, 1, 2)]
    one, same, other = (load_file(folder / "adapter_model.safetensors") for folder in runs)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"lora_targets": "q_proj,v_proj"}, {"q_proj", "v_proj"}),
        ({"lora_targets": "layers.1.mlp.up_proj"}, {"up_proj"}),
        ({}, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_targets(trained, changes, names):
    found = load_file(trained("sft", **changes) / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in found} == names


def test_rank_and_alpha(trained):
    told = json.loads((trained("sft", lora_rank=5, lora_alpha=7.0) / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"]) == (5, 7.0)
    assert json.loads((trained("sft", lora_rank=5) / "adapter_config.json").read_text())["lora_alpha"] == 10


def test_a_fresh_head_keeps_bf16_and_updates(train):
    """Adapters have the trunk's precision, with fp32 copies for their updates."""
    run = train("sft", **LORA, precision="bf16")
    found = load_file(run.folder / "final" / "adapter_model.safetensors")
    assert all(w.dtype == torch.bfloat16 for w in found.values())
    assert any(bool(w.any()) for n, w in found.items() if "lora_B" in n)


# --- refusals


def test_another_base_is_refused(trained, own_base):
    folder = trained("sft", model=str(own_base))
    weights = load_file(own_base / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, own_base / "model.safetensors", {"format": "pt"})
    for load in (
        lambda: checkpoints.load_policy(str(folder), CPU),
        lambda: merge_adapter(MergeConfig(model=str(folder), out=folder.parent / "merged")),
    ):
        with pytest.raises(InputError, match="trained on another base"):
            load()


def test_a_base_that_has_gone_is_named(trained, own_base, train):
    folder = trained("sft", model=str(own_base))
    own_base.rename(own_base.with_name("moved"))
    with pytest.raises(InputError, match=r"its base model .*base is not there.*base_model_name_or_path"):
        checkpoints.load_policy(str(folder), CPU)
    with pytest.raises(InputError, match="its base model"):
        train("dpo", model=str(folder), lora=True)


@pytest.mark.parametrize(
    ("method", "changes", "says"),
    [
        ("sft", {"lora": True, "lora_targets": "q_proj,wrong"}, "--lora-targets wrong.*no linear layer.*q_proj"),
        ("sft", {"lora": True, "lora_targets": "lm_head"}, "--lora-targets lm_head"),
    ],
)
def test_layers_that_are_not_there(train, method, changes, says):
    with pytest.raises(InputError, match=says):
        train(method, **changes)


@pytest.mark.parametrize("changes", [{"lora_rank": 0, "lora": True}, {"lora_rank": 4}, {"lora_alpha": 2.0}])
def test_options_that_cannot_be(configure, changes):
    with pytest.raises(ValueError, match="lora"):
        configure("sft", **changes)


def test_adapters_do_not_stand_on_adapters_of_another_kind(trained, train, reward_folder):
    policy, reward = trained("sft"), trained("reward")
    with pytest.raises(InputError, match="reward model, not a language model"):
        train("sft", model=str(reward), lora=True)
    with pytest.raises(InputError, match="keel merge"):
        train("reward", model=str(policy), lora=True)
    with pytest.raises(InputError, match="without --lora"):
        train("reward", model=str(reward_folder), lora=True)
    with pytest.raises(InputError, match=r"--lora-rank 7.*has 3"):
        train("dpo", model=str(policy), lora=True, lora_rank=7)
    with pytest.raises(InputError, match="no adapter but a whole model"):
        merge_adapter(MergeConfig(model=str(reward_folder), out=policy.parent / "merged"))


def test_more_than_plain_lora_is_merged_and_not_trained_on(base, tmp_path, train):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", use_dora=True, init_lora_weights=False)
    wrapped = get_peft_model(plain(base), config)
    wrapped.save_pretrained(tmp_path / "dora")
    expected = one_by_one(wrapped.eval())
    torch.testing.assert_close(logps(checkpoints.load_policy(str(tmp_path / "dora"), CPU)), expected, rtol=0, atol=1e-4)
    with pytest.raises(InputError, match=r"use_dora.*keel merge"):
        train("sft", model=str(tmp_path / "dora"), lora=True)


def test_the_head_is_trained(trained, configure):
    role, fresh = roles.load_reward_role(
        configure("reward", lora=True), configure("dpo").model, checkpoints.load_text(configure("dpo").model)
    )
    assert fresh
    assert all(p.requires_grad for p in scalar_head(role.model).parameters())
    assert adapters.is_scalar(trained("reward"))


# --- what a reader of the code found


@pytest.mark.parametrize(
    ("policy", "reward"), [("q_proj,v_proj", None), (None, "q_proj, v_proj"), ("up_proj", "q_proj")]
)
def test_roles_on_one_trunk_may_have_other_layers(train, metrics_of, policy, reward):
    """What PPO writes then is a plain folder of the policy's own layers."""
    folder = train("reward", **LORA, lora_targets=reward).folder / "final"
    run = train("ppo", **LORA, lora_targets=policy, reward=str(folder), save_every=2)
    saved = {
        role: {
            name.split(".")[-3]
            for name in load_file(run.folder / f"checkpoints/step-2/{role}/adapter_model.safetensors")
            if "lora" in name
        }
        for role in ("policy", "value")
    }
    everything = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert saved["policy"] == (set(policy.split(",")) if policy else everything)
    assert saved["value"] == (set(reward.replace(" ", "").split(",")) if reward else everything)
    assert metrics_of(run.folder)[0]["objective/kl"] == 0
    checkpoints.load_policy(str(run.folder), CPU)
    checkpoints.load_reward(str(run.folder / "checkpoints" / "step-2" / "value"), CPU)


def test_the_ends_and_rows_of_a_folder_of_peft_are_its_base_s(trained, own_base, tmp_path):
    """It has a tokenizer and no generation config."""
    (own_base / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    folder = trained("sft", model=str(own_base))
    (folder / "generation_config.json").unlink()
    text, whole = checkpoints.load_text(str(folder)), checkpoints.load_text(str(own_base))
    assert text.eos_ids == whole.eos_ids >= {1, 7}
    assert text.gaps.rows == whole.gaps.rows is not None


def test_a_merged_reward_model_is_read_in_padded_rows(trained, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = trained("reward")
    merge_adapter(MergeConfig(model=str(folder), out=tmp_path / "merged"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    texts = [b.prompt_ids + c.ids for b in BUNDLES for c in b.completions]
    assert model.config.pad_token_id == tokenizer.pad_token_id
    rows = [ids + [tokenizer.pad_token_id] * (6 - len(ids)) for ids in texts]
    with torch.no_grad():
        scores = model(input_ids=torch.tensor(rows)).logits[:, 0]
        expected = scalars_at_end(checkpoints.load_reward(str(folder), CPU), BUNDLES)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_options_that_differ_from_a_folder_s_are_refused(trained, train):
    folder = trained("sft", lora_targets="q_proj")
    with pytest.raises(InputError, match=r"--lora-targets v_proj.*has q_proj"):
        train("dpo", model=str(folder), lora=True, lora_targets="v_proj")
    train("dpo", model=str(folder), lora=True, lora_targets="q_proj")


def test_another_reference_stands_beside_the_trunk(train, make_model, metrics_of):
    run = train("dpo", **LORA, reference=str(make_model("llama", seed=1)))
    assert abs(metrics_of(run.folder)[0]["loss"] - 0.6931472) > 1e-3


def test_sft_goes_on_with_an_adapter_and_is_compared_with_it(trained, train):
    run = train("sft", model=str(trained("sft")), **{**LORA, "learning_rate": 1e-9}, holdout=0.25)
    assert abs(run.summary["verdict"]["figures"]["kl"]["mean"]) < 1e-6


def test_families_of_which_peft_makes_something_else(make_model, train, tmp_path):
    """Stacked experts are no linear layers; the others get adapters, which read back."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    base = shutil.copytree(make_model("llama"), tmp_path / "moe")
    words = json.loads((base / "config.json").read_text())["vocab_size"]
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4}
    config = Qwen2MoeConfig(vocab_size=words, hidden_size=32, moe_intermediate_size=16, intermediate_size=32,
                            shared_expert_intermediate_size=16, **shape)  # fmt: skip
    Qwen2MoeForCausalLM(config).save_pretrained(base)
    run = train("sft", model=str(base), **LORA)
    checkpoints.load_policy(str(run.folder), CPU)


def test_layers_that_peft_will_not_take_are_named(train, monkeypatch):
    import peft

    monkeypatch.setattr(peft, "inject_adapter_in_model", lambda config, model, name: model)
    with pytest.raises(InputError, match=r"PEFT puts adapters of Llama.* elsewhere.*--lora-targets"):
        train("sft", **LORA)


def test_a_model_from_python_cannot_be_an_adapter_s_base(base, train):
    from transformers import AutoTokenizer

    with pytest.raises(InputError, match="handed over"):
        train("sft", model=(plain(base), AutoTokenizer.from_pretrained(base)), lora=True)


def test_a_language_model_s_adapter_is_no_reward(trained, train):
    with pytest.raises(InputError, match="not a reward model"):
        train("ppo", reward=str(trained("sft")), lora=True)
