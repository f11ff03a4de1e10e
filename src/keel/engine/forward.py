"""One forward pass over bundles: token log-probabilities and scalars, flat, without padding.

`token_logps`, `token_scores`, `scalars_at_states`, `scalars_at_end` and `scalars_throughout` are each one
differentiable pass over the bundles given; `micro_batches` and `in_batches` choose how many bundles that is. Methods
see neither rows nor padding: `models/passes.py` lays rows out, and `engine/head.py` walks the vocabulary in blocks.

What bundles have in common is computed once. Pairs of one prompt are that prompt with its different completions, so
three pairs of three answers cost three answers, not six.

If the model allows it, bundles stand one after the other in one row, each prompt once (`models/attention.py`). If not,
each completion has a row: it sits to the right of its prompt, and padding to the right of both. A causal model's real
positions then never see padding, whatever its id: no mask is needed, and pad == EOS is harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from keel.engine.head import TokenScores, score_tokens
from keel.errors import InputError
from keel.models import passes, trials
from keel.models.heads import scalars
from keel.models.limits import switches_passed
from keel.models.passes import States
from keel.objectives import sequence_sums
from keel.records import Bundle, Completion, lengths_of

PACK = True
"""Let bundles share one row, and completions their prompt, if the model can; compute nothing twice."""


# --- the pass -------------------------------------------------------------------------------------


def token_logps(model: nn.Module, bundles: Sequence[Bundle], temperature: float = 1.0) -> Tensor:
    """Return each completion token's log-probability given what came before, flat fp32 [T], in bundle order."""
    return token_scores(model, bundles, temperature, details=False).logps


def token_scores(
    model: nn.Module, bundles: Sequence[Bundle], temperature: float = 1.0, details: bool = True
) -> TokenScores:
    """Return the scores of `token_logps` with entropy and top-1 hits beside them (empty without `details`)."""
    own, places = _each_once(bundles)
    hidden, states = _by_length_band(model, own)
    hidden = hidden[_rows([i for at in states for i in at[:-1]], hidden)]
    ids = [i for b in own for c in b.completions for i in c.ids]
    targets = torch.tensor(ids, dtype=torch.long, device=hidden.device)
    scores = score_tokens(model, hidden, targets, temperature, details)
    if places is None:
        return scores
    return scores.take(_tokens_at(own, places).to(hidden.device))


def scalars_at_states(model: nn.Module, bundles: Sequence[Bundle]) -> Tensor:
    """Return the value of every state before a completion token, flat fp32 [T].

    V_t sees the prompt and tokens 0 … t-1 only.
    """
    return scalars(model, _hidden_before(model, bundles))


def scalars_at_end(model: nn.Module, bundles: Sequence[Bundle]) -> Tensor:
    """Return the scalar after each completion's last token, fp32 [C]: the reward, or the value if truncated."""
    return scalars(model, states_at_end(model, bundles))


def scalars_throughout(model: nn.Module, bundles: Sequence[Bundle]) -> Tensor:
    """Return `scalars_at_states` and `scalars_at_end` from one pass, flat fp32 [T + C].

    Each completion has L + 1 scalars, the end last.
    """
    hidden, states = _hidden(model, bundles)
    before = scalars(model, hidden[_rows([i for at in states for i in at[:-1]], hidden)])
    ends = scalars(model, hidden[_rows([at[-1] for at in states], hidden)])
    parts = zip(before.split([len(at) - 1 for at in states]), ends.split(1), strict=True)
    return torch.cat([part for pair in parts for part in pair])


def states_at_end(model: nn.Module, bundles: Sequence[Bundle]) -> Tensor:
    """Return the hidden state after each completion's last token, [C, D]."""
    hidden, states = _hidden(model, bundles)
    return hidden[_rows([at[-1] for at in states], hidden)]


def _hidden_before(model: nn.Module, bundles: Sequence[Bundle]) -> Tensor:
    """Return the hidden state from which each completion token is predicted, flat [T, D]: positions P-1 … P+L-2."""
    hidden, states = _hidden(model, bundles)
    return hidden[_rows([i for at in states for i in at[:-1]], hidden)]


def _rows(indices: list[int], hidden: Tensor) -> Tensor:
    return torch.tensor(indices, device=hidden.device)


# --- the backbone ---------------------------------------------------------------------------------


def _hidden(model: nn.Module, bundles: Sequence[Bundle]) -> tuple[Tensor, States]:
    """Return all hidden states that the bundles need, [rows, D], and the rows of each completion."""
    own, places = _each_once(bundles)
    hidden, states = _by_length_band(model, own)
    return hidden, states if places is None else [states[at] for at in places]


def _by_length_band(model: nn.Module, bundles: Sequence[Bundle]) -> tuple[Tensor, States]:
    """Run the pass; if a model reads positions by the length of the text, one pass for each kind of length."""
    bundles = [b for b in bundles if b.completions]
    ways = trials.ways_of(model)
    _require_room(ways, bundles)
    bands = [length_band(ways.switches, b, c) for b in bundles for c in b.completions]
    if len(set(bands)) <= 1:
        return _pass_of(model, bundles)(model, bundles)
    found: dict[int, list[int]] = {}
    parts, rows = [], 0
    for one in sorted(set(bands)):
        some = [
            replace(b, completions=[c for c in b.completions if length_band(ways.switches, b, c) == one])
            for b in bundles
        ]
        some = [b for b in some if b.completions]
        hidden, states = _pass_of(model, some)(model, some)
        owners = (i for i, of in enumerate(bands) if of == one)
        found |= {i: [row + rows for row in at] for i, at in zip(owners, states, strict=True)}
        parts.append(hidden)
        rows += len(hidden)
    return torch.cat(parts), [found[i] for i in range(len(bands))]


def _require_room(ways: trials.Ways, bundles: Sequence[Bundle]) -> None:
    """Refuse texts beyond a model's positions: it has no more, or changes them for all texts of the pass."""
    longest = max(map(width_of, bundles), default=0)
    if ways.positions is not None and longest > ways.positions:
        raise InputError(
            f"a text of {longest} tokens is longer than the {ways.positions} positions of {ways.name}; "
            "lower --max-length, or --max-new-tokens"
        )


def length_band(switches: tuple[int, ...], bundle: Bundle, completion: Completion) -> int:
    """Return how many of a model's length switches a completion exceeds, its prompt included."""
    return switches_passed(switches, len(bundle.prompt_ids) + len(completion)) if switches else 0


def _pass_of(model: nn.Module, bundles: Sequence[Bundle]) -> passes.Pass:
    return pass_for(model, max(map(width_of, bundles), default=0))


def pass_for(model: nn.Module, longest: int) -> passes.Pass:
    """Return how bundles of up to `longest` tokens a completion go through the backbone."""
    ways = trials.ways_of(model)
    return ways.way(longest) if PACK else ways.apart


def packing_to(model: nn.Module, longest: int) -> bool:
    """Say whether bundles of up to `longest` tokens a completion share one row."""
    return pass_for(model, longest) is passes.packed


def _each_once(bundles: Sequence[Bundle]) -> tuple[Sequence[Bundle], list[int] | None]:
    """Return bundles that hold each prompt and each of its completions once, and the place of every completion there.

    The places are None if nothing occurs twice.
    """
    keys = [(b.key, c.key) for b in bundles for c in b.completions]
    if not PACK or (len({prompt for prompt, _ in keys}) == len(bundles) and len(set(keys)) == len(keys)):
        return bundles, None
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for prompt, ids in dict.fromkeys(keys):
        found.setdefault(prompt, []).append(ids)
    own = [Bundle(list(prompt), [Completion(list(ids)) for ids in all_ids]) for prompt, all_ids in found.items()]
    place = {key: at for at, key in enumerate((prompt, ids) for prompt, all_ids in found.items() for ids in all_ids)}
    return own, [place[key] for key in keys]


def _tokens_at(bundles: Sequence[Bundle], places: list[int]) -> Tensor:
    """Return indices of all tokens of the completions at `places`, counted through the tokens of these bundles."""
    lengths = [len(c) for b in bundles for c in b.completions]
    starts = [0, *accumulate(lengths)]
    return torch.tensor([i for at in places for i in range(starts[at], starts[at] + lengths[at])], dtype=torch.long)


# --- how much at once -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some bundles of a batch: `indices` into the batch, and the bundles themselves."""

    indices: list[int]
    bundles: list[Bundle]


def micro_batches(model: nn.Module, bundles: Sequence[Bundle], micro_tokens: int) -> Iterator[MicroBatch]:
    """Cut a batch into passes of at most `micro_tokens` computed tokens (at least one bundle each), longest first.

    Bundles of one prompt go together. If each completion needs a row, padding is computed, too, and bundles of similar
    length go together. Losses are divided by the count of the whole batch, so the cut cannot change a gradient beyond
    rounding.
    """
    prompts = [bundle.key for bundle in bundles]
    longest: dict[tuple[int, ...], int] = {}
    for bundle, prompt in zip(bundles, prompts, strict=True):
        longest[prompt] = max(longest.get(prompt, 0), width_of(bundle))
    way, switches = pass_for(model, max(longest.values(), default=0)), trials.ways_of(model).switches
    rank = {prompt: at for at, prompt in enumerate(sorted(longest, key=lambda p: -longest[p]))}
    order = sorted(range(len(bundles)), key=lambda i: rank[prompts[i]])
    start = 0
    while start < len(order):
        load, stop = TokenCounter(way, switches), start
        while stop < len(order):
            tokens = load.add(bundles[order[stop]])
            if tokens > micro_tokens and stop > start:
                break
            stop += 1
        indices = order[start:stop]
        yield MicroBatch(indices, [bundles[i] for i in indices])
        start = stop


class TokenCounter:
    """Count of the tokens that a pass computes: in one row, in rows as wide as the widest, or one by one."""

    def __init__(self, way: passes.Pass, switches: tuple[int, ...] = ()) -> None:
        self._way, self._switches = way, switches
        self._seen: dict[tuple[int, tuple[int, ...]], set[tuple[int, ...]]] = {}
        self._once = self._each = self._rows = self._width = 0

    def add(self, bundle: Bundle) -> int:
        """Add a bundle; return what all take now."""
        for completion in bundle.completions:
            key = length_band(self._switches, bundle, completion), bundle.key
            if not PACK or key not in self._seen:
                self._once += len(bundle.key)
            seen = self._seen.setdefault(key, set())
            ids = completion.key
            if not PACK or ids not in seen:
                self._rows += 1
                self._once += len(ids)
                self._each += len(bundle.key) + len(ids)
                seen.add(ids)
        self._width = max(self._width, width_of(bundle))
        if self._way is passes.rows:
            return self._rows * self._width
        return self._once if self._way is passes.packed else self._each


def computed_tokens(model: nn.Module, bundles: Sequence[Bundle]) -> int:
    """Return the tokens that one pass over the bundles computes, padding included."""
    load = TokenCounter(pass_for(model, max(map(width_of, bundles))), trials.ways_of(model).switches)
    return max(load.add(bundle) for bundle in bundles)


def width_of(bundle: Bundle) -> int:
    """Return the tokens of the longest completion with its prompt."""
    return len(bundle.prompt_ids) + max(map(len, bundle.completions), default=0)


def in_batches(
    function: Callable[[nn.Module, list[Bundle]], Tensor],
    model: nn.Module,
    bundles: Sequence[Bundle],
    micro_tokens: int,
) -> list[Tensor]:
    """Apply `function` to any number of bundles without gradients; return one tensor per bundle, in order.

    `function` returns one number per completion or per completion token, or both, as the functions above do:
    `in_batches(token_logps, model, bundles, 8192)[i]` are the log-probabilities of bundle i. A bundle with more tokens
    than a pass may have goes through in parts.
    """
    parts = [(i, part) for i, b in enumerate(bundles) if b.completions for part in _parts(b, micro_tokens)]
    results: list[list[Tensor]] = [[] for _ in bundles]
    found: list[Tensor | None] = [None] * len(parts)
    with torch.no_grad():
        for micro in micro_batches(model, [part for _, part in parts], micro_tokens):
            flat = function(model, micro.bundles)
            counts = [len(b.completions) for b in micro.bundles]
            if len(flat) != sum(counts):
                ends = len(flat) - sum(len(c) for b in micro.bundles for c in b.completions)  # none, or one each
                counts = [sum(len(c) + (ends > 0) for c in b.completions) for b in micro.bundles]
            for index, numbers in zip(micro.indices, flat.split(counts), strict=True):
                found[index] = numbers
    for (owner, _), numbers in zip(parts, found, strict=True):
        if numbers is not None:
            results[owner].append(numbers)
    return [torch.cat(numbers) if numbers else torch.empty(0) for numbers in results]


def _parts(bundle: Bundle, micro_tokens: int) -> Iterator[Bundle]:
    """Yield the bundle, or parts of it that keep to `micro_tokens`, with at least one completion each."""
    if tokens_of(bundle) <= micro_tokens:
        yield bundle
        return
    some: list[Completion] = []
    for completion in bundle.completions:
        if some and len(bundle.prompt_ids) + sum(map(len, some)) + len(completion) > micro_tokens:
            yield replace(bundle, completions=some)
            some = []
        some = [*some, completion]
    yield replace(bundle, completions=some)


def tokens_of(bundle: Bundle) -> int:
    """Return the tokens of the bundle, its prompt counted once."""
    return len(bundle.prompt_ids) + sum(map(len, bundle.completions))


def sequence_logps(model: nn.Module, bundles: Sequence[Bundle], temperature: float = 1.0) -> Tensor:
    """Return the summed log-probability of each completion, [C]."""
    return sequence_sums(token_logps(model, bundles, temperature), lengths_of(list(bundles)))
