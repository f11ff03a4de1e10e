"""PPO's numbers, recomputed by hand: scores, KL, shaped rewards, advantages, the first minibatch's gradients."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from keel.engine.adamw import Optimizer
from keel.errors import InputError, RunFailed
from keel.methods import ppo

TAU = 0.8


def spy_on_rollouts(monkeypatch):
    """Every rollout as `improve` receives it."""
    seen = []
    real = ppo.improve

    def improve(run, config, roles, rollout):
        seen.append((rollout, float(run.extra["centre"])))
        real(run, config, roles, rollout)

    monkeypatch.setattr(ppo, "improve", improve)
    return seen


def answers(rollout):
    return [(b.prompt_ids, c) for b in rollout.bundles for c in b.completions]


def logps(model, before, after):
    logits = model(input_ids=torch.tensor([before + after]), use_cache=False).logits[0] / TAU
    return torch.log_softmax(logits[len(before) - 1 : -1], -1)[torch.arange(len(after)), torch.tensor(after)]


def values_of(model, before, after):
    """V of every state before a token, and of the end."""
    hidden = model.base_model(input_ids=torch.tensor([before + after]), use_cache=False).last_hidden_state
    return model.score(hidden)[0, len(before) - 1 :, 0]


def advantages_by_hand(rewards, values, after_end, gamma, lam):
    """A_t as the sum over k of (gamma lam)^k delta_{t+k}, written out."""
    v = [*values, after_end]
    deltas = [rewards[t] + gamma * v[t + 1] - v[t] for t in range(len(rewards))]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


@pytest.mark.parametrize("truncation", ["penalty", "bootstrap", "score"])
@pytest.mark.parametrize("scored_by", ["model", "rule"])
def test_the_second_rollout_by_hand(
    train, configure, monkeypatch, base, reward_folder, tmp_path, truncation, scored_by
):
    """By then the policy is no longer its reference and the critic no longer the reward model.

    Weights as they were at that moment are taken from a checkpoint after step 1; the rest is plain Python.
    """
    beta, gamma, lam = 0.3, 0.9, 0.8
    reward = str(reward_folder)
    if scored_by == "rule":
        (tmp_path / "rule.yaml").write_text("rules:\n  - {contains: [b, k, t, n], weight: 2.0}\n")
        reward = f"rule:{tmp_path / 'rule.yaml'}"
    seen = spy_on_rollouts(monkeypatch)
    result = train(
        "ppo",
        reward=reward,
        steps=2,
        save_every=1,
        beta=beta,
        gamma=gamma,
        lam=lam,
        temperature=TAU,
        truncation=truncation,
        missing_eos_score=-1.5,
        samples_per_prompt=4,
    )
    kept = result.folder / "checkpoints" / "step-1"
    policy = AutoModelForCausalLM.from_pretrained(kept / "policy").eval()
    critic = AutoModelForSequenceClassification.from_pretrained(kept / "value").eval()
    reference = AutoModelForCausalLM.from_pretrained(base).eval()
    scorer = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()

    def raw_score(before, c):
        if scored_by == "rule":
            words = "".join(ch if ch.isalnum() or ch == "_" else " " for ch in c.text.lower()).split()
            return 2.0 * any(w in words for w in ["b", "k", "t", "n"])
        return float(scorer(input_ids=torch.tensor([before + c.ids])).logits)

    with torch.no_grad():
        first, second = (answers(rollout) for rollout, _ in seen)
        done = [raw_score(p, c) for p, c in first if not c.truncated]
        assert 0 < len(done) < len(first)
        centre = statistics.fmean(done)
        assert [c for _, c in seen] == pytest.approx([centre] * 2, abs=1e-5)
        offset = (
            centre if scored_by == "model" else 0.0
        )  # a critic that starts at zero already speaks of centred scores
        scores, advantages, returns, kls = [], [], [], []
        for before, c in second:
            old, ref = logps(policy, before, c.ids), logps(reference, before, c.ids)
            v = (values_of(critic, before, c.ids) - offset).tolist()
            score = raw_score(before, c) - centre
            given, after_end = score, 0.0
            if c.truncated and truncation == "penalty":
                score = given = -1.5
            if c.truncated and truncation == "bootstrap":
                score, given, after_end = v[-1], 0.0, v[-1]
            rewards = [-beta * float(d) for d in old - ref]
            rewards[-1] += given
            kls.append(float((old - ref).sum()))
            a = advantages_by_hand(rewards, v[:-1], after_end, gamma, lam)
            scores.append(score)
            advantages += a
            returns += [x + y for x, y in zip(a, v, strict=False)]
    rollout = seen[1][0]
    assert rollout.scores.tolist() == pytest.approx(scores, abs=1e-4)
    assert torch.cat(rollout.returns).tolist() == pytest.approx(returns, abs=1e-4)
    mean, sd = statistics.fmean(advantages), statistics.stdev(advantages)
    whitened = [(a - mean) / sd for a in advantages]
    assert torch.cat(rollout.advantages).tolist() == pytest.approx(whitened, abs=1e-3)

    line = json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[1])
    raw = [raw_score(p, c) for p, c in second]
    assert line["objective/kl"] == pytest.approx(statistics.fmean(kls), abs=1e-4)
    assert line["objective/scores"] == pytest.approx(statistics.fmean(raw), abs=1e-4)
    assert line["objective/non_score_reward"] == pytest.approx(-beta * statistics.fmean(kls), abs=1e-4)
    shaped = [s - beta * k for s, k in zip(scores, kls, strict=True)]
    assert line["objective/rlhf_reward"] == pytest.approx(statistics.fmean(shaped), abs=1e-4)
    assert line["val/num_eos_tokens"] == sum(not c.truncated for _, c in second)
    assert line["completions/clipped_ratio"] == sum(c.truncated for _, c in second) / len(second)
    assert line["completions/mean_length"] == pytest.approx(statistics.fmean(len(c) for _, c in second))
    groups = [shaped[i : i + 4] for i in range(0, len(shaped), 4)]
    assert line["certificate/mean"] == pytest.approx(statistics.fmean(shaped), abs=1e-4)
    assert line["certificate/sd"] == pytest.approx(statistics.fmean(map(statistics.stdev, groups)), abs=1e-4)
    variance = statistics.fmean(map(statistics.variance, groups))
    assert line["certificate/kl_to_optimum"] == pytest.approx(variance / (2 * beta**2), rel=1e-3)


def test_gradients_of_the_first_minibatch_by_hand(train, monkeypatch, base, reward_folder):
    """Policy: -sum A grad log pi / N; critic: sum (V - R) grad V / N, over all tokens of the minibatch."""
    captured = []
    real = Optimizer.step

    def step(self, rate):
        captured.append([p.grad.clone() for p in self._parameters])
        real(self, rate)

    monkeypatch.setattr(Optimizer, "step", step)
    seen = spy_on_rollouts(monkeypatch)
    train("ppo", steps=1, epochs=1, batch_size=8, temperature=TAU, max_grad_norm=1e9, micro_tokens=60)
    rollout, centre = seen[0]
    advantages, returns = torch.cat(rollout.advantages), torch.cat(rollout.returns)
    policy = AutoModelForCausalLM.from_pretrained(base).eval()
    critic = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()
    flat = torch.cat([logps(policy, p, c.ids) for p, c in answers(rollout)])
    values = torch.cat([values_of(critic, p, c.ids)[:-1] for p, c in answers(rollout)]) - centre
    (-(advantages * flat).sum() / len(flat)).backward()
    (0.5 * (values - returns) ** 2).mean().backward()
    for ours, model in zip(captured, (policy, critic), strict=True):
        for got, (name, parameter) in zip(ours, model.named_parameters(), strict=True):
            gap = float((got - parameter.grad).norm() / parameter.grad.norm().clamp_min(1e-12))
            assert gap < 1e-4, name


def test_later_minibatches_are_clipped_against_the_sampling_policy(train, monkeypatch):
    """Old log-probabilities stay those of the rollout through all epochs."""
    olds = []
    real = ppo.objectives.ppo_policy_loss
    monkeypatch.setattr(
        ppo.objectives, "ppo_policy_loss", lambda new, old, *rest: olds.append(old.clone()) or real(new, old, *rest)
    )
    seen = spy_on_rollouts(monkeypatch)
    train("ppo", steps=1, epochs=3, batch_size=4, learning_rate=1e-2)
    expected = sorted(torch.cat(seen[0][0].old_logps).tolist())
    assert len(olds) == 3
    assert all(sorted(old.tolist()) == expected for old in olds)


def test_every_sample_is_used_once_per_epoch(train, monkeypatch):
    """In other orders in the next epoch, and in the next step."""
    batches = []
    real = ppo._policy_pass

    def spy(run, config, roles, rollout, index, tokens, first):
        batches.append(list(index))
        real(run, config, roles, rollout, index, tokens, first)

    monkeypatch.setattr(ppo, "_policy_pass", spy)
    train("ppo", steps=2, epochs=3, rollout_size=4, batch_size=3)
    flat = [i for batch in batches for i in batch]
    epochs = [flat[i : i + 4] for i in range(0, 24, 4)]
    assert [sorted(e) for e in epochs] == [list(range(4))] * 6
    assert len({tuple(e) for e in epochs[:3]}) > 1
    assert epochs[:3] != epochs[3:]


def test_prompts_are_visited_in_turn(train, monkeypatch):
    seen = spy_on_rollouts(monkeypatch)
    train("ppo", steps=4, rollout_size=4)
    prompts = [[b.prompt for b in rollout.bundles] for rollout, _ in seen]
    assert len({*prompts[0], *prompts[1]}) == 8
    assert {*prompts[0], *prompts[1]} == {*prompts[2], *prompts[3]}
    texts = [[c.text for b in rollout.bundles for c in b.completions] for rollout, _ in seen]
    assert texts[0] != texts[2]


def test_learning_raises_the_score(train, tmp_path, metrics_of):
    """A rule that likes finished answers with an 'a': forty rollouts raise it from chance."""
    (tmp_path / "rule.yaml").write_text("rules:\n  - {matches: a, weight: 1.0}\n")
    lines = metrics_of(
        train(
            "ppo",
            reward=f"rule:{tmp_path / 'rule.yaml'}",
            steps=25,
            rollout_size=8,
            samples_per_prompt=4,
            batch_size=8,
            epochs=4,
            beta=0.01,
            learning_rate=1e-2,
        ).folder
    )
    start, end = (statistics.fmean(m["objective/scores"] for m in part) for part in (lines[:3], lines[-3:]))
    assert end > start + 0.25
    assert lines[-1]["objective/kl"] > 0


def test_a_larger_penalty_keeps_the_policy_nearer(train, tmp_path, metrics_of):
    """The sign of the KL term: with two hundred times the penalty the KL ends smaller."""
    (tmp_path / "rule.yaml").write_text("rules:\n  - {matches: a, weight: 1.0}\n")
    ends = []
    for beta in (0.01, 2.0):
        options = {"steps": 15, "rollout_size": 8, "samples_per_prompt": 4, "batch_size": 8, "epochs": 4}
        folder = train("ppo", reward=f"rule:{tmp_path / 'rule.yaml'}", beta=beta, learning_rate=3e-3, **options).folder
        ends.append(statistics.fmean(m["objective/kl"] for m in metrics_of(folder)[-3:]))
    assert ends[1] < 0.5 * ends[0]


def test_evaluation_by_hand(train, monkeypatch, reward_folder, base):
    """Held-out score, KL and objective of the same draws each time, scored by Hugging Face's classifier."""
    sampled, seeds = [], {"evaluation": [], "rollout": []}
    real = ppo.sample

    def sample(*args, **options):
        evaluates = args[3] == "evaluation"
        seeds["evaluation" if evaluates else "rollout"].append(args[3:])
        bundles = real(*args, **options)
        if evaluates:
            sampled.append(bundles)
        return bundles

    monkeypatch.setattr(ppo, "sample", sample)
    seen = spy_on_rollouts(monkeypatch)
    options = {"missing_eos_score": -1.5, "target_kl": 1e-3, "kl_horizon": 20}
    result = train("ppo", steps=2, eval_every=1, holdout=0.25, temperature=TAU, beta=0.2, **options)
    sampled = sampled[1:]  # the first are the reference's own, for the verdict's step 0
    assert len(sampled) == 2
    assert len(set(seeds["evaluation"])) == 1  # the same draws: checkpoints differ by their weights alone
    assert len({*seeds["rollout"], *seeds["evaluation"]}) == 3  # each rollout has draws of its own
    best = result.summary["best"]["step"]
    bundles = sampled[best - 1]
    policy = AutoModelForCausalLM.from_pretrained(result.final).eval()
    reference = AutoModelForCausalLM.from_pretrained(base).eval()
    scorer = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()
    with torch.no_grad():
        scores, trained, kls = [], [], []
        for b in bundles:
            (c,) = b.completions
            drawn_at = logps(policy, b.prompt_ids, c.ids)
            assert c.logps.tolist() == pytest.approx(drawn_at.tolist(), abs=1e-3)  # at the temperature of the rollouts
            scores.append(float(scorer(input_ids=torch.tensor([b.prompt_ids + c.ids])).logits))
            trained.append(-1.5 if c.truncated else scores[-1] - seen[0][1])
            kls.append(float((drawn_at - logps(reference, b.prompt_ids, c.ids)).sum()))
    figures = result.summary["eval"]
    assert figures["scores"]["n"] == len(bundles) == 2
    assert figures["scores"]["mean"] == pytest.approx(statistics.fmean(scores), abs=1e-4)
    assert figures["kl"]["mean"] == pytest.approx(statistics.fmean(kls), abs=1e-4)
    lines = [json.loads(x) for x in (result.folder / "metrics.jsonl").read_text().splitlines()]
    kl = lines[best - 1]["objective/kl"]
    drawn = len(answers(seen[best - 1][0]))
    beta = lines[best - 1]["objective/beta"] * (1 + min(max(kl / 1e-3 - 1, -0.2), 0.2) * drawn / 20)  # after its step
    objective = [s - beta * k for s, k in zip(trained, kls, strict=True)]
    assert figures["objective"]["mean"] == pytest.approx(statistics.fmean(objective), abs=1e-4)
    values = [json.loads(x)["eval/objective"] for x in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert result.summary["best"]["value"] == max(values)


def evidence(folder):
    return [json.loads(line) for line in (folder / "failed-batch.jsonl").read_text().splitlines()]


def test_a_score_that_is_not_a_number_stops_the_run(train, configure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rule_inf.py").write_text("def score(prompt, completion):\n    return float('inf')\n")
    config = configure("ppo", reward="rule:rule_inf:score")
    with pytest.raises(RunFailed, match=r"prompts\.jsonl row \d.*finite"):
        train("ppo", config=config)
    rows = evidence(config.out)
    assert sorted(r["row"] for r in rows) == sorted({r["row"] for r in rows})
    assert len(rows) == 4
    assert all(len(r["completions"]) == 2 for r in rows)


def test_a_rule_that_fails_in_mid_run_leaves_its_evidence(train, configure, tmp_path, monkeypatch):
    """In the third rollout, by a stranger's exception: the prompt is named, the steps before it are kept."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rule_moody.py").write_text(
        "calls = []\n"
        "def score(prompt, completion):\n"
        "    calls.append(1)\n"
        "    return 1.0 if len(calls) <= 2 * 8 else {}['key']\n"
    )
    config = configure("ppo", reward="rule:rule_moody:score")
    with pytest.raises(RunFailed, match=r"rule_moody:score failed: KeyError.*prompts\.jsonl row \d"):
        train("ppo", config=config)
    assert len((config.out / "metrics.jsonl").read_text().splitlines()) == 2
    assert len(evidence(config.out)) == 4


def test_a_reward_model_s_infinity_stops_the_run(train, configure, monkeypatch):
    from keel.engine import scorers

    real, calls = scorers.scalars_at_end, []

    def scalars(model, bundles):
        calls.append(1)
        return real(model, bundles) * (math.inf if len(calls) > 1 else 1)

    monkeypatch.setattr(scorers, "scalars_at_end", scalars)
    config = configure("ppo")
    with pytest.raises(RunFailed, match=r"step 2.*inf"):
        train("ppo", config=config)
    assert len(evidence(config.out)) == 4


def test_a_policy_that_gives_no_probabilities_stops_the_run(train, configure, monkeypatch):
    """Not the reference, not the sampler's own error: a non-finite number, with the rows that it came from."""
    real = ppo.checkpoints.load_policy

    def load(*args):
        model = real(*args)
        with torch.no_grad():
            model.lm_head.weight[5] = math.nan
        return model

    monkeypatch.setattr(ppo.checkpoints, "load_policy", load)
    config = configure("ppo")
    with pytest.raises(RunFailed, match=r"not finite.*prompts\.jsonl row \d"):
        train("ppo", config=config)
    assert {r["row"] for r in evidence(config.out)} <= set(range(1, 9))
    assert len(evidence(config.out)) == 4


@pytest.mark.parametrize(("limit", "told"), [(24, True), (120, False)])
def test_a_gap_of_answers_that_cross_a_limit_of_positions_has_its_remedy(
    train, make_model, tmp_path, capsys, limit, told
):
    """Longrope: the sampler writes the first tokens as a short text's, and training reads all as a long one's."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0, 4.0, 8.0, 16.0], "factor": 1.0}
    rope = {"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": limit, **factors}
    rule = tmp_path / "rule.yaml"
    rule.write_text("rules:\n  - {words: [1, 9]}\n")
    model = str(make_model("llama", rope_parameters=rope))
    train("ppo", model=model, reward=f"rule:{rule}", steps=1, max_new_tokens=24)
    assert (f"cross {limit} tokens" in capsys.readouterr().err) is told


def test_a_gap_between_sampler_and_trainer_is_told_once(train, monkeypatch, capsys, metrics_of):
    train("ppo")
    assert "sampler and trainer" not in capsys.readouterr().err
    real = ppo.sample

    def sample(*args, **options):
        bundles = real(*args, **options)
        for bundle in bundles:
            for c in bundle.completions:
                c.logps = c.logps + 0.02
        return bundles

    monkeypatch.setattr(ppo, "sample", sample)
    train("ppo")
    told = capsys.readouterr().err
    assert told.count("sampler and trainer") == 1
    assert "0.02 nats" in told


def test_rows_of_held_out_prompts_are_in_the_summary(train, tmp_path, write_rows):
    rows = [{"prompt": f"where is bruno {i}?"} for i in range(5)] + [{"prompt": ""}]
    file = write_rows(tmp_path / "held.jsonl", rows)
    counts = train("ppo", steps=1, eval_data=file, max_bad_share=0.5).summary["rows_eval"]
    assert (counts["read"], counts["used"]) == (6, 5)
    assert counts["dropped"] == {"empty prompt": [1, [6]]}
    assert train("ppo", steps=1).summary["rows_eval"] is None


def test_a_reward_model_of_another_tokenizer_is_refused(train, make_reward):
    with pytest.raises(InputError, match="tokenizer"):
        train("ppo", reward=str(make_reward("llama", tokenizer="bare")))


def test_certificate_by_hand():
    shaped = torch.tensor([1.0, 3.0, 2.0, 2.0])
    got = ppo.certificate(shaped, 2, 0.5)
    assert got == pytest.approx({"mean": 2.0, "sd": math.sqrt(2) / 2, "kl_to_optimum": 1 / (2 * 0.25)})
    assert ppo.certificate(shaped, 1, 0.5) == {"mean": 2.0}


@pytest.mark.parametrize(("truncation", "warned"), [("penalty", True), ("score", False)])
def test_a_rollout_that_is_cut_throughout_is_warned_of(train, metrics_of, capsys, truncation, warned):
    """Every score is the penalty's then. The screen shows the figure that is maximised."""
    result = train("ppo", steps=1, max_new_tokens=1, temperature=0.01, truncation=truncation)
    (line,) = metrics_of(result.folder)
    assert line["completions/clipped_ratio"] == 1.0
    said = capsys.readouterr().err
    assert ("all completions reached 1 tokens without an end, so all have the score -1" in said) == warned
    assert f"objective/rlhf_reward {line['objective/rlhf_reward']:.3f}" in said
