"""Personal data: what a reader would have masked is, what he would not is not, and nothing else changes."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keel.text.personal import find, mask


def labelled():
    """(text, {(start, end, kind)}) of every line of personal.txt."""
    for line in (Path(__file__).parent / "personal.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            continue
        text, spans = "", set()
        for part in re.split(r"(«[^»]*»)", line.replace("\\n", "\n")):
            kind, _, content = part[1:-1].partition(":") if part.startswith("«") else ("", "", part)
            if kind:
                spans.add((len(text), len(text) + len(content), kind))
            text += content
        yield text, spans


CASES = list(labelled())


def spans_of(text):
    return {(found.start, found.end, found.kind) for found in find(text)}


@pytest.mark.parametrize(
    ("kind", "precision", "recall"),
    [  # what one more mistake would miss: no line of the list is there in vain
        ("email", 1, 1),
        ("phone", 1, 0.975),
        ("card", 1, 1),
        ("iban", 1, 1),
        ("ip", 1, 1),
        ("all", 1, 0.98),
    ],
)
def test_precision_and_recall_on_labelled_texts(kind, precision, recall):
    """A find counts only where start, end and kind are the labelled ones."""
    right = wrong = missed = 0
    for text, wanted in CASES:
        got = {s for s in spans_of(text) if kind in (s[2], "all")}
        wanted = {s for s in wanted if kind in (s[2], "all")}
        right, wrong, missed = right + len(got & wanted), wrong + len(got - wanted), missed + len(wanted - got)
    assert right / (right + wrong) >= precision
    assert right / (right + missed) >= recall


def test_the_list_is_long_enough():
    assert sum(len(spans) for _, spans in CASES) >= 140
    assert sum(not spans for _, spans in CASES) >= 100


REGIONS = re.findall("..", "USCAGBDEFRITESINAUJPBRRUCNMXNLBECHATSETRZANGIDPKBDEGKR")


def example_numbers(form, regions):
    kinds = phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE
    for region in regions or sorted(phonenumbers.SUPPORTED_REGIONS):
        for number in (phonenumbers.example_number_for_type(region, kind) for kind in kinds):
            if number is not None:
                yield phonenumbers.format_number(number, getattr(phonenumbers.PhoneNumberFormat, form))


@pytest.mark.parametrize(
    ("form", "regions", "before", "recall"),
    [
        ("INTERNATIONAL", None, "Please write to", 0.98),
        ("E164", None, "Please write to", 0.98),
        ("NATIONAL", REGIONS, "Please write to", 0.9),
        ("NATIONAL", REGIONS, "My phone number is", 0.98),
    ],
)
def test_numbers_of_the_world_are_found(form, regions, before, recall):
    """The oracle is a library of all countries' numbering plans: its examples of fixed and mobile lines."""
    numbers = list(example_numbers(form, regions))
    assert len(numbers) >= 50
    missed = [n for n in numbers if mask(f"{before} {n} today.")[0] != f"{before} [phone] today."]
    assert len(missed) / len(numbers) <= 1 - recall, missed


# --- checksums ------------------------------------------------------------------------------------

DOUBLED = dict(zip("0123456789", (0, 2, 4, 6, 8, 1, 3, 5, 7, 9), strict=True))


def luhn_digit(prefix):
    """The digit that completes a card number, by table."""
    odd = sum(DOUBLED[d] for d in prefix[::-1][::2])
    return str(-(odd + sum(int(d) for d in prefix[::-1][1::2])) % 10)


@given(st.integers(2, 6), st.text("0123456789", min_size=11, max_size=17))
def test_of_ten_last_digits_exactly_one_makes_a_card(first, rest):
    prefix = f"{first}{rest}"
    cards = [d for d in "0123456789" if mask(f"no {prefix}{d} is it")[0] == "no [card] is it"]
    expected = luhn_digit(prefix)
    assert cards == ([expected] if set(prefix + expected) != {str(first)} else [])


@given(st.text("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=18, max_size=18), st.booleans())
def test_of_all_check_digits_exactly_one_makes_an_iban(account, spaced):
    """Digit by digit, as one does it on paper. GB has 22 characters."""
    remainder = 0
    for digit in "".join(str("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(c)) for c in account + "GB00"):
        remainder = (10 * remainder + int(digit)) % 97
    right = f"{98 - remainder:02d}"
    for check in {right, f"{(int(right) + 1) % 97:02d}", right[::-1] if right[::-1] != right else "00"}:
        iban = f"GB{check}{account}"
        shown = " ".join(iban[i : i + 4] for i in range(0, 22, 4)) if spaced else iban
        assert ("iban" in mask(f"to {shown} now")[1]) == (int(check) % 97 == int(right) % 97), shown


# --- masking --------------------------------------------------------------------------------------

PIECES = st.one_of(
    st.sampled_from(
        ["+", "(", ")", " ", "-", ".", "/", "@", "[", "]", ":", "\n", "0", "1", "2", "12", "345", "6789", "555", "x",
         "call ", "phone", "[phone]", "[email]", "me ", "a@b.co", "bob@example.com", "(at)", "tel:", "v", "version ",
         "8.8.8.8", "2001:4860:4860::8888", "4111 1111 1111 1111", "DE89370400440532013000", "+1 415-555-2671",
         "020 7946 0018", "415 555 2671", "612 345 678", "电话", "é", "ext. ", "$", "2023-01-05", ".com"]
    ),
    st.text(max_size=3),
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=14).map("".join)


@settings(max_examples=600)
@given(TEXTS)
def test_masking_twice_is_masking_once(text):
    masked, counts = mask(text)
    assert mask(masked) == (masked, {}), (text, masked)
    assert sum(counts.values()) == len(find(text))


@settings(max_examples=600)
@given(TEXTS)
def test_masking_changes_nothing_but_what_was_found(text):
    found = find(text)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    outside, last = [], 0
    for item in found:
        assert 0 <= item.start < item.end <= len(text)
        outside.append(text[last : item.start])
        last = item.end
    outside.append(text[last:])
    masked = mask(text)[0]
    for piece in outside[:-1]:
        assert masked.startswith(piece)
        masked = masked[len(piece) :].partition("]")[2]
    assert masked == outside[-1]


def test_counts_are_by_kind():
    masked, counts = mask("a@b.co and c@d.org, call 415-555-2671")
    assert masked == "[email] and [email], call [phone]"
    assert counts == {"email": 2, "phone": 1}
    assert mask("") == ("", {})


@pytest.mark.parametrize(
    "text", ["+1 415-555-2671-+34541555526", "bob@example.com-020 7946 0018", "a@b.co.com+bob@example.com"]
)
def test_what_a_neighbour_hid_is_found_after_it(text):
    """Each first half is nothing beside the second, and something beside its placeholder."""
    masked, counts = mask(text)
    assert sum(counts.values()) == 2
    assert mask(masked) == (masked, {})


def test_an_extension_is_cut_from_what_follows_only_once():
    assert mask("+1 415-555-2671ext. 020 7946 0018")[0] == "[phone] 7946 0018"


# --- speed ----------------------------------------------------------------------------------------


def seconds(text):
    started = time.process_time()
    find(text)
    return time.process_time() - started


def test_messages_take_little_more_than_a_few_plain_searches():
    """Chat text with some numbers, dates and addresses in it, message by message, beside as many searches for a word.

    Both take turns in one process, so that the ratio is not the machine's: 2 megabytes a second on a common core.
    """
    messages = [text for text, _ in CASES] + ["What can teddy do in the rain? He can hop, and sing, and nap."] * 1_500
    word = re.compile(r"\b[A-Z][a-z]+ington\b|\bnap(?:s|ped)\b")
    ours, plain = [], []
    for _ in range(10):
        for taken, search in ((ours, find), (plain, word.search)):
            started = time.process_time()
            for message in messages:
                search(message)
            taken.append(time.process_time() - started)
    assert min(ours) < 25 * min(plain)


@pytest.mark.parametrize(
    "unit",
    ["1", "1 ", "1-", "a@", "@a.", "a.", "(at) ", "DE12 ", "2000:", "1.", "+1", "bob@example.com ", "415-555-2671 ",
     "0171 123 45 67 89 ", "415-555-2671-", "415 555 2671 ", "bob@example.com:", "bob@example.com-"],
)  # fmt: skip
def test_no_text_takes_for_ever(unit):
    """A quarter of a megabyte of one thing; what grows with the square would take minutes."""
    assert seconds(unit * (250_000 // len(unit))) < 5
