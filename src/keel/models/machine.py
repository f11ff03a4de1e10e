"""The machine: its device, the type of number it computes in, its library of matrix products, its memory."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from functools import cache
from typing import Any

import torch
from torch import Tensor

from keel.config import Machine
from keel.errors import InputError

WIDE = 512
"""Hidden size from which matrix products are most of the work, so that bf16 pays if the processor multiplies it."""


def device_of(machine: Machine) -> torch.device:
    """Return the device asked for; for `auto`, a GPU if there is one."""
    if machine.device != "auto":
        try:
            device = torch.device(machine.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {machine.device} is not available here; use cpu or auto") from error
        return device
    if not torch.cuda.is_available():
        return torch.device("cpu")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if several else 0)


def dtype_of(machine: Machine, hidden_size: int = 0) -> torch.dtype:
    """Return the weights' type: as asked, else bf16 on a GPU, or if the model is WIDE and the CPU multiplies bf16.

    On other processors, and for small models, which spend their time elsewhere, bf16 is slower than fp32.
    """
    if machine.precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[machine.precision]
    if device_of(machine).type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if hidden_size >= WIDE and multiplies_bf16() else torch.float32


def multiplies_bf16() -> bool:
    """Say whether the processor has instructions for products of bf16 numbers."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def described(model: Any) -> str:
    """Describe the device and the precision of a model, for the reader."""
    weight = next(model.parameters())
    if weight.dtype == torch.bfloat16:
        return f"computing in bf16 on {weight.device.type}, updates in fp32 (--precision fp32 for all in fp32)"
    return f"computing in fp32 on {weight.device.type}"


@cache
def prepare() -> None:
    """Keep freed memory for the next step; once per process, before the first model."""
    keep_freed_memory()


NARROWEST = 128
"""Below this hidden size no product is worth oneDNN's overhead of 10 µs a call."""
GAIN = 1.2
"""oneDNN is taken if its warm product is faster than the BLAS library's by this factor."""


def choose_product(width: int) -> None:
    """Choose the library of fp32 matrix products on the CPU, by measuring both on a product of this hidden size.

    `highest` is the BLAS library torch was built with (MKL). `medium` permits oneDNN, which builds a kernel for every
    shape (milliseconds and a megabyte each, see `shapes`), and then multiplies up to twice as fast if the processor
    has AVX-512. It also permits bf16 inside: a product with the identity must return a value that bf16 cannot hold.
    Once a model has chosen oneDNN, the process stays with it.
    """
    if width < NARROWEST or torch.get_float32_matmul_precision() != "highest":
        return
    rows = max(32, min(512, (1 << 26) // width**2))
    a, b = torch.full((rows, width), 1 + 2**-12), torch.eye(width, 2 * width)
    plain = _seconds(a, b)
    torch.set_float32_matmul_precision("medium")
    if not torch.equal((a @ b)[:, :width], a) or GAIN * _seconds(a, b) > plain:
        torch.set_float32_matmul_precision("highest")


def _seconds(a: Tensor, b: Tensor) -> float:
    """Return the fastest of some products, the first of which warms up."""
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        torch.mm(a, b)
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def keep_freed_memory() -> None:
    """Tell glibc to keep large blocks that are freed: every step asks for the same ones again.

    By default each comes from the system anew, zeroed page by page: up to a fifth of a step's time. Other C libraries
    have no such function, and are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 1 << 26)):
        mallopt(ctypes.c_int(option), ctypes.c_int(value))


def give_back_memory() -> None:
    """Return freed memory to the system: for a process that goes on to other work, or waits."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Options of `mallopt`, with their numbers in glibc's malloc.h."""
