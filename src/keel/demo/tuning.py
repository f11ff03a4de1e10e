"""A reward model, PPO and DPO on the votes, and a reward model hacked on purpose."""

from __future__ import annotations

import math
from typing import Any

import torch

from keel import objectives, stats, world
from keel.config import DPOConfig, PPOConfig, RewardConfig
from keel.demo.story import MAX_ROWS, MICRO_TOKENS, TEMPERATURE, Story, figures_of, longer
from keel.engine.forward import in_batches, scalars_at_end
from keel.evaluation import outcomes
from keel.files.jsonl import read_lines
from keel.methods import dpo, ppo, reward
from keel.records import Bundle, Pair, Result
from keel.text.tokenisation import Text


def prefer(story: Story) -> dict[str, Any]:
    """Train a reward model on which answer belongs to the question, before it learns what people like."""
    result = train_reward(
        story, "preferences", "pretrain", story.file("mismatched"), learning_rate=5e-4, batch_size=16, holdout=0.02
    )
    return figures_of(result)


def reward_model(story: Story) -> dict[str, Any]:
    """Train on the votes; measure on held-out pairs whose labels are gold's own."""
    result = train_reward(story, "reward", "preferences", story.store, epochs=2)
    pairs = read_lines(story.out / "data" / "held-out-pairs.jsonl")
    bundles = [pair_bundle(story.text, p) for p in pairs]
    scores = torch.stack(in_batches(scalars_at_end, story.scorer("reward").role.model, bundles, MICRO_TOKENS))
    gaps = (scores[:, 0] - scores[:, 1]).double()
    people = world.Population()
    rng = story.rng("calibration")
    outcomes = [world.vote(p["prompt"], p["chosen"], p["rejected"], rng, people).outcome for p in pairs]
    voted = [{"first": 1.0, "second": 0.0}.get(o, float("nan")) for o in outcomes]
    sided = [(g, v) for g, v in zip(gaps.tolist(), voted, strict=True) if v == v]
    signs = [1 if rng.random() < 0.5 else -1 for _ in sided]  # the better answer would always stand first
    bins, error = stats.calibration(
        [1 / (1 + math.exp(-s * g)) for s, (g, _) in zip(signs, sided, strict=True)],
        [v if s > 0 else 1 - v for s, (_, v) in zip(signs, sided, strict=True)],
    )
    return {
        **figures_of(result),
        "accuracy": stats.rate(objectives.wins(scores[:, 0], scores[:, 1]).numpy()).as_dict(),
        "accuracy_of_longer": stats.rate([longer(p["chosen"], p["rejected"]) for p in pairs]).as_dict(),
        "calibration": [{"predicted": b.predicted, "observed": b.observed.as_dict()} for b in bins],
        "calibration_error": error,
    }


def pair_bundle(text: Text, row: dict[str, Any]) -> Bundle:
    """Return a pair as tokens."""
    return text.encode(Pair(row["prompt"], row["chosen"], row["rejected"]), max_length=256)


def train_reward(story: Story, name: str, start: str, data: str, **settings: Any) -> Result:
    """Train a reward model on the store or on one of the pair files."""
    settings = {"learning_rate": 3.5e-4, "batch_size": 32, "micro_tokens": MICRO_TOKENS, **settings}
    return reward.train(
        RewardConfig(
            model=str(story.out / start),
            data=data,
            out=story.fresh(name),
            seed=story.seed,
            **settings,
        )
    )


def tune_dpo(story: Story) -> dict[str, Any]:
    """Run DPO on the same pairs as the reward model."""
    return figures_of(
        dpo.train(
            DPOConfig(
                model=str(story.out / "sft"),
                data=story.store,
                out=story.fresh("dpo"),
                learning_rate=1e-4,
                beta=0.7,
                batch_size=32,
                epochs=1,
                seed=story.seed,
                micro_tokens=MICRO_TOKENS,
            )
        )
    )


def tune_ppo(story: Story) -> dict[str, Any]:
    """Run PPO against the reward model."""
    return figures_of(ppo.train(ppo_config(story, "ppo", "reward", steps=story.sizes.ppo_rollouts, beta=0.1)))


def ppo_config(story: Story, name: str, scored_by: str, steps: int, beta: float, **other: Any) -> PPOConfig:
    """Return PPO's settings in this world."""
    settings: dict[str, Any] = {
        "rollout_size": story.sizes.rollout,
        "samples_per_prompt": 2,
        "batch_size": 32,
        "epochs": 2,
        "learning_rate": 2e-4,
        "value_clip": 1.0,
        "max_new_tokens": story.sizes.max_new_tokens,
        "temperature": TEMPERATURE,
        "max_rows": MAX_ROWS,
        "keep_samples": story.sizes.rollout,
    }
    return PPOConfig(
        model=str(story.out / "sft"),
        reward=str(story.out / scored_by),
        prompts=str(story.out / "data" / "prompts.jsonl"),
        out=story.fresh(name),
        steps=steps,
        beta=beta,
        seed=story.seed,
        micro_tokens=MICRO_TOKENS,
        **{**settings, **other},
    )


def overoptimise(story: Story) -> dict[str, Any]:
    """Hack the proxy in the stated setting: little, length-biased reward data and almost no KL penalty."""
    trained = train_reward(story, "reward-few", "pretrain", story.file("few-pairs"), epochs=6, learning_rate=5e-4)
    ppo.train(
        ppo_config(
            story,
            "ppo-hacked",
            "reward-few",
            steps=story.sizes.hacking_rollouts,
            beta=0.005,
            learning_rate=4e-4,
            schedule="constant",
            samples_per_prompt=1,
        )
    )
    points = measure_training(story, "ppo-hacked", every=1)
    return {
        "setting": (
            f"reward model trained on {trained.summary['rows']['used']} pairs voted by people who love length, "
            "PPO with beta = 0.005"
        ),
        "points": points,
        **outcomes.turned_down(points),
    }


def measure_training(story: Story, run: str, every: int) -> list[dict[str, Any]]:
    """Return gold and proxy over KL while a policy trained."""
    samples = read_lines(story.out / run / "samples.jsonl")
    return outcomes.training_points(samples, lambda prompt, answer: world.utility(prompt.strip(), answer).total, every)
