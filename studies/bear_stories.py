"""PPO and best-of-N on a pretrained story model that nobody here trained, with a rule as reward: a bear appears.

The base model writes a bear into some 3 % of its stories. Prompts are openings that it wrote itself (without a bear).
Prints the rate, the KL per story, distinct-2 and the base's log-probability per token of new and own stories, on
openings that were not trained on, and before/after samples.

    python studies/bear_stories.py --model DIR/stories260k --out runs/bear
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch

from keel import stats
from keel.config import BestOfNConfig, Machine, PPOConfig
from keel.engine.forward import in_batches, token_logps
from keel.evaluation.outcomes import sequence_kl
from keel.files.jsonl import write_lines
from keel.methods import best_of_n, ppo
from keel.models import checkpoints
from keel.sampling.local import LocalSampler
from keel.sampling.protocol import SamplingOptions, as_bundles, sample

LENGTH = 200
RULE = 'rules:\n  - {matches: "(?i)\\\\bbears?\\\\b", weight: 1.0}\n'
BEAR = re.compile(r"(?i)\bbears?\b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/bear"))
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "bear.yaml").write_text(RULE)
    openings = openings_of(options.model, 640)
    write_lines(out / "train.jsonl", [{"prompt": o} for o in openings[:512]])
    write_lines(out / "held.jsonl", [{"prompt": o} for o in openings[512:]])
    if not (out / "ppo" / "summary.json").exists():
        ppo.train(config_of(options.model, out, options.steps))
    figures = measure(options.model, out, openings[512:])
    chosen = out / "best-of-16.jsonl"
    chosen.unlink(missing_ok=True)
    best = best_of_n.best_of_n(
        BestOfNConfig(
            model=options.model,
            reward=f"rule:{out}/bear.yaml",
            prompts=str(out / "held.jsonl"),
            out=chosen,
            n=16,
            max_new_tokens=LENGTH,
        )
    )
    figures["best_of_16_rate"] = best.summary["metrics"]["score_best"]
    print(json.dumps(figures, indent=2))
    (out / "figures.json").write_text(json.dumps(figures, indent=2))


def config_of(model: str, out: Path, steps: int) -> PPOConfig:
    return PPOConfig(
        model=model,
        reward=f"rule:{out}/bear.yaml",
        prompts=str(out / "train.jsonl"),
        out=out / "ppo",
        steps=steps,
        rollout_size=64,
        samples_per_prompt=4,
        batch_size=16,
        epochs=2,
        learning_rate=2e-4,
        value_learning_rate=1e-3,
        beta=0.05,
        value_clip=1.0,
        truncation="score",
        critic_warmup=3,
        schedule="constant",
        max_new_tokens=LENGTH,
        micro_tokens=16_384,
    )


def openings_of(model: str, count: int) -> list[str]:
    """The first six words of stories that the model writes by itself; those with a bear are left out."""
    text, policy = checkpoints.load_text(model), checkpoints.load_policy(model, Machine())
    sampler = LocalSampler(policy, text, SamplingOptions(16))
    seen: dict[str, None] = {}
    for round_ in range(20):
        bundles = sample(sampler, as_bundles(text, [""]), 256, "openings", round_)
        for completion in bundles[0].completions:
            words = completion.text.split()[:6]
            if len(words) == 6 and not BEAR.search(completion.text):
                seen.setdefault(" ".join(words))
        if len(seen) >= count:
            break
    return list(seen)[:count]


def measure(model: str, out: Path, openings: list[str]) -> dict:
    text = checkpoints.load_text(model)
    base, tuned = checkpoints.load_policy(model, Machine()), checkpoints.load_policy(str(out / "ppo"), Machine())
    figures: dict = {}
    stories: dict = {}
    for name, policy in (("base", base), ("ppo", tuned)):
        sampler = LocalSampler(policy, text, SamplingOptions(LENGTH), 1)
        bundles = sample(sampler, as_bundles(text, openings), 2, "measure")
        stories[name] = bundles
        texts = [c.text for b in bundles for c in b.completions]
        logps = torch.cat(in_batches(token_logps, base, bundles, 16_384))
        figures[name] = {
            "rate": stats.rate([BEAR.search(t) is not None for t in texts]).as_dict(),
            "distinct_2": stats.distinct_n([t.split() for t in texts], 2),
            "base_logp_per_token": float(logps.mean()),
            "length": sum(len(c) for b in bundles for c in b.completions) / len(texts),
            "truncated": sum(c.truncated for b in bundles for c in b.completions) / len(texts),
        }
    kl = sequence_kl(tuned, base, stories["ppo"], 1.0, 16_384)
    figures["ppo"]["kl_per_story"] = stats.mean(kl, [b.prompt for b in stories["ppo"] for _ in b.completions]).as_dict()
    for i in range(3):
        for name in ("base", "ppo"):
            b = stories[name][i]
            print(f"--- {name}: {b.prompt}{b.completions[0].text}\n")
    return figures


if __name__ == "__main__":
    main()
