"""Log-probabilities of given tokens from hidden states, without ever holding the logits of all tokens.

The vocabulary is walked in blocks that stay in the processor's cache. The backward pass computes each block again, so
only two numbers per token are kept: its log-probability and its logit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from keel.models.heads import head_of, scaled_logits
from keel.models.limits import vocabulary_of
from keel.models.shapes import more_rows, rounded

ROWS, COLUMNS = 1024, 1024
"""Tokens and vocabulary entries whose logits are held at once on a CPU: 4 MiB in fp32, which its caches hold."""
GPU_ROWS, GPU_COLUMNS = 4096, 16384
"""Both on a GPU: 256 MiB, and products large enough to fill it."""

_SUM = 1e-30, 1e30
"""Bounds between which a sum of exponentials has lost nothing in fp32."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores per completion token, flat [T]; only `logps` carries a gradient."""

    logps: Tensor
    """Log-probability of the token."""
    entropy: Tensor
    """Entropy of the distribution that the token was drawn from, in nats."""
    top: Tensor
    """1 if the token is the likeliest, else 0."""

    def take(self, indices: Tensor) -> TokenScores:
        """Return the scores at `indices`; repeats are allowed."""
        kept = (x[indices] if len(x) else x for x in (self.logps, self.entropy, self.top))
        return TokenScores(*kept)


def score_tokens(model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, details: bool) -> TokenScores:
    """Return the scores of `targets` [T] given the hidden states before them [T, D].

    Without `details`, only the log-probabilities. A head that is one matrix is walked block by block. A head with a
    bias, capped logits or its own computation is taken row by row.
    """
    head, kind = model.get_output_embeddings(), head_of(model)  # type: ignore[operator]
    tokens, rows = len(targets), rounded(len(targets), next(model.parameters()))
    if rows > tokens:
        found = score_tokens(model, more_rows(hidden, rows), more_rows(targets, rows), temperature, details)
        return TokenScores(found.logps[:tokens], found.entropy[:tokens], found.top[:tokens])
    if type(head) is nn.Linear and head.bias is None and kind.cap is None and not kind.own:
        factor, hidden = kind.factor / temperature, hidden.to(head.weight.dtype)
        logps, entropy, top = _Blockwise.apply(hidden, head.weight, targets, factor, details)  # type: ignore[no-untyped-call]
        return TokenScores(logps, entropy, top)
    held, columns = _block(hidden)
    rows = max(1, held * columns // vocabulary_of(model))
    parts = [
        _whole_rows(model, h, t, temperature, details)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return TokenScores(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _block(like: Tensor) -> tuple[int, int]:
    """Return the tokens and the vocabulary entries of a block."""
    return (ROWS, COLUMNS) if like.device.type == "cpu" else (GPU_ROWS, GPU_COLUMNS)


class _Blockwise(torch.autograd.Function):
    """log softmax(factor * h W^T)[target] by blocks of rows and of the vocabulary.

    Gradients, with e = 1[target] - softmax and g the incoming gradient: dh = factor g e W and
    dW = factor sum_rows g e^T h. Sums are kept in fp32; products are computed in the weights' dtype.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, factor: float, details: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        logps, of_targets = (torch.empty(len(hidden), device=hidden.device) for _ in range(2))
        entropy, top = (torch.empty_like(logps if details else logps[:0]) for _ in range(2))
        rows, _ = _block(hidden)
        for start in range(0, len(hidden), rows):
            at = slice(start, start + rows)
            of_targets[at] = factor * (hidden[at].float() * weight[targets[at]].float()).sum(-1)
            offset, rest = _two_parts(-of_targets[at], hidden.dtype)
            normaliser, mean, likeliest = _walk(hidden[at], weight, factor, offset, details)
            logps[at] = -(normaliser + rest)
            if details:
                entropy[at] = normaliser - mean
                top[at] = (likeliest == targets[at]).float()
        ctx.save_for_backward(hidden, weight, targets, logps, of_targets)
        ctx.factor = factor
        ctx.mark_non_differentiable(entropy, top)
        return logps, entropy, top

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, logps, of_targets = ctx.saved_tensors
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        offset, rest = _two_parts(logps - of_targets, hidden.dtype)
        scaled = (-ctx.factor * gradient * rest.exp())[:, None]  # factor of each row, applied in the end
        own = torch.expm1(logps) / rest.exp()  # -e at the target, exact even if the target is all but certain
        weighted = (scaled * hidden).to(hidden.dtype)
        d_hidden = torch.zeros(hidden.shape, device=hidden.device) if for_hidden else None
        d_weight = torch.empty_like(weight) if for_weight else None
        rows, columns = _block(hidden)
        for column in range(0, len(weight), columns):
            words = slice(column, column + columns)
            total = None  # over several blocks of rows, in fp32
            for start in range(0, len(hidden), rows):
                at = slice(start, start + rows)
                p = torch.addmm(offset[at], hidden[at], weight[words].T, alpha=ctx.factor).exp_()
                _put(p, targets[at] - column, own[at])
                if d_hidden is not None:
                    _add_product(d_hidden[at], p, weight[words])
                if d_weight is not None and len(hidden) <= rows:
                    torch.mm(p.T, weighted, out=d_weight[words])
                elif d_weight is not None:
                    total = torch.zeros(weight[words].shape, device=weight.device) if total is None else total
                    _add_product(total, p.T, weighted[at])
            if d_weight is not None and total is not None:
                d_weight[words] = total
        return None if d_hidden is None else d_hidden.mul_(scaled).to(hidden.dtype), d_weight, None, None, None


def _put(block: Tensor, places: Tensor, values: Tensor) -> None:
    """Write a value into each row of a block, unless its place lies outside: [R, N], [R], [R]."""
    inside = ((places >= 0) & (places < block.shape[1]))[:, None]
    at = places.clamp(0, block.shape[1] - 1)[:, None]
    block.scatter_(1, at, torch.where(inside, values[:, None].to(block.dtype), block.gather(1, at)))


def _two_parts(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Split values [R] into what can be added inside a product, [R, 1], and what its dtype cannot hold, [R]."""
    held = values.to(dtype)
    return held[:, None], values - held.float()


def _walk(
    hidden: Tensor, weight: Tensor, factor: float, offset: Tensor, details: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's log normaliser, mean logit and likeliest vocabulary entry, [R] each, over all blocks.

    Logits are relative to the target's. If the model is sure, the logits that count are then small, and bf16 holds
    them.
    """
    sums, means, maxima, words = [], [], [], []
    _, columns = _block(hidden)
    for column in range(0, len(weight), columns):
        block = weight[column : column + columns]
        logits = partial(_logits, hidden, block, factor, offset)
        if not details:
            sums.append(_log_of_sum(logits))
            continue
        found = logits()
        highest, word = found.max(-1)
        maxima.append(highest)
        words.append(word + column)
        relative = torch.log_softmax(found, -1)  # one fused pass; it subtracted the block's normaliser
        sums.append(found[:, 0] - relative[:, 0])
        means.append((relative.exp_() * found).sum(-1))
    logs = torch.stack(sums)
    normaliser = torch.logsumexp(logs, 0)
    if not details:
        return normaliser, normaliser[:0], normaliser[:0]
    mean = ((logs - normaliser).exp() * torch.stack(means)).sum(0)
    best = torch.stack(maxima).argmax(0, keepdim=True)
    return normaliser, mean, torch.stack(words).gather(0, best).squeeze(0)


def _logits(hidden: Tensor, block: Tensor, factor: float, offset: Tensor) -> Tensor:
    """Return a block's logits relative to the targets', in fp32."""
    return torch.addmm(offset, hidden, block.T, alpha=factor).float()


def _log_of_sum(logits: Callable[[], Tensor]) -> Tensor:
    """Return log sum exp of each row: [R, N] -> [R].

    On a CPU the largest is subtracted only if the sums show that it is needed; a GPU would have to stop for the answer.
    """
    found = logits()
    if found.device.type != "cpu":
        return torch.logsumexp(found, -1)
    total = found.exp_().sum(-1)
    exact = bool(((total > _SUM[0]) & (total < _SUM[1])).all())
    return total.log() if exact else torch.logsumexp(logits(), -1)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to `total`, with a sum in fp32 whatever the factors are."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _whole_rows(
    model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, details: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores of some rows from all their logits, which the backward pass computes again."""

    def compute(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = scaled_logits(model, h, temperature)
        normaliser = torch.logsumexp(logits, -1)
        logps = logits.gather(-1, targets[:, None]).squeeze(-1) - normaliser
        if not details:
            return logps, logps.new_empty(0), logps.new_empty(0)
        with torch.no_grad():
            entropy = normaliser - (torch.softmax(logits, -1) * logits).sum(-1)
            return logps, entropy, (logits.argmax(-1) == targets).float()

    if not torch.is_grad_enabled():
        return compute(hidden)
    result: tuple[Tensor, Tensor, Tensor] = checkpoint(compute, hidden, use_reentrant=False)
    return result
