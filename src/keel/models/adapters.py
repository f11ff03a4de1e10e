"""LoRA adapters on a shared trunk: added, switched on and off, saved as plain PEFT folders, merged.

A layer with adapters computes y = x W + s (x A) B for the adapter that is on, and x W if none is. W is frozen, A and B
are trained, s = alpha / r (Hu et al. 2021). A role's block (`roles.Role.active`) switches its adapter on for forward
and backward pass: in the latter, checkpointed layers are computed again. Outside any block such a layer refuses to
compute: with the wrong adapter on, gradients would be lost without a word.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from keel.config import Adapting
from keel.errors import InputError, RunFailed, on_one_line
from keel.models.heads import trunk
from keel.seeds import generator

SETTINGS, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "keel_base.json"
"""Files of an adapter's folder; the last one holds the hash of the trunk that it was trained on."""
_PREFIX = "base_model.model."
"""Prefix of every name in a PEFT folder."""
OUTSIDE: Any = object()
"""Value of `Trunk.on` outside any role's block."""


# --- what an adapter is like ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """Shape of an adapter."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Names of the layers, or their endings (`q_proj`)."""

    @staticmethod
    def of(config: Adapting, model: nn.Module) -> Settings:
        """Return what the options ask for; refuse layers that the model does not have."""
        there = linear_layers(model)
        ends = sorted({name.rpartition(".")[2] for name in there})
        wanted = targets_asked(config) or tuple(ends)
        for target in wanted:
            if not any(_means(target, name) for name in there):
                raise InputError(
                    f"--lora-targets {target}: {type(model).__name__} has no linear layer of that name; "
                    f"there are {', '.join(ends) or 'none'}"
                )
        if not wanted:
            raise InputError(f"--lora: {type(model).__name__} has no linear layers; train all weights, without --lora")
        return Settings(config.lora_rank, config.lora_alpha or 2.0 * config.lora_rank, wanted)

    @staticmethod
    def read(folder: Path) -> Settings:
        """Return those of a PEFT folder that is to be trained on; refuse what is more than plain LoRA."""
        told = _told(folder)
        plain = {"use_dora": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}, "lora_bias": False}
        odd = sorted(name for name, value in plain.items() if told.get(name) not in (value, None))
        if not isinstance(told.get("target_modules"), list):
            odd.append("layers named by a pattern")
        if str(told.get("peft_type")).upper() != "LORA" or odd:
            why = f"({', '.join(odd)})" if odd else f"({told.get('peft_type')})"
            raise InputError(
                f"{folder}: more than a plain LoRA adapter {why}, which --lora cannot train on; make it one model "
                f"(keel merge --model {folder} --out DIR) and give that"
            )
        scale = told["lora_alpha"] / (math.sqrt(told["r"]) if told.get("use_rslora") else told["r"])
        return Settings(told["r"], scale * told["r"], tuple(sorted(told["target_modules"])))


def targets_asked(config: Adapting) -> tuple[str, ...]:
    """Return the layers that `--lora-targets` names; none if it is not given."""
    return tuple(target.strip() for target in (config.lora_targets or "").split(",") if target.strip())


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names of the trunk's linear layers, as the whole model calls them."""
    from transformers.pytorch_utils import Conv1D

    inside = {id(module) for module in trunk(model).modules()}
    kinds = (nn.Linear, Conv1D)
    return [n for n, m in model.named_modules() if id(m) in inside and isinstance(m, kinds) and ".base_layer" not in n]


def _means(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


# --- the trunk that roles share -------------------------------------------------------------------


@dataclass(slots=True)
class Trunk:
    """A frozen model with adapters in its layers, and which of them is on."""

    model: nn.Module
    """The first model that was loaded; others may have its backbone in them."""
    name: str
    """Name of the base that adapters are saved with."""
    base: str
    """Hash of the backbone (`trunk_hash`)."""
    on: Any = OUTSIDE
    settings: dict[str, Settings] = field(default_factory=dict)

    @staticmethod
    def of(model: nn.Module, name: str) -> Trunk:
        """Freeze a model that no adapter is in yet."""
        model.requires_grad_(False)
        return Trunk(model, name, trunk_hash(model))

    def add(self, adapter: str, settings: Settings, seed: int) -> None:
        """Put an adapter into the layers: A drawn as in a new linear layer, B zero, so that it changes nothing yet."""
        from peft import inject_adapter_in_model

        there = [*linear_layers(self.model), *(name for name, _ in self.layers())]
        targets = [name for name in there if any(_means(t, name) for t in settings.targets)]
        trained = {id(p) for p in self.model.parameters() if p.requires_grad}
        with warnings.catch_warnings(action="ignore"):  # of a second adapter: that is meant
            try:
                inject_adapter_in_model(_peft_config(settings, "CAUSAL_LM", self.name, targets), self.model, adapter)
            except Exception as error:
                raise InputError(
                    f"--lora: PEFT makes no adapter for {type(self.model).__name__} so ({on_one_line(error)}); name "
                    "other layers in --lora-targets, or train all weights"
                ) from error
        placed = [(name, layer) for name, layer in self.layers() if adapter in layer.lora_A]
        if odd := {*targets} ^ {name for name, _ in placed}:
            raise InputError(
                f"--lora: PEFT puts adapters of {type(self.model).__name__} elsewhere than asked ({min(odd)}); name "
                "other layers in --lora-targets, or train all weights"
            )
        self.settings[adapter] = settings
        for parameter in self.model.parameters():  # PEFT freezes the adapters that were there, and thaws others
            parameter.requires_grad_(id(parameter) in trained)
        draws = generator(seed, "lora", adapter)
        for _, layer in placed:
            if not isinstance(layer, _Low):
                layer.__class__ = type(type(layer).__name__, (_Low, type(layer)), {"__module__": __name__})
                layer.trunk = self
            like = next(layer.base_layer.parameters())
            for part in (layer.lora_A[adapter], layer.lora_B[adapter]):
                part.to(device=like.device, dtype=like.dtype)
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            with torch.no_grad():
                bound = 1 / math.sqrt(a.shape[1])
                a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=draws))
                b.zero_()
        for parameter in self.parameters(adapter).values():
            parameter.requires_grad_(True)

    def layers(self) -> list[tuple[str, Any]]:
        """Return the layers that hold adapters, by their names in the model."""
        return [(n, m) for n, m in self.model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]

    def parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        """Return an adapter's weights by the names that PEFT gives them."""
        found = {}
        for name, layer in self.layers():
            if adapter in layer.lora_A:
                for part in ("lora_A", "lora_B"):
                    found[f"{_PREFIX}{name}.{part}.weight"] = getattr(layer, part)[adapter].weight
        return found

    @contextmanager
    def switched(self, adapter: str | None) -> Iterator[None]:
        """Switch an adapter on within the context, or all off (None)."""
        before, self.on = self.on, adapter
        try:
            yield
        finally:
            self.on = before

    def changes_nothing(self, adapter: str) -> bool:
        """Say whether an adapter leaves the base as it is: every B is zero."""
        return all(not bool(w.any()) for name, w in self.parameters(adapter).items() if ".lora_B." in name)


class _Low(nn.Module):
    """Mix-in of PEFT's layers: the base layer's output, and the low-rank product of the adapter that is on."""

    trunk: Trunk
    base_layer: nn.Module
    lora_A: nn.ModuleDict  # noqa: N815  (PEFT's name)
    lora_B: nn.ModuleDict  # noqa: N815
    scaling: dict[str, float]

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        on = self.trunk.on
        if on is OUTSIDE:
            raise RunFailed(
                "a layer with adapters computes outside its role's block, so that none is on; run forward and "
                "backward inside `with role.active()`"
            )
        out: Tensor = self.base_layer(x)
        if on is None or on not in self.lora_A:
            return out
        a, b = self.lora_A[on].weight, self.lora_B[on].weight
        low = nn.functional.linear(x, a).flatten(0, -2)  # type: ignore[arg-type]
        both = torch.addmm(out.flatten(0, -2), low, b.T, alpha=self.scaling[on])  # type: ignore[operator, arg-type, union-attr]
        return both.view_as(out)


@torch.no_grad()
def trunk_hash(model: nn.Module) -> str:
    """Return a hash of a backbone, the same whether it was loaded in fp32 or in bf16."""
    digest = hashlib.sha256()
    for name, weight in sorted(trunk(model).state_dict().items()):
        digest.update(name.encode())
        digest.update(
            weight.detach().to(torch.bfloat16).cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def _peft_config(settings: Settings, task: str, base: str, targets: list[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides it by r, whatever its type
        target_modules=targets,
        task_type=task,  # type: ignore[arg-type]
        base_model_name_or_path=base,
        inference_mode=True,
        modules_to_save=None,
    )


# --- folders --------------------------------------------------------------------------------------


def is_adapter(folder: str | Path) -> bool:
    """Say whether a folder holds an adapter and not a whole model."""
    folder = Path(folder)
    whole = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
    return (folder / SETTINGS).is_file() and not any((folder / file).exists() for file in whole)


def is_scalar(folder: str | Path) -> bool:
    """Say whether an adapter folder is one of a scalar model."""
    return bool(_told(Path(folder)).get("task_type") == "SEQ_CLS")


def base_of(folder: str | Path) -> str:
    """Return the name of an adapter's base: a hub name, or a folder, sought also within the adapter's."""
    folder = Path(folder)
    name = _told(folder).get("base_model_name_or_path")
    if not name:
        raise InputError(f"{folder}: {SETTINGS} names no base model (base_model_name_or_path); add it there")
    for path in (Path(name), folder / name):
        if path.is_dir():
            return str(path)
    if str(name).count("/") == 1 and not str(name).startswith((".", "/")):
        return str(name)
    raise InputError(
        f"{folder}: its base model {name} is not there; put it there, or change base_model_name_or_path in {SETTINGS}"
    )


def _told(folder: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder}: {SETTINGS} is not readable ({on_one_line(error)}); copy it anew") from error
    return told


def trained_on(folder: str | Path) -> str | None:
    """Return the hash of the trunk that an adapter was trained on; None if its folder does not say (others' do not)."""
    file = Path(folder) / BASE
    return str(json.loads(file.read_text(encoding="utf-8"))["trunk"]) if file.exists() else None


def require_base(folder: str | Path, name: str, base: str) -> None:
    """Refuse an adapter that was trained on another trunk than the one with hash `base`."""
    trained = trained_on(folder)
    if trained not in (None, base):
        raise InputError(
            f"{name}: trained on another base ({trained}) than {base_of(folder)} is now ({base}); give it the "
            f"base that it was trained on, in base_model_name_or_path of {SETTINGS}"
        )


def write_adapter(folder: Path, trunk_: Trunk, adapter: str, head: Mapping[str, Tensor]) -> None:
    """Write an adapter as a PEFT folder; `head` holds the scalar head by its names in the model, if it has one."""
    settings = trunk_.settings[adapter]
    config = _peft_config(
        settings, "SEQ_CLS" if head else "CAUSAL_LM", _portable(trunk_.name), _endings(trunk_, adapter)
    )
    if head:
        config.modules_to_save = sorted({name.rpartition(".")[0] for name in head})
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    own = {**trunk_.parameters(adapter), **{_PREFIX + name: tensor for name, tensor in head.items()}}
    save_file({name: t.detach().cpu().contiguous() for name, t in own.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / BASE).write_text(json.dumps({"trunk": trunk_.base, "base": trunk_.name}) + "\n")


def _endings(trunk_: Trunk, adapter: str) -> list[str]:
    """Return the endings of an adapter's layers; the whole names if other layers end so, too."""
    known = {name for name, layer in trunk_.layers() if adapter in layer.lora_A}
    ends = sorted({name.rpartition(".")[2] for name in known})
    others = [n for n, m in trunk_.model.named_modules() if n not in known and ".base_layer" not in n]
    return sorted(known) if any(_means(end, name) for end in ends for name in others) else ends


def _portable(name: str) -> str:
    """Return a folder's name from the root on, so that an adapter finds its base wherever it is read from."""
    return os.path.abspath(name) if os.path.isdir(name) else name


def stored(folder: Path) -> dict[str, Tensor]:
    """Return an adapter folder's weights by PEFT's names."""
    file = folder / WEIGHTS
    if file.exists():
        return load_file(file)
    if (folder / "adapter_model.bin").exists():
        found: dict[str, Tensor] = torch.load(folder / "adapter_model.bin", weights_only=True, map_location="cpu")
        return found
    raise InputError(f"{folder}: no {WEIGHTS} beside {SETTINGS}; copy it there")


@torch.no_grad()
def fill(own: Mapping[str, Tensor], folder: Path) -> None:
    """Copy a folder's weights into an adapter and its head, and refuse a folder that holds others."""
    found = stored(folder)
    wrong = sorted({*own} ^ {*found}) or [n for n, tensor in own.items() if found[n].shape != tensor.shape]
    if wrong:
        raise InputError(f"{folder}: its adapter does not fit the base: {', '.join(wrong[:3])}; give the one it is of")
    for name, tensor in own.items():
        tensor.copy_(found[name])


def merged(model: Any, folder: str, name: str) -> Any:
    """Return the model with an adapter of any kind added to its weights for good.

    Raise InputError if PEFT does not take in every weight of the folder: a head that it left out would be random.
    """
    from peft import PeftModel, get_peft_model_state_dict

    found = stored(Path(folder))
    try:
        wrapped = PeftModel.from_pretrained(model, folder)
    except Exception as error:
        raise InputError(f"{name}: its adapter does not fit its base ({on_one_line(error)})") from error
    held = get_peft_model_state_dict(wrapped)
    wrong = sorted({*found} ^ {*held}) or [
        n for n in found if not torch.equal(held[n].cpu(), found[n].to(held[n].dtype))
    ]
    if wrong:
        raise InputError(f"{name}: weights of its adapter have no place in its base: {', '.join(wrong[:3])}")
    whole = wrapped.merge_and_unload(safe_merge=True)
    whole.requires_grad_(True)
    return whole
