"""Fused norms and rotary positions against transformers' own modules."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from keel.config import Machine
from keel.models import checkpoints
from keel.models.fused import fuse

IDS = torch.tensor([[5, 9, 2, 7, 11, 3, 8]])


def both(folder, precision="fp32"):
    """Transformers' model, and the same as Keel loads it."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return plain, checkpoints.load_policy(str(folder), Machine(device="cpu", precision=precision))


def gradients(model):
    """Logits, and the gradient of every weight for a sum of their sines."""
    model.zero_grad()
    logits = model(input_ids=IDS, use_cache=False).logits.float()
    logits.sin().sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


def replaced(plain, fused):
    """Names of the classes that are no longer transformers' own."""
    pairs = zip(plain.modules(), fused.modules(), strict=True)
    return {type(a).__name__ for a, b in pairs if type(a) is not type(b)}


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("llama", {"LlamaRMSNorm", "LlamaAttention"}),
        ("qwen3", {"Qwen3RMSNorm", "Qwen3Attention"}),
        ("mistral", {"MistralRMSNorm", "MistralAttention"}),
        ("gemma", {"GemmaAttention"}),
        ("gpt2", set()),
    ],
)
def test_the_same_model(make_model, architecture, expected):
    plain, fused = both(make_model(architecture))
    assert replaced(plain, fused) == expected
    logits, theirs = gradients(plain)
    ours, mine = gradients(fused)
    torch.testing.assert_close(ours, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()), msg=name)


def test_in_bf16_as_near_to_fp32(make_model):
    """Sums are in fp32 as in transformers, and what is rounded between is less."""
    folder = make_model("llama")
    exact, _ = gradients(both(folder)[0])
    plain, fused = (gradients(model)[0] for model in both(folder, "bf16"))
    assert float((fused - exact).norm()) < 1.1 * float((plain - exact).norm())


def test_a_copy_is_a_model_of_its_own(make_model):
    _, fused = both(make_model("llama"))
    before, _ = gradients(fused)
    other = copy.deepcopy(fused)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.5)
    assert torch.equal(gradients(fused)[0], before)
    assert not torch.allclose(gradients(other)[0], before)


def test_another_formula_is_left_alone(make_model):
    class Doubled(torch.nn.Module):
        """A root mean square, with a factor that the name does not tell."""

        def __init__(self):
            super().__init__()
            self.weight, self.variance_epsilon = torch.nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x):
            return 2 * self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    module = torch.nn.Sequential(Doubled())
    fuse(module)
    assert type(module[0]) is Doubled


def test_a_part_of_the_width_is_turned_as_before(make_model):
    """Some families turn only a part of each head; where cosines are narrower, theirs is called."""
    _, fused = both(make_model("llama"))
    turn = type(fused.model.layers[0].self_attn).forward.__globals__["apply_rotary_pos_emb"]
    q, k = torch.randn(2, 1, 2, 3, 8)
    with pytest.raises(RuntimeError):  # Llama's own has no such case
        turn(q, k, torch.ones(1, 3, 6), torch.zeros(1, 3, 6))
