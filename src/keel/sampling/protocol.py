"""Protocol of samplers, which fill bundles with completions, and the options of a draw.

    sampler = LocalSampler(model, text, SamplingOptions(max_new_tokens=64), seed=0)
    bundles = sample(sampler, prompts, 4, "rollout", step)

Draws are named by seed and purpose (`keel.seeds`). A prompt that leaves no room for an answer never comes here: it is
counted and left out when prompts become bundles (`Text.encode`, up to `lengths.prompt_limit`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from keel.config import Sampling
from keel.errors import RunFailed
from keel.records import Bundle, Completion, Prompt
from keel.text.tokenisation import Text, named

OnProgress = Callable[[int], None]
"""Callback that takes the number of completions that have just finished."""
Filled = tuple[int, list[Completion], str]
"""Index of a bundle, its new completions, and why they are fewer than were asked for."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Options of a draw: `SamplingOptions(max_new_tokens=64, temperature=0.7)`."""

    max_new_tokens: int
    """Length limit. A completion that reaches it without EOS is marked truncated."""
    temperature: float = 1.0
    """Divides the logits. 0 takes the likeliest token; log-probabilities are then those at temperature 1."""
    top_p: float = 1.0
    """Below 1, draw from the smallest set of tokens whose probability reaches this, and keep the log-probability within
    the set."""
    max_rows: int = 256
    """Completions decoded at once in this process."""


def options_of(config: Sampling, top_p: float = 1.0) -> SamplingOptions:
    """Return the sampling options in a command's config; pass in its `top_p` if it has one."""
    return SamplingOptions(config.max_new_tokens, config.temperature, top_p, config.max_rows)


class Sampler(Protocol):
    """Source of completions: a model in this process, or one behind a server."""

    def fill(
        self,
        bundles: Sequence[Bundle],
        n: int,
        *purpose: object,
        have: int = 0,
        progress: OnProgress | None = None,
    ) -> Iterator[list[Filled]]:
        """Draw n completions of every bundle's prompt, and yield them as they come, in any order.

        `purpose` names the draw: two purposes draw independently. So do two values of `have`, the number of completions
        that each bundle has had under the same purpose before. The bundles are not changed. One list belongs together:
        a caller that is stopped must have kept all of it or nothing.
        """
        ...


def sample(
    sampler: Sampler, bundles: Sequence[Bundle], n: int, *purpose: object, progress: OnProgress | None = None
) -> list[Bundle]:
    """Return the bundles in their order, each with n completions in place of any that it has.

    Raises `RunFailed` if a sampler cannot give all of them.
    """
    found: dict[int, list[Completion]] = {}
    for some in sampler.fill(bundles, n, *purpose, progress=progress):
        for index, completions, why in some:
            if why:
                raise RunFailed(f"{len(completions)} of {n} completions of {named(bundles[index])}: {why}")
            found[index] = completions
    return [replace(bundle, completions=found[index]) for index, bundle in enumerate(bundles)]


def as_bundles(text: Text, prompts: Sequence[Prompt]) -> list[Bundle]:
    """Return prompts as bundles without completions."""
    return [Bundle(text.prompt_ids(prompt), [], prompt=prompt) for prompt in prompts]
