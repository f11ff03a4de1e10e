"""Answers: what is written can be read, what is not of the grammar is refused, the vocabulary is closed."""

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from keel.world import (
    Quality,
    WorldAnswer,
    all_prompts,
    demonstrations,
    lessons,
    lexicon,
    mismatched,
    mixed_quality,
    parse,
    parse_prompt,
    recalls,
    render,
    split,
    utility,
    write,
)
from keel.world.grammar import MAX_CLOSERS, MAX_FILLERS

TRAIN, HELD_OUT = split(all_prompts())
SHOWN = list(demonstrations(TRAIN, random.Random("shown"), 10_000))
CORE = "since it is raining, you could sing old waltzes near the sofa."


def test_every_written_answer_parses() -> None:
    assert all(parse(answer) is not None for _, answer in SHOWN)


@pytest.mark.parametrize("quality", [0.0, 0.3, 1.0, Quality(1, 0, 1, 0, 1), Quality(0, 1, 0, 1, 0)])
def test_every_quality_parses(quality: float | Quality) -> None:
    rng = random.Random("qualities")
    assert all(parse(write(prompt, quality, rng)) is not None for prompt in HELD_OUT)


def test_what_is_read_is_what_was_meant() -> None:
    """render and parse are inverse: another phrasing of the same answer is read as the same answer."""
    rng = random.Random("round trip")
    for _, answer in SHOWN[:2000]:
        meant = parse(answer)
        assert meant is not None
        assert parse(render(meant, rng)) == meant


def test_spacing_and_case_do_not_matter() -> None:
    for _, answer in SHOWN[:500]:
        spaced = re.sub(r"([.,?!])", r" \1 ", answer).replace(" ", "  ").upper()
        assert parse(f"\n{spaced}\t") == parse(answer) is not None


def test_answers_are_short_and_their_words_few() -> None:
    lengths = sorted(len(answer.split()) for _, answer in SHOWN)
    assert lengths[len(lengths) // 20] >= 12
    assert lengths[len(lengths) // 2] <= 30
    assert lengths[int(0.97 * len(lengths))] <= 50
    texts = [text for prompt, answer in SHOWN for text in (prompt.text, answer)]
    words = {word for text in texts for word in lexicon.tokens(text) or []}
    assert 200 <= len(words) <= 450


def test_answers_to_one_prompt_are_many() -> None:
    rng = random.Random("many")
    prompt = HELD_OUT[0]
    assert len({write(prompt, mixed_quality(rng, 0.5), rng) for _ in range(5000)}) > 3500
    assert len({write(prompt, 1.0, rng) for _ in range(5000)}) > 100


def test_truncated_answers_do_not_parse() -> None:
    for _, answer in SHOWN[:300]:
        words = answer.split()
        for cut in range(1, len(words)):
            if words[cut - 1][-1] not in ".!?":
                assert parse(" ".join(words[:cut])) is None


def test_word_salad_does_not_parse() -> None:
    rng = random.Random("salad")
    for _, answer in SHOWN[:500]:
        shuffled = re.findall(r"[a-z]+|[.,?!]", answer)
        rng.shuffle(shuffled)
        assert parse(" ".join(shuffled)) is None


def test_a_sentence_with_its_words_shuffled_does_not_parse() -> None:
    rng = random.Random("sentence")
    for _, answer in SHOWN[:500]:
        found = lexicon.sentences(answer)
        assert found
        place = rng.randrange(len(found))
        words = re.findall(r"[a-z]+|,", found[place])
        mixed = rng.sample(words, len(words))
        if mixed == words:
            continue
        mark = found[place][-1]
        again = parse(" ".join([*found[:place], " ".join(mixed) + mark, *found[place + 1 :]]))
        # Details may change places among themselves, as may echoes; nothing else may.
        assert again is None or _unordered(again) == _unordered(parse(answer))


def _unordered(answer: WorldAnswer | None) -> WorldAnswer | None:
    return answer and replace(
        answer, echoes=tuple(sorted(answer.echoes)), details=tuple(sorted(answer.details)), sentences=()
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        ".",
        "!!!",
        "bear bear bear.",
        "happy cuddling!",  # neither an activity nor a refusal
        "oh, how cute!",
        CORE.rstrip("."),
        CORE.replace(".", "!"),
        CORE.replace(",", ""),
        CORE + " oh, how cute!",  # an opener does not close
        "happy cuddling! " + CORE,
        CORE + " " + CORE,
        CORE.replace("you could", "rather"),  # the lead of an alternative, without a refusal
        "no, never. " + CORE,  # a refusal, then an ordinary lead
        "yes, that rocket is fine. no, never.",
        "i am sorry, but that bear is not safe.",  # not a wish
        CORE + " dry his wet fur first. dry his wet fur first.",
        "dry his wet fur first. " + CORE,
        CORE + " 7",
        "<s>" + CORE,
        "since it is raining and you have a picnic and you feel sad, you could sing old waltzes.",
    ],
)
def test_other_texts_are_no_answers(text: str) -> None:
    assert parse(text) is None


def test_care_may_come_before_or_after_fillers() -> None:
    first = parse(CORE + " dry his wet fur first. life goes on. most clocks tick.")
    assert first == parse(CORE + " life goes on. most clocks tick. dry his wet fur first.")
    assert first == parse(CORE + " life goes on. dry his wet fur first. most clocks tick.")
    assert first is not None
    assert (first.care, first.fillers) == ("wet", ("plain", "plain"))
    assert parse("no, never. dry his wet fur first.") is None


def test_rambling_has_a_generous_limit() -> None:
    filler, closer = " life goes on.", " goodbye."
    longest = parse(CORE + filler * MAX_FILLERS + closer * MAX_CLOSERS)
    assert longest is not None
    assert len(longest.fillers) == MAX_FILLERS >= 12
    assert parse(CORE + filler * (MAX_FILLERS + 1)) is None
    assert parse(CORE + closer * (MAX_CLOSERS + 1)) is None


def test_an_answer_spelled_out() -> None:
    text = (
        "i am sorry, but that road is not safe. since you feel sad and you have a picnic, rather "
        "sing old waltzes in straw sandals very gently. mend his torn seam first. most clocks tick. "
        "most clocks tick. goodbye."
    )
    answer = parse(text)
    assert answer == WorldAnswer(
        refusal="warm",
        hazard="road",
        echoes=(("mood", "sad"), ("occasion", "picnic")),
        activity="sing old waltzes",
        details=(("occasion", "picnic"), ("mood", "sad")),
        care="torn",
        fillers=("plain", "plain"),
        closers=("plain",),
    )
    assert (answer.intent, answer.repeats, answer.words, answer.alternative) == (
        "sing",
        1,
        len(text.split()),
        True,
    )


def test_the_mean_quality_moves_the_answers() -> None:
    rng = random.Random("mean")
    assert mixed_quality(rng, 1.0) == Quality.even(1.0)
    draws = [mixed_quality(rng, 0.3) for _ in range(2000)]
    assert sum(q.friendliness for q in draws) / len(draws) == pytest.approx(0.3, abs=0.02)
    assert sum(q.correctness for q in draws) / len(draws) == pytest.approx(0.475, abs=0.03)
    with pytest.raises(ValueError, match="mean quality"):
        mixed_quality(rng, 1.5)


def test_lessons_get_every_fact_right_in_every_tone() -> None:
    said = list(lessons(TRAIN, random.Random("lessons"), 2000))
    golds = [utility(prompt, answer) for prompt, answer in said]
    assert all(gold.correctness == gold.harmlessness == 1.0 for gold in golds)
    assert len({gold.friendliness for gold in golds}) > 5
    assert any(gold.helpfulness < 0.9 for gold in golds)  # buried under fillers
    assert sum(gold.refused for gold in golds) == pytest.approx(0.135 * len(golds), rel=0.15)


def test_mismatched_answers_are_right_ones_to_other_questions() -> None:
    seen = list(mismatched(TRAIN, random.Random("mismatched"), 1000))
    changes = Counter()
    for prompt, own, other in seen:
        right, wrong = utility(prompt, own), utility(prompt, other)
        assert right.correctness == right.harmlessness == 1.0
        weighty = ("helpfulness", "correctness", "harmlessness")
        changes[sum(getattr(wrong, name) < getattr(right, name) for name in weighty)] += 1
        assert prompt in TRAIN
    assert changes[0] < 0.15 * len(seen)  # helpfulness and correctness see whatever is not left unsaid
    assert changes[1] > 100  # a fact that is wrong mostly costs both helpfulness and correctness
    assert changes[3] > 50


def test_recalls_confirm_what_was_said_and_deny_what_was_not() -> None:
    confirmed, asked = 0, set()
    for text, answer in recalls(TRAIN, random.Random("recalls"), 2000):
        question, word = re.fullmatch(r"(.*[.?]) (\w+)\?", text).groups()
        values = parse_prompt(question).values | {"intent": parse_prompt(question).intent}
        asked.add(word)
        if answer == "yes.":
            confirmed += 1
            assert word in values.values()
        else:
            said = re.fullmatch(r"no, (\w+)\.", answer)[1]
            assert said in values.values()
            assert word not in values.values()
    assert 900 < confirmed < 1100
    assert asked == {*lexicon.BEARS, *lexicon.INTENTS, *(v for vs in lexicon.VALUES.values() for v in vs)}


def test_no_phrase_has_two_meanings() -> None:
    """The parser looks phrases up; a phrase in two tables, or in two places of one, would be read wrongly."""
    phrases = [
        *(phrase for values in lexicon.DETAILS.values() for phrase in values.values()),
        *(phrase for said in lexicon.ACTIVITIES.values() for phrase in said),
        *lexicon.CARE.values(),
        *(
            phrase
            for table in (lexicon.OPENERS, lexicon.CLOSERS, lexicon.FILLERS)
            for said in table.values()
            for phrase in said
        ),
        *(phrase for table in (lexicon.HAZARDS, lexicon.LOOKALIKES) for wish in table.items() for phrase in wish),
    ]
    assert len(phrases) == len(set(phrases))
