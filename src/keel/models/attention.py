"""Attention over one row that holds many bundles: each prompt once, its completions behind it, nothing padded.

`keel` is registered in transformers' attention interface. Where a backbone is called with a `packing`, each completion
attends to its own prompt and to itself; elsewhere it is transformers' own `sdpa`. All other layers see a row of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

NAME = "keel"
SHORT = 512
"""Up to this many tokens a span's scores are held whole in the backward pass in bf16 on a CPU."""


@dataclass(slots=True)
class Packing:
    """How many tokens each bundle's prompt and completions have, in the order in which they stand in the row."""

    bundles: list[tuple[int, list[int]]]
    """(prompt, completions) per bundle; a bundle has at least one completion."""
    _masks: dict[tuple[int, int, torch.dtype], Tensor] = field(default_factory=dict)

    def spans(self) -> Iterator[tuple[int, int, int, int]]:
        """What attends together: (start, stop, begin, seen), causal within itself, over `seen` tokens from `begin`.

        The first is a prompt with its first completion, which sees nothing else; then each later completion.
        """
        at = 0
        for prompt, (first, *later) in self.bundles:
            begin, at = at, at + prompt + first
            yield begin, at, begin, 0
            for length in later:
                yield at, at + length, begin, prompt
                at += length

    def mask(self, prompt: int, completion: int, like: Tensor) -> Tensor:
        """Added to a later completion's scores over [prompt; itself]: [completion, prompt + completion]."""
        key = (prompt, completion, like.dtype)
        if key not in self._masks:
            hidden = torch.full((completion, completion), float("-inf"), dtype=like.dtype, device=like.device).triu(1)
            seen = torch.zeros(completion, prompt, dtype=like.dtype, device=like.device)
            self._masks[key] = torch.cat([seen, hidden], 1)
        return self._masks[key]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: [B, heads, T, width] -> [B, T, heads, width]."""
    if packing is None:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return out, None
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"packed attention knows no {name}")
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    short = max(stop - start for start, stop, *_ in packing.spans()) <= SHORT
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and short:
        out = _ByProducts.apply(query, key, value, packing, scale)  # type: ignore[no-untyped-call]
    else:
        out = packed_attention(query, key, value, packing, scale)
    return out.transpose(1, 2), None


def packed_attention(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float | None) -> Tensor:
    """[1, heads, T, width]: causal over prompt and first completion, then each later one over [prompt; itself]."""
    sizes = [prompt + sum(completions) for prompt, completions in packing.bundles]
    parts: list[Tensor] = []
    bundles = zip(packing.bundles, *(x.split(sizes, 2) for x in (query, key, value)), strict=True)
    for (prompt, completions), q, k, v in bundles:
        lengths = [prompt + completions[0], *completions[1:]]
        qs, ks, vs = (x.split(lengths, 2) for x in (q, k, v))
        parts.append(scaled_dot_product_attention(qs[0], ks[0], vs[0], is_causal=True, scale=scale))
        for i, length in enumerate(lengths[1:], 1):
            seen_k = torch.cat([ks[0][:, :, :prompt], ks[i]], 2)
            seen_v = torch.cat([vs[0][:, :, :prompt], vs[i]], 2)
            mask = packing.mask(prompt, length, q)
            parts.append(scaled_dot_product_attention(qs[i], seen_k, seen_v, attn_mask=mask, scale=scale))
    return torch.cat(parts, 2)


class _ByProducts(torch.autograd.Function):
    """`packed_attention` with a backward pass of matrix products, scores in fp32.

    In bf16 the processor's own takes five times as long as its forward pass, this one half of that.
    With S = scale Q K^T, P = softmax(S) and g what arrives: dV = P^T g, dS = P (g V^T - rowsum(P g V^T)),
    dQ = scale dS K, dK = scale dS^T Q.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.packing, ctx.scale = packing, scale
        return packed_attention(query, key, value, packing, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = (x[0] for x in ctx.saved_tensors)
        gradients = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for start, stop, begin, prompt in ctx.packing.spans():
            q, g = query[:, start:stop].contiguous(), gradient[0, :, start:stop].contiguous()
            k, v = (torch.cat([x[:, begin : begin + prompt], x[:, start:stop]], 1) for x in (key, value))
            scores = torch.bmm(q.float().mul_(ctx.scale), k.float().transpose(1, 2))
            p = torch.softmax(scores.add_(ctx.packing.mask(prompt, stop - start, scores)), -1).to(q.dtype)
            arrived = torch.bmm(g, v.transpose(1, 2))
            d_scores = torch._softmax_backward_data(arrived, p, -1, p.dtype).mul_(ctx.scale)
            gradients[0][:, start:stop] = torch.bmm(d_scores, k)
            for total, part in zip(
                gradients[1:], (torch.bmm(d_scores.transpose(1, 2), q), torch.bmm(p.transpose(1, 2), g)), strict=True
            ):
                total[:, begin : begin + prompt] += part[:, :prompt]
                total[:, start:stop] += part[:, prompt:]
        return *(x[None] for x in gradients), None, None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
