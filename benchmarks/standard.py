"""The standard work: a 42 M-parameter Llama with random weights, and pairs of at most 512 tokens a side.

Pairs are Anthropic HH's where its file is given, else made by the embedded world in the same format. Keel reads them as
strings, peers as the token ids that Keel makes of them, in the order in which Keel's batches take them: every side
trains on the same tokens in the same batches, and losses can be compared.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from keel import world
from keel.config import Adapting, Machine
from keel.data import checks
from keel.data.source import open_source
from keel.demo.model import new_tokenizer
from keel.engine.batches import Batches, prompt_of
from keel.files.jsonl import write_lines
from keel.models import checkpoints
from keel.models.adapters import Settings, Trunk
from keel.models.heads import scalar_head
from keel.models.roles import Role
from keel.records import Bundle, Pair
from keel.text.tokenisation import Text

BATCH = 8
ROUNDS_BATCH = 24
"""Pairs in a batch where six stand on each prompt."""
MAX_LENGTH = 512
SMALL: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""A shape of 135 M parameters."""
SEED = 0


SHAPE: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 1408,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def build_models(
    folder: Path,
    pairs: list[Pair],
    shape: dict[str, Any] = SHAPE,
    dtype: torch.dtype = torch.float32,
    reward: bool = True,
) -> int:
    """Write `model/` and `reward/`, both with random weights; returns the model's parameter count."""
    tokenizer = new_tokenizer([str(p.prompt) + side for p in pairs for side in (p.chosen, p.rejected)], 32_000)
    torch.manual_seed(SEED)
    shape = shape | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = Text(tokenizer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**shape, dtype=dtype)).to(dtype)
        checkpoints.save(model, text, folder / "model")
        if reward:
            scalar = LlamaForSequenceClassification(LlamaConfig(**shape, dtype=dtype, num_labels=1)).to(dtype)
            checkpoints.save(scalar, text, folder / "reward")
    return sum(p.numel() for p in model.parameters())


def build_adapters(folder: Path) -> None:
    """Write `adapter/` and `reward-adapter/` on the model there: B is zero in both, the head random."""
    machine = Machine(device="cpu", precision="fp32")
    text = checkpoints.load_text(f"{folder}/model")
    causal = checkpoints.load_policy(f"{folder}/model", machine)
    scalar = checkpoints.new_scalar_model(f"{folder}/model", machine, None)
    scalar_head(scalar).weight.data.normal_(std=0.02, generator=torch.Generator().manual_seed(SEED))
    for name, model in (("adapter", causal), ("reward-adapter", scalar)):
        trunk = Trunk.of(model, f"{folder}/model")
        trunk.add("policy", Settings.of(Adapting(lora=True), model), SEED)
        Role("policy", model, trunk=trunk, adapter="policy").save(text, folder / name)


def build_with_adapter(folder: Path, pairs: list[Pair], count: int) -> None:
    """As `build_data`, with the adapters of `build_adapters` on the standard model."""
    build_data(folder, pairs, count)
    build_adapters(folder)


def build_data(folder: Path, pairs: list[Pair], count: int) -> None:
    """Write `pairs.jsonl` with the first `count` that are short enough, `ids.jsonl` and `prompts.jsonl`."""
    text = checkpoints.load_text(f"{folder}/model")
    encoded = ((p, text.encode(p, 1 << 20)) for p in pairs)
    short = ((p, b) for p, b in encoded if len(b.prompt_ids) + max(map(len, b.completions)) <= MAX_LENGTH)
    write(folder, list(itertools.islice(short, count)), count)


def build_long(folder: Path, pairs: list[Pair], count: int) -> None:
    """As `build_data`, with prompts of 1,000 tokens and answers of 100: texts joined, and cut between words."""
    text = checkpoints.load_text(f"{folder}/model")
    words = iter(" ".join(f"{p.prompt} {p.chosen} {p.rejected}" for p in pairs).split())

    def stretch(tokens: int) -> str:
        taken = list(itertools.islice(words, tokens))
        while len(text.prompt_ids(" ".join(taken))) > tokens:
            taken = taken[:-1]
        return " ".join(taken)

    long = [Pair(stretch(1000), " " + stretch(99), " " + stretch(99)) for _ in range(count)]
    write(folder, [(p, text.encode(p, 1 << 20)) for p in long], count)


def build_rounds(folder: Path, pairs: list[Pair], count: int) -> None:
    """As `build_data`, with four answers to each prompt and all six pairs of them."""
    text = checkpoints.load_text(f"{folder}/model")
    kept: list[tuple[Pair, Bundle]] = []
    for one, other in itertools.pairwise(pairs):
        answers = (one.chosen, other.chosen, one.rejected, other.rejected)
        six = [Pair(one.prompt, better, worse) for better, worse in itertools.combinations(answers, 2)]
        bundles = [text.encode(pair, 1 << 20) for pair in six]
        if max(len(b.prompt_ids) + max(map(len, b.completions)) for b in bundles) <= MAX_LENGTH:
            kept += zip(six, bundles, strict=True)
        if len(kept) >= count:
            break
    write(folder, kept[:count], count, ROUNDS_BATCH)


def write(folder: Path, kept: list[tuple[Pair, Bundle]], count: int, batch: int = BATCH) -> None:
    """The files of all of them."""
    if len(kept) < count:
        raise SystemExit(f"only {len(kept)} pairs of at most {MAX_LENGTH} tokens a side; {count} are needed")
    rows = ({"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p, _ in kept)
    write_lines(folder / "pairs.jsonl", rows)
    write_lines(folder / "prompts.jsonl", ({"prompt": p.prompt} for p, _ in kept))
    batches = Batches([bundle for _, bundle in kept], batch, SEED, together=prompt_of)
    order = [bundle for step in range(count // batch) for bundle in batches.of(step)]
    ids = ((b.prompt_ids, *(c.ids for c in b.completions)) for b in order)
    write_lines(folder / "ids.jsonl", ({"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in ids))


def read(file: str) -> list[Pair]:
    """People's pairs, the unusable ones left out."""
    with open_source(file) as source:
        return checks.check_pairs(source.pairs(), source.counts, 0.05, file)


def made(count: int) -> list[Pair]:
    """Pairs of the embedded world, several questions and answers to a text, so that lengths are people's."""
    train, _ = world.split(world.all_prompts())
    draw = random.Random(SEED)
    pairs = []
    for _ in range(count):
        rows = list(world.mismatched(train, draw, draw.randint(1, 12)))
        asked = "\n".join(p.text for p, _, _ in rows) + "\n"
        pairs.append(Pair(asked, " ".join(a for _, a, _ in rows), " ".join(b for _, _, b in rows)))
    return pairs
