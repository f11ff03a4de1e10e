"""Attention during generation, one token at a time: each prompt's keys and values are kept once."""

from __future__ import annotations

import torch
from torch import Tensor

from keel.models.shapes import more_rows

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Decoding:
    """Keys and values of completions that are being generated: each prompt's once, and those of each row's own tokens.

    Each prompt has a slot, [slots, key heads, longest, width]. Rows are the completions that are being generated, kept
    without gaps, [rows, room, key heads, width], so that a token's are written as one piece. A row's cell,
    slot * copies + copy, identifies it for good.
    """

    def __init__(self, slots: int, copies: int, longest: int, room: int, device: torch.device) -> None:
        self.copies = copies
        self.prompts = torch.zeros(slots, dtype=torch.long, device=device)
        """Length of each slot's prompt; 0 if there is none."""
        self.cells = torch.empty(0, dtype=torch.long, device=device)
        """Cell of each row."""
        self.written = torch.empty(0, dtype=torch.long, device=device)
        """Number of tokens of each row whose keys and values are stored."""
        self._longest, self._room = longest, room
        self._layers: dict[int, tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = {}
        self._masks: tuple[Tensor | None, Tensor | None] = None, None
        self._widths = 0, 0
        self._full, self._abreast = False, False

    def enter(self, slots: Tensor, lengths: list[int], seen: dict[int, tuple[Tensor, Tensor]], cells: Tensor) -> None:
        """Put prompts into `slots` and add `cells` as rows; `seen` holds the prompts' keys and values in sequence."""
        self.prompts[slots] = torch.tensor(lengths, device=slots.device)
        for layer, (key, value) in seen.items():
            prompts, _ = self._of(layer, key)
            for stored, new in zip(prompts, (key, value), strict=True):
                for slot, part in zip(slots.tolist(), new[0, :, : sum(lengths)].split(lengths, 1), strict=True):
                    stored[slot, :, : part.shape[1]] = part
        self.cells = torch.cat([self.cells, cells])
        self.written = torch.cat([self.written, torch.zeros_like(cells)])

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, in this order; most stay in place if they come from `local.survivors`."""
        moved = torch.nonzero(rows != torch.arange(len(rows), device=rows.device)).squeeze(1)
        most = int(self.written.max()) if len(self.written) else 0
        for _, own in self._layers.values():
            for stored in own:
                stored[moved, :most] = stored[rows[moved], :most]
        self.cells, self.written = self.cells[rows], self.written[rows]
        occupied = torch.zeros_like(self.prompts)
        occupied[self.cells // self.copies] = 1
        self.prompts *= occupied

    def begin_step(self, dtype: torch.dtype) -> Tensor:
        """Prepare a pass over the rows' newest tokens; return their positions, [R]."""
        width, own = int(self.prompts.max()), int(self.written.max()) + 1
        self._widths = width, own
        self._masks = _hide(self.prompts, width, dtype), _hide(self.written + 1, own, dtype)
        every = torch.arange(len(self.prompts) * self.copies, device=self.cells.device)
        self._full = torch.equal(self.cells, every)  # then attention to prompts needs no reordering
        self._abreast = self._masks[1] is None  # then all rows write to the same place
        return self.prompts[self.cells // self.copies] + self.written

    def end_step(self) -> None:
        """Count the newest tokens as stored, after the pass."""
        self.written = self.written + 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend from each row's newest token to its prompt and its own tokens: [R, heads, 1, width] -> the same.

        Rows that `shapes.rounded` added get zeros.
        """
        given, rows = len(query), len(self.cells)
        query, key, value = query[:rows], key[:rows], value[:rows]
        _, heads, _, width = query.shape
        prompts, own = self._of(layer, key)
        for stored, new in zip(own, (key, value), strict=True):
            if self._abreast:
                stored[:rows, self._widths[1] - 1] = new[:, :, 0]
            else:
                stored[torch.arange(rows, device=query.device), self.written] = new[:, :, 0]
        kinds = key.shape[1]
        query = query.view(rows, kinds, heads // kinds, width)
        keys, values = (x[:rows, : self._widths[1]].transpose(1, 2) for x in own)
        over_own = _attention(query, keys, values, self._masks[1], scale)
        keys, values = (x[:, :, : self._widths[0]] for x in prompts)
        over_prompt = self._over_prompts(query, keys, values, scale)
        return more_rows(_joined(over_prompt, over_own).reshape(rows, heads, 1, width), given)

    def _over_prompts(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Attend to prompts, all rows of a slot at once.

        [R, key heads, group, width] -> the same, and the normaliser's logarithm [R, key heads, group].
        """
        _, kinds, group, width = query.shape
        slots = len(self.prompts)
        if self._full:
            grid = query
        else:
            grid = query.new_zeros(slots * self.copies, kinds, group, width)
            grid[self.cells] = query
        asked = grid.view(slots, self.copies, kinds, group, width).permute(0, 2, 3, 1, 4).flatten(2, 3)
        out, normaliser = _attention(asked, key, value, self._masks[0], scale)
        out = out.view(slots, kinds, group, self.copies, width).permute(0, 3, 1, 2, 4).flatten(0, 1)
        normaliser = normaliser.view(slots, kinds, group, self.copies).permute(0, 3, 1, 2).flatten(0, 1)
        return (out, normaliser) if self._full else (out[self.cells], normaliser[self.cells])

    def _of(self, layer: int, like: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return a layer's storage, made on first use: keys and values of the prompts, and of the rows."""
        if layer not in self._layers:
            _, kinds, _, width = like.shape
            slots = len(self.prompts)
            prompts, own = (
                (like.new_zeros(shape), like.new_zeros(shape))
                for shape in (
                    (slots, kinds, self._longest, width),
                    (slots * self.copies, self._room, kinds, width),
                )
            )
            self._layers[layer] = prompts, own
        return self._layers[layer]


def _hide(lengths: Tensor, width: int, dtype: torch.dtype) -> Tensor | None:
    """Return a mask for scores over `width` keys, the first `lengths` [B] shown: [B, 1, 1, width]; None if all are."""
    if bool((lengths == width).all()):
        return None
    hidden = torch.arange(width, device=lengths.device) >= lengths[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=lengths.device)
    return mask.masked_fill(hidden, torch.finfo(dtype).min)[:, None, None, :]


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Return attention [B, heads, T, width] and the logarithm of its normaliser [B, heads, T]."""
    if query.device.type == "cpu":
        out, normaliser = _flash(query, key, value, attn_mask=mask, scale=scale)
        return out, normaliser
    return _by_softmax(query, key, value, mask, scale)


def _by_softmax(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Compute `_attention` without a kernel that returns the normaliser."""
    scores = scale * (query @ key.transpose(-1, -2)).float()
    scores = scores if mask is None else scores + mask
    normaliser = torch.logsumexp(scores, -1)
    return (scores - normaliser[..., None]).exp().to(value.dtype) @ value, normaliser


def _joined(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Combine attention over two sets of keys, each given with the logarithm of its normaliser."""
    share = torch.sigmoid(a[1].float() - b[1].float())[..., None].to(a[0].dtype)
    return torch.lerp(b[0], a[0], share)
