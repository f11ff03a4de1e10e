"""Memory of a whole run, foretold from configs and data before any weight is loaded.

A run takes its base (the process as it is), the models, AdamW's moments and fp32 copies of what is trained, and what a
step holds, which is rehearsed on fake tensors (`engine/rehearsal.py`). The phases are: loading, making the optimisers,
sampling, the steps, and the end, which reads the saved weights back. The largest phase is the peak. Weights in their
file's own precision stay mapped from it; others are converted beside it. On a GPU the step is rehearsed as on a CPU.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keel.config import DPOConfig, PPOConfig, RewardConfig, SFTConfig
from keel.engine import memory, rehearsal
from keel.engine.adamw import AT_ONCE
from keel.engine.forward import scalars_at_end, scalars_at_states, token_logps, token_scores, tokens_of
from keel.engine.processes import from_first
from keel.engine.scorers import RULE
from keel.errors import InputError
from keel.models import adapters, checkpoints, folders, scalar
from keel.models.adapters import Settings, Trunk
from keel.models.heads import scalar_head
from keel.models.limits import positions
from keel.models.machine import device_of
from keel.models.roles import Role
from keel.records import Bundle
from keel.says import say

OTHER = 0.08e9
"""Bytes for what is not reckoned: libraries that are imported later, kernels' buffers, figures."""
ADAPTING = 0.03e9
"""Bytes of peft, which is imported for adapters."""
GAPS = 1.06
"""Bytes that the allocator takes for each one asked of it: freed blocks do not always fit the next ones."""
RETAINED = 2e9
"""Bytes of freed memory that the process keeps at most (`machine.keep_freed_memory`)."""
CLEARLY = 1.1
"""A run is refused if it takes more than this many times what is free; nearer to it, the forecast may be wrong."""
UNREHEARSED = 1 / 16
"""Share of the free memory below which a run is not rehearsed, which takes seconds."""
BATCHES_SEEN = 20_000
"""Steps whose batches are looked at."""

Command = SFTConfig | RewardConfig | DPOConfig | PPOConfig
"""Config of a training command."""
Cache = Callable[[nn.Module], float]
"""Function from the outlined policy to the bytes that sampling takes."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Bytes at a time of the run."""

    heap: float
    """Allocated. What is freed later stays with the process, up to `RETAINED`."""
    held: float
    """Weights mapped from files."""
    passing: float = 0.0
    """Mapped from files and read once: the system takes it back if memory is short."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Memory that a run is foretold to take."""

    peak: float
    """Most bytes of the process, its base included."""
    need: float
    """Bytes beside the base that must be free."""
    base: float = 0.0

    @staticmethod
    def of(phases: Iterable[Phase], base: float) -> Forecast:
        """Follow the phases: freed memory stays with the process."""
        peak = need = kept = 0.0
        for phase in phases:
            heap = GAPS * phase.heap
            kept = max(heap, min(kept, heap + RETAINED))
            need = max(need, kept + phase.held)
            peak = max(peak, kept + phase.held + phase.passing)
        return Forecast(base + OTHER + peak, OTHER + need, base)


@dataclass(frozen=True, slots=True)
class Plan:
    """Outcome of the forecast: a run that fits, perhaps with its layers computed twice."""

    twice: bool = False
    known: bool = True
    """False if the model's kind could not be rehearsed: memory is then reckoned once it is loaded."""

    def settle(self, trained: rehearsal.Trained, config: Command, bundles: Sequence[Bundle], more: float = 0) -> None:
        """Make the loaded models compute as planned; if nothing could be foretold, reckon with them now.

        `bundles` are all that are trained on, `more` are bytes that the method adds.
        """
        if not self.known:
            largest = memory.largest_pass(trained[0][0].model, bundles, config.batch_size, config.micro_tokens)
            memory.require(trained, largest, more)
        elif self.twice:
            for role, _ in trained:
                memory.checkpoint_layers(role.model)


def limit_ahead(name: str, config: Command) -> int | None:
    """Return how many tokens a model can read (`limits.positions`) before it is loaded.

    What is wrong with its small files is said first, and if no model can be made of its config.json, loading says why.
    """
    folder = checkpoints.resolve(name)
    if not isinstance(config, RewardConfig):
        checkpoints.require_language_model(name)
    if not adapters.is_adapter(folder):
        folders.check_folder(folder, name, config.trust_remote_code)
    try:
        return positions(rehearsal.outline(name, config))
    except Exception:  # the library's own, as in `checkpoints._load`
        load = checkpoints.load_reward if checkpoints.is_reward_folder(name) else checkpoints.load_policy
        return positions(load(name, config))


def plan(config: Command, steps: Iterable[list[Bundle]], held_out: bool, cache: Cache | None = None) -> Plan:
    """Say what a run will take beside what is free; refuse it before it loads a weight if that is clearly too much.

    `steps` are the batches of the run; the largest counts. Layers are computed twice if the run fits only so.
    """
    return from_first(lambda: _plan(config, steps, held_out, cache))


def _plan(config: Command, steps: Iterable[list[Bundle]], held_out: bool, cache: Cache | None) -> Plan:
    device = device_of(config)
    free = memory.free_bytes(device)
    if device.type == "cpu":  # of which the processes of this machine take a share each
        free /= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    batch = largest_batch(steps)
    bound = _at_most(config, batch)
    if bound is not None and bound - _base(config) < UNREHEARSED * free:
        say(f"memory: the run takes less than {_gb(bound)}; {_gb(free)} are free")
        return Plan()
    reckon = partial(forecast, batch=batch, held_out=held_out, cache=cache)
    try:
        first = reckon(config)
    except InputError:
        raise
    except Exception as error:  # a family's own code, on tensors that it does not expect
        say(f"memory: not foretold for this kind of model ({type(error).__name__}); it is reckoned once it is loaded")
        return Plan(known=False)
    told = f"memory: the run takes about {_gb(first.peak)} at its peak"
    there = f"{_gb(first.base)} of them taken already; {_gb(free)} are free"
    if first.need <= free:
        say(f"{told}, {there}")
        return Plan()
    light = reckon(config, twice=True)
    if light.need <= CLEARLY * free:
        close = "" if light.need <= free else ", which may just not be enough"
        say(f"{told}, {there}{close}; layers are computed again in the backward pass: about {_gb(light.peak)}")
        return Plan(twice=True)
    found = [f"{name}: {_gb(one.need)}" for name, one in _options(config, batch, reckon) if one.need <= free]
    remedy = f"it would fit with {'; or '.join(found)}" if found else "use a smaller model or a larger machine"
    raise InputError(
        f"memory: the run takes about {_gb(light.need)} more than now, even with layers computed twice; "
        f"{_gb(free)} are free; {remedy}"
    )


def _at_most(config: Command, batch: Sequence[Bundle]) -> float | None:
    """Return a bound that costs nothing, from files' sizes and the model's width; None if config.json says too little.

    Four models, two of them trained, from a file of two bytes a weight; a pass that keeps fifty numbers of each layer's
    width per token and works with as many; and for every row of a sampler its whole text's keys and values.
    """
    names = [config.model, *([config.reward] if isinstance(config, PPOConfig) else [])]
    stored = 0.0
    shape: Mapping[str, Any] = {}
    for name in names:
        if name.startswith(RULE):
            continue
        folder = Path(checkpoints.resolve(name))
        folder = Path(adapters.base_of(folder)) if adapters.is_adapter(folder) else folder
        sizes = [path.stat().st_size for ending in ("*.safetensors", "*.bin") for path in folder.glob(ending)]
        if not sizes:
            return None
        stored = max(stored, float(sum(sizes)))
        shape = shape or folders.config_of(str(folder), name)
    layers, width, words = (shape.get(name) for name in ("num_hidden_layers", "hidden_size", "vocab_size"))
    if not isinstance(layers, int) or not isinstance(width, int) or not isinstance(words, int):
        return None
    tokens = max(config.micro_tokens, *map(tokens_of, batch))
    rows, longest = (
        (config.max_rows, config.max_new_tokens + config.max_length) if isinstance(config, PPOConfig) else (0, 0)
    )
    return (
        _base(config)
        + OTHER
        + 30 * stored
        + 4.0 * (layers * width * (100 * tokens + 2 * rows * longest) + 4 * rows * words)
        + 0.1e9
    )


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def _options(
    config: Command, batch: Sequence[Bundle], reckon: Callable[..., Forecast]
) -> Iterator[tuple[str, Forecast]]:
    """Yield options that lower what a run takes, each alone, then all together, with the forecast under each."""
    changes: list[tuple[str, dict[str, Any]]] = []
    least = max(map(tokens_of, batch))
    if least < min(config.micro_tokens, sum(map(tokens_of, batch))):
        changes.append((f"--micro-tokens {least}", {"micro_tokens": least}))
    if rehearsal.dtype_ahead(config.model, config) == torch.float32:
        changes.append(("--precision bf16", {"precision": "bf16"}))
    if not config.lora and not (isinstance(config, RewardConfig) and _is_tuned(config.model)):
        changes.append(("--lora", {"lora": True}))
    combined: dict[str, Any] = {}
    for _, change in changes:
        combined |= change
    several = [(" ".join(name for name, _ in changes), combined)] if len(changes) > 1 else []
    for name, change in [*changes, *several]:
        try:
            yield name, reckon(config.model_copy(update=change), twice=True)
        except Exception:  # a model that cannot be trained so: without linear layers, for one
            continue


def _is_tuned(name: str) -> bool:
    """Say whether a model is one on which no reward adapter can be trained: a reward model, or an adapter."""
    return checkpoints.is_reward_folder(name) or adapters.is_adapter(checkpoints.resolve(name))


def largest_batch(steps: Iterable[list[Bundle]]) -> list[Bundle]:
    """Return the batch with the most tokens among the first `BATCHES_SEEN`."""
    best: list[Bundle] = []
    most = -1
    for _, batch in zip(range(BATCHES_SEEN), steps, strict=False):
        size = sum(map(tokens_of, batch))
        if size > most:
            best, most = batch, size
    return best


# --- the cast -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Cast:
    """Models of a run, outlined."""

    loads: list[tuple[float, float]] = field(default_factory=list)
    """Per loaded model its bytes in memory, and those of its file if that has another precision (else 0)."""
    trained: list[tuple[Role, memory.ModelPass]] = field(default_factory=list)
    policy: nn.Module | None = None

    def load(self, name: str, model: nn.Module) -> None:
        """Note a model that is read from a folder."""
        size = float(rehearsal.bytes_of_model(model))
        stored = rehearsal.stored_bytes(name, model)
        self.loads.append((size, stored))


def _roles(config: Command) -> _Cast:
    """Outline the roles of a method."""
    cast = _Cast()
    model = rehearsal.outline(config.model, config)
    as_scalar = (
        scalar.sharing(model, config.trust_remote_code) if not isinstance(config, SFTConfig | DPOConfig) else None
    )
    passing = _passes(config)
    if config.lora:
        _adapted(cast, config, model, as_scalar, passing)
    elif isinstance(config, RewardConfig):
        assert as_scalar is not None
        cast.trained.append((Role("reward", as_scalar), passing[0]))
        cast.load(config.model, as_scalar)
    else:
        cast.trained.append((Role("policy", model), passing[0]))
        cast.load(config.model, model)
        cast.policy = model
        if isinstance(config, DPOConfig | PPOConfig):
            cast.load(getattr(config, "reference", None) or config.model, model)
    if isinstance(config, PPOConfig):
        rule = config.reward.startswith(RULE)
        source = config.model if rule else config.reward
        if not rule and not (config.lora and _same_base(config.model, source)):
            cast.load(source, rehearsal.outline(source, config))
        if not config.lora:
            value = scalar.sharing(rehearsal.outline(source, config), config.trust_remote_code)
            cast.load(source, value)
            cast.trained.append((Role("value", value), passing[1]))
    rehearsal.fake([role.model for role, _ in cast.trained])
    for role, _ in cast.trained:
        with role.active() as one:
            rehearsal.assume(one)
    return cast


def _same_base(policy: str, reward: str) -> bool:
    """Say whether a reward model is an adapter on the policy's base."""
    folders_ = [checkpoints.resolve(name) for name in (policy, reward)]
    if not adapters.is_adapter(folders_[1]):
        return False
    bases = [adapters.base_of(folder) if adapters.is_adapter(folder) else folder for folder in folders_]
    return os.path.realpath(bases[0]) == os.path.realpath(bases[1])


def _passes(config: Command) -> list[memory.ModelPass]:
    """Return the passes of a method's trained roles."""
    if isinstance(config, PPOConfig):
        return [lambda m, b: token_scores(m, b, config.temperature).logps, scalars_at_states]
    if isinstance(config, RewardConfig):
        return [scalars_at_end]
    return [token_logps if isinstance(config, DPOConfig) else lambda m, b: token_scores(m, b).logps]


def _adapted(cast: _Cast, config: Command, model: nn.Module, as_scalar: Any, passing: list[memory.ModelPass]) -> None:
    """Outline roles that are adapters on one trunk."""
    folder = checkpoints.resolve(config.model)
    own = adapters.is_adapter(folder)
    base = adapters.base_of(folder) if own else config.model
    first = as_scalar if isinstance(config, RewardConfig) else model
    model.requires_grad_(False)
    first.requires_grad_(False)
    cast.load(base, first)
    trunk = Trunk(first, base, "")
    settings = Settings.read(Path(folder)) if own else Settings.of(config, first)
    name = "reward" if isinstance(config, RewardConfig) else "policy"
    trunk.add(name, settings, config.seed)
    cast.trained.append((Role(name, first, trunk=trunk, adapter=name), passing[0]))
    if name == "reward":
        scalar_head(first).requires_grad_(True)
        return
    cast.policy = first
    if isinstance(config, DPOConfig) and config.reference:
        cast.load(config.reference, rehearsal.outline(config.reference, config))
    if isinstance(config, PPOConfig):
        trunk.add("value", settings, config.seed)
        scalar_head(as_scalar).requires_grad_(True)
        cast.trained.append((Role("value", as_scalar, trunk=trunk, adapter="value"), passing[1]))


# --- the phases -----------------------------------------------------------------------------------


def forecast(
    config: Command, batch: Sequence[Bundle], held_out: bool, cache: Cache | None = None, twice: bool = False
) -> Forecast:
    """Return what a run with this largest batch takes. Nothing of the models but their config.json is read."""
    cast = _roles(config)
    sampling = 0.0
    if cache is not None and cast.policy is not None:
        with cast.trained[0][0].active() as policy, rehearsal.pretending():
            sampling = cache(policy)
    if twice:
        for role, _ in cast.trained:
            memory.checkpoint_layers(role.model)
    step = rehearsal.rehearse(cast.trained, batch, config.micro_tokens)
    return Forecast.of(_phases(config, cast, step, sampling, held_out), base=_base(config))


def _phases(config: Command, cast: _Cast, step: float, sampling: float, held_out: bool) -> Iterator[Phase]:
    heap, held = ADAPTING if config.lora else 0.0, 0.0
    for size, stored in cast.loads:
        heap, held = (heap + size, held) if stored else (heap, held + size)
        yield Phase(heap, held, stored)
    weights = [p for role, _ in cast.trained for p in role.parameters().values()]
    low = [p.numel() for p in weights if p.dtype != torch.float32]
    if config.lora:
        heap += sum(p.numel() * p.element_size() for p in weights)
    heap += 4.0 * sum(low)
    yield Phase(heap + 16.0 * max(low, default=0), held)  # what `adamw._spread` works with
    heap += 8.0 * sum(p.numel() for p in weights)
    heap += 4.0 * max(min(AT_ONCE, sum(low)), max(low)) if low else 0.0
    if sampling:
        yield Phase(heap + sampling, held)
    yield Phase(heap + step, held)
    first, stored = cast.loads[0]
    if not config.lora:
        yield Phase(heap, held, first)  # the saved weights are read back
    if isinstance(config, SFTConfig) and held_out and not config.lora:
        yield Phase(heap + first, held, stored) if stored else Phase(heap, held + first)


def _base(config: Command) -> float:
    """Return what the process takes now; on a GPU that is no part of what is free there."""
    if device_of(config).type != "cpu":
        return 0.0
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return float(pages * resource.getpagesize())
