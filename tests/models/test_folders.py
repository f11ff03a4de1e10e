"""Checkpoint folders as people have them: each is right, or refused in one line with the remedy that fits it."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from keel.config import Machine, Spelling
from keel.errors import InputError
from keel.models import checkpoints

CPU = Machine(device="cpu", precision="fp32")
TRUSTING = CPU.model_copy(update={"trust_remote_code": True})
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1176152\n"
FAMILIES = {"llama": "model.layers.0.self_attn.q_proj.weight", "gpt2": "transformer.h.0.attn.c_attn.weight"}
"""A weight of the first layer; GPT-2's config and keys have other names than the rest."""
Change = Callable[[Path], None]


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


def refusal(folder: Path, load: Callable[..., Any] = checkpoints.load_policy) -> str:
    """What a command says on one line; the folder's name is in it."""
    with pytest.raises(InputError) as caught:
        load(str(folder), CPU)
    said = str(caught.value)
    assert folder.name in said
    assert "\n" not in said
    return said


def as_scalar(name: str, machine: Machine) -> Any:
    return checkpoints.new_scalar_model(name, machine, 3)


# --- changes to a folder


def settings(file: str = "config.json", **changes: Any) -> Change:
    """Values of a JSON file; None takes one away."""

    def change(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        content |= changes
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return change


def weights(change_all: Callable[[dict[str, Any], str], dict[str, Any]]) -> Change:
    """The tensors of model.safetensors, given with the name of a weight of the first layer."""

    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        name = next(name for name in FAMILIES.values() if name in tensors)
        save_file(change_all(tensors, name), file, {"format": "pt"})

    return change


def content(file: str, text: str | bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(text.encode() if isinstance(text, str) else text) and None


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def renamed(file: str, to: str) -> Change:
    return lambda folder: (folder / file).rename(folder / to) and None


def without(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def cut(share: float) -> Change:
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return change


def sharded(*, lost: bool = False, index: bool = True) -> Change:
    """The weights in two files."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        keys = sorted(tensors)
        names = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(keys)}
        for file in sorted(set(names.values()))[: 1 if lost else 2]:
            save_file({k: tensors[k].clone() for k in keys if names[k] == file}, folder / file, {"format": "pt"})
        if index:
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))

    return change


def as_bin(wrap: Callable[[dict[str, Any]], Any] = dict, share: float = 1.0) -> Change:
    def change(folder: Path) -> None:
        file = folder / "pytorch_model.bin"
        torch.save(wrap(load_file(folder / "model.safetensors")), file)
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        (folder / "model.safetensors").unlink()

    return change


def adapter(kind: str = "LORA") -> Change:
    described = {"peft_type": kind, "base_model_name_or_path": "owner/base"}
    return both(settings("adapter_config.json", **described), content("adapter_model.safetensors", b"x"))


# --- adapters

MERGE = r"an adapter of owner/base.*merge_and_unload.*merged folder"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (both(adapter(), without("config.json"), without("model.safetensors")), MERGE + "$"),
        (both(adapter(), without("model.safetensors")), MERGE + "$"),
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
    both(adapter(), without("config.json"))(folder)
    assert re.search(MERGE, refusal(tmp_path / "run"))


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
        (both(content("params.json", "{}"), without("config.json")), "layout of their makers"),
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


def also(**more: Any) -> Change:
    """Weights added to the file under these names, `__` for a dot and `LAYER` for the first layer's name."""
    names = {name.replace("__", "."): value for name, value in more.items()}

    def add(tensors: dict[str, Any], weight: str) -> dict[str, Any]:
        layer = re.match(r".*\.0(?=\.)", weight)[0]  # type: ignore[index]
        return tensors | {name.replace("LAYER", layer): torch.ones(value) for name, value in names.items()}

    return weights(add)


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


# --- code of a folder

TRAP = "from pathlib import Path\n\nPath(__file__).with_name('ran').touch()\nraise SystemExit('it must not run')\n"


@pytest.fixture(scope="session")
def copies_of_code(tmp_path_factory):
    """Where the library puts code before it runs it: not into the user's own cache."""
    place = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", place)
        patch.setenv("HF_MODULES_CACHE", place)
        yield place


@pytest.fixture
def own_kind(make_model, tmp_path, copies_of_code):
    """A model of its own kind, with its code in the folder: a Llama that doubles what it embeds."""
    folder = shutil.copytree(make_model("llama"), tmp_path / "own")
    (folder / "configuration_own.py").write_text(
        f"# {tmp_path}: the library knows code by its words, and takes the same words for the same model\n"
        "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own-kind'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from torch import nn\nfrom transformers import LlamaForCausalLM\n\n"
        "from .configuration_own import OwnConfig\n\n\n"
        "class Twice(nn.Embedding):\n    def forward(self, ids):\n        return 2 * super().forward(ids)\n\n\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n\n"
        "    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.model.embed_tokens = Twice(config.vocab_size, config.hidden_size)\n"
    )
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    settings(model_type="own-kind", architectures=["OwnModel"], auto_map=auto)(folder)
    return folder


def keel(*arguments: object, answer: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "keel.cli", *map(str, arguments)]
    return subprocess.run(command, input=answer, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("answer", ["", "y\n" * 9], ids=["silence", "yes"])
def test_code_never_runs_unasked(own_kind, demonstrations_file, tmp_path, answer):
    for file in own_kind.glob("*.py"):
        file.write_text(TRAP)
    done = keel("sft", "--model", own_kind, "--data", demonstrations_file, "--out", tmp_path / "run", answer=answer)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(
        "keel sft: .*'own-kind' is code of its own .configuration_own.py, modeling_own.py.*add --trust-remote-code.*\n",
        done.stderr,
    )
    assert not list(own_kind.glob("ran"))


def test_code_that_is_trusted_runs_and_travels_along(own_kind, demonstrations_file, prompts_file, tmp_path):
    run, out = tmp_path / "run", tmp_path / "answers.jsonl"
    trained = keel(
        *("sft", "--model", own_kind, "--data", demonstrations_file, "--out", run, "--steps", 2, "--batch-size", 4),
        "--trust-remote-code",
    )
    assert trained.returncode == 0, trained.stderr
    shutil.rmtree(own_kind)  # what is saved stands by itself
    few = ("--prompts", prompts_file, "--max-new-tokens", 4)
    assert keel("generate", "--model", run, *few, "--out", out).returncode == 2
    drawn = keel("generate", "--model", run, *few, "--out", out, "--trust-remote-code")
    assert drawn.returncode == 0, drawn.stderr
    assert len(out.read_text().splitlines()) == 8


def test_the_folder_s_code_computes(own_kind, base):
    ids = torch.tensor([[0, 7, 30, 4]])
    own = checkpoints.load_policy(str(own_kind), TRUSTING)(input_ids=ids).logits
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        plain.model.embed_tokens.weight.mul_(2)
    torch.testing.assert_close(own, plain(input_ids=ids).logits, rtol=0, atol=1e-5)


def test_a_known_kind_needs_no_code(base, tmp_path, train):
    """The library's own class is taken, and what is saved does not point to code that stays behind."""
    folder = shutil.copytree(base, tmp_path / "model")
    settings(auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})(folder)
    (folder / "own.py").write_text(TRAP)
    result = train("sft", model=str(folder), steps=1)
    assert not list(folder.glob("ran"))
    assert "auto_map" not in json.loads((result.final / "config.json").read_text())


@pytest.mark.parametrize(("kind", "refused"), [("OwnTokenizer", True), ("PreTrainedTokenizerFast", False)])
def test_code_of_a_tokenizer(base, tmp_path, kind, refused):
    folder = shutil.copytree(base, tmp_path / "model")
    settings("tokenizer_config.json", tokenizer_class=kind, auto_map={"AutoTokenizer": [None, "own.Own"]})(folder)
    (folder / "own.py").write_text(TRAP)
    if refused:
        said = refusal(folder, lambda name, machine: checkpoints.load_text(name))
        assert re.search(r"its tokenizer is code of its own \(own.py\).*--trust-remote-code", said)
    else:
        assert checkpoints.load_text(str(folder)).tokenizer("ok").input_ids
    assert not list(folder.glob("ran"))


def test_code_of_a_tokenizer_that_is_trusted(base, tmp_path, copies_of_code):
    folder = shutil.copytree(base, tmp_path / "model")
    settings("tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": [None, "own.Own"]})(folder)
    (folder / "own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\n\nclass Own(PreTrainedTokenizerFast):\n    mark = 7\n"
    )
    text = checkpoints.load_text(str(folder), Spelling(trust_remote_code=True))
    assert text.tokenizer.mark == 7
    model = checkpoints.load_policy(str(folder), CPU)
    checkpoints.save(model, text, tmp_path / "saved")
    assert checkpoints.load_text(str(tmp_path / "saved"), Spelling(trust_remote_code=True)).tokenizer.mark == 7


# --- hub names


@pytest.fixture
def in_cache(base, tmp_path, monkeypatch):
    """`in_cache(change)`: a changed checkpoint in the hub's cache, under the name owner/model."""

    def make(change: Change) -> str:
        place = tmp_path / "models--owner--model"
        commit = "0" * 40
        folder = shutil.copytree(base, place / "snapshots" / commit)
        change(folder)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
        return str(tmp_path)

    return make


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (adapter(), MERGE),
        (settings(quantization_config={"quant_method": "fp8"}), "quantised .fp8"),
        (settings(model_type="own-kind", auto_map={"AutoConfig": "own.Config"}), "own.py.*--trust-remote-code"),
        (settings(model_type="own-kind", auto_map={"AutoConfig": "x/y--own.Config"}), "own.py of x/y"),
        (settings(architectures=["LlamaForSequenceClassification"]), "reward model, not a language model"),
    ],
)
def test_hub_names(in_cache, demonstrations_file, tmp_path, monkeypatch, change, says):
    """Looked at by their small files, before the weights come."""
    monkeypatch.setenv("HF_HUB_CACHE", in_cache(change))
    done = keel("sft", "--model", "owner/model", "--data", demonstrations_file, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert re.fullmatch(f"keel sft: owner/model.*{says}.*\n", done.stderr), done.stderr


# --- tokenizers with more tokens than the embedding has rows

ROWS = 100


@pytest.fixture
def with_tokens(base, tmp_path):
    """`with_tokens(change)`: the base model with tokens added to its tokenizer, which its embedding has no rows for."""

    def make(change: Callable[[Any], object]) -> Path:
        folder = shutil.copytree(base, tmp_path / "more")
        tokenizer = AutoTokenizer.from_pretrained(base)
        assert len(tokenizer) == ROWS
        change(tokenizer)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def template_with_new_marks(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|image|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ '<|' + 'turn|>' + m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.add_tokens(["teddybear", "honeypot"]), r"'teddybear' \(100\), 'honeypot' \(101\)"),
        (lambda t: t.add_special_tokens({"eos_token": "<|end|>"}), r"'<\|end\|>' \(100\)"),
        (lambda t: t.add_special_tokens({"bos_token": "<|begin|>"}), r"'<\|begin\|>' \(100\)"),
        (template_with_new_marks, r"'<\|turn\|>' \(100\);"),
    ],
    ids=["words", "an end", "a beginning", "marks of the template"],
)
def test_tokens_without_a_row(with_tokens, change, named):
    said = refusal(with_tokens(change), lambda name, machine: checkpoints.load_text(name))
    assert re.search(
        rf"the tokenizer has 10[12] tokens, the model's embedding 100 rows, none of them for {named}", said
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.add_special_tokens({"pad_token": "[PAD]"}),
        lambda t: t.add_special_tokens({"additional_special_tokens": ["<image>"]}),
    ],
    ids=["padding", "an image's"],
)
@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
def test_tokens_that_no_text_becomes_need_no_row(with_tokens, train, method, change):
    """Padding is never embedded, nor is a token for images in a model that reads texts: Gemma 3 1B has such a one."""
    folder = with_tokens(change)
    rule = {"reward": f"rule:{_rules(folder)}"} if method == "ppo" else {}
    assert (train(method, model=str(folder), steps=1, **rule).final / "model.safetensors").exists()


def _rules(folder: Path) -> Path:
    file = folder / "rules.yaml"
    file.write_text("rules:\n  - contains: teddy\n")
    return file


@pytest.mark.parametrize("side", ["prompt", "completion"])
def test_a_token_without_a_row_that_data_spell_drops_the_row(with_tokens, write_rows, configure, tmp_path, side):
    from keel.methods import sft

    folder = with_tokens(lambda t: t.add_special_tokens({"pad_token": "[PAD]"}))
    rows = [{"prompt": f"what can teddy do {i}", "completion": f" nap {i}"} for i in range(12)]
    rows[4][side] += " [PAD] ok"
    data = str(write_rows(tmp_path / "rows.jsonl", rows))
    common = {"model": str(folder), "data": data, "steps": 1, "max_bad_share": 0.2}
    kept = sft.train(configure("sft", **common, control_tokens="keep"))
    assert kept.summary["rows"]["dropped"] == {"a text needs a token for which the model has no row": [1, [5]]}
    assert sft.train(configure("sft", **common)).summary["rows"]["dropped"] == {}


def test_more_rows_than_tokens_are_right(make_model, tmp_path):
    assert checkpoints.load_text(str(make_model("llama", vocab_size=128))).gaps.rows == 128


# --- odd tensors


def test_hashes_of_odd_tensors():
    """Without a dimension, empty, transposed, in eight bits: each has a hash, and another number another one."""

    def model(value: float = 3.0) -> torch.nn.Module:
        one = torch.nn.Linear(4, 3)
        torch.nn.init.ones_(one.weight)
        torch.nn.init.zeros_(one.bias)
        one.scale = torch.nn.Parameter(torch.tensor(value))
        one.none = torch.nn.Parameter(torch.empty(0, 3))
        one.turned = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
        for name, dtype in (("eighth", torch.float8_e4m3fn), ("short", torch.bfloat16), ("truth", torch.bool)):
            one.register_buffer(name, torch.ones(3).to(dtype))
        one.register_buffer("spread", torch.ones(3).expand(2, 3))
        return one

    assert (
        checkpoints.weights_hash(model()) == checkpoints.weights_hash(model()) != checkpoints.weights_hash(model(4.0))
    )


def test_odd_tensors_are_saved_and_read_back(own_kind, tmp_path):
    with (own_kind / "modeling_own.py").open("a") as file:
        file.write(
            "        self.model.register_buffer('count', torch.tensor(3.0))\n"
            "        self.model.register_buffer('eighth', torch.ones(4).to(torch.float8_e4m3fn))\n"
        )
    code = (own_kind / "modeling_own.py").read_text()
    (own_kind / "modeling_own.py").write_text("import torch\n" + code)
    also(model__count=())(own_kind)
    weights(lambda t, _: t | {"model.eighth": torch.ones(4).to(torch.float8_e4m3fn)})(own_kind)
    model = checkpoints.load_policy(str(own_kind), TRUSTING)
    text = checkpoints.load_text(str(own_kind), Spelling(trust_remote_code=True))
    checkpoints.save(model, text, tmp_path / "saved")
    checkpoints.require_reload(model, tmp_path / "saved")
