"""Rehearsal of a training step before any weight is loaded: on fake tensors, which have shapes and no memory.

A model is outlined from its config.json. Every operation of the forward and backward passes then runs on torch's fake
tensors, in the code that will train. Live storages are counted, and their most is what the step takes beside the
weights. Fake tensors hold no numbers: the code's questions about numbers are answered with yes, as if sums were in
range and ways of computing agreed. Left out: kernels' own buffers and the allocator's gaps.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from keel.config import Machine
from keel.engine.forward import computed_tokens, micro_batches, pass_for, width_of
from keel.models import adapters, checkpoints, folders, heads, limits, passes, trials
from keel.models.attempt import attempt
from keel.models.fused import fuse
from keel.models.machine import choose_product, dtype_of
from keel.models.roles import Role
from keel.records import Bundle, Completion
from keel.says import quiet_library

_FAKE = FakeTensorMode(allow_non_fake_inputs=True)
_ASKED = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.is_nonzero.default}
"""Operations that ask for a number."""


class Live(TorchDispatchMode):
    """Count of the bytes in live storages that were made under it; with `answers`, numbers are not asked for."""

    def __init__(self, answers: bool = False) -> None:
        super().__init__()
        self._answers = answers
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._answers and func in _ASKED:
            return True
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self._see(x.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


@contextmanager
def pretending() -> Iterator[Live]:
    """Run operations on fake tensors within the context, and count their bytes."""
    log = logging.getLogger("torch._subclasses.fake_tensor")  # it prints what fails, which is caught and said here
    before = log.disabled
    log.disabled = True
    try:
        with _FAKE, Live(answers=True) as live:
            yield live
    finally:
        log.disabled = before


# --- models without weights -----------------------------------------------------------------------


def outline(name: str, machine: Machine) -> nn.Module:
    """Make the language model of a folder without its weights, in the precision that it will be loaded in.

    An adapter folder gives its base. Norms and rotary positions are fused as they will be; nothing is tried.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = checkpoints.resolve(name)
    if adapters.is_adapter(folder):
        return outline(adapters.base_of(folder), machine)
    code = machine.trust_remote_code
    with quiet_library():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=code)
        width = getattr(config.get_text_config(), "hidden_size", 0)
        choose_product(width)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=code)
    model = model.to(dtype_of(machine, width)).eval()
    model.config.use_cache = False
    for module in model.modules():  # small, and fusing compares their numbers
        for key, weight in module._parameters.items():
            if weight is not None and weight.dim() == 1:
                module._parameters[key] = nn.Parameter(torch.linspace(0.5, 1.5, len(weight)).to(weight.dtype))
    fuse(model)
    return model  # type: ignore[no-any-return]


def fake(models: Sequence[nn.Module]) -> None:
    """Replace all weights by fake ones; what is shared stays shared.

    Code that came with a folder is not rehearsed: a tensor that it keeps for later calls would be a fake one.
    """
    for model in models:
        if not type(model).__module__.startswith(("transformers.", "keel.")):
            raise NotImplementedError(f"{type(model).__name__} is not transformers' own")
    known: dict[int, tuple[Tensor, Tensor]] = {}  # both are held, so that no other tensor gets their ids

    def of(x: Tensor) -> Tensor:
        if id(x) not in known:
            with _FAKE:
                new = torch.empty(x.shape, dtype=x.dtype, device="cpu")
            new = nn.Parameter(new, requires_grad=x.requires_grad) if isinstance(x, nn.Parameter) else new
            known[id(x)] = known[id(new)] = x, new
        return known[id(x)][1]

    for module in [m for model in models for m in model.modules()]:
        for own in (module._parameters, module._buffers):
            own.update({key: of(x) for key, x in own.items() if x is not None})  # type: ignore[arg-type, misc]


def assume(model: Any) -> None:
    """Take the way of computing that fits the model's masks; its numbers are taken to be right."""
    if model.get_output_embeddings() is not None:
        caps = [v for k, v in limits.text_config(model).to_dict().items() if "logit" in k and "cap" in k and v]
        heads._HEADS[model] = heads.Head(cap=float(caps[0]) if caps else None)
    ways = trials.Ways(
        type(model).__name__, passes.packed, passes.rows, trials.UNBOUNDED, switches=(), noise=0.0, positions=None
    )
    ids = [i % limits.vocabulary_of(model) for i in range(1, 7)]
    bundles = [Bundle(ids[:3], [Completion(ids[3:4]), Completion(ids[3:6])])]
    with pretending(), torch.no_grad():
        if trials._reach(model, bundles, ways) or isinstance(
            attempt(partial(passes.packed, model, bundles)), Exception
        ):
            ways.together, ways.reach = passes.rows, 0
    trials._WAYS[model] = ways


def bytes_of_model(model: nn.Module) -> int:
    """Return the bytes of all weights, shared ones once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def stored_bytes(name: str, model: Any) -> float:
    """Return the bytes of the files that a model is converted from; 0 if they are in its own precision.

    The config names their precision.
    """
    folder = checkpoints.resolve(name)
    if adapters.is_adapter(folder):
        return stored_bytes(adapters.base_of(folder), model)
    stored = _STORED.get(
        str(folders.config_of(folder, name).get("dtype") or folders.config_of(folder, name).get("torch_dtype"))
    )
    own = next(model.parameters()).dtype
    if stored is None or stored == own:
        return 0.0
    return float(sum(p.numel() for p in model.parameters()) * stored.itemsize)


_STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_ahead(name: str, machine: Machine) -> torch.dtype:
    """Return the precision in which a folder's model will be loaded."""
    return next(outline(name, machine).parameters()).dtype


# --- the step -------------------------------------------------------------------------------------

Trained = Sequence[tuple[Role, Callable[[nn.Module, list[Bundle]], Tensor]]]
"""Trained roles, each with the pass that training runs on it."""
PARTS = 4
"""Bundles that stand for all bundles of a packed pass: attention goes span by span, and keeps the same per token."""


def rehearse(trained: Trained, batch: Sequence[Bundle], micro_tokens: int) -> int:
    """Return the most bytes that one step over a batch holds beside weights and moments: activations and gradients."""
    first = trained[0][0].model
    micros = [m.bundles for m in micro_batches(first, batch, micro_tokens)]
    largest = _merged(first, max(micros, key=partial(computed_tokens, first)))
    with pretending() as live:
        run_passes(trained, [largest] * min(2, len(micros)))  # in the second, there are gradients to add to
    return live.peak


def run_passes(trained: Trained, micros: Sequence[list[Bundle]]) -> None:
    """Run forward and backward passes over micro-batches, in the order of training, and drop the gradients."""
    with torch.enable_grad():
        for bundles in micros:
            for role, passing in trained:
                with role.active() as model:
                    passing(model, bundles).sum().backward()
    for role, _ in trained:
        for parameter in role.parameters().values():
            parameter.grad = None


def _merged(model: nn.Module, bundles: list[Bundle]) -> list[Bundle]:
    """Return a few bundles in place of many that share a row, with as many tokens of prompts and of completions."""
    if pass_for(model, max(map(width_of, bundles))) is not passes.packed or len(bundles) <= PARTS:
        return bundles
    tokens = computed_tokens(model, bundles)
    written = sum(len(ids) for ids in {(tuple(b.prompt_ids), tuple(c.ids)): c.ids for b in bundles
                                       for c in b.completions}.values())  # fmt: skip
    prompt, own = (tokens - written) // PARTS, max(1, written // PARTS)
    return [Bundle([at] * max(1, prompt), [Completion([at] * own)]) for at in range(PARTS)]
