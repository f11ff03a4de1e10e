"""What people ask: enough of it, all distinct, recoverable from the text, split without overlap."""

import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import FrozenInstanceError

import pytest

from keel.world import WorldPrompt, all_prompts, lexicon, parse_prompt, split

PROMPTS = all_prompts()


def test_prompts_are_many_and_distinct() -> None:
    assert len(PROMPTS) >= 2500
    assert len({prompt.text for prompt in PROMPTS}) == len({prompt.id for prompt in PROMPTS}) == len(PROMPTS)


def test_prompts_are_short() -> None:
    assert all(8 <= len(prompt.text.split()) <= 20 for prompt in PROMPTS)


def test_shares_of_unsafe_prompts_and_of_their_look_alikes() -> None:
    kinds = Counter(prompt.kind for prompt in PROMPTS)
    assert kinds["unsafe"] / len(PROMPTS) == pytest.approx(0.13, abs=0.01)
    assert kinds["looks_unsafe"] / len(PROMPTS) == pytest.approx(0.10, abs=0.01)


def test_every_prompt_is_recovered_from_its_text() -> None:
    for prompt in PROMPTS:
        assert parse_prompt(prompt.text) == prompt
        assert parse_prompt(f"  {prompt.text.upper().replace(' ', '  ').replace('?', ' ?')}\n") == prompt


def test_every_value_is_asked_about_equally_often() -> None:
    """The writer errs by drawing other values evenly; that hides errors only if prompts are even, too."""
    for slot, values in lexicon.VALUES.items():
        counts = Counter(prompt.values[slot] for prompt in PROMPTS if slot in prompt.values)
        assert set(counts) == set(values)
        assert max(counts.values()) < 1.2 * min(counts.values())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "what can we sing with my wet bear?",
        "it is sunny and it is raining. what can we sing with my wet bear?",
        "it is sunny and we feel sad and my child is two. what can we sing with my wet bear?",
        "it is sunny and we feel sad. what can we sing with my wet bear",
        "it is sunny and we feel sad. what can we sing with my wet cat?",
        "it is sunny and we feel sad. may we sing songs with my wet bear on the busy road?",
        "it is sunny, and we feel sad. what can we sing with my wet bear?",
        "it is sunny and we feel 2. what can we sing with my wet bear?",
        "it is sunny. we will sing songs with our wet bear.",
    ],
)
def test_other_texts_are_no_prompts(text: str) -> None:
    assert parse_prompt(text) is None


def test_a_prompt_spelled_out() -> None:
    text = "we feel sad and it is sunny outside. what can we sing with my wet bear?"
    prompt = parse_prompt(text)
    assert prompt is not None
    assert prompt.id.startswith("bear-")
    assert prompt == WorldPrompt(
        prompt.id, text, "sing", (("bear", "wet"), ("weather", "sunny"), ("mood", "sad")), "safe"
    )
    with pytest.raises(FrozenInstanceError):
        prompt.text = "else"  # type: ignore[misc]


def test_split_is_disjoint_complete_and_even_over_kinds() -> None:
    train, test = split(PROMPTS, held_out=0.2)
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in test}
    assert {prompt.text for prompt in train + test} == {prompt.text for prompt in PROMPTS}
    for kind in ("safe", "unsafe", "looks_unsafe"):
        held, kept = (sum(prompt.kind == kind for prompt in part) for part in (test, train))
        assert held / (held + kept) == pytest.approx(0.2, abs=0.01)


def test_split_depends_on_texts_and_seed_alone() -> None:
    again = random.Random(1).sample(PROMPTS, len(PROMPTS))
    assert split(again + again[:100]) == split(PROMPTS)
    assert split(PROMPTS, seed=1) != split(PROMPTS)
    with pytest.raises(ValueError, match="held_out"):
        split(PROMPTS, held_out=1.0)


def test_seeds_name_their_prompts() -> None:
    assert all_prompts(seed=0) == PROMPTS
    assert {prompt.text for prompt in all_prompts(seed=1)} != {prompt.text for prompt in PROMPTS}


PROGRAM = """
import hashlib, random
from keel.world import all_prompts, demonstrations, split, utility, vote
rng = random.Random(7)
train, test = split(all_prompts())
shown = [(p.text, a, utility(p, a)) for p, a in demonstrations(train, rng, 300)]
votes = [vote(p, shown[0][1], shown[1][1], rng) for p in test[:100]]
print(hashlib.sha256(repr((train, test, shown, votes)).encode()).hexdigest())
"""


def test_everything_is_the_same_under_another_hash_seed() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(digests) == 1
