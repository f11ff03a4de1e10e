"""Near-duplicates against every pair compared by hand: what is grouped is near, and what is near is grouped."""

from __future__ import annotations

import random
import re
import time
import unicodedata
from itertools import combinations

import numpy as np
import pytest

from keel.errors import InputError
from keel.text.near_duplicates import near_duplicates

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "l")]


def shingles(text, size=3):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))} if words else set()


def near_pairs(texts, threshold, size=3):
    """The oracle: Jaccard similarity of all pairs, with Python's sets."""
    sets = [shingles(text, size) for text in texts]
    return {
        (i, j)
        for (i, a), (j, b) in combinations(enumerate(sets), 2)
        if a and b and len(a & b) / len(a | b) >= threshold
    }


def corpus(seed, count=400, words=40):
    """Families of texts: a fresh one, or an earlier one with up to five words changed, doubled or left out."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        if texts and draw.random() < 0.7:
            edited = draw.choice(texts).split()
            for _ in range(draw.randint(0, 5)):
                place = draw.randrange(len(edited))
                edited[place : place + 1] = draw.choice([[draw.choice(VOCABULARY)], [edited[place]] * 2, []])
            texts.append(" ".join(edited))
        else:
            texts.append(" ".join(draw.choices(VOCABULARY, k=draw.randint(words // 2, words))))
    return texts


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("size", [1, 3])
def test_groups_are_exact_and_nearly_complete(threshold, size):
    found = expected = 0
    for seed in range(3):
        texts = corpus(seed)
        pairs = near_pairs(texts, threshold, size)
        groups = near_duplicates(texts, threshold, size=size)
        grouped = {index: number for number, group in enumerate(groups) for index in group}
        assert len(grouped) == sum(map(len, groups)), "a text is in one group"
        found += sum(i in grouped and grouped[i] == grouped.get(j) for i, j in pairs)
        expected += len(pairs)
        for group in groups:
            assert group == sorted(group)
            assert connected(group, pairs), "every text of a group is near another of it"
    assert expected > 50
    assert found / expected >= 0.95


def connected(group, pairs):
    reached, front = {group[0]}, [group[0]]
    while front:
        here = front.pop()
        new = {other for other in group if other not in reached and (min(here, other), max(here, other)) in pairs}
        reached |= new
        front += new
    return reached == set(group)


def test_a_pair_at_the_threshold_is_rarely_missed():
    """Two texts of 90 shingles, 80 shared: 0.8. Of 300 such pairs at most a few are lost."""
    texts = []
    for number in range(300):
        shared = [f"s{number}x{i}" for i in range(80)]
        texts += [" ".join([*shared, *(f"{side}{number}x{i}" for i in range(10))]) for side in "ab"]
    groups = near_duplicates(texts, 0.8, size=1)
    assert len(near_pairs(texts[:40], 0.8, size=1)) == 20
    assert all(b == a + 1 for a, b in groups)
    assert len(groups) >= 285


def test_what_is_one_text_and_what_is_none():
    texts = ["Teddy, the BEAR!", "a", "teddy the bear", "", "...", "!", "to the", "To: the?", "A", "日本", "日本。"]
    assert near_duplicates(texts) == [[0, 2], [1, 8], [6, 7], [9, 10]]
    assert near_duplicates([]) == near_duplicates(["one"]) == near_duplicates(["", ""]) == []


def test_words_are_the_same_in_whatever_bytes():
    text = "Wie süß schläft der kleine Bär im Körbchen, während es draußen schneit?"
    apart = unicodedata.normalize("NFD", text)
    hidden = text.replace("schläft", "schl\u00adäft").replace("kleine", "kle\u200bine")
    assert near_duplicates([text, apart, hidden, text.replace("ä", "a").replace("ö", "o")]) == [[0, 1, 2]]


def test_signs_of_chinese_are_words():
    long = "我今天下午在公园里看见了一只很大的棕色的熊它正在和孩子们一起玩耍"
    assert near_duplicates([long, long[:-1] + "乐", long[::-1]]) == [[0, 1]]


def test_the_same_seed_gives_the_same_groups_in_any_process():
    texts = corpus(5)
    assert near_duplicates(texts, seed=1) == near_duplicates(texts, seed=1)
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    shuffled = near_duplicates([texts[i] for i in order])
    back = sorted(sorted(order[i] for i in group) for group in shuffled)
    same = sum(group in back for group in near_duplicates(texts))
    assert same >= 0.9 * len(back)


def test_thousands_of_copies_and_a_template_are_one_group_each():
    """The work must not grow with the square where all are near each other."""
    draw = random.Random(0)
    template = [f"t{i}" for i in range(30)]
    copies = ["the same words again and again, bear"] * 3_000
    variants = [" ".join([*template[:29], f"v{i}"]) for i in range(3_000)]
    texts = copies + variants
    draw.shuffle(texts)
    started = time.process_time()
    groups = near_duplicates(texts)
    assert sorted(map(len, groups)) == [3_000, 3_000]
    assert time.process_time() - started < 10


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"threshold": 1.1}, {"size": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match="threshold"):
        near_duplicates(["a", "b"], **options)


def test_ten_thousand_prompts_in_seconds():
    """A tenth of what 100,000 prompts of 30 words take; work grows with their number."""
    draw = np.random.Generator(np.random.PCG64(0))
    words = draw.integers(0, 20_000, (10_000, 30))
    words[5_000:] = words[:5_000]
    words[5_000:, 3] = 20_001
    texts = [" ".join(f"w{w}" for w in row) for row in words]
    started = time.process_time()
    groups = near_duplicates(texts)
    assert time.process_time() - started < 6
    assert len(groups) >= 4_950
    assert all(b == a + 5_000 for a, b in groups)
