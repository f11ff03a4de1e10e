"""A check of the loaded model against its file: weights left over, missing, of another shape, or not finite.

The library ignores weights that have no place in the model, and makes up missing ones. Here the former are refused
unless they are known to be harmless, the latter unless they are meant to be new.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from keel.errors import InputError
from keel.models.folders import TOGETHER, Raw, quantised, some

__all__ = ["check_loaded", "refuse_not_finite"]

QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format|quant_state\..*"
    r"|weight_scale(_inv|_2)?|weight_packed|weight_shape|input_scale|weight_zero_point|\w+_(blocks|scales))$"
)
"""Names that quantised weights have beside or in place of `weight`."""
ADAPTED = re.compile(r"(^base_model\.model\.|lora_|\.base_layer\.|\.modules_to_save\.|\.adapter_)")
"""Names of the weights of an adapter that was not merged."""
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer|block)\.(\d+)\.")
BUFFERS = re.compile(
    r"(inv_freq|(^|\.)(attn|attention|self_attn)\.(bias|masked_bias|causal_mask)|(^|\.)position_ids|\.(cos|sin)_cached"
    r"|embed_positions\.(weights|_float_tensor)|(^|\.)_extra_state|(^|\.)version)$"
)
"""Constants that earlier versions saved and that are now computed: rotary factors, masks, positions."""
MORE_TOKENS = re.compile(r"(^|\.)mtp\w*\.")
"""Layers that predict further tokens at once; the library leaves them out of every model."""
SCALAR_HEADS = re.compile(r"^(\w+\.)?(v_head|value_head|score|classifier|classification_head|reward_head|critic)\.")
TEXT_HEADS = re.compile(r"^(\w+\.)?(lm_head|embed_out|output_layer|cls)\.")
TOWERS = re.compile(
    r"(vision|visual|image|audio|speech|talker|token2wav|code2wav|multi_modal|mm_|projector|connector|aligner|video)"
)


def check_loaded(model: Any, info: Mapping[str, Any], name: str, raw: Raw, fresh: tuple[str, ...] = ()) -> None:
    """Refuse a model whose weights are not exactly the file's, or are not finite.

    `info` is the library's report on loading; weights whose names begin as in `fresh` are meant to be new. Weights that
    only the file has are harmless only if they are known to be: a head of another kind, constants.
    """
    unexpected = sorted(info["unexpected_keys"])
    if marks := [key for key in unexpected if QUANTISED.search(key)]:
        raise quantised(name, f"the file holds {some(marks)}")
    if marks := [key for key in unexpected if ADAPTED.search(key)]:
        raise InputError(
            f"{name}: it holds an adapter that was not merged ({some(marks)}); merge it (peft's merge_and_unload), "
            "then save it"
        )
    _refuse_shapes(info["mismatched_keys"], name)
    config = model.config.get_text_config()
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(fresh))
    if (layers := _layers(missing)) and layers == list(range(layers[0], getattr(config, "num_hidden_layers", 0))):
        have = f"layers 0-{layers[0] - 1}" if layers[0] else "no layers"
        raise InputError(
            f"{name}: the file has {have}, config.json has {layers[-1] + 1} (num_hidden_layers); {TOGETHER}"
        )
    if missing:
        remedy = "copy the whole checkpoint, or give a model of the right kind"
        prefix = _wrapper(missing, set(unexpected))
        if prefix:
            remedy = f"the file has them as {prefix}…, saved from within a wrapper: save the model inside it by itself"
        are = "weight is" if len(missing) == 1 else "weights are"
        raise InputError(f"{name}: {len(missing)} {are} missing and would be random: {some(missing)}; {remedy}")
    _refuse_unused([key for key in unexpected if not _harmless(key, model, raw)], name, config)
    refuse_not_finite(model, name)


def _wrapper(missing: list[str], unexpected: set[str]) -> str:
    """Return the prefix that most missing weights have in the file, such as `module.`; '' if there is none."""
    for key in missing:
        found = min((other for other in unexpected if other.endswith("." + key)), key=len, default="")
        prefix = found.removesuffix(key)
        if prefix and 2 * sum(prefix + other in unexpected for other in missing) > len(missing):
            return prefix
    return ""


def _refuse_shapes(mismatched: Collection[tuple[str, Iterable[int], Iterable[int]]], name: str) -> None:
    if mismatched:
        key, stored, expected = min(mismatched)
        more = f", and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
        raise InputError(
            f"{name}: {key} is {_shape(stored)} in the file and {_shape(expected)} by config.json{more}; {TOGETHER}"
        )


def _shape(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes)) or "one number"


def _harmless(key: str, model: Any, raw: Raw) -> bool:
    """Say whether a weight that has no place in the model has no effect on its output."""
    if BUFFERS.search(key) or MORE_TOKENS.search(key) or SCALAR_HEADS.match(key):
        return True
    if model.get_output_embeddings() is None and TEXT_HEADS.match(key):
        return True
    config, layer = model.config.get_text_config(), LAYER.search(key)
    further = getattr(config, "num_nextn_predict_layers", None)
    if layer and further and 0 <= int(layer[1]) - config.num_hidden_layers < further:
        return True
    parts = any(name.endswith("_config") and name != "text_config" and isinstance(raw[name], dict) for name in raw)
    return parts and bool(TOWERS.search(key))


def _layers(keys: list[str]) -> list[int]:
    """Return the numbers of the layers of these weights, each once; none unless all belong to layers."""
    found = [LAYER.search(key) for key in keys]
    return sorted({int(layer[1]) for layer in found if layer}) if all(found) else []


def _refuse_unused(unused: list[str], name: str, config: Any) -> None:
    if not unused:
        return
    layers, have = _layers(unused), getattr(config, "num_hidden_layers", None)
    if layers and have is not None and layers[0] >= have:
        raise InputError(
            f"{name}: the file has layers 0-{layers[-1]}, config.json only {have} (num_hidden_layers); {TOGETHER}"
        )
    raise InputError(
        f"{name}: weights of the file ({len(unused)}) have no place in the model that config.json describes: "
        f"{some(unused)}; {TOGETHER}"
    )


@torch.no_grad()
def refuse_not_finite(model: nn.Module, name: str) -> None:
    """Refuse a model with a weight that is not a number."""
    for key, weight in model.named_parameters():
        if not weight.is_floating_point() or not weight.numel():
            continue
        low, high = (float(end) for end in torch.aminmax(weight))  # of a tensor with NaN both are NaN
        if not (low - low == high - high == 0):
            what = "inf" if low == low else "NaN"
            raise InputError(
                f"{name}: {key} holds {what}, so every output of the model would, too; give a checkpoint of an earlier "
                "step, or copy the folder anew"
            )
