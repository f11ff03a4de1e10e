"""Formats that carry judgments: one entry each in `JUDGED`, in the order in which they are tried.

Formats of the same columns stand with the more particular one first; `trl`, which any `chosen` and `rejected` fit,
comes after those; those of no tool in particular come last.
"""

from __future__ import annotations

from keel.data.judged.argilla import ARGILLA
from keel.data.judged.base import Judged
from keel.data.judged.benches import BENCHES, LISTS
from keel.data.judged.chats import CHATS
from keel.data.judged.generic import GENERIC
from keel.data.judged.label_studio import LABEL_STUDIO
from keel.data.judged.llama_factory import LLAMA_FACTORY
from keel.data.judged.pairs import HH, PAIRS
from keel.data.judged.ranks import RANKS
from keel.data.judged.scores import SCORES
from keel.data.judged.votes import VOTES

__all__ = ["GENERIC", "JUDGED", "Judged"]

JUDGED: tuple[Judged, ...] = (
    HH,
    *RANKS,
    *LLAMA_FACTORY,
    *CHATS,
    *LISTS,
    *PAIRS,
    *SCORES,
    *VOTES,
    *BENCHES,
    *LABEL_STUDIO,
    ARGILLA,
    *GENERIC,
)
