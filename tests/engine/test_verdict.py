"""The end of a run in words: arithmetic by hand, and when a warning is due."""

from __future__ import annotations

import pytest

from keel.engine import verdict
from keel.engine.verdict import History, ReferenceComparison, RunVerdict, Sample


def pairs(step, loss, chosen, fall, accuracy=1.0):
    """Held-out figures of DPO as plain numbers."""
    return {
        "step": step,
        "loss": loss,
        "rewards/accuracies": accuracy,
        "logps/chosen": chosen,
        "logps/chosen_fall": fall,
    }


RUN = [pairs(6, 1e-3, -3.5, 2.0), pairs(12, 4e-4, -9.5, 8.0), pairs(18, 2e-4, -12.5, 11.0)]
"""A reference at -1.5 nats an answer of 20 tokens; the lower the loss, the more broken."""


@pytest.mark.parametrize(
    ("fall", "reference", "tokens", "expected"),
    [
        (0.9, -0.5, 2, False),  # less than a nat
        (1.1, -2.0, 20, True),  # more than half of 2
        (1.1, -2.4, 20, False),
        (20.0, -360.0, 300, False),  # a long answer: 6 % of its surprise, 0.07 nats a token
        (80.0, -360.0, 300, True),  # 0.27 nats a token
        (-5.0, -1.0, 20, False),  # it rose
    ],
)
def test_displaced_by_hand(fall, reference, tokens, expected):
    assert verdict.displaced(fall, reference, tokens) is expected


@pytest.mark.parametrize(("by", "step"), [("displacement", 6), ("loss", 18), ("accuracy", 18)])
def test_which_checkpoint_is_kept(by, step):
    assert min(RUN, key=lambda e: verdict.dpo_rank(e, by, 20.0))["step"] == step


def test_among_likely_checkpoints_the_loss_decides():
    healthy = [pairs(6, 0.6, -1.5, 0.0), pairs(12, 0.5, -1.9, 0.4), pairs(18, 0.4, -5.0, 3.5)]
    assert min(healthy, key=lambda e: verdict.dpo_rank(e, "displacement", 20.0))["step"] == 12
    history = History(18, [], {}, healthy, {"step": 12})
    assert verdict.dpo_why(history, "displacement", 20.0).endswith("not so at step 18")


def test_the_fall_is_told_in_numbers():
    history = History(18, [], pairs(0, 0.69, -1.5, 0.0, 0.5), RUN, {"step": 6})
    beside = ReferenceComparison(own=-0.1, new=-1.2)
    found = verdict.fell(history, 20.0, beside, learning_rate=3e-4, beta=0.1, held_out=True)
    for part in ("from -1.5 to -12.5 nats, by 11.0", "step 18", "kept step 6 to -3.5", "no longer reads", "-1.20"):
        assert part in found.message
    healthy = History(6, [], pairs(0, 0.69, -1.5, 0.0, 0.5), [pairs(6, 0.4, -1.6, 0.1)], {"step": 6})
    assert verdict.fell(healthy, 20.0, beside, learning_rate=3e-4, beta=0.1, held_out=True) is None


@pytest.mark.parametrize(("reward", "expected"), [(-0.5, True), (-0.05, False)])
def test_the_fall_in_training_is_the_reward_over_beta(reward, expected):
    """-0.5 at beta 0.1 is five nats below a reference of -1.5."""
    rows = [
        {"rewards/chosen": 0.0, "logps/chosen": -1.5},
        {"rewards/chosen": reward, "logps/chosen": -1.5 + reward * 10},
    ]
    found = verdict.fell(History(2, rows), 20.0, ReferenceComparison(), learning_rate=3e-4, beta=0.1, held_out=False)
    assert (found is not None) is expected
    assert found is None or "from -1.5 to -6.5 nats, by 5.0" in found.message


def test_before_and_after_with_intervals_or_from_training():
    before, after = ({"mean": m, "low": m - 0.1, "high": m + 0.1, "n": 30} for m in (1.75, 1.5))
    history = History(6, [], {"loss": before}, [{"step": 4, "loss": after}], {"step": 4})
    words, numbers = verdict.reached(history, ("loss",), ("loss",))
    assert words == "held out, loss 1.75 [1.65, 1.85] -> 1.5 [1.4, 1.6]"
    assert numbers["figures"] == {"loss": {"before": before, "after": after}}
    rows = [{"step": i, "loss": float(10 - i)} for i in range(10)]
    words, numbers = verdict.reached(History(10, rows), ("loss",), ("loss",))
    assert numbers == {"held_out": False, "figures": {"loss": {"before": 10.0, "after": 1.5}}}
    assert "--holdout" in words


@pytest.mark.parametrize(("after", "expected"), [(0.6925, True), (0.6, False), (0.7, True), (0.8, False)])
def test_a_loss_that_hardly_moved(after, expected):
    history = History(5, [], {"loss": 0.6931}, [{"step": 5, "loss": after}], {"step": 5})
    found = verdict.hardly_moved(history, 1e-5)
    assert (found is not None) is expected
    assert found is None or "--learning-rate (now 1e-05)" in found.message
    training = History(5, [{"loss": 0.6931}, {"loss": after}])
    assert (verdict.hardly_moved(training, 1e-5, 0.6931) is not None) is expected
    assert verdict.hardly_moved(training, 1e-5) is None  # a batch against another: no closed form to compare with


@pytest.mark.parametrize(("low", "high", "higher", "expected"), [(1.1, 1.3, False, True), (0.9, 1.3, False, False),
                         (0.7, 0.9, True, True), (0.7, 1.1, True, False)])  # fmt: skip
def test_worse_than_the_start_is_beyond_the_interval(low, high, higher, expected):
    figure = {"mean": (low + high) / 2, "low": low, "high": high, "n": 9}
    history = History(5, [], {"loss": 1.0}, [{"step": 5, "loss": figure}], {"step": 5})
    assert (verdict.got_worse(history, "loss", 1e-5, higher) is not None) is expected


def test_what_gives_no_signal():
    assert verdict.all_cut(7, 8, "--max-new-tokens 80", "") is None
    assert verdict.all_cut(0, 0, "--max-new-tokens 80", "") is None
    assert "all 8 answers were cut at --max-new-tokens 80" in verdict.all_cut(8, 8, "--max-new-tokens 80", "").message
    assert "equal in 2 of 5 rollouts, -1, " in verdict.equal_rewards(-1.0, " in 2 of 5 rollouts").message
    rows = [{"completions/clipped_ratio": share} for share in (1.0, 0.99, 1.0, 0.5)]
    assert "in 2 of 4 rollouts all answers" in verdict.cut_rollouts(History(4, rows), "--max-new-tokens 80", "").message
    assert verdict.cut_rollouts(History(1, rows[1:2]), "--max-new-tokens 80", "") is None
    assert verdict.flat_scores(0.3, "…") is None
    assert "0.0003" in verdict.flat_scores(0.0003, "raise --learning-rate").message
    assert verdict.policy_still(ReferenceComparison(kl=0.5, kl_se=0.1), 1e-6) is None
    assert verdict.policy_still(ReferenceComparison(kl=0.001, kl_se=0.5), 1e-6) is None  # nobody knows
    assert "--learning-rate" in verdict.policy_still(ReferenceComparison(kl=0.001, kl_se=0.001), 1e-6).message


@pytest.mark.parametrize(("new", "reads"), [(-0.2, True), (-0.7, False)])
def test_a_text_reads_if_the_reference_could_have_written_it(new, reads):
    beside = ReferenceComparison(own=-0.1, new=new)
    assert beside.fluent() is reads
    assert (verdict.unread(beside, "…") is None) is reads
    assert ReferenceComparison().fluent() is None


def test_five_lines():
    beside = ReferenceComparison([Sample("once\nupon", {"reference": " a", "kept": " b" * 60})], 1.204, 0.113, 32, 64)
    end = RunVerdict("loss 2 -> 1", "step 4 of 6", beside.kl_line(), beside.samples)
    reached, kept, kl, heading, sample, warnings = end.lines()
    assert (reached, kept, heading, warnings) == (
        "reached: loss 2 -> 1", "kept: step 4 of 6", "samples:", "warnings: none"
    )  # fmt: skip
    assert kl.startswith("KL to the reference: 1.2 ± 0.11 nats an answer")
    assert sample.startswith("  once upon | reference: a | kept: b b")
    assert len(sample) < 120
    assert end.as_dict()["samples"] == [{"prompt": "once\nupon", "reference": " a", "kept": " b" * 60}]
