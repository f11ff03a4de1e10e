"""Checkpoint folders as people have them: each is right, or refused in one line with the remedy that fits it."""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from keel.config import Spelling
from keel.errors import InputError
from keel.models import checkpoints

from .changes import (
    CPU,
    FAMILIES,
    POINTER,
    Change,
    adapter,
    also,
    as_bin,
    as_scalar,
    both,
    content,
    cut,
    refusal,
    renamed,
    settings,
    sharded,
    weights,
    without,
)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def spoilt(make_model, family, tmp_path):
    """`spoilt(change)`: a copy of a checkpoint with one thing changed."""

    def make(change: Change) -> Path:
        folder = shutil.copytree(make_model(family), tmp_path / "model")
        change(folder)
        return folder

    return make


# --- adapters

MERGE = r"an adapter of owner/base.*merge_and_unload.*merged folder"
BASE = r"its base model: owner/base: no such folder here, and the hub cannot be asked"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (both(adapter(), without("config.json"), without("model.safetensors")), BASE),
        (both(adapter(), without("model.safetensors")), BASE),
        (adapter(), MERGE + ", or take adapter_config.json away if it is merged already$"),
        (adapter("PROMPT_TUNING"), "PROMPT_TUNING.*cannot be merged"),
    ],
    ids=["alone", "beside a config", "beside weights", "of prompts"],
)
@pytest.mark.parametrize("peft", [False, True], ids=["no peft", "peft"])
def test_adapters(spoilt, monkeypatch, change, says, peft):
    """Whether peft is installed must not decide if the adapter counts."""
    monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda *a, **k: peft)
    folder = spoilt(change)
    assert re.search(says, refusal(folder))
    assert re.search(says, refusal(folder, as_scalar))


def test_an_adapter_in_a_run_s_final(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "run" / "final")
    both(adapter(), without("config.json"), without("model.safetensors"))(folder)
    assert re.search(BASE, refusal(tmp_path / "run"))


# --- quantised weights


def packed(tensors: dict[str, Any], name: str) -> dict[str, Any]:
    """As GPTQ and AWQ have them."""
    stem = name.removesuffix("weight")
    del tensors[name]
    whole = torch.zeros(4, 32, dtype=torch.int32)
    return tensors | {f"{stem}qweight": whole, f"{stem}qzeros": whole.clone(), f"{stem}scales": torch.ones(1, 32)}


def in_four_bits(tensors: dict[str, Any], name: str) -> dict[str, Any]:
    """As bitsandbytes has them."""
    few = {f"{name}.absmax": torch.zeros(16), f"{name}.quant_state.bitsandbytes__nf4": torch.zeros(9)}
    return tensors | {name: torch.zeros(512, 1, dtype=torch.uint8)} | few


def in_eight_bits(tensors: dict[str, Any], name: str) -> dict[str, Any]:
    return tensors | {name: tensors[name].to(torch.int8)}


def scaled(tensors: dict[str, Any], name: str) -> dict[str, Any]:
    """As DeepSeek's FP8 files have them: without the scales the numbers are others."""
    return tensors | {name: tensors[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1, 1)}


@pytest.mark.parametrize(
    ("change", "method"),
    [
        (settings(quantization_config={"quant_method": "gptq", "bits": 4}), "gptq"),
        (settings(quantization_config={"load_in_4bit": True}), "bitsandbytes"),
        (settings(quantization_config={"quant_method": "of next year"}), "of next year"),
        (settings(quantization_config={"anything": 1}), "a method it does not name"),
        (settings(compression_config={"format": "pack-quantized"}), "pack-quantized"),
        (settings(text_config={"quantization_config": {"quant_method": "awq"}}), "awq"),
        (settings("quantize_config.json", bits=4, group_size=128), "4 bits, by quantize_config.json"),
        (settings("quant_config.json", w_bit=4, q_group_size=128), "4 bits, by quant_config.json"),
        (weights(packed), "qweight"),
        (weights(in_four_bits), "holds whole numbers"),
        (both(weights(in_four_bits), as_bin()), "absmax"),
        (weights(in_eight_bits), "holds whole numbers"),
        (weights(scaled), "weight_scale_inv"),
    ],
)
def test_quantised(spoilt, change, method):
    said = refusal(spoilt(change))
    assert "quantised" in said
    assert method in said
    assert said.endswith("give the unquantised model that it was made from")


def test_a_config_that_quantises_nothing(spoilt):
    folder = spoilt(settings(quantization_config="nothing"))
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"nothing"', "null"))
    assert checkpoints.load_policy(str(folder), CPU)


# --- files that are not there, or not whole


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (content("model.safetensors", POINTER), "model.safetensors is a Git LFS pointer.*git lfs pull"),
        (both(sharded(), content("model-00002-of-00002.safetensors", POINTER)), "model-00002.*git lfs pull"),
        (both(sharded(), content("model.safetensors.index.json", POINTER)), "index.json is a Git LFS pointer"),
        (both(as_bin(), content("pytorch_model.bin", POINTER)), "pytorch_model.bin is a Git LFS pointer"),
        (content("config.json", POINTER), "config.json is a Git LFS pointer"),
        (content("config.json", "{"), "config.json is not readable.*copy it anew"),
        (content("config.json", "[]"), "config.json is not readable.*not an object"),
        (without("model.safetensors"), "no weights .model.safetensors. beside config.json; copy them there"),
        (renamed("model.safetensors", "consolidated.safetensors"), "only consolidated.safetensors, which transformers"),
        (renamed("model.safetensors", "model-q4.gguf"), "GGUF.*folder of safetensors that it was made from"),
        (both(renamed("model.safetensors", "q.gguf"), without("config.json")), "GGUF.*folder of safetensors"),
        (both(content("params.json", "{}"), without("config.json")), "their authors' own layout"),
        (sharded(lost=True), r"missing \(1 of 2\): model-00002-of-00002.safetensors; copy or download"),
        (sharded(index=False), "without their index .model.safetensors.index.json.; copy it there"),
        (cut(0.9), "model.safetensors is cut short .*copy or download this file anew"),
        (cut(0.001), "model.safetensors is cut short .*copy or download this file anew"),
        (cut(0), "model.safetensors is cut short .*copy or download this file anew"),
        (content("model.safetensors", "<!doctype html>" * 99), "is a web page, not weights"),
        (content("model.safetensors", b"\0" * 99), "model.safetensors is no safetensors file"),
        (content("model.safetensors", struct.pack("<Q", 5) + b"wrong"), "model.safetensors is no safetensors file"),
        (as_bin(share=0.5), "pytorch_model.bin is cut short"),
        (as_bin(lambda tensors: {"model": torch.nn.Linear(2, 2)}), "Python objects.*save them as safetensors"),
    ],
)
def test_files(spoilt, change, says):
    folder = spoilt(change)
    assert re.search(says, refusal(folder))
    assert re.search(says, refusal(folder, as_scalar))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (content("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer.*git lfs pull"),
        (content("tokenizer_config.json", POINTER), "tokenizer_config.json is a Git LFS pointer"),
        (content("chat_template.jinja", POINTER), "chat_template.jinja is a Git LFS pointer"),
        (content("generation_config.json", POINTER), "generation_config.json is a Git LFS pointer"),
        (content("generation_config.json", "{"), "generation_config.json is not readable"),
        (both(content("tokenizer.model", POINTER), without("tokenizer.json")), "tokenizer.model is a Git LFS pointer"),
        (content("config.json", "{"), "config.json is not readable.*copy it anew"),
        (both(without("tokenizer.json"), without("tokenizer_config.json")), "no tokenizer in it; copy tokenizer.json"),
        (both(without("tokenizer.json"), settings("tokenizer_config.json", tokenizer_class=None)), "no tokenizer"),
        (settings(model_type=7), "model type 7"),
        (settings(vocab_size="many"), "config.json describes no model .*vocab_size.*copy it anew"),
    ],
)
def test_files_of_the_tokenizer(spoilt, change, says):
    assert re.search(says, refusal(spoilt(change), lambda name, machine: checkpoints.load_text(name)))


def test_a_pointer_in_place_of_a_template(base, tmp_path):
    (tmp_path / "mine.jinja").write_text(POINTER)
    with pytest.raises(InputError, match=r"mine.jinja: a Git LFS pointer.*git lfs pull"):
        checkpoints.load_text(str(base), Spelling(chat_template=str(tmp_path / "mine.jinja")))


@pytest.mark.parametrize(
    "change",
    [sharded(), as_bin(), content("pytorch_model.bin", POINTER), content("tokenizer.model", POINTER)],
    ids=["shards", "bin", "a pointer beside the weights", "a pointer beside tokenizer.json"],
)
def test_files_that_are_right(spoilt, make_model, family, change):
    folder = spoilt(change)
    assert checkpoints.load_text(str(folder))
    same = checkpoints.weights_hash(checkpoints.load_policy(str(make_model(family)), CPU))
    assert checkpoints.weights_hash(checkpoints.load_policy(str(folder), CPU)) == same


# --- weights that do not fit


def prefixed(prefix: str) -> Change:
    return weights(lambda tensors, _: {prefix + name: value for name, value in tensors.items()})


def with_value(value: float) -> Change:
    def change(tensors: dict[str, Any], name: str) -> dict[str, Any]:
        tensors[name].view(-1)[7] = value
        return tensors

    return weights(change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (also(LAYER__attn__lora_A__default__weight=(2, 32)), "adapter that was not merged.*lora_A.*merge_and_unload"),
        (weights(lambda t, name: t | {name.replace(".weight", ".base_layer.weight"): t.pop(name)}), "base_layer"),
        (prefixed("module."), r"weights are missing.*has them as module\.…, saved from within a wrapper"),
        (prefixed("_orig_mod."), r"has them as _orig_mod\.…"),
        (prefixed("pretrained_model."), r"has them as pretrained_model\.…"),
        (also(LAYER__other__weight=(2,), LAYER__other__bias=(2,)), r"\(2\) have no place in the model.*other.bias"),
        (also(lm_head__bias=(100,)), r"\(1\) have no place in the model.*lm_head.bias"),
        (settings(num_hidden_layers=1, n_layer=1), r"the file has layers 0-1, config.json only 1"),
        (settings(num_hidden_layers=4, n_layer=4), r"the file has layers 0-1, config.json has 4"),
        (settings(vocab_size=107), "is 100 x 32 in the file and 107 x 32 by config.json.*one and the same checkpoint"),
        (with_value(float("nan")), "(q_proj|c_attn).weight holds NaN"),
        (with_value(float("inf")), "(q_proj|c_attn).weight holds inf"),
        (with_value(-float("inf")), "(q_proj|c_attn).weight holds inf"),
    ],
)
def test_weights_that_do_not_fit(spoilt, change, says):
    said = refusal(spoilt(change))
    assert re.search(says, said)
    assert "ignore_mismatched_sizes" not in said


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_no_number_in_any_precision(base, tmp_path, dtype):
    folder = shutil.copytree(base, tmp_path / "model")
    file = folder / "model.safetensors"
    with_value(float("nan"))(folder)
    save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file, {"format": "pt"})
    assert re.search("holds NaN", refusal(folder))


HARMLESS = {
    "a value head": also(v_head__summary__weight=(1, 32), v_head__summary__bias=(1,)),
    "a score": also(score__weight=(1, 32)),
    "rotary factors": also(LAYER__self_attn__rotary_emb__inv_freq=(4,)),
    "a mask": also(LAYER__attn__bias=(1, 1, 8, 8), LAYER__attn__masked_bias=()),
    "layers that predict more tokens": also(mtp__layers__0__weight=(2,), mtp__norm__weight=(2,)),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_weights_that_change_nothing(spoilt, make_model, family, change):
    folder = spoilt(change)
    ids = torch.tensor([[0, 7, 30, 4]])
    plain = AutoModelForCausalLM.from_pretrained(make_model(family)).eval()
    torch.testing.assert_close(
        checkpoints.load_policy(str(folder), CPU)(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=0, atol=1e-5
    )


def test_a_head_is_left_over_only_where_none_is_wanted(base, tmp_path):
    """A bias of the head that the policy has no place for changes its words; a reward model has no such head."""
    folder = shutil.copytree(base, tmp_path / "model")
    also(lm_head__bias=(100,))(folder)
    assert "lm_head.bias" in refusal(folder)
    assert as_scalar(str(folder), CPU)


def test_further_layers_that_the_config_tells_of(base, tmp_path):
    """DeepSeek and GLM keep the layer that predicts a second token behind the others."""
    folder = shutil.copytree(base, tmp_path / "model")
    settings(num_hidden_layers=1, num_nextn_predict_layers=1)(folder)
    assert checkpoints.load_policy(str(folder), CPU)


def test_towers_are_left_over_only_of_a_model_that_has_them(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "model")
    also(vision_tower__patch__weight=(2, 2))(folder)
    assert "vision_tower" in refusal(folder)
    settings(vision_config={"hidden_size": 2})(folder)
    assert checkpoints.load_policy(str(folder), CPU)


# --- kinds of models


@pytest.mark.parametrize("load", [checkpoints.load_policy, as_scalar], ids=["policy", "scalar"])
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("T5ForConditionalGeneration", "t5 is an encoder-decoder"),
        ("BartForConditionalGeneration", "bart is an encoder-decoder"),
        ("BertForMaskedLM", "bert is an encoder"),
        ("RobertaForMaskedLM", "roberta is an encoder"),
    ],
)
def test_what_is_no_decoder(base, tmp_path, kind, says, load):
    import transformers

    shape = {"vocab_size": 100, "d_model": 16, "hidden_size": 16, "d_ff": 16, "d_kv": 8, "intermediate_size": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_attention_heads": 2, "num_heads": 2}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "num_hidden_layers": 1, "num_layers": 1}
    model = getattr(transformers, kind)
    config = model.config_class(**shape, **heads, **layers, encoder_ffn_dim=16, decoder_ffn_dim=16)
    folder = shutil.copytree(base, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    model(config).save_pretrained(folder)
    said = refusal(folder, load)
    assert says in said
    assert "give a decoder" in said


def test_an_encoder_that_scores_is_no_reward_model(base, tmp_path):
    """Its last token has not seen the others from left to right, and its score comes through a pooler."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    folder = shutil.copytree(base, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    BertForSequenceClassification(config).save_pretrained(folder)
    assert "bert is an encoder" in refusal(folder, checkpoints.load_reward)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            settings(model_type="llama-9", transformers_version="9.1"),
            r"transformers \d.* does not know the model type 'llama-9' \(it was saved by 9.1\); install a newer one",
        ),
        (settings(model_type=None), 'no model_type.*add "model_type": "(llama|gpt2)"'),
        (settings(model_type=None, architectures=["Some"]), "no model_type, which tells what it is; copy config.json"),
        (settings(model_type="clip", vision_config={}, text_config={}), "no language model of the type 'clip'"),
    ],
)
def test_types_that_are_not_known(spoilt, change, says):
    assert re.search(says, refusal(spoilt(change)))
