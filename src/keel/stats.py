"""Rates and means with 95 % intervals, agreement, and the arithmetic of best-of-N. numpy and scipy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval and the number of independent examples behind it."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: float, n: int) -> Estimate:
    """Return the Wilson score interval for a rate (Wilson 1927); `successes` may be a multiple of 1/2 (ties)."""
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    p = min(1.0, max(0.0, successes / n))  # successes may be a product, which rounding can lift above n
    return Estimate(p, *_wilson(p, n), n)


def _wilson(p: float, n: float) -> tuple[float, float]:
    """Return the interval's ends for a rate p of n, which need not be whole; p lies between them despite rounding."""
    z = float(stats.norm.ppf(0.975))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def rate(outcomes: ArrayLike, clusters: Sequence[object] | None = None) -> Estimate:
    """Return a rate and its interval, from outcomes in [0, 1], ties as 1/2. NaN is missing: left out, never 0.

    With `clusters` (one label per outcome, e.g. the prompt) it is Wilson's interval for the effective sample size: the
    number of independent outcomes that would vary as much as the clusters do (Kish), at most the number of outcomes.
    `n` then counts clusters. A rate of 0 or 1 shows no variation: then each cluster counts as one outcome.
    """
    x = np.asarray(outcomes, dtype=np.float64)
    keep = ~np.isnan(x)
    x = x[keep]
    if clusters is None or not len(x):
        return wilson(float(x.sum()), len(x))
    index = _numbered(clusters, keep)
    p, n = float(x.mean()), int(index.max()) + 1
    variation = float((np.bincount(index, x - p) ** 2).sum())
    effective = len(x) * min(1.0, len(x) * p * (1 - p) / variation) if variation else float(n)
    return Estimate(p, *_wilson(p, effective), n)


def _numbered(clusters: Sequence[object], keep: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the cluster number of each kept value, counted from 0."""
    _, index = np.unique([str(c) for c, k in zip(clusters, keep, strict=True) if k], return_inverse=True)
    return index


def mean(values: ArrayLike, clusters: Sequence[object] | None = None) -> Estimate:
    """Return the mean with a Student-t interval; NaN entries are missing and left out.

    With `clusters` (one label per value, e.g. the prompt) the clusters' means, weighted by their sizes, are the
    independent examples.
    """
    x = np.asarray(values, dtype=np.float64)
    keep = ~np.isnan(x)
    if clusters is not None:
        index = _numbered(clusters, keep)
        x = x[keep]
        sizes = np.bincount(index)
        centre = float(x.mean()) if len(x) else math.nan
        residuals = np.bincount(index, x - centre)
        n = len(sizes)
        if n < 2:
            return Estimate(centre, -math.inf, math.inf, n)
        error = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / float(sizes.sum())
    else:
        x = x[keep]
        n = len(x)
        centre = float(x.mean()) if n else math.nan
        if n < 2:
            return Estimate(centre, -math.inf, math.inf, n)
        error = float(x.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return Estimate(centre, centre - half, centre + half, n)


def win_outcomes(left: ArrayLike, right: ArrayLike) -> Floats:
    """Return 1 if left wins, 1/2 for a tie, 0 if it loses, NaN if either is missing; elementwise."""
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    return np.where(np.isnan(a) | np.isnan(b), np.nan, (a > b) + 0.5 * (a == b))


# --- best-of-N ------------------------------------------------------------------------------------


def best_of_n_kl(n: int) -> float:
    """Return KL(best-of-n || reference) in nats, log n - (n - 1) / n: exact without ties, else an upper bound."""
    return math.log(n) - (n - 1) / n


def best_of_n_law(reference: ArrayLike, scores: ArrayLike, n: int) -> Floats:
    """Return the exact law of best-of-n over a finite set: F^n - F_-^n per score, split by `reference` among ties."""
    p, s = np.asarray(reference, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    law = np.zeros_like(p)
    below = 0.0
    for level in np.unique(s):
        at = s == level
        mass = float(p[at].sum())
        law[at] = ((below + mass) ** n - below**n) * p[at] / mass if mass > 0 else 0.0
        below += mass
    return law


def best_of_n_curve(proxy: ArrayLike, values: ArrayLike, n: int) -> Floats:
    """Estimate the expected value of the best of n by `proxy`, per prompt, without bias, from M >= n samples each.

    proxy, values: [prompts, M]. Averages over all subsets of size n: the sample of proxy rank i (from 1) is the best
    of its subset with probability C(i - 1, n - 1) / C(M, n). Samples with equal proxy share their probability, as if
    the best were chosen among them at random. Returns [prompts].
    """
    p, v = np.asarray(proxy, dtype=np.float64), np.asarray(values, dtype=np.float64)
    m = p.shape[1]
    rank = np.arange(1, m + 1)
    log_weight = _log_choose(rank - 1, n - 1) - _log_choose(np.array([m]), n)
    weight = np.where(rank >= n, np.exp(log_weight), 0.0)
    result = np.empty(len(p))
    for i in range(len(p)):
        order = np.argsort(p[i], kind="stable")
        _, level = np.unique(p[i][order], return_inverse=True)
        shared = (np.bincount(level, weight) / np.bincount(level))[level]
        result[i] = float((shared * v[i][order]).sum())
    return result


def _log_choose(a: NDArray[np.int64], b: int) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.asarray(special.gammaln(a + 1) - special.gammaln(b + 1) - special.gammaln(a - b + 1))


# --- separating two kinds -------------------------------------------------------------------------


def auc(positives: ArrayLike, negatives: ArrayLike) -> Estimate:
    """Return the probability that a positive's value exceeds a negative's, ties as 1/2.

    The interval is DeLong's (DeLong et al. 1988), cut at 0 and 1. `n` counts both kinds; NaN if one of them is missing.
    """
    x, y = np.asarray(positives, dtype=np.float64), np.asarray(negatives, dtype=np.float64)
    if not len(x) or not len(y):
        return Estimate(math.nan, 0.0, 1.0, len(x) + len(y))
    ranks = stats.rankdata(np.concatenate([x, y]))
    above = (ranks[: len(x)] - stats.rankdata(x)) / len(y)  # share of negatives below each positive
    below = 1 - (ranks[len(x) :] - stats.rankdata(y)) / len(x)  # share of positives above each negative
    area = min(1.0, float(above.mean()))
    if min(len(x), len(y)) < 2:
        return Estimate(area, 0.0, 1.0, len(x) + len(y))
    half = float(stats.norm.ppf(0.975)) * math.sqrt(above.var(ddof=1) / len(x) + below.var(ddof=1) / len(y))
    return Estimate(area, max(0.0, area - half), min(1.0, area + half), len(x) + len(y))


# --- calibration ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Mean predicted probability of a bin, and its observed rate."""

    predicted: float
    observed: Estimate


def calibration(probability: ArrayLike, outcome: ArrayLike, bins: int = 10) -> tuple[list[CalibrationBin], float]:
    """Return bins of equal count, and the expected calibration error (weighted mean |predicted - observed|)."""
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, max(1, len(p)))) if len(part)]
    result = [CalibrationBin(float(p[part].mean()), rate(y[part])) for part in parts]
    error = sum(b.observed.n * abs(b.predicted - b.observed.mean) for b in result) / max(1, len(p))
    return result, float(error)


# --- agreement ------------------------------------------------------------------------------------


def cohen_kappa(first: ArrayLike, second: ArrayLike) -> float:
    """Return the agreement of two raters on the same items beyond chance, (p_o - p_e) / (1 - p_e) (Cohen 1960).

    NaN without items, and if both give one and the same answer to all, since nothing can then exceed chance.
    """
    a, b = np.asarray(first), np.asarray(second)
    if not len(a):
        return math.nan
    _, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    table = np.zeros((codes.max() + 1,) * 2)
    np.add.at(table, (codes[: len(a)], codes[len(a) :]), 1 / len(a))
    expected = float(table.sum(0) @ table.sum(1))
    return (float(np.trace(table)) - expected) / (1 - expected) if expected < 1 else math.nan


def fleiss_kappa(counts: ArrayLike) -> float:
    """Return the agreement of any raters beyond chance (Fleiss 1971): `counts[i, c]` raters put item i in category c.

    Raises ValueError unless every item has the same number of raters, at least two. NaN if all answers are the same.
    """
    n = np.asarray(counts, dtype=np.float64)
    raters = n.sum(1)
    if not len(n) or raters.min() < 2 or raters.min() != raters.max():
        raise ValueError("Fleiss' kappa needs items with the same number of raters, at least two")
    k = float(raters[0])
    observed = float(((n**2).sum(1) - k).mean() / (k * (k - 1)))
    expected = float(((n.sum(0) / n.sum()) ** 2).sum())
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def krippendorff_alpha(units: ArrayLike, values: ArrayLike, *, interval: bool, resamples: int = 1_000) -> Estimate:
    """Return Krippendorff's alpha, with a bootstrap interval over units; `values[i]` is a rater's value for `units[i]`.

    alpha = 1 - D_o / D_e, the observed disagreement within units over that expected between all values. It is nominal
    (equal or not) or, with `interval`, of squared differences (Krippendorff 2004, 11.3). Units with one rater are left
    out; `n` counts the others. NaN if none are left or all values are equal. The bootstrap's seed is fixed.
    """
    _, unit = np.unique(np.asarray(units), return_inverse=True)
    number, said = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True)
    often = np.bincount(unit) > 1
    keep = often[unit]
    if not keep.any():
        return Estimate(math.nan, math.nan, math.nan, 0)
    _, unit = np.unique(unit[keep], return_inverse=True)
    sums = _interval_sums(unit, number[said[keep]]) if interval else _nominal_sums(unit, said[keep], len(number))
    expected = _interval_expected if interval else _nominal_expected

    def alpha(total: Floats) -> float:
        chance = expected(total)
        return 1 - float(total[0]) / chance if chance > 0 else math.nan

    rng = np.random.default_rng(0)
    n = len(sums)
    resamples = max(200, min(resamples, 50_000_000 // n))
    drawn = [alpha(np.bincount(rng.integers(n, size=n), minlength=n) @ sums) for _ in range(resamples)]
    low, high = np.nanquantile(drawn, [0.025, 0.975]) if not np.isnan(drawn).all() else (math.nan, math.nan)
    return Estimate(alpha(sums.sum(0)), float(low), float(high), n)


def _nominal_sums(unit: NDArray[np.intp], said: NDArray[np.intp], kinds: int) -> Floats:
    """Return for each unit its disagreement, and how often each value was given."""
    counts = np.zeros((unit.max() + 1, kinds))
    np.add.at(counts, (unit, said), 1)
    size = counts.sum(1)
    return np.column_stack([(size**2 - (counts**2).sum(1)) / (size - 1), counts])


def _nominal_expected(total: Floats) -> float:
    counts = total[1:]
    n = float(counts.sum())
    return (n**2 - float((counts**2).sum())) / (n - 1)


def _interval_sums(unit: NDArray[np.intp], value: Floats) -> Floats:
    """Return for each unit its disagreement, the number of its values, their sum and the sum of their squares."""
    value = value - value.mean()  # leaves differences unchanged, and the squares lose no digits
    size, first, second = (np.bincount(unit, weights) for weights in (None, value, value**2))
    return np.column_stack([2 * (size * second - first**2) / (size - 1), size, first, second])


def _interval_expected(total: Floats) -> float:
    _, n, first, second = (float(x) for x in total)
    return 2 * (n * second - first**2) / (n - 1)


def distinct_n(token_lists: Sequence[Sequence[object]], n: int = 2) -> float:
    """Return distinct n-grams over all n-grams of a set of texts (Li et al. 2016). Compare only sets of equal size."""
    seen: set[tuple[object, ...]] = set()
    total = 0
    for tokens in token_lists:
        for i in range(len(tokens) - n + 1):
            seen.add(tuple(tokens[i : i + n]))
            total += 1
    return len(seen) / total if total else math.nan
