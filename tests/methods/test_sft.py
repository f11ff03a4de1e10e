"""Held-out figures of supervised fine-tuning, from Hugging Face's own log-probabilities."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from keel import stats
from keel.config import Machine
from keel.methods import sft
from keel.models import checkpoints
from keel.models.roles import Role
from keel.records import Bundle, Completion

TEXTS = [
    ([5, 6], [7, 1]),
    ([8, 9, 10, 11, 12], [13, 14, 15, 16, 17, 1]),
    ([20], [21, 22, 1]),
    ([30, 31, 32], [33, 34, 35, 36, 1]),
    ([40, 41], [42, 1]),
]
"""Prompt and answer; in the order of their lengths they would stand otherwise."""


@pytest.mark.parametrize("micro_tokens", [1, 14, 1000])
def test_held_out_figures_treat_texts_as_the_independent_examples(base, micro_tokens):
    """Whatever passes they go through: each token belongs to its own text."""
    policy = checkpoints.load_policy(str(base), Machine(device="cpu", precision="fp32"))
    found = sft.evaluate(Role("policy", policy), [Bundle(p, [Completion(c)]) for p, c in TEXTS], micro_tokens)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    losses, hits, owners = [], [], []
    for number, (before, after) in enumerate(TEXTS):
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        losses += (-torch.log_softmax(logits, -1)[torch.arange(len(after)), torch.tensor(after)]).tolist()
        hits += (logits.argmax(-1) == torch.tensor(after)).float().tolist()
        owners += [number] * len(after)
    assert found["loss"] == pytest.approx(stats.mean(losses, owners).as_dict(), abs=1e-4)
    assert found["mean_token_accuracy"] == pytest.approx(stats.mean(hits, owners).as_dict(), abs=1e-4)
    assert found["loss"]["n"] == len(TEXTS)


def test_the_best_checkpoint_has_the_lowest_held_out_loss(train, metrics_of):
    result = train("sft", steps=3, eval_every=1, holdout=0.25, learning_rate=0.1, schedule="constant")
    losses = [line["eval/loss"] for line in metrics_of(result.folder)]
    assert result.summary["best"] == {"step": 1 + losses.index(min(losses)), "metric": "loss", "value": min(losses)}


def test_only_answers_that_were_cut_here_are_blamed_on_the_length():
    """One that was drawn up to a limit is cut, too, and no --max-length mends it."""
    from keel.methods.sft import _reaches

    def cut(length, truncated=True):
        return Bundle([5, 6], [Completion([7] * length, truncated=truncated)])

    assert _reaches(cut(8), 10)
    assert not _reaches(cut(7), 10)
    assert not _reaches(cut(8, truncated=False), 10)
