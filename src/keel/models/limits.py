"""Limits of a decoder: its vocabulary, its positions, and lengths at which it reads positions differently.

A config of several modalities keeps all of this in its text part, so only that part is read.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from torch import Tensor, nn

POSITIONS = "max_position_embeddings", "n_positions", "max_target_positions", "max_seq_len"
"""Names in configs for the number of tokens that a model can read."""


def text_config(model: Any) -> Any:
    """Return the part of a model's config that is about text."""
    return model.config.get_text_config(decoder=True)


def vocabulary_of(model: Any) -> int:
    """Return V: the number of ids that the model can read and, if it has an output head, write."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    return min(int(table.weight.shape[0]) for table in tables if isinstance(getattr(table, "weight", None), Tensor))


def positions(model: Any) -> int | None:
    """Return how many tokens the model can read, None if it sets no limit.

    A table of positions numbered from behind the padding id (RoBERTa's kind) holds that many fewer.
    """
    config = text_config(model)
    limit = next((int(n) for name in POSITIONS if (n := getattr(config, name, None)) is not None and n > 0), None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            own = module.num_embeddings - module.padding_idx - 1
            limit = own if limit is None else min(limit, own)
    return limit


def switches(model: Any) -> tuple[int, ...]:
    """Return the lengths beyond which a whole text has other rotary positions (`longrope`), ascending.

    Transformers chooses by the longest text of a call, so texts on both sides must not share a call.
    """
    given = getattr(text_config(model), "rope_parameters", None) or {}
    kinds = [given, *(value for value in given.values() if isinstance(value, dict))]
    own = {int(k["original_max_position_embeddings"]) for k in kinds if k.get("rope_type") == "longrope"}
    return tuple(sorted(own))


def switches_passed(lengths: tuple[int, ...], tokens: int) -> int:
    """Return how many of the switches a text of this many tokens exceeds."""
    return bisect_left(lengths, tokens)
