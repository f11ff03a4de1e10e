"""Configs of training: SFT, reward model, DPO, PPO."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from keel.config.base import Count, NonNegative, Positive, Share
from keel.config.parts import Adapting, Machine, Reading, Spelling
from keel.config.sampling import Sampling
from keel.handed import DataName, ModelName, RewardName


class Training(Adapting, Machine, Reading, Spelling):
    """Options that all training commands share."""

    out: Path
    """Run folder to write."""
    learning_rate: Positive = 1e-5
    """Peak learning rate of AdamW."""
    batch_size: Count = 32
    """Bundles (a demonstration, a pair) per optimiser step. Pairs of one prompt stay together in a batch, a quarter of
    it at most, so a batch can hold fewer prompts than pairs."""
    epochs: Count = 1
    """Passes over the data."""
    steps: Count | None = None
    """Stop after this many steps instead of after `epochs`."""
    max_length: Count = 1024
    """Tokens of prompt and completion together; longer completions are cut, counted and marked as truncated."""
    eval_data: DataName | None = None
    """Held-out data in the same format."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Hold this share of the data out, split by prompt, if there is no --eval-data."""
    eval_every: Count | None = None
    """Steps between evaluations on held-out data; five times in a run by default."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Fall of the learning rate after warm-up: to 0 along a line or a cosine, or none."""
    warmup: Share = 0.05
    """Share of the steps during which the learning rate rises from 0."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients of each role are clipped to this norm."""
    save_every: Count | None = None
    """Steps between checkpoints, besides the best one; five times in a run by default."""
    keep_checkpoints: Count = 1
    """Latest checkpoints to keep, besides the best one."""
    resume: bool = False
    """Go on from the last checkpoint in the output folder; options not given are read from its config.yaml."""


class MergeConfig(Spelling):
    """Merge: write an adapter and its base as one plain checkpoint, in bf16 if the base is, else in fp32."""

    model: ModelName
    """Adapter folder, or the run folder that holds it."""
    out: Path
    """Folder to write."""


class SFTConfig(Training):
    """Supervised fine-tuning: imitate the completions, token by token. Plain text rows pre-train."""

    model: ModelName
    """Checkpoint folder, run folder or hub name of a causal language model."""
    data: DataName
    """Demonstrations: prompt and completion, chat messages, or plain text."""
    out: Path
    """Run folder to write."""
    learning_rate: Positive = 2e-5


class RewardConfig(Training):
    """Reward model: a decoder with a scalar head, trained by Bradley-Terry on preference pairs."""

    model: ModelName
    """Causal language model to start from (its backbone; the head starts at zero), or a reward folder to continue."""
    data: DataName
    """Preference pairs."""
    out: Path
    """Run folder to write."""
    learning_rate: Positive = 1e-5


class DPOConfig(Training):
    """Direct preference optimisation: raise the chosen answer over the rejected one, relative to a frozen reference."""

    model: ModelName
    """Policy to start from: checkpoint folder, run folder or hub name."""
    data: DataName
    """Preference pairs."""
    out: Path
    """Run folder to write."""
    beta: Positive = 0.1
    """Strength of the pull to the reference (tau in IPO). A smaller beta moves further away."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """Function of the margin; see `keel.objectives.dpo_loss`. The margin is of summed log-probabilities, also in `ipo`,
    as in its paper. TRL's ipo averages them per token; `ipo_average` does so here."""
    ipo_average: bool = False
    """Divide each answer's log-ratio by its tokens in loss=ipo, as TRL does; 1 / (2 beta) is then one per token."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of flipped labels: conservative DPO with `sigmoid`, unbiased with `robust`."""
    length_alpha: float = 0.0
    """Penalty per token of extra length inside the sigmoid; it removes the gain of merely longer answers."""
    reference: ModelName | None = None
    """Frozen reference; the starting policy by default."""
    reference_logps: Literal["cached", "live"] = "cached"
    """Compute the reference's log-probabilities once before training, or with every batch."""
    reference_cache: Path | None = None
    """File of cached log-probabilities, for more runs on the same data and reference; by default in the run folder."""
    best_by: Literal["displacement", "loss", "accuracy", "last"] = "displacement"
    """Held-out checkpoint to keep. displacement: the lowest loss among those whose chosen answers have not become much
    less likely; if all have, the one in which they did least. loss: the lowest loss. accuracy: the highest accuracy.
    last: the last."""
    learning_rate: Positive = 1e-6

    @model_validator(mode="after")
    def _options_that_would_do_nothing(self) -> DPOConfig:
        if self.label_smoothing and self.loss in ("ipo", "hinge"):
            raise ValueError(
                f"label_smoothing has no meaning for loss={self.loss}: use sigmoid or robust, or set it to 0"
            )
        if self.loss == "robust" and not self.label_smoothing:
            raise ValueError("loss=robust needs label_smoothing, the share of flipped labels, above 0")
        if self.ipo_average and self.loss != "ipo":
            raise ValueError(f"ipo_average has no meaning for loss={self.loss}: use ipo, or leave it out")
        if self.length_alpha and self.loss == "ipo":
            raise ValueError("length_alpha is not defined for loss=ipo: use sigmoid, hinge or robust")
        return self


class PPOConfig(Training, Sampling):
    """PPO: sample, score with a frozen reward, improve the policy near its frozen reference (KL penalty in the reward).

    The value function is a model of its own with its own optimiser, so no value coefficient is needed.
    """

    model: ModelName
    """Policy to start from; its frozen copy is the reference."""
    reward: RewardName
    """Reward model folder, `rule:package.module:function` or `rule:FILE.yaml`."""
    prompts: DataName
    """Prompts to sample from: rows with a `prompt`, text or chat messages (.jsonl, .csv, …), or lines (.txt)."""
    out: Path
    """Run folder to write."""
    steps: Count | None = 100
    """Rollouts."""
    rollout_size: Count = 64
    """Prompts per rollout."""
    samples_per_prompt: Count = 2
    """Completions per prompt; two or more let every rollout measure the distance to the optimum."""
    batch_size: Count = 16
    """Prompts per minibatch, with all their completions; each minibatch is one optimiser step."""
    epochs: Count = 4
    """Passes over each rollout."""
    beta: NonNegative = 0.05
    """KL penalty per nat, in units of the score; with `target_kl` its starting value."""
    target_kl: Positive | None = None
    """Adapt beta so that the KL per sequence stays near this many nats."""
    kl_horizon: Count = 10_000
    """Sequences over which the adaptive beta reacts; must exceed a fifth of a rollout's completions."""
    learning_rate: Positive = 1e-6
    value_learning_rate: Positive | None = None
    """Peak learning rate of the value model; the policy's by default."""
    clip: Positive = 0.2
    """The ratio to the sampling policy earns nothing beyond 1 ± clip."""
    value_clip: Positive = 0.2
    """The value may move this far from its old value before the loss ignores the gain."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount per token."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Lambda of GAE: trades bias (0) against variance (1)."""
    truncation: Literal["penalty", "bootstrap", "score"] = "penalty"
    """Score of a completion without EOS: `missing_eos_score`, the value model's estimate, or its own score."""
    missing_eos_score: float = -1.0
    """Score of a truncated completion, after centring (with truncation=penalty)."""
    critic_warmup: Annotated[int, Field(ge=0)] = 0
    """Rollouts at the start in which only the value model learns."""
    keep_samples: Annotated[int, Field(ge=0)] = 8
    """Prompts of each rollout whose completions go into `samples.jsonl`."""
    temperature: Positive = 1.0
    """Divides the logits, in sampling and in every log-probability alike."""

    @model_validator(mode="after")
    def _impossible_combinations(self) -> PPOConfig:
        if self.steps is None:
            raise ValueError("steps is how many rollouts there are: give a number")
        if 5 * self.kl_horizon <= self.rollout_size * self.samples_per_prompt:
            raise ValueError(
                "kl_horizon must exceed a fifth of the completions in a rollout, or beta could turn negative"
            )
        if self.target_kl is not None and self.beta == 0:
            raise ValueError("target_kl adapts beta from its starting value, which must be above 0")
        return self
