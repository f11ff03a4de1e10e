"""What people find changed in a checkpoint folder: each `Change` does one thing to a copy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from keel.config import Machine
from keel.errors import InputError
from keel.models import checkpoints

CPU = Machine(device="cpu", precision="fp32")
TRUSTING = CPU.model_copy(update={"trust_remote_code": True})
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1176152\n"
FAMILIES = {"llama": "model.layers.0.self_attn.q_proj.weight", "gpt2": "transformer.h.0.attn.c_attn.weight"}
"""A weight of the first layer; GPT-2's config and keys have other names than the rest."""
Change = Callable[[Path], None]


def refusal(folder: Path, load: Callable[..., Any] = checkpoints.load_policy) -> str:
    """What a command says on one line; the folder's name is in it."""
    with pytest.raises(InputError) as caught:
        load(str(folder), CPU)
    said = str(caught.value)
    assert folder.name in said
    assert "\n" not in said
    return said


def as_scalar(name: str, machine: Machine) -> Any:
    return checkpoints.new_scalar_model(name, machine, 3)


# --- changes to a folder


def settings(file: str = "config.json", **changes: Any) -> Change:
    """Values of a JSON file; None takes one away."""

    def change(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        content |= changes
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return change


def weights(change_all: Callable[[dict[str, Any], str], dict[str, Any]]) -> Change:
    """The tensors of model.safetensors, given with the name of a weight of the first layer."""

    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        name = next(name for name in FAMILIES.values() if name in tensors)
        save_file(change_all(tensors, name), file, {"format": "pt"})

    return change


def content(file: str, text: str | bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(text.encode() if isinstance(text, str) else text) and None


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def renamed(file: str, to: str) -> Change:
    return lambda folder: (folder / file).rename(folder / to) and None


def without(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def cut(share: float) -> Change:
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return change


def sharded(*, lost: bool = False, index: bool = True) -> Change:
    """The weights in two files."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        keys = sorted(tensors)
        names = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(keys)}
        for file in sorted(set(names.values()))[: 1 if lost else 2]:
            save_file({k: tensors[k].clone() for k in keys if names[k] == file}, folder / file, {"format": "pt"})
        if index:
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))

    return change


def as_bin(wrap: Callable[[dict[str, Any]], Any] = dict, share: float = 1.0) -> Change:
    def change(folder: Path) -> None:
        file = folder / "pytorch_model.bin"
        torch.save(wrap(load_file(folder / "model.safetensors")), file)
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        (folder / "model.safetensors").unlink()

    return change


def adapter(kind: str = "LORA") -> Change:
    described = {"peft_type": kind, "base_model_name_or_path": "owner/base"}
    return both(settings("adapter_config.json", **described), content("adapter_model.safetensors", b"x"))


def also(**more: Any) -> Change:
    """Weights added to the file under these names, `__` for a dot and `LAYER` for the first layer's name."""
    names = {name.replace("__", "."): value for name, value in more.items()}

    def add(tensors: dict[str, Any], weight: str) -> dict[str, Any]:
        layer = re.match(r".*\.0(?=\.)", weight)[0]  # type: ignore[index]
        return tensors | {name.replace("LAYER", layer): torch.ones(value) for name, value in names.items()}

    return weights(add)
