"""The model to be tuned: from random weights to answers of mixed quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from keel import world
from keel.config import SFTConfig
from keel.demo.story import MICRO_TOKENS, Story, as_wish, figures_of
from keel.files.jsonl import write_lines
from keel.methods import sft
from keel.models import checkpoints
from keel.text.tokenisation import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_Row = dict[str, str]
_WIDE: dict[str, Any] = {"micro_tokens": 4 * MICRO_TOKENS}
"""Settings of the stages in which two threads work on one pass."""


def make_world(story: Story) -> dict[str, Any]:
    """Write everything that the first training runs read."""
    train, held_out = story.prompts
    folder = story.out / "data"
    folder.mkdir(exist_ok=True)
    write_lines(folder / "prompts.jsonl", ({"prompt": as_wish(p.text)} for p in train))
    write_lines(folder / "held-out-prompts.jsonl", ({"prompt": as_wish(p.text), "kind": p.kind} for p in held_out))
    recalls = [demonstration(q, a) for q, a in world.recalls(train, story.rng("recalls"), story.sizes.recalls)]
    lessons = [demonstration(p.text, a) for p, a in world.lessons(train, story.rng("lessons"), story.sizes.lessons)]
    write_lines(folder / "recalls.jsonl", recalls)
    write_lines(folder / "lessons.jsonl", [*lessons, *rehearsed(recalls, lessons)])
    matches = world.mismatched(train, story.rng("mismatched"), story.sizes.mismatched)
    mismatches = ({"prompt": as_wish(p.text), "chosen": own, "rejected": other} for p, own, other in matches)
    write_lines(folder / "mismatched.jsonl", mismatches)
    demonstrated = world.demonstrations(train, story.rng("demonstrations"), story.sizes.demonstrations)
    shown = [demonstration(p.text, a) for p, a in demonstrated]
    write_lines(folder / "demonstrations.jsonl", shown)
    corpus = [row["prompt"] + row["completion"] for row in (*lessons, *rehearsed(recalls, lessons))]
    parameters = new_model(corpus, story.out / "init", story.seed)
    return {
        "prompts_train": len(train),
        "prompts_held_out": len(held_out),
        "recalls": len(recalls),
        "lessons": len(lessons),
        "parameters": parameters,
    }


def new_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of `size` tokens that begins each text with BOS; pad, BOS, EOS are 0, 1, 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False))
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def new_model(corpus: list[str], folder: Path, seed: int) -> int:
    """Save a small Llama of random weights with a tokenizer trained on the corpus; return its parameter count."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = new_tokenizer(corpus, 768)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=160,
            num_hidden_layers=3,
            intermediate_size=448,
            num_attention_heads=5,
            num_key_value_heads=5,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    checkpoints.save(model, Text(tokenizer), folder)
    return sum(p.numel() for p in model.parameters())


def pretrain_recall(story: Story) -> dict[str, Any]:
    """Train random weights to compare a word with those before it."""
    return imitate(story, "recall", "init", "recalls", batch_size=32, learning_rate=5e-4, schedule="constant", **_WIDE)


def pretrain(story: Story) -> dict[str, Any]:
    """Train on language and the task's vocabulary."""
    return imitate(story, "pretrain", "recall", "lessons", learning_rate=5e-4, **_WIDE)


def supervised(story: Story) -> dict[str, Any]:
    """Train on the task's demonstrations, good and bad answers alike."""
    return imitate(story, "sft", "pretrain", "demonstrations", learning_rate=5e-4, holdout=0.05)


def imitate(story: Story, name: str, start: str, data: str, **settings: Any) -> dict[str, Any]:
    """Run one stage of supervised training."""
    settings = {"batch_size": 16, "holdout": 0.02, "micro_tokens": MICRO_TOKENS, **settings}
    config = SFTConfig(
        model=str(story.out / start),
        data=str(story.out / "data" / f"{data}.jsonl"),
        out=story.fresh(name),
        seed=story.seed,
        **settings,
    )
    return figures_of(sft.train(config))


def demonstration(question: str, answer: str) -> _Row:
    """Return a row to imitate."""
    return {"prompt": as_wish(question), "completion": answer}


def rehearsed(recalls: Sequence[_Row], among: Sequence[_Row]) -> Sequence[_Row]:
    """Return recalls to train on again, three for four other rows: what is not rehearsed is forgotten."""
    return recalls[: 3 * len(among) // 4]
