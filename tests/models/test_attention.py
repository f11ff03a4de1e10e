"""Packed attention against a plain softmax with a mask drawn by hand, in double precision."""

from __future__ import annotations

import pytest
import torch

from keel.models import attention
from keel.models.attention import Packing

BUNDLES = [(5, [4, 1, 3]), (1, [2]), (9, [7, 12])]
HEADS, WIDTH, SCALE = 2, 8, 0.3


def visible() -> torch.Tensor:
    """Which token of the row sees which: its own prompt up to itself, its own completion up to itself."""
    total = sum(p + sum(cs) for p, cs in BUNDLES)
    seen = torch.zeros(total, total, dtype=torch.bool)
    at = 0
    for prompt, completions in BUNDLES:
        begin = at
        for i in range(prompt):
            seen[begin + i, begin : begin + i + 1] = True
        at += prompt
        for length in completions:
            for i in range(length):
                seen[at + i, begin : begin + prompt] = True
                seen[at + i, at : at + i + 1] = True
            at += length
    return seen


def by_hand(query, key, value, arriving):
    """Output and gradients, in float64."""
    q, k, v = (x.detach().double().requires_grad_() for x in (query, key, value))
    scores = (SCALE * q @ k.transpose(-1, -2)).masked_fill(~visible(), float("-inf"))
    out = torch.softmax(scores, -1) @ v
    return out.detach(), torch.autograd.grad(out, (q, k, v), arriving.double())


@pytest.mark.parametrize("short", [attention.SHORT, 4], ids=["by products", "by the kernel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_attention_and_its_gradients(monkeypatch, dtype, short):
    monkeypatch.setattr(attention, "SHORT", short)
    draw = torch.Generator().manual_seed(2)
    tokens = len(visible())
    q, k, v = (
        torch.randn(1, tokens, HEADS, WIDTH, generator=draw).to(dtype).transpose(1, 2).requires_grad_()
        for _ in range(3)
    )
    arriving = torch.randn(1, HEADS, tokens, WIDTH, generator=draw).to(dtype)
    used, apply = [], attention._ByProducts.apply
    monkeypatch.setattr(attention._ByProducts, "apply", lambda *inputs: used.append(1) or apply(*inputs))
    out, _ = attention.attend(torch.nn.Module(), q, k, v, None, Packing(BUNDLES), scaling=SCALE)
    out = out.transpose(1, 2)
    assert bool(used) == (dtype == torch.bfloat16 and short > 4)
    expected, gradients = by_hand(q, k, v, arriving)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    for ours, theirs in zip((out, *torch.autograd.grad(out, (q, k, v), arriving)), (expected, *gradients), strict=True):
        assert float((ours.double() - theirs).detach().norm() / theirs.norm()) < tolerance


@pytest.mark.parametrize("way", [attention.by_flex, attention.by_mask])
def test_the_ways_of_a_gpu(way):
    """On a CPU FlexAttention has no backward pass; the other one's gradients are checked, too."""
    draw = torch.Generator().manual_seed(2)
    tokens = len(visible())
    q, k, v = (torch.randn(1, HEADS, tokens, WIDTH, generator=draw).requires_grad_() for _ in range(3))
    arriving = torch.randn(1, HEADS, tokens, WIDTH, generator=draw)
    expected, gradients = by_hand(q, k, v, arriving)
    if way is attention.by_flex:
        out = way(q.detach(), k.detach(), v.detach(), Packing(BUNDLES), SCALE)
    else:
        out = way(q, k, v, Packing(BUNDLES), SCALE)
        for ours, theirs in zip(torch.autograd.grad(out, (q, k, v), arriving), gradients, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flex_attention_is_taken_only_where_it_says_the_same(monkeypatch):
    """It cannot train on a CPU, and is not taken there; nor where it is wrong."""
    check = attention._flex_works.__wrapped__
    assert not check(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(attention, "by_flex", attention.by_mask)
    with torch.no_grad():
        assert check(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(attention, "by_flex", lambda *inputs: attention.by_mask(*inputs) * 1.01)
    assert not check(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_with_its_normaliser_by_kernel_and_by_softmax(dtype):
    draw = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(3, HEADS, n, WIDTH, generator=draw).to(dtype) for n in (4, 9, 9))
    mask = attention._hide(torch.tensor([9, 1, 5]), 9, dtype)
    scores = SCALE * q.double() @ k.double().transpose(-1, -2) + mask.double()
    expected = torch.softmax(scores, -1) @ v.double(), torch.logsumexp(scores, -1)
    for way in (attention._attention, attention._by_softmax):
        for ours, theirs in zip(way(q, k, v, mask, SCALE), expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_attention_trains_on_a_gpu(dtype):
    assert attention._flex_works(torch.device("cuda"), dtype)


def test_spans_are_the_mask():
    """Start, stop, where what is seen begins and how much of it: together they say what the mask says."""
    seen = torch.zeros_like(visible())
    for start, stop, begin, prompt in Packing(BUNDLES).spans():
        for i in range(start, stop):
            seen[i, begin : begin + prompt] = True
            seen[i, start : i + 1] = True
    assert torch.equal(seen, visible())
