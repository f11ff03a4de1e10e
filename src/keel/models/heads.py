"""Heads on a backbone: the language-model head behind one scaled-logits function, and the scalar head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from keel.errors import InputError
from keel.models.attempt import attempt
from keel.models.limits import text_config, vocabulary_of

# --- the backbone ---------------------------------------------------------------------------------


def trunk(model: Any) -> nn.Module:
    """Return the backbone that turns ids into hidden states, without any head; of several modalities, the text's.

    `base_model` alone is not enough: Llama 4's is the model itself, and a model of images and text keeps the text's
    backbone further inside.
    """
    if model in _TRUNKS:
        return _TRUNKS[model]
    base, decoder = getattr(model, "base_model", model), model.get_decoder()
    inside = [module for module in model.children() if isinstance(module, PreTrainedModel)]
    several = model.config.get_text_config() is not model.config
    candidates = [decoder, base, *inside] if several else [base, *inside, decoder]
    found = next((module for module in candidates if module is not model), None)
    if found is None:
        return model  # type: ignore[no-any-return]
    return _TRUNKS.setdefault(model, found)


_TRUNKS: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

# --- the language-model head ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Head:
    """Formula of logits from hidden states: cap(factor * matrix(h)), or the model's own forward pass."""

    factor: float = 1.0
    """Factor of the family's logits (Cohere, Granite)."""
    cap: float | None = None
    """Bound of the family's logits (Gemma 2), applied before division by the temperature."""
    own: bool = False
    """True if only the model's own forward pass gets them right."""


def scaled_logits(model: nn.Module, hidden: Tensor, temperature: float) -> Tensor:
    """Return logits in fp32, divided by the temperature: [R, D] -> [R, V]. Nothing else divides them.

    Rollout, old, current and reference log-probabilities all come through here.
    """
    return scaled(model, raw_logits(model, hidden), temperature)


def raw_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Return the head's logits in its own precision, for callers that scale some at a time: [R, D] -> [R, V]."""
    return _own_logits(model, hidden) if head_of(model).own else _matrix(model, hidden)


def scaled(model: nn.Module, logits: Tensor, temperature: float) -> Tensor:
    """Scale any part of the head's raw logits, as in `scaled_logits`: [..., V'] -> fp32 [..., V']."""
    logits = _capped(logits.float(), head_of(model))
    return logits / temperature if temperature != 1 else logits


def head_of(model: nn.Module, name: str = "") -> Head:
    """Return the formula of this model's logits, found on first use by comparison with its own, then kept.

    Raise InputError if no formula gives the model's own logits.
    """
    if model not in _HEADS:
        _HEADS[model] = _found(model, name or type(model).__name__)
    return _HEADS[model]


_HEADS: WeakKeyDictionary[nn.Module, Head] = WeakKeyDictionary()
REACH = 200.0
"""Logits as large as this show a cap, if there is one."""


@torch.no_grad()
def _found(model: Any, name: str) -> Head:
    ids = torch.arange(1, 7, device=device_of_model(model))[None] % vocabulary_of(model)
    seen: list[Any] = []  # of the same pass: not every pass can be repeated to the last digit
    handle = trunk(model).register_forward_hook(lambda *at: seen.append(at[-1]))
    try:
        theirs = model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        handle.remove()
    out = seen[-1] if seen else trunk(model)(input_ids=ids, use_cache=False)
    hidden = out.last_hidden_state[0]
    trials = [(hidden, theirs)]
    if own := _same(model, attempt(partial(_own_logits, model, hidden)), theirs):
        wide = hidden * (REACH / max(float(theirs.abs().max()), 1e-6))
        trials.append((wide, _own_logits(model, wide).float()))
    found = [(attempt(partial(_matrix, model, h)), logits) for h, logits in trials]
    fits = [(raw.float(), logits) for raw, logits in found if isinstance(raw, Tensor)]
    for head in _possible(model) if len(fits) == len(trials) else []:
        if all(_same(model, _capped(raw, head), logits) for raw, logits in fits):
            return head
    if own:
        return Head(own=True)
    raise InputError(
        f"{name}: {type(model).__name__} computes its logits in a way Keel does not reproduce; "
        "give a decoder of another kind"
    )


def _possible(model: Any) -> list[Head]:
    """Return heads with the factors and caps that the config names, plain ones first."""
    config = text_config(model).to_dict()
    named = {k: float(v) for k, v in config.items() if isinstance(v, int | float) and not isinstance(v, bool) and v > 0}
    scales = [v for k, v in named.items() if "scal" in k or "mult" in k or "logit" in k]
    factors = dict.fromkeys([1.0, *scales, *(1 / v for v in scales)])
    caps = dict.fromkeys([None, *(v for k, v in named.items() if "cap" in k)])
    return [Head(factor, cap) for factor in factors for cap in caps]


def _matrix(model: Any, hidden: Tensor) -> Tensor:
    """Return logits by the head's matrix alone. Hidden states are cast: some backbones in bf16 return fp32."""
    head = model.get_output_embeddings()
    logits: Tensor = head(hidden.to(head.weight.dtype))
    return logits


def _capped(logits: Tensor, head: Head) -> Tensor:
    logits = logits * head.factor if head.factor != 1 else logits
    return logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)


class _Given(BaseModelOutputWithPast):  # type: ignore[misc]
    """Output of a backbone; anything else that a family asks of it is None."""

    def __getattr__(self, name: str) -> None:
        return None


def _own_logits(model: Any, hidden: Tensor) -> Tensor:
    """Return logits by the model's own forward pass, these states in place of its backbone's: [R, D] -> [R, V]."""
    backbone = trunk(model)
    before = vars(backbone).get("forward")
    backbone.forward = lambda *_, **__: _Given(last_hidden_state=hidden[None])  # type: ignore[method-assign, assignment]
    try:
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
        return logits
    finally:
        if before is None:
            del backbone.forward
        else:
            backbone.forward = before


def _same(model: nn.Module, a: Tensor | Exception, b: Tensor) -> bool:
    """Say whether both are equal but for rounding in the model's precision."""
    if isinstance(a, Exception) or a.shape != b.shape:
        return False
    tolerance = 1e-4 if exact(model) else 2e-2
    return bool((a.float() - b).abs().max() <= tolerance * b.abs().max())


# --- the scalar head ------------------------------------------------------------------------------


def scalar_head(model: nn.Module) -> nn.Linear:
    """Return the linear layer [1, D] of a scalar model (a sequence classifier with one label)."""
    for name in ("score", "classifier"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            return head
    raise InputError(f"{type(model).__name__} has no linear score head that Keel knows; use a decoder architecture")


def scalars(model: nn.Module, hidden: Tensor) -> Tensor:
    """Return the scalar head's scores or values in fp32: [R, D] -> [R]."""
    head = scalar_head(model)
    if head.weight.dtype == torch.float32:  # a product with one column would have a kernel built for each R
        score = (hidden.float() * head.weight[0]).sum(-1)
        return score if head.bias is None else score + head.bias
    result: Tensor = head(hidden.to(head.weight.dtype)).squeeze(-1).float()
    return result


def exact(model: nn.Module) -> bool:
    """Say whether the model computes in fp32 throughout.

    Some models that compute in bf16 keep a few weights in fp32, and a GPU may use shorter numbers in its products.
    """
    if device_of_model(model).type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        return False
    return all(p.dtype not in (torch.bfloat16, torch.float16) for p in model.parameters())


def device_of_model(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.parameters()).device
