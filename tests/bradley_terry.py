"""Bradley-Terry scores by maximum likelihood: what training on very many votes must come to."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special
from scipy.sparse.csgraph import connected_components

from keel.stats import Floats


def bradley_terry_fit(wins: ArrayLike) -> Floats:
    """Fit Bradley-Terry scores by maximum likelihood, from `wins[i, j]` = times i beat j; the scores sum to 0.

    Raises ValueError unless the win graph is strongly connected: only then is the maximum finite (Ford 1957).
    """
    w = np.asarray(wins, dtype=np.float64)
    components, _ = connected_components(w > 0, directed=True, connection="strong")
    if components > 1:
        raise ValueError("the win graph is not strongly connected: no finite Bradley-Terry fit exists")

    def negative_log_likelihood(r: Floats) -> tuple[float, Floats]:
        gap = r[:, None] - r[None, :]
        pull = w * special.expit(-gap)
        return float((w * np.logaddexp(0, -gap)).sum()), pull.sum(0) - pull.sum(1)

    fit = optimize.minimize(
        negative_log_likelihood,
        np.zeros(len(w)),
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 0.0, "gtol": 1e-12},
    )
    scores = _newton_polish(w, np.asarray(fit.x, dtype=np.float64))
    centred: Floats = scores - scores.mean()
    return centred


def _newton_polish(w: Floats, scores: Floats, steps: int = 20) -> Floats:
    """Refine scores by Newton steps down to rounding: L-BFGS stalls about 1e-7 from the optimum."""
    for _ in range(steps):
        win = special.expit(scores[:, None] - scores[None, :])
        gradient = (w * (1 - win)).sum(1) - (w * (1 - win)).sum(0)
        curvature = (w + w.T) * win * (1 - win)
        hessian = np.diag(curvature.sum(1)) - curvature
        scores = scores + np.linalg.pinv(hessian) @ gradient
    return scores
