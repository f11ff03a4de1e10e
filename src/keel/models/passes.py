"""Passes from ids to hidden states, in each known way; `trials` finds which of them a model gets right.

Training and scoring have three ways. *Packed*: all bundles in one row, each prompt once. *Rows*: one completion per
row, padding behind it. *Alone*: each sequence in a plain forward pass, the measure of the other two. Generation has
three, too: keys and values kept by `decoding.Decoding`, the family's own cache, or the whole text for every token.

Padding is on the right only, so that a causal model's real positions never see it, whatever its id.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from keel.models.attempt import attempt
from keel.models.attention import Packing
from keel.models.decoding import Decoding
from keel.models.heads import device_of_model, trunk
from keel.models.shapes import more_rows, rounded
from keel.records import Bundle

States = list[list[int]]
"""Per completion, L + 1 rows of hidden states: before its first token, before its second …, after its last."""
Pass = Callable[[nn.Module, Sequence[Bundle]], tuple[Tensor, States]]
"""A pass returns hidden states [rows, D], and for each completion its rows among them."""


def sequences_of(bundles: Sequence[Bundle]) -> list[list[int]]:
    """Return each completion with its prompt before it."""
    return [b.prompt_ids + c.ids for b in bundles for c in b.completions]


def alone(model: nn.Module, bundles: Sequence[Bundle]) -> tuple[Tensor, States]:
    """Compute each completion with its prompt in a pass of its own."""
    sequences = sequences_of(bundles)
    hidden = torch.cat([padded(model, [sequence])[0] for sequence in sequences])
    starts = torch.tensor([0, *map(len, sequences)]).cumsum(0).tolist()
    return hidden, _states(bundles, starts)


def rows(model: nn.Module, bundles: Sequence[Bundle]) -> tuple[Tensor, States]:
    """Compute one row per completion: its prompt before it, padding behind."""
    hidden = padded(model, sequences_of(bundles))
    count, width = hidden.shape[:2]
    return hidden.flatten(0, 1), _states(bundles, list(range(0, count * width, width)))


def padded(model: nn.Module, sequences: Sequence[list[int]]) -> Tensor:
    """Call the backbone in the usual way; return hidden states [sequences, longest, D], padding behind."""
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
    hidden: Tensor = trunk(model)(input_ids=ids.to(device_of_model(model)), use_cache=False).last_hidden_state
    return hidden


def _states(bundles: Sequence[Bundle], starts: list[int]) -> States:
    """Return the states of completions whose sequences begin at `starts`."""
    shapes = [(len(b.prompt_ids), len(c)) for b in bundles for c in b.completions]
    return [
        list(range(start + prompt - 1, start + prompt + length))
        for (prompt, length), start in zip(shapes, starts, strict=False)
    ]


def packed(model: nn.Module, bundles: Sequence[Bundle]) -> tuple[Tensor, States]:
    """Compute all bundles in one row: each prompt once, its completions behind it, no padding.

    A completion's tokens have the positions they would have behind the prompt alone, and attend only to the prompt and
    to themselves: they are computed as in a row of their own.
    """
    ids: list[int] = []
    positions: list[int] = []
    states: States = []
    for bundle in bundles:
        prompt = len(bundle.prompt_ids)
        before = len(ids) + prompt - 1
        ids += bundle.prompt_ids
        positions += range(prompt)
        for c in bundle.completions:
            states.append([before, *range(len(ids), len(ids) + len(c))])
            ids += c.ids
            positions += range(prompt, prompt + len(c))
    packing = Packing([(len(b.prompt_ids), [len(c) for c in b.completions]) for b in bundles])
    return _packed(model, ids, positions, packing), states


def _packed(model: nn.Module, ids: list[int], positions: list[int], packing: Packing) -> Tensor:
    """Return hidden states of one row [T, D]. The packing replaces the mask, so a mask is given that hides nothing."""
    device, tokens = device_of_model(model), len(ids)
    if fill := rounded(tokens, next(model.parameters())) - tokens:  # a bundle of its own, which no other token sees
        ids, positions = [*ids, *[0] * fill], [*positions, *[0] * fill]
        packing.bundles.append((0, [fill]))
    hidden: Tensor = trunk(model)(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        attention_mask=torch.zeros(1, 1, 1, 1, device=device),
        packing=packing,
        use_cache=False,
    ).last_hidden_state
    return hidden[0, :tokens]


# --- generation -----------------------------------------------------------------------------------


def prefill(model: nn.Module, prompts: Sequence[list[int]]) -> tuple[dict[int, tuple[Tensor, Tensor]], Tensor]:
    """Read prompts in one row; return every layer's keys and values, and the hidden state after each prompt [N, D]."""
    lengths = [len(ids) for ids in prompts]
    packing = Packing([(0, [length]) for length in lengths], seen={})
    positions = [i for length in lengths for i in range(length)]
    hidden = _packed(model, [i for ids in prompts for i in ids], positions, packing)
    assert packing.seen is not None
    return packing.seen, hidden[torch.tensor(lengths, device=hidden.device).cumsum(0) - 1]


def decode(model: nn.Module, token: Tensor, decoding: Decoding) -> Tensor:
    """Read one more token of every row: [R] -> the hidden states after them, [R, D]."""
    weight = next(model.parameters())
    positions = decoding.begin_step(weight.dtype)
    rows = rounded(len(token), weight)
    out = trunk(model)(
        input_ids=more_rows(token, rows)[:, None],
        position_ids=more_rows(positions, rows)[:, None],
        attention_mask=torch.zeros(1, 1, 1, 1, device=token.device),  # `decoding` replaces it
        decoding=decoding,
        use_cache=False,
    )
    decoding.end_step()
    hidden: Tensor = out.last_hidden_state[: len(token), -1]
    return hidden


class OwnCache:
    """Rows of equal length with the family's own cache: sliding windows, recurrent states and the like."""

    def __init__(self, model: Any, made: bool = False) -> None:
        """Prepare a cache. If `made`, the backbone makes one of its own class (MiniMax) and is given none at first.

        A few recurrent backbones have another name for the argument.
        """
        self._model, self._trunk, self._made = model, trunk(model), made
        self._takes = _arguments(self._trunk)
        self._named = next((n for n in ("past_key_values", "cache_params") if n in self._takes), "past_key_values")
        self._length = 0
        self._cache: Any = None

    def start(self, sequences: Sequence[list[int]]) -> Tensor:
        """Read sequences of equal length from the beginning; return the hidden state after each, [N, D]."""
        self._cache = None if self._made else DynamicCache(config=self._model.config)
        self._length = len(sequences[0])
        ids = torch.tensor(sequences, device=device_of_model(self._model))
        return self._pass(ids, torch.arange(self._length, device=ids.device))

    def step(self, token: Tensor) -> Tensor:
        """Read one more token of every row: [R] -> [R, D]."""
        self._length += 1
        return self._pass(token[:, None], torch.tensor([self._length - 1], device=token.device))

    def take(self, rows: Tensor) -> None:
        """Keep only these rows, in this order; a row may be taken more than once."""
        if self._made:
            self._cache.batch_select_indices(rows)
        else:
            self._cache.reorder_cache(rows)

    def _pass(self, ids: Tensor, positions: Tensor) -> Tensor:
        given = {self._named: self._cache, "position_ids": positions.expand(len(ids), -1)}
        given = {name: value for name, value in given.items() if name in self._takes}
        out = self._trunk(input_ids=ids, use_cache=True, **given)
        self._cache = getattr(out, self._named) if self._made else self._cache
        hidden: Tensor = out.last_hidden_state[:, -1]
        return hidden


@torch.no_grad()
def cached_bytes(model: Any, tokens: int) -> int:
    """Return the size in bytes of the family's own cache for a text of this many tokens; 0 if the family takes none."""

    def held(made: bool) -> int:
        cache = OwnCache(model, made)
        cache.start([[1] * tokens])
        return _bytes_in(vars(cache._cache))

    found = (attempt(partial(held, made)) for made in (False, True))
    return next((count for count in found if isinstance(count, int)), 0)


def _bytes_in(found: Any) -> int:
    """Return the bytes of all tensors in lists, dicts and the layers of a cache."""
    if isinstance(found, Tensor):
        return found.numel() * found.element_size()
    if isinstance(found, dict | list | tuple):
        return sum(map(_bytes_in, found.values() if isinstance(found, dict) else found))
    return sum(map(_bytes_in, vars(found).values())) if type(found).__name__.endswith("Layer") else 0


def _arguments(backbone: nn.Module) -> set[str]:
    """Return the names of a backbone's arguments; if it only passes them on (BART's decoder), its inner module's."""
    found = set(inspect.signature(backbone.forward).parameters)
    inside = next(backbone.children(), None)
    return found if "input_ids" in found or inside is None else _arguments(inside)
