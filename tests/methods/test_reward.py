"""Held-out figures of the reward model, from Hugging Face's own scores, and which checkpoint they keep."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from keel import stats
from keel.config import Machine
from keel.methods import reward
from keel.models import checkpoints
from keel.models.roles import Role
from keel.records import Bundle, Completion

PAIRS = [
    ([5, 6], [7, 1], [8, 9, 1], 0.5),
    ([10], [11, 1], [12, 1], 0.0),
    ([5, 6], [7, 1], [13, 1], 2.0),
    ([14, 15, 16], [17, 18, 19, 20, 1], [21, 1], 9.0),
    ([10], [22, 23, 1], [24, 25, 26, 1], 0.1),
]
"""Prompt, chosen, rejected, margin: five pairs of three prompts."""


@pytest.mark.parametrize("micro_tokens", [1, 1000])
def test_held_out_figures_treat_prompts_as_the_independent_examples(reward_folder, micro_tokens):
    model = checkpoints.load_reward(str(reward_folder), Machine(device="cpu", precision="fp32"))
    bundles = [Bundle(p, [Completion(c), Completion(r)], margin=m) for p, c, r, m in PAIRS]
    found = reward.evaluate(Role("reward", model), bundles, micro_tokens)
    plain = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()

    @torch.no_grad()
    def score(ids):
        return float(plain(input_ids=torch.tensor([ids])).logits)

    gaps = [score(p + c) - score(p + r) for p, c, r, _ in PAIRS]
    losses = [math.log1p(math.exp(margin - gap)) for gap, (*_, margin) in zip(gaps, PAIRS, strict=True)]
    prompts = [tuple(p) for p, *_ in PAIRS]
    assert any(0 < gap < margin for gap, (*_, margin) in zip(gaps, PAIRS, strict=True))
    expected = {
        "accuracy": stats.rate([float(gap > 0) for gap in gaps], prompts),
        "loss": stats.mean(losses, prompts),
        "margin": stats.mean(gaps, prompts),
    }
    assert found.keys() == expected.keys()
    for name, figure in expected.items():
        assert found[name] == pytest.approx(figure.as_dict(), abs=1e-4), name
        assert found[name]["n"] == 3


def test_the_best_checkpoint_has_the_lowest_held_out_loss(train, metrics_of):
    result = train("reward", steps=3, eval_every=1, holdout=0.25, learning_rate=0.1, schedule="constant")
    losses = [line["eval/loss"] for line in metrics_of(result.folder)]
    assert result.summary["best"] == {"step": 1 + losses.index(min(losses)), "metric": "loss", "value": min(losses)}
