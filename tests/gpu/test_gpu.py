"""What a GPU computes, against the CPU and against formulas written here: run by `make gpu`, skipped without a GPU."""

from __future__ import annotations

import json

import pytest
import torch
from tests.packing import visible

from keel.engine.forward import token_logps, token_scores
from keel.models import attention, checkpoints, passes, trials
from keel.models.attention import Packing
from keel.records import Bundle, Completion

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

BUNDLES = [(50, [40, 10, 30]), (1, [20]), (90, [70, 120])]
WAYS = {"flash": attention.by_flash, "flex": attention.by_flex, "mask": attention.by_mask}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_packed_attention(way, width, groups):
    draw = torch.Generator().manual_seed(0)
    tokens, heads = len(visible(BUNDLES)), 4
    q, arriving = (torch.randn(1, heads, tokens, width, generator=draw).bfloat16() for _ in range(2))
    k, v = (torch.randn(1, heads // groups, tokens, width, generator=draw).bfloat16() for _ in range(2))
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    wide = [x.repeat_interleave(groups, 1) for x in exact[1:]]
    scores = (0.1 * exact[0] @ wide[0].transpose(-1, -2)).masked_fill(~visible(BUNDLES), float("-inf"))
    expected = torch.softmax(scores, -1) @ wide[1]
    wanted = [expected, *torch.autograd.grad(expected, exact, arriving.double())]
    on_gpu = [x.cuda().requires_grad_() for x in (q, k, v)]
    repeated = [on_gpu[0], *(x.repeat_interleave(groups, 1) for x in on_gpu[1:])]
    out = WAYS[way](*repeated, Packing(BUNDLES), 0.1)
    found = [out, *torch.autograd.grad(out, on_gpu, arriving.cuda())]
    for ours, theirs in zip(found, wanted, strict=True):
        assert float((ours.cpu().double() - theirs).abs().max()) < 0.03 * float(theirs.abs().max())


def test_flash_attention_is_taken_here():
    assert attention._fastest(torch.device("cuda"), torch.bfloat16, 64) is attention.by_flash


def bundles():
    draw = torch.Generator().manual_seed(1)
    ids = lambda n: torch.randint(3, 60, (n,), generator=draw).tolist()  # noqa: E731
    return [Bundle(ids(p), [Completion(ids(n)) for n in cs]) for p, cs in [(9, [4, 7]), (3, [11]), (20, [5, 1, 8])]]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_and_gradients_are_those_of_the_cpu(architecture, make_model, configure, precision):
    found = {}
    for device in ("cpu", "cuda"):
        config = configure("dpo", device=device, precision="fp32" if device == "cpu" else precision)
        model = checkpoints.load_policy(str(make_model(architecture)), config)
        scores = token_scores(model, bundles(), 0.7)
        scores.logps.sum().backward()
        gradients = torch.cat([p.grad.float().cpu().flatten() for p in model.parameters() if p.grad is not None])
        found[device] = scores.logps.detach().cpu(), scores.entropy.cpu(), gradients
    tolerance = 2e-4 if precision == "fp32" else 0.06
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


def test_bundles_are_packed(make_model, configure):
    model = checkpoints.load_policy(str(make_model("llama")), configure("dpo", device="cuda"))
    assert trials.ways_of(model).together is passes.packed
    assert trials.writes(model, "shared")


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
def test_a_run_is_that_of_the_cpu(train, metrics_of, method, tmp_path):
    """Samples are drawn from the same numbers; a GPU's rounding may change one, so PPO's are not compared."""
    runs = {}
    for device in ("cpu", "cuda"):
        result = train(method, out=tmp_path / device, device=device, precision="fp32")
        runs[device] = metrics_of(result.folder)
    assert result.summary["peak_gpu_gb"] > 0
    assert len(runs["cpu"]) == len(runs["cuda"])
    if method != "ppo":
        for ours, theirs in zip(runs["cuda"], runs["cpu"], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-3)


def test_a_run_in_bf16_saves_bf16(train, weights, tmp_path):
    whole = train("sft", out=tmp_path / "whole", device="cuda", precision="bf16", steps=4, save_every=2)
    assert whole.summary["steps"] == 4
    assert all(w.dtype == torch.bfloat16 for w in weights(tmp_path / "whole" / "final").values())


def test_samples_have_the_models_log_probabilities(rules, base, prompts_file, tmp_path):
    from keel.config import BestOfNConfig
    from keel.methods import best_of_n

    config = BestOfNConfig(
        model=str(base),
        reward=rules,
        prompts=str(prompts_file),
        out=tmp_path / "best.jsonl",
        n=4,
        max_new_tokens=12,
        device="cuda",
        precision="fp32",
    )
    best_of_n.best_of_n(config)
    rows = [json.loads(line) for line in config.out.read_text().splitlines()]
    text, model = checkpoints.load_text(str(base)), checkpoints.load_policy(str(base), config)
    gaps = []
    for row in rows[:5]:
        for candidate in row["candidates"]:
            one = Bundle(text.prompt_ids(row["prompt"]), [Completion(candidate["ids"])])
            gaps.append(abs(float(token_logps(model, [one]).sum()) - candidate["logp"]))
    assert gaps
    assert max(gaps) < 1e-2
