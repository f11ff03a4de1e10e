"""Few shapes of matrix products on a CPU: oneDNN builds its kernels for each shape anew.

A kernel takes up to milliseconds to build and a megabyte to keep, and every batch has another number of tokens. So
numbers of rows are rounded up, which leaves eight from each power of two to the next, for 4 % more rows on average
and 12 % at most. Products inside of attention, as small as the texts and as many as the heads, are BLAS's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad


def rounded(rows: int, like: Tensor) -> int:
    """Return a number of rows to compute in place of `rows`, at least as many; `like` is one of the model's weights."""
    if like.device.type != "cpu" or (like.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"):
        return rows
    step = 1 << max(0, (rows - 1).bit_length() - 4)
    return -(-rows // step) * step


def more_rows(x: Tensor, rows: int) -> Tensor:
    """Append rows of zeros until there are `rows`: [R, …] -> [rows, …]."""
    return pad(x, (*(0, 0) * (x.dim() - 1), 0, rows - len(x))) if rows > len(x) else x


@contextmanager
def without_kernels(like: Tensor) -> Iterator[None]:
    """Compute fp32 products on the CPU with the BLAS library meanwhile: 2 µs a call in place of oneDNN's 13."""
    before = torch.get_float32_matmul_precision()
    if like.device.type != "cpu" or before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
