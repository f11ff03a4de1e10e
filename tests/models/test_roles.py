"""A role: what computes with gradients, and where a critic's scalars begin."""

from __future__ import annotations

import pytest
import torch

from keel.config import Machine
from keel.models import checkpoints
from keel.models.roles import Role

CPU = Machine(device="cpu", precision="fp32")


@pytest.fixture
def model(base):
    return checkpoints.load_policy(str(base), CPU)


def passed(role):
    with role.active() as model:
        return model(torch.tensor([[5, 6]])).logits.sum()


def test_only_a_trained_role_records_gradients(model):
    trained = Role("policy", model)
    passed(trained).backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        assert not passed(trained).requires_grad  # a block turns nothing on that the caller has turned off
    frozen = Role("reference", model, trained=False)
    assert not passed(frozen).requires_grad
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()


def test_a_block_that_fails_leaves_gradients_as_they_were(model):
    with pytest.raises(ZeroDivisionError), Role("reference", model, trained=False).active():
        raise ZeroDivisionError
    assert torch.is_grad_enabled()


def test_scalars_are_relative_to_the_origin(model):
    role, scalars = Role("value", model), torch.tensor([1.0, -2.0])
    assert role.centred(scalars).tolist() == [1, -2]
    role.offset = 0.5
    assert role.centred(scalars).tolist() == [0.5, -2.5]


def test_a_role_is_known_by_its_weights_and_their_type(model):
    role = Role("policy", model)
    before = role.identity()
    assert (before, role.dtype) == (checkpoints.weights_hash(model), torch.float32)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert role.identity() != before
