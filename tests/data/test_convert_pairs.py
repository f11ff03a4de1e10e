"""Judgments of people into pairs: `keel data convert --pairs` writes what training derives, and refusals name it."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter

import pytest
from tests.reading import read_pairs

from keel import cli
from keel.annotation.queue import Queue
from keel.annotation.tasks import NewTask
from keel.data.convert import convert
from keel.errors import InputError
from keel.records import Answer, Preference
from keel.store.store import Store

WORDS = {"1": "first", "2": "second", "0": "tie", "x": "both_bad"}
NUMBER = {"left": "1", "right": "2"}


@pytest.fixture
def votes(tmp_path):
    """`votes("11", "1x", …)`: a store with one contest each, and the outcome of each rater in the task's own order."""

    def fill(*contests, dimension="overall", adjudicated=()):
        source = f"store:{tmp_path}/votes.db"
        with Store(source, create=True) as store:
            queue = Queue(store)
            found = [
                NewTask(f"{i}?", (Answer(f"left {i}", truncated=i == 0), Answer(f"right {i}")))
                for i in range(len(contests))
            ]
            queue.add(found, overlap=max(map(len, contests)))
            for place, rater in enumerate(("ana", "ben", "cara")):
                for turn in iter(lambda rater=rater: queue.next(rater), None):
                    mark = contests[int(turn.prompt[:-1])][place : place + 1]
                    if not mark:
                        queue.skip(rater, turn.key)
                        continue
                    if mark in "12":
                        mark = "1" if NUMBER[turn.answers[0].text.split()[0]] == mark else "2"
                    verdict = Preference(WORDS[mark], 1 + place if mark in "12" else 0)
                    queue.judge(rater, turn.key, {dimension: verdict})
            for number, mark in adjudicated:
                queue.adjudicate("lead", number + 1, {dimension: Preference(WORDS[mark], 3)})
        return source

    return fill


def written(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_pairs_of_a_store_are_what_most_say_with_their_margin(votes, tmp_path):
    """Margins by hand: ana's strength is 1, ben's 2, cara's 3, the adjudicator's 3."""
    source = votes("111", "221", "112", "00", "xx", "12", "1", "2x0", adjudicated=[(5, "2")])
    target = tmp_path / "out.jsonl"
    counts = convert(source, target, "trl", pairs=True)
    found = {row["prompt"]: (row["chosen"], row["margin"]) for row in written(target)}
    assert found == {
        "0?": ("left 0", 2.0),
        "1?": ("right 1", 1.5),
        "2?": ("left 2", 1.5),
        "5?": ("right 5", 3.0),
        "6?": ("left 6", 1.0),
    }
    assert (counts.read, counts.used) == (8, 5)
    assert {why: count for why, (count, _) in counts.neutral.items()} == {"tie": 2, "both bad": 1}
    assert [row["prompt"] for row in written(target) if row.get("chosen_truncated")] == ["0?"]
    assert all({"rater", "feedback"}.isdisjoint(row) for row in written(target))


def test_training_reads_the_same_pairs_from_the_file_as_from_the_store(votes, tmp_path):
    rng = random.Random(5)
    source = votes(*("".join(rng.choice("12210x") for _ in range(3)) for _ in range(60)))
    convert(source, tmp_path / "out.parquet", "trl", pairs=True)
    there, here = (
        {(p.prompt, p.chosen, p.rejected, p.margin, p.ai, p.cut) for p in read_pairs(name)[0]}
        for name in (source, str(tmp_path / "out.parquet"))
    )
    assert there == here
    assert len(here) > 20


def test_a_judged_file_becomes_pairs(shared, tmp_path):
    """Three annotators' majority, counted from the raw file; empty and equal answers are dropped."""
    source = shared / "data" / "pandalm-testset-v1.json.gz"
    expected: Counter = Counter()
    for row in json.loads(gzip.decompress(source.read_bytes())):
        texts = row["response1"], row["response2"]
        if not all(isinstance(text, str) and text.strip() for text in texts) or not row["instruction"].strip():
            continue
        marks = Counter(row[f"annotator{i}"] for i in (1, 2, 3))
        best = [mark for mark in (1, 2) if marks[mark] > max(marks[3 - mark], marks[0] - 1)]
        if best and texts[0].strip() != texts[1].strip():
            expected[texts[best[0] - 1], texts[2 - best[0]]] += 1
    counts = convert(str(source), tmp_path / "out.jsonl", "trl", max_bad_share=0.1, pairs=True)
    found = Counter(
        (row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in written(tmp_path / "out.jsonl")
    )
    lost = expected - found
    assert not found - expected
    assert sum(lost.values()) == counts.dropped.get("contradictory pair", (0, []))[0]
    assert sum(found.values()) > 600
    assert set(counts.neutral) == {"tie"}


def test_the_command_tells_what_made_no_pair(votes, tmp_path, capfd):
    source = votes("11", "00", "xx", "12")
    assert (
        cli.main(["data", "convert", "--data", source, "--out", f"{tmp_path}/o.jsonl", "--to", "trl", "--pairs"]) == 0
    )
    err = capfd.readouterr().err
    assert "1 used, 0 dropped, 3 neutral" in err
    for why in ("tie", "both bad", "raters split evenly"):
        assert f"neutral 1 '{why}'" in err


def test_a_margin_that_the_target_has_no_place_for_is_noted(votes, tmp_path):
    counts = convert(votes("11", "1x"), tmp_path / "out.jsonl", "argilla", pairs=True)
    assert counts.notes["argilla does not hold strength"][0] == 2


def test_the_refusal_of_a_store_names_prompt_rater_and_dimension_and_the_remedy(votes, tmp_path):
    source = votes("11", "10", "x1", "x1", "x1", "x1", dimension="tone")
    with pytest.raises(InputError) as caught:
        convert(source, tmp_path / "out.jsonl", "trl")
    line = str(caught.value)
    assert line.startswith(f"{source}: trl cannot hold 5 of 6 prompts (4 'of two bad answers none is chosen': ")
    assert "1 'a tie has no chosen and no rejected answer': “1?” by ben in tone)" in line
    assert line.count(" by ana in tone") == 3
    assert ", …; 1 'a tie" in line
    assert line.endswith("add --pairs to write the pairs that training derives, or choose another format")
    assert "row" not in line
    assert not (tmp_path / "out.jsonl").exists()


def test_one_adjudication_is_refused_where_it_would_be_a_plain_vote(votes, tmp_path):
    source = votes("12", "11", adjudicated=[(0, "1")])
    with pytest.raises(InputError, match=r"argilla cannot hold 1 of 2 prompts .*“0\?” by lead \(adjudicator\)\); add"):
        convert(source, tmp_path / "out.jsonl", "argilla")
    convert(source, tmp_path / "out.jsonl", "argilla", pairs=True)
    assert {(p.prompt[0]["content"], p.chosen) for p in read_pairs(str(tmp_path / "out.jsonl"))[0]} == {
        ("0?", "left 0"),
        ("1?", "left 1"),
    }


def test_the_refusal_of_a_file_names_the_remedy_only_where_it_helps(votes, tmp_path, write_rows):
    convert(votes("11", "00"), tmp_path / "a.jsonl", "pandalm")
    source = str(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match=r"rows? \d.*; add --pairs to .*, choose another format, or remove them$"):
        convert(source, tmp_path / "out.jsonl", "trl")
    with pytest.raises(InputError, match=r"no score': rows [\d, ]+\); choose another format, or remove them$"):
        convert(source, tmp_path / "out.jsonl", "ultrafeedback")


def test_peoples_pairs_do_not_become_a_models(votes, tmp_path):
    with pytest.raises(InputError, match=r"alpacaeval cannot hold 1 of 1 pairs \(1 'labels that are no model's would"):
        convert(votes("11", "00"), tmp_path / "out.jsonl", "alpacaeval", pairs=True)


def test_a_models_pairs_stay_marked(tmp_path, write_rows):
    rows = [{"prompt": f"{i}?", "chosen": "a", "rejected": "b", **({"feedback": "ai"} if i else {})} for i in (0, 1)]
    convert(str(write_rows(tmp_path / "a.jsonl", rows)), tmp_path / "out.jsonl", "trl", pairs=True)
    assert written(tmp_path / "out.jsonl") == rows


def test_pairs_become_good_and_bad_answers(votes, tmp_path):
    counts = convert(votes("11", "22", "00"), tmp_path / "out.jsonl", "kto", pairs=True)
    assert sorted((row["prompt"], row["completion"], row["label"]) for row in written(tmp_path / "out.jsonl")) == [
        ("0?", "left 0", True), ("0?", "right 0", False), ("1?", "left 1", False), ("1?", "right 1", True),
    ]  # fmt: skip
    assert [
        row.get("completion_truncated") for row in written(tmp_path / "out.jsonl") if row["completion"] == "left 0"
    ] == [True]
    assert counts.notes["kto does not hold strength"][0] == 2
    assert sorted((p.prompt, p.chosen) for p in read_pairs(str(tmp_path / "out.jsonl"))[0]) == [
        ("0?", "left 0"), ("1?", "right 1"),
    ]  # fmt: skip


def test_pairs_become_demonstrations_of_the_chosen_answer(tmp_path, write_rows):
    call = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    rows = [
        {"prompt": "a?", "chosen": "yes", "rejected": "no"},
        {"prompt": "a?", "chosen": "yes", "rejected": "never"},
        {"prompt": "b?", "chosen": "cut", "rejected": "no", "chosen_truncated": True},
        {"prompt": [{"role": "user", "content": "c?"}], "chosen": [{"role": "assistant", "content": "so"}],
         "rejected": [{"role": "assistant", "content": "no", "tool_calls": call}]},
    ]  # fmt: skip
    source = str(write_rows(tmp_path / "a.jsonl", rows))
    counts = convert(source, tmp_path / "m.jsonl", "messages", pairs=True)
    assert written(tmp_path / "m.jsonl") == [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (("a?", "yes"), ("c?", "so"))
    ]
    assert counts.notes == {"the rejected answer is left out": (2, [1, 4]), "a chat among plain prompts": (1, [4])}
    assert {why: rows for why, (_, rows) in counts.neutral.items()} == {
        "the same chosen answer as in an earlier pair": [2],
        "the chosen answer was cut at a length limit: nothing to imitate": [3],
    }
    assert (counts.read, counts.used) == (4, 2)
    convert(source, tmp_path / "p.jsonl", "prompt-completion", pairs=True)
    assert [row["prompt"] for row in written(tmp_path / "p.jsonl")] == ["a?", rows[3]["prompt"]]
    convert(source, tmp_path / "i.jsonl", "alpaca", pairs=True)
    assert [row["instruction"] for row in written(tmp_path / "i.jsonl")] == ["a?", "c?"]


@pytest.mark.parametrize("through_a_store", [False, True])
def test_pairs_do_not_become_demonstrations_unasked(votes, tmp_path, write_rows, through_a_store):
    rows = [{"prompt": "a?", "chosen": "yes", "rejected": "no"}]
    source = votes("11") if through_a_store else str(write_rows(tmp_path / "a.jsonl", rows))
    with pytest.raises(InputError, match=r"these are preference pairs, and alpaca .* add --pairs"):
        convert(source, tmp_path / "out.jsonl", "alpaca")


def test_formats_of_other_things_are_refused(votes, tmp_path):
    with pytest.raises(InputError, match=r"ultrafeedback is not a format of pairs; choose one of .*trl, kto.*messages"):
        convert(votes("11"), tmp_path / "out.jsonl", "ultrafeedback", pairs=True)


def test_a_store_derives_pairs_itself(votes, tmp_path, capfd):
    out = f"store:{tmp_path}/other.db"
    assert cli.main(["data", "convert", "--data", votes("11"), "--out", out, "--pairs"]) == 2
    assert "leave out --pairs" in capfd.readouterr().err
