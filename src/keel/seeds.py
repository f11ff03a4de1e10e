"""Random draws by name: a generator for each purpose, so that no generator's state is ever saved."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands that draw nothing need no torch
    import torch


def generator(seed: int, *purpose: object) -> torch.Generator:
    """Return the generator of a purpose: `generator(0, "rollout", 17)` draws the same on every call and machine."""
    import torch

    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
