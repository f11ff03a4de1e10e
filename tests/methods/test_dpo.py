"""Held-out figures of DPO, by hand from two models of Hugging Face, and which checkpoint they keep."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from transformers import AutoModelForCausalLM

from keel import stats
from keel.methods import dpo
from keel.models.roles import Role
from keel.records import Bundle, Completion

BETA = 0.3


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logp(model, before, after):
    table = torch.log_softmax(model(input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 : -1], -1)
    return float(table[torch.arange(len(after)), torch.tensor(after)].sum())


def figures_by_hand(policy, reference, bundles):
    """Losses, wins, margins and log-probabilities of the chosen, one per pair, and each pair's prompt."""
    found = defaultdict(list)
    for b in bundles:
        chosen, rejected = (c.ids for c in b.completions)
        gain, loss = (logp(policy, b.prompt_ids, x) - logp(reference, b.prompt_ids, x) for x in (chosen, rejected))
        found["loss"].append(math.log1p(math.exp(-BETA * (gain - loss))))
        found["rewards/accuracies"].append(float(gain > loss))
        found["rewards/margins"].append(BETA * (gain - loss))
        found["logps/chosen"].append(logp(policy, b.prompt_ids, chosen))
        found["logps/chosen_fall"].append(-gain)
        found["prompts"].append(tuple(b.prompt_ids))
    return found


def estimates(found):
    names = ("loss", "rewards/margins", "logps/chosen", "logps/chosen_fall")
    means = {name: stats.mean(found[name], found["prompts"]) for name in names}
    return means | {"rewards/accuracies": stats.rate(found["rewards/accuracies"], found["prompts"])}


def test_held_out_figures_treat_prompts_as_the_independent_examples(configure, make_model, base):
    """Five pairs of three prompts, in passes of their own order."""
    config = configure("dpo", beta=BETA, micro_tokens=12)
    pairs = [([5, 6], [7, 1], [8, 9, 1]), ([10], [11, 1], [12, 1]), ([5, 6], [7, 1], [13, 1])]
    pairs += [([14, 15, 16], [17, 18, 19, 20, 1], [21, 1]), ([10], [22, 23, 1], [24, 25, 26, 1])]
    bundles = [Bundle(prompt, [Completion(chosen), Completion(rejected)]) for prompt, chosen, rejected in pairs]
    other = make_model("llama", seed=1)
    policy, model = (Role("role", dpo.checkpoints.load_policy(str(folder), config)) for folder in (base, other))
    found = dpo.evaluate(config, policy, dpo.Reference(model, bundles, config, None), bundles)
    expected = estimates(figures_by_hand(plain(base), plain(other), bundles))
    assert found.keys() == expected.keys()
    for name, figure in expected.items():
        assert found[name] == pytest.approx(figure.as_dict(), abs=1e-4), name
        assert found[name]["n"] == 3


def test_a_run_is_measured_against_the_reference_given_and_keeps_the_lowest_loss(
    train, monkeypatch, make_model, metrics_of
):
    held = []
    real = dpo.evaluate
    monkeypatch.setattr(dpo, "evaluate", lambda *a: held.append(a[-1]) or real(*a))
    other = make_model("llama", seed=1)
    options = {
        "steps": 3,
        "eval_every": 1,
        "learning_rate": 0.05,
        "schedule": "constant",
        "beta": BETA,
        "best_by": "loss",
    }
    result = train("dpo", reference=str(other), holdout=0.25, **options)
    losses = [line["eval/loss"] for line in metrics_of(result.folder)]
    assert result.summary["best"] == {"step": 1 + losses.index(min(losses)), "metric": "loss", "value": min(losses)}
    expected = estimates(figures_by_hand(plain(result.final), plain(other), held[0]))
    for name, figure in expected.items():
        assert result.summary["eval"][name] == pytest.approx(figure.as_dict(), abs=1e-3), name
