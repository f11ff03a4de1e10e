"""Local decoding: prompts prefilled once per bundle, one row per completion, rows leave when they have finished.

Each sampled token's log-probability, under exactly the distribution that it was drawn from, is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from keel.data.text import Text, named
from keel.errors import InputError, RunFailed
from keel.models.heads import device_of_model, full_attention, scaled_logits, trunk
from keel.records import Bundle, Completion, Origin, Prompt

Progress = Callable[[int], None]


def sample(
    model: nn.Module,
    text: Text,
    prompts: Sequence[Prompt],
    n: int = 1,
    *,
    origins: Sequence[Origin] | None = None,
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator,
    max_rows: int = 256,
    progress: Progress | None = None,
) -> list[Bundle]:
    """Draw n completions for every prompt; bundles come back in the prompts' order.

    Temperature 0 takes the likeliest token; log-probabilities are then those at temperature 1. A completion that
    reaches `max_new_tokens` without EOS is marked truncated. `progress(k)` is told of every k finished completions.
    `origins` say where the prompts came from. Raises InputError where a prompt and its answer exceed the model's
    positions (`room` says how long prompts may be), RunFailed where the model's probabilities are not finite.
    """
    bundles = [
        Bundle(text.prompt_ids(prompt), [], prompt=prompt, origin=origin)
        for prompt, origin in zip(prompts, origins or [Origin()] * len(prompts), strict=True)
    ]
    _check_room(model, bundles, max_new_tokens)
    order = sorted(range(len(bundles)), key=lambda i: (len(bundles[i].prompt_ids), i))
    for group in _groups(model, [bundles[i] for i in order], n, max_new_tokens, max_rows):
        _decode(model, text, group, max_new_tokens, temperature, generator, progress)
    return bundles


def room(model: Any, max_new_tokens: int) -> int | None:
    """`max_length` for `Text.encode` that leaves a prompt space for a full-length answer; None where all fit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return None if limit is None else int(limit) - max_new_tokens + 1


def _check_room(model: Any, bundles: list[Bundle], max_new_tokens: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max((len(b.prompt_ids) for b in bundles), default=0)
    if limit is not None and longest + max_new_tokens > limit:
        at = max(range(len(bundles)), key=lambda i: len(bundles[i].prompt_ids))
        raise InputError(
            f"prompt {at + 1} has {longest} tokens; with {max_new_tokens} new ones that exceeds the model's "
            f"{limit} positions; shorten it or lower --max-new-tokens"
        )


@dataclass(slots=True)
class _Group:
    """Bundles decoded together, `copies` completions each in this pass."""

    bundles: list[Bundle]
    copies: int
    slots: bool


def _groups(model: Any, bundles: list[Bundle], n: int, max_new: int, max_rows: int) -> Iterable[_Group]:
    """Passes of at most `max_rows` completions. Models whose cache is more than slots get prompts of equal length."""
    slots = full_attention(model.config, max(len(b.prompt_ids) for b in bundles) + max_new) if bundles else True
    start = 0
    while start < len(bundles):
        stop = start + 1
        while (
            stop < len(bundles)
            and (stop - start + 1) * n <= max_rows
            and (slots or len(bundles[stop].prompt_ids) == len(bundles[start].prompt_ids))
        ):
            stop += 1
        done = 0
        while done < n:
            copies = min(n - done, max(1, max_rows // (stop - start)))
            yield _Group(bundles[start:stop], copies, slots)
            done += copies
        start = stop


# --- the cache ------------------------------------------------------------------------------------


class _Slots(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in storage reserved once, so that a new token copies one slot and not the cache.

    Rows that finish are overwritten by the last ones that go on, so that the live rows stay the first of the storage
    and only a few are ever moved.
    """

    filled = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states, value_states
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:  # prefill: hold the prompt as it came
            self.lazy_initialization(key_states, value_states)
            self.filled = key_states.shape[-2]
            return key_states, value_states
        stop = self.filled + key_states.shape[-2]
        self.keys[:, :, self.filled : stop] = key_states
        self.values[:, :, self.filled : stop] = value_states
        self.filled = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_seq_length(self) -> int:
        return self.filled

    def spread(self, copies: int, extra: int) -> None:
        """One row per completion instead of one per prompt, with room for `extra` more tokens."""
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            rows, heads, length, width = old.shape
            new = old.new_empty(rows * copies, heads, length + extra, width)
            new[:, :, :length] = old.repeat_interleave(copies, 0)
            setattr(self, name, new)

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on, in this order: as `_survivors` gives them, so that most of them stay in place."""
        moved = torch.nonzero(rows >= len(rows)).squeeze(1)
        for storage in (self.keys, self.values):
            storage[moved, :, : self.filled] = storage[rows[moved], :, : self.filled]
        self.keys, self.values = self.keys[: len(rows)], self.values[: len(rows)]


class _SlotCache(Cache):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Slots)

    def spread(self, copies: int, extra: int) -> None:
        for layer in self.layers:
            layer.spread(copies, extra)

    def keep(self, rows: Tensor) -> None:
        for layer in self.layers:
            layer.keep(rows)


class _ModelCache(DynamicCache):  # type: ignore[misc]
    """The architecture's own cache (sliding windows, recurrent states), for prompts of one length."""

    def spread(self, copies: int, extra: int) -> None:
        self.batch_repeat_interleave(copies)

    def keep(self, rows: Tensor) -> None:
        self.batch_select_indices(rows)


# --- decoding -------------------------------------------------------------------------------------


@torch.no_grad()
def _decode(
    model: Any,
    text: Text,
    group: _Group,
    max_new: int,
    temperature: float,
    generator: torch.Generator,
    progress: Progress | None,
) -> None:
    """Add `group.copies` completions to each bundle of the group."""
    device = device_of_model(model)
    lengths = torch.tensor([len(b.prompt_ids) for b in group.bundles], device=device)
    cache = _SlotCache() if group.slots else _ModelCache(config=model.config)
    hidden = _prefill(model, group.bundles, lengths, cache).repeat_interleave(group.copies, 0)
    cache.spread(group.copies, max_new)
    width = int(lengths.max())
    positions = lengths.repeat_interleave(group.copies)
    visible = _visible(positions, width, max_new, hidden.dtype) if int(lengths.min()) < width else None

    rows = len(positions)
    tokens = torch.zeros(rows, max_new, dtype=torch.long, device=device)
    logps = torch.zeros(rows, max_new, device=device)
    ended = torch.tensor(sorted(text.eos_ids), device=device)
    count = torch.zeros(rows, dtype=torch.long, device=device)
    live = torch.arange(rows, device=device)
    for t in range(max_new):
        logps_all = torch.log_softmax(scaled_logits(model, hidden, temperature or 1.0), -1)
        _require_finite(logps_all, live, group)
        token, logp = _draw(logps_all, temperature, generator)
        tokens[live, t], logps[live, t] = token, logp
        count[live] = t + 1
        going = ~torch.isin(token, ended)
        if progress is not None:
            progress(int((~going).sum()) if t + 1 < max_new else len(live))
        if t + 1 == max_new or not bool(going.any()):
            break
        if not bool(going.all()):
            kept = _survivors(going)
            live, token, positions = live[kept], token[kept], positions[kept]
            cache.keep(kept)
            visible = visible[kept] if visible is not None else None
        mask = visible[:, :, :, : width + t + 1] if visible is not None else None
        hidden = _step(model, token, positions, mask, cache)
        positions = positions + 1
    _append(text, group, tokens.cpu(), logps.cpu(), count.tolist())


def _prefill(model: Any, bundles: list[Bundle], lengths: Tensor, cache: Cache) -> Tensor:
    """Run the prompts once, right-padded, and return the hidden state of each one's last token, [N, D]."""
    ids = torch.zeros(len(bundles), int(lengths.max()), dtype=torch.long)
    for i, bundle in enumerate(bundles):
        ids[i, : len(bundle.prompt_ids)] = torch.tensor(bundle.prompt_ids)
    out = trunk(model)(input_ids=ids.to(lengths.device), past_key_values=cache, use_cache=True)
    hidden: Tensor = out.last_hidden_state
    return hidden[torch.arange(len(bundles), device=lengths.device), lengths - 1]


def _visible(prompt_lengths: Tensor, width: int, max_new: int, dtype: torch.dtype) -> Tensor:
    """What is added to a row's attention scores, [R, 1, 1, width + max_new]: 0 on its prompt and all that it wrote.

    Elsewhere the type's minimum. Every attention adds such a mask; a boolean one some would add as 0 and 1.
    """
    slot = torch.arange(width + max_new, device=prompt_lengths.device)
    seen = (slot < prompt_lengths[:, None]) | (slot >= width)
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    return mask[:, None, None, :]


def _step(model: Any, token: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache) -> Tensor:
    out = trunk(model)(
        input_ids=token[:, None],
        position_ids=positions[:, None],
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
    )
    hidden: Tensor = out.last_hidden_state[:, -1]
    return hidden


def _survivors(going: Tensor) -> Tensor:
    """The rows that go on, those from the end in the places of the finished ones: [R] -> [survivors]."""
    rows = torch.nonzero(going).squeeze(1)
    order = torch.arange(len(rows), device=going.device)
    order[~going[: len(rows)]] = rows[rows >= len(rows)]
    return order


def _require_finite(logps: Tensor, live: Tensor, group: _Group) -> None:
    """Nothing can be drawn where the model gives no probabilities; a row that is not a number is so everywhere."""
    bad = torch.nonzero(logps[:, 0].isnan()).flatten()
    if len(bad):
        bundle = group.bundles[int(live[bad[0]]) // group.copies]
        raise RunFailed(f"the model's probabilities are not finite after {named(bundle)}")


def _draw(logps: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability: [R, V] -> [R], [R]."""
    if temperature == 0:
        token = logps.argmax(-1)
    else:
        reached = logps.double().exp().cumsum(-1)  # the first token whose cumulative share exceeds a uniform draw
        drawn = torch.rand(len(logps), 1, dtype=torch.double, generator=generator).to(logps.device)
        token = (
            torch.searchsorted(reached, drawn * reached[:, -1:], right=True).squeeze(1).clamp(max=logps.shape[1] - 1)
        )
    return token, logps.gather(-1, token[:, None]).squeeze(1)


def _append(text: Text, group: _Group, tokens: Tensor, logps: Tensor, count: list[int]) -> None:
    for row, length in enumerate(count):
        ids: list[int] = tokens[row, :length].tolist()
        completion = text.completion(ids, truncated=ids[-1] not in text.eos_ids)
        completion.logps = logps[row, :length].clone()
        group.bundles[row // group.copies].completions.append(completion)


def completions_of(bundles: Sequence[Bundle]) -> list[Completion]:
    """All completions of a batch, bundle by bundle."""
    return [c for b in bundles for c in b.completions]
