"""One forward pass over bundles: token log-probabilities and scalars, flat, with nothing padded outside this file.

Methods know three functions: `token_logps`, `scalars_at_states` and `scalars_at_end`, each one differentiable pass over
the bundles it is given, and `micro_batches` / `in_batches` to choose how many that is. How rows are packed, whether a
prompt is shared between its completions and how the head is chunked stays in here.

Completions sit to the right of their prompt and padding to the right of both, so a causal model's real positions never
see a pad, whatever its id: no mask is needed, and pad == EOS is harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from keel.models.heads import device_of_model, scalar_head, scaled_logits, trunk, vocabulary_of
from keel.objectives import sequence_sums
from keel.records import Bundle, lengths_of

HEAD_CHUNK = 1 << 22
"""Logits held at once, in numbers: 2**22 fp32 logits are 16 MiB, and no pass holds more than one such chunk."""


# --- the pass -------------------------------------------------------------------------------------


def token_logps(model: nn.Module, bundles: Sequence[Bundle], temperature: float = 1.0) -> Tensor:
    """Log-probability of every completion token given what came before it, flat fp32 [T], in bundle order."""
    return token_scores(model, bundles, temperature, details=False).logps


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Per completion token, flat [T]; only `logps` carries a gradient."""

    logps: Tensor
    """Log-probability of the token."""
    entropy: Tensor
    """Entropy of the distribution it was drawn from, in nats."""
    top: Tensor
    """1 where it is the likeliest token."""


def token_scores(
    model: nn.Module, bundles: Sequence[Bundle], temperature: float = 1.0, details: bool = True
) -> TokenScores:
    """As `token_logps`, with entropy and top-1 hits beside them (empty without `details`)."""
    hidden = _hidden_before(model, bundles)
    ids = [i for b in bundles for c in b.completions for i in c.ids]
    targets = torch.tensor(ids, dtype=torch.long, device=hidden.device)
    rows = max(1, HEAD_CHUNK // vocabulary_of(model))
    chunks = [
        _score_chunk(model, h, t, temperature, details)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return TokenScores(*(torch.cat(part) for part in zip(*chunks, strict=True)))


def _score_chunk(
    model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, details: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One chunk of rows; its logits are computed again in the backward pass instead of being kept."""

    def compute(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = scaled_logits(model, h, temperature)
        lse = torch.logsumexp(logits, -1)
        logps = logits.gather(-1, targets[:, None]).squeeze(-1) - lse
        if not details:
            return logps, logps.new_empty(0), logps.new_empty(0)
        with torch.no_grad():
            entropy = lse - (torch.softmax(logits, -1) * logits).sum(-1)
            return logps, entropy, (logits.argmax(-1) == targets).float()

    if not torch.is_grad_enabled():
        return compute(hidden)
    result: tuple[Tensor, Tensor, Tensor] = checkpoint(compute, hidden, use_reentrant=False)
    return result


def scalars_at_states(model: nn.Module, bundles: Sequence[Bundle]) -> Tensor:
    """Value of every state before a completion token, flat fp32 [T]: V_t sees the prompt and tokens 0 … t-1 only."""
    return _scalar(model, _hidden_before(model, bundles))


def scalars_at_end(model: nn.Module, bundles: Sequence[Bundle]) -> Tensor:
    """Scalar after each completion's last token, fp32 [C]: the reward, or the value where a truncated one stopped."""
    padded, rows = _padded_hidden(model, bundles)
    ends = torch.tensor([p + n - 1 for p, n in rows], device=padded.device)
    return _scalar(model, padded[torch.arange(len(rows), device=padded.device), ends])


def _scalar(model: nn.Module, hidden: Tensor) -> Tensor:
    result: Tensor = scalar_head(model)(hidden).squeeze(-1).float()
    return result


def _hidden_before(model: nn.Module, bundles: Sequence[Bundle]) -> Tensor:
    """Hidden state from which each completion token is predicted, flat [T, D]: positions P-1 … P+L-2."""
    padded, rows = _padded_hidden(model, bundles)
    which = [i for i, (_, n) in enumerate(rows) for _ in range(n)]
    where = [p - 1 + t for p, n in rows for t in range(n)]
    return padded[torch.tensor(which, device=padded.device), torch.tensor(where, device=padded.device)]


def _padded_hidden(model: nn.Module, bundles: Sequence[Bundle]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Hidden states of every row, right-padded [C, longest, D], and each row's (P, L)."""
    sequences = [b.prompt_ids + c.ids for b in bundles for c in b.completions]
    rows = [(len(b.prompt_ids), len(c)) for b in bundles for c in b.completions]
    device = device_of_model(model)
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
    hidden: Tensor = trunk(model)(input_ids=ids.to(device), use_cache=False).last_hidden_state
    return hidden, rows


# --- how much at once -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some bundles of a batch: `indices` into the batch, and the bundles themselves."""

    indices: list[int]
    bundles: list[Bundle]


def micro_batches(bundles: Sequence[Bundle], micro_tokens: int) -> Iterator[MicroBatch]:
    """Cut a batch into passes of at most `micro_tokens` computed tokens (at least one bundle each), longest first.

    Bundles of similar length go together, so that little is computed for padding. Because losses are divided by the
    count of the whole batch, the cut cannot change a gradient beyond rounding.
    """
    longest = [len(b.prompt_ids) + max((len(c) for c in b.completions), default=0) for b in bundles]
    order = sorted(range(len(bundles)), key=lambda i: (-longest[i], i))
    start = 0
    while start < len(order):
        width, stop, rows = longest[order[start]], start, 0
        while stop < len(order):
            rows += len(bundles[order[stop]].completions)
            if stop > start and rows * width > micro_tokens:
                break
            stop += 1
        indices = order[start:stop]
        yield MicroBatch(indices, [bundles[i] for i in indices])
        start = stop


def in_batches(
    function: Callable[[list[Bundle]], Tensor], bundles: Sequence[Bundle], micro_tokens: int
) -> list[Tensor]:
    """`function` over any number of bundles without gradients, one tensor per bundle, in order.

    `function` returns one number per completion or per completion token, as the functions above do:
    `in_batches(partial(token_logps, model), bundles, 8192)[i]` are the log-probabilities of bundle i.
    """
    results: list[Tensor | None] = [None] * len(bundles)
    with torch.no_grad():
        for micro in micro_batches(bundles, micro_tokens):
            flat = function(micro.bundles)
            counts = [len(b.completions) for b in micro.bundles]
            if len(flat) != sum(counts):
                counts = [sum(len(c) for c in b.completions) for b in micro.bundles]
            for index, part in zip(micro.indices, flat.split(counts), strict=True):
                results[index] = part
    return [r for r in results if r is not None]


def sequence_logps(model: nn.Module, bundles: Sequence[Bundle], temperature: float = 1.0) -> Tensor:
    """Summed log-probability of each completion, [C]."""
    return sequence_sums(token_logps(model, bundles, temperature), lengths_of(list(bundles)))
