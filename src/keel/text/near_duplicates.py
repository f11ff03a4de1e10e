"""Near-duplicate texts: groups in which texts share most of their runs of words.

Two texts are near if the Jaccard similarity of their sets of three-word shingles (size of the intersection over
that of the union) reaches a threshold. Candidates come from MinHash signatures of 256 hashes, cut into bands: texts
equal in any band are compared. The comparison itself is exact (over 64-bit hashes of shingles). Only a *miss* is a
matter of chance: at most one pair in a hundred at the threshold itself, fewer above it.

Memory is linear in the corpus: at the peak 2 kB for a prompt of 30 words. So is the work, unless thousands of texts
are all neither near nor far, for example if two thirds of each are one template: then it grows with their square.
Words are letters and digits in lower case, whatever their Unicode form; each Chinese or Japanese character is a word.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keel.errors import InputError
from keel.text.same import fold

HASHES = 256
_CHUNK = 4096  # texts whose hashes are computed at once: some megabytes
_WORD = re.compile(r"[぀-ヿ㐀-鿿]|[^\W぀-ヿ㐀-鿿]+")

Indices = NDArray[np.intp]
Words64 = NDArray[np.uint64]


def near_duplicates(texts: Sequence[str], threshold: float = 0.8, *, size: int = 3, seed: int = 0) -> list[list[int]]:
    """Return groups of two or more indices, each sorted, ordered by their first; texts without words are in none.

    Each text of a group is near at least one other of it, not necessarily all. `size` is the number of words per
    shingle; a shorter text is one shingle. The same seed gives the same groups.
    """
    if not 0 < threshold <= 1 or size < 1:
        raise InputError(f"threshold {threshold:g}, {size} words per shingle: give 0 < threshold <= 1 and size >= 1")
    texts = [fold(text) for text in texts]
    equal: dict[bytes, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        if words := _WORD.findall(text.lower()):
            equal[hashlib.blake2b(" ".join(words).encode("utf-8", "replace"), digest_size=16).digest()].append(index)
    if not equal:
        return []
    copies = list(equal.values())
    corpus = _signed([texts[first] for first, *_ in copies], size, _rows(threshold), seed)
    groups = _Groups(len(copies))
    for band in range(corpus.bands.shape[1]):
        for bucket in _buckets(corpus.bands[:, band]):
            _join(bucket, band, corpus, groups, threshold)
    merged = groups.all()
    inside = {member for group in merged for member in group}
    merged += [[member] for member, alike in enumerate(copies) if len(alike) > 1 and member not in inside]
    return sorted(sorted(index for member in group for index in copies[member]) for group in merged)


def _rows(threshold: float) -> int:
    """Return the hashes per band: the most that leave a pair at the threshold 99 chances in 100 of sharing a band."""
    return max(r for r in range(1, HASHES + 1) if r == 1 or 1 - (1 - threshold**r) ** (HASHES // r) >= 0.99)


# --- signatures -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Corpus:
    """Signatures and shingles: `bands` uint64 [N, B]; `traces`, the low bytes of all minima, uint8 [N, 256].

    The shingles of text i, sorted and distinct, are `shingles[bounds[i]:bounds[i + 1]]`, uint64.
    """

    bands: Words64
    traces: NDArray[np.uint8]
    shingles: Words64
    bounds: Indices


def _signed(texts: list[str], size: int, rows: int, seed: int) -> _Corpus:
    draw = np.random.Generator(np.random.PCG64(seed))
    odd = draw.integers(0, 2**63, (2, HASHES), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    vocabulary: dict[str, int] = {}
    used = HASHES // rows * rows
    bands, traces, shingles, lengths = [], [], [], []
    for start in range(0, len(texts), _CHUNK):
        flat, counts = _shingles(texts[start : start + _CHUNK], size, vocabulary)
        firsts = np.cumsum(counts) - counts
        minima = np.stack([np.minimum.reduceat((flat * a) >> np.uint64(32), firsts) for a in odd[0]], axis=1)
        bands.append(_mixed((minima * odd[1])[:, :used].reshape(len(counts), -1, rows).sum(axis=2, dtype=np.uint64)))
        traces.append(minima.astype(np.uint8))
        shingles.append(flat)
        lengths.append(counts)
    bounds = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return _Corpus(np.concatenate(bands), np.concatenate(traces), np.concatenate(shingles), bounds)


def _shingles(texts: list[str], size: int, vocabulary: dict[str, int]) -> tuple[Words64, Indices]:
    """Return hashes of the texts' shingles, sorted and distinct within each text, and each text's count (1 or more)."""
    words = [[vocabulary.setdefault(w, 1 + len(vocabulary)) for w in _WORD.findall(text.lower())] for text in texts]
    words = [ids + [0] * (size - len(ids)) for ids in words]  # a text that is too short is padded with 0
    flat = _mixed(np.fromiter((i for ids in words for i in ids), np.uint64))
    owner = np.repeat(np.arange(len(words)), [len(ids) for ids in words])
    ends = len(flat) - size + 1
    hashes = np.zeros(ends, np.uint64)
    for step in range(size):
        hashes = _mixed(hashes + flat[step : step + ends])
    whole = owner[:ends] == owner[size - 1 :]
    hashes, owner = hashes[whole], owner[:ends][whole]
    order = np.lexsort((hashes, owner))
    hashes, owner = hashes[order], owner[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
    return hashes[new], np.bincount(owner[new], minlength=len(words))


def _mixed(values: Words64) -> Words64:
    """Return SplitMix64's final mix: neighbouring numbers become independent."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# --- comparing ------------------------------------------------------------------------------------


class _Groups:
    """Groups of `count` texts: `label` int [N] is the group of each. In a merge the larger group keeps its label."""

    def __init__(self, count: int) -> None:
        self.label = np.arange(count)
        self._members: dict[int, list[int]] = {}

    def merge(self, one: int, other: int) -> None:
        kept, gone = (int(self.label[i]) for i in (one, other))
        if kept == gone:
            return
        members = [self._members.pop(label, [label]) for label in (kept, gone)]
        if len(members[0]) < len(members[1]):
            kept, members = gone, members[::-1]
        self.label[members[1]] = kept
        self._members[kept] = members[0]
        self._members[kept] += members[1]

    def all(self) -> list[list[int]]:
        """Return the groups of two or more."""
        return list(self._members.values())


def _buckets(band: Words64) -> Iterator[Indices]:
    """Yield, for each value that two or more texts share, their indices in order."""
    order = np.argsort(band, kind="stable")
    breaks = np.flatnonzero(np.diff(band[order])) + 1
    starts, ends = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(order)]])
    for start, end in zip(*(a[ends - starts > 1] for a in (starts, ends)), strict=True):
        yield order[start:end]


def _join(bucket: Indices, band: int, corpus: _Corpus, groups: _Groups, threshold: float) -> None:
    """Merge the near texts of a bucket. A pair that shared an earlier band is skipped: it was compared then."""
    least = HASHES * threshold - 3 * (HASHES * threshold * (1 - threshold)) ** 0.5  # equal minima, less 3 deviations
    for place, one in enumerate(bucket[:-1]):
        others = bucket[place + 1 :]
        others = others[groups.label[others] != groups.label[one]]
        others = others[_count(corpus.traces[others] == corpus.traces[one]) >= least]
        others = others[~(corpus.bands[others, :band] == corpus.bands[one, :band]).any(axis=1)]
        if len(others):
            for other in others[_similarities(one, others, corpus) >= threshold]:
                groups.merge(one, other)


def _count(equal: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of true entries per row of [M, 256]: [M].

    Eight bytes are summed at once as one uint64; each byte counts at most 32, so none overflows.
    """
    eights = equal.view(np.uint64).sum(axis=1, dtype=np.uint64).view(np.uint8).reshape(-1, 8)
    return np.asarray(eights.sum(axis=1, dtype=np.int64))


def _similarities(one: int, others: Indices, corpus: _Corpus) -> NDArray[np.float64]:
    """Return the Jaccard similarity of one text's shingles with those of each of the others: [M]."""
    own = corpus.shingles[corpus.bounds[one] : corpus.bounds[one + 1]]
    counts = corpus.bounds[others + 1] - corpus.bounds[others]
    firsts = np.cumsum(counts) - counts
    theirs = corpus.shingles[np.repeat(corpus.bounds[others] - firsts, counts) + np.arange(counts.sum())]
    nearest = own[np.minimum(np.searchsorted(own, theirs), len(own) - 1)]
    shared = np.add.reduceat(nearest == theirs, firsts, dtype=np.intp)
    return np.asarray(shared / (len(own) + counts - shared))
