"""The tree is the one that is meant, and its models say what its tables say."""

from __future__ import annotations

import pytest
import torch

from keel.engine.forward import scalars_at_end, scalars_at_states, token_logps, token_scores
from keel.objectives import sequence_sums

from .tree import BETA, EOS, INNER, KL_STAR, Tree, bundle_of, kl, policy_of, reward_of


def test_the_tree_is_the_known_one(tree: Tree) -> None:
    assert len(tree.sequences) == len(set(tree.sequences)) == 364
    assert kl(tree.optimum, tree.reference) == pytest.approx(KL_STAR, abs=5e-5)
    assert float(tree.reference.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert int(tree.ended.sum()) == INNER


def test_every_policy_obeys_the_identity(tree: Tree) -> None:
    """J = E score - beta KL(pi || ref) = beta log Z - beta KL(pi || optimum)."""
    draw = torch.Generator().manual_seed(1)
    for law in (tree.reference, tree.optimum, tree.law(torch.randn(INNER, 4, generator=draw))):
        objective = float((law.exp() * tree.scores).sum()) - BETA * kl(law, tree.reference)
        by_identity = BETA * tree.log_partition(tree.scores) - BETA * kl(law, tree.optimum)
        assert objective == pytest.approx(by_identity, abs=1e-12)


def test_forward_says_what_the_table_says(tree: Tree) -> None:
    bundle = bundle_of(tree)
    law = sequence_sums(token_logps(policy_of(tree), [bundle]), tree.lengths)
    torch.testing.assert_close(law.double(), tree.reference, rtol=0, atol=1e-5)
    torch.testing.assert_close(scalars_at_end(reward_of(tree), [bundle]).double(), tree.scores, rtol=0, atol=1e-6)


def test_forward_scales_by_the_temperature(tree: Tree) -> None:
    law = sequence_sums(token_logps(policy_of(tree), [bundle_of(tree)], temperature=2.0), tree.lengths)
    torch.testing.assert_close(law.double(), tree.law(tree.reference_logits / 2), rtol=0, atol=1e-5)


def test_entropy_is_that_of_the_table(tree: Tree) -> None:
    """The first token of every sequence is drawn at the root."""
    scores = token_scores(policy_of(tree), [bundle_of(tree)])
    root = torch.log_softmax(tree.reference_logits[0], -1)
    starts = torch.cumsum(tree.lengths, 0) - tree.lengths
    assert scores.entropy[starts].tolist() == pytest.approx([-float((root.exp() * root).sum())] * 364, abs=1e-5)
    likeliest = torch.tensor([s[0] == int(root.argmax()) for s in tree.sequences]).float()
    assert torch.equal(scores.top[starts], likeliest)


def test_values_are_read_before_the_token(tree: Tree) -> None:
    """V_t stands on the prefix before token t; at the end of an ended sequence stands its score."""
    model = reward_of(tree)
    with torch.no_grad():
        model.score.weight[0, :INNER] = torch.arange(INNER).float()
    values = scalars_at_states(model, [bundle_of(tree)]).split(tree.lengths.tolist())
    for sequence, seen in zip(tree.sequences, values, strict=True):
        number, expected = 0, []
        for token in sequence:
            expected.append(float(number))
            number = 3 * number + 1 + token if token != EOS else number
        assert seen.tolist() == expected
