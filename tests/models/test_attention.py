"""Packed attention against a plain softmax with a mask drawn by hand, in double precision."""

from __future__ import annotations

import pytest
import torch
from tests.packing import visible

from keel.models import attention, decoding
from keel.models.attention import Packing

BUNDLES = [(5, [4, 1, 3]), (1, [2]), (9, [7, 12])]
HEADS, WIDTH, SCALE = 2, 8, 0.3


def by_hand(query, key, value, arriving):
    """Output and gradients, in float64."""
    q, k, v = (x.detach().double().requires_grad_() for x in (query, key, value))
    per_head = query.shape[1] // key.shape[1]
    scores = SCALE * q @ k.repeat_interleave(per_head, 1).transpose(-1, -2)
    out = torch.softmax(scores.masked_fill(~visible(BUNDLES), float("-inf")), -1) @ v.repeat_interleave(per_head, 1)
    return out.detach(), torch.autograd.grad(out, (q, k, v), arriving.double())


@pytest.mark.parametrize("products", [attention.PRODUCTS, 0], ids=["by products", "by the kernel"])
@pytest.mark.parametrize("small", [attention.SMALL, 30, 0], ids=["a bundle at once", "some together", "one by one"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_attention_and_its_gradients(monkeypatch, dtype, groups, small, products):
    monkeypatch.setattr(attention, "PRODUCTS", products)
    monkeypatch.setattr(attention, "SMALL", small)
    draw = torch.Generator().manual_seed(2)
    tokens = len(visible(BUNDLES))
    q, k, v, arriving = (
        torch.randn(1, tokens, heads, WIDTH, generator=draw).to(dtype).transpose(1, 2)
        for heads in (HEADS, HEADS // groups, HEADS // groups, HEADS)
    )
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    used, by_products = [], attention._by_products
    monkeypatch.setattr(attention, "_by_products", lambda *inputs: used.append(1) or by_products(*inputs))
    out, _ = attention.attend(torch.nn.Module(), q, k, v, None, Packing(BUNDLES), scaling=SCALE)
    out = out.transpose(1, 2)
    found = torch.autograd.grad(out, (q, k, v), arriving)
    assert len(used) == (len(Packing(BUNDLES).spans()) if dtype == torch.bfloat16 and products else 0)
    expected, gradients = by_hand(q, k, v, arriving)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    for ours, theirs in zip((out, *found), (expected, *gradients), strict=True):
        assert float((ours.double() - theirs).detach().norm() / theirs.norm()) < tolerance


def test_what_waits_for_the_gradients_is_no_copy_of_the_keys(monkeypatch):
    """Inputs and output, and a number per query and head, whether or not a span's keys stand in one piece."""
    monkeypatch.setattr(attention, "SMALL", 0)
    q, k, v = (torch.randn(1, HEADS, len(visible(BUNDLES)), WIDTH).requires_grad_() for _ in range(3))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attention.attend(torch.nn.Module(), q, k, v, None, Packing(BUNDLES), scaling=SCALE)
    assert sum(x.numel() for x in kept) == 4 * q.numel() + HEADS * len(visible(BUNDLES))


@pytest.mark.parametrize("way", [attention.by_flex, attention.by_mask])
def test_the_ways_of_a_gpu(way):
    """On a CPU FlexAttention has no backward pass; the other one's gradients are checked, too."""
    draw = torch.Generator().manual_seed(2)
    tokens = len(visible(BUNDLES))
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
    fastest, here = attention._fastest.__wrapped__, (torch.device("cpu"), torch.float32, 8)
    assert fastest(*here) is attention.by_mask
    right = lambda *inputs: attention.by_mask(*inputs)  # noqa: E731
    monkeypatch.setattr(attention, "by_flex", right)
    with torch.no_grad():
        assert fastest(*here) is right
    monkeypatch.setattr(attention, "by_flex", lambda *inputs: attention.by_mask(*inputs) * 1.01)
    assert fastest(*here) is attention.by_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_with_its_normaliser_by_kernel_and_by_softmax(dtype):
    draw = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(3, HEADS, n, WIDTH, generator=draw).to(dtype) for n in (4, 9, 9))
    mask = decoding._hide(torch.tensor([9, 1, 5]), 9, dtype)
    scores = SCALE * q.double() @ k.double().transpose(-1, -2) + mask.double()
    expected = torch.softmax(scores, -1) @ v.double(), torch.logsumexp(scores, -1)
    for way in (decoding._attention, decoding._by_softmax):
        for ours, theirs in zip(way(q, k, v, mask, SCALE), expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.03)


def test_segments_for_flash_attention():
    """Each segment's queries are the last of its keys, and its keys are what its last token sees."""
    cuts = attention._Cuts.of(Packing(BUNDLES), torch.device("cpu"))
    (queries, seen), at = (x.tolist() for x in cuts.ends), 0
    assert cuts.longest == (16, 21)
    for number in range(len(queries) - 1):
        keys = cuts.keys[seen[number] : seen[number + 1]].tolist()
        own = list(range(queries[number], queries[number + 1]))
        assert keys[-len(own) :] == own
        for query in own:
            at += 1
            assert visible(BUNDLES)[query].nonzero().flatten().tolist() == [k for k in keys if k <= query]
    assert at == len(visible(BUNDLES))


@pytest.mark.parametrize("small", [attention.SMALL, 30, 0])
def test_spans_are_the_mask(monkeypatch, small):
    """What a span sees, what it is and its mask say together what the mask of the row says; and each token once."""
    monkeypatch.setattr(attention, "SMALL", small)
    packing = Packing(BUNDLES)
    seen = torch.zeros_like(visible(BUNDLES))
    for span in packing.spans():
        keys = [*range(span.begin, span.begin + span.seen), *range(span.start, span.stop)]
        seen[torch.arange(span.start, span.stop)[:, None], torch.tensor(keys)] |= packing.mask(span, torch.float) == 0
    assert torch.equal(seen, visible(BUNDLES))
    assert [i for span in packing.spans() for i in range(span.start, span.stop)] == list(range(len(visible(BUNDLES))))


def test_spans_are_few_where_that_is_cheaper():
    assert len(Packing([(100, [50, 50])]).spans()) == 1
    assert len(Packing([(1000, [100, 100])]).spans()) == 2
    assert 2 < len(Packing([(100, [60] * 16)]).spans()) < 9
