"""What bad input gets: dropped, counted and numbered below the share, refused in one line above it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keel.data.checks import (
    IN_BYTES,
    check_demonstrations,
    check_pairs,
    check_prompts,
    leak,
    reasons,
    refuse_bad,
    split_by_prompt,
    summarise,
)
from keel.errors import InputError
from keel.records import Demonstration, Origin, Pair, PromptRow, RowCounts
from keel.text.same import fold_prompt

USER = {"role": "user", "content": "Sun?"}


def pair(row: int, prompt="p", chosen="a", rejected="b", margin=0.0) -> Pair:
    return Pair(prompt, chosen, rejected, margin, Origin("pairs.jsonl", row))


def counted(rows: list) -> RowCounts:
    """The counts with which a reader hands over `rows`."""
    return RowCounts(read=len(rows), used=len(rows))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (pair(7, chosen="same", rejected="same"), "chosen equals rejected"),
        (pair(7, chosen=" same\n", rejected="same"), "chosen equals rejected"),
        (pair(7, chosen="soft\u00ad", rejected="soft"), "chosen equals rejected but for " + IN_BYTES),
        (pair(7, chosen="über\ttags", rejected="u\u0308ber tags"), "chosen equals rejected but for " + IN_BYTES),
        (pair(7, chosen=""), "empty chosen"),
        (pair(7, rejected="\u200b\u2060"), "empty rejected"),
        (pair(7, prompt="\ufeff"), "empty prompt"),
        (pair(7, rejected=" \n\t"), "empty rejected"),
        (pair(7, chosen=None), "chosen is not text"),
        (pair(7, rejected=3), "rejected is not text"),
        (pair(7, prompt=" "), "empty prompt"),
        (pair(7, prompt=[]), "empty prompt"),
        (pair(7, prompt=[{"role": "user", "content": " "}]), "empty prompt"),
        (pair(7, prompt=[USER, {"role": "assistant", "content": "x"}]), "prompt ends with an assistant turn"),
        (pair(7, prompt=None), "prompt is neither text nor messages"),
        (pair(7, margin=math.nan), "margin is not finite"),
        (pair(7, margin=math.inf), "margin is not finite"),
        (pair(7, margin=-0.1), "margin is negative"),
    ],
)
def test_bad_pairs(bad, reason):
    good = [pair(1), pair(2, prompt=[USER]), pair(3, margin=2.0), pair(4, rejected="c ")]
    rows = [*good, bad]
    counts = counted(rows)
    assert check_pairs(rows, counts, 0.2) == good
    assert counts.dropped == {reason: (1, [7])}
    assert (counts.read, counts.used) == (5, 4)
    with pytest.raises(InputError):
        check_pairs(rows, counted(rows), 0.19)


def test_all_sides_of_a_contradiction_go():
    rows = [
        pair(1, "p", "a", "b"),
        pair(2, "p", "b", "a"),  # says the opposite of 1
        pair(3, "q", "b", "a"),  # another prompt
        pair(4, "p", "a ", "b"),  # on the side of 1, but for white space
        pair(5, "p", "a", "c"),  # another text
        pair(6, [USER], "a", "b"),
        pair(7, [USER], "b", "a"),  # says the opposite of 6
        pair(8, "p", "c", "d"),
        pair(9, "p", "c ", "d"),  # agrees with 8
    ]
    counts = counted(rows)
    assert [p.origin.row for p in check_pairs(rows, counts, 1.0)] == [3, 5, 8, 9]
    assert counts.dropped == {"contradictory pair": (5, [1, 2, 4, 6, 7])}


def test_contradictions_in_other_bytes():
    rows = [
        pair(1, "Wie geht's?", "Schön", "Na  ja"),
        pair(2, "Wie\u00a0geht's? ", "Na ja", "Scho\u0308n"),
        pair(3, "Wie geht's", "Na ja", "Schön"),
        pair(4, "Wie geht's?", "Schon", "Na ja"),
        pair(5, "code?", "if a:\n  b", "if a: b"),
        pair(6, "code?", "if a:\r\n  b ", "x"),
        pair(7, "code?", "if a: b", "if a:\n b"),  # neither answer is laid out as those of 5
    ]
    counts = counted(rows)
    assert [p.origin.row for p in check_pairs(rows, counts, 1.0)] == [3, 4, 5, 6, 7]
    assert counts.dropped == {"contradictory pair": (2, [1, 2])}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Mend:\nfor x in y:\n    p(x)\nq(y)", "Mend:\nfor x in y:\n    p(x)\n    q(y)"),
        ("Sort: a b", "Sort:\na\nb"),
        ([USER | {"content": "- a\n  - b"}], [USER | {"content": "- a\n- b"}]),
        ("Sun?", [USER]),
    ],
)
def test_prompts_that_a_reader_tells_apart_may_have_opposite_verdicts(one, other):
    rows = [pair(1, one), pair(2, other, "b", "a"), pair(3, "r", "c", "d"), pair(4, "r", "d", "c")]
    counts = counted(rows)
    assert [p.origin.row for p in check_pairs(rows, counts, 1.0)] == [1, 2]
    assert counts.dropped == {"contradictory pair": (2, [3, 4])}
    assert leak(rows[:1], rows[1:2]).rows == [2]  # where memory is measured they are one


CALLS = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in ("sun", "rain")]


def test_answers_that_differ_in_what_they_call():
    def calling(row, chosen, rejected, prompt="p", text="", other=""):
        fields = tuple({"tool_calls": [call]} if call else None for call in (chosen, rejected))
        return Pair(prompt, text, other, 0.0, Origin("f", row), fields=fields)

    sun, rain = CALLS
    rows = [
        calling(1, sun, rain),
        calling(2, sun, sun),  # the same call
        calling(3, rain, sun, "q"),
        calling(4, None, sun, "r"),  # says and calls nothing
        calling(5, rain, sun),  # the opposite of 1
        calling(6, sun, rain, "q", "Let me see.", "Let me see. "),
        calling(7, rain, sun, "q"),  # says what 3 says
    ]
    counts = counted(rows)
    assert [p.origin.row for p in check_pairs(rows, counts, 1.0)] == [3, 6, 7]
    assert counts.dropped == {
        "chosen equals rejected": (1, [2]),
        "empty chosen": (1, [4]),
        "contradictory pair": (2, [1, 5]),
    }
    assert counts.notes == {"exact duplicate of an earlier row, kept": (1, [7])}
    shown = [Demonstration("p", "", Origin("f", 1), {"tool_calls": [sun]}), Demonstration("p", "", Origin("f", 2))]
    counts = counted(shown)
    assert [row.origin.row for row in check_demonstrations(shown, counts, 1.0)] == [1]


def test_duplicates_in_other_bytes_are_noted_apart():
    rows = [
        pair(1, "Tee?", "Ja, grün", "Nein"),
        pair(2, "Tee? ", "Ja, gru\u0308n", "Nein"),
        pair(3, "Tee?", "Ja, grün", "Nein"),
        pair(4, "Tee?", "Ja, grün", "Nein!"),
    ]
    counts = counted(rows)
    assert check_pairs(rows, counts, 0.0) == rows
    assert counts.notes == {
        f"duplicate of an earlier row but for {IN_BYTES}, kept": (1, [2]),
        "exact duplicate of an earlier row, kept": (1, [3]),
        "the prompt ends in a space": (1, [2]),
    }


def test_duplicates_stay_and_are_noted():
    rows = [pair(1), pair(2), pair(3, chosen="x"), pair(4)]
    counts = counted(rows)
    assert check_pairs(rows, counts, 0.0) == rows
    assert (counts.used, counts.dropped) == (4, {})
    assert counts.notes == {"exact duplicate of an earlier row, kept": (2, [2, 4])}
    shown = [Demonstration("p", "a", Origin("f", 1)), Demonstration("p", "b", Origin("f", 2))] * 2
    counts = counted(shown)
    check_demonstrations(shown, counts, 0.0)
    assert counts.notes == {"exact duplicate of an earlier row, kept": (2, [1, 2])}


def test_bad_demonstrations_and_plain_text():
    rows = [
        Demonstration("", "plain text", Origin("f", 1)),
        Demonstration("p", " ", Origin("f", 2)),
        Demonstration([USER], "a", Origin("f", 3)),
        Demonstration([], "a", Origin("f", 4)),
    ]
    counts = counted(rows)
    assert [r.origin.row for r in check_demonstrations(rows, counts, 0.5)] == [1, 3]
    assert counts.dropped == {"empty completion": (1, [2]), "empty prompt": (1, [4])}


def test_bad_prompts():
    rows = [PromptRow(p, Origin("f", i)) for i, p in enumerate(["a", "", "\n", [USER]], 1)]
    counts = counted(rows)
    assert [r.origin.row for r in check_prompts(rows, counts, 0.5)] == [1, 4]
    assert counts.dropped == {"empty prompt": (2, [2, 3])}


def test_the_share_counts_what_the_reader_dropped_too():
    rows = [pair(row, rejected=f"b{row}") for row in range(1, 95)]
    counts = RowCounts(read=100, used=94)
    for row in range(95, 101):
        counts.drop("broken JSON", row)
    with pytest.raises(InputError) as caught:
        check_pairs(rows, counts, 0.05)
    assert str(caught.value) == (
        "pairs.jsonl: 6 of 100 rows are bad (6 'broken JSON': rows 95, 96, 97, 98, 99, …), above the limit "
        "of 5 %; mend them or raise --max-bad-share"
    )
    counts = RowCounts(read=100, used=95)
    for row in range(96, 101):
        counts.drop("broken JSON", row)
    assert len(check_pairs([*rows, pair(95)], counts, 0.05)) == 95  # exactly the limit is not above it


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("store:s.db", ", or take one dimension: store:s.db?dimension=NAME"),
        ("postgresql:///s?host=/tmp", ", or take one dimension: postgresql:///s?host=/tmp&dimension=NAME"),
        ("store:s.db?dimension=tone", ""),
        ("pairs.jsonl", ""),
    ],
)
def test_contradictions_in_a_store_name_the_way_to_one_dimension(source, remedy):
    rows = [pair(1), pair(2, chosen="b", rejected="a"), *(pair(row, rejected=f"b{row}") for row in range(3, 9))]
    stored = not source.endswith(".jsonl")
    with pytest.raises(InputError) as caught:
        check_pairs(rows, replace(counted(rows), stored=stored), 0.05, source)
    assert str(caught.value).endswith(f"mend them or raise --max-bad-share{remedy}")
    with pytest.raises(InputError) as caught:
        check_pairs(rows[:2], replace(counted(rows[:2]), stored=stored), 1.0, source)
    assert str(caught.value).endswith(f"; mend them{remedy}")


def test_the_share_is_offered_only_where_a_row_would_be_left():
    for neutral, remedy in ((9, "mend them"), (8, "mend them or raise --max-bad-share")):
        counts = RowCounts(read=10, used=9 - neutral)
        counts.drop("empty chosen", 1)
        for row in range(neutral):
            counts.skip("tie", row)
        with pytest.raises(InputError) as caught:
            refuse_bad(counts, 0.05, "f.jsonl")
        assert str(caught.value).endswith(f"; {remedy}")


def test_nothing_left_is_refused_at_any_share():
    for rows, words in (([], "no rows"), ([pair(1, chosen="")], "none of 1 rows can be used")):
        with pytest.raises(InputError, match=words):
            check_pairs(rows, counted(rows), 1.0, "pairs.jsonl")


def test_records_that_no_reader_counted_are_counted_here():
    counts = RowCounts()
    check_pairs([pair(1), pair(2, chosen="")], counts, 0.5)
    assert (counts.read, counts.used, counts.dropped_total) == (2, 1, 1)
    counts = RowCounts()
    counts.skip("tie", 3)
    check_pairs([pair(1)], counts, 0.0)
    assert (counts.read, counts.used, counts.neutral) == (2, 1, {"tie": (1, [3])})


def test_reasons_and_summary():
    counts = RowCounts(read=30, used=15)
    counts.drop("empty chosen", 4)
    for row in range(11, 25):
        counts.drop("broken JSON", row)
    counts.note("cut", 2)
    assert reasons(counts) == "14 'broken JSON': rows 11, 12, 13, 14, 15, …; 1 'empty chosen': row 4"
    assert summarise(counts, "f.jsonl", "trl").splitlines() == [
        "f.jsonl: format trl; 30 rows read, 15 used, 15 dropped",
        "  dropped 14 'broken JSON': rows 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, …",
        "  dropped 1 'empty chosen': row 4",
        "  note: 1 'cut': row 2",
    ]


ANSWERS = st.sampled_from(["a", "b", " a", "", " ", None])
ANY_PAIR = st.builds(
    pair,
    st.integers(1, 99),
    st.sampled_from(["p", "q", "", [USER], []]),
    ANSWERS,
    ANSWERS,
    st.sampled_from([0.0, 1.0, -1.0, math.nan]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ANY_PAIR, max_size=12))
def test_every_pair_is_used_or_dropped_and_what_is_used_is_sound(rows):
    counts = counted(rows)
    try:
        kept = check_pairs(rows, counts, 1.0)
    except InputError:
        assert counts.used == 0
        kept = []
    assert counts.read == len(rows) == len(kept) + counts.dropped_total
    assert counts.used == len(kept)
    votes = {(str(p.prompt), p.chosen.strip(), p.rejected.strip()) for p in kept}
    assert all(p.prompt and p.margin >= 0 for p in kept)
    assert all(a and b and a != b and (prompt, b, a) not in votes for prompt, a, b in votes)


# --- splitting


def rows_for(sizes: list[int]) -> list[Pair]:
    """A file with `sizes[i]` pairs for prompt i."""
    return [pair(10 * i + j + 1, f"prompt {i}", f"a{j}") for i, size in enumerate(sizes) for j in range(size)]


def test_a_split_keeps_prompts_together_and_the_share_exact():
    rows = rows_for([1] * 60 + [4] * 10)
    train, held = split_by_prompt(rows, 0.2, 0)
    assert len(held) == 20
    assert not {p.prompt for p in train} & {p.prompt for p in held}
    assert [p for p in rows if p in train] == train
    assert Counter(p.origin.row for p in train + held) == Counter(p.origin.row for p in rows)


def test_prompts_with_many_rows_have_their_chance_to_be_held_out():
    rows = rows_for([1] * 60 + [4] * 10)  # two rows in five belong to a prompt of four
    draws = [Counter(p.prompt for p in split_by_prompt(rows, 0.2, seed)[1]) for seed in range(100)]
    share = sum(size for held in draws for size in held.values() if size == 4) / 2000
    assert 0.3 < share < 0.5


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_the_file():
    rows = rows_for([2] * 50)
    held = {p.prompt for p in split_by_prompt(rows, 0.3, 1)[1]}
    assert {p.prompt for p in split_by_prompt(rows[::-1], 0.3, 1)[1]} == held
    assert {p.prompt for p in split_by_prompt(rows, 0.3, 2)[1]} != held
    half = {p.prompt for p in split_by_prompt(rows, 0.5, 1)[1]}
    assert held < half  # growing the held-out share moves nobody back


def test_plain_text_is_split_by_its_text():
    rows = [Demonstration("", f"story {i % 40}") for i in range(80)]
    train, held = split_by_prompt(rows, 0.25, 0)
    assert len(held) == 20
    assert not {d.completion for d in train} & {d.completion for d in held}


@pytest.mark.parametrize(("sizes", "holdout"), [([5], 0.5), ([9, 9], 0.01), ([], 0.5), ([1, 1], 1.0)])
def test_an_empty_side_is_refused(sizes, holdout):
    with pytest.raises(InputError, match="one side empty"):
        split_by_prompt(rows_for(sizes), holdout, 0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=30), st.floats(0.01, 0.99), st.integers(0, 3))
def test_the_share_is_off_by_half_a_prompt_at_most(sizes, holdout, seed):
    rows = rows_for(sizes)
    try:
        train, held = split_by_prompt(rows, holdout, seed)
    except InputError:
        assert min(holdout, 1 - holdout) * len(rows) < max(sizes)
        return
    assert len(train) + len(held) == len(rows)
    assert not {p.prompt for p in train} & {p.prompt for p in held}
    assert abs(len(held) - holdout * len(rows)) <= max(sizes) / 2


# Places in the file of what was held out before texts were folded: draws of data that hold no two forms of one prompt.
HELD_BEFORE = {
    0: [0, 3, 7, 10, 16, 23, 35, 44, 45, 53, 68, 74],
    1: [2, 6, 14, 17, 20, 21, 25, 33, 45, 55, 62, 77],
}


def odd_rows():
    """Prompts that folding changes, each alone: line breaks, double spaces, letters apart; chats; plain text."""
    texts = [f"line {i}\n\nand  more  e\u0301 " for i in range(20)]
    chats = [[USER | {"content": f"Rain {i}?"}] for i in range(20)]
    longer = [[{"role": "system", "content": "Bear."}, USER | {"content": f"Snow\n{i}?"}] for i in range(20)]
    return [Demonstration(prompt, f"a{i}") for i, prompt in enumerate([*texts, *chats, *longer, *[""] * 20])]


@pytest.mark.parametrize("seed", [0, 1])
def test_folding_moves_nobody_whose_prompt_has_one_form(seed):
    rows = odd_rows()
    held = split_by_prompt(rows, 0.15, seed)[1]
    assert [rows.index(row) for row in held] == HELD_BEFORE[seed]


FORMS = st.sampled_from(
    [
        "café",
        "cafe\u0301",
        "cafe",
        "a b",
        "a  b ",
        "a\nb",
        "a\u200bb",
        "ab",
        "👩\u200d🚀",
        "👩🚀",
        [USER],
        "Sun?",
        "Sun? ",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(FORMS, min_size=2, max_size=30), st.floats(0.1, 0.9), st.integers(0, 3), st.randoms())
def test_no_prompt_is_on_both_sides_in_other_bytes(prompts, holdout, seed, draw):
    rows = [PromptRow(prompt, Origin("f", row)) for row, prompt in enumerate(prompts, 1)]
    try:
        train, held = split_by_prompt(rows, holdout, seed)
    except InputError:
        return
    assert not {fold_prompt(row.prompt) for row in train} & {fold_prompt(row.prompt) for row in held}
    assert not leak(train, held).rows
    draw.shuffle(rows)
    assert {row.origin.row for row in split_by_prompt(rows, holdout, seed)[1]} == {row.origin.row for row in held}


def test_a_leak_is_found_in_whatever_bytes():
    rows = [PromptRow(prompt, Origin("f", 1)) for prompt in ("Où vas-tu ?", [USER], "I", "")]
    forms = ["Où vas-tu\u00a0?", "Où vas-tu ?", "Ou vas-tu ?", "Sun?\n", "sun?", [USER], ""]
    found = leak(rows, [PromptRow(prompt, Origin("g", 10 + at)) for at, prompt in enumerate(forms)])
    assert (found.places, found.rows) == ([0, 1, 3, 5], [10, 11, 13, 15])
    assert found.otherwise.startswith(", 2 of them written otherwise")
    assert leak(rows, [PromptRow([USER])]).otherwise == ""
