"""Readers: equivalent files, equal records; every row accounted for; nothing but InputError escapes."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.reading import read_demonstrations, read_pairs, read_prompts

from keel.data import checks
from keel.data.source import open_source
from keel.errors import InputError
from keel.files.containers import file_hash
from keel.formats.demonstrations import DEMONSTRATED
from keel.formats.judgments import JUDGED
from keel.formats.prompts import PROMPTED
from keel.records import Demonstration, Origin, Pair, PromptRow

PAIRS = [
    {"prompt": "Rain, what now?", "chosen": " Read to teddy.", "rejected": " No."},
    {"prompt": 'A "quoted" wish,\nwith a comma', "chosen": " Bär ♥ \u2028 end", "rejected": " ,;\t"},
    {"prompt": "Sun?", "chosen": " A picnic\r\nin the park", "rejected": " Sleep."},
]

USER = {"role": "user", "content": "Sun?"}
SYSTEM = {"role": "system", "content": "You are a bear."}
HH = "\n\nHuman: Sun?\n\nAssistant: "


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(path: Path, rows: list, raw: Callable[[Path, bytes], object] = Path.write_bytes) -> str:
    """`rows` in the container that the ending of `path` names."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
        return str(path)
    if kind == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif kind == "json":
        text = json.dumps(rows, indent=2)
    elif kind == "csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    else:
        text = "\n".join(rows)
    data = text.encode()
    raw(path, gzip.compress(data) if path.name.endswith(".gz") else data)
    return str(path)


def refusal(call: Callable[[], object]) -> str:
    """The one line with which `call` refuses."""
    with pytest.raises(InputError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.exit_code == 2
    return line


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (
            [{"chosen": "torn", "rejected": "off"}, *({"chosen": HH + a, "rejected": HH + b} for a, b in ("xy", "uv"))],
            "hh",
        ),
        ([{"chosen": " a"}, *PAIRS[:2]], "trl"),
        ([{"prompt": "a"}, *PAIRS[:2]], "trl"),
    ],
)
def test_a_format_is_recognised_by_its_first_rows_together(tmp_path, rows, name):
    """The first lacks a column, or does not look like the others: it is one that cannot be used."""
    pairs, counts, found = read_pairs(write(tmp_path / "pairs.jsonl", rows))
    assert found == name
    assert [pair.origin.row for pair in pairs] == [2, 3]
    assert (counts.read, counts.dropped_total) == (3, 1)


# --- containers


ENDINGS = ["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz", "csv.gz"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_equivalent_containers_give_equal_records(tmp_path, ending):
    source = write(tmp_path / f"pairs.{ending}", PAIRS)
    pairs, counts, name = read_pairs(source)
    assert pairs == [
        Pair(r["prompt"], r["chosen"], r["rejected"], 0.0, Origin(source, i)) for i, r in enumerate(PAIRS, 1)
    ]
    assert (counts.read, counts.used, counts.dropped, name) == (3, 3, {}, "trl")


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "jsonl.gz"])
def test_messages_survive_every_container_that_can_hold_them(tmp_path, ending):
    rows = [{"prompt": [SYSTEM, USER], "chosen": [says("Picnic.")], "rejected": [says("Sleep.")], "margin": 2}]
    source = write(tmp_path / f"pairs.{ending}", rows)
    assert read_pairs(source)[0] == [Pair([SYSTEM, USER], "Picnic.", "Sleep.", 2.0, Origin(source, 1))]


def test_messages_in_csv_cells_are_read_as_json_and_never_as_text(tmp_path):
    good = {
        "prompt": json.dumps([USER]),
        "chosen": json.dumps([says("a")]),
        "rejected": json.dumps([says("b")]),
    }
    source = write(tmp_path / "pairs.csv", [good, good | {"prompt": str([USER])}])  # the second: Python, not JSON
    pairs, counts, _ = read_pairs(source)
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [([USER], "a", "b")]
    assert counts.dropped == {
        "prompt holds messages as Python prints them, not JSON; write the cell with json.dumps": (1, [2])
    }


def test_json_ending_with_one_object_a_line(tmp_path):
    source = tmp_path / "pairs.json"
    source.write_bytes(Path(write(tmp_path / "x.jsonl", PAIRS)).read_bytes())
    assert len(read_pairs(str(source))[0]) == 3
    source.write_text(json.dumps(PAIRS[0]))
    assert len(read_pairs(str(source))[0]) == 1


def test_gzip_is_known_by_content_and_a_byte_order_mark_is_no_column(tmp_path):
    plain = Path(write(tmp_path / "a.csv", PAIRS)).read_bytes()
    (tmp_path / "b.csv").write_bytes(gzip.compress(b"\xef\xbb\xbf" + plain))
    rows = [[(p.prompt, p.chosen, p.rejected) for p in read_pairs(str(tmp_path / n))[0]] for n in ("a.csv", "b.csv")]
    assert rows[0] == rows[1]


def test_row_numbers_are_lines_and_blank_lines_are_no_rows(tmp_path):
    source = tmp_path / "pairs.jsonl"
    line = json.dumps(PAIRS[0])
    source.write_text(f"\n{line}\n   \n{line}\r\n{{broken\n[1]\n{line}")
    pairs, counts, _ = read_pairs(str(source))
    assert [p.origin.row for p in pairs] == [2, 4, 7]
    assert counts.dropped == {"broken JSON": (1, [5]), "not a JSON object": (1, [6])}
    assert (counts.read, counts.used) == (5, 3)


def test_limit_takes_the_first_rows_bad_ones_included(tmp_path):
    source = tmp_path / "pairs.jsonl"
    source.write_text("{\n" + json.dumps(PAIRS[0]) + "\n" + json.dumps(PAIRS[1]) + "\n" + "{\n" * 50)
    pairs, counts, _ = read_pairs(str(source), limit=2)
    assert (len(pairs), counts.read, counts.dropped) == (1, 2, {"broken JSON": (1, [1])})


def test_many_broken_rows_before_the_first_good_one_are_only_counted(tmp_path):
    source = tmp_path / "pairs.jsonl"
    source.write_text("{\n" * 150 + (json.dumps(PAIRS[0]) + "\n") * 4000)
    _, counts, _ = read_pairs(str(source))
    assert counts.read == 4150
    assert counts.dropped == {"broken JSON": (150, list(range(1, 11)))}


def test_long_csv_cells_are_read(tmp_path):
    long = "x" * 200_000  # the csv module refuses more than 131072 by default
    before = csv.field_size_limit()
    source = write(tmp_path / "pairs.csv", [PAIRS[0] | {"chosen": long}])
    assert read_pairs(source)[0][0].chosen == long
    assert csv.field_size_limit() == before


def test_broken_csv_rows_are_counted_unless_they_may_have_swallowed_others(tmp_path):
    source = tmp_path / "pairs.csv"
    source.write_text('prompt,chosen,rejected\na,b,c\n"a"x,b,c\n\na,b\na,b,c,d\nd,e,f\n')
    pairs, counts, _ = read_pairs(str(source))
    assert [p.origin.row for p in pairs] == [1, 5]
    assert counts.dropped == {"broken CSV": (1, [2]), "not as many cells as the header": (2, [3, 4])}
    source.write_text('prompt,chosen,rejected\na,b,c\n"a,b,c\n' + "d,e,f\n" * 9)
    assert "broken CSV from line 3 on" in refusal(lambda: read_pairs(str(source)))
    source.write_text('prompt,chosen,rejected\na,b,c\n"a,b,c\nd,e,f\n"d"e,f\n')
    assert "broken CSV from line 3 on" in refusal(lambda: read_pairs(str(source)))
    source.write_text("prompt,chosen,chosen\na,b,c\n")
    assert "'chosen'" in refusal(lambda: read_pairs(str(source))).replace("chosen appears", "'chosen' appears")


# --- formats of pairs


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # explicit prompt, text
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, ("p", "a", "b", 0.0)),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 0.5, "id": 7}, ("p", "a", "b", 0.5)),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": None}, ("p", "a", "b", 0.0)),
        # explicit prompt, messages
        ({"prompt": [USER], "chosen": [says("a")], "rejected": [says("b")]}, ([USER], "a", "b", 0.0)),
        ({"prompt": [USER], "chosen": "a", "rejected": "b"}, ([USER], "a", "b", 0.0)),
        # implicit prompt, messages: everything before the last assistant turn
        ({"chosen": [USER, says("a")], "rejected": [USER, says("b")]}, ([USER], "a", "b", 0.0)),
        (
            {
                "chosen": [SYSTEM, USER, says("x"), USER, says("a")],
                "rejected": [SYSTEM, USER, says("x"), USER, says("b")],
            },
            ([SYSTEM, USER, says("x"), USER], "a", "b", 0.0),
        ),
        # transcripts with a prompt beside them, as text or messages
        (
            {"prompt": "Sun?", "chosen": [USER, says("a")], "rejected": [USER, says("b")]},
            ([USER], "a", "b", 0.0),
        ),
        (
            {"prompt": [USER], "chosen": [USER, says("a")], "rejected": [USER, says("b")]},
            ([USER], "a", "b", 0.0),
        ),
        # other keys of a message are not ours
        (
            {"prompt": [USER | {"name": None}], "chosen": [says("a")], "rejected": [says("b")]},
            ([USER], "a", "b", 0.0),
        ),
    ],
)
def test_trl_pairs(tmp_path, row, expected):
    source = write(tmp_path / "pairs.jsonl", [row])
    (pair,), counts, name = read_pairs(source)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.margin) == expected
    assert (name, counts.used) == ("trl", 1)
    assert read_prompts(source)[0] == [PromptRow(expected[0], Origin(source, 1))]
    assert read_prompts(source)[2] == "trl-pairs"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": None}, "no chosen"),
        ({"rejected": 3}, "rejected is not text"),
        ({"rejected": ...}, "no rejected"),
        ({"chosen": []}, "chosen is not a list of messages"),
        ({"chosen": ["a"], "rejected": ["b"]}, "chosen has a message without role or text content"),
        (
            {"chosen": [{"role": "assistant", "content": None}]},
            "chosen has a message without role or text content",
        ),
        ({"chosen": [says("a")]}, "one answer is text and the other messages"),
        ({"chosen": [says("a")], "rejected": [says("b")]}, "prompt is text but chosen is messages"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [USER]}, "chosen is not one assistant message"),
        ({"prompt": None}, "no prompt, and the answers are plain text"),
        ({"prompt": None, "chosen": [says("a")], "rejected": [says("b")]}, "empty prompt"),
        (
            {"prompt": None, "chosen": [USER], "rejected": [USER]},
            "chosen does not end with an assistant turn",
        ),
        (
            {"prompt": None, "chosen": [USER, says("a")], "rejected": [SYSTEM, says("b")]},
            "transcripts differ before the last assistant turn",
        ),
        (
            {
                "chosen": [USER, says("a")],
                "rejected": [USER, says("b")],
            },  # the prompt column asks something else
            "prompt is not the one in the transcripts",
        ),
        ({"prompt": {"a": 1}}, "prompt is not text"),
        ({"prompt": "\ud800"}, "prompt is not valid Unicode"),
        ({"prompt": [USER | {"content": "\ud800"}]}, "prompt is not valid Unicode"),
        ({"margin": "wide"}, "margin is not a number"),
        ({"margin": True}, "margin is not a number"),
        ({"margin": 10**400}, "margin is not a number"),
    ],
)
def test_bad_rows_of_pairs_are_dropped_by_number_and_reason(tmp_path, change, reason):
    bad = {k: v for k, v in (PAIRS[0] | change).items() if v is not ...}
    source = tmp_path / "pairs.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in [PAIRS[0], bad, PAIRS[1]]))
    pairs, counts, _ = read_pairs(str(source))
    assert [p.origin.row for p in pairs] == [1, 3]
    assert counts.dropped == {reason: (1, [2])}
    assert (counts.read, counts.used) == (3, 2)


def hh(*turns: str) -> str:
    """An HH transcript, its human and assistant turns in alternation."""
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))


def test_hh_is_split_at_the_last_assistant_turn_only(tmp_path):
    rows = [
        {"chosen": hh("hi", "hello", "sun?", "Picnic."), "rejected": hh("hi", "hello", "sun?", "Paris, p")},
        {"chosen": hh("sun?", "P"), "rejected": hh("rain?", "P")},
        {"chosen": hh("sun?", "Same start A"), "rejected": hh("sun?", "Same start B")},
        {"chosen": hh("sun?"), "rejected": hh("sun?", "x")},
        {"chosen": hh("sun?", "a", "b"), "rejected": hh("sun?", "x")},
        {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"},
    ]
    source = write(tmp_path / "hh.jsonl", rows)
    pairs, counts, name = read_pairs(source)
    assert name == "hh"
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [
        ("\n\nHuman: hi\n\nAssistant: hello\n\nHuman: sun?\n\nAssistant:", " Picnic.", " Paris, p"),
        ("\n\nHuman: sun?\n\nAssistant:", " Same start A", " Same start B"),
    ]
    assert counts.dropped == {
        "transcripts differ before the last assistant turn": (1, [2]),
        "chosen has no Assistant turn": (1, [4]),
        "chosen ends with a Human turn": (1, [5]),
        "empty prompt": (1, [6]),
    }
    assert read_prompts(source)[2] == "hh-pairs"


def test_transcripts_under_a_prompt_column_are_not_hh(tmp_path):
    row = {"prompt": "Continue:", "chosen": hh("sun?", "a"), "rejected": hh("rain?", "b")}
    (pair,), _, name = read_pairs(write(tmp_path / "pairs.jsonl", [row]))
    assert (pair.prompt, pair.chosen, name) == ("Continue:", row["chosen"], "trl")


def test_plain_strings_without_a_prompt_are_refused_not_split(tmp_path):
    """The peers' guess at a common prefix turns ("Paris ", "London") into nonsense."""
    source = write(tmp_path / "pairs.jsonl", [{"chosen": "Paris ", "rejected": "London"}] * 3)
    line = refusal(lambda: read_pairs(source))
    assert "none of 3 rows" in line
    assert "3 'no prompt, and the answers are plain text': rows 1, 2, 3" in line


# --- demonstrations and prompts


ALPACA = "### Instruction:\nSort.\n\n### Input:\n2 1\n\n### Response:\n"


@pytest.mark.parametrize(
    ("row", "prompt", "completion", "name"),
    [
        ({"prompt": "2 + 2 =", "completion": " 4"}, "2 + 2 =", " 4", "prompt-completion"),
        ({"prompt": "", "completion": "4"}, "", "4", "prompt-completion"),
        ({"prompt": [USER], "completion": [says("a")]}, [USER], "a", "prompt-completion"),
        ({"messages": [SYSTEM, USER, says("a")]}, [SYSTEM, USER], "a", "messages"),
        ({"messages": [USER, says("a"), USER, says("b")]}, [USER, says("a"), USER], "b", "messages"),
        ({"text": "Once upon a time."}, "", "Once upon a time.", "text"),
    ],
)
def test_demonstrations(tmp_path, row, prompt, completion, name):
    source = write(tmp_path / "sft.jsonl", [row])
    assert read_demonstrations(source)[0] == [Demonstration(prompt, completion, Origin(source, 1))]
    assert read_demonstrations(source)[2] == name


def test_alpaca_demonstrations_and_prompts_agree(tmp_path):
    rows = [{"instruction": "Sort.", "input": "2 1", "output": "1 2", "text": "all of it"}]
    rows += [{"instruction": "Sort.", "input": empty, "output": "?", "text": "all"} for empty in ("", None)]
    source = write(tmp_path / "alpaca.jsonl", rows)
    demonstrations, _, name = read_demonstrations(source)
    assert name == "alpaca"
    assert demonstrations[0].prompt.endswith(ALPACA)
    assert demonstrations[0].completion == "1 2"
    assert "Input" not in demonstrations[1].prompt
    assert demonstrations[1].prompt == demonstrations[2].prompt
    assert [p.prompt for p in read_prompts(source)[0]] == [d.prompt for d in demonstrations]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "completion": None}, "no completion"),
        ({"prompt": "p", "completion": [says("a")]}, "prompt is text but completion is messages"),
        ({"prompt": [USER], "completion": [USER, says("a")]}, "completion is not one assistant message"),
        ({"prompt": None, "completion": "a"}, "no prompt"),
    ],
)
def test_bad_demonstrations_are_counted(tmp_path, row, reason):
    source = write(tmp_path / "sft.jsonl", [{"prompt": "p", "completion": "c"}, row])
    assert read_demonstrations(source)[1].dropped == {reason: (1, [2])}


def test_text_files_hold_one_row_a_line(tmp_path):
    source = write(tmp_path / "stories.txt", ["Once \u2028 upon.", "", "  indented", "end"])
    demonstrations, counts, name = read_demonstrations(source)
    assert [(d.prompt, d.completion, d.origin.row) for d in demonstrations] == [
        ("", "Once \u2028 upon.", 1),
        ("", "  indented", 3),
        ("", "end", 4),
    ]
    assert (name, counts.read) == ("text", 3)
    assert [p.prompt for p in read_prompts(source)[0]] == ["Once \u2028 upon.", "  indented", "end"]


@pytest.mark.parametrize(
    ("row", "prompt", "name"),
    [
        ({"prompt": "Sun?"}, "Sun?", "prompt"),
        ({"prompt": [USER]}, [USER], "prompt"),
        ({"prompt": "Sun?", "completion": "x"}, "Sun?", "prompt"),
        ({"messages": [SYSTEM, USER]}, [SYSTEM, USER], "messages"),
        ({"text": "Sun?"}, "Sun?", "text"),
    ],
)
def test_prompts(tmp_path, row, prompt, name):
    source = write(tmp_path / "prompts.jsonl", [row])
    assert read_prompts(source)[0] == [PromptRow(prompt, Origin(source, 1))]
    assert read_prompts(source)[2] == name


TOOL = {"role": "tool", "content": "22 C"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "weather"}}]}


def user(content):
    return {"role": "user", "content": content}


def human(value):
    return {"from": "human", "value": value}


def gpt(value):
    return {"from": "gpt", "value": value}


@pytest.mark.parametrize("column", ["messages", "prompt"])
@pytest.mark.parametrize(
    ("chat", "asked"),
    [
        ([USER, says("a")], [USER]),
        ([SYSTEM, USER, says("a")], [SYSTEM, USER]),
        ([USER, says("a"), user("More?"), says("b")], [USER, says("a"), user("More?")]),
        ([USER, CALL, TOOL, says("Sun.")], [USER]),  # a call has no text, and is not read
        ([USER, says("let me look"), TOOL, says("Sun."), user("Sure?"), says("Yes.")],
         [USER, says("let me look"), TOOL, says("Sun."), user("Sure?")]),
        ([USER, says("a"), says("b")], [USER]),
    ],
)  # fmt: skip
def test_a_log_asks_what_its_last_user_turn_asks(tmp_path, column, chat, asked):
    source = write(tmp_path / "log.jsonl", [{column: [USER]}, {column: chat}])
    found, counts, name = read_prompts(source)
    assert [p.prompt for p in found] == [[USER], asked]
    assert (name, counts.used, counts.dropped) == (column, 2, {})
    assert counts.notes == {"turns after the last user turn left out": (1, [2])}


def test_a_log_in_conversations_as_sharegpt_writes_them(tmp_path):
    rows = [
        {"conversations": [human("Sun?"), gpt("Yes."), human("Sure?"), gpt("Yes.")]},
        {"conversations": [human("Sun?")], "system": "Be short."},
        {"conversations": [{"from": "system", "value": "Be short."}, human("Sun?"), gpt("Yes.")]},
        {"conversations": [human("Sun?"), {"from": "function_call", "value": "w()"},
                           {"from": "observation", "value": "22 C"}, human("And?")]},
        {"conversations": [USER, says("Yes.")]},
    ]  # fmt: skip
    found, counts, name = read_prompts(write(tmp_path / "log.jsonl", rows))
    assert [p.prompt for p in found] == [
        [user("Sun?"), says("Yes."), user("Sure?")],
        [{"role": "system", "content": "Be short."}, user("Sun?")],
        [{"role": "system", "content": "Be short."}, user("Sun?")],
        [user("Sun?"), says("w()"), {"role": "tool", "content": "22 C"}, user("And?")],
        [USER],
    ]
    assert (name, counts.notes) == (
        "conversations",
        {
            "turns after the last user turn left out": (3, [1, 3, 5]),
            "a tool call that is not JSON stays as text": (1, [4]),
        },
    )


def test_what_asks_nothing_in_a_log_is_counted(tmp_path):
    rows = [
        {"messages": [USER]},
        {"messages": []},
        {"messages": [SYSTEM, says("Hello!")]},
        {"messages": [USER, CALL, TOOL, says("Sun."), USER]},
        {"messages": [USER, TOOL]},
        {"messages": None},
    ]
    found, counts, _ = read_prompts(write(tmp_path / "log.jsonl", rows))
    assert [p.prompt for p in found] == [[USER], [USER, CALL | {"content": ""}, TOOL, says("Sun."), USER], [USER, TOOL]]
    assert counts.dropped == {
        "messages is not a list of messages": (1, [2]),
        "messages has no user turn": (1, [3]),
        "no messages": (1, [6]),
    }
    assert counts.notes == {}
    source = write(tmp_path / "talk.jsonl", [{"conversations": [human("Sun?")]}, {"conversations": [{"from": "me"}]}])
    assert read_prompts(source)[1].dropped == {"conversations has a message without role or text content": (1, [2])}


def test_format_overrides_recognition(tmp_path):
    source = write(tmp_path / "x.jsonl", [{"prompt": "p", "completion": "c", "text": "t", "chosen": 1, "rejected": 1}])
    assert read_demonstrations(source)[2] == "prompt-completion"
    assert read_demonstrations(source, format="text")[0][0].completion == "t"
    assert read_prompts(source, format="prompt")[0][0].prompt == "p"
    assert "choose one of hh, " in refusal(lambda: read_pairs(source, format="hhh"))
    assert "no column 'messages'" in refusal(lambda: read_demonstrations(source, format="messages"))


# --- bad input as a whole


def test_a_missing_column_names_what_is_there(tmp_path):
    source = write(tmp_path / "pairs.csv", [{"prompt": "p", "best": "a", "rejected": "b"}])
    assert refusal(lambda: read_pairs(source)) == (
        f"{source}: no column 'chosen'; found: prompt, best, rejected; prompt looks like a prompt, best and rejected "
        "like two answers: try --columns chosen=best"
    )
    source = write(tmp_path / "odd.csv", [{"prompt": "p", "x": "a", "rejected": "b"}])
    assert refusal(lambda: read_pairs(source)) == (
        f"{source}: no column 'chosen'; found: prompt, x, rejected; preference pairs need chosen and "
        "rejected, with a prompt or as transcripts"
    )


def test_the_wrong_kind_of_data_is_named(tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", PAIRS)
    line = refusal(lambda: read_demonstrations(pairs))
    assert "no column 'completion'" in line
    assert "(these are preference pairs, format trl)" in line
    shown = write(tmp_path / "sft.jsonl", [{"messages": [USER, says("a")]}])
    assert "(these are demonstrations, format messages)" in refusal(lambda: read_pairs(shown))
    story = write(tmp_path / "story.txt", ["Once."])
    assert "no column 'chosen' or 'rejected'" in refusal(lambda: read_pairs(story))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl", b"\n \n", "no rows"),
        ("a.json", b"[]", "no rows"),
        ("a.json", b"", "no rows"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"prompt,chosen,rejected\n", "no rows"),
        ("a.txt", b"\n\n", "no rows"),
        ("a.jsonl.gz", b"", "no rows"),
        ("a.jsonl", b'{"a"\n{"b"\n', "none of 2 rows can be read (2 'broken JSON': rows 1, 2)"),
        ("a.json", b'[\n{"a": 1},\n{"b"\n]', "line 4: broken JSON"),
        ("a.json", b'{\n"a": [1]\n}', "not a list of rows"),
        ("a.json", b"17", "not a list of rows"),
        ("a.json", b"[" * 100_000, "broken JSON"),
        ("a.jsonl", b"[" * 100_000, "broken JSON"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "broken JSON"),
        ("a.jsonl", b'{"a": "b"}\n{"a": "\xe9"}\n', "line 2, byte 18 (0xe9) is not UTF-8"),
        ("a.json", b'[{"a": "b"},\n{"a": "\xe9"}]\n', "line 2, byte 20 (0xe9) is not UTF-8"),
        ("a.csv", b"prompt,chosen,rejected\na,b,\xe9\n", "iconv -f latin1 -t utf-8"),
        ("a.txt", "Bär".encode("utf-16"), "iconv -f utf-16 -t utf-8"),
        ("a.jsonl.gz", gzip.compress(json.dumps(PAIRS * 9).encode())[:-8], "cannot be read"),
        ("a.jsonl.gz", b"\x1f\x8bnonsense", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99)[:10] + b"\xff" * 99, "cannot be read"),
        ("a.parquet", b"PAR1nonsensePAR1", "not a readable Parquet file"),
        ("a.parquet", b"", "not a readable Parquet file"),
        ("a.xlsx", b"PK", "its name does not say what it holds"),
    ],
)
def test_files_that_are_refused_as_a_whole(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_pairs, read_demonstrations, read_prompts):
        line = refusal(lambda read=read: read(str(path)))
        assert words in line
        assert line.startswith(f"{path}: ")


def test_an_absent_file_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "no such file" in refusal(lambda: read_pairs(str(tmp_path / "no.jsonl")))
    assert "no such file" in refusal(lambda: read_pairs("no.jsonl.gz"))
    assert "no such file" in refusal(lambda: read_pairs("a/b/c"))


# --- optional packages


def test_a_missing_optional_package_names_its_remedy(tmp_path, monkeypatch):
    source = write(tmp_path / "pairs.parquet", PAIRS)
    monkeypatch.setitem(sys.modules, "datasets", None)
    line = refusal(lambda: read_pairs("someone/pairs"))
    assert "no such local file" in line
    assert "pip install 'keel-tune[data]'" in line
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'keel-tune[data]'" in refusal(lambda: read_pairs(source))


def test_a_hub_name_is_loaded_by_name_and_split(monkeypatch, tmp_path):
    calls = []

    def load_dataset(name: str, split: str, streaming: bool) -> list[dict[str, str]]:
        calls.append((name, split, streaming))
        if name != "someone/pairs":
            raise ConnectionError("no\nroute")
        return PAIRS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert len(read_pairs("someone/pairs")[0]) == 3
    assert read_pairs("someone/pairs:test", limit=1)[0][0].origin == Origin("someone/pairs:test", 1)
    line = refusal(lambda: read_pairs("nobody/pairs"))
    assert "no such local file" in line
    assert "no route" in line
    assert calls[:2] == [("someone/pairs", "train", True), ("someone/pairs", "test", True)]


def test_a_folder_is_loaded_as_the_hub_would(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.jsonl", PAIRS)
    source = str(tmp_path / "folder")
    pairs, _, name = read_pairs(source)
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [tuple(row.values()) for row in PAIRS]
    assert name == "trl"
    assert len(read_pairs(source, limit=1)[0]) == 1
    (tmp_path / "empty").mkdir()
    assert "not readable as a folder of data" in refusal(lambda: read_pairs(str(tmp_path / "empty")))


def test_import_leaves_optional_packages_alone():
    code = "import sys, keel.data.source; print({'datasets', 'pyarrow', 'pandas'} & set(sys.modules) or 'none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"


# --- hashes


def test_file_hash_is_that_of_the_raw_bytes(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"abc" * 100_000)
    assert file_hash(str(path)) == hashlib.sha256(b"abc" * 100_000).hexdigest()[:16]
    before = file_hash(str(tmp_path))
    path.rename(tmp_path / "b.jsonl")
    assert file_hash(str(tmp_path)) != before


def test_the_hash_of_a_hub_data_set_is_its_commit(monkeypatch):
    import huggingface_hub

    info = types.SimpleNamespace(sha="0123456789abcdef0123")
    api = types.SimpleNamespace(dataset_info=lambda name: {"someone/pairs": info}[name])
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    assert file_hash("someone/pairs") == file_hash("someone/pairs:train") == "hub:0123456789abcdef"
    assert file_hash("someone/pairs:test") == "hub:0123456789abcdef:test"
    assert file_hash("someone/pairs:en:train") == "hub:0123456789abcdef:en:train"
    assert file_hash("nobody/pairs") == "hub:unknown"


# --- properties


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "assistant", hh("a", "b")]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content"]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
COLUMNS = st.sampled_from(
    [
        "prompt",
        "chosen",
        "rejected",
        "margin",
        "completion",
        "messages",
        "conversations",
        "text",
        "instruction",
        "input",
        "output",
    ]
)
ROWS = st.lists(st.dictionaries(COLUMNS | st.text(max_size=3), JSON, max_size=6) | JSON, max_size=8)
READERS = [
    (read_pairs, checks.check_pairs),
    (read_demonstrations, checks.check_demonstrations),
    (read_prompts, checks.check_prompts),
]


def account(reader, check, source: str, format: str | None = None) -> None:
    """Read and check; every row is used or dropped, whatever it holds, and a refusal is one line."""
    try:
        records, counts, name = reader(source, format=format)
        assert counts.read == counts.used + counts.dropped_total == len(records) + counts.dropped_total
        records = check(records, counts, 1.0)
        assert counts.read == counts.used + counts.dropped_total == len(records) + counts.dropped_total
        checks.summarise(counts, source, name).encode()
    except InputError as error:
        line = str(error)
    else:
        line = ""
    assert "\n" not in line
    line.encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("garbage")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=ROWS, which=st.integers(0, 2), container=st.sampled_from(["jsonl", "json"]))
def test_any_json_is_counted_or_refused(folder, rows, which, container):
    source = folder / f"rows.{container}"
    source.write_text("\n".join(map(json.dumps, rows)) if container == "jsonl" else json.dumps(rows))
    for forced in (None, ("hh", "alpaca", "hh-pairs")[which]):
        account(*READERS[which], str(source), forced)


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=60) | st.text('prompt,chosen"\n\r\0[]{}:\ufeff', max_size=60).map(str.encode),
    header=st.sampled_from([b"", b"prompt,chosen,rejected\n", b'{"text": "a"}\n', b"\x1f\x8b\x08"]),
    ending=st.sampled_from(["jsonl", "json", "csv", "txt", "csv.gz"]),
    which=st.integers(0, 2),
)
def test_any_bytes_are_counted_or_refused(folder, data, header, ending, which):
    source = folder / f"bytes.{ending}"
    source.write_bytes(header + data)
    account(*READERS[which], str(source))


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}), min_size=1, max_size=5))
def test_any_text_is_the_same_in_every_container(folder, rows):
    def read(ending: str) -> list[tuple[object, ...]]:
        pairs, _, _ = read_pairs(write(folder / f"same.{ending}", rows), format="trl")
        return [(p.prompt, p.chosen, p.rejected, p.origin.row) for p in pairs]

    expected = [(r["prompt"], r["chosen"], r["rejected"], i) for i, r in enumerate(rows, 1)]
    assert read("jsonl") == expected
    assert read("json.gz") == expected
    assert read("parquet") == expected
    if not any("[{" in value or "\r" in value for row in rows for value in row.values()):  # the csv writer's own
        assert read("csv") == expected


# --- real data


def shared(name: str) -> str:
    folder = os.environ.get("KEEL_SHARED")
    if not folder:
        pytest.skip("KEEL_SHARED is not set: no real data here")
    return str(Path(folder) / "data" / name)


def test_every_row_of_hh_harmless_is_accounted_for():
    """2,312 pairs of people's votes; which rows are bad is worked out here with two lines of rsplit."""
    source = shared("hh-harmless-test.jsonl.gz")
    with gzip.open(source, "rt", encoding="utf-8") as file:
        raw = [json.loads(line) for line in file]
    cut = [[side.rsplit("\n\nAssistant:", 1) for side in (row["chosen"], row["rejected"])] for row in raw]
    differ = [i for i, (a, b) in enumerate(cut, 1) if a[0] != b[0]]
    empty = [i for i, (a, b) in enumerate(cut, 1) if a[0] == b[0] and not (a[1].strip() and b[1].strip())]
    assert (len(raw), len(differ), len(empty)) == (2312, 5, 4)

    pairs, counts, name = read_pairs(source)
    pairs = checks.check_pairs(pairs, counts, 0.05)
    assert name == "hh"
    assert counts.read == 2312
    assert counts.used == len(pairs) == 2312 - 9
    assert counts.dropped == {
        "transcripts differ before the last assistant turn": (5, differ),
        "empty chosen": (4, empty),
    }
    for pair in pairs:
        row, (a, b) = raw[pair.origin.row - 1], cut[pair.origin.row - 1]
        assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) == (row["chosen"], row["rejected"])
        assert (pair.chosen, pair.rejected) == (a[1], b[1])


def test_every_format_is_in_a_table_once():
    for table in (JUDGED, DEMONSTRATED, PROMPTED):
        names = [f.name for f in table]
        assert len(names) == len(set(names))


def test_a_source_is_read_once(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    with open_source(str(file)) as source:
        assert source.holds() == "pairs"
        assert len(source.pairs()) == 3
        with pytest.raises(RuntimeError, match="a source is read once; open it again"):
            source.judgments()
