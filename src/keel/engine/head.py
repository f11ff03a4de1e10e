"""From hidden states to the log-probabilities of given tokens, without ever holding a row of logits for all of them.

The vocabulary is walked in blocks that stay in the processor's cache. The backward pass computes each block again, so
that what is kept is one number per token, the logarithm of its normaliser.
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

ROWS = 1024
"""Tokens whose logits are held at once."""
COLUMNS = 1024
"""Words of the vocabulary whose logits are held at once: a block of 1024 x 1024 fp32 logits is 4 MiB."""

_SUM = 1e-30, 1e30
"""Between these a sum of exponentials has lost nothing in fp32."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Per completion token, flat [T]; only `logps` carries a gradient."""

    logps: Tensor
    """Log-probability of the token."""
    entropy: Tensor
    """Entropy of the distribution it was drawn from, in nats."""
    top: Tensor
    """1 where it is the likeliest token."""

    def take(self, indices: Tensor) -> TokenScores:
        """Of the tokens at `indices`, of which any may come again."""
        kept = (x[indices] if len(x) else x for x in (self.logps, self.entropy, self.top))
        return TokenScores(*kept)


def score_tokens(model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, details: bool) -> TokenScores:
    """Scores of `targets` [T] given the hidden states before them [T, D]; without `details` the log-probabilities only.

    A head that is one matrix is walked block by block; one with a bias, capped logits or a way of its own row by row.
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
    rows = max(1, ROWS * COLUMNS // vocabulary_of(model))
    parts = [
        _whole_rows(model, h, t, temperature, details)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return TokenScores(*(torch.cat(part) for part in zip(*parts, strict=True)))


class _Blockwise(torch.autograd.Function):
    """log softmax(factor * h W^T)[target] by blocks of rows and of the vocabulary.

    Gradients, with e = 1[target] - softmax and g what arrives: dh = factor g e W, dW = factor sum_rows g e^T h; sums
    are kept in fp32, products are computed in the weights' type.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, factor: float, details: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        logps, of_targets = (torch.empty(len(hidden), device=hidden.device) for _ in range(2))
        entropy, top = (torch.empty_like(logps if details else logps[:0]) for _ in range(2))
        for start in range(0, len(hidden), ROWS):
            at = slice(start, start + ROWS)
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
        scaled = (-ctx.factor * gradient * rest.exp())[:, None]  # what each row is multiplied with in the end
        own = torch.expm1(logps) / rest.exp()  # -e at the target, exact also where it is all but certain
        weighted = (scaled * hidden).to(hidden.dtype)
        d_hidden = torch.zeros(hidden.shape, device=hidden.device) if for_hidden else None
        d_weight = torch.empty_like(weight) if for_weight else None
        for column in range(0, len(weight), COLUMNS):
            words = slice(column, column + COLUMNS)
            total = None  # of several blocks of rows, in fp32
            for start in range(0, len(hidden), ROWS):
                at = slice(start, start + ROWS)
                p = torch.addmm(offset[at], hidden[at], weight[words].T, alpha=ctx.factor).exp_()
                here = (targets[at] >= column) & (targets[at] < column + COLUMNS)
                p[here, targets[at][here] - column] = own[at][here].to(p.dtype)
                if d_hidden is not None:
                    _add_product(d_hidden[at], p, weight[words])
                if d_weight is not None and len(hidden) <= ROWS:
                    torch.mm(p.T, weighted, out=d_weight[words])
                elif d_weight is not None:
                    total = torch.zeros(weight[words].shape, device=weight.device) if total is None else total
                    _add_product(total, p.T, weighted[at])
            if d_weight is not None and total is not None:
                d_weight[words] = total
        return None if d_hidden is None else d_hidden.mul_(scaled).to(hidden.dtype), d_weight, None, None, None


def _two_parts(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What can be added inside a product [R, 1], and what the products' type cannot hold of it [R]."""
    held = values.to(dtype)
    return held[:, None], values - held.float()


def _walk(
    hidden: Tensor, weight: Tensor, factor: float, offset: Tensor, details: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the normaliser, mean logit and likeliest word of each row, over blocks of the vocabulary: [R] each.

    Logits are relative to the target's: where the model is sure, those that count are then small, and bf16 holds them.
    """
    sums, means, maxima, words = [], [], [], []
    for column in range(0, len(weight), COLUMNS):
        block = weight[column : column + COLUMNS]
        logits = partial(_logits, hidden, block, factor, offset)
        if not details:
            sums.append(_log_of_sum(logits))
            continue
        found = logits()
        highest, word = found.max(-1)
        maxima.append(highest)
        words.append(word + column)
        relative = torch.log_softmax(found, -1)  # one fused pass; the block's normaliser is what it took off
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
    """A block's logits relative to the targets', in fp32."""
    return torch.addmm(offset, hidden, block.T, alpha=factor).float()


def _log_of_sum(logits: Callable[[], Tensor]) -> Tensor:
    """log sum exp of each row: [R, N] -> [R]. The largest is taken off only where the sums show that it must be."""
    total = logits().exp_().sum(-1)
    exact = bool(((total > _SUM[0]) & (total < _SUM[1])).all())
    return total.log() if exact else torch.logsumexp(logits(), -1)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, with a sum in fp32 whatever the factors are."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _whole_rows(
    model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, details: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows with all their logits, which are computed again in the backward pass."""

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
