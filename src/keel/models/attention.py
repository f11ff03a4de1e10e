"""Attention that computes each prompt once, whatever the number of its completions.

`keel` is registered in transformers' attention interface. If a backbone is called with a `packing`, one row holds many
bundles without padding, and each completion attends to its own prompt and to itself. With a `decoding`, each row is the
newest token of a completion that is being generated. With neither, it is transformers' own `sdpa`. The other layers of
the backbone notice nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from keel.models.decoding import Decoding
from keel.models.shapes import without_kernels

NAME = "keel"
PRODUCTS = 1 << 19
"""Spans with at most this many scores per head get their bf16 gradients on a CPU from `_by_products`."""
UNDERSTOOD = {"scaling", "dropout", "sliding_window", "is_causal", "position_ids", "use_cache", "cache_position"}
"""Options a layer may pass to its attention beside queries, keys and values; `trials` takes care of windows."""
SMALL = 1 << 15
"""Scores per head that cost as much as another span: completions that waste no more on each other share one."""


class NotPacked(ValueError):  # noqa: N818  (says why, in a few words)
    """A layer asks its attention for something that a packing cannot express."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Tokens `start` to `stop` of a row. They attend to each other by `parts`, and to `seen` tokens from `begin`."""

    start: int
    stop: int
    begin: int
    seen: int
    parts: tuple[int, ...]
    """Lengths of the prompt and of each completion. All tokens see the prompt; only its own tokens see a completion."""

    @property
    def causal(self) -> bool:
        """Say whether each token sees everything before it, and nothing else."""
        return self.seen == 0 and len(self.parts) == 2

    @property
    def scores(self) -> int:
        """Return the number of scores: queries times keys."""
        return (self.stop - self.start) * sum(self.parts)


@dataclass(slots=True)
class Packing:
    """Lengths of each bundle's prompt and completions, in the order of the row."""

    bundles: list[tuple[int, list[int]]]
    """(prompt, completions) per bundle; a bundle has at least one completion."""
    seen: dict[int, tuple[Tensor, Tensor]] | None = None
    """Keys and values by layer, [1, key heads, T, width]; collected unless None."""
    blocks: Any = None
    """FlexAttention's block mask, made on first use, the same in every layer."""
    cuts: Any = None
    """Flash attention's segments, made on first use, the same in every layer."""
    _spans: list[_Span] = field(default_factory=list)
    _masks: dict[tuple[tuple[int, ...], int, torch.dtype], Tensor] = field(default_factory=dict)

    def spans(self) -> list[_Span]:
        """Return what is computed together: a prompt with its first completions, then later completions in groups."""
        if not self._spans:
            at = 0
            for prompt, completions in self.bundles:
                begin = at
                for some in _together(prompt, completions):
                    start, at = at, at + sum(some) + (prompt if at == begin else 0)
                    self._spans.append(_Span(start, at, begin, prompt if start > begin else 0, (prompt, *some)))
        return self._spans

    def places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return each token's bundle [T] and its part of that bundle [T]: 0 the prompt, k completion k."""
        lengths = torch.tensor([n for prompt, cs in self.bundles for n in (prompt, *cs)])
        parts = torch.tensor([k for _, cs in self.bundles for k in range(len(cs) + 1)])
        bundles = torch.tensor([i for i, (_, cs) in enumerate(self.bundles) for _ in range(len(cs) + 1)])
        return bundles.repeat_interleave(lengths).to(device), parts.repeat_interleave(lengths).to(device)

    def mask(self, span: _Span, dtype: torch.dtype) -> Tensor:
        """Return the mask to add to a span's scores over [what it sees; itself]: [queries, keys]."""
        key = (span.parts, span.seen, dtype)
        if key not in self._masks:
            part = torch.arange(len(span.parts)).repeat_interleave(
                torch.tensor(span.parts), output_size=sum(span.parts)
            )
            visible = ((part == 0) | (part[:, None] == part)).tril()[span.seen :]
            self._masks[key] = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, float("-inf"))
        return self._masks[key]


def _together(prompt: int, completions: list[int]) -> list[list[int]]:
    """Group completions in order; begin a group if joining the one before would waste more than a span costs."""
    groups = [[completions[0]]]
    queries = prompt + completions[0]
    for length in completions[1:]:
        wasted = length * (queries - prompt if len(groups) == 1 else queries) + queries * length
        if wasted <= SMALL:
            groups[-1].append(length)
            queries += length
        else:
            groups.append([length])
            queries = length
    return groups


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    decoding: Decoding | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention, by transformers' interface: [B, heads, T, width] -> [B, T, heads, width]."""
    if packing is None and decoding is None:
        if _asked is not None:
            _asked.used(attention_mask)
        with without_kernels(query):
            out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return out, None
    if attention_mask is not None and attention_mask.numel() > 1:
        raise NotPacked("masks of its own")  # sparse attention, biases: more than a packing expresses
    if meant := sorted(name for name, value in options.items() if value is not None and name not in UNDERSTOOD):
        raise NotPacked(f"attention with {', '.join(meant)}")  # sinks, caps, chosen keys, under whatever name
    if options.get("is_causal") is False:
        raise NotPacked("attention to what follows")
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    width = value.shape[-1]
    if width < key.shape[-1]:  # DeepSeek: the kernels need one width, and the padding stays 0
        value = pad(value, (0, key.shape[-1] - width))
    with without_kernels(query):
        out = _shared(module, query, key, value, scale, packing, decoding)
    return out[..., :width].transpose(1, 2), None


def _shared(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    packing: Packing | None,
    decoding: Decoding | None,
) -> Tensor:
    """Compute attention of packed bundles, or of completions that are being generated: [B, heads, T, width]."""
    if decoding is not None:
        return decoding.attend(module.layer_idx, query, key, value, scale)  # type: ignore[arg-type]
    assert packing is not None
    if packing.seen is not None:
        packing.seen[module.layer_idx] = key, value  # type: ignore[index]
    if query.device.type == "cpu":
        return _Packed.apply(query, key, value, packing, scale)  # type: ignore[no-any-return, no-untyped-call]
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return _fastest(query.device, query.dtype, query.shape[-1])(query, key, value, packing, scale)


# --- on a GPU -------------------------------------------------------------------------------------

Way = Callable[[Tensor, Tensor, Tensor, Packing, float], Tensor]


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Segments of a row for flash attention: a prompt with its first completion, and each further completion.

    A further completion's keys are its prompt's and its own, so that its tokens are the last of what they see.
    """

    keys: Tensor
    """Place in the row of each segment's keys, one segment after the other."""
    ends: tuple[Tensor, Tensor]
    """Ends of each segment's queries and keys, 0 first: int32 [segments + 1] each."""
    longest: tuple[int, int]
    """Most queries and most keys of a segment."""

    @staticmethod
    def of(packing: Packing, device: torch.device) -> _Cuts:
        """Cut a row into segments."""
        keys: list[int] = []
        queries, seen, at = [], [], 0
        for prompt, completions in packing.bundles:
            begin = at
            for number, length in enumerate(completions):
                whole = prompt + length if number == 0 else length
                before = range(begin, begin + prompt) if number else range(0)
                keys += [*before, *range(at, at + whole)]
                queries.append(whole)
                seen.append(len(before) + whole)
                at += whole
        ends = [torch.tensor([0, *accumulate(x)], dtype=torch.int32, device=device) for x in (queries, seen)]
        return _Cuts(torch.tensor(keys, device=device), (ends[0], ends[1]), (max(queries), max(seen)))


def by_flash(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """Compute packed attention by torch's flash attention over segments of any length: [1, heads, T, width]."""
    from torch.nn.attention.varlen import varlen_attn

    if packing.cuts is None:
        packing.cuts = _Cuts.of(packing, query.device)
    cuts: _Cuts = packing.cuts
    k, v = (x[0].transpose(0, 1).index_select(0, cuts.keys) for x in (key, value))
    out: Any = varlen_attn(query[0].transpose(0, 1), k, v, *cuts.ends, *cuts.longest, scale=scale, window_size=(-1, 0))
    heads: Tensor = out.transpose(0, 1)[None]
    return heads


def by_flex(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """Compute packed attention by torch's FlexAttention, which skips blocks that nothing sees: [1, heads, T, width]."""
    from torch.nn.attention.flex_attention import create_block_mask

    if packing.blocks is None:
        bundle, part = packing.places(query.device)

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (k <= q) & (bundle[q] == bundle[k]) & ((part[k] == 0) | (part[k] == part[q]))

        tokens = query.shape[2]
        packing.blocks = create_block_mask(visible, None, None, tokens, tokens, device=query.device.type)
    out: Tensor = _flex(query.device.type)(query, key, value, block_mask=packing.blocks, scale=scale)
    return out


def by_mask(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """Compute packed attention over the whole row with a mask: any kernel can, at quadratic cost."""
    bundle, part = packing.places(query.device)
    same = (bundle[:, None] == bundle) & ((part == 0) | (part[:, None] == part))
    return scaled_dot_product_attention(query, key, value, attn_mask=same.tril(), scale=scale)


@cache
def _flex(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


@cache
def _fastest(device: torch.device, dtype: torch.dtype, width: int) -> Way:
    """Return the fastest way that works here for heads of this width."""
    return next((way for way in (by_flash, by_flex) if _works(way, device, dtype, width)), by_mask)


def _works(way: Way, device: torch.device, dtype: torch.dtype, width: int = 64) -> bool:
    """Say whether a way runs here, forward and backward, and agrees with plain masked attention."""
    packing = Packing([(70, [40, 33]), (5, [90])])
    tokens = sum(prompt + sum(completions) for prompt, completions in packing.bundles)
    numbers = torch.arange(3 * 2 * tokens * width, device=device).sin().to(dtype).view(3, 1, 2, tokens, width)
    q, k, v = (x.clone().requires_grad_() for x in numbers)
    found = []
    try:
        with torch.enable_grad():  # the first call may come from a pass without gradients
            for each in (way, by_mask):
                out = each(q, k, v, packing, 0.125)
                found.append([out, *torch.autograd.grad(out.float().sin().sum(), (q, k, v))])
    except Exception:  # no compiler, no kernel for this GPU, some other limit: another way remains
        return False
    tolerance = 1e-3 if dtype == torch.float32 else 0.05
    return all(float((a - b).abs().max()) <= tolerance * float(b.abs().max()) for a, b in zip(*found, strict=True))


# --- on a CPU -------------------------------------------------------------------------------------


class _Packed(torch.autograd.Function):
    """Packed attention span by span: queries [1, heads, T, width], keys and values [1, key heads, T, width].

    Only the inputs, the output and each query's normaliser are kept for the backward pass. If a span's keys are in two
    pieces, they are joined again there.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
        out = torch.empty_like(query)
        normalisers = []
        for span in packing.spans():
            q, k, v = _of(query, span), *_seen(key, value, span, query.shape[1])
            mask = None if span.causal else packing.mask(span, q.dtype)
            of_span, normaliser = _flash(q, k, v, is_causal=span.causal, attn_mask=mask, scale=scale)
            _of(out, span).copy_(of_span)
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, out, *normalisers)
        ctx.packing, ctx.scale = packing, scale
        return out

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        with without_kernels(arriving):
            return _Packed._gradients(ctx, arriving)

    @staticmethod
    def _gradients(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *normalisers = ctx.saved_tensors
        packing, scale = ctx.packing, ctx.scale
        d_query, d_key, d_value = (torch.empty_like(x) for x in (query, key, value))
        if query.dtype == torch.bfloat16:  # else the products would copy each part of each span
            query, key, value, arriving = (x.contiguous() for x in (query, key, value, arriving))
        for span, normaliser in zip(packing.spans(), normalisers, strict=True):
            q, k, v = _of(query, span), *_seen(key, value, span, query.shape[1])
            g = _of(arriving, span)
            if q.dtype == torch.bfloat16 and span.scores <= PRODUCTS:
                found = _by_products(g, q, k, v, packing.mask(span, torch.float32), scale)
            else:
                mask = None if span.causal else packing.mask(span, q.dtype)
                found = _flash_backward(
                    g, q, k, v, _of(out, span), normaliser, 0.0, span.causal, attn_mask=mask, scale=scale
                )
            _of(d_query, span).copy_(found[0])
            for total, part in ((d_key, found[1]), (d_value, found[2])):
                part = part.unflatten(1, (total.shape[1], -1)).sum(2) if part.shape[1] > total.shape[1] else part
                _of(total, span).copy_(part[:, :, span.seen :])
                if span.seen:
                    total[:, :, span.begin : span.begin + span.seen] += part[:, :, : span.seen]
        return d_query, d_key, d_value, None, None


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _of(x: Tensor, span: _Span) -> Tensor:
    """Return a span's own part of the row."""
    return x[:, :, span.start : span.stop]


def _seen(key: Tensor, value: Tensor, span: _Span, heads: int) -> list[Tensor]:
    """Return the keys and values that a span sees, its own last, one per query head: [1, heads, n, width]."""
    pieces = [_of(x, span) for x in (key, value)]
    if span.seen:
        at = slice(span.begin, span.begin + span.seen)
        pieces = [torch.cat([x[:, :, at], own], 2) for x, own in zip((key, value), pieces, strict=True)]
    return [repeat_kv(x, heads // x.shape[1]) for x in pieces]


def _by_products(g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, ...]:
    """Compute attention's gradients by matrix products, with fp32 scores: in bf16 twice as fast as the flash kernel.

    With S = scale Q K^T, P = softmax(S) and g the output's gradient: dV = P^T g, dS = P (g V^T - rowsum(P g V^T)),
    dQ = scale dS K, dK = scale dS^T Q.
    """
    g, q, k, v = g[0], q[0] * scale, k[0], v[0]
    p = torch.softmax(torch.baddbmm(mask, q.float(), k.float().transpose(1, 2)), -1).to(q.dtype)
    d_scores = torch._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), p, -1, p.dtype)
    d_key, d_value = torch.bmm(d_scores.transpose(1, 2), q), torch.bmm(p.transpose(1, 2), g)
    return torch.bmm(d_scores, k).mul_(scale)[None], d_key[None], d_value[None]


# --- what a backbone asks for ---------------------------------------------------------------------


@dataclass(slots=True)
class _Asked:
    """Record of what a backbone's layers look at in a plain pass."""

    windows: list[int] = field(default_factory=list)
    """Window, in tokens, of each layer that does not see the start, whatever the config calls it; 0: unknown."""
    _masks: dict[int, int | None] = field(default_factory=dict)
    _held: list[Tensor] = field(default_factory=list)

    def made(self, mask: Tensor, size: int | None) -> None:
        """Record a mask that was made; `size` is None if it shows everything before a token."""
        self._masks[mask.untyped_storage()._cdata] = size
        self._held.append(mask)  # so that no other mask gets its address

    def used(self, mask: Tensor | None) -> None:
        """Record the window of a mask given to a layer; 0 if the mask was not made by the interface."""
        if mask is not None and (size := self._masks.get(mask.untyped_storage()._cdata, 0)) is not None:
            self.windows.append(size)


_asked: _Asked | None = None


@contextmanager
def watching() -> Iterator[_Asked]:
    """Record what layers look at in plain passes within the context."""
    global _asked
    _asked = _Asked()
    try:
        yield _asked
    finally:
        _asked = None


def _mask(*arguments: Any, local_size: int | None = None, use_vmap: bool = False, **options: Any) -> Any:
    """Make a mask as for `sdpa`, by transformers' interface; while `watching`, never leave it out."""
    if _asked is None:
        return sdpa_mask(*arguments, local_size=local_size, use_vmap=use_vmap, **options)
    options["allow_is_causal_skip"] = False
    mask = sdpa_mask(*arguments, local_size=local_size, use_vmap=use_vmap, **options)
    _asked.made(mask, 0 if use_vmap else local_size)
    return mask


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)
