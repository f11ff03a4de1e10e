"""Models in and out of folders, and the head that every log-probability goes through."""

from __future__ import annotations

import json
import shutil
import socket
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from keel.config import Machine
from keel.errors import InputError, RunFailed
from keel.models import checkpoints, heads

CPU = Machine(device="cpu", precision="fp32")


# --- finding


def test_resolve_folder_run_and_hub_name(base, train, tmp_path):
    assert checkpoints.resolve(str(base)) == str(base)
    run = train("sft", steps=1).folder
    assert checkpoints.resolve(str(run)) == str(run / "final")
    assert checkpoints.resolve("owner/name") == "owner/name"
    shutil.rmtree(run / "final")
    with pytest.raises(InputError, match="--resume"):
        checkpoints.resolve(str(run))
    for name in ("/nowhere/at/all", "./absent", "a/b/c"):
        with pytest.raises(InputError, match="no such model folder"):
            checkpoints.resolve(name)
    with pytest.raises(InputError, match="misspelt: no such model folder; a hub name is OWNER/NAME"):
        checkpoints.resolve("misspelt")
    file = tmp_path / "model.safetensors"
    file.write_text("")
    with pytest.raises(InputError, match="is a file"):
        checkpoints.resolve(str(file))


@pytest.mark.parametrize(
    ("offline", "why"), [(True, "HF_HUB_OFFLINE is set"), (False, "127.0.0.1 cannot be reached: .*refused")]
)
def test_without_the_hub_a_name_is_refused_at_once(monkeypatch, offline, why):
    """The library would ask again and again, and then miss a tokenizer."""
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("no_proxy", "*")
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"^owner/absent: no such folder here, and the hub cannot be asked \({why}"):
        checkpoints.load_text("owner/absent")
    assert time.monotonic() - began < 10


# --- loading


def test_a_policy_is_in_eval_mode_and_trainable(base):
    model = checkpoints.load_policy(str(base), CPU)
    assert not any(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert next(checkpoints.load_policy(str(base), Machine(device="cpu", precision="bf16")).parameters()).dtype == (
        torch.bfloat16
    )


def test_loaded_weights_are_the_folder_s(base, weights):
    state, stored = checkpoints.load_policy(str(base), CPU).state_dict(), weights(base)
    assert all(torch.equal(state[k], stored[k]) for k in stored)


def test_a_new_scalar_model_says_0_everywhere(make_model, architecture):
    folder = make_model(architecture)
    model = checkpoints.new_scalar_model(str(folder), CPU, 3)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == 3
    logits = model(input_ids=torch.tensor([[0, 5, 9]])).logits
    assert logits.tolist() == [[0.0]]
    trunk, original = model.base_model.state_dict(), AutoModelForCausalLM.from_pretrained(folder).base_model
    assert all(torch.equal(trunk[k], v) for k, v in original.state_dict().items())


def test_a_pad_beyond_the_vocabulary_gets_a_row(base):
    model = checkpoints.new_scalar_model(str(base), CPU, 100)
    assert model.get_input_embeddings().weight.shape[0] == 101
    old = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[:100], old)


@pytest.mark.parametrize(("kind", "kept"), [("plain", True), ("pad-eos", False), ("no-pad", False)])
def test_padding_never_is_an_eos(make_model, kind, kept):
    text = checkpoints.load_text(str(make_model("llama", tokenizer=kind)))
    pad = checkpoints.ensure_pad(text)
    assert pad not in text.eos_ids
    assert pad == text.tokenizer.pad_token_id
    assert (pad == 3) == (kept or kind == "plain")


def test_several_eos_ids_are_read_and_none_is_padding(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 3]}))
    text = checkpoints.load_text(str(folder))
    assert text.eos_ids == {1, 3}
    assert checkpoints.ensure_pad(text) not in {1, 3}  # the tokenizer's own pad is an EOS here


def test_refusals_name_the_folder(base, reward_folder, tmp_path):
    hollow = shutil.copytree(base, tmp_path / "hollow", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(InputError, match=r"hollow.*no weights"):
        checkpoints.load_policy(str(hollow), CPU)
    untold = shutil.copytree(base, tmp_path / "untold", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(InputError, match=r"untold.*tokenizer"):
        checkpoints.load_text(str(untold))
    with pytest.raises(InputError, match="plain language model"):
        checkpoints.load_reward(str(base), CPU)
    assert checkpoints.load_reward(str(reward_folder), CPU)


def test_loading_leaves_the_library_s_logger_as_it_was(base, capfd):
    from transformers.utils import logging

    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        model = checkpoints.new_scalar_model(str(base), CPU, 3)
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
    assert "score" not in capfd.readouterr().err
    assert model


def test_a_reward_folder_with_a_tied_head_is_no_policy(make_reward):
    """Where the head is the embedding, nothing is missing: the config must tell."""
    with pytest.raises(InputError, match="reward model"):
        checkpoints.load_policy(str(make_reward("gpt2")), CPU)


def test_a_reward_model_with_several_labels_is_refused(base, tmp_path):
    """Its first label is not a score."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model.config.pad_token_id = 3
    model.save_pretrained(tmp_path / "three")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "three")
    with pytest.raises(InputError, match="label"):
        checkpoints.load_reward(str(tmp_path / "three"), CPU)


def test_models_of_other_vocabularies_are_refused(base, make_model):
    policy = checkpoints.load_policy(str(base), CPU)
    checkpoints.same_vocabulary(policy, policy, "it")
    small = AutoModelForCausalLM.from_config(policy.config.__class__(**{**policy.config.to_dict(), "vocab_size": 50}))
    with pytest.raises(InputError, match="50 token ids"):
        checkpoints.same_vocabulary(policy, small, "it")


# --- saving


def test_save_and_reload(make_model, architecture, tmp_path):
    model = checkpoints.load_policy(str(make_model(architecture)), CPU)
    text = checkpoints.load_text(str(make_model(architecture)))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.01)
    checkpoints.save(model, text, tmp_path / "saved")
    checkpoints.require_reload(model, tmp_path / "saved")
    assert model.config.use_cache is False
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    assert plain.config.use_cache is True  # others generate with it
    ids = torch.tensor([[0, 7, 30, 4]])
    torch.testing.assert_close(plain(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=1e-5)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "saved")("ok teddy").input_ids == text.tokenizer("ok teddy").input_ids
    )
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    with pytest.raises(RunFailed):
        checkpoints.require_reload(model, tmp_path / "saved")


def test_the_generation_config_survives(base, tmp_path):
    """Several EOS ids in a chat model's generation config must still be there in final/."""
    folder = shutil.copytree(base, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 20]}))
    model, text = checkpoints.load_policy(str(folder), CPU), checkpoints.load_text(str(folder))
    checkpoints.save(model, text, tmp_path / "saved")
    assert checkpoints.load_text(str(tmp_path / "saved")).eos_ids == {1, 20}


def test_a_reward_folder_keeps_every_eos(train, base, tmp_path):
    """PPO compares policy and reward model by their tokens: what ends an answer must be told alike."""
    folder = shutil.copytree(base, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 3]}))
    result = train("reward", model=str(folder), steps=1)
    model = AutoModelForSequenceClassification.from_pretrained(result.final)
    assert model.config.pad_token_id not in (1, 3)


def test_hashes(base, make_model):
    model, same = checkpoints.load_policy(str(base), CPU), checkpoints.load_policy(str(base), CPU)
    other = checkpoints.load_policy(str(make_model("llama", seed=1)), CPU)
    assert checkpoints.weights_hash(model) == checkpoints.weights_hash(same) != checkpoints.weights_hash(other)
    with torch.no_grad():
        same.lm_head.weight[0, 0] = torch.nextafter(same.lm_head.weight[0, 0], torch.tensor(9.0))
    assert checkpoints.weights_hash(model) != checkpoints.weights_hash(same)


# --- heads


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_scaled_logits_are_the_model_s_own_over_temperature(make_model, architecture, temperature):
    model = checkpoints.load_policy(str(make_model(architecture)), CPU)
    ids = torch.tensor([[0, 7, 30, 4]])
    hidden = heads.trunk(model)(input_ids=ids, use_cache=False).last_hidden_state
    ours = heads.scaled_logits(model, hidden, temperature)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, model(input_ids=ids).logits / temperature, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["cohere", "granite"])
def test_families_that_scale_their_logits(tmp_path, base, family):
    import transformers as t

    common = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    config = (
        t.CohereConfig(**common, logit_scale=0.3) if family == "cohere" else t.GraniteConfig(**common, logits_scaling=3)
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / family)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / family)
    model = checkpoints.load_policy(str(tmp_path / family), CPU)
    ids = torch.tensor([[0, 7, 30, 4]])
    hidden = heads.trunk(model)(input_ids=ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(heads.scaled_logits(model, hidden, 1.0), model(input_ids=ids).logits, rtol=0, atol=1e-5)


def test_an_unknown_way_to_make_logits_is_refused(base, monkeypatch):
    """Here they depend on the ids beside the hidden states."""
    from transformers import LlamaForCausalLM

    real = LlamaForCausalLM.forward

    def forward(self, input_ids, **options):
        out = real(self, input_ids=input_ids, **options)
        out.logits = out.logits + input_ids[..., None]
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(InputError, match="does not reproduce"):
        checkpoints.load_policy(str(base), CPU)


def test_a_model_without_a_score_head_is_named(base):
    with pytest.raises(InputError, match="LlamaForCausalLM"):
        heads.scalar_head(checkpoints.load_policy(str(base), CPU))
