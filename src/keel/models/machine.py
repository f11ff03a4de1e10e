"""What the machine can do: which device, which type of number, and how its memory is kept."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch

from keel.config import Machine
from keel.errors import InputError

WIDE = 512
"""From this hidden size on, matrix products are most of the work, and bf16 pays where the processor multiplies it."""


def device_of(machine: Machine) -> torch.device:
    """The device asked for, or a GPU where there is one."""
    if machine.device != "auto":
        try:
            device = torch.device(machine.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {machine.device} is not available here; use cpu or auto") from error
        return device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_of(machine: Machine, hidden_size: int = 0) -> torch.dtype:
    """Weights' type: as asked, else bf16 on a GPU, and on a processor that multiplies bf16 for a wide enough model.

    On a processor without such instructions, and for small models, whose time goes elsewhere, bf16 is slower than fp32.
    """
    if machine.precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[machine.precision]
    if device_of(machine).type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if hidden_size >= WIDE and multiplies_bf16() else torch.float32


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for products of bf16 numbers."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def described(model: Any) -> str:
    """Where and in what a model computes, for the reader."""
    weight = next(model.parameters())
    if weight.dtype == torch.bfloat16:
        return f"computing in bf16 on {weight.device.type}, updates in fp32 (--precision fp32 for all in fp32)"
    return f"computing in fp32 on {weight.device.type}"


@cache
def prepare() -> None:
    """Once per process, before the first model: the fast matrix product, and memory that is kept for the next step."""
    use_fast_matmul()
    keep_freed_memory()


def use_fast_matmul() -> None:
    """Take the faster fp32 matrix product of this processor, if it is still fp32.

    `medium` doubles the rate on current CPUs at 4e-7 relative error, but permits bf16 inside on some: a product with
    the identity must return a value that bf16 cannot hold.
    """
    torch.set_float32_matmul_precision("medium")
    x = torch.full((64, 64), 1 + 2**-12)
    if not torch.equal(x @ torch.eye(64), x):
        torch.set_float32_matmul_precision("highest")


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


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Names and numbers of glibc's malloc.h."""
