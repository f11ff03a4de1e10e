"""A scalar head on every causal backbone: the library's class where it fits, Keel's own where it does not.

The oracle is transformers' causal language model: its last hidden state times the head.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from keel.config import Machine
from keel.engine.run import Run
from keel.errors import InputError
from keel.models import checkpoints, heads, scalar

CPU = Machine(device="cpu", precision="fp32")
BF16 = Machine(device="cpu", precision="bf16")
PAD = 3
IDS = torch.tensor([[0, 7, 30, 4, 55, 9]])

WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
WHOLE_HEADS = {k: v for k, v in WIDTHS.items() if k != "num_key_value_heads"}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_layers": 1}
DECODER = WHOLE_HEADS | {"is_decoder": True}
KINDS = ["sliding_attention", "full_attention"]
LLAMA4 = WIDTHS | EXPERTS | {"attention_chunk_size": 64, "intermediate_size_mlp": 48, "head_dim": 8}

OWN: dict[str, tuple[dict[str, Any], str, str]] = {
    "cohere": (WIDTHS, "CohereForSequenceClassification", "model"),
    "cohere2": (WIDTHS | {"sliding_window": 4, "layer_types": KINDS}, "Cohere2ForSequenceClassification", "model"),
    "granite": (WIDTHS | {"embedding_multiplier": 2.0}, "GraniteForSequenceClassification", "model"),
    "olmoe": (WIDTHS | EXPERTS, "OlmoeForSequenceClassification", "model"),
    "apertus": (WIDTHS, "ApertusForSequenceClassification", "model"),
    "ernie4_5": (WIDTHS | {"head_dim": 8}, "Ernie4_5ForSequenceClassification", "model"),
    "internlm3": (WIDTHS, "LlamaForSequenceClassification", "model"),
    "llama4_text": (LLAMA4, "Llama4ForSequenceClassification", "model"),
    "lfm2": (WIDTHS | {"layer_types": ["conv", "full_attention"]}, "Lfm2ForSequenceClassification", "model"),
    "falcon_h1": (
        WIDTHS | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_d_head": 8},
        "FalconH1ForSequenceClassification",
        "model",
    ),
    "mamba": (
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        "MambaForSequenceClassification",
        "backbone",
    ),
    "rwkv": (WHOLE_HEADS | {"attention_hidden_size": 32}, "RwkvForSequenceClassification", "rwkv"),
    "codegen": (GPT | {"rotary_dim": 4}, "CodeGenForSequenceClassification", "transformer"),
    "xglm": (
        {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
        "XGLMForSequenceClassification",
        "model",
    ),
    "bart": (BART, "BartCausalForSequenceClassification", "model"),
    "pegasus": (BART, "PegasusForSequenceClassification", "model"),
    "bert": (DECODER, "BertCausalForSequenceClassification", "bert"),
    "roberta": (DECODER, "RobertaCausalForSequenceClassification", "roberta"),
    "electra": (DECODER | {"embedding_size": 16}, "ElectraCausalForSequenceClassification", "electra"),
    "modernbert-decoder": (DECODER, "ModernBertDecoderCausalForSequenceClassification", "model"),
}
"""Model type -> settings, the class of the scalar model, and the attribute of its backbone."""

LIBRARY: dict[str, dict[str, Any]] = {
    "llama": WIDTHS,
    "gpt2": GPT,
    "opt": WHOLE_HEADS | {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "gpt_neox": WHOLE_HEADS,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gemma3_text": WIDTHS | {"head_dim": 8, "sliding_window": 4, "layer_types": KINDS},
    "mixtral": WIDTHS | EXPERTS,
    "jamba": WIDTHS | EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
}
"""Families on whose causal backbone the library has a linear head."""

EITHER = [*OWN, *LIBRARY]


def write(folder: Path, model: Any, tokenizer: Path) -> Path:
    """Save a model whose constant parameters are moved, too, beside a tokenizer."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p)) if p.ndim == 1 else p.mul_(4)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory, base):
    """`folder_of("cohere", tie_word_embeddings=True)`: a tiny causal checkpoint of the family, built once."""
    built: dict[str, Path] = {}

    def make(kind: str, **changes: Any) -> Path:
        key = repr((kind, sorted(changes.items())))
        if key not in built:
            settings = OWN[kind][0] if kind in OWN else LIBRARY[kind]
            ids = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": PAD}
            known = t.AutoConfig.for_model(kind)
            settings = {k: v for k, v in settings.items() if hasattr(known, k)}
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(t.AutoConfig.for_model(kind, **ids | settings | changes))
            built[key] = write(tmp_path_factory.mktemp(kind) / "model", model, base)
        return built[key]

    return make


@pytest.fixture(scope="module")
def images(tmp_path_factory, base) -> Path:
    """A Gemma 3 that reads images, too: its text part has windows, and more rows than the tokenizer has tokens."""
    text = LIBRARY["gemma3_text"] | {"vocab_size": 104, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0}
    vision = WHOLE_HEADS | {"image_size": 28, "patch_size": 14}
    tokens = {"boi_token_index": 101, "eoi_token_index": 102, "image_token_index": 103, "mm_tokens_per_image": 1}
    config = t.Gemma3Config(text_config=text, vision_config=vision, **tokens)
    torch.manual_seed(0)
    return write(tmp_path_factory.mktemp("images") / "model", t.Gemma3ForConditionalGeneration(config), base)


@pytest.fixture(scope="module")
def llama4(tmp_path_factory, base) -> Path:
    """A Llama 4 that reads images, too: its causal model is the text part alone."""
    text = OWN["llama4_text"][0] | {"vocab_size": 104, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 1}
    widths = {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    vision = WHOLE_HEADS | {"intermediate_size": 128, "image_size": 28, "patch_size": 14} | widths
    config = t.Llama4Config(text_config=text, vision_config=vision, image_token_index=103)
    torch.manual_seed(0)
    return write(tmp_path_factory.mktemp("llama4") / "model", t.Llama4ForConditionalGeneration(config), base)


@torch.no_grad()
def expected(folder: Path, head: torch.nn.Linear, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Scores [B, 1] by the causal model's own hidden states."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=head.weight.dtype).eval()
    hidden = plain(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
    return head(hidden[:, -1].to(head.weight.dtype))


@torch.no_grad()
def score(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids).logits


def new(folder: Path, machine: Machine = CPU, pad: int = PAD) -> Any:
    """A new scalar model whose head is drawn."""
    model = checkpoints.new_scalar_model(str(folder), machine, pad)
    assert not score(model).any()  # as it starts
    torch.manual_seed(5)
    torch.nn.init.normal_(heads.scalar_head(model).weight)
    return model


# --- numbers


@pytest.mark.parametrize("kind", EITHER)
def test_a_score_is_the_head_on_the_causal_model_s_last_state(folder_of, kind):
    folder = folder_of(kind)
    model = new(folder)
    torch.testing.assert_close(score(model), expected(folder, heads.scalar_head(model)), rtol=0, atol=1e-5)
    assert type(model).__name__ == (OWN[kind][1] if kind in OWN else type(model).__name__)
    assert scalar.is_own(model) == (kind in OWN)


@pytest.mark.parametrize("kind", LIBRARY)
def test_our_own_class_would_do_everywhere(folder_of, kind):
    """Also where a backbone is narrower at its end than within: OPT's projection."""
    model, info = scalar.OwnScalarModel.from_pretrained(str(folder_of(kind)), num_labels=1, output_loading_info=True)
    assert info["missing_keys"] == {"score.weight"}
    assert info["unexpected_keys"] <= {"embed_out.weight"}  # GPT-NeoX's head in its files
    torch.nn.init.normal_(model.score.weight)
    torch.testing.assert_close(score(model.eval()), expected(folder_of(kind), model.score), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", EITHER)
def test_so_it_is_in_bf16(folder_of, kind):
    folder = folder_of(kind)
    model = new(folder, BF16)
    assert heads.scalar_head(model).weight.dtype == torch.bfloat16
    torch.testing.assert_close(score(model), expected(folder, heads.scalar_head(model)), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("kind", EITHER)
def test_padding_is_passed_over(folder_of, kind):
    """As transformers' classifiers do: the last token that is not padding is read."""
    model = new(folder_of(kind))
    rows = torch.tensor([[*IDS[0].tolist(), PAD, PAD], [0, 9, 9, 8, 7, 6, 5, 4]])
    torch.testing.assert_close(score(model, rows)[:1], score(model), rtol=0, atol=1e-4)
    torch.testing.assert_close(score(model, rows)[1:], score(model, rows[1:]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["cohere", "mamba", "bart", "bert"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_or_not_the_backbone_s_weights_come_with_it(folder_of, kind, tied):
    folder = folder_of(kind, tie_word_embeddings=tied)
    model = new(folder)
    torch.testing.assert_close(score(model), expected(folder, heads.scalar_head(model)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", EITHER)
def test_every_weight_gets_a_gradient(folder_of, kind):
    """Nothing of the language-model head is left. Cross attention and Pegasus's computed positions are idle."""
    model = new(folder_of(kind))
    model(input_ids=IDS).logits.sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    fixed = ["embed_positions"] if kind == "pegasus" else []
    assert [name for name in idle if not any(part in name for part in ["encoder_attn", *fixed])] == []


def test_an_image_reader_scores_by_its_text_part(images):
    model = new(images)
    text = AutoModelForCausalLM.from_pretrained(images, dtype=torch.float32).eval().model.language_model
    long = torch.arange(4, 40)[None]  # longer than the window
    with torch.no_grad():
        hidden = text(input_ids=long, use_cache=False).last_hidden_state[:, -1]
        torch.testing.assert_close(score(model, long), heads.scalar_head(model)(hidden), rtol=0, atol=1e-5)
    assert model.config.get_text_config().pad_token_id == PAD
    rows = torch.nn.functional.pad(long, (0, 3), value=PAD)
    torch.testing.assert_close(score(model, rows), score(model, long), rtol=0, atol=1e-5)


def test_a_text_part_is_taken_out_of_an_image_reader(llama4, tmp_path):
    """As the library's causal model takes it: what is saved is a text model."""
    model = new(llama4)
    torch.testing.assert_close(score(model), expected(llama4, model.score), rtol=0, atol=1e-5)
    checkpoints.save(model, checkpoints.load_text(str(llama4)), tmp_path / "text")
    checkpoints.require_reload(model, tmp_path / "text")
    back = checkpoints.load_reward(str(tmp_path / "text"), CPU)
    assert back.config.model_type == "llama4_text"
    torch.testing.assert_close(score(back), score(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["cohere", "bart", "images"])
def test_a_pad_beyond_the_vocabulary_gets_a_row(folder_of, images, kind, tmp_path):
    folder = images if kind == "images" else folder_of(kind)
    model = new(folder, pad=110)
    assert model.get_input_embeddings().weight.shape[0] == 111
    want = score(model)
    torch.testing.assert_close(score(model, torch.nn.functional.pad(IDS, (0, 2), value=110)), want, rtol=0, atol=1e-5)
    checkpoints.save(model, checkpoints.load_text(str(folder)), tmp_path / "grown")
    torch.testing.assert_close(score(checkpoints.load_reward(str(tmp_path / "grown"), CPU)), want, rtol=0, atol=1e-5)


# --- files


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("machine", [CPU, BF16], ids=["fp32", "bf16"])
def test_saved_and_loaded_it_is_the_same(folder_of, kind, machine, weights, tmp_path):
    folder = folder_of(kind)
    model = new(folder, machine)
    checkpoints.save(model, checkpoints.load_text(str(folder)), tmp_path / "saved")
    checkpoints.require_reload(model, tmp_path / "saved")
    assert checkpoints.is_reward_folder(str(tmp_path / "saved"))
    assert not model.can_generate()
    back = checkpoints.load_reward(str(tmp_path / "saved"), machine)
    assert type(back) is type(model)
    live, read = model.state_dict(), back.state_dict()
    assert live.keys() == read.keys()
    assert all(torch.equal(live[key], read[key]) for key in live)
    torch.testing.assert_close(score(back), score(model), rtol=0, atol=1e-5 if machine is CPU else 0.05)

    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert config["model_type"] == json.loads((folder / "config.json").read_text())["model_type"]
    if kind in OWN:  # the backbone's keys are those of the language model, which are those of the family
        keys = set(weights(tmp_path / "saved")) - {"score.weight"}
        assert keys <= set(weights(folder))
        assert {key.split(".")[0] for key in keys} == {OWN[kind][2]}


@pytest.mark.parametrize("kind", LIBRARY)
def test_the_library_reads_the_classes_that_are_its_own(folder_of, kind, tmp_path):
    model = new(folder_of(kind))
    checkpoints.save(model, checkpoints.load_text(str(folder_of(kind))), tmp_path / "saved")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    torch.testing.assert_close(score(theirs), score(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["cohere", "mamba", "internlm3", "pegasus"])
def test_the_library_reads_no_others(folder_of, kind, tmp_path):
    """As we say of them."""
    model = new(folder_of(kind))
    checkpoints.save(model, checkpoints.load_text(str(folder_of(kind))), tmp_path / "saved")
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")


def test_a_library_that_learns_a_family_reads_its_older_folders(folder_of, tmp_path):
    """The layout is the library's: a class that it may have one day, made of its own parts, finds every weight."""
    from transformers.modeling_layers import GenericForSequenceClassification
    from transformers.models.cohere.modeling_cohere import CoherePreTrainedModel

    model = new(folder_of("cohere"))
    checkpoints.save(model, checkpoints.load_text(str(folder_of("cohere"))), tmp_path / "saved")
    theirs = type("CohereForSequenceClassification", (GenericForSequenceClassification, CoherePreTrainedModel), {})
    read, info = theirs.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(score(read.eval()), score(model), rtol=0, atol=1e-5)


CODE = """
from transformers import CohereConfig, CohereForCausalLM

class MyConfig(CohereConfig):
    model_type = "of-a-folder"

class MyForCausalLM(CohereForCausalLM):
    config_class = MyConfig
"""


def test_code_of_a_folder_goes_with_the_scalar_model(folder_of, monkeypatch, tmp_path, fresh_code):
    """It runs only where somebody said so, and nobody is asked."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    folder = Path(shutil.copytree(folder_of("cohere"), tmp_path / "folder"))
    (folder / "own_code.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own_code.MyConfig", "AutoModelForCausalLM": "own_code.MyForCausalLM"}
    config |= {"model_type": "of-a-folder", "architectures": ["MyForCausalLM"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="custom code"):
        scalar.AutoScalarModel.from_pretrained(str(folder), num_labels=1)
    model = scalar.AutoScalarModel.from_pretrained(str(folder), num_labels=1, trust_remote_code=True).eval()
    torch.nn.init.normal_(model.score.weight)
    torch.testing.assert_close(score(model), expected(folder_of("cohere"), model.score), rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    back = scalar.AutoScalarModel.from_pretrained(str(tmp_path / "saved"), trust_remote_code=True).eval()
    assert type(back).__name__ == "MyForSequenceClassification"
    torch.testing.assert_close(score(back), score(model), rtol=0, atol=1e-5)


# --- what is said


@pytest.mark.parametrize(("kind", "others"), [("granite", "cannot"), ("bert", "would make another model of it")])
def test_an_own_class_is_announced_once(folder_of, kind, others, capsys, tmp_path):
    model = new(folder_of(kind))
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "AutoModelForSequenceClassification" in x]
    assert kind in line
    assert type(model).__name__ in line
    assert line.endswith(others)
    checkpoints.save(model, checkpoints.load_text(str(folder_of(kind))), tmp_path / "saved")
    checkpoints.load_reward(str(tmp_path / "saved"), CPU)
    assert "AutoModelForSequenceClassification" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", LIBRARY)
def test_a_library_class_needs_no_word(folder_of, kind, capsys):
    new(folder_of(kind))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "bart", "modernbert"])
def test_a_classifier_that_is_no_decoder_s_is_no_reward_model(kind, base, tmp_path):
    """They pool the first token, or run an encoder: a score by their last state would be another number."""
    settings = WHOLE_HEADS | BART | {"num_labels": 1, "vocab_size": 100, "pad_token_id": PAD, "eos_token_id": 1}
    known = t.AutoConfig.for_model(kind)
    config = t.AutoConfig.for_model(kind, **{k: v for k, v in settings.items() if hasattr(known, k)})
    folder = write(tmp_path / kind, AutoModelForSequenceClassification.from_config(config), base)
    with pytest.raises(InputError, match=rf"{kind}: .*keel reward") as caught:
        checkpoints.load_reward(str(folder), CPU)
    assert "\n" not in str(caught.value)


def test_a_score_that_is_no_linear_head_s_is_found_out(folder_of, monkeypatch):
    """The trial sees a classifier that does one thing more, and the model gets our own class instead."""
    real = t.LlamaForSequenceClassification.forward

    def forward(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        out.logits = out.logits.tanh()
        return out

    monkeypatch.setattr(t.LlamaForSequenceClassification, "forward", forward)
    folder = folder_of("llama")
    model = new(folder)
    assert type(model).__name__ == "LlamaCausalForSequenceClassification"
    torch.testing.assert_close(score(model), expected(folder, model.score), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("machine", [CPU, BF16], ids=["fp32", "bf16"])
def test_a_backbone_that_reads_ahead_gets_no_head(folder_of, kind, machine):
    """An encoder loads as a causal model, too, with a warning at most."""
    with pytest.raises(InputError, match="not a decoder"):
        new(folder_of(kind, is_decoder=False), machine)


def test_a_model_that_fails_is_refused_in_one_line(folder_of, monkeypatch):
    monkeypatch.setattr(t.CohereModel, "forward", lambda *_, **__: torch.ones(2) + torch.ones(3))
    with pytest.raises(InputError, match=r"model: cannot read a few tokens.*must match") as caught:
        new(folder_of("cohere"))
    assert "\n" not in str(caught.value)


# --- in the commands


@pytest.mark.parametrize("kind", ["cohere", "lfm2", "mamba", "bart", "bert"])
def test_a_reward_model_trains_and_trains_on(train, folder_of, kind, capsys):
    reward = train("reward", model=str(folder_of(kind)), steps=2)
    assert capsys.readouterr().err.count("AutoModelForSequenceClassification") == 1
    again = train("reward", model=str(reward.folder), steps=1)
    assert scalar.is_own(checkpoints.load_reward(str(again.final), CPU))


@pytest.mark.parametrize("kind", ["cohere", "olmoe"])
def test_ppo_takes_it_as_reward_and_as_critic(train, folder_of, kind):
    folder = str(folder_of(kind))
    reward = train("reward", model=folder, steps=2)
    result = train("ppo", model=folder, reward=str(reward.folder), steps=2)
    assert AutoModelForCausalLM.from_pretrained(result.final)


@pytest.mark.parametrize("kind", ["granite", "codegen", "xglm", "cohere2"])
def test_ppo_with_a_rule(train, folder_of, kind, rules):
    """The critic is the policy's backbone with a head at zero."""
    result = train("ppo", model=str(folder_of(kind)), reward=rules, steps=2)
    assert AutoModelForCausalLM.from_pretrained(result.final)


class KilledError(Exception):
    """What stands for a kill."""


def test_a_run_killed_and_resumed_is_the_same(train, configure, folder_of, monkeypatch, weights):
    options = {"model": str(folder_of("granite")), "steps": 4, "save_every": 2}
    whole = train("reward", **options)
    config = configure("reward", **options)
    real = Run.update

    def update(self, *roles):
        if self.step == 3:
            raise KilledError
        real(self, *roles)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "update", update)
        with pytest.raises(KilledError):
            train("reward", config=config)
    resumed = train("reward", config=config.model_copy(update={"resume": True}))
    a, b = weights(whole.final), weights(resumed.final)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
