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
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicCache

from keel.engine.progress import say
from keel.models.heads import device_of_model, full_attention, scalar_head, scaled_logits, trunk, vocabulary_of
from keel.objectives import sequence_sums
from keel.records import Bundle, Completion, lengths_of

WORTH_SHARING = 0.1
"""Share of the tokens that must be spared before prompts are computed once for all their completions."""
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
    again = len(targets) > rows
    chunks = [
        _score_chunk(model, h, t, temperature, details, again)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return TokenScores(*(torch.cat(part) for part in zip(*chunks, strict=True)))


def _score_chunk(
    model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, details: bool, again: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One chunk of rows; where there are more, its logits are computed again in the backward pass, not kept."""

    def compute(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = scaled_logits(model, h, temperature)
        lse = torch.logsumexp(logits, -1)
        logps = logits.gather(-1, targets[:, None]).squeeze(-1) - lse
        if not details:
            return logps, logps.new_empty(0), logps.new_empty(0)
        with torch.no_grad():
            entropy = lse - (torch.softmax(logits, -1) * logits).sum(-1)
            return logps, entropy, (logits.argmax(-1) == targets).float()

    if not (again and torch.is_grad_enabled()):
        return compute(hidden)
    result: tuple[Tensor, Tensor, Tensor] = checkpoint(compute, hidden, use_reentrant=False)
    return result


def scalars_at_states(model: nn.Module, bundles: Sequence[Bundle]) -> Tensor:
    """Value of every state before a completion token, flat fp32 [T]: V_t sees the prompt and tokens 0 … t-1 only."""
    return _scalar(model, _hidden_before(model, bundles))


def scalars_at_end(model: nn.Module, bundles: Sequence[Bundle]) -> Tensor:
    """Scalar after each completion's last token, fp32 [C]: the reward, or the value where a truncated one stopped."""
    hidden, states = _hidden(model, bundles)
    return _scalar(model, hidden[torch.tensor([at[-1] for at in states], device=hidden.device)])


def _scalar(model: nn.Module, hidden: Tensor) -> Tensor:
    result: Tensor = scalar_head(model)(hidden).squeeze(-1).float()
    return result


def _hidden_before(model: nn.Module, bundles: Sequence[Bundle]) -> Tensor:
    """Hidden state from which each completion token is predicted, flat [T, D]: positions P-1 … P+L-2."""
    hidden, states = _hidden(model, bundles)
    return hidden[torch.tensor([i for at in states for i in at[:-1]], device=hidden.device)]


# --- the backbone ---------------------------------------------------------------------------------

States = list[list[int]]
"""Per completion, the rows of the hidden states before its first token, before its second …, after its last: L + 1."""


def _hidden(model: nn.Module, bundles: Sequence[Bundle]) -> tuple[Tensor, States]:
    """All hidden states that the bundles need, [rows, D], and where each completion finds its own."""
    again = sum((len(b.completions) - 1) * len(b.prompt_ids) for b in bundles)
    whole = sum(len(b.prompt_ids) + len(c) for b in bundles for c in b.completions)
    longest = max(len(b.prompt_ids) + len(c) for b in bundles for c in b.completions)
    if again >= WORTH_SHARING * whole and full_attention(model.config, longest) and _shares(model):
        return _prompts_once(model, bundles)
    return _row_by_row(model, bundles)


def _row_by_row(model: nn.Module, bundles: Sequence[Bundle]) -> tuple[Tensor, States]:
    """One row per completion, its prompt before it, padding behind both."""
    sequences = [b.prompt_ids + c.ids for b in bundles for c in b.completions]
    prompts = [len(b.prompt_ids) for b in bundles for _ in b.completions]
    ids = _right_padded(sequences).to(device_of_model(model))
    hidden: Tensor = trunk(model)(input_ids=ids, use_cache=False).last_hidden_state
    width = ids.shape[1]
    states = [
        list(range(row * width + p - 1, row * width + len(sequence)))
        for row, (p, sequence) in enumerate(zip(prompts, sequences, strict=True))
    ]
    return hidden.flatten(0, 1), states


def _prompts_once(model: nn.Module, bundles: Sequence[Bundle]) -> tuple[Tensor, States]:
    """One row per prompt, then one row per completion that attends to its prompt's keys and to itself.

    A completion's tokens stand at the positions they would have behind the prompt, so that nothing else differs from
    a row of its own. Gradients reach the prompt through its keys and values, from all its completions.
    """
    device = device_of_model(model)
    prompts = _right_padded([b.prompt_ids for b in bundles]).to(device)
    cache = DynamicCache()
    first: Tensor = trunk(model)(input_ids=prompts, past_key_values=cache, use_cache=True).last_hidden_state
    owner = [i for i, b in enumerate(bundles) for _ in b.completions]
    cache.batch_select_indices(torch.tensor(owner, device=device))
    completions = [c.ids for b in bundles for c in b.completions]
    ids = _right_padded(completions).to(device)
    lengths = torch.tensor([len(bundles[i].prompt_ids) for i in owner], device=device)
    then: Tensor = trunk(model)(
        input_ids=ids,
        position_ids=lengths[:, None] + torch.arange(ids.shape[1], device=device),
        attention_mask=_own_prompt_and_past(lengths, prompts.shape[1], ids.shape[1], first.dtype),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    states = []
    for row, (i, completion) in enumerate(zip(owner, completions, strict=True)):
        before = i * prompts.shape[1] + len(bundles[i].prompt_ids) - 1
        start = prompts.numel() + row * ids.shape[1]
        states.append([before, *range(start, start + len(completion))])
    return torch.cat([first.flatten(0, 1), then.flatten(0, 1)]), states


def _own_prompt_and_past(prompt_lengths: Tensor, prompt_width: int, width: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, [C, 1, width, prompt_width + width]: 0 on what a token may see.

    Elsewhere the type's minimum. Every attention adds such a mask; a boolean one some would add as 0 and 1.
    """
    at = torch.arange(prompt_width + width, device=prompt_lengths.device)
    prompt = (at < prompt_lengths[:, None])[:, None]
    own = (at >= prompt_width) & (at <= prompt_width + at[:width, None])
    mask = torch.zeros(len(prompt_lengths), width, len(at), dtype=dtype, device=at.device)
    return mask.masked_fill(~(prompt | own), torch.finfo(dtype).min)[:, None]


def _shares(model: nn.Module) -> bool:
    """Whether the model gives the same hidden states with prompts computed once; tried on first use.

    Recurrent backbones, positions counted from the mask and the like do not; they are computed row by row.
    """
    if model not in _SHARES:
        _SHARES[model] = _same_with_sharing(model)
        if not _SHARES[model]:
            say(f"{type(model).__name__} cannot share a prompt between completions: computed once for each of them")
    return _SHARES[model]


_SHARES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def _same_with_sharing(model: nn.Module) -> bool:
    """The two ways through the backbone compared on a few tokens, without dropout."""
    token = [i % vocabulary_of(model) for i in range(1, 12)]
    bundles = [
        Bundle(token[:4], [Completion(token[4:7]), Completion(token[5:10])]),
        Bundle(token[:2], [Completion(token[2:8]), Completion(token[1:2])]),
    ]
    training = model.training
    model.eval()
    try:
        whole, states = _row_by_row(model, bundles)
        shared, places = _prompts_once(model, bundles)
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):  # a backbone that takes no such input
        return False
    finally:
        model.train(training)
    expected = whole[torch.tensor([i for at in states for i in at], device=whole.device)].float()
    got = shared[torch.tensor([i for at in places for i in at], device=shared.device)].float()
    tolerance = 1e-4 if whole.dtype == torch.float32 else 0.05
    return bool((got - expected).abs().max() <= tolerance * expected.abs().max())


def _right_padded(sequences: list[list[int]]) -> Tensor:
    """Token ids [N, longest]; what stands in the padding is never seen."""
    width = max(map(len, sequences))
    return torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])


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
