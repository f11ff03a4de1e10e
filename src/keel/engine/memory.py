"""Memory of a run, said before it starts; checkpointing if the run fits only with it; or a refusal.

Training adds to the loaded models: gradients, Adam's two moments, an fp32 copy of weights that are not fp32, and what a
pass keeps for its backward pass. The last is measured on a few tokens and scales with their number, since neither
attention nor the head keeps anything larger. On top comes what a layer's backward pass works with, about four and a
half times what that layer keeps (measured on fp32 and bf16, with and without checkpointing).
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from keel.engine.adamw import AT_ONCE
from keel.engine.forward import computed_tokens, pass_for, width_of
from keel.errors import InputError
from keel.models import passes
from keel.models.heads import device_of_model, trunk
from keel.models.limits import vocabulary_of
from keel.models.roles import Role
from keel.records import Bundle, Completion
from keel.says import say

ModelPass = Callable[[nn.Module, list[Bundle]], Tensor]
"""Pass that training runs on a model: `token_logps`, `scalars_at_end` …"""
WORKING = 4.5
"""Working memory of a layer's backward pass, in units of what the layer keeps for it."""
SPARE = 0.25e9
"""Bytes for everything that is not estimated: blocks of logits, attention scores, the allocator's gaps."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that training adds to the loaded models."""

    state: float
    """Gradients, moments and fp32 copies, independent of the batch."""
    per_token: float
    """Kept for the backward pass and worked with in it, per computed token."""
    tokens: int
    """Computed tokens of the largest pass."""
    more: float = 0.0
    """Bytes that the method adds."""

    @property
    def total(self) -> float:
        return self.state + self.per_token * self.tokens + self.more + SPARE


def require(trained: Sequence[tuple[Role, ModelPass]], tokens: int, more: float = 0.0) -> None:
    """Say what training these models will take; turn checkpointing on, or refuse, if that is more than is free.

    `tokens` are those of the largest pass (`largest_pass`); passes of several models take turns.
    """
    device = device_of_model(trained[0][0].model)
    free = free_bytes(device)
    need = needed(trained, tokens, more)
    told = f"memory: training takes about {need.total / 1e9:.1f} GB beside the models, {free / 1e9:.1f} GB are free"
    if need.total <= free:
        say(told)
        return
    working = [_working(role, passing) for role, passing in trained]
    for role, _ in trained:
        checkpoint_layers(role.model)
    need = needed(trained, tokens, more, working)
    if need.total <= free:
        say(f"{told}; layers are computed again in the backward pass: about {need.total / 1e9:.1f} GB")
        return
    left = free - need.state - need.more - SPARE
    if left < need.per_token:
        remedy = "use --precision bf16, a smaller model or a larger machine"
    else:
        remedy = f"give --micro-tokens {int(left / need.per_token)} or less, and cut long rows with --max-length"
    raise InputError(
        f"memory: training takes about {need.total / 1e9:.1f} GB beside the models, even with layers computed twice; "
        f"{free / 1e9:.1f} GB are free; {remedy}"
    )


def needed(
    trained: Sequence[tuple[Role, ModelPass]],
    tokens: int,
    more: float = 0.0,
    working: Sequence[float] | None = None,
) -> Need:
    """Return what training takes beside the models' weights.

    `working`: bytes per token that each model's backward pass works with, if they can no longer be measured on its
    layers.
    """
    state = 0.0
    for role, _ in trained:
        weights = role.parameters().values()
        largest = max(p.numel() * p.element_size() for p in weights)  # its gradient comes in two parts, added up
        low = [p.numel() for p in weights if p.dtype != torch.float32]
        state += sum(p.numel() * (p.element_size() + 8) for p in weights) + largest
        state += sum(low) * 4 + (4 * max(min(AT_ONCE, sum(low)), max(low)) if low else 0)
    working = working or [_working(role, passing) for role, passing in trained]
    kept = [kept_per_token(role, passing) for role, passing in trained]
    return Need(state, max(k + w for k, w in zip(kept, working, strict=True)), tokens, more)


def _working(role: Role, passing: ModelPass) -> float:
    return WORKING * kept_per_token(role, passing) / max(1, len(_layers(role.model)))


def kept_per_token(role: Role, passing: ModelPass) -> float:
    """Return the bytes per token that a pass keeps until its backward pass, measured on two small passes."""
    with role.active() as model:
        few, many = (_kept(model, passing, scale) for scale in (1, 3))
    return (many[0] - few[0]) / (many[1] - few[1])


def _kept(model: nn.Module, passing: ModelPass, scale: int) -> tuple[int, int]:
    """Return the bytes kept by a pass over bundles of one shape, and its tokens."""
    bundles = [_some(first, vocabulary_of(model)) for first in range(scale)]
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return x.detach()  # attached, it would hold its graph, and the graph the model, for ever

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        passing(model, bundles)
    return sum(seen.values()), computed_tokens(model, bundles)


def _some(first: int, vocabulary: int) -> Bundle:
    """Return a bundle of two different completions of a prompt that begins with token `first`, eight tokens each."""
    ids = [(first + i) % vocabulary for i in range(8)]
    return Bundle(ids, [Completion(ids), Completion(ids[::-1])])


def largest_pass(model: nn.Module, bundles: Sequence[Bundle], batch_size: int, micro_tokens: int) -> int:
    """Return the computed tokens of the largest pass that any batch of these bundles can need.

    The bundles are taken to have nothing in common. A pass is one bundle, or keeps to `micro_tokens`.
    """
    alone = sorted(computed_tokens(model, [b]) for b in bundles)[-batch_size:]
    padded = pass_for(model, max(map(width_of, bundles))) is passes.rows
    return max(alone[-1], min(micro_tokens, len(alone) * alone[-1] if padded else sum(alone)))


# --- checkpointing --------------------------------------------------------------------------------


def checkpoint_layers(model: Any) -> None:
    """Keep only each layer's input for the backward pass, and compute the layer again there.

    Transformers' own switch works only in training mode, which Keel's models are never in.
    """
    for layer in _layers(model):
        if not isinstance(layer.forward, partial):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _layers(model: Any) -> list[Any]:
    """Return the blocks of the backbone: its longest list of modules."""
    lists = [list(m) for m in trunk(model).modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=[])


# --- free memory ----------------------------------------------------------------------------------


def free_bytes(device: torch.device) -> float:
    """Return the memory that can still be taken: the GPU's, or the system's within this process's limits."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    limits = [_available(), _left_in_group(), _left_for_process()]
    return min(x for x in limits if x is not None)


def _available() -> float:
    """Return what Linux calls available; on other systems, all of the memory."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        import os

        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if hasattr(os, "sysconf") else 1e12


def _left_in_group() -> float | None:
    """Return what is left up to a container's limit, or None; its cache of files counts as free."""
    for folder, limit, usage in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, used = (int(Path(folder, name).read_text()) for name in (limit, usage))
            stat = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
            return float(most - used + int(stat.get("inactive_file", stat.get("total_inactive_file", 0))))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None


def _left_for_process() -> float | None:
    """Return what is left up to `ulimit -v`; None if it is not set."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY or sys.platform != "linux":
        return None
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return float(most - pages * resource.getpagesize())
