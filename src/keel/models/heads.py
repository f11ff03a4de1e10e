"""What sits on a backbone: the language-model head behind one scaled-logits function, and the scalar head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from keel.errors import InputError


def scaled_logits(model: nn.Module, hidden: Tensor, temperature: float) -> Tensor:
    """Logits in fp32, divided by the temperature: [R, D] -> [R, V]. The only place where this happens (law 3).

    Rollout, old, current and reference log-probabilities all come through here. Model families that scale or cap
    their logits say so in their config, and `check_head` compares with the model's own at load time.
    """
    return scaled(model, raw_logits(model, hidden), temperature)


def raw_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """What the head alone says, in its own precision, for those who scale it some rows at a time: [R, D] -> [R, V]."""
    logits: Tensor = model.get_output_embeddings()(hidden)  # type: ignore[operator]
    return logits


def scaled(model: nn.Module, logits: Tensor, temperature: float) -> Tensor:
    """The second half of `scaled_logits`, for any part of the head's raw logits: [..., V'] -> fp32 [..., V']."""
    logits = logits.float()
    logits = logits * factor if (factor := logit_factor(model, 1.0)) != 1 else logits
    if (cap := logit_cap(model)) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits / temperature if temperature != 1 else logits


def logit_factor(model: nn.Module, temperature: float) -> float:
    """What a model family multiplies its logits with, over the temperature."""
    config: Any = model.config
    factor = getattr(config, "logit_scale", None) or 1.0  # Cohere
    return float(factor) / float(getattr(config, "logits_scaling", None) or 1.0) / temperature  # Granite


def logit_cap(model: nn.Module) -> float | None:
    """Where the family's logits level off (Gemma 2), before the temperature divides them."""
    cap: float | None = getattr(model.config, "final_logit_softcapping", None)
    return cap


def check_head(model: nn.Module, name: str) -> None:
    """Refuse an architecture whose logits `scaled_logits` does not reproduce; a silent difference would be worse."""
    ids = torch.arange(1, 5, device=device_of_model(model))[None] % vocabulary_of(model)
    with torch.no_grad():
        theirs = model(input_ids=ids, use_cache=False).logits.float()
        ours = scaled_logits(model, trunk(model)(input_ids=ids, use_cache=False).last_hidden_state, 1.0)
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max())):
        raise InputError(f"{name}: {type(model).__name__} computes its logits in a way Keel does not reproduce")


def trunk(model: Any) -> nn.Module:
    """The backbone that turns ids into hidden states, without any head."""
    base: nn.Module = model.base_model
    return base


def full_attention(config: Any, length: int) -> bool:
    """Whether every layer attends to everything before it, within `length` positions."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds == {"full_attention"}:
        return window is None or not getattr(config, "use_sliding_window", True) or window >= length
    return kinds <= {"full_attention", "sliding_attention"} and window is not None and window >= length


def scalar_head(model: nn.Module) -> nn.Linear:
    """The linear layer [1, D] of a scalar model (a sequence classifier with one label)."""
    for name in ("score", "classifier"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            return head
    raise InputError(f"{type(model).__name__} has no linear score head that Keel knows; use a decoder architecture")


def vocabulary_of(model: Any) -> int:
    """Rows of the language-model head, V."""
    return int(model.config.vocab_size)


def device_of_model(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device
