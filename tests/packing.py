"""The mask of a packed row, drawn by hand."""

from __future__ import annotations

import torch


def visible(bundles: list[tuple[int, list[int]]]) -> torch.Tensor:
    """Which token of the row sees which: its own prompt up to itself, its own completion up to itself."""
    total = sum(p + sum(cs) for p, cs in bundles)
    seen = torch.zeros(total, total, dtype=torch.bool)
    at = 0
    for prompt, completions in bundles:
        begin = at
        for i in range(prompt):
            seen[begin + i, begin : begin + i + 1] = True
        at += prompt
        for length in completions:
            for i in range(length):
                seen[at + i, begin : begin + prompt] = True
                seen[at + i, at : at + i + 1] = True
            at += length
    return seen
