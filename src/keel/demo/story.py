"""The story's folder, its sizes, and what its steps share."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from keel import world
from keel.config import DemoConfig, Machine
from keel.engine.scorers import RewardModelScorer
from keel.files.jsonl import read_lines, write_json
from keel.models import checkpoints
from keel.models.roles import Role
from keel.progress import Bar, peak_rss_gb
from keel.records import Bundle, Result
from keel.sampling.local import LocalSampler
from keel.sampling.protocol import SamplingOptions, as_bundles, sample
from keel.says import say
from keel.text.tokenisation import Text

BEST_OF = 16
TEMPERATURE = 0.8
"""Temperature of every sample and every log-probability."""
MICRO_TOKENS = 1_024
"""Passes this small have little padding, and keep one thread busy."""
MAX_ROWS = 512
"""Answers sampled at once."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the story's parts; the story in full by default."""

    recalls: int = 12_000
    """Questions about what was just said, for the first pre-training."""
    lessons: int = 5_000
    """Right answers in every tone, for the second pre-training."""
    demonstrations: int = 14_000
    """Answers of mixed quality for SFT."""
    mismatched: int = 6_000
    """Right answers against right answers to other questions, for the reward model before it sees votes."""
    vote_prompts: int | None = None
    """Training prompts whose answers people judge, for the reward model and DPO; all of them by default."""
    vote_answers: int = 3
    """Answers to each; people compare every two."""
    second_opinions: int = 400
    """Pairs that a second person judges, too, to measure how far people agree."""
    compared: int = 150
    """Pairs to compare with the SFT model's own answers."""
    few_votes: int = 150
    """Pairs in the setting with little reward data."""
    held_out_pairs: int = 600
    held_out_prompts: int = 520
    curve_prompts: int = 64
    curve_n: int = 256
    rollout: int = 128
    """Prompts per PPO rollout."""
    ppo_rollouts: int = 12
    hacking_rollouts: int = 9
    max_new_tokens: int = 64


@dataclass
class Story:
    """The demo's settings, with its files, models and prompts."""

    config: DemoConfig
    sizes: Sizes = Sizes()

    @property
    def out(self) -> Path:
        return self.config.out

    @property
    def seed(self) -> int:
        return self.config.seed

    @cached_property
    def machine(self) -> Machine:
        return Machine(seed=self.seed, micro_tokens=MICRO_TOKENS)

    @cached_property
    def prompts(self) -> tuple[list[world.WorldPrompt], list[world.WorldPrompt]]:
        """Training and held-out prompts."""
        return world.split(world.all_prompts(self.seed), seed=self.seed)

    @cached_property
    def text(self) -> Text:
        return checkpoints.load_text(str(self.out / "init"))

    def policy(self, name: str) -> torch.nn.Module:
        return checkpoints.load_policy(str(self.out / name), self.machine)

    def scorer(self, name: str) -> RewardModelScorer:
        return RewardModelScorer(
            Role("reward", checkpoints.load_reward(str(self.out / name), self.machine), trained=False), MICRO_TOKENS
        )

    @property
    def store(self) -> str:
        """Store of answers and votes."""
        return f"store:{self.out / 'data' / 'votes.db'}"

    def file(self, name: str) -> str:
        """Return the path of a data file."""
        return str(self.out / "data" / f"{name}.jsonl")

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {purpose}")

    def record(self, name: str) -> Path:
        """Return the path of a step's figures; the step is finished if this file exists."""
        return self.out / "steps" / f"{name}.json"

    def run(self, name: str, title: str, step: Callable[[Story], dict[str, Any]]) -> None:
        """Run a step and keep its figures."""
        say(f"{title} …")
        began = time.time()
        figures = step(self)
        seconds = round(time.time() - began, 2)
        file = self.record(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            file,
            {"name": name, "title": title, "seconds": seconds, "peak_rss_gb": peak_rss_gb(), "figures": figures},
        )

    def fresh(self, name: str) -> Path:
        """Return the folder for a run that is about to start; what an interrupted call left there is removed."""
        folder = self.out / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder


def as_wish(question: str) -> str:
    """Return a question as the prompt that the model reads."""
    return question + "\n"


def pick_prompts(
    story: Story, prompts: Sequence[world.WorldPrompt], count: int, purpose: str
) -> list[world.WorldPrompt]:
    """Draw prompts; none comes a second time before all were drawn once."""
    rng = story.rng(purpose)
    drawn: list[world.WorldPrompt] = []
    while len(drawn) < count:
        drawn += rng.sample(list(prompts), min(count - len(drawn), len(prompts)))
    return drawn


def draw_answers(
    story: Story, policy: torch.nn.Module, prompts: Sequence[world.WorldPrompt], n: int, purpose: str
) -> list[Bundle]:
    """Draw n answers to each prompt."""
    options = SamplingOptions(story.sizes.max_new_tokens, TEMPERATURE, max_rows=MAX_ROWS)
    sampler = LocalSampler(policy, story.text, options, story.seed)
    bundles = as_bundles(story.text, [as_wish(p.text) for p in prompts])
    with Bar(f"  {purpose}", len(prompts) * n) as bar:
        return sample(sampler, bundles, n, purpose, progress=bar.advance)


def longer(chosen: str, rejected: str) -> float:
    """Return 1 if the chosen answer has more words, 0 if it has fewer, 1/2 for a tie."""
    a, b = len(chosen.split()), len(rejected.split())
    return 0.5 if a == b else float(a > b)


def figures_of(result: Result) -> dict[str, Any]:
    """Return the figures of a run that the report needs."""
    rows = read_lines(result.folder / "metrics.jsonl")
    keep = {k: result.summary[k] for k in ("train_seconds", "examples", "examples_per_second", "eval", "rows")}
    return {**keep, "curve": rows}
