"""Formats that carry judgments: one entry each in `JUDGED`, in the order in which they are tried.

Of formats with the same columns, the more specific one comes first. `trl`, which fits any `chosen` and `rejected`,
comes after those; formats of no tool in particular come last.
"""

from __future__ import annotations

from keel.formats.judgments.argilla import ARGILLA
from keel.formats.judgments.base import Judged
from keel.formats.judgments.benches import BENCHES, LISTS
from keel.formats.judgments.chats import CHATS
from keel.formats.judgments.generic import GENERIC
from keel.formats.judgments.label_studio import LABEL_STUDIO
from keel.formats.judgments.llama_factory import LLAMA_FACTORY
from keel.formats.judgments.pairs import HH, PAIR_FORMATS
from keel.formats.judgments.ranks import RANKS
from keel.formats.judgments.scores import SCORES
from keel.formats.judgments.votes import VOTES

__all__ = ["GENERIC", "JUDGED", "Judged"]

JUDGED: tuple[Judged, ...] = (
    HH,
    *RANKS,
    *LLAMA_FACTORY,
    *CHATS,
    *LISTS,
    *PAIR_FORMATS,
    *SCORES,
    *VOTES,
    *BENCHES,
    *LABEL_STUDIO,
    ARGILLA,
    *GENERIC,
)
