"""Where the story's things lie, how much of everything there is, and what its steps share."""

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
from keel.progress import Bar, peak_rss_gb
from keel.records import Bundle, Result
from keel.sampling.local import LocalSampler
from keel.sampling.protocol import SamplingOptions, as_bundles, sample
from keel.says import say
from keel.text.tokenisation import Text

BEST_OF = 16
TEMPERATURE = 0.8
"""Of every sample and every log-probability."""
MICRO_TOKENS = 1_024
"""Little is padded in passes this small, and one thread is busy enough with them."""
MAX_ROWS = 512
"""Answers written at once."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything: the story in full by default."""

    recalls: int = 12_000
    """Questions about what was just said, to pre-train on first."""
    lessons: int = 5_000
    """Right answers in every tone, to pre-train on after them."""
    demonstrations: int = 14_000
    """Answers of mixed quality for SFT."""
    mismatched: int = 6_000
    """Right answers against right answers to other questions, for the reward model before it sees votes."""
    vote_prompts: int | None = None
    """Training prompts whose answers are shown to people for the reward model and DPO; all of them by default."""
    vote_answers: int = 3
    """Answers to each; people compare every two."""
    second_opinions: int = 400
    """Pairs that another person judges, too: how far people agree."""
    compared: int = 150
    """Pairs that are compared with what the SFT model says."""
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
    """Where the demo's things lie."""

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
        """Train and held-out prompts."""
        return world.split(world.all_prompts(self.seed), seed=self.seed)

    @cached_property
    def text(self) -> Text:
        return checkpoints.load_text(str(self.out / "init"))

    def policy(self, name: str) -> torch.nn.Module:
        return checkpoints.load_policy(str(self.out / name), self.machine)

    def scorer(self, name: str) -> RewardModelScorer:
        return RewardModelScorer(checkpoints.load_reward(str(self.out / name), self.machine), MICRO_TOKENS)

    @property
    def store(self) -> str:
        """Where answers and votes are kept."""
        return f"store:{self.out / 'data' / 'votes.db'}"

    def file(self, name: str) -> str:
        """One of the data files."""
        return str(self.out / "data" / f"{name}.jsonl")

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {purpose}")

    def record(self, name: str) -> Path:
        """Where a step leaves its figures: it is finished when this file is there."""
        return self.out / "steps" / f"{name}.json"

    def run(self, name: str, title: str, step: Callable[[Story], dict[str, Any]]) -> None:
        """Do a step and keep its figures."""
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
        """The folder of a run that this step is about to do; what an interrupted call left there is removed."""
        folder = self.out / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder


def as_wish(question: str) -> str:
    """A question as the prompt that the model reads."""
    return question + "\n"


def pick_prompts(
    story: Story, prompts: Sequence[world.WorldPrompt], count: int, purpose: str
) -> list[world.WorldPrompt]:
    """Prompts drawn anew; none a second time before all were drawn once."""
    rng = story.rng(purpose)
    drawn: list[world.WorldPrompt] = []
    while len(drawn) < count:
        drawn += rng.sample(list(prompts), min(count - len(drawn), len(prompts)))
    return drawn


def draw_answers(
    story: Story, policy: torch.nn.Module, prompts: Sequence[world.WorldPrompt], n: int, purpose: str
) -> list[Bundle]:
    """n answers to each prompt."""
    options = SamplingOptions(story.sizes.max_new_tokens, TEMPERATURE, max_rows=MAX_ROWS)
    sampler = LocalSampler(policy, story.text, options, story.seed)
    bundles = as_bundles(story.text, [as_wish(p.text) for p in prompts])
    with Bar(f"  {purpose}", len(prompts) * n) as bar:
        return sample(sampler, bundles, n, purpose, progress=bar.advance)


def longer(chosen: str, rejected: str) -> float:
    """Whether the chosen answer has more words; 1/2 for a tie."""
    a, b = len(chosen.split()), len(rejected.split())
    return 0.5 if a == b else float(a > b)


def figures_of(result: Result) -> dict[str, Any]:
    """What the report needs of a run."""
    rows = read_lines(result.folder / "metrics.jsonl")
    keep = {k: result.summary[k] for k in ("train_seconds", "examples", "examples_per_second", "eval", "rows")}
    return {**keep, "curve": rows}
