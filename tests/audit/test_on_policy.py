"""Pairs of the model itself and of a neighbour, on a real pretrained model that nobody here trained."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from keel.audit import on_policy
from keel.audit.on_policy import examine
from keel.config import Machine
from keel.engine.forward import in_batches, sequence_logps
from keel.models import checkpoints
from keel.sampling.local import LocalSampler
from keel.sampling.protocol import SamplingOptions, as_bundles, sample

MACHINE = Machine(device="cpu", precision="fp32")
PROMPTS, LENGTH = 200, 50


@pytest.fixture(scope="module")
def stories(shared):
    folder = str(shared / "models" / "stories260k")
    return checkpoints.load_policy(folder, MACHINE), checkpoints.load_text(folder)


def draw(model, text, prompts, n, name, length=LENGTH, temperature=1.0):
    sampler = LocalSampler(model, text, SamplingOptions(length, temperature, max_rows=512), 6)
    return sample(sampler, as_bundles(text, prompts), n, name)


@pytest.fixture(scope="module")
def openings(stories):
    """Beginnings of stories that the model wrote itself."""
    (bundle,) = draw(*stories, [""], PROMPTS + 120, "openings", length=15)
    return [c.text for c in bundle.completions]


@pytest.fixture(scope="module")
def neighbour(stories, openings):
    """The model after sixteen steps of imitating its own cooler samples, by torch alone."""
    model, text = stories
    cooler = draw(model, text, openings[PROMPTS:], 1, "cooler", temperature=0.9)
    other = copy.deepcopy(model).requires_grad_(True)
    optimizer = torch.optim.AdamW(other.parameters(), lr=6e-4, weight_decay=0.0)
    for step in range(16):
        for group in optimizer.param_groups:
            group["lr"] = 6e-4 * (1 - step / 16)
        batch = cooler[step * 7 : step * 7 + 7]
        loss = 0.0
        for b in batch:
            ids = b.completions[0].ids
            logits = other(torch.tensor([b.prompt_ids + ids])).logits[0, len(b.prompt_ids) - 1 : -1]
            loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(ids)) / len(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return other.requires_grad_(False)


def test_pairs_to_compare_are_of_many_prompts():
    keys = ["a"] * 50 + ["b"] * 50 + ["c", "d", "e"]
    for seed in range(5):
        assert {keys[at] for at in on_policy._spread(keys, 5, seed)} == set("abcde")
    assert on_policy._spread(keys, 8, 0) != on_policy._spread(keys, 8, 1)
    assert on_policy._spread(keys, 500, 0) == list(range(len(keys)))


def divergence(model, other, bundles):
    """Nats per answer from `model` to the `other` that drew them."""
    ours, theirs = (torch.cat(in_batches(sequence_logps, m, bundles, 8192)) for m in (model, other))
    return float((theirs - ours).mean())


@pytest.fixture(scope="module")
def found(stories, openings, neighbour):
    """What is said of half a data set from the model itself, and half from its neighbour."""
    model, text = stories
    asked = openings[:PROMPTS]
    own, other = (draw(m, text, asked, 2, name) for m, name in ((model, "own"), (neighbour, "other")))
    said = {name: examine(model, text, pairs, [name] * PROMPTS) for name, pairs in (("own", own), ("other", other))}
    return said, divergence(model, neighbour, other)


def test_pairs_of_another_model_are_told_one_by_one(found):
    """2 to 4 nats away: an area of at least 0.9, also by scikit-learn's count."""
    said, nats = found
    assert 2 <= nats <= 4
    other = said["other"]
    area = roc_auc_score([1] * PROMPTS + [0] * PROMPTS, other.ratios + other.own_ratios)
    assert other.whole.auc.mean == pytest.approx(area)
    assert area >= 0.9
    assert other.whole.verdict == "off"
    assert 0 < other.whole.nats.mean < nats + 0.3  # a lower bound, but for chance


def test_pairs_of_the_model_itself_are_not(found):
    said, _ = found
    assert said["own"].whole.auc.low < 0.5 < said["own"].whole.auc.high + 0.02
    assert said["own"].whole.verdict == "on"
    assert said["own"].whole.nats.mean < 0.1


def test_log_probabilities_per_token_are_transformers(stories, openings):
    """Of chosen and rejected, by the model's own logits."""
    model, text = stories
    pairs = draw(model, text, openings[:12], 2, "few", length=12)
    said = examine(model, text, pairs, ["few"] * 12)
    means = []
    for side in (0, 1):
        logps = []
        for b in pairs:
            ids = b.completions[side].ids
            logits = model(torch.tensor([b.prompt_ids + ids])).logits[0, len(b.prompt_ids) - 1 : -1]
            logps.append(float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).mean()))
        means.append(np.mean(logps))
    assert [said.chosen.mean, said.rejected.mean] == pytest.approx(means, abs=1e-4)
    assert said.whole.verdict == "too few"


def test_the_model_is_left_as_it_was(stories, openings):
    model, text = stories
    before = checkpoints.weights_hash(model)
    pairs = draw(model, text, openings[:8], 2, "few", length=6)
    one, again = (examine(model, text, pairs, ["a"] * 8, seed=3) for _ in range(2))
    assert one == again
    assert checkpoints.weights_hash(model) == before


def test_each_source_is_judged_by_itself(stories, openings, neighbour, monkeypatch):
    """Pairs of both kinds in one file: the sources' own names tell them apart."""
    monkeypatch.setattr(on_policy, "FEWEST", 20)
    monkeypatch.setattr(on_policy, "RATES", (1e-3,))
    model, text = stories
    loud = [replace(b, completions=[replace(c, ids=c.ids[::-1]) for c in b.completions])
            for b in draw(model, text, openings[:30], 2, "loud", length=20)]  # fmt: skip
    own = draw(model, text, openings[30:60], 2, "quiet", length=20)
    said = examine(model, text, [*loud, *own], ["loud"] * 30 + ["own"] * 30)
    verdicts = {s.name: s.verdict for s in said.sources}
    assert verdicts["loud"] == "off"
    assert verdicts["own"] != "off"
    assert [s.pairs for s in said.sources] == [30, 30]
    assert {s["name"] for s in said.as_dict()["sources"]} == {"loud", "own"}
