"""Norms and rotary positions in half the passes over memory, with explicit gradients.

In transformers both are chains of small operations. Each operation reads and writes every activation, and the gradients
are as many again: on a CPU they take a third of the time of the matrix products. When a model is loaded, each module is
compared with the formulas here, on a few numbers in its own precision. If they agree, the module gets a subclass of its
own class that computes them. Everything else about it stays, names of weights included. A module that cannot be tried
is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

Rotary = Callable[..., tuple[Tensor, Tensor]]
ROTARY = "apply_rotary_pos_emb"
"""Name of the function in each of transformers' decoders."""


def fuse(model: nn.Module) -> Callable[[], None]:
    """Swap in fused norms and rotary attention that give the same numbers; return a function to undo it."""
    known: dict[type[nn.Module], type[nn.Module]] = {}
    before: list[tuple[nn.Module, type[nn.Module]]] = []
    dtype = next(model.parameters()).dtype
    for module in model.modules():
        own = type(module)
        if own not in known:
            known[own] = _Norm.of(module) or _turning(own, dtype) or own
        if known[own] is not own:
            before.append((module, own))
            module.__class__ = known[own]

    def undo() -> None:
        for module, own in before:
            module.__class__ = own

    return undo


# --- norms ----------------------------------------------------------------------------------------


class _Norm(nn.Module):
    """Norm that divides by the root mean square of the last dimension and multiplies by a weight."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden: Tensor) -> Tensor:
        return _root_mean_square(hidden, self.weight, self.variance_epsilon)

    @staticmethod
    @torch.no_grad()
    def of(module: nn.Module) -> type[nn.Module] | None:
        """Return the class of such a norm with this forward pass; None for another kind of module."""
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if not isinstance(weight, Tensor) or not isinstance(eps, float) or list(module.children()):
            return None
        if len(signature(module.forward).parameters) != 1:  # a gate, for one, is no part of the formula
            return None
        numbers = torch.linspace(-2, 3, 3 * len(weight), device=weight.device).sin().to(weight.dtype)
        numbers = numbers.view(1, 3, len(weight))
        try:
            same = _same(module(numbers), _root_mean_square(numbers, weight, eps))
        except (TypeError, RuntimeError, ValueError, IndexError, AttributeError):
            return None
        if not same:
            return None
        return _subclass(type(module), {"forward": _Norm.forward})


def _root_mean_square(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the norm; on a GPU torch has one kernel for it."""
    if x.device.type == "cpu":
        return _RootMeanSquare.apply(x, weight, eps)  # type: ignore[no-any-return, no-untyped-call]
    return rms_norm(x, weight.shape, weight, eps)


class _RootMeanSquare(torch.autograd.Function):
    """y = w x r with r = (mean(x²) + eps)^-1/2, over the last dimension.

    With g the gradient of y: dx = r w g - x r³ mean(w g x), dw = sum over rows of r g x; all in fp32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        root = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = (root * root / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        wide = wide * inverse if wide is x else wide.mul_(inverse)
        return wide.to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        size = x.shape[-1]
        wide, w, r = x.float().reshape(-1, size), weight.float(), inverse.reshape(-1, 1)
        g = arriving.float().reshape(-1, size)
        products = wide * g
        d_weight = torch.mv(products.t(), r.squeeze(1))
        mean = torch.mv(products, w)[:, None] / size
        d_x = (g * w).mul_(r).addcmul_(wide, mean.mul_(r**3), value=-1)
        return d_x.to(x.dtype).view_as(x), d_weight.to(weight.dtype), None


# --- rotary positions -----------------------------------------------------------------------------


def _turning(own: type[nn.Module], dtype: torch.dtype) -> type[nn.Module] | None:
    """Return a class whose forward pass rotates queries and keys by `_Turn`; None if `own` does not rotate so."""
    forward = own.forward
    original = getattr(forward, "__globals__", {}).get(ROTARY)
    if ROTARY not in getattr(getattr(forward, "__code__", None), "co_names", ()) or original is None:
        return None
    turned = _turned(original)
    if not _turns(original, turned, dtype):
        return None
    names = {**forward.__globals__, ROTARY: turned}
    same = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    same.__kwdefaults__ = forward.__kwdefaults__
    return _subclass(own, {"forward": same})


def _turned(original: Rotary) -> Rotary:
    """Return the fused function of queries and keys [B, heads, T, width], cosines and sines [B, T, width]."""

    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        if cos.shape[-1] != q.shape[-1]:  # only a part of the width is rotated
            return original(q, k, cos, sin, unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _Turn.apply(q, cos, sin), _Turn.apply(k, cos, sin)  # type: ignore[no-untyped-call]

    return turn


@torch.no_grad()
def _turns(original: Rotary, turned: Rotary, dtype: torch.dtype) -> bool:
    """Say whether both agree, in numbers and precision, for cosines in the model's precision and in fp32."""
    numbers = torch.arange(4 * 3 * 8.0).sin().view(4, 1, 1, 3, 8).to(dtype)
    q, k = numbers[:2]
    try:
        for cos, sin in (numbers[2:, 0], numbers[2:, 0].float()):
            expected, got = original(q, k, cos, sin), turned(q, k, cos, sin)
            if not all(a.dtype == b.dtype and _same(a, b) for a, b in zip(expected, got, strict=True)):
                return False
    except (TypeError, RuntimeError, ValueError, IndexError):  # a function of another kind under that name
        return False
    return True


class _Turn(torch.autograd.Function):
    """x cos + (-x2, x1) sin, with x1 and x2 the halves of the last dimension; the gradient rotates back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        half = arriving.shape[-1] // 2
        swapped = torch.cat([sin[..., half:], sin[..., :half]], -1)
        return _turn(arriving, cos, swapped, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


# --- both -----------------------------------------------------------------------------------------


def _same(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are equal but for rounding."""
    tolerance = 1e-5 if a.dtype == torch.float32 else 0.02
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * a.abs().max())


def _subclass(own: type[nn.Module], changes: dict[str, Any]) -> type[nn.Module]:
    """Make a subclass under the same name."""
    return type(own.__name__, (own,), {**changes, "__module__": own.__module__, "__qualname__": own.__qualname__})
