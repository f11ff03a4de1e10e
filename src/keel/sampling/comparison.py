"""A trained policy's answers to a few held-out prompts, beside its reference's answers, and the KL between the two.

This is a look at the end of a run: few prompts, short answers, a generator of its own. Left out: the KL of whole
answers if they are longer (PPO's `objective/kl` is that, in training).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from keel.config import Machine
from keel.engine.forward import in_batches, token_logps
from keel.engine.verdict import ReferenceComparison, Sample
from keel.errors import KeelError, on_one_line
from keel.models.limits import positions
from keel.models.roles import Role
from keel.records import Bundle
from keel.sampling.local import LocalSampler
from keel.sampling.protocol import SamplingOptions, sample
from keel.text.tokenisation import Text, prompt_text

_ANSWERS = 32
"""Answers of the policy and of the reference, one per prompt if there are enough prompts."""
_LONGEST = 64
"""Maximum tokens of an answer."""
_SAMPLES = 3
"""Number of answers shown."""


def compare_with_reference(
    policy: Role,
    reference: Role,
    text: Text,
    held_out: Sequence[Bundle],
    machine: Machine,
    *,
    temperature: float = 1.0,
    max_new_tokens: int = _LONGEST,
    name: str = "reference",
) -> ReferenceComparison:
    """Draw the policy's and the reference's answers to held-out prompts, and measure both by the reference.

    Both draw from the same generator. If the draw fails, the run does not: the result says why. `name` labels the
    reference's text in a sample.
    """
    if not held_out:
        return ReferenceComparison(why="not measured: nothing is held out (--holdout 0.1)")
    longest = min(max_new_tokens, _LONGEST)
    prompts = _few(held_out, policy.model, longest)
    if not prompts:
        return ReferenceComparison(why=f"not measured: no held-out prompt leaves room for {longest} tokens")
    n = max(1, _ANSWERS // len(prompts))
    options = SamplingOptions(longest, temperature)
    try:
        logps = partial(token_logps, temperature=temperature)
        with policy.active() as model:
            new = sample(LocalSampler(model, text, options, machine.seed), prompts, n, "verdict")
            of_policy = _split(in_batches(logps, model, new, machine.micro_tokens), new)
        with reference.active() as model:
            own = sample(LocalSampler(model, text, options, machine.seed), prompts, n, "verdict")
            of_reference = _split(in_batches(logps, model, new, machine.micro_tokens), new)
            itself = _split(in_batches(logps, model, own, machine.micro_tokens), own)
    except (KeelError, torch.OutOfMemoryError) as error:
        return ReferenceComparison(why=f"not measured: {on_one_line(error)}")
    ratios = np.array([float((p - r).sum()) for p, r in zip(of_policy, of_reference, strict=True)])
    samples = [
        Sample(prompt_text(b.prompt), {name: a.completions[0].text, "kept": b.completions[0].text})
        for b, a in zip(new[:_SAMPLES], own[:_SAMPLES], strict=True)
    ]
    return ReferenceComparison(
        samples,
        *_mean_and_error(ratios.reshape(len(prompts), n)),
        answers=len(ratios),
        longest=longest,
        own=_per_token(itself),
        new=_per_token(of_reference),
    )


def _few(held_out: Sequence[Bundle], model: nn.Module, longest: int) -> list[Bundle]:
    """Return the first distinct prompts that leave room for an answer."""
    limit = positions(model)
    fitting = [b for b in held_out if limit is None or len(b.prompt_ids) + longest <= limit]
    return list({tuple(b.prompt_ids): b for b in reversed(fitting)}.values())[::-1][:_ANSWERS]


def _split(flat: Sequence[Tensor], bundles: Sequence[Bundle]) -> list[Tensor]:
    """Return one double tensor per completion, from one per bundle."""
    parts = [part for x, b in zip(flat, bundles, strict=True) for part in x.split([len(c) for c in b.completions])]
    return [part.double().cpu() for part in parts]


def _per_token(logps: Sequence[Tensor]) -> float:
    return float(torch.cat(list(logps)).mean())


def _mean_and_error(values: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> tuple[float, float | None]:
    """Return the mean of [prompts, n] and its standard error.

    The independent examples are the prompts, or the answers if there is only one prompt.
    """
    means = values.mean(1) if len(values) > 1 else values[0]
    error = float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else None
    return float(values.mean()), error
