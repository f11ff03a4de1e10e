"""What is right in form and yet may not be meant: found where it is planted, and nowhere else."""

from __future__ import annotations

import pytest
import tests.reading as sources

from keel.data import doubts
from keel.data.checks import check_demonstrations, check_pairs, check_prompts
from keel.records import Demonstration, Origin, Pair, PromptRow, RowCounts

CLEAN = "It's “fine”, isn't it? 3 < 4 && a[0] > b; naïve café – 50 % of R&D, NÃO."


def notes_of(check, rows):
    counts = RowCounts(read=len(rows), used=len(rows))
    assert check(rows, counts, 0.0) == rows
    return counts.notes


def pairs(*rows):
    return [Pair(*row, origin=Origin("f", number)) for number, row in enumerate(rows, 1)]


def user(text):
    return [{"role": "user", "content": text}]


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["NaN", "null", " N/A", "<NA>", "undefined\n", "#N/A", "NONE"])
def test_missing_values_as_words(word):
    rows = pairs((CLEAN, "one", "two"), (CLEAN + "!", word, "two"), (user(word), "one", "two"), ("p", "one", word))
    notes = notes_of(check_pairs, rows)
    assert notes[doubts.MISSING.note] == (3, [2, 3, 4])
    shown = [Demonstration(CLEAN, word, Origin("f", 7)), Demonstration(CLEAN, f"{word} at all", Origin("f", 8))]
    assert notes_of(check_demonstrations, shown) == {doubts.MISSING.note: (1, [7])}
    asked = [PromptRow(user(word), Origin("f", 5)), PromptRow(user(f"what is {word}"), Origin("f", 6))]
    assert notes_of(check_prompts, asked) == {doubts.MISSING.note: (1, [5])}


@pytest.mark.parametrize(
    ("prompt", "doubt"),
    [
        ("The capital is ", doubts.SPACE),
        ("The capital is\t", doubts.SPACE),
        ("The capital is\u00a0", doubts.SPACE),
        ("The capital is\n ", doubts.SPACE),
        ("The capital is\n", doubts.LINE_BREAK),
        ("### Response:\n", None),  # what a template writes on purpose
        ("The capital is", None),
        (user("The capital is "), None),  # the template goes on behind it
    ],
)
def test_what_a_prompt_ends_in(prompt, doubt):
    expected = {} if doubt is None else {doubt.note: (1, [9])}
    assert notes_of(check_prompts, [PromptRow(prompt, Origin("f", 9))]) == expected


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        ("so<|eot_id|>", doubts.CONTROL),
        ("<|start_header_id|>user", doubts.CONTROL),
        ("<｜end▁of▁sentence｜>", doubts.CONTROL),
        ("the end</s>", doubts.CONTROL),
        ("[INST] hello [/INST]", doubts.CONTROL),
        ("hi<end_of_turn>!", doubts.CONTROL),
        ("a <| f x |> b", None),
        ("<b>bold</b> <section>", None),
        ("itâ€™s", doubts.MOJIBAKE),
        ("cafÃ© et thÃ©", doubts.MOJIBAKE),
        ("20 Â°C", doubts.MOJIBAKE),
        ("lost \ufffd sign", doubts.MOJIBAKE),
        ("AMANHÃ, Â bom, Ãéa", None),
        ("R&amp;D", doubts.ENTITY),
        ("it&#39;s", doubts.ENTITY),
        ("&quot;so&quot;", doubts.ENTITY),
        ("x = &foo; AT&T;", None),
        (CLEAN, None),
    ],
)
def test_what_a_text_holds(text, doubt):
    expected = {} if doubt is None else {doubt.note: (1, [2])}
    for row in ((text, "a", "b"), ("p", text, "b"), ("p", "a", text), ([*user(text), *user("q")], "a", "b")):
        other = (user("clean") if isinstance(row[0], list) else "clean", "yes", "no")
        assert notes_of(check_pairs, pairs(other, row)) == expected


def test_answers_that_differ_in_layout_alone():
    rows = pairs(("p", "one\ntwo", "one two"), ("q", "one\ntwo", "one, two"))
    assert notes_of(check_pairs, rows) == {doubts.LAYOUT.note: (1, [1])}


def test_chats_among_plain_prompts_and_the_other_way():
    rows = [PromptRow(user(f"q{i}") if i in (2, 5) else f"q{i}", Origin("f", i)) for i in range(1, 8)]
    assert notes_of(check_prompts, rows) == {doubts.CHAT.note: (2, [2, 5])}
    rows = [PromptRow(f"q{i}" if i in (2, 5) else user(f"q{i}"), Origin("f", i)) for i in range(1, 8)]
    assert notes_of(check_prompts, rows) == {doubts.PLAIN.note: (2, [2, 5])}


# --- scores ---------------------------------------------------------------------------------------


def noted(tmp_path, write_rows, rows):
    file = write_rows(tmp_path / "rows.jsonl", rows)
    return {what: seen for what, seen in sources.read_pairs(str(file))[1].notes.items() if "order" in what}


def row(number, **more):
    return {"prompt": f"q{number}", "chosen": f"yes {number}", "rejected": f"no {number}", **more}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("chosen_score", "rejected_score"),
        ("chosen-rating", "rejected-rating"),
        ("rating_chosen", "rating_rejected"),
        ("chosenReward", "rejectedReward"),
        ("chosen_avg_rating", "rejected_avg_rating"),
        ("winner_overall", "loser_overall"),
        ("score.better", "score.worse"),
    ],
)
def test_scores_that_contradict_the_order(tmp_path, write_rows, better, worse):
    rows = [row(i, **{better: 3, worse: 1}) for i in range(1, 5)]
    rows[1] |= {better: 1, worse: "2.5"}  # as a CSV cell holds it
    rows[2] |= {better: 2, worse: 2.0}
    rows[3] |= {better: None, worse: 9}
    told = noted(tmp_path, write_rows, rows)
    assert told == {f"{better} <= {worse}, against the order": (2, [2, 3])}
    assert noted(tmp_path, write_rows, rows[:1]) == {}


@pytest.mark.parametrize(
    "more",
    [
        {"chosen_rank": 1, "rejected_rank": 2},  # less is better
        {"chosen_words": 5, "rejected_words": 9},  # says nothing, and nothing follows it
        {"chosen_token_count": 5, "rejected_token_count": 9},
        {"score_chosen": "high", "score_rejected": "low"},
        {"score_chosen": True, "score_rejected": True},
        {"score_chosen": 1},
    ],
)
def test_columns_that_are_no_scores(tmp_path, write_rows, more):
    assert noted(tmp_path, write_rows, [row(i, **more) for i in range(1, 41)]) == {}


def test_a_column_without_a_telling_name_is_a_score_if_most_rows_follow_it(tmp_path, write_rows):
    rows = [row(i, chosen_x=2, rejected_x=2 if i in (7, 30) else 1, x_margin=-1 if i == 8 else 1) for i in range(1, 41)]
    told = {"chosen_x <= rejected_x, against the order": (2, [7, 30]), "x_margin <= 0, against the order": (1, [8])}
    assert noted(tmp_path, write_rows, rows) == told
    assert noted(tmp_path, write_rows, rows[:10]) == {}


def compared(number, preference, first, second):
    return {
        "instruction": f"q{number}",
        **{"output_1": f"yes {number}", "output_2": f"no {number}", "preference": preference},
        **{"generator_1": "a", "generator_2": "b", "score_1": first, "score_2": second},
    }


def test_scores_by_place(tmp_path, write_rows):
    rows = [compared(1, 1, 5, 2), compared(2, 2, 5, 2), compared(3, 2, 1, 4), compared(4, 1, 1, 4)]
    assert noted(tmp_path, write_rows, rows) == {"score_1 and score_2, against the order": (2, [2, 4])}
    assert noted(tmp_path, write_rows, [compared(i, 1, 1, 4) for i in range(1, 9)]) == {}  # sorted: places say nothing
    for third in ("score_0", "score_3"):  # three answers: which of them are these two?
        assert noted(tmp_path, write_rows, [it | {third: 3} for it in rows]) == {}
