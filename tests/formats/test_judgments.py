"""Formats of judgments: what hand-written files say, written and read again, and what a format refuses to hold."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import tests.reading as sources
from tests.formats.examples import EXAMPLES, POST, STYLES, TIE, says, user, vote
from tests.reading import open_judgments, read_judgments, read_pairs, read_prompts, read_rows

from keel.data import checks
from keel.data.convert import convert, write_judgments
from keel.errors import InputError
from keel.files import containers
from keel.files.fields import RowError
from keel.files.writing import write_rows
from keel.formats.judgments import JUDGED
from keel.records import Answer, Judgment, Origin, Preference, Ranking, RowCounts, Score

FORMATS = {it.name: it for it in JUDGED}


def write(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def remarks(counts) -> dict:
    """Notes but for that on columns without a use."""
    return {what: fate for what, fate in counts.notes.items() if not what.startswith("columns ")}


def bare(judgments: list[Judgment]) -> list[Judgment]:
    return [replace(judgment, origin=Origin()) for judgment in judgments]


# --- reading


def test_every_format_has_an_example():
    assert set(EXAMPLES) == set(FORMATS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_hand_written_file_says_what_it_says(tmp_path, name):
    rows, expected = EXAMPLES[name]
    source = write(tmp_path / "data.jsonl", rows)
    judgments, counts, found = read_judgments(source)
    assert found == name
    assert bare(judgments) == expected
    assert (counts.read, counts.used, counts.dropped, counts.neutral) == (len(rows), len(rows), {}, {})
    assert {judgment.origin.file for judgment in judgments} == {source}
    assert sorted({judgment.origin.row for judgment in judgments}) == list(range(1, len(rows) + 1))
    for judgment in judgments:
        json.dumps(judgment.extra, allow_nan=False).encode()


@pytest.mark.parametrize("name", EXAMPLES)
def test_prompts_of_judgments_are_read(tmp_path, name):
    rows, expected = EXAMPLES[name]
    prompts, counts, found = read_prompts(write(tmp_path / "data.jsonl", rows))
    assert found.removesuffix("-pairs") in (name, name.removesuffix("-pairs"))
    assert counts.used == len(rows)
    first = {j.origin.row: j.prompt for j in reversed(read_judgments(str(tmp_path / "data.jsonl"))[0])}
    assert [p.prompt for p in prompts] == [first[row] for row in range(1, len(rows) + 1)]
    assert prompts[0].prompt == expected[0].prompt


DULL = [("Picnic.", "Sleep.", 0)]
PAIRS = {  # (chosen, rejected, margin), and what makes none
    "hh": ([(" Picnic.", " Sleep.", 0)], {}),
    "trl": ([(" Picnic.", " Sleep.", 0), ("Picnic.", "Sleep.", 2)], {}),
    "kto": ([(" Picnic.", " Sleep.", 1)], {"one answer alone": (1, [3])}),
    "ultrafeedback": ([("Picnic.", "Sleep.", 3)], {}),  # helpfulness 5 and 2; honesty of one only
    "helpsteer2": ([("Picnic.", "Sleep.", (3 + 2 + 3 + 0 + 1) / 5)], {}),
    "helpsteer2-pairs": ([("Picnic.", "Sleep.", 3), ("Picnic.", "Nap.", 2)], {"tie": (1, [3])}),
    "shp": ([("Picnic.", "Sleep.", 0), ("Picnic.", "Nap.", 0)], {}),
    "openai-summaries": ([(" Ate honey.", " Ate.", 0)], {}),
    "openai-preferences": ([("Picnic.", "Sleep.", 0)], {}),
    "oasst": ([("Picnic!", "Sleep.", 0), ("Read.", "No.", 0), ("Read.", "Nap.", 0), ("Nap.", "No.", 0)], {}),
    "pandalm": ([], {"raters split evenly": (1, [1])}),
    "alpacaeval": ([("Picnic.", "Sleep.", 0), ("Sleep.", "Picnic.", 0)], {"tie": (2, [3, 4])}),
    "argilla": ([("Sleep.", "Picnic.", 0)], {"one answer alone": (1, [2])}),
    "llama-factory": ([("1 2", "2 1", 0), ("Read.", "No.", 0)], {}),
    "llama-factory-sharegpt": ([("Read.", "No.", 0)], {}),
    "rewardbench": ([("Picnic.", "Sleep.", 0)], {}),
    "rewardbench-2": (
        [("Teddy.", "Tom.", 0), ("Teddy.", "Rex.", 0), ("Bruno.", "Tom.", 0), ("Bruno.", "Rex.", 0)],
        {"tie": (2, [1])},
    ),
    "kto-messages": ([("Picnic.", "Sleep.", 1)], {"one answer alone": (1, [3])}),
    "orca": ([*DULL, ("Picnic.", "Sleep.", 2)], {}),
    "ms-swift": (DULL, {}),
    "ms-swift-messages": (DULL, {}),
    "axolotl": (DULL, {}),
    "lists": ([(" Picnic.", " Sleep.", 0), (" Picnic.", " No.", 0), (" Read.", " No.", 0)], {"tie": (1, [1])}),
    "rm-bench": (
        [(style.format("Teddy"), other.format("Tom"), 0) for style in STYLES for other in STYLES],
        {"tie": (6, [1])},
    ),
    "helpsteer3": ([("Picnic.", "Sleep.", 2)], {"tie": (1, [2])}),
    "llmbar": ([*DULL, ("Picnic.", "Nap.", 0)], {}),
    "judgebench": ([*DULL, ("Sleep.", "Picnic.", 0)], {}),
    "label-studio": (DULL, {}),
    "label-studio-min": ([("Sleep.", "Picnic.", 0)], {}),
    "preference": ([(" Picnic.", " Sleep.", 0), ("Picnic.", "Sleep.", 2)], {"both bad": (1, [3]), "tie": (1, [4])}),
    "two-scores": ([("Picnic.", "Sleep.", 1.5)], {}),
    "ranks": ([("Picnic.", "Sleep.", 0), ("Picnic.", "Nap.", 0), ("Nap.", "Sleep.", 0), ("Read.", "No.", 0)], {}),
    "scores": ([("Picnic.", "Sleep.", 2.5)], {}),
    "score": ([("Picnic.", "Sleep.", 2.75)], {"one answer alone": (1, [3])}),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_pairs_are_derived_and_what_makes_none_is_neutral(tmp_path, name):
    plain = [(*(a.text for a in j.answers), j.verdict.strength) for j in EXAMPLES[name][1] if name not in PAIRS]
    expected, neutral = PAIRS.get(name, (plain, {}))  # of a plain format, each judgment is a pair
    source = write(tmp_path / "data.jsonl", EXAMPLES[name][0])
    if not expected:
        with pytest.raises(InputError, match=r"none of 1 rows can be read .1 'raters split evenly': row 1"):
            read_pairs(source)
        return
    pairs, counts, found = read_pairs(source)
    assert found == name
    assert [(p.chosen, p.rejected, p.margin) for p in pairs] == expected
    assert {reason: (count, sorted(set(rows))) for reason, (count, rows) in counts.neutral.items()} == neutral
    assert counts.read == counts.used + counts.neutral_total == len(pairs) + counts.neutral_total
    by_judges = {"ultrafeedback": [True], "alpacaeval": [True, True], "trl": [False, True]}
    by_judges["ranks"] = [True, True, True, False]
    assert [p.ai for p in pairs] == by_judges.get(name, [False] * len(pairs))


def test_neutral_rows_are_no_bad_share(tmp_path):
    ties = [{"prompt": "Sun?", "response_1": "a", "response_2": f"b{i}", "preference_strength": 0} for i in range(9)]
    source = write(tmp_path / "a.jsonl", [EXAMPLES["helpsteer2-pairs"][0][0], *ties])
    pairs, counts, name = read_pairs(source)
    assert len(checks.check_pairs(pairs, counts, 0.0)) == 1
    assert (counts.read, counts.used, counts.neutral) == (10, 1, {"tie": (9, [*range(2, 11)])})
    assert checks.summarise(counts, "a", name).splitlines()[:2] == [
        "a: format helpsteer2-pairs; 10 rows read, 1 used, 0 dropped, 9 neutral",
        "  neutral 9 'tie': rows 2, 3, 4, 5, 6, 7, 8, 9, 10",
    ]
    assert counts.as_dict()["neutral"] == {"tie": [9, [*range(2, 11)]]}


def test_only_consecutive_rows_of_one_prompt_are_compared(tmp_path):
    rows = [
        {"prompt": p, "completion": c, "label": label}
        for p, c, label in (("p", "a", True), ("p", "b", False), ("q", "c", True), ("p", "d", False))
    ]
    pairs, counts, _ = read_pairs(write(tmp_path / "a.jsonl", rows))
    assert [(p.chosen, p.rejected) for p in pairs] == [("a", "b")]
    assert counts.neutral == {"one answer alone": (2, [3, 4])}
    assert counts.read == 3


def test_rows_of_one_prompt_are_compared_by_the_block(tmp_path):
    rows = [{"prompt": "p", "completion": f"c{i}", "label": i == 0} for i in range(300)]
    pairs, counts, _ = read_pairs(write(tmp_path / "a.jsonl", rows))
    assert len(pairs) == 255
    assert counts.notes == {"more than 256 rows of one prompt, compared by the block": (1, [257])}


def test_judgments_are_streamed(tmp_path, monkeypatch):
    """Beyond the head, a row is read when it is asked for, and the counts go with it."""
    taken = []

    def rows(source: str, remarks: list[str], passing: object):
        for number in range(1, 1001):
            taken.append(number)
            yield number, {"prompt": "p", "chosen": "a", "rejected": "b"} if number % 2 else RowError("broken JSON")

    monkeypatch.setattr(containers, "_raw_rows", rows)
    groups, counts, name = open_judgments("endless", None, 900)
    assert (name, len(taken), counts.read) == ("trl", 199, 0)  # a hundred readable rows
    for _ in range(200):
        next(groups)
    assert (len(taken), counts.read, counts.used, counts.dropped_total) == (399, 399, 200, 199)
    assert sum(1 for _ in groups) == 250
    assert (len(taken), counts.read) == (900, 900)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("hh", {"margin": -1}, "margin is negative"),
        ("trl", {"margin": float("nan")}, "margin is not finite"),
        ("trl", {"margin": float("inf")}, "margin is not finite"),
        ("kto", {"label": "perhaps"}, "label is neither true nor false"),
        ("kto", {"label": None}, "no label"),
        ("kto", {"label": 2}, "label is neither true nor false"),
        ("kto", {"completion": [user("x")]}, "prompt is text but completion is messages"),
        ("ultrafeedback", {"completions": []}, "completions is not a list of objects"),
        ("ultrafeedback", {"completions": "many"}, "completions is not a list"),
        ("ultrafeedback", {"completions": [{"response": "a", "annotations": None}]}, "annotations is not an object"),
        ("ultrafeedback", {"completions": [{"response": None, "annotations": {}}]}, "no response"),
        ("ultrafeedback", {"completions": [{"response": "a", "annotations": {"x": {"Rating": "N/A"}}}]}, "no rating"),
        (
            "ultrafeedback",
            {"completions": [{"response": "a", "annotations": {"x": {"Rating": "good"}}}]},
            "Rating is not a number",
        ),
        (
            "ultrafeedback",
            {"completions": [{"response": "a", "annotations": {"x": {"Rating": "nan"}}}]},
            "Rating is not finite",
        ),
        ("helpsteer2", {"coherence": None}, "no coherence"),
        ("helpsteer2", {"coherence": True}, "coherence is not a number"),
        ("helpsteer2", {"prompt": " "}, "empty instruction"),
        ("helpsteer2-pairs", {"preference_strength": 4}, "preference_strength is not a whole number from -3 to 3"),
        ("helpsteer2-pairs", {"preference_strength": 0.5}, "preference_strength is not a whole number from -3 to 3"),
        ("helpsteer2-pairs", {"response_2": 7}, "response_2 is not text"),
        ("shp", {"labels": 2}, "labels is neither 0 nor 1"),
        ("shp", {"labels": "A"}, "labels is not a number"),
        ("openai-summaries", {"choice": 2}, "choice is neither 0 nor 1"),
        ("openai-summaries", {"choice": None}, "no choice"),
        ("openai-summaries", {"info": {"title": "x"}}, "info has neither post nor article"),
        ("openai-summaries", {"summaries": [{"text": "a"}]}, "summaries are not two"),
        ("openai-preferences", {"input": "Sun?"}, "input is not an object"),
        ("openai-preferences", {"preferred_output": [user("a")]}, "preferred_output is not one assistant message"),
        ("oasst", {"prompt": {"text": "Sun?", "replies": "none"}}, "replies is not a list of messages"),
        ("oasst", {"prompt": {"text": "Sun?", "role": "cook", "replies": []}},
         "a message has a role that is neither prompter nor assistant"),
        ("oasst", {"prompt": {"text": "Sun?", "replies": [{"text": "a", "role": "assistant", "rank": 0.5}] * 2}},
         "a rank is not a whole number from 0"),
        ("pandalm", {"annotator2": 3}, "annotator2 is neither 0, 1 nor 2"),
        ("pandalm", {"response1": True}, "response1 is not text"),
        ("pandalm", {f"annotator{i}": None for i in (1, 2, 3)}, "no annotator1, annotator2 or annotator3"),
        ("alpacaeval", {"preference": None}, "no preference"),
        ("alpacaeval", {"preference": 2.5}, "preference is neither 0 nor from 1 to 2"),
        ("alpacaeval", {"preference": float("nan")}, "preference is not finite"),
        ("alpacaeval", {"annotator": []}, "annotator is no name"),
        ("argilla", {"preference.responses": ["response-2"]},
         "preference.responses, its users and its status differ in number"),
        ("argilla", {"order.responses": [[{"rank": 1, "value": "response-1"}]]},
         "order does not rank each answer once"),
        ("argilla", {"response-2": None, "response-1": None},
         "no columns of answers, such as response-1 and response-2"),
        ("llama-factory", {"history": [["only"]]}, "history is not a list of question and answer"),
        ("llama-factory-sharegpt", {"conversations": [{"from": "gpt", "value": "x"}]},
         "conversations end with an assistant turn"),
        ("llama-factory-sharegpt", {"chosen": {"from": "human", "value": "x"}}, "chosen is not one assistant message"),
        ("rewardbench", {"chosen_model": {}}, "chosen_model is no name"),
        ("rewardbench-2", {"rejected": []}, "rejected is empty"),
        ("rewardbench-2", {"models": ["a"]}, "models are not as many as the answers"),
    ],
)  # fmt: skip
def test_bad_rows_are_dropped_by_number_and_reason(tmp_path, name, change, reason):
    rows = EXAMPLES[name][0]
    source = write(tmp_path / "data.jsonl", [*rows, rows[0] | change])
    judgments, counts, _ = read_judgments(source)
    assert counts.dropped == {reason: (1, [len(rows) + 1])}
    assert bare(judgments) == EXAMPLES[name][1]


def test_what_is_missing_is_noted_and_what_says_nothing_is_neutral(tmp_path):
    ultra = EXAMPLES["ultrafeedback"][0][0]
    ultra = ultra | {
        "completions": [*ultra["completions"], {"response": "x", "annotations": {"honesty": {"Rating": "N/A"}}}]
    }
    judgments, counts, _ = read_judgments(write(tmp_path / "u.jsonl", [ultra]))
    assert len(judgments) == 3
    assert remarks(counts) == {"a rating is missing": (1, [1])}

    panda = EXAMPLES["pandalm"][0][0] | {"annotator2": None}
    judgments, counts, _ = read_judgments(write(tmp_path / "p.jsonl", [panda]))
    assert [j.rater for j in judgments] == ["annotator1", "annotator3"]
    assert remarks(counts) == {"no annotator2": (1, [1])}

    lonely = {"prompt": {"text": "Sun?", "replies": [{"text": "a", "role": "assistant", "rank": 0}]}}
    _, counts, _ = read_judgments(write(tmp_path / "t.jsonl", [EXAMPLES["oasst"][0][0], lonely]))
    assert (counts.neutral, counts.dropped, counts.read) == ({"no two ranked replies": (1, [2])}, {}, 2)

    people = {"text": "Rain?", "role": "prompter", "rank": 0}
    replies = [
        {"text": "a", "role": "assistant", "rank": 0, "replies": [people, people | {"text": "Snow?", "rank": 1}]}
    ]
    ranked = {"prompt": {"text": "Sun?", "replies": [*replies, {"text": "b", "role": "assistant", "rank": 1}]}}
    judgments, counts, _ = read_judgments(write(tmp_path / "t.jsonl", [ranked]))
    assert [[a.text for a in j.answers] for j in judgments] == [["a", "b"]]
    assert remarks(counts) == {"a person's reply has a rank, left out": (2, [1, 1])}

    rows = EXAMPLES["argilla"][0]
    drafts = rows[1] | {"helpfulness.responses.status": ["draft", "discarded"]}
    _, counts, _ = read_judgments(write(tmp_path / "a.jsonl", [*rows, drafts]))
    assert counts.neutral == {"no submitted response": (1, [3])}
    assert remarks(counts) == {
        "a response is discarded, not submitted": (1, [1]),
        "text of why kept as a comment": (1, [1]),
        "a response is draft, not submitted": (1, [2]),
    }

    _, counts, _ = read_judgments(write(tmp_path / "e.jsonl", EXAMPLES["alpacaeval"][0]))
    assert remarks(counts) == {"preference 0, the older code for a tie": (1, [4])}


@pytest.mark.parametrize(
    ("question", "columns", "dimension", "answer"),
    [
        ("quality-response_2", ["response_1", "response_2"], "overall", "b"),
        ("clarity_1", ["answer-1", "answer-2"], "clarity", "a"),
        ("clarity2", ["model1", "model2"], "clarity", "b"),
    ],
)
def test_argilla_ratings_of_several_answers(tmp_path, question, columns, dimension, answer):
    row = {"id": "x", "prompt": "Sun?"} | dict(zip(columns, "ab", strict=True))
    row |= {
        f"{question}.responses": [3],
        f"{question}.responses.users": ["u"],
        f"{question}.responses.status": ["submitted"],
    }
    (judgment,), _, _ = read_judgments(write(tmp_path / "a.jsonl", [row]))
    assert (judgment.verdict, judgment.dimension, judgment.answers[0].text) == (Score(3), dimension, answer)


def test_a_column_is_kept_down_to_a_hundred_levels(tmp_path):
    def pair(depth: int) -> dict:
        return {"prompt": "p", "chosen": "a", "rejected": "b", "x": json.loads("[" * depth + "]" * depth)}

    _, counts, _ = read_judgments(write(tmp_path / "a.jsonl", [pair(100), pair(101)]))
    assert counts.dropped == {"a column is nested more than 100 levels deep": (1, [2])}


@pytest.mark.parametrize("column", ["chosen", "rejected"])
def test_an_empty_list_of_answers_is_a_bad_row(tmp_path, column):
    rows = [{"prompt": f"p{i}", "chosen": ["a", "b"], "rejected": ["c", "d"], "domain": "chat"} for i in range(2)]
    rows[0][column] = []
    found, counts, name = read_judgments(write(tmp_path / "styles.jsonl", rows))
    assert (name, len(found), counts.dropped) == ("rm-bench", 1, {f"{column} is empty": (1, [1])})


@pytest.mark.parametrize("it", FORMATS.values(), ids=FORMATS)
def test_no_value_stops_recognition(it):
    """Recognition looks at rows of any form before a reader judges them."""
    odd = [None, "", "[", "{", 0, True, [], {}, [None], [[]], [{}], [[], []], [1, 2], {"messages": None}]
    columns = sorted({*it.needs, "prompt", "chosen", "rejected", "messages"})
    for values in itertools.product(odd, repeat=2):
        for two in itertools.combinations(columns, 2):
            for rest in ("p", ["a", "b"]):
                row = dict.fromkeys(columns, rest) | dict(zip(two, values, strict=True))
                assert isinstance(it.fits(row), bool), row


def test_a_labelled_file_is_not_imitated(tmp_path):
    source = write(tmp_path / "kto.jsonl", EXAMPLES["kto"][0])
    with pytest.raises(InputError, match="format kto"):
        sources.read_demonstrations(source)
    found, counts, _ = sources.read_demonstrations(source, format="prompt-completion")
    assert [it.completion for it in found] == [" Picnic.", "Read."]
    assert counts.dropped == {"label says that the answer is bad": (1, [2])}


def test_ours_beside_trl_are_read_and_foreign_columns_of_these_names_are_kept(tmp_path):
    foreign = {
        "rater": ["x"],
        "feedback": "Nice!",
        "seconds": "long",
        "chosen_tokens": -1,
        "raw": None,
        "odd": float("nan"),
    }
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"} | foreign]
    (judgment,), _, _ = read_judgments(write(tmp_path / "a.jsonl", rows))
    assert bare([judgment]) == [
        vote(
            "p",
            "a",
            "b",
            extra={"rater": ["x"], "feedback": "Nice!", "seconds": "long", "chosen_tokens": -1, "odd": "nan"},
        )
    ]


# --- a round trip


EVERYTHING = Judgment(
    [user("Sun?")],
    (
        Answer("Sleep.", "cub", "h1", {"temperature": 0.8, "top_p": 1.0}, -3.25, 7, True, 2),
        Answer("Picnic.", "bear", "h2", None, 0.0, 0),
    ),
    Preference("second", 2.5),
    rater="person-007",
    kind="simulated",
    dimension="kindness",
    rubric="v2",
    seconds=4.5,
    comment="Warm.",
    raw='{"winner": 2}',
    extra={"id": 7, "nested": {"a": [1, None]}},
)


def test_everything_is_in_everything():
    blank = Judgment("", (), TIE)
    assert not [f.name for f in fields(Judgment) if getattr(EVERYTHING, f.name) == getattr(blank, f.name) != Origin()]


@pytest.mark.parametrize("ending", ["jsonl", "json.gz", "csv", "parquet"])
def test_a_round_trip_through_trl_loses_nothing(tmp_path, ending):
    """In CSV everything that is not ours is text."""
    source = write(
        tmp_path / "a.jsonl", FORMATS["trl"].write([EVERYTHING, replace(EVERYTHING, verdict=Preference("first"))])
    )
    target = tmp_path / f"b.{ending}"
    counts = convert(source, target, "trl")
    first = bare(read_judgments(str(target))[0])
    as_text = {"extra": {"id": "7", "nested": '{"a": [1, null]}'}} if ending == "csv" else {}
    assert first == [replace(j, **as_text) for j in (EVERYTHING, replace(EVERYTHING, verdict=Preference("first")))]
    assert (counts.read, counts.notes) == (2, {"columns carried along, not used: id, nested": (2, [1])})


@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_format_is_written_and_read_again(tmp_path, name, ending):
    rows, expected = EXAMPLES[name]
    target = tmp_path / f"b.{ending}"
    counts = convert(write(tmp_path / "a.jsonl", rows), target, name)
    judgments, again, found = read_judgments(str(target))
    assert found == name
    assert bare(judgments) == expected
    assert counts.dropped == counts.neutral == again.dropped == {}
    assert not [what for what in counts.notes if "does not hold" in what]


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_table_holds_a_format_but_for_the_types_of_further_columns(tmp_path, name, ending):
    """In a table all cells of a column have one type: text in CSV, and in Parquet what holds them all."""
    rows, expected = EXAMPLES[name]
    source, target = write(tmp_path / "a.jsonl", rows), tmp_path / f"b.{ending}"
    if ending == "parquet" and name in ("trl", "kto", "preference", "ranks"):  # prompts as text and as messages
        with pytest.raises(InputError, match="not a table with one type per column"):
            convert(source, target, name)
        return
    convert(source, target, name)
    judgments, _, found = read_judgments(str(target))
    assert found == name
    assert [replace(j, extra=None, raw="") for j in bare(judgments)] == [
        replace(j, extra=None, raw="") for j in expected
    ]
    assert [set(j.extra or ()) >= set(e.extra or ()) for j, e in zip(judgments, expected, strict=True)]


def alone(prompt):
    one = not isinstance(prompt, str) and [m["role"] for m in prompt] == ["user"] and "tools" not in prompt[0]
    return prompt[0]["content"] if one else prompt


def the_same(judgment: Judgment) -> tuple:
    """What a judgment says, by hand: a chat of one user message is its text, a transcript is its turns, an answer's
    outer space is the transcript's."""
    prompt = alone(judgment.prompt)
    if isinstance(prompt, str) and prompt.startswith("\n\nHuman:"):
        turns = prompt.removesuffix("\n\nAssistant:").replace("\n\nAssistant: ", "\n\nHuman: ").split("\n\nHuman: ")[1:]
        prompt = alone([{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)])
    texts = [answer.text.strip() + str(answer.fields or "") for answer in judgment.answers]
    if isinstance(judgment.verdict, Preference):
        turned = {"first": texts, "second": texts[::-1]}
        texts = turned.get(judgment.verdict.outcome, sorted(texts))
        said = judgment.verdict.outcome.replace("second", "first"), *texts
    elif isinstance(judgment.verdict, Score):
        said = float(judgment.verdict.value), *texts
    else:
        said = tuple(sorted(zip(judgment.verdict.ranks, texts, strict=True)))
    return str(prompt), judgment.dimension, said


CHAT = {"trl", "openai-preferences", "argilla", "llama-factory", "llama-factory-sharegpt", "ms-swift",
        "ms-swift-messages", "axolotl"}  # fmt: skip
ASKED = CHAT | {"orca", "shp", "pandalm", "llmbar", "judgebench", "label-studio", "label-studio-min"}
VOTED = {"pandalm", "argilla", "judgebench", "label-studio", "label-studio-min"}
CONVERTS = {
    "hh": ASKED | {"hh", "alpacaeval", "preference"},
    "trl": {"trl", "preference"},  # its second row has a dimension
    "kto": {"kto", "kto-messages", "argilla", "ultrafeedback", "score"},
    "ultrafeedback": {"ultrafeedback"},
    "helpsteer2": {"helpsteer2", "argilla"} | {"score", "scores", "two-scores"},
    "helpsteer2-pairs": VOTED | {"helpsteer2-pairs", "helpsteer3", "preference"},
    "shp": ASKED | {"hh", "preference"},
    "openai-summaries": ASKED | {"openai-summaries", "preference"},
    "openai-preferences": CHAT - {"llama-factory"}
    | {"orca"}
    | {"preference"},  # its further column has a name of LLaMA-Factory's
    "oasst": {"oasst", "argilla", "ranks"},
    "pandalm": VOTED | {"preference"},
    "alpacaeval": {"alpacaeval", "judgebench", "preference"},
    "argilla": {"argilla"},
    "llama-factory": CHAT | {"preference"},
    "llama-factory-sharegpt": CHAT | {"hh", "preference"},
    "rewardbench": ASKED | {"rewardbench", "hh", "alpacaeval", "preference"},
    "rewardbench-2": {"rewardbench-2", "argilla", "oasst", "lists", "ranks"},
    "kto-messages": {"kto-messages", "kto", "score"},  # its third answer is a call of a tool
    "orca": CHAT | {"orca", "preference"},
    "ms-swift": CHAT | {"orca", "preference"},
    "ms-swift-messages": CHAT - {"llama-factory", "argilla", "ms-swift"}
    | {"preference"},  # one of its answers thinks apart
    "axolotl": CHAT | {"hh", "preference"},
    "lists": {"lists", "argilla", "oasst", "ranks"},
    "rm-bench": {"rm-bench", "lists", "argilla", "oasst", "ranks"},
    "helpsteer3": {"helpsteer3", "argilla", "preference"},
    "llmbar": ASKED | {"hh", "alpacaeval", "preference"},
    "judgebench": ASKED | {"hh", "alpacaeval", "preference"},
    "label-studio": {"label-studio", "label-studio-min", "argilla", "preference"},
    "label-studio-min": ASKED | {"hh", "preference"},
    "preference": {"preference", "argilla", "label-studio", "label-studio-min"},  # ties and two bad answers
    "two-scores": {"two-scores", "scores", "score", "argilla", "ultrafeedback"},
    "ranks": {"ranks"},  # by a judge
    "scores": {"scores", "two-scores", "score", "argilla", "ultrafeedback"},
    "score": {"score", "argilla", "ultrafeedback"},  # one of them alone
}
"""What can become what. Argilla's answers are people's, so that a judge's are refused; and so on.

Of formats that are not here, either will do, as long as what is written says the same.
"""


@pytest.mark.parametrize(("name", "to"), list(itertools.product(EXAMPLES, EXAMPLES)))
def test_every_format_becomes_another_or_is_refused(tmp_path, name, to):
    source = write(tmp_path / "a.jsonl", EXAMPLES[name][0])
    target = tmp_path / "b.jsonl"
    error = None
    try:
        counts = convert(source, target, to)
    except InputError as caught:
        error = caught
    if name in CONVERTS and to in CONVERTS:
        assert (error is None) == (to in CONVERTS[name])
    if error is not None:
        line = str(error)
        assert line.startswith(f"{source}: {to} cannot hold ")
        assert "row" in line
        assert "\n" not in line
        assert list(tmp_path.iterdir()) == [tmp_path / "a.jsonl"]
        return
    judgments = read_judgments(str(target), format=to)[0]
    assert sorted(map(repr, map(the_same, judgments))) == sorted(map(repr, map(the_same, EXAMPLES[name][1])))
    assert read_judgments(str(target))[2] == to
    assert counts.read == counts.used == len(EXAMPLES[name][0])


# --- refusals


@pytest.mark.parametrize(
    ("to", "judgment", "reason"),
    [
        ("trl", vote("p", "a", "b", TIE), "a tie has no chosen and no rejected answer"),
        ("trl", vote("p", "a", "b", Preference("both_bad")), "of two bad answers none is chosen"),
        ("trl", Judgment("p", (Answer("a"),), Score(1)), "a score of one answer is no preference between two"),
        ("trl", vote("p", "a", "b", Ranking((1, 2))), "a ranking of 2 answers is no preference between two"),
        (
            "trl",
            vote("p", "a", "b", rater="x", extra={"rater": []}),
            "the further column 'rater' has the name of one of",
        ),
        ("hh", vote("p", "a", "b"), "the prompt is plain text, not a transcript of Human and Assistant turns"),
        ("hh", vote([user("p"), user("q")], "a", "b"), "a transcript alternates between user and assistant"),
        ("hh", vote([user("p")], "a\n\nHuman: q", "b"), "an answer holds the start of another turn of a transcript"),
        ("hh", vote([user("p\n\nAssistant: q")], "a", "b"), "a turn holds the start of another turn of a transcript"),
        ("hh", vote([user("p")], "a", "b", dimension="tone"), "the dimension 'tone' has no place"),
        ("kto", Judgment("p", (Answer("a"),), Score(0.5)), "a score of 0.5 is neither 0 nor 1"),
        ("kto", vote("p", "a", "b"), "a preference of several answers is no score"),
        ("alpacaeval", vote([user("p"), user("q")], "a", "b"), "the prompt has several turns"),
        ("alpacaeval", vote("p", "a", "b", Preference("both_bad")), "'both bad' has no place"),
        (
            "alpacaeval",
            vote("p", "a", "b", kind="person"),
            "labels of the kind 'person' would be read as of the kind 'judge'",
        ),
        (
            "pandalm",
            vote("p", "a", "b", kind="judge"),
            "labels of the kind 'judge' would be read as of the kind 'person'",
        ),
        ("pandalm", vote(" ", "a", "b"), "it would not be read back (empty instruction)"),
        ("shp", vote("p", "a", "b", TIE), "a tie has no place"),
        ("helpsteer2-pairs", vote("p", "a", "b"), "the preference has no strength of 1, 2 or 3"),
        (
            "helpsteer2-pairs",
            vote("p", "a", "b", Preference("first", 1.5)),
            "the preference has no strength of 1, 2 or 3",
        ),
        ("helpsteer2", Judgment("p", (Answer("a"),), Score(3)), "the dimension 'overall' has no place"),
        (
            "helpsteer2",
            Judgment("p", (Answer("a"),), Score(3), dimension="verbosity"),
            "an answer has no score for helpfulness",
        ),
        ("openai-summaries", vote("p", "a", "b"), "the prompt is no post with TL;DR to summarise"),
        ("openai-summaries", vote(POST, "a", "b", TIE), "a tie has no place"),
        (
            "llama-factory",
            vote([user("p"), user("q")], "a", "b"),
            "the prompt does not alternate between user and assistant",
        ),
        (
            "llama-factory-sharegpt",
            vote([{"role": "developer", "content": "x"}], "a", "b"),
            "a turn of the role 'developer' has no place",
        ),
        ("oasst", vote("p", "a", "b"), "a preference is no ranking"),
        (
            "oasst",
            vote([user("p"), user("q")], "a", "b", Ranking((1, 2))),
            "a tree alternates between user and assistant",
        ),
        ("rewardbench", vote("p", "a", "b"), "no subset, by which RewardBench counts"),
        (
            "rewardbench-2",
            vote("p", "a", "b", Ranking((1, 3))),
            "the ranks are not 1 for the right and 2 for the wrong",
        ),
        ("argilla", vote("p", "a", "b", dimension="quality"), "text, verdict or dimension would not be read back"),
        ("ultrafeedback", vote("p", "a", "b"), "a preference of several answers is no score"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, to, judgment, reason):
    good = vote([user("p")], "a", "b", extra={"subset": "x"})
    takes = ("trl", "hh", "alpacaeval", "pandalm", "shp", "llama-factory", "rewardbench", "argilla")
    groups = [[good]] * (to in takes) + [[replace(judgment, origin=Origin("s", row))] for row in (17, 23)]
    target = tmp_path / "deep" / "b.jsonl"
    with pytest.raises(InputError) as caught:
        write_judgments(groups, target, to, RowCounts(read=3, used=3), "s.jsonl")
    line = str(caught.value)
    assert line.startswith(f"s.jsonl: {to} cannot hold 2 of 3 rows (2 '{reason}")
    assert "rows 17, 23" in line
    assert "\n" not in line
    assert caught.value.exit_code == 2
    assert list(target.parent.iterdir()) == []


CALLS = [{"type": "function", "function": {"name": "look", "arguments": {}}}]


@pytest.mark.parametrize("to", ["hh", "pandalm", "shp", "alpacaeval", "llama-factory", "argilla"])
@pytest.mark.parametrize(
    "judgment",
    [
        replace(vote([user("p")], "a", "b"), answers=(Answer("a", fields={"tool_calls": CALLS}), Answer("b"))),
        vote([user("p") | {"tools": CALLS}], "a", "b"),
    ],
)
def test_fields_of_turns_are_kept_or_the_row_is_refused(tmp_path, to, judgment):
    target = tmp_path / "b.jsonl"
    keeps_tools = to in ("llama-factory", "argilla") and not judgment.answers[0].fields
    if keeps_tools:
        write_judgments([[judgment]], target, to, RowCounts(read=1, used=1), "s.jsonl")
        assert read_judgments(str(target))[0][0].prompt == judgment.prompt
        return
    with pytest.raises(InputError, match=f"{to} cannot hold 1 of 1 rows"):
        write_judgments([[judgment]], target, to, RowCounts(read=1, used=1), "s.jsonl")


def test_what_is_left_out_is_noted(tmp_path):
    target = tmp_path / "b.jsonl"
    source = write(
        tmp_path / "a.jsonl", FORMATS["trl"].write([replace(EVERYTHING, dimension="overall", kind="unknown")])
    )
    counts = convert(source, target, "openai-preferences")
    assert {what.removeprefix("openai-preferences does not hold ") for what in remarks(counts)} == {
        "rater", "rubric", "seconds", "comment", "raw", "the order in which answers were shown", "strength",
        "the answers' model", "the answers' model_hash", "the answers' sampling", "the answers' logp",
        "the answers' tokens", "the answers' truncated", "the answers' draw",
    }  # fmt: skip


def test_numbers_are_rows_of_the_source(tmp_path):
    rows = EXAMPLES["helpsteer2-pairs"][0]
    source = write(tmp_path / "a.jsonl", [rows[0], rows[2], {}, rows[1], rows[2]])
    with pytest.raises(
        InputError, match=r"trl cannot hold 2 of 5 rows .2 'a tie has no chosen and no rejected answer': rows 2, 5"
    ):
        convert(source, tmp_path / "b.jsonl", "trl")
    rows = [rows[0], {}, rows[1]]
    with pytest.raises(InputError, match=r"1 of 3 rows are bad .*: row 2.*max-bad-share"):
        convert(write(tmp_path / "a.jsonl", rows), tmp_path / "b.jsonl", "trl")
    counts = convert(str(tmp_path / "a.jsonl"), tmp_path / "b.jsonl", "trl", max_bad_share=0.5)
    assert (counts.used, counts.dropped) == (2, {"no preference_strength": (1, [2])})


# --- demonstrations, and the file itself


SHOWN = {
    "prompt-completion": [
        {"prompt": "2 + 2 =", "completion": " 4"},
        {"prompt": [user("a")], "completion": [says("b")]},
    ],
    "messages": [{"messages": [user("a"), says("b")]}],
    "alpaca": [
        {"instruction": "Sort.", "input": "2 1", "output": "1 2"},
        {"instruction": "Go.", "input": "", "output": "no"},
    ],
    "sharegpt": [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}],
    "text": [{"text": "Once."}],
}  # fmt: skip
SORT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSort.\n\n### Input:\n2 1\n\n### Response:\n"
)
GO = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nGo.\n\n### Response:\n"
)


def spoken(question: str, answer: str) -> dict:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


SHOWN_AS = {
    ("prompt-completion", "prompt-completion"): SHOWN["prompt-completion"],
    ("prompt-completion", "messages"): [
        {"messages": [user("2 + 2 ="), says(" 4")]},
        SHOWN["messages"][0],
    ],
    ("prompt-completion", "alpaca"): [
        {"instruction": "2 + 2 =", "input": "", "output": " 4"},
        {"instruction": "a", "input": "", "output": "b"},
    ],
    ("messages", "prompt-completion"): SHOWN["prompt-completion"][1:],
    ("messages", "messages"): SHOWN["messages"],
    ("messages", "sharegpt"): SHOWN["sharegpt"],
    ("sharegpt", "sharegpt"): SHOWN["sharegpt"],
    ("sharegpt", "messages"): SHOWN["messages"],
    ("sharegpt", "prompt-completion"): SHOWN["prompt-completion"][1:],
    ("sharegpt", "alpaca"): [{"instruction": "a", "input": "", "output": "b"}],
    ("prompt-completion", "sharegpt"): [spoken("2 + 2 =", " 4"), spoken("a", "b")],
    ("alpaca", "sharegpt"): [spoken(SORT, "1 2"), spoken(GO, "no")],
    ("messages", "alpaca"): [{"instruction": "a", "input": "", "output": "b"}],
    ("alpaca", "alpaca"): SHOWN["alpaca"],
    ("alpaca", "prompt-completion"): [{"prompt": SORT, "completion": "1 2"}, {"prompt": GO, "completion": "no"}],
    ("alpaca", "messages"): [{"messages": [user(SORT), says("1 2")]}, {"messages": [user(GO), says("no")]}],
    ("text", "text"): SHOWN["text"],
    ("text", "prompt-completion"): [{"prompt": "", "completion": "Once."}],
}


@pytest.mark.parametrize(("name", "to"), list(itertools.product(SHOWN, SHOWN)))
def test_demonstrations_become_another_or_are_refused(tmp_path, name, to):
    source, target = write(tmp_path / "a.jsonl", SHOWN[name]), tmp_path / "b.jsonl"
    if (name, to) in SHOWN_AS:
        convert(source, target, to)
        assert [row for _, row in read_rows(str(target))] == SHOWN_AS[name, to]
        return
    with pytest.raises(InputError, match=f"{to} cannot hold"):
        convert(source, target, to)
    assert not target.exists()


def test_columns_of_demonstrations_are_noted(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "c", "id": 1}])
    assert convert(source, tmp_path / "b.csv", "messages").notes == {"columns not used: id": (1, [1])}


def test_targets_that_are_refused(tmp_path):
    source = write(tmp_path / "a.jsonl", EXAMPLES["trl"][0])
    (tmp_path / "there.jsonl").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target, to, words in (
        ("there.jsonl", "trl", "already exists"),
        ("b.txt", "trl", "end it in .jsonl, .json, .csv, .parquet"),
        ("b.parquet.gz", "trl", "end it in"),
        ("file/b.jsonl", "trl", "cannot be written"),
        ("b.jsonl", "trlx", "is not a format that can be written; choose one of hh, "),
        ("b.jsonl", "messages", "these are preference pairs, and messages holds answers to imitate; add --pairs"),
    ):
        with pytest.raises(InputError, match=words):
            convert(source, tmp_path / target, to)
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "file", "there.jsonl"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    def rows(source: str, remarks: list[str], passing: object):
        yield from ((n, {"prompt": "p", "chosen": "a", "rejected": "b"}) for n in range(1, 500))
        raise KeyboardInterrupt

    monkeypatch.setattr(containers, "_raw_rows", rows)
    for ending in ("jsonl", "json.gz", "csv", "parquet"):
        with pytest.raises(KeyboardInterrupt):
            convert("endless", tmp_path / f"b.{ending}", "trl")
    assert list(tmp_path.iterdir()) == []


def test_what_a_table_cannot_hold_is_refused(tmp_path):
    chat = json.dumps([user("p")])
    for ending in ("csv", "jsonl"):
        with (
            pytest.raises(RowError, match="chosen is text that a reader would take for messages"),
            write_rows(tmp_path / f"b.{ending}") as put,
        ):
            put({"prompt": "p", "chosen": chat})
    rows = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in ("p", [user("p")])]
    with pytest.raises(InputError, match="not a table with one type per column"):
        convert(write(tmp_path / "a.jsonl", rows), tmp_path / "b.parquet", "trl")
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    rows = [
        {"prompt": "p", "chosen": chat[:-1], "rejected": "[{'role': 1}] is Python"},
        {"prompt": "p", "chosen": "[{}]"},
    ]
    with write_rows(tmp_path / "c.jsonl") as put:
        put(rows[1])
    assert [row for _, row in read_rows(str(tmp_path / "c.jsonl"))] == rows[1:]


def test_any_text_comes_back_from_a_csv_file(tmp_path):
    texts = ["a\rb", "a\r\nb", '"', ",", "\u2028", " a ", "\0", "Bär\n\n", "[1]", "{", "'"]
    rows = [{"prompt": "p" + t, "chosen": t, "rejected": t + "x"} for t in texts]
    convert(write(tmp_path / "a.jsonl", rows), tmp_path / "b.csv", "trl")
    assert [(p.prompt, p.chosen, p.rejected) for p in read_pairs(str(tmp_path / "b.csv"))[0]] == [
        (r["prompt"], r["chosen"], r["rejected"]) for r in rows
    ]


def test_the_same_rows_are_the_same_bytes(tmp_path):
    source = write(tmp_path / "a.jsonl", EXAMPLES["trl"][0])
    for name in ("b.jsonl.gz", "c.jsonl.gz"):
        convert(source, tmp_path / name, "trl")
    assert (tmp_path / "b.jsonl.gz").read_bytes() == (tmp_path / "c.jsonl.gz").read_bytes()
