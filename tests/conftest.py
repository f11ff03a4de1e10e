"""Tiny random models with a real tokenizer, and small data files, for every test that needs them.

Models have two layers of width 32 and about a hundred tokens. Their EOS row is scaled up, so that a random model ends
an answer now and then: answers of every length up to the limit, finished and cut, come up in a handful of samples.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ARCHITECTURES = ("llama", "qwen3", "gemma", "mistral", "gpt2", "gemma2", "gemma3", "mistral-window")
"""The five families that must work, two more Gemmas, and a Mistral whose window is shorter than the texts."""

WINDOW = 6

PLACES = ["rain", "snow", "park", "sun", "wind", "bath", "tent", "boat", "hall", "lane"]
VERBS = ["hug", "nap", "hop", "sing", "read", "swim", "hide", "wave", "spin", "rest"]
NAMES = ["teddy", "bruno", "paddy", "honey"]

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def fresh_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code of models' folders is imported from this test's copy alone, and forgotten after it."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
            del sys.modules[name]

    monkeypatch.setattr(sys, "path", [*sys.path])
    forget()
    yield
    forget()


@pytest.fixture(autouse=True)
def _own_product() -> Iterator[None]:
    """A wide model chooses the library of matrix products for its process; here for no test but its own."""
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


# --- tokenizers and models


def build_tokenizer(kind: str) -> Any:
    """`plain` (adds BOS), `bare` (adds nothing), `chat` (with a template), `pad-eos` (padding is EOS), `no-pad`.

    These know letters and few other signs. `bytes`, with a template, spells every text, byte by byte.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "bytes":
        return _bytes_tokenizer()
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    core.decoder = decoders.Metaspace(prepend_scheme="never")
    special = ["<s>", "</s>", "<unk>", "<pad>", "<|user|>", "<|assistant|>"]
    corpus = [f"what can {n} do in the {p}? let {n} {v} near it, ok." for n in NAMES for p in PLACES for v in VERBS]
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789 .,?!:\n'AHT")
    trainer = trainers.BpeTrainer(
        vocab_size=100, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(corpus, trainer)
    if kind != "bare":
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    pad = {"pad-eos": "</s>", "no-pad": None}.get(kind, "<pad>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=pad
    )
    if kind == "chat":
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _bytes_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", "<unk>", "<pad>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate([*names, *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(names)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_config(architecture: str, vocabulary: int, **changes: Any) -> Any:
    """A two-layer config of the family."""
    import transformers as t

    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        "initializer_range": 0.2,
    }
    if architecture == "gpt2":
        return t.GPT2Config(**{**common, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **changes})
    common |= {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    if architecture == "llama":
        return t.LlamaConfig(**{**common, **changes})
    if architecture == "qwen3":
        return t.Qwen3Config(**{**common, "head_dim": 8, **changes})
    if architecture == "mistral":
        return t.MistralConfig(**{**common, "sliding_window": None, **changes})
    if architecture == "mistral-window":
        return t.MistralConfig(**{**common, "sliding_window": WINDOW, **changes})
    common["head_dim"] = 8
    if architecture == "gemma":
        return t.GemmaConfig(**{**common, **changes})
    if architecture == "gemma2":
        caps = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": None, "query_pre_attn_scalar": 8}
        return t.Gemma2Config(**{**common, "sliding_window": WINDOW, **caps, **changes})
    if architecture == "gemma3":
        kinds = ["sliding_attention", "full_attention"]
        return t.Gemma3TextConfig(
            **{**common, "sliding_window": WINDOW, "layer_types": kinds, "query_pre_attn_scalar": 8, **changes}
        )
    raise ValueError(architecture)


def build_model(folder: Path, architecture: str, tokenizer: str, seed: int, **changes: Any) -> Path:
    """Write one checkpoint."""
    from transformers import AutoModelForCausalLM

    tok = build_tokenizer(tokenizer)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(build_config(architecture, len(tok), **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # biases and norms start constant: move them too
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            assert parameter.isfinite().all(), name
        head = model.get_output_embeddings().weight
        head[tok.eos_token_id] = torch.randn_like(head[0]) * 4 / head.shape[1] ** 0.5
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_model("qwen3", tokenizer="pad-eos", seed=1, n_positions=32)`: a checkpoint folder, built once."""
    built: dict[str, Path] = {}

    def make(architecture: str = "llama", *, tokenizer: str = "plain", seed: int = 0, **changes: Any) -> Path:
        key = repr((architecture, tokenizer, seed, sorted(changes.items())))
        if key not in built:
            folder = tmp_path_factory.mktemp(architecture) / "model"
            built[key] = build_model(folder, architecture, tokenizer, seed, **changes)
        return built[key]

    return make


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Every architecture in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def base(make_model: Callable[..., Path]) -> Path:
    """The model that a test takes when any will do."""
    return make_model("llama")


@pytest.fixture(scope="session")
def make_reward(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Callable[..., Path]:
    """`make_reward("gpt2")`: a reward folder with a random head, written with Hugging Face alone."""
    built: dict[str, Path] = {}

    def make(architecture: str = "llama", **options: Any) -> Path:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        key = repr((architecture, sorted(options.items())))
        if key not in built:
            source, folder = make_model(architecture, **options), tmp_path_factory.mktemp("reward") / "model"
            model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
            torch.manual_seed(5)
            torch.nn.init.normal_(model.score.weight, std=0.3)
            model.config.pad_token_id = 3
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(source).save_pretrained(folder)
            built[key] = folder
        return built[key]

    return make


@pytest.fixture(scope="session")
def reward_folder(make_reward: Callable[..., Path]) -> Path:
    """A reward model on the base model's backbone."""
    return make_reward("llama")


# --- data files


@pytest.fixture(scope="session")
def write_rows() -> Callable[[Path, Iterable[Any]], Path]:
    """`write_rows(file, rows)`: JSON lines; a string is written as it stands."""

    def write(file: Path, rows: Iterable[Any]) -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file

    return write


def pair_rows(count: int) -> list[dict[str, Any]]:
    """Distinct prompts; the chosen answer names the place, the rejected one does not; lengths vary."""
    draw = random.Random(7)
    combinations = list(itertools.product(NAMES, PLACES))[:count]
    rows = []
    for name, place in combinations:
        verb = draw.choice(VERBS)
        rows.append(
            {
                "prompt": f"what can {name} do in the {place}?",
                "chosen": f" {verb} in the {place}" + draw.choice(["", " ok", f" let {name} {verb}"]),
                "rejected": f" {draw.choice(VERBS)}" + draw.choice(["", " near it", ", ok."]),
            }
        )
    return rows


@pytest.fixture(scope="session")
def pair_table() -> list[dict[str, Any]]:
    """Rows of a pair file, to spoil."""
    return pair_rows(16)


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory, write_rows: Callable[..., Path]) -> Path:
    """Sixteen pairs of as many prompts."""
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", pair_rows(16))


@pytest.fixture(scope="session")
def demonstrations_file(tmp_path_factory: pytest.TempPathFactory, write_rows: Callable[..., Path]) -> Path:
    """Sixteen demonstrations."""
    rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in pair_rows(16)]
    return write_rows(tmp_path_factory.mktemp("data") / "demonstrations.jsonl", rows)


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory, write_rows: Callable[..., Path]) -> Path:
    """Eight prompts of unequal length."""
    rows = [{"prompt": r["prompt"] if i % 2 else r["prompt"][:9]} for i, r in enumerate(pair_rows(40)[::5])]
    prompts = {row["prompt"] + str(i): None for i, row in enumerate(rows)}
    return write_rows(tmp_path_factory.mktemp("data") / "prompts.jsonl", [{"prompt": p} for p in prompts])


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models."""
    folder = os.environ.get("KEEL_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("KEEL_SHARED does not name the folder of real data")
    return Path(folder)


# --- small runs

METHODS = ("sft", "reward", "dpo", "ppo")


@pytest.fixture
def configure(
    tmp_path: Path,
    base: Path,
    reward_folder: Path,
    pairs_file: Path,
    demonstrations_file: Path,
    prompts_file: Path,
) -> Callable[..., Any]:
    """`configure("dpo", beta=0.5)`: a config of four small steps, with a run folder of its own."""
    numbers = itertools.count()

    def make(method: str, **changes: Any) -> Any:
        from keel import config

        common: dict[str, Any] = {
            "model": str(base),
            "out": tmp_path / f"{method}-{next(numbers)}",
            "batch_size": 4,
            "steps": 4,
            "learning_rate": 3e-3,
            "device": "cpu",
            "precision": "fp32",
        }
        if method == "ppo":
            common |= {
                "reward": str(reward_folder),
                "prompts": str(prompts_file),
                "rollout_size": 4,
                "batch_size": 2,
                "epochs": 2,
                "max_new_tokens": 8,
            }
        else:
            common["data"] = str(demonstrations_file if method == "sft" else pairs_file)
        kind = {
            "sft": config.SFTConfig,
            "reward": config.RewardConfig,
            "dpo": config.DPOConfig,
            "ppo": config.PPOConfig,
        }[method]
        return kind(**{**common, **changes})

    return make


@pytest.fixture
def train(configure: Callable[..., Any]) -> Callable[..., Any]:
    """`train("dpo", beta=0.5)`, or `train("dpo", config=…)`: run it and return its Result."""

    def go(method: str, *, config: Any = None, **changes: Any) -> Any:
        import importlib

        return importlib.import_module(f"keel.methods.{method}").train(config or configure(method, **changes))

    return go


@pytest.fixture
def configure_collect(base: Path, prompts_file: Path, tmp_path: Path) -> Callable[..., Any]:
    """`configure_collect(n=3, …)`: eight prompts, a tiny model, a store of its own."""

    def make(file: str = "store.db", **changes: Any) -> Any:
        from keel.config import CollectConfig

        common: dict[str, Any] = {
            "model": str(base),
            "prompts": str(prompts_file),
            "store": f"store:{tmp_path}/{file}",
            "n": 3,
            "max_new_tokens": 8,
            "max_rows": 2,
            "device": "cpu",
            "precision": "fp32",
            "out": tmp_path / "figures.json",
        }
        return CollectConfig(**{**common, **changes})

    return make


@pytest.fixture
def rules(tmp_path: Path) -> str:
    """A rater by two rules: three words or more, and rain."""
    file = tmp_path / "rules.yaml"
    file.write_text("rules:\n  - {words: [3, 99]}\n  - {contains: rain}\n")
    return f"rule:{file}"


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, torch.Tensor]]:
    """`weights(folder)`: every tensor of a checkpoint, read with safetensors."""

    def read(folder: Path) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        files = sorted(folder.glob("*.safetensors"))
        assert files, f"no weights in {folder}"
        return {k: v for file in files for k, v in load_file(file).items()}

    return read


@pytest.fixture(scope="session")
def metrics_of() -> Callable[[Path], list[dict[str, float]]]:
    """`metrics_of(run folder)`: the lines of `metrics.jsonl`."""
    return lambda folder: [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """In CI a skip is a failure, except for a GPU or a browser that is not there."""
    report = (yield).get_result()
    if (
        report.skipped
        and os.environ.get("CI") == "true"
        and not {"gpu", "browser"} & set(item.keywords)
        and not hasattr(report, "wasxfail")
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {call.excinfo.value if call.excinfo else ''}"


# --- databases


def _postgres_programs() -> Path | None:
    """The folder of initdb and postgres: on the path, or where Debian puts them."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of the tests' own, on a socket in a temporary folder: its URL without a database's name."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="keel-pg-", dir="/tmp"))  # a socket's path must be short
    as_owner: list[str] = []
    if os.getuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        as_owner = ["runuser", "-u", "postgres", "--"]
    run = {"check": True, "capture_output": True, "cwd": folder}
    subprocess.run([*as_owner, programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "keel"], **run)
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    control = [*as_owner, programs / "pg_ctl", "-D", folder / "data", "-w"]
    subprocess.run([*control, "-o", options, "-l", folder / "log", "start"], **run)
    yield f"postgresql://keel@/{{name}}?host={folder}"
    subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True, cwd="/tmp")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of a new, empty store, in each database in turn."""
    if request.param == "sqlite":
        return f"store:{tmp_path}/store.db"
    import psycopg

    url = request.getfixturevalue("postgres")
    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.format(name=name)


# --- servers


@pytest.fixture(scope="session")
def llama_url(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of llama.cpp's server with a very small model that tells stories."""
    environment = Path(__file__).parents[1] / ".venv-llama"
    if not (environment / ".installed").exists():
        why = environment / "why-not"
        pytest.skip(
            why.read_text().strip() if why.exists() else "no .venv-llama: `make .venv-llama/.installed` makes it"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = shared / "models" / "stories260K.gguf"
    command = [environment / "bin" / "python", "-m", "llama_cpp.server", "--model", model, "--host", "127.0.0.1"]
    log = tmp_path_factory.mktemp("llama") / "log"
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with log.open("w") as out:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--n_ctx", "2048", "--n_threads", "1"], stdout=out, stderr=out, env=own
        )
    try:
        _wait_for(server, f"http://127.0.0.1:{port}/v1/models", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
    raise AssertionError(f"no server after a minute: {log.read_text()[-2000:]}")
