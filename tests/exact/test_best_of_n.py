"""The sampler's law and best-of-N's, as the command draws them, against enumeration."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tests.sampling.completions import completions_of

from keel import stats
from keel.config import BestOfNConfig
from keel.methods.best_of_n import best_of_n
from keel.sampling.local import LocalSampler
from keel.sampling.protocol import SamplingOptions, as_bundles, sample

from .tree import DEPTH, EOS, Folders, Tree, kl, policy_of, text

PROMPTS = 4000


def fits(counts: np.ndarray, law: torch.Tensor) -> float:
    """p of the chi-square test; sequences expected fewer than five times are counted together."""
    expected = law.exp().numpy() * counts.sum()
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    return float(chisquare(observed, np.append(expected[~rare], expected[rare].sum())).pvalue)


def counted(tree: Tree, drawn: list[tuple[int, ...]]) -> np.ndarray:
    return np.bincount([tree.index[sequence] for sequence in drawn], minlength=len(tree.sequences))


def test_the_sampler_draws_from_the_policy(tree: Tree) -> None:
    sampler = LocalSampler(policy_of(tree), text(), SamplingOptions(DEPTH, max_rows=300))
    bundles = sample(sampler, as_bundles(text(), ["ask"] * 100), 80, "law")
    drawn = completions_of(bundles)
    assert len(drawn) == 8000
    assert fits(counted(tree, [tuple(c.ids) for c in drawn]), tree.reference) > 0.01
    for c in drawn:
        assert c.truncated == (c.ids[-1] != EOS)
        assert float(c.logps.sum()) == pytest.approx(float(tree.reference[tree.index[tuple(c.ids)]]), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(tree: Tree, temperature: float) -> None:
    sampler = LocalSampler(policy_of(tree), text(), SamplingOptions(DEPTH, temperature, max_rows=8000), 1)
    bundles = sample(sampler, as_bundles(text(), ["ask"]), 8000, "law")
    scaled = tree.law(tree.reference_logits / temperature)
    drawn = counted(tree, [tuple(c.ids) for c in bundles[0].completions])
    assert fits(drawn, scaled) > 0.01
    assert fits(drawn, tree.reference) < 1e-6


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_best_of_n_has_the_law_of_enumeration(tree: Tree, folders: Folders, tmp_path: Path, n: int) -> None:
    """The command's own answers. Its 243 truncated sequences tie at -1, and the reference splits the tie."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text((json.dumps({"prompt": "ask"}) + "\n") * PROMPTS)
    result = best_of_n(
        BestOfNConfig(
            model=str(folders.policy),
            reward=str(folders.reward),
            prompts=str(prompts),
            out=tmp_path / "best.jsonl",
            n=n,
            max_new_tokens=DEPTH,
            max_rows=4096,
            micro_tokens=1 << 16,
        )
    )
    best = []
    for line in result.folder.read_text().splitlines():
        row = json.loads(line)
        chosen = row["candidates"][row["best"]]
        assert chosen["score"] == max(c["score"] for c in row["candidates"])
        ids = tuple(int(t) for t in chosen["text"].split())
        best.append(ids if chosen["truncated"] else (*ids, EOS))
    law = torch.from_numpy(stats.best_of_n_law(tree.reference.exp().numpy(), tree.scores.numpy(), n)).log()
    assert fits(counted(tree, best), law) > 0.01
    if n > 1:
        assert fits(counted(tree, best), tree.reference) < 1e-6
        assert 0 < kl(law, tree.reference) < stats.best_of_n_kl(n)  # ties make it less
    expected = float((law.exp() * tree.scores).sum())
    measured = result.summary["metrics"]["score_best"]
    assert abs(measured["mean"] - expected) < measured["high"] - measured["low"]


def test_the_law_holds_for_every_tuple(tree: Tree) -> None:
    """All 364^2 pairs of draws: the better one wins, a tie is split evenly (the two draws are exchangeable)."""
    p = tree.reference.exp()
    s = tree.scores
    wins = (s[:, None] > s[None, :]).double() + 0.5 * (s[:, None] == s[None, :]).double()
    law = 2 * p * (wins @ p)
    found = torch.from_numpy(stats.best_of_n_law(p.numpy(), s.numpy(), 2))
    torch.testing.assert_close(found, law, rtol=1e-10, atol=1e-15)
    assert math.isclose(float(found.sum()), 1, abs_tol=1e-12)
