"""Code and tokenizers of model folders, names of the hub, and weights of odd shapes and types."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from keel.config import Spelling
from keel.models import checkpoints

from .changes import CPU, TRUSTING, Change, adapter, also, refusal, settings, weights

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
def own_kind(make_model, tmp_path, copies_of_code, fresh_code):
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
        (adapter(), "an adapter of owner/base"),
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
