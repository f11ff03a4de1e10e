"""From ids to hidden states, in each way that is known; `trials` says which of them a model gets right.

Training and scoring have three: all bundles *packed* into one row, each prompt once; *rows*, one completion each, with
padding behind; each sequence *alone*, which is a plain forward pass and the measure of the other two. A completion that
is being written has three: keys and values kept by `decoding.Decoding`, the family's own cache, or the whole text anew
for every token.

Padding stands to the right only, so that a causal model's real positions never see it, whatever its id.
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
"""Per completion, the rows of the hidden states before its first token, before its second …, after its last: L + 1."""
Pass = Callable[[nn.Module, Sequence[Bundle]], tuple[Tensor, States]]
"""Bundles to hidden states [rows, D], and where each completion finds its own."""


def sequences_of(bundles: Sequence[Bundle]) -> list[list[int]]:
    """Each completion behind its prompt."""
    return [b.prompt_ids + c.ids for b in bundles for c in b.completions]


def alone(model: nn.Module, bundles: Sequence[Bundle]) -> tuple[Tensor, States]:
    """Each completion with its prompt in a pass of its own."""
    sequences = sequences_of(bundles)
    hidden = torch.cat([padded(model, [sequence])[0] for sequence in sequences])
    starts = torch.tensor([0, *map(len, sequences)]).cumsum(0).tolist()
    return hidden, _states(bundles, starts)


def rows(model: nn.Module, bundles: Sequence[Bundle]) -> tuple[Tensor, States]:
    """One row per completion, its prompt before it, padding behind both."""
    hidden = padded(model, sequences_of(bundles))
    count, width = hidden.shape[:2]
    return hidden.flatten(0, 1), _states(bundles, list(range(0, count * width, width)))


def padded(model: nn.Module, sequences: Sequence[list[int]]) -> Tensor:
    """The backbone as everyone calls it: hidden states [sequences, longest, D], padding behind."""
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
    hidden: Tensor = trunk(model)(input_ids=ids.to(device_of_model(model)), use_cache=False).last_hidden_state
    return hidden


def _states(bundles: Sequence[Bundle], starts: list[int]) -> States:
    """States of completions whose sequences begin at `starts`."""
    shapes = [(len(b.prompt_ids), len(c)) for b in bundles for c in b.completions]
    return [
        list(range(start + prompt - 1, start + prompt + length))
        for (prompt, length), start in zip(shapes, starts, strict=False)
    ]


def packed(model: nn.Module, bundles: Sequence[Bundle]) -> tuple[Tensor, States]:
    """One row for all: each prompt once, its completions behind it, nothing padded.

    A completion's tokens stand at the positions they would have behind the prompt alone, and attend to the prompt and
    to themselves, so that nothing else differs from a row of its own.
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
    """Hidden states of one row [T, D]; the packing stands for the mask, so one is handed in that says nothing."""
    device, tokens = device_of_model(model), len(ids)
    if fill := rounded(tokens, next(model.parameters())) - tokens:  # a text of its own that nothing else sees
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


# --- completions that are being written -----------------------------------------------------------


def prefill(model: nn.Module, prompts: Sequence[list[int]]) -> tuple[dict[int, tuple[Tensor, Tensor]], Tensor]:
    """Prompts in one row: keys and values of every layer, and the hidden state of each prompt's last token [N, D]."""
    lengths = [len(ids) for ids in prompts]
    packing = Packing([(0, [length]) for length in lengths], seen={})
    positions = [i for length in lengths for i in range(length)]
    hidden = _packed(model, [i for ids in prompts for i in ids], positions, packing)
    assert packing.seen is not None
    return packing.seen, hidden[torch.tensor(lengths, device=hidden.device).cumsum(0) - 1]


def decode(model: nn.Module, token: Tensor, decoding: Decoding) -> Tensor:
    """One token more of every row: [R] -> the hidden states after them, [R, D]."""
    weight = next(model.parameters())
    positions = decoding.begin_step(weight.dtype)
    rows = rounded(len(token), weight)
    out = trunk(model)(
        input_ids=more_rows(token, rows)[:, None],
        position_ids=more_rows(positions, rows)[:, None],
        attention_mask=torch.zeros(1, 1, 1, 1, device=token.device),  # `decoding` stands for it
        decoding=decoding,
        use_cache=False,
    )
    decoding.end_step()
    hidden: Tensor = out.last_hidden_state[: len(token), -1]
    return hidden


class OwnCache:
    """Rows of one length with the family's own cache: sliding windows, recurrent states and the like."""

    def __init__(self, model: Any, made: bool = False) -> None:
        """`made`: the backbone makes a cache of a class of its own (MiniMax), which is given none to start with.

        A few recurrent ones have a name of their own for what they are given.
        """
        self._model, self._trunk, self._made = model, trunk(model), made
        self._takes = _arguments(self._trunk)
        self._named = next((n for n in ("past_key_values", "cache_params") if n in self._takes), "past_key_values")
        self._length = 0
        self._cache: Any = None

    def start(self, sequences: Sequence[list[int]]) -> Tensor:
        """Sequences of one length, read from the beginning: the hidden state after each, [N, D]."""
        self._cache = None if self._made else DynamicCache(config=self._model.config)
        self._length = len(sequences[0])
        ids = torch.tensor(sequences, device=device_of_model(self._model))
        return self._pass(ids, torch.arange(self._length, device=ids.device))

    def step(self, token: Tensor) -> Tensor:
        """One token more of every row: [R] -> [R, D]."""
        self._length += 1
        return self._pass(token[:, None], torch.tensor([self._length - 1], device=token.device))

    def take(self, rows: Tensor) -> None:
        """Only these rows go on, in this order; a row may be taken more than once."""
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
    """What the family's own cache holds of a text of so many tokens; 0 where it takes none."""

    def held(made: bool) -> int:
        cache = OwnCache(model, made)
        cache.start([[1] * tokens])
        return _bytes_in(vars(cache._cache))

    found = (attempt(partial(held, made)) for made in (False, True))
    return next((count for count in found if isinstance(count, int)), 0)


def _bytes_in(found: Any) -> int:
    """Bytes of all tensors in lists, dicts and the layers of a cache."""
    if isinstance(found, Tensor):
        return found.numel() * found.element_size()
    if isinstance(found, dict | list | tuple):
        return sum(map(_bytes_in, found.values() if isinstance(found, dict) else found))
    return sum(map(_bytes_in, vars(found).values())) if type(found).__name__.endswith("Layer") else 0


def _arguments(backbone: nn.Module) -> set[str]:
    """What a backbone can be given; a wrapper that hands all on (BART's decoder) takes what is inside of it takes."""
    found = set(inspect.signature(backbone.forward).parameters)
    inside = next(backbone.children(), None)
    return found if "input_ids" in found or inside is None else _arguments(inside)
