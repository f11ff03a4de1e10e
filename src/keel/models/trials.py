"""Trials of each model on its own weights: it is computed in the fastest way that it gets right.

The measure is a plain forward pass of each sequence alone. If a way gives other numbers, the next slower one is used,
and one line says so once, with the reason. A model that reads ahead, or whose logits nothing reproduces, is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from keel.errors import InputError, on_one_line
from keel.models import attention, limits, passes
from keel.models.attempt import attempt
from keel.models.decoding import Decoding
from keel.models.fused import fuse
from keel.models.heads import exact, head_of, trunk
from keel.models.limits import switches, vocabulary_of
from keel.records import Bundle, Completion
from keel.says import say

Writing = Literal["shared", "cached"]
UNBOUNDED = 1 << 60


@dataclass(slots=True)
class Ways:
    """Ways in which a model is computed."""

    name: str
    together: passes.Pass
    """Pass for bundles: `passes.packed`, `passes.rows` or `passes.alone`."""
    apart: passes.Pass
    """Pass for bundles with a text longer than `reach`."""
    reach: int
    """Longest text, in tokens, that may be packed: up to here every layer sees everything before a token."""
    switches: tuple[int, ...]
    """Lengths beyond which positions are read differently: texts on both sides never share a pass."""
    noise: float
    """Distance between two plain passes over the same tokens, as a share of the root mean square."""
    positions: int | None
    """Length in tokens of the longest text that the model can read; None: no limit."""
    makes_cache: bool = False
    """True if the backbone must make its cache itself."""
    written: dict[Writing, bool] = field(default_factory=dict)
    """Ways of generating that were tried; True for those that are right."""

    def way(self, longest: int) -> passes.Pass:
        """Return the pass for texts of up to `longest` tokens."""
        return self.together if longest <= self.reach else self.apart

    def described(self) -> str:
        """Describe for pages how completions are scored and, if that was tried, how they are generated."""
        packs = f"packed to {self.reach}" if self.reach < UNBOUNDED else "packed"
        names: dict[passes.Pass, str] = {passes.packed: packs, passes.rows: "rows", passes.alone: "alone"}
        right = next((way for way, so in self.written.items() if so), "anew")
        return f"{names[self.together]}, {right}" if self.written else names[self.together]


CHOICES = "index_topk", "index_topk_blocks", "index_kpool", "keep_window_size"
"""Names in configs for the number of keys that a layer chooses."""
_WAYS: WeakKeyDictionary[nn.Module, Ways] = WeakKeyDictionary()
_TOLD: set[str] = set()


def ways_of(model: nn.Module, name: str = "") -> Ways:
    """Return the ways that this model gets right, tried on first use; `name` stands for it in errors.

    Raise InputError if it reads ahead, does not run in its precision or gives logits that nothing reproduces.
    """
    if model not in _WAYS:
        training = model.training
        model.eval()
        try:
            _WAYS[model] = _tried(model, name or type(model).__name__)
        finally:
            model.train(training)
    return _WAYS[model]


def drop_ways(model: nn.Module) -> None:
    """Forget a model's ways, since its weights are others now."""
    _WAYS.pop(model, None)


def take_over(model: nn.Module, other: nn.Module) -> None:
    """Take another model's ways for one that has the same backbone."""
    _WAYS[model] = ways_of(other)


def writes(model: nn.Module, way: Writing) -> bool:
    """Say whether a way of generating is right, tried on first use.

    `shared` keeps prompts once; `cached` uses the family's own cache. If neither is right, each token reads its whole
    text again.
    """
    ways = ways_of(model)
    if way not in ways.written:
        trial, cache, slower = _WRITING[way]
        reason = "" if ways.together is passes.packed or way == "cached" else "it cannot share a prompt"
        expected = _expected(model)
        reason = reason or _difference(model, trial, expected, ways.noise)
        if reason and way == "cached" and not _difference(model, _made, expected, ways.noise):
            ways.makes_cache, reason = True, ""
        ways.written[way] = not reason
        if reason and (way == "cached" or ways.together is passes.packed):
            _tell(f"{ways.name} cannot continue from {cache} ({reason}): {slower}")
    return ways.written[way]


def _tell(message: str) -> None:
    if message not in _TOLD:
        _TOLD.add(message)
        say(message)


# --- training and scoring -------------------------------------------------------------------------


@torch.no_grad()
def _tried(model: Any, name: str) -> Ways:
    states, noise = _causal(model, name)
    _fused(model, states, noise)
    if model.get_output_embeddings() is not None:
        head_of(model, name)
    ways = Ways(
        type(model).__name__, passes.packed, passes.rows, UNBOUNDED, switches(model), noise, limits.positions(model)
    )
    bundles, expected = _bundles(model), _alone(model)
    if reason := _packs(model, bundles, expected, ways):
        ways.together, ways.reach = passes.rows, 0
        _tell(f"{ways.name} cannot share a prompt between completions ({reason}): the prompt is computed once for each")
    if reason := _mixes(model, bundles, expected, ways):
        ways.apart = passes.alone
        ways.together = passes.alone if ways.together is passes.rows else ways.together
        _tell(f"{ways.name} computes a text differently beside other texts ({reason}): each is computed alone")
    _learns(model, name, ways, bundles)
    return ways


def _causal(model: Any, name: str) -> tuple[Tensor, float]:
    """Refuse a model that reads ahead; return states of nine tokens [9, D], and how far rounding alone moves them."""
    ids, before = _tokens(model), _norms(model)
    texts = (ids[:9], ids[:6], ids[:6] + ids[8:])
    found = attempt(lambda: [passes.padded(model, [text])[0] for text in texts])
    if isinstance(found, Exception):
        if exact(model):
            remedy = "mend its config, or give a decoder of another kind"
            raise InputError(f"{name}: cannot read a few tokens ({on_one_line(found)}); {remedy}") from found
        raise InputError(f"{name}: does not run in bf16 ({on_one_line(found)}); use --precision fp32") from found
    whole, part, other = (states.float() for states in found)
    if not bool(torch.isfinite(whole).all()):
        raise InputError(
            f"{name}: hidden states are not finite on a few tokens; its weights are broken, or need --precision fp32"
        )
    if not torch.allclose(_norms(model), before, rtol=0, atol=0, equal_nan=True):  # RWKV halves some, for fp16's sake
        known = hasattr(model.config, "rescale_every")
        remedy = "set rescale_every to 0 in its config.json" if known else "give a model of another kind"
        raise InputError(f"{name}: {type(model).__name__} changes its weights when it reads; {remedy}")
    noise = _distance(whole[:6], part)
    ahead = _distance(whole[:6], other[:6]) > (1e-4 if exact(model) else 0.01)
    if ahead or (exact(model) and noise > 1e-3):  # in bf16 a token may go to another expert in a text of another length
        raise InputError(
            f"{name}: reads ahead: its output at a token changes with the tokens that follow; give a decoder "
            "(setting is_decoder is not enough: an encoder must be trained as a decoder)"
        )
    return found[0], noise


def _norms(model: nn.Module) -> Tensor:
    """Return the norm of every parameter: it shows a pass that changes weights."""
    return torch.stack(torch._foreach_norm(list(model.parameters())))


def _fused(model: Any, states: Tensor, noise: float) -> None:
    """Fuse norms and rotary positions, unless that changes the states of nine tokens."""
    undo = fuse(model)
    if _difference(model, lambda m: passes.padded(m, [_tokens(m)[:9]])[0], states, noise):
        undo()


def _packs(model: Any, bundles: list[Bundle], expected: Tensor, ways: Ways) -> str:
    """Find `ways.reach`, the length up to which bundles can share a row; return why they cannot, or ''."""
    own = model.config._attn_implementation
    reason = _reach(model, bundles, ways)
    reason = reason or _difference(model, lambda m: _of(passes.packed(m, bundles)), expected, ways.noise)
    if reason and model.config._attn_implementation != own:
        _attend(model, own)
    return reason


def _reach(model: Any, bundles: list[Bundle], ways: Ways) -> str:
    """Set `ways.reach` to the smallest window of a plain pass; return why nothing can be packed, or ''."""

    def watch() -> list[int]:
        _attend(model, attention.NAME)
        with attention.watching() as asked:
            passes.padded(model, [bundles[0].prompt_ids])
        return asked.windows

    windows = attempt(watch)
    if isinstance(windows, Exception):
        return _why(windows)
    ways.reach = min(windows, default=UNBOUNDED)
    return "" if ways.reach else "masks of its own"


def _mixes(model: Any, bundles: list[Bundle], expected: Tensor, ways: Ways) -> str:
    """Return why rows cannot be computed side by side, or ''."""
    chooses = [name for name in CHOICES if getattr(limits.text_config(model), name, None)]
    if "keep_window_size" in chooses:  # Doge chooses other keys in a step than in a full pass
        ways.written = {"shared": False, "cached": False}
    if chooses:  # among ties, by the number of tokens: a trial of a few does not show it
        return "it chooses what it attends to"
    return _difference(model, lambda m: _of(passes.rows(m, bundles)), expected, ways.noise)


def _learns(model: Any, name: str, ways: Ways, bundles: list[Bundle]) -> None:
    """Refuse a model without gradients in evaluation mode, the only mode that is ever used."""
    backbone = [p for p in trunk(model).parameters() if p.requires_grad and p.is_floating_point()]
    if not backbone:
        return
    small = [p for p in backbone if p.dim() < 2] or [min(backbone, key=Tensor.numel)]  # norms and biases of all layers
    found = attempt(lambda: _gradients(model, ways, bundles, small))
    if isinstance(found, Exception):
        raise InputError(
            f"{name}: {ways.name} has no gradient in evaluation mode ({on_one_line(found)}); "
            "give a model of another kind"
        ) from found
    if not all(bool(torch.isfinite(x).all()) for x in found if x is not None):
        raise InputError(f"{name}: its gradients are not finite on a few tokens; try --precision fp32")


def _gradients(model: Any, ways: Ways, bundles: list[Bundle], small: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """Return gradients of some small parameters and of the first layer's input: reaching it takes all layers."""
    words: list[Tensor] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda *at: words.append(at[-1]))
    try:
        with torch.enable_grad():
            hidden, _ = ways.together(model, bundles)
            given = [x for x in (*small, *words) if x.requires_grad]
            if not hidden.requires_grad:  # none of the trainable parts is used
                return ()
            return torch.autograd.grad(hidden.float().square().mean(), given, allow_unused=True)
    finally:
        handle.remove()


def _attend(model: Any, implementation: str) -> None:
    """Choose how attention is computed. Mute the library: Keel itself reports a family that allows no choice."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        model.set_attn_implementation(implementation)
    finally:
        logger.setLevel(level)


# --- generation -----------------------------------------------------------------------------------


@torch.no_grad()
def _expected(model: Any) -> Tensor:
    """Return hidden states [3 steps x rows] of completions generated side by side, one of which ends early."""
    prompts, added = _writers(model)
    texts = [prompts[0], prompts[0], prompts[1], prompts[1]]
    after = [texts, *([text + ids[:n] for text, ids in zip(texts, added, strict=True)] for n in (1, 2))]
    after[2] = [after[2][row] for row in KEPT]
    return torch.stack([passes.padded(model, [text])[0, -1] for step in after for text in step])


KEPT = [0, 3, 2]
"""Rows that go on after the second has finished, in the order of `local.survivors`."""


def _writers(model: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Return two prompts of equal length, and two continuations of each."""
    ids = _tokens(model)
    return [ids[:4], ids[5:9]], [ids[4:6], ids[7:9], ids[5:7], ids[1:3]]


def _written(model: Any) -> Tensor:
    """Generate with prompts kept once; a row leaves after the first token."""
    prompts, added = _writers(model)
    seen, last = passes.prefill(model, prompts)
    device = last.device
    decoding = Decoding(2, 2, 4, 2, device)
    decoding.enter(torch.arange(2, device=device), [4, 4], seen, torch.arange(4, device=device))
    found = [last.repeat_interleave(2, 0)]
    for t, rows in ((0, range(4)), (1, KEPT)):
        if t:
            decoding.keep(torch.tensor(KEPT, device=device))
        found.append(passes.decode(model, torch.tensor([added[row][t] for row in rows], device=device), decoding))
    return torch.cat(found)


def _made(model: Any) -> Tensor:
    """Generate with a cache that the backbone makes itself."""
    return _cached(model, made=True)


def _cached(model: Any, made: bool = False) -> Tensor:
    """Generate with the family's own cache."""
    prompts, added = _writers(model)
    cache = passes.OwnCache(model, made)
    last = cache.start(prompts)
    cache.take(torch.tensor([0, 0, 1, 1], device=last.device))
    found = [last.repeat_interleave(2, 0)]
    for t, rows in ((0, range(4)), (1, KEPT)):
        if t:
            cache.take(torch.tensor(KEPT, device=last.device))
        found.append(cache.step(torch.tensor([added[row][t] for row in rows], device=last.device)))
    return torch.cat(found)


_WRITING: dict[Writing, tuple[Callable[[Any], Tensor], str, str]] = {
    "shared": (_written, "a prompt that is kept once", "answers are generated with its own cache"),
    "cached": (_cached, "its own cache", "each token reads the whole text again"),
}

# --- comparing ------------------------------------------------------------------------------------


def _tokens(model: Any) -> list[int]:
    """Return eleven tokens of the vocabulary."""
    return [(7 * i + 1) % vocabulary_of(model) for i in range(11)]


def _bundles(model: Any) -> list[Bundle]:
    ids = _tokens(model)
    return [
        Bundle(ids[:4], [Completion(ids[4:7]), Completion(ids[5:10])]),
        Bundle(ids[:2], [Completion(ids[2:8]), Completion(ids[1:2])]),
    ]


def _alone(model: Any) -> Tensor:
    """Return the measure: every state of the trial's bundles, each sequence in a pass of its own."""
    return _of(passes.alone(model, _bundles(model)))


def _of(found: tuple[Tensor, passes.States]) -> Tensor:
    hidden, states = found
    return hidden[torch.tensor([i for at in states for i in at], device=hidden.device)]


@torch.no_grad()
def _difference(model: Any, way: Callable[[Any], Tensor], expected: Tensor, noise: float) -> str:
    """Return what is wrong with a way, in a few words; '' if it agrees with `expected`."""
    found = attempt(lambda: way(model))
    if isinstance(found, Exception):
        return _why(found)
    if found.shape != expected.shape:
        return "other shapes"
    distance = _distance(found.float(), expected.float())
    bound = max(1e-5, 30 * noise) if exact(model) else max(0.03, 4 * noise)
    return "" if distance <= bound else f"off by {distance:.1g}"


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the root mean square of the difference, as a share of that of `b`."""
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt().clamp(min=1e-30))


def _why(error: BaseException) -> str:
    return str(error) if isinstance(error, attention.NotPacked) else "it takes no such input"
