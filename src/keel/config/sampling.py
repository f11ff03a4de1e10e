"""Configs of sampling: `keel generate` and `keel best-of-n`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from keel.config.base import Count, NonNegative
from keel.config.parts import Machine, Reading, Spelling
from keel.handed import DataName, ModelName, RewardName


class Sampling(Machine, Reading, Spelling):
    """Options for sampling completions."""

    max_new_tokens: Count = 256
    """Length limit of a completion; one that reaches it has no EOS and is marked truncated. The default is lower if
    the model has too few positions."""
    temperature: NonNegative = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    max_rows: Count = 256
    """Completions decoded at once."""


class GenerateConfig(Sampling):
    """Sample completions from any causal language model."""

    model: ModelName
    """Checkpoint folder, run folder or hub name."""
    prompts: DataName
    """File of prompts: rows with a `prompt`, text or chat messages (.jsonl, .csv, .parquet), or lines (.txt)."""
    out: Path
    """JSONL file to write: one line per prompt with its completions."""
    n: Count = 1
    """Completions per prompt."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: keep the smallest set of tokens whose probability reaches this. Not in PPO, which trains on the
    full distribution."""


class BestOfNConfig(GenerateConfig):
    """Best-of-N: sample N completions per prompt, score them, keep the best. N times the serving cost, no training."""

    reward: RewardName
    """Reward model folder, `rule:package.module:function` or `rule:FILE.yaml`."""
    n: Count = 16
