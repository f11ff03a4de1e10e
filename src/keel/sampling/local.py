"""Local decoding: each prompt is computed once, finished rows leave, and the next prompts enter.

Each sampled token's log-probability is kept, under exactly the distribution that it was drawn from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from keel.engine import processes
from keel.engine.forward import in_batches, packing_to, states_at_end
from keel.errors import InputError, KeelError, RunFailed
from keel.models import passes, trials
from keel.models.decoding import Decoding
from keel.models.heads import device_of_model, raw_logits, scaled
from keel.models.limits import positions, switches_passed, vocabulary_of
from keel.models.shapes import more_rows, rounded
from keel.records import Bundle, Completion
from keel.sampling.protocol import Filled, OnProgress, SamplingOptions
from keel.seeds import generator
from keel.text.tokenisation import Text, named

_BLOCK = 128
"""Vocabulary entries in a block; probabilities are summed per block before a token is drawn."""
_AT_ONCE = 16
"""Rows whose weights over the vocabulary are computed at once."""
_SUM = 1e-30, 1e30
"""Bounds of a sum of exponentials that lost nothing in fp32; beyond them, the largest logit is subtracted first."""
_READ = 8192
"""Tokens read at once when whole texts are read."""
ENTER = 8
"""Prompts enter when one slot in this many is free: a pass over a few tokens costs as much as over many."""


@dataclass(frozen=True, slots=True)
class LocalSampler:
    """A `Sampler` that is a model in this process: the same seed, purpose and bundles always give the same draw.

    Raises `InputError` if a prompt and its answer exceed the model's positions (`lengths.prompt_limit` says how long
    prompts may be), `RunFailed` if the model's probabilities are not finite.
    """

    model: nn.Module
    text: Text
    options: SamplingOptions
    seed: int = 0

    def fill(
        self,
        bundles: Sequence[Bundle],
        n: int,
        *purpose: object,
        have: int = 0,
        progress: OnProgress | None = None,
    ) -> Iterator[list[Filled]]:
        """Draw n completions of every bundle's prompt; all come in one list, in order.

        Each prompt has draws of its own, whatever else is drawn beside it, so several processes share the prompts out.
        """
        own = [replace(bundle, completions=[]) for bundle in bundles]
        _check_room(self.model, own, self.options.max_new_tokens)
        name, share = (*purpose, *((have,) if have else ())), processes.own_share(own)
        draws = {id(own[index]): generator(self.seed, *name, "prompt", index) for index in share}

        def draw() -> list[tuple[int, list[Completion]]]:
            self._draw([own[index] for index in share], n, draws, progress)
            return [(index, own[index].completions) for index in share]

        for found in processes.agreed(draw, KeelError, torch.OutOfMemoryError):
            for index, completions in found:
                own[index].completions = completions
        yield [(index, bundle.completions, "") for index, bundle in enumerate(own)]

    def _draw(
        self, bundles: list[Bundle], n: int, draws: dict[int, torch.Generator], progress: OnProgress | None
    ) -> None:
        """Fill bundles in this process."""
        max_new, max_rows = self.options.max_new_tokens, self.options.max_rows
        drawing = _Drawing(self.text, max_new, self.options.temperature, self.options.top_p, draws, progress)
        for kind, some in _kinds(self.model, bundles, max_new):
            order = sorted(some, key=lambda b: -len(b.prompt_ids))
            waiting = deque((bundle, copies) for bundle in order for copies in _shares(n, min(n, max_rows)))
            while waiting:
                kind(self.model, waiting, min(n, max_rows), max_rows, drawing).run()


def _kinds(model: nn.Module, bundles: list[Bundle], max_new: int) -> list[tuple[type[_Rows], list[Bundle]]]:
    """Group the prompts by the way in which their completions are written.

    Some answers can cross a length at which positions are read otherwise, or leave a layer's window. These are written
    with the family's own cache; those on different sides of such a length are never in one pass.
    """
    if not bundles:
        return []
    switches = trials.ways_of(model).switches
    found: dict[tuple[int, int, bool], list[Bundle]] = {}
    for bundle in bundles:
        length = len(bundle.prompt_ids)
        before, after = switches_passed(switches, length), switches_passed(switches, length + max_new)
        shares = before == after and packing_to(model, length + max_new)
        found.setdefault((before, after, shares), []).append(bundle)
    kinds: list[tuple[type[_Rows], list[Bundle]]] = []
    for (_, _, shares), some in sorted(found.items()):
        fast = _Shared if shares and trials.writes(model, "shared") else None
        kinds.append((fast or (_Separate if trials.writes(model, "cached") else _Anew), some))
    return kinds


def _shares(n: int, most: int) -> list[int]:
    """Split n completions into turns of at most `most`."""
    return [min(most, n - done) for done in range(0, n, most)]


def cache_bytes(model: Any, prompts: Sequence[Bundle], n: int, max_new_tokens: int, max_rows: int) -> float:
    """Return the most memory that drawing n completions takes beside the model: cache, weights over the vocabulary.

    The cache is measured on a few tokens: layers differ in ways that configs call by many names.
    """
    few, many = (passes.cached_bytes(model, tokens) for tokens in (4, 12))
    per_token = max(0.0, (many - few) / 8)
    slots = max(1, min(max_rows // min(n, max_rows), len(prompts)))
    rows = slots * min(n, max_rows)
    longest = max(len(b.prompt_ids) for b in prompts)
    places = slots * longest + rows * max_new_tokens
    return per_token * places + max(0.0, few - 4 * per_token) * rows + 4.0 * rows * vocabulary_of(model)


def _check_room(model: Any, bundles: list[Bundle], max_new_tokens: int) -> None:
    limit = positions(model)
    longest = max((len(b.prompt_ids) for b in bundles), default=0)
    if limit is not None and longest + max_new_tokens > limit:
        at = max(range(len(bundles)), key=lambda i: len(bundles[i].prompt_ids))
        raise InputError(
            f"prompt {at + 1} has {longest} tokens; with {max_new_tokens} new ones that exceeds the model's "
            f"{limit} positions; shorten it or lower --max-new-tokens"
        )


_Asked = deque[tuple[Bundle, int]]
"""Waiting prompts, each with the number of its completions wanted at once."""


@dataclass(slots=True)
class _Drawing:
    """Settings of a draw: how tokens are drawn, and when a completion ends."""

    text: Text
    max_new: int
    temperature: float
    top_p: float
    draws: dict[int, torch.Generator]
    """Generator of each bundle, by its id."""
    progress: OnProgress | None


class _Rows:
    """Completions that are being written, and the loop over their tokens; subclasses compute the hidden states.

    `cells` names each row: the tokens drawn for it are in tokens[cell], and `owners[cell]` is its bundle.
    """

    def __init__(self, model: Any, asked: _Asked, copies: int, max_rows: int, drawing: _Drawing) -> None:
        self.model, self.asked, self.copies, self.drawing = model, asked, copies, drawing
        self.device = device_of_model(model)
        self.slots = max(1, min(max_rows // copies, len(asked)))
        size = self.slots * copies
        self.owners: list[Bundle | None] = [None] * size
        self.finished: dict[int, Completion] = {}
        self.cells = torch.empty(0, dtype=torch.long, device=self.device)
        self.tokens = torch.zeros(size, drawing.max_new, dtype=torch.long, device=self.device)
        self.logps = torch.zeros(size, drawing.max_new, device=self.device)
        self.count = torch.zeros(size, dtype=torch.long, device=self.device)
        self.uniform = torch.zeros(size, drawing.max_new, dtype=torch.double, device=self.device)
        self.ended = torch.tensor(sorted(drawing.text.eos_ids), device=self.device)

    @torch.no_grad()
    def run(self) -> None:
        """Draw tokens until all rows have finished and no prompt that waits may enter."""
        hidden = self.enter()
        while hidden is not None and len(hidden):
            token = self._draw(hidden)
            finished = torch.isin(token, self.ended) | (self.count[self.cells] == self.drawing.max_new)
            if bool(finished.any()):
                self._collect(self.cells[finished])
                kept = survivors(~finished)
                self.cells, token = self.cells[kept], token[kept]
                self.keep(kept)
            hidden = self.step(token) if len(token) else hidden[:0]
            if self.asked and (new := self.enter()) is not None:
                hidden = torch.cat([hidden, new])

    def enter(self) -> Tensor | None:
        """Let prompts in if there is room; return the hidden states after them, one per new row: [new rows, D]."""
        raise NotImplementedError

    def step(self, token: Tensor) -> Tensor:
        """Return the hidden states after one more token of each row, [R, D]."""
        raise NotImplementedError

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, in this order."""
        raise NotImplementedError

    def texts(self) -> list[list[int]]:
        """Return prompt and tokens so far of every row."""
        found = []
        for cell, length in zip(self.cells.tolist(), self.count[self.cells].tolist(), strict=True):
            owner = self.owners[cell]
            assert owner is not None
            found.append(owner.prompt_ids + self.tokens[cell, :length].tolist())
        return found

    def seat(self, slot: int, bundle: Bundle, copies: int) -> list[int]:
        """Give a slot to a bundle, and return its cells."""
        cells = [slot * self.copies + k for k in range(copies)]
        for cell in cells:
            self.owners[cell] = bundle
        self.count[cells] = 0
        drawn = torch.rand(copies, self.drawing.max_new, dtype=torch.double, generator=self.drawing.draws[id(bundle)])
        self.uniform[cells] = drawn.to(self.device)
        return cells

    def _draw(self, hidden: Tensor) -> Tensor:
        drawing = self.drawing
        temperature = drawing.temperature or 1.0
        token, logp = draw_tokens(
            raw_logits(self.model, more_rows(hidden, rounded(len(hidden), next(self.model.parameters()))))[
                : len(hidden)
            ],
            lambda logits: scaled(self.model, logits, temperature),
            drawing.temperature,
            drawing.top_p,
            self.uniform[self.cells, self.count[self.cells]],
        )
        bad = torch.nonzero(logp.isnan()).flatten()
        if len(bad):  # one NaN makes its whole row NaN
            owner = self.owners[int(self.cells[bad[0]])]
            assert owner is not None
            raise RunFailed(f"the model's probabilities are not finite after {named(owner)}")
        at = self.count[self.cells]
        self.tokens[self.cells, at], self.logps[self.cells, at] = token, logp
        self.count[self.cells] = at + 1
        return token

    def _collect(self, cells: Tensor) -> None:
        """Give finished completions to their bundles."""
        text = self.drawing.text
        drawn = self.tokens[cells].tolist(), self.logps[cells].cpu(), self.count[cells].tolist()
        for cell, ids, logps, length in zip(cells.tolist(), *drawn, strict=True):
            owner = self.owners[cell]
            assert owner is not None
            completion = text.completion(owner, ids[:length], truncated=ids[length - 1] not in text.eos_ids)
            completion.logps = logps[:length].clone()
            self.finished[cell] = completion
        for slot in sorted({int(cell) // self.copies for cell in cells}):
            self._leave(range(slot * self.copies, (slot + 1) * self.copies))
        if self.drawing.progress is not None:
            self.drawing.progress(len(cells))

    def _leave(self, cells: range) -> None:
        """Free a slot once all of its rows have finished; completions keep the order of rows, not of finishing."""
        owners = [(cell, owner) for cell in cells if (owner := self.owners[cell]) is not None]
        if all(cell in self.finished for cell, _ in owners):
            for cell, owner in owners:
                owner.completions.append(self.finished.pop(cell))
                self.owners[cell] = None


class _Shared(_Rows):
    """Prompts that enter in one packed row, their keys and values kept once (`models/attention.py`)."""

    def __init__(self, model: Any, asked: _Asked, copies: int, max_rows: int, drawing: _Drawing) -> None:
        super().__init__(model, asked, copies, max_rows, drawing)
        longest = len(asked[0][0].prompt_ids)  # the longest come first
        self.decoding = Decoding(self.slots, copies, longest, drawing.max_new, self.device)

    def enter(self) -> Tensor | None:
        free = [s for s in range(self.slots) if not any(self.owners[s * self.copies : (s + 1) * self.copies])]
        if not self.asked or ENTER * len(free) < min(self.slots, ENTER * len(self.asked)):
            return None
        new = [self.asked.popleft() for _ in free[: len(self.asked)]]
        cells = [cell for slot, one in zip(free, new, strict=False) for cell in self.seat(slot, *one)]
        self.cells = torch.cat([self.cells, torch.tensor(cells, device=self.device)])
        lengths = [len(bundle.prompt_ids) for bundle, _ in new]
        seen, last = passes.prefill(self.model, [bundle.prompt_ids for bundle, _ in new])
        self.decoding.enter(
            torch.tensor(free[: len(new)], device=self.device), lengths, seen, self.cells[-len(cells) :]
        )
        return last.repeat_interleave(torch.tensor([copies for _, copies in new], device=self.device), 0)

    def step(self, token: Tensor) -> Tensor:
        return passes.decode(self.model, token, self.decoding)

    def keep(self, rows: Tensor) -> None:
        self.decoding.keep(rows)


class _Separate(_Rows):
    """Prompts of one length, all at once, with the architecture's own cache (sliding windows, recurrent states).

    When texts get longer than one of the model's switches, all that is cached was computed with other positions, and it
    is computed again.
    """

    cache: passes.OwnCache | None = None

    def enter(self) -> Tensor | None:
        if self.cache is not None:
            return None
        self.length = len(self.asked[0][0].prompt_ids)
        new: list[tuple[Bundle, int]] = []
        while self.asked and len(new) < self.slots and len(self.asked[0][0].prompt_ids) == self.length:
            new.append(self.asked.popleft())
        cells = [cell for slot, one in enumerate(new) for cell in self.seat(slot, *one)]
        self.cells = torch.tensor(cells, device=self.device)
        self.cache = passes.OwnCache(self.model, trials.ways_of(self.model).makes_cache)
        last = self.cache.start([bundle.prompt_ids for bundle, _ in new])
        owners = torch.tensor([i for i, (_, copies) in enumerate(new) for _ in range(copies)], device=self.device)
        self.cache.take(owners)
        return last[owners]

    def step(self, token: Tensor) -> Tensor:
        assert self.cache is not None
        self.length += 1
        if self.length - 1 in trials.ways_of(self.model).switches:
            return self.cache.start(self.texts())
        return self.cache.step(token)

    def keep(self, rows: Tensor) -> None:
        assert self.cache is not None
        self.cache.take(rows)


class _Anew(_Rows):
    """Any prompts; each text is read from its beginning for every token: slow, and right for every model."""

    def enter(self) -> Tensor | None:
        free = [s for s in range(self.slots) if not any(self.owners[s * self.copies : (s + 1) * self.copies])]
        if not self.asked or not free:
            return None
        new = [self.asked.popleft() for _ in free[: len(self.asked)]]
        cells = [cell for slot, one in zip(free, new, strict=False) for cell in self.seat(slot, *one)]
        self.cells = torch.cat([self.cells, torch.tensor(cells, device=self.device)])
        return self._read(self.texts()[-len(cells) :])

    def step(self, token: Tensor) -> Tensor:
        return self._read(self.texts())

    def keep(self, rows: Tensor) -> None:
        pass

    def _read(self, texts: list[list[int]]) -> Tensor:
        """Return the states after these texts, some texts at a time: [R, D]."""
        bundles = [Bundle(text[:-1], [Completion(text[-1:])]) for text in texts]
        return torch.cat(in_batches(states_at_end, self.model, bundles, _READ))


def survivors(going: Tensor) -> Tensor:
    """Return the rows that go on: [R] -> [survivors]. Rows from the end take the places of finished ones."""
    rows = torch.nonzero(going).squeeze(1)
    order = torch.arange(len(rows), device=going.device)
    order[~going[: len(rows)]] = rows[rows >= len(rows)]
    return order


# --- drawing --------------------------------------------------------------------------------------


def draw_tokens(
    raw: Tensor, scale: Callable[[Tensor], Tensor], temperature: float, top_p: float, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw one token per row, and return it with its log-probability: raw logits [R, V] -> [R], [R].

    `uniform` [R] are numbers between 0 and 1, in double precision; each decides which token is drawn. `scale` makes
    fp32 logits of any part of the raw ones. Probabilities are summed in blocks; a block is drawn, then a token in it. A
    running sum over the whole vocabulary is slower and, in fp32, less exact.
    """
    words = raw.shape[1]
    if top_p < 1:
        raw, scale = among_likeliest(scale(raw), top_p), torch.Tensor.float
    sums = block_sums(raw, scale)
    total = sums.sum(-1)
    if not bool(((total > _SUM[0]) & (total < _SUM[1])).all()):
        raw = scale(raw)
        raw, scale = raw - raw.amax(-1, keepdim=True), torch.Tensor.float
        sums = block_sums(raw, scale)
        total = sums.sum(-1)
    if temperature == 0:
        token = raw.argmax(-1)
    else:
        drawn = uniform * total
        block, before = _first_beyond(sums, drawn)
        places = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=raw.device)
        weights = scale(raw.gather(1, places.clamp(max=words - 1))).exp() * (places < words)
        word, _ = _first_beyond(weights.double(), drawn - before)
        token = (block * _BLOCK + word).clamp(max=words - 1)  # a row of NaN gives a place that does not exist
    return token, (scale(raw.gather(1, token[:, None])).squeeze(1).double() - total.log()).float()


def block_sums(raw: Tensor, scale: Callable[[Tensor], Tensor]) -> Tensor:
    """Return sums of exponentials over blocks of `_BLOCK` entries, the last shorter: [R, V] -> double [R, blocks].

    Rows are taken a few at a time on a CPU, so that what is scaled and summed is still in its cache.
    """
    words = raw.shape[1]
    whole = words - words % _BLOCK
    parts = []
    for some in raw.split(_AT_ONCE if raw.device.type == "cpu" else 32 * _AT_ONCE):
        weights = scale(some).exp()
        sums = weights[:, :whole].unflatten(1, (-1, _BLOCK)).sum(-1)
        parts.append(torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], 1) if whole < words else sums)
    return torch.cat(parts).double()


def _first_beyond(weights: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first place whose running sum exceeds `drawn`, and the sum before it: [R, N], [R] -> [R], [R].

    If rounding leaves none, it is the last place with any weight.
    """
    reached = weights.cumsum(-1)
    place = torch.searchsorted(reached, drawn[:, None], right=True)
    last = weights.shape[1] - 1 - (weights.flip(-1) > 0).int().argmax(-1, keepdim=True)
    place = torch.minimum(place, last)
    before = reached.gather(-1, place) - weights.gather(-1, place)
    return place.squeeze(1), before.squeeze(1)


def among_likeliest(logits: Tensor, top_p: float) -> Tensor:
    """Return the logits, with -inf outside the smallest set of tokens whose probability reaches `top_p`."""
    ordered, words = torch.softmax(logits, -1).sort(-1, descending=True)
    enough = ordered.cumsum(-1) - ordered >= top_p
    return logits.masked_fill(enough.scatter(-1, words, enough), float("-inf"))
