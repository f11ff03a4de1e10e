"""Which items a step sees: all of them once an epoch, alike ones side by side, and none of that a matter of size."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keel.engine.batches import GROUPS, Batches, prompt_of
from keel.records import Bundle, Completion


def epoch_of(batches, epoch=0):
    return [item for step in range(batches.per_epoch) for item in batches.of(epoch * batches.per_epoch + step)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(1, 20), st.booleans())
def test_every_epoch_visits_every_item_once(keys, size, together):
    items = list(enumerate(keys))
    batches = Batches(items, size, 3, together=(lambda item: item[1]) if together else None)
    for epoch in range(3):
        assert sorted(epoch_of(batches, epoch)) == items
    lengths = [len(batches.of(step)) for step in range(batches.per_epoch)]
    assert lengths[:-1] == [size] * (batches.per_epoch - 1)
    assert sum(lengths) == batches.seen(batches.per_epoch) == len(items)
    assert batches.steps(3, None) == 3 * batches.per_epoch
    assert batches.steps(3, 5) == 5


def test_a_step_s_batch_does_not_depend_on_what_was_asked_before():
    items = [i // 3 for i in range(40)]
    one, other = (Batches(list(enumerate(items)), 8, 1, together=lambda item: item[1]) for _ in range(2))
    backwards = [one.of(step) for step in reversed(range(15))]
    assert backwards[::-1] == [other.of(step) for step in range(15)]
    assert one.of(0) != one.of(5)  # the next epoch's first


@pytest.mark.parametrize(("size", "most"), [(32, 8), (8, 2), (3, 1)])
def test_alike_items_stand_side_by_side_but_do_not_fill_a_batch(size, most):
    """Twelve of one kind come in as few runs as a quarter of a batch each allows; runs meet only by chance."""
    items = [(kind, at) for kind in range(40) for at in range(12)]
    order = epoch_of(Batches(items, size, 0, together=lambda item: item[0]))
    neighbours = sum(a[0] == b[0] for a, b in pairwise(order))
    runs = 40 * -(-12 // most)
    assert len(items) - runs <= neighbours <= len(items) - runs + 0.08 * runs
    kinds = [len({kind for kind, _ in order[at : at + size]}) for at in range(0, len(order), size)]
    assert sum(kinds) / len(kinds) > 0.85 * min(size, GROUPS)


def test_what_has_many_items_comes_no_earlier():
    """One kind of twelve among sixty of one: over many epochs its items lie in the middle on average."""
    items = [0] * 12 + list(range(1, 61))
    batches = Batches(items, 64, 5, together=lambda kind: kind)
    places = [at for epoch in range(200) for at, kind in enumerate(epoch_of(batches, epoch)) if kind == 0]
    assert sum(places) / len(places) == pytest.approx(35.5, abs=4)  # standard error 1.4


def test_without_anything_in_common_it_is_one_shuffle():
    order = epoch_of(Batches(range(200), 10, 0))
    assert sum(b == a + 1 for a, b in pairwise(order)) < 10
    assert order != epoch_of(Batches(range(200), 10, 1))


def test_pairs_of_one_prompt_have_its_tokens_in_common():
    a, b, c = (Bundle(ids, [Completion([1]), Completion([2])]) for ids in ([5, 6], [5, 6], [5, 7]))
    assert Counter(map(prompt_of, (a, b, c))).most_common(1)[0] == (prompt_of(a), 2)
