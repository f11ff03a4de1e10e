"""Which device, which type of number, and what is told of it."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
import torch

from keel.config import Machine
from keel.errors import InputError
from keel.models import checkpoints, machine

CPU = Machine(device="cpu", precision="fp32")


def test_devices():
    assert machine.device_of(CPU) == torch.device("cpu")
    for device in ("cuda:99", "tpu", "nonsense"):
        with pytest.raises(InputError, match="--device"):
            machine.device_of(Machine(device=device))


@pytest.mark.parametrize("able", [True, False])
def test_precision(monkeypatch, able):
    monkeypatch.setattr(machine, "multiplies_bf16", lambda: able)
    auto = Machine(device="cpu")
    assert machine.dtype_of(auto, 64) == torch.float32
    assert machine.dtype_of(auto, machine.WIDE) == (torch.bfloat16 if able else torch.float32)
    assert machine.dtype_of(CPU, machine.WIDE) == torch.float32
    assert machine.dtype_of(Machine(device="cpu", precision="bf16"), 64) == torch.bfloat16


def test_a_wide_model_is_loaded_in_bf16_where_the_processor_can_and_says_so(make_model, monkeypatch):
    monkeypatch.setattr(machine, "multiplies_bf16", lambda: True)
    monkeypatch.setattr(machine, "WIDE", 32)
    folder, auto = str(make_model("llama")), Machine(device="cpu")
    assert "bf16 on cpu" in machine.described(checkpoints.load_policy(folder, auto))
    assert "fp32 on cpu" in machine.described(checkpoints.load_policy(folder, CPU))
    monkeypatch.setattr(machine, "multiplies_bf16", lambda: False)
    assert "fp32 on cpu" in machine.described(checkpoints.load_policy(folder, auto))


def test_the_matrix_product_is_fp32_whatever_the_processor_permits():
    machine.choose_product(256)
    torch.manual_seed(0)
    a, b = torch.randn(256, 256), torch.randn(256, 256)
    exact = a.double() @ b.double()
    assert float(((a @ b).double() - exact).norm() / exact.norm()) < 1e-5  # bf16: 3e-3


FAULTS = """
import resource, sys, torch
from keel.models import machine
if sys.argv[1] == "kept":
    machine.keep_freed_memory()
step = lambda: [torch.ones(1 << 24) for _ in range(3)]
for _ in range(15):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc can be told")
def test_freed_memory_is_used_again():
    """Pages that the system has to hand out anew: 5 x 3 x 64 MiB are 245,760 of them."""
    counts = {
        mode: int(subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, check=True).stdout)
        for mode in ("kept", "given back")
    }
    assert counts["kept"] < 0.05 * counts["given back"]


GIVEN = """
import sys, torch
from keel.models import machine
machine.keep_freed_memory()
held = [torch.ones(1 << 20) for _ in range(100)]
last = torch.ones(8)
del held
if sys.argv[1] == "given back":
    machine.give_back_memory()
print(int(open("/proc/self/statm").read().split()[1]))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc can be told")
def test_freed_memory_is_given_back_when_asked():
    """400 MB that were kept for the next step, in pages."""
    pages = {
        mode: int(subprocess.run([sys.executable, "-c", GIVEN, mode], capture_output=True, check=True).stdout)
        for mode in ("kept", "given back")
    }
    assert pages["given back"] < pages["kept"] - 80_000
