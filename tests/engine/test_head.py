"""The head in blocks against log_softmax over all logits in double precision."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from keel.config import Machine
from keel.engine import head
from keel.models import checkpoints

CPU = Machine(device="cpu", precision="fp32")
TAU = 0.7
T = 23


@pytest.fixture
def policy(make_model):
    return checkpoints.load_policy(str(make_model("llama")), CPU)


def inputs(model, dtype=torch.float32):
    draw = torch.Generator().manual_seed(5)
    hidden = torch.randn(T, model.config.hidden_size, generator=draw).to(dtype).requires_grad_()
    targets = torch.randint(0, model.config.vocab_size, (T,), generator=draw)
    return hidden, targets, torch.randn(T, generator=draw)


def by_hand(model, hidden, targets, arriving, cap=None):
    """Log-probabilities, entropies, likeliest words and the gradients of hidden states and weights, in float64."""
    h = hidden.detach().double().requires_grad_()
    w = model.get_output_embeddings().weight.detach().double().requires_grad_()
    logits = h @ w.T
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    table = torch.log_softmax(logits / TAU, -1)
    logps = table[torch.arange(T), targets]
    (logps * arriving.double()).sum().backward()
    return logps.detach(), -(table.exp() * table).sum(-1).detach(), table.argmax(-1), h.grad, w.grad


def ours(model, hidden, targets, arriving, details=True):
    model.zero_grad()
    hidden.grad = None
    scores = head.score_tokens(model, hidden, targets, TAU, details)
    (scores.logps * arriving).sum().backward()
    return scores, hidden.grad, model.get_output_embeddings().weight.grad


def gap(got, expected):
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("rows", "columns"), [(1024, 1024), (4, 7), (1, 100), (23, 1), (5, 64)])
def test_blocks_of_any_size_give_the_plain_softmax(policy, monkeypatch, rows, columns):
    monkeypatch.setattr(head, "ROWS", rows)
    monkeypatch.setattr(head, "COLUMNS", columns)
    hidden, targets, arriving = inputs(policy)
    logps, entropy, likeliest, dh, dw = by_hand(policy, hidden, targets, arriving)
    targets = torch.where(torch.arange(T) % 2 == 0, likeliest, targets)  # half of them are what is likeliest
    logps, entropy, likeliest, dh, dw = by_hand(policy, hidden, targets, arriving)
    scores, got_dh, got_dw = ours(policy, hidden, targets, arriving)
    torch.testing.assert_close(scores.logps.double(), logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropy.double(), entropy, rtol=0, atol=1e-5)
    assert torch.equal(scores.top, (likeliest == targets).float())
    assert 0 < float(scores.top.sum()) < T
    assert gap(got_dh, dh) < 1e-6
    assert gap(got_dw, dw) < 1e-6
    alone, *_ = ours(policy, hidden, targets, arriving, details=False)
    torch.testing.assert_close(alone.logps.double(), logps, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("words", ["most unlikely", "all but certain"])
def test_at_both_ends(policy, monkeypatch, words):
    """Words 100 nats and more below the likeliest, whose relative logits no exponential holds; and certain ones."""
    monkeypatch.setattr(head, "COLUMNS", 7)
    hidden, targets, arriving = inputs(policy)
    logits = hidden @ policy.get_output_embeddings().weight.T
    targets = (logits.argmin if words == "most unlikely" else logits.argmax)(-1)
    with torch.no_grad():
        factor = 300 / (logits.max(-1).values - logits.min(-1).values)
        hidden *= factor[:, None]
    logps, _, _, dh, dw = by_hand(policy, hidden, targets, arriving)
    assert float(logps.max()) < -100 if words == "most unlikely" else float(logps.min()) > -3
    for details in (False, True):
        scores, got_dh, got_dw = ours(policy, hidden, targets, arriving, details)
        torch.testing.assert_close(scores.logps.double(), logps, rtol=1e-5, atol=1e-4)
        assert gap(got_dh, dh) < 1e-3
        assert gap(got_dw, dw) < 1e-3


@pytest.mark.parametrize("rows", [1024, 5])
def test_bf16_is_as_close_as_its_products(make_model, monkeypatch, rows):
    """Sure of some words, so that 1 - p is small where it counts; logits in bf16 and a plain softmax are no closer."""
    monkeypatch.setattr(head, "ROWS", rows)
    model = checkpoints.load_policy(str(make_model("llama")), Machine(device="cpu", precision="bf16"))
    hidden, targets, arriving = inputs(model, torch.bfloat16)
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        hidden += 6 * weight[targets] / weight[targets].norm(dim=-1, keepdim=True) ** 2
    logps, _, _, dh, dw = by_hand(model, hidden, targets, arriving)
    assert float(logps.max()) > -0.1
    scores, got_dh, got_dw = ours(model, hidden, targets, arriving)
    assert scores.logps.dtype == torch.float32
    assert got_dh.dtype == got_dw.dtype == torch.bfloat16
    plain = hidden.detach().clone().requires_grad_()
    table = torch.log_softmax((plain @ weight.detach().T).float() / TAU, -1)
    (table[torch.arange(T), targets] * arriving).sum().backward()
    assert gap(got_dh, dh) <= gap(plain.grad, dh) < 0.05
    assert gap(got_dw, dw) < 0.02
    assert float((scores.logps - logps).abs().max()) < 0.05


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that is made meanwhile, parameters' own gradients apart."""

    def __init__(self, besides):
        super().__init__()
        self.seen, self.besides = 0, besides

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, torch.Tensor) and tuple(t.shape) != self.besides:
                self.seen = max(self.seen, t.numel())
        return out


def test_no_more_logits_than_a_block(policy, monkeypatch):
    """Neither the forward nor the backward pass makes anything larger, and neither keeps a block."""
    rows, columns = 6, 20
    monkeypatch.setattr(head, "ROWS", rows)
    monkeypatch.setattr(head, "COLUMNS", columns)
    hidden, targets, arriving = inputs(policy)
    weight = policy.get_output_embeddings().weight
    saved: list[int] = []
    with (
        Largest(tuple(weight.shape)) as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t),
    ):
        scores = head.score_tokens(policy, hidden, targets, TAU, details=True)
        (scores.logps * arriving).sum().backward()
    assert largest.seen < T * policy.config.vocab_size / 2
    assert largest.seen <= max(rows * columns, hidden.numel(), columns * hidden.shape[1])
    assert {shape for shape in saved if len(shape) == 2} == {tuple(hidden.shape), tuple(weight.shape)}


def test_capped_logits_go_row_by_row_without_being_kept(make_model, monkeypatch):
    """Gemma 2's: the same numbers, and a few rows of logits at most."""
    model = checkpoints.load_policy(str(make_model("gemma2")), CPU)
    cap = model.config.final_logit_softcapping
    assert cap is not None
    monkeypatch.setattr(head, "ROWS", 5)
    monkeypatch.setattr(head, "COLUMNS", model.config.vocab_size)
    hidden, targets, arriving = inputs(model)
    logps, entropy, likeliest, dh, dw = by_hand(model, hidden, targets, arriving, cap)
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        scores, got_dh, got_dw = ours(model, hidden, targets, arriving)
    torch.testing.assert_close(scores.logps.double(), logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropy.double(), entropy, rtol=0, atol=1e-5)
    assert torch.equal(scores.top, (likeliest == targets).float())
    assert gap(got_dh, dh) < 1e-6
    assert gap(got_dw, dw) < 1e-6
    assert not [s for s in saved if s[-1:] == (model.config.vocab_size,)]


def test_a_frozen_head_gets_no_gradient(policy):
    policy.requires_grad_(False)
    hidden, targets, arriving = inputs(policy)
    expected = by_hand(policy, hidden, targets, arriving)[3]
    _, got, none = ours(policy, hidden, targets, arriving)
    assert none is None
    assert gap(got, expected) < 1e-6


def test_without_details_there_are_none(policy):
    hidden, targets, _ = inputs(policy)
    with torch.no_grad():
        scores = head.score_tokens(policy, hidden, targets, TAU, details=False)
        full = head.score_tokens(policy, hidden, targets, TAU, details=True)
    assert len(scores.entropy) == len(scores.top) == 0
    torch.testing.assert_close(scores.logps, full.logps)
