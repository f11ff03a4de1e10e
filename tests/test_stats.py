"""Statistics against scipy, scikit-learn, simulation and plain enumeration."""

from __future__ import annotations

import itertools
import math

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from tests.bradley_terry import bradley_terry_fit

from keel import stats
from keel.stats import (
    Estimate,
    auc,
    best_of_n_curve,
    best_of_n_kl,
    best_of_n_law,
    calibration,
    cohen_kappa,
    distinct_n,
    fleiss_kappa,
    krippendorff_alpha,
    mean,
    rate,
    wilson,
    win_outcomes,
)

# --- intervals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (7, 7), (3, 10), (1, 1), (55, 100), (999, 1000)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    found = wilson(successes, n)
    expected = scipy_stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert (found.mean, found.n) == (successes / n, n)
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)


def test_wilson_takes_half_wins() -> None:
    """Its ends are the rates whose score test just fails: |p - q| = z sqrt(q (1 - q) / n)."""
    found = wilson(4.5, 12)
    for end in (found.low, found.high):
        assert abs(4.5 / 12 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 12), rel=1e-6)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 3_000))
def test_an_interval_holds_its_mean(outcomes: list[float], clusters: int, n: int) -> None:
    """To the last bit: what draws it subtracts one from the other."""
    labels = [i % clusters for i in range(len(outcomes))]
    share = float(np.mean(outcomes))
    found = [wilson(n, n), wilson(0, n), wilson(share * n, n), rate(outcomes), rate(outcomes, labels)]
    found += [auc(outcomes, outcomes[::-1]), auc([1.0] * clusters, [0.0] * n), mean([*outcomes, 0.1], [*labels, 9])]
    for one in found:
        assert one.low <= one.mean <= one.high
        assert one.mean <= 1 or one is found[-1]


def test_a_rate_of_nothing_is_unknown() -> None:
    found = wilson(0, 0)
    assert math.isnan(found.mean)
    assert (found.low, found.high, found.n) == (0.0, 1.0, 0)


def test_rate_leaves_missing_out() -> None:
    assert rate([1, 0.5, math.nan, 0, 1]) == wilson(2.5, 4)


def test_a_rate_over_copies_is_that_of_the_originals() -> None:
    """Each outcome three times: as many independent ones as there were before."""
    once = [1, 0, 0.5, 0, 0, 1, 1, 0, 1, 1]
    found = rate([x for x in once for _ in range(3)], [f"prompt {i}" for i in range(10) for _ in range(3)])
    # Halves vary less than a rate of whole outcomes would, which Wilson's interval leaves aside.
    whole = rate([x for x in (1, 0, 0, 0, 1, 1) for _ in range(3)], [i for i in range(6) for _ in range(3)])
    expected = wilson(3, 6)
    assert (whole.mean, whole.low, whole.high, whole.n) == pytest.approx((0.5, expected.low, expected.high, 6))
    assert (found.mean, found.n) == (0.55, 10)
    assert rate([0.55] * 10).low == pytest.approx(wilson(5.5, 10).low)
    assert wilson(5.5, 10).low < found.low < wilson(16.5, 30).low


def test_clusters_of_one_are_plain_outcomes() -> None:
    assert rate([1, 0, 0, 1, 1], "abcde") == wilson(3, 5)
    assert rate([1, 1, 1, 1], "aabb") == wilson(2, 2)
    assert rate([1, math.nan, 0], "aab") == rate([1, 0])
    assert rate([], []) == wilson(0, 0) or math.isnan(rate([], []).mean)


def test_a_clustered_rate_is_never_surer_than_a_plain_one() -> None:
    """Clusters of a win and a loss each vary less than coins do; the interval is that of 24 coins all the same."""
    found = rate([1, 0] * 10 + [1, 1, 0, 0], [i // 2 for i in range(24)])
    expected = scipy_stats.binomtest(12, 24).proportion_ci(method="wilson")
    assert (found.mean, found.n) == (0.5, 12)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_clustered_rate_holds_what_it_promises() -> None:
    """Four pairs of each prompt, alike by the prompt: 95 % of the intervals hold the true rate; plain ones do not."""
    draw = np.random.default_rng(5)
    held = {"clustered": 0, "plain": 0}
    for _ in range(400):
        share = draw.beta(2, 1, size=120)
        outcomes = (draw.random((120, 4)) < share[:, None]).astype(float).ravel()
        prompts = np.repeat(np.arange(120), 4).tolist()
        for name, found in (("clustered", rate(outcomes, prompts)), ("plain", rate(outcomes))):
            held[name] += found.low <= 2 / 3 <= found.high
    assert 0.92 <= held["clustered"] / 400 <= 0.98
    assert held["plain"] / 400 < 0.9


def test_mean_is_students() -> None:
    x = np.random.default_rng(0).normal(3, 2, 9)
    found = mean([*x, math.nan])
    low, high = scipy_stats.t.interval(0.95, 8, loc=x.mean(), scale=scipy_stats.sem(x))
    assert (found.mean, found.low, found.high) == pytest.approx((x.mean(), low, high))
    assert found.n == 9


@pytest.mark.parametrize("clusters", [None, ["a"]])
def test_one_value_has_no_interval(clusters: list[str] | None) -> None:
    assert mean([2.0], clusters) == Estimate(2.0, -math.inf, math.inf, 1)
    assert math.isnan(mean([]).mean)


def test_clusters_of_one_are_plain_examples() -> None:
    x = np.random.default_rng(0).normal(size=20)
    plain, clustered = mean(x), mean(x, list(range(20)))
    assert (clustered.low, clustered.high, clustered.n) == pytest.approx((plain.low, plain.high, 20))


def test_equal_clusters_are_their_means() -> None:
    """Four answers to each prompt: the interval is that of the prompts' means, not of four times as many examples."""
    x = np.random.default_rng(0).normal(size=(15, 1)) + 0.1 * np.random.default_rng(1).normal(size=(15, 4))
    found = mean(x.ravel(), [f"prompt {i}" for i in range(15) for _ in range(4)])
    expected = mean(x.mean(1))
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert found.n == 15


def test_missing_values_leave_their_cluster() -> None:
    assert mean([1.0, math.nan, 3.0, math.nan], ["a", "a", "b", "c"]) == mean([1.0, 3.0], ["a", "b"])


def covers(interval: Estimate, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def test_cluster_interval_covers_as_often_as_it_says() -> None:
    """Unequal clusters that share an effect: 95 % of the intervals hold the truth, of the naive ones far fewer."""
    rng = np.random.default_rng(0)
    clustered = naive = 0
    for _ in range(1000):
        sizes = rng.integers(1, 8, 40)
        labels = np.repeat(np.arange(40), sizes)
        x = 1 + rng.normal(size=40)[labels] + 0.3 * rng.normal(size=len(labels))
        clustered += covers(mean(x, labels.tolist()), 1)
        naive += covers(mean(x), 1)
    assert 0.925 < clustered / 1000 < 0.97
    assert naive / 1000 < 0.75


def test_win_outcomes_count_ties_as_half_and_missing_as_missing() -> None:
    found = win_outcomes([2, 1, 0, math.nan, 1], [1, 1, 1, 1, math.nan])
    np.testing.assert_array_equal(found, [1, 0.5, 0, math.nan, math.nan])


# --- Bradley-Terry --------------------------------------------------------------------------------


def logistic_scores(wins: np.ndarray) -> np.ndarray:
    """The same model as a regression without intercept or penalty: +1 for the winner, -1 for the loser."""
    k = len(wins)
    pairs = [(i, j) for i in range(k) for j in range(k) if i != j]
    rows = np.array([np.eye(k)[i] - np.eye(k)[j] for i, j in pairs])
    weights = np.array([wins[i, j] for i, j in pairs])
    model = LogisticRegression(C=math.inf, fit_intercept=False, tol=1e-10, max_iter=10_000, solver="newton-cg")
    both = np.concatenate([rows, -rows])
    model.fit(both, np.repeat([1, 0], len(rows)), np.concatenate([weights, weights]))
    return model.coef_[0] - model.coef_[0].mean()


@pytest.mark.parametrize("seed", range(3))
def test_bradley_terry_is_a_logistic_regression(seed: int) -> None:
    wins = np.random.default_rng(seed).integers(0, 9, (6, 6)) * (1 - np.eye(6))
    found = bradley_terry_fit(wins)
    np.testing.assert_allclose(found, logistic_scores(wins), atol=1e-5)
    won = scipy_stats.logistic.cdf(found[:, None] - found[None, :])
    np.testing.assert_allclose(((wins + wins.T) * won).sum(1), wins.sum(1), atol=1e-10)  # expected wins = wins
    assert found.sum() == pytest.approx(0, abs=1e-12)


def test_bradley_terry_of_two_arms_is_the_log_odds() -> None:
    low, high = bradley_terry_fit([[0, 3], [7, 0]])
    assert high - low == pytest.approx(math.log(7 / 3), abs=1e-12)


def test_bradley_terry_takes_half_wins() -> None:
    one, two = bradley_terry_fit([[0, 2.5], [7.5, 0]])
    assert two - one == pytest.approx(math.log(3), abs=1e-12)


def test_bradley_terry_recovers_scores_from_expected_wins() -> None:
    truth = np.array([4.0, 0.0, -1.0, -3.0])
    wins = 100 * scipy_stats.logistic.cdf(truth[:, None] - truth[None, :])
    np.testing.assert_allclose(bradley_terry_fit(wins), truth - truth.mean(), atol=1e-9)


@pytest.mark.parametrize(
    "wins",
    [
        [[0, 3], [0, 0]],  # never lost
        [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]],  # never compared
        [[0, 1, 1], [1, 0, 1], [0, 0, 0]],  # never won
    ],
)
def test_bradley_terry_refuses_where_no_finite_fit_exists(wins: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="strongly connected"):
        bradley_terry_fit(wins)


# --- best-of-N ------------------------------------------------------------------------------------


def law_by_tuples(reference: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    """Every way to draw n; the tied best share by how often they were drawn."""
    law = np.zeros(len(scores))
    for drawn in itertools.product(range(len(scores)), repeat=n):
        best = [i for i in drawn if scores[i] == max(scores[list(drawn)])]
        for i in best:
            law[i] += math.prod(reference[list(drawn)]) / len(best)
    return law


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("scores", [[0.3, -1.0, 2.0, 0.5, 0.0], [1.0, 0.0, 1.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
def test_best_of_n_law_is_that_of_all_tuples(scores: list[float], n: int) -> None:
    reference = np.array([0.1, 0.4, 0.2, 0.0, 0.3])
    found = best_of_n_law(reference, scores, n)
    np.testing.assert_allclose(found, law_by_tuples(reference, np.array(scores), n), atol=1e-12)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_best_of_n_kl_is_the_limit_without_ties_and_a_bound_with_them(n: int) -> None:
    k = 20_000
    reference = np.full(k, 1 / k)
    continuous = best_of_n_law(reference, np.random.default_rng(0).normal(size=k), n)
    assert float((continuous * np.log(continuous / reference)).sum()) == pytest.approx(best_of_n_kl(n), abs=1e-3)
    tied = best_of_n_law(reference, np.arange(k) // (k // 5), n)
    assert float((tied * np.log(tied / reference)).sum()) < best_of_n_kl(n) - 0.01
    assert best_of_n_kl(1) == 0


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("levels", [2, 100])
def test_best_of_n_curve_is_the_mean_over_all_subsets(levels: int, n: int) -> None:
    """With ties in the proxy (2 levels) and without (100)."""
    rng = np.random.default_rng(levels)
    proxy, values = rng.integers(0, levels, (4, 6)).astype(float), rng.normal(size=(4, 6))
    expected = []
    for p, v in zip(proxy, values, strict=True):
        subsets = [list(s) for s in itertools.combinations(range(6), n)]
        expected.append(np.mean([v[s][p[s] == p[s].max()].mean() for s in subsets]))
    np.testing.assert_allclose(best_of_n_curve(proxy, values, n), expected, atol=1e-12)


@pytest.mark.parametrize(("n", "maximum"), [(2, 0.564), (4, 1.029), (16, 1.766), (64, 2.344)])
def test_best_of_n_curve_of_normal_scores(n: int, maximum: float) -> None:
    x = np.random.default_rng(0).normal(size=(4000, 64))
    found = mean(best_of_n_curve(x, x, n))
    assert found.low - 0.01 < maximum < found.high + 0.01


# --- calibration and diversity --------------------------------------------------------------------


def test_calibration_of_true_probabilities_is_near_zero() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20_000)
    outcome = (rng.uniform(size=20_000) < p).astype(float)
    bins, error = calibration(p, outcome)
    assert error < 0.015
    assert [b.observed.n for b in bins] == [2000] * 10
    assert [b.predicted for b in bins] == sorted(b.predicted for b in bins)
    assert sum(covers(b.observed, b.predicted) for b in bins) >= 8


def test_calibration_by_hand() -> None:
    """Two bins: {0.1, 0.2} with one of two true, {0.6, 0.9} with both."""
    bins, error = calibration([0.9, 0.1, 0.6, 0.2], [1, 0, 1, 1], bins=2)
    assert [(b.predicted, b.observed.mean) for b in bins] == [
        pytest.approx((0.15, 0.5)),
        pytest.approx((0.75, 1.0)),
    ]
    assert error == pytest.approx((0.35 + 0.25) / 2)


def test_overconfidence_shows() -> None:
    outcome = np.tile([1.0, 0.0], 50)
    _, error = calibration(np.tile([0.99, 0.99], 50), outcome)
    assert error == pytest.approx(0.49)


def test_calibration_of_few_and_of_none() -> None:
    bins, _ = calibration([0.2, 0.7], [0, 1], bins=10)
    assert len(bins) == 2
    assert calibration([], []) == ([], 0.0)


def test_distinct_n_by_hand() -> None:
    texts = [[1, 2, 3], [1, 2], [9]]  # bigrams 12 23 12; the last text has none
    assert distinct_n(texts) == pytest.approx(2 / 3)
    assert distinct_n(texts, 1) == pytest.approx(4 / 6)
    assert math.isnan(distinct_n([[1]], 2))


# --- how an estimate shows itself -----------------------------------------------------------------


def test_estimate_as_a_row() -> None:
    found = Estimate(0.5, 0.25, 0.75, 8)
    assert found.as_dict() == {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 8}
    assert str(found) == "0.500 [0.250, 0.750]"


def test_every_public_function_is_tested_here() -> None:
    public = {n for n, f in vars(stats).items() if callable(f) and not n.startswith("_")}
    own = {n for n in public if getattr(vars(stats)[n], "__module__", "") == stats.__name__}
    assert own - {"CalibrationBin"} <= set(globals())


# --- agreement ------------------------------------------------------------------------------------


def raters_table(seed=0, items=120, raters=4, kinds=3, noise=0.3, missing=0.0):
    """What raters say of items, [items, raters]: the truth or, with the chance `noise`, anything; NaN where missing."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(kinds, size=(items, 1))
    said = np.where(rng.random((items, raters)) < noise, rng.integers(kinds, size=(items, raters)), truth).astype(float)
    said[rng.random(said.shape) < missing] = np.nan
    return said


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.6, 1.0])
def test_cohens_kappa_is_scikit_learns(noise):
    said = raters_table(noise=noise)
    assert cohen_kappa(said[:, 0], said[:, 1]) == pytest.approx(cohen_kappa_score(said[:, 0], said[:, 1]))


def test_cohens_kappa_by_hand():
    """Cohen's own sort of table: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o 0.7, p_e 0.5."""
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert math.isnan(cohen_kappa([1, 1], [1, 1]))
    assert math.isnan(cohen_kappa([], []))


def test_fleiss_kappa_of_the_published_example():
    """Ten subjects, fourteen raters, five categories: the table that is worked through everywhere, kappa 0.210."""
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(table) == pytest.approx(0.210, abs=5e-4)
    with pytest.raises(ValueError, match="same number"):
        fleiss_kappa([[2, 0], [1, 2]])


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize("interval", [False, True])
def test_alpha_is_the_packages(interval, missing):
    said = raters_table(kinds=5, missing=missing)
    item, rater = np.nonzero(~np.isnan(said))
    level = "interval" if interval else "nominal"
    expected = krippendorff.alpha(said.T, level_of_measurement=level)
    order = np.random.default_rng(1).permutation(len(item))  # whatever order verdicts come in
    found = krippendorff_alpha(item[order], said[item, rater][order], interval=interval)
    assert found.mean == pytest.approx(expected, abs=1e-12)
    assert found.n == int(((~np.isnan(said)).sum(1) > 1).sum())
    assert found.low < found.mean < found.high


def test_alphas_interval_covers():
    """The alpha of very many items lies in the interval of eighty of them about 95 times in 100."""
    said = raters_table(items=40_000, noise=0.4)
    truth = krippendorff.alpha(said.T, level_of_measurement="nominal")
    hits = 0
    for part in said[:16_000].reshape(200, 80, 4):
        found = krippendorff_alpha(np.repeat(np.arange(80), 4), part.ravel(), interval=False, resamples=300)
        hits += found.low <= truth <= found.high
    assert 176 <= hits <= 199  # 190 expected


@pytest.mark.parametrize("interval", [False, True])
def test_alphas_interval_is_1_96_standard_errors_wide(interval):
    """The standard error is the jackknife's over units, each alpha the package's."""
    said = raters_table(items=400, kinds=5)
    level = "interval" if interval else "nominal"
    without = [krippendorff.alpha(np.delete(said, i, 0).T, level_of_measurement=level) for i in range(len(said))]
    error = math.sqrt((len(said) - 1) * float(np.var(without)))
    found = krippendorff_alpha(np.repeat(np.arange(400), said.shape[1]), said.ravel(), interval=interval)
    assert found.mean - found.low == pytest.approx(1.96 * error, rel=0.1)
    assert found.high - found.mean == pytest.approx(1.96 * error, rel=0.1)


def test_alpha_where_nothing_can_be_said():
    assert math.isnan(krippendorff_alpha([], [], interval=False).mean)
    assert math.isnan(krippendorff_alpha([1, 2, 3], [0, 1, 0], interval=False).mean)  # one rater each
    assert math.isnan(krippendorff_alpha([1, 1, 2, 2], [5, 5, 5, 5], interval=True).mean)  # always the same


# --- telling two kinds apart ----------------------------------------------------------------------


def test_auc_is_scikit_learns_ties_included():
    rng = np.random.default_rng(3)
    x, y = rng.integers(6, size=70) + 1.0, rng.integers(6, size=50) * 1.0
    found = auc(x, y)
    assert found.mean == pytest.approx(roc_auc_score([1] * 70 + [0] * 50, np.concatenate([x, y])))
    assert found.n == 120
    wins = np.array([[(a > b) + 0.5 * (a == b) for b in y] for a in x])  # DeLong's placements, one by one
    error = math.sqrt(np.var(wins.mean(1), ddof=1) / 70 + np.var(wins.mean(0), ddof=1) / 50)
    assert found.mean - found.low == pytest.approx(found.high - found.mean) == pytest.approx(1.959964 * error, rel=1e-5)
    assert math.isnan(auc([], [1.0]).mean)
    assert auc([2.0, 3.0], [0.0, 1.0]).as_dict() == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 4}


def test_aucs_interval_covers():
    """Two normal laws a unit apart: the area is Phi(1/sqrt 2), inside 95 intervals in 100."""
    truth = scipy_stats.norm.cdf(1 / math.sqrt(2))
    rng = np.random.default_rng(4)
    found = [auc(rng.normal(1, 1, 60), rng.normal(0, 1, 40)) for _ in range(300)]
    hits = sum(f.low <= truth <= f.high for f in found)
    assert 270 <= hits <= 297  # 285 expected
