"""Reward model and DPO on people's votes: five folds by prompt of Anthropic HH (harmless, test split).

A small model is pre-trained here on the transcripts' text (both sides of every pair, so nothing says which won), then
each fold trains on four fifths of the prompts and is measured on the rest. Only the last step is evaluated: nothing is
selected on held-out data. Prints the accuracy pooled over the folds beside the "shorter wins" baseline.

    python studies/hh_folds.py --data DIR/hh-harmless-test.jsonl.gz --out runs/hh
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from keel import stats
from keel.config import DPOConfig, RewardConfig, SFTConfig
from keel.data import checks
from keel.data.source import open_source
from keel.demo.model import new_tokenizer
from keel.files.jsonl import write_lines
from keel.methods import dpo, reward, sft
from keel.models import checkpoints
from keel.records import Pair
from keel.text.tokenisation import Text, prompt_key

NEVER = 10**9
MAX_LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/hh"))
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    with open_source(options.data) as source:
        pairs = checks.check_pairs(source.pairs(), source.counts, 0.05, options.data)
    print(checks.summarise(source.counts, options.data, source.format))
    options.out.mkdir(parents=True, exist_ok=True)
    base = options.out / "pretrain"
    if not (base / "summary.json").exists():
        pretrain(pairs, options.out)
    results = {"reward": [], "dpo": []}
    for fold, (train, held) in enumerate(folds(pairs, options.folds)):
        for side, rows in (("train", train), ("held", held)):
            write(options.out / f"fold-{fold}-{side}.jsonl", rows)
        for method in results:
            results[method].append(run(method, options.out, fold))
    report(pairs, results, options.out)


def pretrain(pairs: list[Pair], out: Path) -> None:
    """A byte-level BPE tokenizer and a Llama of 2.6 M parameters, trained on the transcripts as plain text."""
    texts = sorted({str(p.prompt) + answer for p in pairs for answer in (p.chosen, p.rejected)})
    write_lines(out / "transcripts.jsonl", [{"text": t} for t in texts])
    tokenizer = new_tokenizer(texts, 4096)
    torch.manual_seed(0)
    shape = {"hidden_size": 192, "num_hidden_layers": 4, "intermediate_size": 512, "num_attention_heads": 6}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, **shape, **special))
    checkpoints.save(model, Text(tokenizer), out / "init")
    sft.train(
        SFTConfig(
            model=str(out / "init"),
            data=str(out / "transcripts.jsonl"),
            out=out / "pretrain",
            learning_rate=2e-3,
            batch_size=16,
            epochs=2,
            max_length=MAX_LENGTH,
        )
    )


def folds(pairs: list[Pair], count: int) -> list[tuple[list[Pair], list[Pair]]]:
    """Every prompt stands in exactly one held-out part."""
    keys = sorted({prompt_key(p.prompt) for p in pairs})
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(0)).tolist()
    fold_of = {keys[k]: i % count for i, k in enumerate(order)}
    parts = [[p for p in pairs if fold_of[prompt_key(p.prompt)] == i] for i in range(count)]
    return [([p for j in range(count) if j != i for p in parts[j]], parts[i]) for i in range(count)]


def run(method: str, out: Path, fold: int) -> dict:
    folder = out / f"{method}-{fold}"
    if not (folder / "summary.json").exists():
        shared = {
            "model": str(out / "pretrain"),
            "data": str(out / f"fold-{fold}-train.jsonl"),
            "eval_data": out / f"fold-{fold}-held.jsonl",
            "out": folder,
            "eval_every": NEVER,
            "batch_size": 16,
            "max_length": MAX_LENGTH,
            "max_bad_share": 0.05,
        }
        if method == "reward":
            reward.train(RewardConfig(**shared, learning_rate=1e-4, epochs=1))
        else:
            dpo.train(DPOConfig(**shared, learning_rate=5e-5, epochs=1))
    return json.loads((folder / "summary.json").read_text())


def report(pairs: list[Pair], results: dict, out: Path) -> None:
    shorter = stats.rate([0.5 if len(p.chosen) == len(p.rejected) else len(p.chosen) < len(p.rejected) for p in pairs])
    print(f"shorter wins:        {shorter}  n {shorter.n}")
    figures = {"shorter_wins": shorter.as_dict()}
    for method, key in (("reward", "accuracy"), ("dpo", "rewards/accuracies")):
        parts = [r["eval"][key] for r in results[method]]
        pooled = stats.wilson(sum(p["mean"] * p["n"] for p in parts), sum(p["n"] for p in parts))
        print(f"{method:<7} held out:   {pooled}  n {pooled.n}   by fold {[round(p['mean'], 3) for p in parts]}")
        for fold, r in enumerate(results[method]):
            print(f"   fold {fold} trained on: {r['rows']}")
            print(f"   fold {fold} held out:   {r['rows_eval']}")
        figures[method] = pooled.as_dict()
    (out / "figures.json").write_text(json.dumps(figures, indent=2))


def write(file: Path, pairs: list[Pair]) -> None:
    write_lines(file, [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs])


if __name__ == "__main__":
    main()
