"""How runs end: a DPO run that wrecks its model says so and keeps an earlier checkpoint; five lines at every end."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, base, demonstrations_file):
    """A model that knows the chosen answers, as one that is tuned by DPO does."""
    from keel.config import SFTConfig
    from keel.methods import sft

    options = {"batch_size": 4, "steps": 60, "learning_rate": 1e-2, "device": "cpu", "precision": "fp32"}
    out = tmp_path_factory.mktemp("tuned") / "sft"
    return sft.train(SFTConfig(model=str(base), data=str(demonstrations_file), out=out, **options)).final


def wrecked(train, tuned, **changes):
    """Ten steps of DPO, looked at after each."""
    options = {"steps": 10, "eval_every": 1, "batch_size": 12, "learning_rate": 3e-3, "holdout": 0.25}
    return train("dpo", model=str(tuned), **{**options, **changes})


def about(result):
    return [warning["about"] for warning in result.summary["verdict"]["warnings"]]


@pytest.mark.parametrize("learning_rate", [3e-3, 1e-2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wrecked_dpo_run_warns_and_keeps_an_earlier_checkpoint(train, tuned, metrics_of, capsys, learning_rate, seed):
    """The fall is read off metrics.jsonl: the kept step's is smaller than that of the last."""
    result = wrecked(train, tuned, learning_rate=learning_rate, seed=seed)
    kept, rows = result.summary["best"]["step"], metrics_of(result.folder)
    chosen = [row["eval/logps/chosen"] for row in rows]
    assert kept < 10
    assert chosen[kept - 1] > chosen[-1] + 1
    assert "chosen answers fell" in about(result)
    told = capsys.readouterr().err
    assert f"kept: step {kept} of 10" in told
    assert f"to {min(chosen):.1f} nats" in told
    assert "lower --learning-rate" in told


def test_a_healthy_dpo_run_warns_of_nothing(train, tuned, capsys):
    result = wrecked(train, tuned, learning_rate=2e-4)
    assert about(result) == []
    assert capsys.readouterr().err.splitlines()[-1] == "warnings: none"


@pytest.mark.parametrize(
    ("by", "figure"), [("loss", "eval/loss"), ("accuracy", "eval/rewards/accuracies"), ("last", "step")]
)
def test_best_by_overrides_the_rule(train, tuned, metrics_of, by, figure):
    result = wrecked(train, tuned, best_by=by)
    values = [row[figure] for row in metrics_of(result.folder)]
    kept = values[result.summary["best"]["step"] - 1]
    assert kept == (min(values) if by == "loss" else max(values))
    assert f"--best-by {by}" in result.summary["verdict"]["kept"]
    assert "chosen answers fell" in about(result)


def test_without_held_out_pairs_training_tells_of_the_fall(train, tuned, metrics_of):
    result = wrecked(train, tuned, holdout=0.0, learning_rate=3e-2, batch_size=16, eval_every=None)
    rows = metrics_of(result.folder)
    assert rows[-1]["rewards/chosen"] < -0.5  # five nats at beta 0.1
    (warning,) = (w for w in result.summary["verdict"]["warnings"] if w["about"] == "chosen answers fell")
    assert "--holdout" in warning["message"]
