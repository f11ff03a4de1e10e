"""Scores of completions, by a frozen reward model or by a rule. Both are a `Scorer`; methods know no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from keel.config import Machine, PPOConfig, Spelling
from keel.engine.forward import in_batches, scalars_at_end
from keel.engine.processes import divided, from_first
from keel.errors import InputError
from keel.models import checkpoints
from keel.models.roles import Role, on_trunk, shares_trunk
from keel.records import Bundle
from keel.text.rules import RuleFault, RuleSet, load_rules
from keel.text.tokenisation import Text, named, prompt_text


class Scorer(Protocol):
    """Gives every completion of some bundles a finite score."""

    identity: str
    """Manifest entry: a hash of the weights, or the rule's name and a hash of its file."""
    reads: Literal["ids", "text"]
    """The policy's token ids, so that it must read prompts as the policy does, or decoded text."""

    def score(self, bundles: Sequence[Bundle]) -> Tensor:
        """Scores, fp32 on the CPU, [C] in bundle order."""
        ...


class RewardModelScorer:
    """A frozen reward model on the policy's token ids."""

    reads: Literal["ids", "text"] = "ids"

    def __init__(self, role: Role, micro_tokens: int) -> None:
        self.role, self.micro_tokens = role, micro_tokens
        self.identity = role.identity()

    def score(self, bundles: Sequence[Bundle]) -> Tensor:
        with self.role.active() as model:
            scores = divided(bundles, lambda some: in_batches(scalars_at_end, model, some, self.micro_tokens))
        return _finite(torch.cat(scores).cpu(), bundles)


class RuleScorer:
    """Rules on the text of prompt and completion."""

    reads: Literal["ids", "text"] = "text"

    def __init__(self, rules: RuleSet) -> None:
        self.rules, self.identity = rules, rules.identity

    def score(self, bundles: Sequence[Bundle]) -> Tensor:
        """Score in the first process: a rule may draw, ask a clock or a server, and all must hear the same."""
        return from_first(lambda: _finite(torch.tensor(self._scores(bundles)), bundles))

    def _scores(self, bundles: Sequence[Bundle]) -> list[float]:
        return [self._apply(b, c.text) for b in bundles for c in b.completions]

    def _apply(self, bundle: Bundle, completion: str) -> float:
        try:
            return self.rules.score(prompt_text(bundle.prompt), completion)
        except RuleFault as fault:
            where = named(bundle)
            raise InputError(f"{self.rules.name}: {fault} ({where}); mend it to return a finite number") from fault


RULE = "rule:"
"""Prefix of a `--reward` that names a rule rather than a model."""


def load_scorer(name: str, machine: Machine) -> Scorer:
    """Load the scorer named by `--reward`: `rule:…`, or a reward model."""
    if name.startswith(RULE):
        return RuleScorer(load_rules(name.removeprefix(RULE)))
    return RewardModelScorer(
        Role("reward", checkpoints.load_reward(name, machine), trained=False), machine.micro_tokens
    )


def load_scorer_beside(policy: Role, config: PPOConfig) -> Scorer:
    """Load the scorer of a PPO run: on the policy's trunk if it is an adapter on that."""
    if config.reward.startswith(RULE) or not shares_trunk(policy, config.reward):
        return load_scorer(config.reward, config)
    return RewardModelScorer(on_trunk("reward", policy, config, config.reward, trained=False), config.micro_tokens)


def require_same_reading(scorer: Scorer, spelling: Spelling, name: str, text: Text, bundles: Sequence[Bundle]) -> None:
    """Refuse a scorer of ids, named by `--reward`, that reads these prompts as other ids than the policy does."""
    if scorer.reads == "ids":
        own = spelling.model_copy(update={"chat_template": None})
        other = checkpoints.load_text(name, own)
        checkpoints.require_same_tokens(text, other, bundles, name)


def _finite(scores: Tensor, bundles: Sequence[Bundle]) -> Tensor:
    bad = torch.nonzero(~torch.isfinite(scores)).flatten().tolist()
    if bad:
        owner = [b for b in bundles for _ in b.completions][bad[0]]
        raise InputError(
            f"the reward of completion {bad[0] + 1} is {float(scores[bad[0]])} "
            f"({named(owner)}); a score must be a finite number: mend the rule or the reward model"
        )
    return scores
