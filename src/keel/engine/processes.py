"""Several processes on one run, as `torchrun` or `accelerate launch` start them; alone, nothing here does anything.

Every process holds the same batch in the same order, computes its share of it, and adds up gradients and sums with the
others, so that each has what one process would have. The first one writes. All must make the same calls in the same
order: a process that stops ends the others at their next call, or at the latest after `DEADLINE`.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from keel.engine.forward import MicroBatch, micro_batches, tokens_of
from keel.errors import InputError, KeelError, RunFailed, on_one_line
from keel.records import Bundle

T = TypeVar("T")
DEADLINE = timedelta(minutes=10)
"""Time for which a process waits for the others, if none of them has ended."""
_AT_ONCE = 1 << 24
"""Numbers that are added up over the processes at once, in fp32."""


# --- which processes there are --------------------------------------------------------------------


def join_others(device: str) -> None:
    """Join the processes that a launcher has started, as its environment variables say; once per process."""
    if distributed.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    on_gpu = torch.cuda.is_available() and not device.startswith("cpu")
    if on_gpu:
        place, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if place >= there:
            raise InputError(f"process {place + 1} of this machine, which has {there} GPUs: start no more than that")
        torch.cuda.set_device(place)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=DEADLINE)
    atexit.register(_leave)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def world_size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def own_rank() -> int:
    """Return this process's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def require_enough(rows: int) -> None:
    """Refuse more processes than there are rows to share out."""
    if rows < world_size():
        raise InputError(f"{world_size()} processes, but rows to train on: {rows}; start no more processes than rows")


# --- calls that all make --------------------------------------------------------------------------


def from_all(mine: T) -> list[T]:
    """Return every process's object, in the order of their numbers."""
    if world_size() == 1:
        return [mine]
    found: list[Any] = [None] * world_size()
    with _exchanging():
        distributed.all_gather_object(found, mine)
    return found


def agreed(compute: Callable[[], T], *failures: type[Exception]) -> list[T]:
    """Return what every process computes; if one fails in one of these ways, raise its error in all of them."""
    mine: tuple[T | None, Exception | None]
    try:
        mine = compute(), None
    except failures as error:
        mine = None, error
    everywhere = from_all(mine)
    for _, fault in everywhere:
        if fault is not None:
            raise fault
    return [made for made, _ in everywhere]  # type: ignore[misc]


def from_first(make: Callable[[], T]) -> T:
    """Return what the first process makes; only that one calls `make`. An error there is raised in all of them."""
    if world_size() == 1:
        return make()
    told: list[Any] = [None]
    if own_rank() == 0:
        try:
            told = [(make(), None)]
        except KeelError as error:
            told = [(None, error)]
    with _exchanging():
        distributed.broadcast_object_list(told)
    made, fault = told[0]
    if fault is not None:
        raise fault
    return made  # type: ignore[no-any-return]


@torch.no_grad()
def add_up(tensors: Iterable[Tensor]) -> None:
    """Add tensors up over the processes, in place; sums are made in fp32."""
    if world_size() == 1:
        return
    batch: list[Tensor] = []
    for tensor in tensors:
        if batch and (sum(t.numel() for t in batch) + tensor.numel() > _AT_ONCE or tensor.device != batch[0].device):
            _add_up(batch)
            batch = []
        batch.append(tensor)
    if batch:
        _add_up(batch)


def _add_up(tensors: list[Tensor]) -> None:
    flat = torch.cat([t.flatten().float() for t in tensors])
    with _exchanging():
        distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


@contextmanager
def _exchanging() -> Iterator[None]:
    """Turn a lost connection into an error that says what happened."""
    try:
        yield
    except RuntimeError as error:
        raise RunFailed(
            f"process {own_rank()} of {world_size()} lost the others ({on_one_line(error)[:120]}): one of them ended "
            "or did not answer; see its last lines, then go on with --resume"
        ) from error


# --- shares ---------------------------------------------------------------------------------------


def shares_of(bundles: Sequence[Bundle]) -> list[list[int]]:
    """Return the indices of each process's share: alike in tokens, a prompt's bundles together, in order."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, bundle in enumerate(bundles):
        groups.setdefault(bundle.key, []).append(i)
    if len(groups) < world_size():  # few prompts: sharing the work matters more
        groups = {(i,): [i] for i in range(len(bundles))}
    tokens = [tokens_of(bundle) for bundle in bundles]
    loads, shares = [0] * world_size(), [[] for _ in range(world_size())]  # type: ignore[var-annotated]
    for group in sorted(groups.values(), key=lambda g: (-sum(tokens[i] for i in g), g)):
        least = min(range(world_size()), key=lambda k: (loads[k], k))
        shares[least] += group
        loads[least] += sum(tokens[i] for i in group)
    return [sorted(share) for share in shares]


def own_share(bundles: Sequence[Bundle]) -> list[int]:
    """Return the indices of this process's share."""
    return shares_of(bundles)[own_rank()] if world_size() > 1 else list(range(len(bundles)))


def own_micro_batches(model: nn.Module, bundles: Sequence[Bundle], micro_tokens: int) -> Iterator[MicroBatch]:
    """Cut this process's share of a batch into passes; indices are those in the whole batch."""
    own = own_share(bundles)
    for micro in micro_batches(model, [bundles[i] for i in own], micro_tokens):
        yield MicroBatch([own[i] for i in micro.indices], micro.bundles)


def divided(bundles: Sequence[Bundle], compute: Callable[[list[Bundle]], list[Tensor]]) -> list[Tensor]:
    """Return `compute(bundles)`, a tensor per bundle, of which each process has computed its share."""
    if world_size() == 1:
        return compute(list(bundles))
    own = own_share(bundles)
    found = compute([bundles[i] for i in own]) if own else []
    everything: dict[int, Tensor] = {}
    kind = "cpu"
    for some, theirs in from_all(
        (dict(zip(own, (x.cpu() for x in found), strict=True)), [x.device.type for x in found])
    ):
        everything |= some
        kind = theirs[0] if theirs else kind
    return [everything[i].to(kind) for i in range(len(bundles))]
