"""Real files: every row accounted for, with counts that plain json gives; and a way out and back."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from tests.reading import read_judgments, read_pairs, read_prompts

from keel.data import checks
from keel.data.convert import convert
from keel.errors import InputError
from keel.records import Origin, Preference


def lines(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def first_ten(numbers: list[int]) -> tuple[int, list[int]]:
    return len(numbers), numbers[:10]


def test_hh(shared):
    file = shared / "data" / "hh-harmless-test.jsonl.gz"
    cut = [[row[side].rsplit("\n\nAssistant:", 1) for side in ("chosen", "rejected")] for row in lines(file)]
    differ = [i for i, (a, b) in enumerate(cut, 1) if a[0] != b[0]]
    judgments, counts, name = read_judgments(str(file))
    assert (name, counts.read, counts.used) == ("hh", 2312, 2312 - len(differ))
    assert counts.dropped == {"transcripts differ before the last assistant turn": first_ten(differ)}
    assert [(j.prompt, *(a.text for a in j.answers)) for j in judgments] == [
        (a[0] + "\n\nAssistant:", a[1], b[1]) for a, b in cut if a[0] == b[0]
    ]
    assert {(j.verdict, j.kind, j.dimension) for j in judgments} == {(Preference("first"), "unknown", "overall")}


def test_oasst(shared):
    file = shared / "data" / "oasst-en-100-trees.jsonl.gz"
    expected, unranked, mixed = [], [], []
    for number, tree in enumerate(lines(file), 1):
        queue: list[tuple[dict[str, Any], list[str]]] = [(tree["prompt"], [])]
        any_here = False
        while queue:
            node, above = queue.pop()
            path = [*above, node["text"]]
            queue += [(reply, path) for reply in node["replies"]]
            ranked = {r["text"]: r["rank"] for r in node["replies"] if r.get("rank") is not None}
            if len(ranked) > 1:
                any_here = True
                expected.append((number, tuple(path), tuple(sorted(ranked, key=ranked.__getitem__))))
                mixed += [number] * (len(node["replies"]) - len(ranked))
        unranked += [] if any_here else [number]
    judgments, counts, name = read_judgments(str(file))
    found = []
    for j in judgments:
        assert j.kind == "person"
        assert [m["role"] for m in j.prompt] == ["user", "assistant"] * (len(j.prompt) // 2) + ["user"]
        order = sorted(zip(j.verdict.ranks, (a.text for a in j.answers), strict=True))
        assert order[0][0] == 1
        found.append((j.origin.row, tuple(m["content"] for m in j.prompt), tuple(text for _, text in order)))
    assert sorted(found) == sorted(expected)
    assert (name, counts.read, counts.used) == ("oasst", 100, 100 - len(unranked))
    assert (counts.dropped, counts.neutral) == ({}, {})
    assert counts.notes == {
        "a reply beside ranked ones has no rank": first_ten(mixed),
        "columns carried along, not used: message_tree_id, tree_state": (100, [1]),
    }

    pairs, counts, _ = read_pairs(str(file))
    assert len(pairs) == counts.read == counts.used == sum(len(list(combinations(e[2], 2))) for e in expected) == 754
    better = {(e[1], a, b) for e in expected for a, b in combinations(e[2], 2)}
    assert {(tuple(m["content"] for m in p.prompt), p.chosen, p.rejected) for p in pairs} == better
    assert [p.prompt[0]["content"] for p in read_prompts(str(file))[0]] == [t["prompt"]["text"] for t in lines(file)]


def test_pandalm(shared):
    file = shared / "data" / "pandalm-testset-v1.json.gz"
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        rows = list(enumerate(json.load(stream), 1))
    bad = {
        f"{side} is not text": first_ten([i for i, r in rows if not isinstance(r[side], str)])
        for side in ("response1", "response2")
    }
    bad["empty instruction"] = first_ten([i for i, r in rows if not r["instruction"].strip()])
    good = [(i, r) for i, r in rows if r["instruction"].strip() and isinstance(r["response1"], str)]
    good = [(i, r) for i, r in good if isinstance(r["response2"], str)]
    judgments, counts, name = read_judgments(str(file))
    assert (name, counts.read, counts.used, counts.dropped) == ("pandalm", 999, len(good), bad)
    codes = [(i, f"annotator{k}", r[f"annotator{k}"]) for i, r in good for k in (1, 2, 3)]
    code = {"tie": 0, "first": 1, "second": 2}
    assert [(j.origin.row, j.rater, code[j.verdict.outcome]) for j in judgments] == codes
    assert {j.kind for j in judgments} == {"person"}

    pairs, counts, _ = read_pairs(str(file))
    chosen, neutral = {}, {}
    for i, r in good:
        tally = Counter(r[f"annotator{k}"] for k in (1, 2, 3))
        lead = tally[1] - tally[2]
        if (lead == 0 and tally[0] < 3) or (lead and tally[0] > max(tally[1], tally[2])) or tally[0] == 3:
            neutral.setdefault("raters split evenly" if tally[0] == 1 and lead == 0 else "tie", []).append(i)
        else:
            chosen[i] = r["response1"] if lead > 0 else r["response2"]
    same = [i for i, r in good if i in chosen and r["response1"] == r["response2"]]
    assert {p.origin.row: p.chosen for p in pairs} == chosen
    assert counts.neutral == {why: first_ten(numbers) for why, numbers in neutral.items()}
    assert counts.read == 999 == counts.used + counts.dropped_total + counts.neutral_total
    checks.check_pairs(pairs, counts, 1.0)
    assert counts.dropped.get("chosen equals rejected", (0, []))[0] >= len(same)


def test_alpacaeval(shared):
    file = shared / "data" / "alpaca-eval-judgments.jsonl.gz"
    rows = list(enumerate(lines(file), 1))
    judgments, counts, name = read_judgments(str(file))
    assert (name, counts.read, counts.used) == ("alpacaeval", len(rows), len(rows))
    assert (counts.dropped, counts.neutral) == ({}, {})
    zeros = [i for i, r in rows if r["preference"] == 0]
    assert len(zeros) == 11
    assert counts.notes == {
        "preference 0, the older code for a tie": first_ten(zeros),
        "columns carried along, not used: dataset": (6437, [1]),
    }
    outcome = {0: "tie", 1: "first", 1.5: "tie", 2: "second"}
    assert [
        (j.prompt[0]["content"], *((a.text, a.model) for a in j.answers), j.verdict.outcome, j.rater, float(j.raw))
        for j in judgments
    ] == [
        (
            r["instruction"],
            (r["output_1"], r["generator_1"]),
            (r["output_2"], r["generator_2"]),
            outcome[r["preference"]],
            r["annotator"],
            r["preference"],
        )
        for _, r in rows
    ]
    assert all(j.ai and j.extra == {"dataset": r["dataset"]} for j, (_, r) in zip(judgments, rows, strict=True))
    pairs, counts, _ = read_pairs(str(file))
    ties = [i for i, r in rows if r["preference"] in (0, 1.5)]
    assert (counts.read, counts.used, counts.neutral) == (len(rows), len(rows) - len(ties), {"tie": first_ten(ties)})
    assert all(p.ai for p in pairs)


FILES = ["hh-harmless-test.jsonl.gz", "oasst-en-100-trees.jsonl.gz", "pandalm-testset-v1.json.gz"]


@pytest.mark.parametrize("name", [*FILES, "alpaca-eval-judgments.jsonl.gz"])
def test_out_and_back(shared, tmp_path, name):
    source = str(shared / "data" / name)
    judgments, before, format = read_judgments(source)
    target = tmp_path / "out.jsonl.gz"
    counts = convert(source, target, format)
    again, after, found = read_judgments(str(target))
    assert found == format
    assert [replace(j, origin=Origin()) for j in again] == [replace(j, origin=Origin()) for j in judgments]
    assert after.read == after.used == before.used
    assert not [what for what in counts.notes if "does not hold" in what]


def test_what_trl_cannot_hold_of_them_is_refused_by_row(shared, tmp_path):
    words = {
        FILES[1]: r"trl cannot hold 100 of 100 rows \(\d+ 'a ranking of \d answers",
        FILES[2]: r"trl cannot hold \d+ of 999 rows \(\d+ 'a tie has no chosen and no rejected answer': rows",
        "alpaca-eval-judgments.jsonl.gz": r"trl cannot hold 14 of 6437 rows \(14 'a tie has no chosen and no rejected",
    }
    for name, line in words.items():
        with pytest.raises(InputError, match=line):
            convert(str(shared / "data" / name), tmp_path / "out.jsonl", "trl")
    convert(str(shared / "data" / FILES[0]), tmp_path / "out.jsonl", "trl")
    direct, through = read_pairs(str(shared / "data" / FILES[0]))[0], read_pairs(str(tmp_path / "out.jsonl"))[0]
    assert [replace(p, origin=Origin()) for p in through] == [replace(p, origin=Origin()) for p in direct]
