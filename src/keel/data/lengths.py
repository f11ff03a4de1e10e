"""Length limit of answers: the requested one, or else as much as the model and the prompts leave room for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from keel.config import Sampling
from keel.says import say

__all__ = ["fitted", "prompt_limit", "remedy"]

S = TypeVar("S", bound=Sampling)
LEAST = 4
"""Without --max-new-tokens an answer gets at least one in so many of the model's positions. Prompts that leave less are
bad rows, so that no single one shortens the answers to all others."""


def prompt_limit(config: Sampling, positions: int | None) -> int | None:
    """Return `max_length` for `Text.encode`: longer prompts leave no room for an answer. None if all fit."""
    if positions is None:
        return None
    wanted = config.max_new_tokens
    return positions + 1 - (wanted if _asked_for(config) else min(wanted, max(1, positions // LEAST)))


def fitted(config: S, positions: int | None, prompts: Iterable[int]) -> S:
    """Return the config with a limit that fits after prompts of these lengths, in tokens; print a change in one line.

    A requested limit stays as it is.
    """
    longest = max(prompts, default=0)
    if positions is None or _asked_for(config) or longest + config.max_new_tokens <= positions:
        return config
    say(
        f"answers: up to {positions - longest} tokens, not {config.max_new_tokens}, since the model has {positions} "
        f"positions and the longest prompt {longest} tokens; --max-new-tokens sets another limit"
    )
    return config.model_copy(update={"max_new_tokens": positions - longest})


def remedy(config: Sampling) -> str:
    """Return the option that makes room for longer prompts; empty if no length was requested."""
    return "lower --max-new-tokens" if _asked_for(config) else ""


def _asked_for(config: Sampling) -> bool:
    return "max_new_tokens" in config.model_fields_set
