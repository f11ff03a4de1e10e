"""Runs of twenty steps that must not differ: prompts shared or not, any cut, reference cached or live, and in bf16.

Rates are such that losses fall: a run that stands still would agree with anything.
"""

from __future__ import annotations

import copy

import pytest

from keel.engine import forward
from keel.methods import ppo

PAIRED = {"sft": {"learning_rate": 1e-3}, "reward": {"learning_rate": 1e-3}, "dpo": {"learning_rate": 3e-4}}
STEPS = 20


def losses(train, metrics_of, method, **options):
    options = {"steps": STEPS, "warmup": 0.0, "schedule": "constant", **PAIRED.get(method, {}), **options}
    return [row["loss"] for row in metrics_of(train(method, **options).folder)]


@pytest.mark.parametrize(
    ("method", "options", "pack"),
    [
        *((method, {}, False) for method in PAIRED),
        *((method, {"micro_tokens": budget}, True) for method in PAIRED for budget in (1, 60)),
        ("dpo", {"reference_logps": "live"}, True),
    ],
)
def test_how_it_is_computed_changes_no_loss(train, metrics_of, monkeypatch, method, options, pack):
    expected = losses(train, metrics_of, method)
    monkeypatch.setattr(forward, "PACK", pack)
    got = losses(train, metrics_of, method, **options)
    assert len(got) == STEPS
    assert min(expected) < 0.9 * expected[0]
    assert got == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_three_answers_to_a_prompt_are_computed_once_and_learnt_from_alike(
    train, metrics_of, monkeypatch, write_rows, tmp_path, method
):
    """Three pairs of each three answers, computed as six rows a prompt and as one prompt with three answers."""
    words = [" good rain.", " it is raining, bear.", " no idea"]
    rows = [
        {"prompt": f"is it raining? {i}", "chosen": words[a], "rejected": words[b]}
        for i in range(8)
        for a, b in ((0, 2), (1, 2), (1, 0))
    ]
    data = str(write_rows(tmp_path / "rounds.jsonl", rows))
    got = losses(train, metrics_of, method, data=data, batch_size=12)
    monkeypatch.setattr(forward, "PACK", False)
    expected = losses(train, metrics_of, method, data=data, batch_size=12)
    assert min(expected) < 0.9 * expected[0]
    assert got == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("options", [{"pack": False}, {"micro_tokens": 40}])
def test_ppo_on_recorded_rollouts(train, metrics_of, monkeypatch, options):
    """The second run gets the samples of the first, so that rounding cannot make it draw others."""
    drawn = []
    real = ppo.sample

    def record(*args, **kwargs):
        drawn.append(real(*args, **kwargs))
        return copy.deepcopy(drawn[-1])

    settings = {"steps": STEPS, "learning_rate": 1e-4, "warmup": 0.0}
    monkeypatch.setattr(ppo, "sample", record)
    expected = metrics_of(train("ppo", **settings).folder)
    recorded = iter(drawn)
    monkeypatch.setattr(ppo, "sample", lambda *a, **k: copy.deepcopy(next(recorded)))
    options = dict(options)
    monkeypatch.setattr(forward, "PACK", options.pop("pack", True))
    got = metrics_of(train("ppo", **settings, **options).folder)
    for name in ("loss/policy_avg", "loss/value_avg", "objective/kl"):
        assert [row[name] for row in got] == pytest.approx([row[name] for row in expected], abs=1e-4), name
    assert max(row["objective/kl"] for row in expected) > 0.01


@pytest.mark.parametrize("method", PAIRED)
def test_bf16_learns_as_fp32_does(train, metrics_of, method):
    """The loss after twenty steps, where it has fallen by a fifth or more, is that of fp32 to 1 %."""
    expected = losses(train, metrics_of, method, precision="fp32")
    got = losses(train, metrics_of, method, precision="bf16")
    assert expected[-1] < 0.8 * expected[0]
    assert got[-1] == pytest.approx(expected[-1], rel=0.01)
