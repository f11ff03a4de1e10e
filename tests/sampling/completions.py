"""Completions of a batch, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from keel.records import Bundle, Completion


def completions_of(bundles: Sequence[Bundle]) -> list[Completion]:
    return [c for b in bundles for c in b.completions]
