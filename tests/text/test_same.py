"""Same words in other bytes, against the Unicode property that names the signs that draw nothing (from `regex`)."""

from __future__ import annotations

import sys
import unicodedata

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keel.text import same
from keel.text.same import answer_keys, difference, fold, fold_answer, fold_prompt, is_blank, prompt_keys

IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}|[\p{Cc}--[\s\x1c-\x1f]]", regex.VERSION1)
EVERY = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]


def slow_fold(text: str) -> str:
    """The same by definition, without short cuts; flags with tags aside."""
    return " ".join(unicodedata.normalize("NFC", IGNORABLE.sub("", text)).replace("\u2800", " ").split())


def user(text, **more):
    return {"role": "user", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


# --- one text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("naïve", unicodedata.normalize("NFD", "naïve")),
        ("\u212bngström", "Ångström"),  # the sign for the unit is the letter
        ("한국어", unicodedata.normalize("NFD", "한국어")),
        ("Was ist das\u202f?", "Was ist das ?"),
        ("a\tb", "a b"),
        ("a\u3000b", "a  b"),
        ("one\r\ntwo", "one\ntwo"),
        ("one\u2028two", "one\n\ntwo"),
        ("\ufeffHello", "Hello "),
        ("Donau\u00addampf\u200bschiff", "Donaudampfschiff"),
        ("\u202bשלום\u202c", "שלום"),
        ("I \u2764\ufe0f it", "I \u2764 it"),
        ("می\u200cخواهم", "میخواهم"),
        ("tab\x08le", "table"),
    ],
)
def test_what_differs_in_bytes_only_is_folded(one, other):
    assert one != other
    assert fold(one) == fold(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("resume", "résumé"),
        ("Polish", "polish"),
        ("Let's eat, bear", "Let's eat bear"),
        ("What is 2⁵?", "What is 25?"),  # NFKC would make them one
        ("½ cup", "12 cup"),
        ("① or 1", "1 or 1"),
        ("a b", "ab"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "\U0001f3f4"),  # England's flag
    ],
)
def test_what_differs_in_words_is_not(one, other):
    assert fold(one) != fold(other)
    assert difference(one, other) == "words"


def test_every_sign_that_draws_nothing_is_left_out_and_no_other():
    kept = [sign for sign in EVERY if fold(f"a{sign}a") == "aa"]
    assert kept == [sign for sign in EVERY if IGNORABLE.fullmatch(sign)]


def test_the_short_cut_takes_no_sign_that_would_be_changed():
    usual = [sign for sign in EVERY if not same._UNUSUAL.match(sign)]
    assert len(usual) > 30_000
    for sign in usual:
        assert not IGNORABLE.fullmatch(sign)
        assert unicodedata.normalize("NFC", f"か{sign}") == f"か{sign}"
        assert unicodedata.normalize("NFC", f"가{sign}") == f"가{sign}"
        assert sign in " \n" or not sign.isspace()


SIGNS = "ab.  \n\t\r\x0b\x00\x1c\x85\u00a0\u2028\u2800éße\u0301\u0323\u0308\u200b\u200c\u200d\ufe0f\u00ad\u0915\u094d"
SIGNS += "\u064b\u0627👩🚀가\u11a8か\u3099🏴\U000e0067\U000e007f“”日"
TEXTS = st.one_of(st.text(alphabet=SIGNS, max_size=40), st.text(max_size=40))


@settings(max_examples=1000, deadline=None)
@given(TEXTS)
@example("\u0627\u0301\u200d\u064b\u200d")  # without its first joiner the marks change places before the second
def test_folding_is_settled_and_blind_to_the_unicode_form(text):
    composed, apart = unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)
    for folded in (fold, fold_answer):
        assert folded(folded(text)) == folded(text)
        assert folded(composed) == folded(apart) == folded(text)
        assert folded(f" {text}\r\n") == folded(text)
    assert fold(fold_answer(text)) == fold(text)  # what is equal as an answer is equal as a question
    if "🏴" not in text:
        assert fold(text) == slow_fold(text)


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        ("Yes.", " Yes.\n", "none"),
        ("Élan vital", unicodedata.normalize("NFD", "Élan vital"), "bytes"),
        ("two  words", "two words", "bytes"),
        ("two\u2003words", "two words", "bytes"),
        ("x\r\ny", "x\ny", "bytes"),
        ("x \ny", "x\ny", "bytes"),
        ("x\n\n\n\ny", "x\n\ny", "bytes"),
        ("so\u00adft", "soft", "bytes"),
        ("zero\u200dwidth", "zerowidth", "bytes"),  # Latin letters do not join
        ("1. a 2. b", "1. a\n2. b", "layout"),
        ("if x:\n    y()\nz()", "if x:\n    y()\n    z()", "layout"),
        ("👨\u200d👩\u200d👧", "👨👩👧", "layout"),  # a family, or three people
        ("نمی\u200cدانم", "نمیدانم", "layout"),
        ("क्\u200dष", "क्ष", "layout"),
        ("yes", "no", "words"),
        ("yes", "yes!", "words"),
        ("e\u0301a", "ea", "words"),
    ],
)
def test_in_what_two_answers_differ(one, other, how):
    assert difference(one, other) == difference(other, one) == how


@settings(max_examples=1000, deadline=None)
@given(st.lists(TEXTS, max_size=2), TEXTS)
def test_short_cuts_change_no_verdict(others, text):
    for other in (*others, unicodedata.normalize("NFD", text), text + "\u200b", f"{text}\n"):
        how = difference(text, other)
        assert (how in ("none", "bytes")) == (fold_answer(text) == fold_answer(other))
        assert (how == "words") == (fold(text) != fold(other))


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\ufeff \u00a0", "\u3164", "\x00"])
def test_what_draws_nothing_is_blank(text):
    assert is_blank(text)
    assert not is_blank(f"{text}.")
    assert not is_blank(f"{text}é")


# --- many -----------------------------------------------------------------------------------------


PROMPTS = st.one_of(
    TEXTS,
    st.lists(st.builds(user, TEXTS), min_size=1, max_size=1),
    st.lists(st.one_of(st.builds(user, TEXTS), st.builds(system, TEXTS)), min_size=1, max_size=3),
)


def partition(keys):
    return [keys.index(key) for key in keys]


@settings(max_examples=500, deadline=None)
@given(st.lists(PROMPTS, max_size=5), st.lists(TEXTS, max_size=4))
def test_keys_are_equal_where_folded_texts_are(prompts, answers):
    prompts += [unicodedata.normalize("NFD", p) if isinstance(p, str) else p for p in prompts]
    assert partition(prompt_keys(prompts)) == partition([fold_prompt(prompt) for prompt in prompts])
    answers += [f"{answer}\u00ad" for answer in answers]
    groups = [at % 2 for at in range(len(answers))]
    told = [(group, fold_answer(answer)) for group, answer in zip(groups, answers, strict=True)]
    assert partition(answer_keys(answers, groups)) == partition(told)


def test_a_chat_of_one_question_asks_what_its_text_asks():
    plain = "Où est la gare ?"
    same_ones = [plain, [user(plain + " ")], [system(""), user(plain)], [user(unicodedata.normalize("NFD", plain))]]
    assert len({fold_prompt(prompt) for prompt in same_ones}) == len(set(prompt_keys(same_ones))) == 1
    tools = [{"type": "function", "function": {"name": "trains"}}]
    apart = [
        plain,
        [system("Be brief."), user(plain)],
        [{"role": "assistant", "content": plain}],
        [user(plain, name="Ann")],
        [user(plain, tools=tools)],
        [user(plain), user(plain)],
    ]
    assert len({fold_prompt(prompt) for prompt in apart}) == len(set(prompt_keys(apart))) == len(apart)
