"""AdamW with fp32 state: what a checkpoint must hold so that nothing is lost."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from keel.engine import adamw as module
from keel.engine.adamw import Optimizer


def mixed() -> nn.Sequential:
    """Weights in bf16 of unlike shapes, with norms in fp32 between them."""
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 9), nn.LayerNorm(9))
    for at in (0, 2):
        model[at].to(torch.bfloat16)
    return model


def step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
    optimizer.step(1e-3)


def saved(optimizer: Optimizer) -> dict[str, object]:
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_restored_optimizer_goes_on_as_the_one_that_was_saved():
    """To the last digit, moments and what bf16 rounds away among them."""
    torch.manual_seed(0)
    one = mixed()
    first = Optimizer(one.parameters(), weight_decay=0.1, eps=1e-8)
    for seed in range(5):
        step(one, first, seed)
    other = copy.deepcopy(one)
    second = Optimizer(other.parameters(), weight_decay=0.1, eps=1e-8)
    second.load_state_dict(saved(first))
    for a, b in zip(first.state_dict()["masters"], second.state_dict()["masters"], strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, a.to(torch.bfloat16).float())  # it holds more than the weight does
    for seed in range(5, 10):
        step(one, first, seed)
        step(other, second, seed)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("at_once", [1, 20, 1 << 24])
def test_cutting_weights_into_parts_changes_no_step(monkeypatch, at_once):
    """Each weight moves by its own gradient, however many are held at once."""
    torch.manual_seed(0)
    model = mixed()
    plain = [parameter.detach().clone().float() for parameter in model.parameters()]
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    optimizer = Optimizer(model.parameters(), weight_decay=0.0, eps=1e-12)
    draw = torch.Generator().manual_seed(1)
    gradients = [torch.randn(p.shape, generator=draw).to(p.dtype) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step(0.5)  # Adam's first step is the rate against the gradient's sign, whatever its size
    for parameter, before, gradient in zip(model.parameters(), plain, gradients, strict=True):
        torch.testing.assert_close(parameter.float(), before - 0.5 * gradient.float().sign(), rtol=0.01, atol=0.01)
        assert parameter.grad is None
