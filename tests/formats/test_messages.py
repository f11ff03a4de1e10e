"""Chats as people and tools write them: what a turn or a column beside it says is used, dropped by name, or noted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.formats.examples import WEATHER, calls, says, system, user
from tests.reading import kind_of, open_answers, read_demonstrations, read_judgments, read_pairs, read_prompts

from keel.data import checks
from keel.data.convert import _left_out, convert, write_judgments
from keel.data.derive import derive
from keel.errors import InputError
from keel.formats.messages import ROLES
from keel.records import Answer, Drawn, Judgment, Preference, RowCounts

KNEW = "It rains in Lima."
LOOK = {"role": "tool", "content": "9 C", "tool_call_id": "c1", "name": "weather"}


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pair(tmp_path, turns, chosen="Picnic.", rejected="Sleep.", **more):
    """The pair of one row, and what was noted or dropped."""
    answers = [[side] if isinstance(side, dict) and "role" in side else side for side in (chosen, rejected)]
    sides = dict(zip(("chosen", "rejected"), answers, strict=True))
    source = write(tmp_path / "a.jsonl", {"prompt": [user("Sun?")], "chosen": [says("a")], "rejected": [says("b")]},
                   {"prompt": turns} | sides | more)  # fmt: skip
    pairs, counts, _ = read_pairs(source)
    assert all(rows == [2] for table in (counts.notes, counts.dropped) for _, rows in table.values())
    return (pairs[1] if len(pairs) > 1 else None), [*counts.notes], [*counts.dropped]


# --- turns


def test_calls_results_and_tools_come_through_to_the_pair(tmp_path):
    turns = [user("Warm in Lima?"), calls("weather", town="Lima"), LOOK]
    found, notes, dropped = pair(tmp_path, turns, says("Yes."), calls("weather", town="Oslo"), tools=WEATHER)
    assert (notes, dropped) == ([], [])
    assert found.prompt == [user("Warm in Lima?") | {"tools": WEATHER}, calls("weather", town="Lima"), LOOK]
    assert (found.chosen, found.rejected) == ("Yes.", "")
    assert found.fields == (None, {"tool_calls": calls("weather", town="Oslo")["tool_calls"]})
    assert checks.pair_fault(found) is None


@pytest.mark.parametrize("tools", [WEATHER, json.dumps(WEATHER)])
@pytest.mark.parametrize(
    ("row", "read"),
    [
        ({"prompt": [user("Sun?")]}, read_prompts),
        ({"messages": [user("Sun?")]}, read_prompts),
        ({"messages": [user("Sun?"), says("Yes.")]}, read_demonstrations),
        ({"prompt": [user("Sun?")], "completion": [says("Yes.")]}, read_demonstrations),
        ({"prompt": [user("Sun?")], "completion": [says("Yes.")], "label": True}, read_judgments),
        ({"chosen": [user("Sun?"), says("a")], "rejected": [user("Sun?"), says("b")]}, read_pairs),
        ({"messages": [user("Sun?"), says("a")], "rejected_response": "b"}, read_pairs),
        ({"question": "Sun?", "chosen": "a", "rejected": "b"}, read_pairs),
    ],
)
def test_a_column_of_tools_stands_in_the_first_turn(tmp_path, row, read, tools):
    found, counts, _ = read(write(tmp_path / "a.jsonl", row | {"tools": tools}))
    assert found[0].prompt == [user("Sun?") | {"tools": WEATHER}]
    assert counts.dropped == counts.notes == {}


def test_tools_of_openai_preferences_and_older_functions(tmp_path):
    asks = {"messages": [user("Sun?")], "tools": WEATHER, "parallel_tool_calls": False}
    row = {"input": asks, "preferred_output": [calls("weather")], "non_preferred_output": [says("b")]}
    source = write(tmp_path / "a.jsonl", row)
    (judgment,), _, _ = read_judgments(source)
    assert judgment.prompt == [user("Sun?") | {"tools": WEATHER}]
    assert judgment.extra == {"input": {"parallel_tool_calls": False}}
    convert(source, tmp_path / "b.jsonl", "openai-preferences")
    assert json.loads((tmp_path / "b.jsonl").read_text()) == row

    found, notes, _ = pair(tmp_path, [user("Sun?")], says("a"), says("b"), functions=[WEATHER[0]["function"]])
    assert (found.prompt, notes) == ([user("Sun?") | {"tools": WEATHER}], ["functions read as tools"])


def test_a_call_of_the_older_form_and_one_that_is_bare_are_calls(tmp_path):
    older = {"role": "assistant", "content": None, "function_call": {"name": "w", "arguments": "{}"}}
    found, notes, _ = pair(tmp_path, [user("Sun?")], older, says("b") | {"tool_calls": [{"name": "w"}]})
    assert [f["tool_calls"] for f in found.fields] == [
        [{"type": "function", "function": {"name": "w", "arguments": "{}"}}],
        [{"type": "function", "function": {"name": "w"}}],
    ]
    assert notes == ["function_call read as a tool call"]


def test_a_tables_empty_cells_are_no_fields(tmp_path):
    """Parquet gives every turn every key of any turn."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row = {"prompt": [user("Warm?"), calls("weather", town="Lima"), LOOK], "chosen": [says("a")],
           "rejected": [says("b")]}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (found,), counts, _ = read_pairs(str(tmp_path / "a.parquet"))
    assert found.prompt == row["prompt"]
    assert counts.notes == {}


@pytest.mark.parametrize(
    ("turn", "fields", "notes"),
    [
        ({"reasoning_content": "Hm."}, {"reasoning_content": "Hm."}, []),
        ({"thinking": "Hm."}, {"reasoning_content": "Hm."}, ["thinking read as reasoning_content"]),
        ({"reasoning": "Hm."}, {"reasoning_content": "Hm."}, ["reasoning read as reasoning_content"]),
        ({"reasoning": "", "thinking": None, "tool_calls": []}, None, []),
        ({"reasoning": "Hm.", "reasoning_content": "Hm."}, {"reasoning_content": "Hm."}, []),
        ({"mood": "glad", "stars": 0, "tags": [], "note": ""}, None,
         ["the key mood of a turn is left out", "the key stars of a turn is left out"]),
        ({"weight": 0.5}, None, ["the key weight of a turn is left out"]),
        ({"train": False}, None, ["the key train of a turn is left out"]),
        ({"name": "bear"}, None, ["the key name of an answer is left out"]),
    ],
)  # fmt: skip
def test_what_an_answers_turn_holds_besides(tmp_path, turn, fields, notes):
    found, said, dropped = pair(tmp_path, [user("Sun?")], says("a") | turn, says("b"))
    assert (found.chosen, found.fields) == ("a", (fields, None))
    assert ([what.replace("'", "") for what in said], dropped) == (notes, [])


def test_notes_are_counted_by_row_and_once_in_each(tmp_path):
    odd = {"messages": [user("Sun?") | {"when": 1}, says("a") | {"when": 2}]}
    _, counts, _ = read_demonstrations(write(tmp_path / "a.jsonl", odd, {"messages": [user("b"), says("c")]}, odd))
    assert counts.notes == {"the key 'when' of a turn is left out": (2, [1, 3])}


TEXT = {"type": "text", "text": "Sun"}


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        ([TEXT], "Sun", ""),
        ([TEXT, TEXT | {"text": "?\n"}], "Sun?\n", "a turn of several text parts is read as their texts, joined"),
        ([{"type": "input_text", "text": "Sun", "image": None}], "Sun", ""),
        (["Sun"], "Sun", ""),
        ([TEXT | {"cache": {"type": "x"}}], "Sun", "the key 'cache' of a part of a turn is left out"),
        ([TEXT, {"type": "audio", "audio": "a.wav"}], None, "a turn has a part of type audio"),
        ([{"type": "file", "text": "Sun"}], None, "a turn has a part of type file"),
        ([{"type": "text"}], None, "a turn has a part without text"),
    ],
)
def test_parts_of_a_content(tmp_path, content, words, said):
    found, notes, dropped = pair(tmp_path, [{"role": "user", "content": content}], says("a"), says("b"))
    assert (found and found.prompt) == (words and [user(words)])
    assert [*notes, *dropped] == ([said] if said else [])


def test_thinking_in_a_part_is_thinking(tmp_path):
    chosen = {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, TEXT]}
    found, notes, _ = pair(tmp_path, [user("Sun?")], chosen, says("b"))
    assert (found.chosen, found.fields[0]) == ("Sun", {"reasoning_content": "Hm."})
    assert notes == ["a part of thinking read as reasoning_content"]


# --- speakers


@pytest.mark.parametrize(
    ("word", "role"),
    [("Human", "user"), ("USER", "user"), ("prompter", "user"), ("GPT", "assistant"), ("Bot", "assistant"),
     ("AI", "assistant"), ("model", "assistant"), ("chatbot", "assistant"), ("function", "tool"),
     ("observation", "tool"), ("ipython", "tool"), ("environment", "tool"), ("System", "system"),
     ("Developer", "developer")],
)  # fmt: skip
def test_a_speaker_of_any_spelling_has_a_role(tmp_path, word, role):
    turns = [{"role": word, "content": "x"}, user("Sun?")]
    found, notes, dropped = pair(tmp_path, turns, says("a"), says("b"))
    assert (found.prompt[0], dropped) == ({"role": role, "content": "x"}, [])
    assert notes == [f"role {word!r} read as {role}"]


def test_roles_that_are_known_are_no_remark_and_others_stay_with_one(tmp_path):
    for word in sorted(set(ROLES.values())):
        assert pair(tmp_path, [{"role": word, "content": "x"}, user("y")], says("a"), says("b"))[1:] == ([], [])
    found, notes, _ = pair(tmp_path, [{"role": "cook", "content": "x"}, user("y")], says("a"), says("b"))
    assert found.prompt[0] == {"role": "cook", "content": "x"}
    assert notes == ["role 'cook' is unknown, and stays as it is"]
    for word in (None, 3, "", ["user"]):
        assert pair(tmp_path, [{"role": word, "content": "x"}], says("a"), says("b"))[2] == [
            "prompt has a message without role or text content"
        ]


# --- columns around


def test_a_system_column_is_a_turn_in_front(tmp_path):
    found, notes, _ = pair(tmp_path, [user("Sun?")], says("a"), says("b"), system_prompt="Bear.", tools=WEATHER)
    assert found.prompt == [system("Bear.") | {"tools": WEATHER}, user("Sun?")]
    assert notes == []
    same, _, _ = pair(tmp_path, [system("Bear."), user("Sun?")], says("a"), says("b"), system="Bear.")
    assert same.prompt == [system("Bear."), user("Sun?")]
    _, _, dropped = pair(tmp_path, [system("Cub."), user("Sun?")], says("a"), says("b"), system="Bear.")
    assert dropped == ["the system column is not the system turn of the chat"]


@pytest.mark.parametrize(
    ("row", "read"),
    [
        ({"prompt": "Sun?", "chosen": "a", "rejected": "b"}, read_pairs),
        ({"prompt": "Sun?", "completion": "a"}, read_demonstrations),
        ({"prompt": "Sun?", "completion": "a", "label": True}, read_judgments),
        ({"prompt": "Sun?"}, read_prompts),
        ({"prompt": "Sun?", "chosen": "a", "rejected": ["b", "c"]}, read_judgments),
    ],
)
@pytest.mark.parametrize(("column", "value", "word"), [("system_message", "Bear.", "system"),
                                                       ("tools", WEATHER, "of tools")])  # fmt: skip
def test_a_text_prompt_beside_such_a_column_is_a_chat(tmp_path, row, read, column, value, word):
    found, counts, _ = read(write(tmp_path / "a.jsonl", row | {column: value}))
    with_tools = [user("Sun?") | {"tools": WEATHER}]
    assert found[0].prompt == ([system("Bear."), user("Sun?")] if word == "system" else with_tools)
    assert counts.notes == {f"prompt is text beside a column {word}, read as a chat": (1, [1])}
    plain, counts, _ = read(write(tmp_path / "a.jsonl", row | {column: None, "system": " ", "functions": []}))
    assert (plain[0].prompt, counts.notes) == ("Sun?", {})


def test_what_has_no_place_for_such_a_column_drops_the_row(tmp_path):
    talk = "\n\nHuman: Sun?\n\nAssistant: "
    rows = [{"chosen": talk + "a", "rejected": talk + "b"}, {"text": "Once."}, {"instruction": "Go.", "output": "no"}]
    for row, read, more in zip(rows, (read_pairs, read_demonstrations, read_demonstrations),
                               ({"system": "Bear."}, {"tools": WEATHER}, {"history": [["a", "b"]]}),
                               strict=True):  # fmt: skip
        source = write(tmp_path / "a.jsonl", row | dict.fromkeys(more), row | more)
        _, counts, _ = read(source)
        assert counts.used == 1
        ((why, (_, numbers)),) = counts.dropped.items()
        assert numbers == [2]
        assert next(iter(more)) in why


# --- what is not to be imitated


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"weight": 0}, "weight 0 on the answer to be imitated"),
        ({"train": False}, "train False on the answer to be imitated"),
        ({"loss": False}, "loss False on the answer to be imitated"),
        ({"loss_mask": 0}, "loss_mask 0 on the answer to be imitated"),
        ({"mask": True}, "mask True on the answer to be imitated"),
        ({"weight": "none"}, "weight none on the answer to be imitated"),
    ],
)
@pytest.mark.parametrize("column", ["messages", "completion", "conversations"])
def test_an_answer_that_is_not_to_be_learnt_drops_its_row(tmp_path, turn, reason, column):
    def row(**more):
        if column == "completion":
            return {"prompt": [user("Sun?")], "completion": [says("a") | more]}
        if column == "messages":
            return {"messages": [user("Sun?"), says("a") | more]}
        return {"conversations": [{"from": "human", "value": "Sun?"}, {"from": "gpt", "value": "a"} | more]}

    found, counts, _ = read_demonstrations(write(tmp_path / "a.jsonl", row(weight=1), row(**turn), row(weight=None)))
    assert (len(found), counts.dropped, counts.notes) == (2, {reason: (1, [2])}, {})


def test_a_weight_elsewhere_is_noted(tmp_path):
    row = {"messages": [user("Sun?"), says("a") | {"weight": 1}, user("b"), says("c") | {"weight": 2}]}
    _, counts, _ = read_demonstrations(write(tmp_path / "a.jsonl", row))
    assert set(counts.notes) == {
        "the key 'weight' of a turn is left out",
        "weight 2 on the answer to be imitated counts as 1",
    }


def test_a_chat_with_a_verdict_is_a_judgment_and_no_demonstration(tmp_path):
    rows = [{"messages": [user("Sun?"), says(word)], "label": word == "Picnic."} for word in ("Picnic.", "Sleep.")]
    source = write(tmp_path / "a.jsonl", *rows)
    assert kind_of(source) == "pairs"
    assert [(p.chosen, p.rejected) for p in read_pairs(source)[0]] == [("Picnic.", "Sleep.")]
    with pytest.raises(InputError, match="these are preference pairs, format kto-messages"):
        read_demonstrations(source)


@pytest.mark.parametrize("column", ["kto_tag", "is_good", "preferred"])
@pytest.mark.parametrize(("good", "bad"), [(True, False), ("True", "false"), (1, 0)])
def test_a_verdict_beside_a_demonstration_drops_what_is_bad(tmp_path, column, good, bad):
    rows = [{"instruction": "Go.", "output": word, column: value} for word, value in (("yes", good), ("no", bad))]
    found, counts, _ = read_demonstrations(write(tmp_path / "a.jsonl", *rows))
    assert ([it.completion for it in found], counts.notes) == (["yes"], {})
    assert counts.dropped == {f"{column} says that the answer is bad": (1, [2])}


def test_a_conversation_that_a_label_calls_bad_is_not_imitated(tmp_path):
    talk = [{"from": "human", "value": "Sun?"}, {"from": "gpt", "value": "a"}]
    rows = [{"conversations": talk, "label": good} for good in (True, False)]
    found, counts, _ = read_demonstrations(write(tmp_path / "a.jsonl", *rows))
    assert (len(found), counts.dropped) == (1, {"label says that the answer is bad": (1, [2])})


IMITATED = "is not used: the answer is imitated all the same, which may change what is learnt"
LABELLED = {
    "kto": {"prompt": "Sun?", "completion": "Yes."},
    "kto-messages": {"messages": [user("Sun?"), says("Yes.")]},
}


@pytest.mark.parametrize("column", ["score", "rating", "reward", "label"])
def test_a_number_beside_a_demonstration_is_noted(tmp_path, column):
    found, counts, _ = read_demonstrations(write(tmp_path / "a.jsonl", {"messages": [user("a"), says("b")], column: 3}))
    assert (len(found), counts.notes) == (1, {f"{column} {IMITATED}": (1, [1])})


@pytest.mark.parametrize("word", ["bad", "good", 3, "-1"])
def test_a_label_that_is_no_verdict_is_said_to_be_imitated_all_the_same(tmp_path, word):
    row = {"prompt": "Sun?", "completion": "Yes.", "label": word}
    found, counts, name = read_demonstrations(write(tmp_path / "a.jsonl", row))
    assert (len(found), name, counts.notes) == (1, "prompt-completion", {f"label {IMITATED}": (1, [1])})


@pytest.mark.parametrize(("good", "bad"), [(1, 0), ("1", "0"), ("1.0", "0.0"), (1.0, 0.0), ("TRUE", "False")])
@pytest.mark.parametrize("form", ["kto", "kto-messages"])
def test_what_a_number_calls_bad_is_not_imitated(tmp_path, good, bad, form):
    rows = [{"label": label} | LABELLED[form] for label in (bad, good, good)]
    source = write(tmp_path / "a.jsonl", *rows)
    judgments, _, name = read_judgments(source)
    assert ([judgment.verdict.value for judgment in judgments], name) == ([0, 1, 1], form)
    with pytest.raises(InputError, match=f"these are preference pairs, format {form}"):
        read_demonstrations(source)
    found, counts, _ = read_demonstrations(source, format={"kto": "prompt-completion"}.get(form, "messages"))
    assert (len(found), counts.dropped) == (2, {"label says that the answer is bad": (1, [1])})


def test_a_number_beside_plain_text_is_a_class(tmp_path):
    rows = [{"text": "A dull film.", "label": 0}, {"text": "A fine film.", "label": 1}]
    found, counts, _ = read_demonstrations(write(tmp_path / "a.jsonl", *rows))
    assert (len(found), counts.dropped, counts.notes) == (2, {}, {f"label {IMITATED}": (2, [1, 2])})


# --- sides


ASKS = [says("Which?"), user("The sun.")]


@pytest.mark.parametrize(
    ("before", "chosen", "rejected", "expected"),
    [
        ([user("a")], [*ASKS, says("x")], [*ASKS, says("y")], [user("a"), *ASKS]),
        ([user("a")], [user("a"), *ASKS, says("x")], [user("a"), *ASKS, says("y")], [user("a"), *ASKS]),
        ([user("a")], [system("s"), user("a"), says("x")], [system("s"), user("a"), says("y")],
         [system("s"), user("a")]),
        ([user("a")], {"messages": [says("x")]}, {"messages": [says("y")]}, [user("a")]),
        ([user("a")], [{"from": "gpt", "value": "x"}], says("y"), [user("a")]),
    ],
)  # fmt: skip
def test_turns_that_both_sides_share_are_the_prompt(tmp_path, before, chosen, rejected, expected):
    found, _, dropped = pair(tmp_path, before, chosen, rejected)
    assert dropped == []
    assert (found.prompt, found.chosen, found.rejected) == (expected, "x", "y")


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ([*ASKS, says("x")], [says("Which?"), user("Rain."), says("y")],
         "transcripts differ before the last assistant turn"),
        ([*ASKS, says("x")], [says("y")], "transcripts differ before the last assistant turn"),
        ([user("b"), says("x")], [user("b"), says("y")], "prompt is not the one in the transcripts"),
        ([*ASKS], [*ASKS], "chosen does not end with an assistant turn"),
    ],
)  # fmt: skip
def test_sides_that_part_ways_are_dropped_for_what_is_true(tmp_path, chosen, rejected, reason):
    assert pair(tmp_path, [user("a")], chosen, rejected)[2] == [reason]


def test_two_answers_that_differ_in_their_calls_alone_are_two(tmp_path):
    one, other = calls("weather", town="Lima"), calls("weather", town="Oslo")
    rows = [{"prompt": [user(str(i))], "chosen": [one], "rejected": [other]} for i in range(2)]
    source = write(tmp_path / "a.jsonl", *rows, rows[0] | {"rejected": [one]},
                   {"prompt": [user("1")], "chosen": [other], "rejected": [one]})  # fmt: skip
    pairs, counts, _ = read_pairs(source)
    assert len(checks.check_pairs(pairs, counts, 1.0)) == 1
    assert counts.dropped == {"chosen equals rejected": (1, [3]), "contradictory pair": (2, [2, 4])}


def test_calls_shown_in_another_order_are_told_apart_by_what_they_call(tmp_path):
    """Only the order is lost of two answers without a text, and nothing that is known of either."""
    answers = tuple(
        Answer("", model=model, fields={"tool_calls": calls(name)["tool_calls"]})
        for name, model in (("weather", "m1"), ("tides", "m2"))
    )
    before = Judgment([user("Sun?")], answers, Preference("second"))
    swapped = Judgment([user("Sun?")], answers[::-1], Preference("first"))
    assert list(_left_out(before, before)) == []
    assert list(_left_out(before, swapped)) == ["the order in which answers were shown"]
    counts = RowCounts(read=1, used=1)
    write_judgments([[before]], tmp_path / "a.jsonl", "openai-preferences", counts, "s.jsonl")
    said = {what.removeprefix("openai-preferences does not hold ") for what in counts.notes}
    assert said == {"the order in which answers were shown", "the answers' model"}


def test_votes_on_other_calls_are_other_contests(tmp_path):
    """Four answers without text, told apart by what they call: nobody outvotes anybody."""
    lima, oslo, rome, bern = (calls("weather", town=t) for t in ("Lima", "Oslo", "Rome", "Bern"))
    sides = [("ann", lima, oslo), ("bo", rome, bern), ("cy", oslo, lima), ("dee", lima, oslo)]
    judgments = [
        Judgment([user("Warm?")], tuple(Answer("", fields={"tool_calls": it["tool_calls"]}) for it in two),
                 Preference("first"), rater=rater)
        for rater, *two in sides
    ]  # fmt: skip
    pairs = derive(judgments).pairs
    towns = [[json.loads(f["tool_calls"][0]["function"]["arguments"])["town"] for f in pair.fields] for pair in pairs]
    assert towns == [["Lima", "Oslo"], ["Rome", "Bern"]]


def test_an_answer_that_calls_a_tool_is_not_empty(tmp_path):
    rows = [{"messages": [user("Warm?"), turn]} for turn in (calls("weather"), says(""), says("") | {"thinking": "x"})]
    found, counts, _ = read_demonstrations(write(tmp_path / "a.jsonl", *rows))
    assert len(checks.check_demonstrations(found, counts, 1.0)) == 1
    assert counts.dropped == {"empty completion": (2, [2, 3])}


# --- ids as drawn


def test_completions_hold_the_ids_that_were_drawn(tmp_path):
    drawn = {"text": "Yes.", "truncated": True, "tokens": 2, "logp": -1.5, "ids": [5, 2]}
    rows = [
        {"prompt": "Sun?", "tokenizer": "f00d", "completions": [drawn, "No.", {"text": "Hm.", "ids": ["a"]}]},
        {"prompt": "Sun?", "completions": [drawn]},
        {"prompt": [user("Sun?")], "tools": WEATHER, "completions": [calls("weather")]},
    ]
    found = [answers for _, answers, _ in open_answers(write(tmp_path / "a.jsonl", *rows))[0]]
    assert found[0] == [Answer("Yes.", truncated=True, drawn=Drawn("f00d", (5, 2))), Answer("No."), Answer("Hm.")]
    assert found[1] == [Answer("Yes.", truncated=True)]
    assert found[2] == [Answer("", fields={"tool_calls": calls("weather")["tool_calls"]})]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    "columns",
    [
        {"chosen_ids": [5, 2], "rejected_ids": [7], "tokenizer": "f00d"},
        {"chosen_ids": [5, 2], "tokenizer": "f00d"},
        {"chosen_ids": [5], "chosen_tokenizer": "f00d", "rejected_ids": [7, 8], "rejected_tokenizer": "beef"},
    ],
)
def test_ids_are_written_beside_trl_and_read_again(tmp_path, ending, columns):
    row = {"prompt": "Sun?", "chosen": " Yes.", "rejected": " No."}
    source = write(tmp_path / "a.jsonl", row | columns)
    expected = tuple(
        Drawn(columns.get(f"{side}_tokenizer") or columns["tokenizer"], tuple(columns[f"{side}_ids"]))
        if f"{side}_ids" in columns
        else None
        for side in ("chosen", "rejected")
    )
    convert(source, tmp_path / f"b.{ending}", "trl")
    for name in (source, str(tmp_path / f"b.{ending}")):
        (judgment,), _, _ = read_judgments(name)
        assert (tuple(a.drawn for a in judgment.answers), judgment.extra) == (expected, None)
        assert read_pairs(name)[0][0].drawn == expected
    kto = {"prompt": "Sun?", "completion": " Yes.", "label": True, "completion_ids": [5], "tokenizer": "f00d"}
    (judgment,), _, _ = read_judgments(write(tmp_path / "k.jsonl", kto))
    assert judgment.answers[0].drawn == Drawn("f00d", (5,))


@pytest.mark.parametrize("bad", [{"chosen_ids": [1.5]}, {"chosen_ids": [True]}, {"chosen_ids": [-1]},
                                 {"chosen_ids": []}, {"tokenizer": 5}, {"chosen_ids": "[1"}])  # fmt: skip
def test_ids_that_are_none_are_columns_like_others(tmp_path, bad):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_ids": [1], "tokenizer": "f00d"} | bad
    (judgment,), _, _ = read_judgments(write(tmp_path / "a.jsonl", row))
    assert judgment.answers[0].drawn is None
    assert judgment.extra == {name: row[name] for name in ("chosen_ids", "tokenizer")}


# --- written and read again


@pytest.mark.parametrize(
    ("to", "holds"),
    [("trl", True), ("openai-preferences", True), ("axolotl", True), ("ms-swift-messages", True), ("ms-swift", False),
     ("llama-factory", False), ("orca", False), ("hh", False), ("argilla", False), ("shp", False)],
)  # fmt: skip
def test_a_format_holds_calls_and_tools_or_refuses(tmp_path, to, holds):
    row = {"prompt": [user("Warm?")], "chosen": [calls("weather", town="Lima")], "rejected": [calls("weather")]}
    source = write(tmp_path / "a.jsonl", row | {"tools": json.dumps(WEATHER)})
    target = tmp_path / "b.jsonl"
    if not holds:
        with pytest.raises(InputError, match=r"cannot hold 1 of 1 rows .*tool"):
            convert(source, target, to)
        return
    convert(source, target, to)
    before, after = read_pairs(source)[0][0], read_pairs(str(target))[0][0]
    assert (after.prompt, after.fields) == (before.prompt, before.fields)
    assert after.prompt == [user("Warm?") | {"tools": WEATHER}]


@pytest.mark.parametrize("to", ["messages", "prompt-completion", "sharegpt"])
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_demonstration_that_calls_a_tool_is_written_and_read_again(tmp_path, to, ending):
    call = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
    acts = {"role": "assistant", "content": "", "tool_calls": [call]}
    turns = [user("Warm?"), acts, {"role": "tool", "content": "9 C"}, acts]
    source = write(tmp_path / "a.jsonl", {"messages": turns, "tools": WEATHER})
    convert(source, tmp_path / f"b.{ending}", to)
    before, after = read_demonstrations(source)[0][0], read_demonstrations(str(tmp_path / f"b.{ending}"))[0][0]
    assert before.fields == {"tool_calls": [call]}
    assert (after.prompt, after.completion, after.fields) == (before.prompt, before.completion, before.fields)
    for other in ("alpaca", "text"):
        with pytest.raises(InputError, match=f"{other} cannot hold"):
            convert(source, tmp_path / "c.jsonl", other)


def test_sharegpt_is_read_with_its_tools(tmp_path):
    """As LLaMA-Factory writes them: a call is a speaker, and the tools are JSON text."""
    talk = [
        {"from": "human", "value": "Warm?"},
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"town": "Lima"}})},
        {"from": "observation", "value": "9 C"},
        {"from": "gpt", "value": "No."},
    ]
    row = {"conversations": talk, "system": "Bear.", "tools": json.dumps(WEATHER)}
    (found,), counts, name = read_demonstrations(write(tmp_path / "a.jsonl", row))
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Lima"}}}
    assert found.prompt == [
        system("Bear.") | {"tools": WEATHER},
        user("Warm?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "9 C"},
    ]
    assert (found.completion, name, counts.notes, counts.dropped) == ("No.", "sharegpt", {}, {})


# --- Label Studio's selections


@pytest.mark.parametrize(
    ("value", "outcome"),
    [("left", "first"), ({"selected": "right"}, "second"), ([{"selected": "left", "id": "x"}], "first"),
     ('[{"selected": "right"}]', "second"), ("equal", "tie")],
)  # fmt: skip
def test_selections_of_the_short_export(tmp_path, value, outcome):
    row = {"prompt": "Sun?", "answer1": "left", "answer2": "tie", "pw": value, "annotator": 1, "lead_time": 2}
    (judgment,), _, name = read_judgments(write(tmp_path / "a.jsonl", row))
    assert (name, judgment.verdict.outcome, judgment.dimension) == ("label-studio-min", outcome, "overall")
    assert [a.text for a in judgment.answers] == ["left", "tie"]


def test_left_is_the_answer_that_the_result_names_first_and_what_was_cancelled_does_not_count(tmp_path):
    def task(to_name, **more):
        result = {"from_name": "safety", "to_name": to_name, "type": "pairwise", "value": {"selected": "left"}}
        stars = {"from_name": "stars", "type": "rating", "value": {"rating": 4}}
        return {
            "data": {"question": "Sun?", "response_a": "a", "response_b": "b"},
            "annotations": [{"completed_by": 5, "result": [result, stars]} | more],
        }

    source = write(tmp_path / "a.jsonl", task("response_b,response_a"), task("pw"), task("pw", was_cancelled=True))
    judgments, counts, _ = read_judgments(source)
    assert [[a.text for a in j.answers] for j in judgments] == [["b", "a"], ["a", "b"]]
    assert {j.dimension for j in judgments} == {"safety"}
    assert counts.neutral == {"no comparison was submitted": (1, [3])}
    assert counts.notes == {"a result of the type rating is left out": (2, [1, 2])}


def test_counts_stay_whole(tmp_path):
    """What is noted of a row that is then dropped is its reason alone."""
    row = {"messages": [{"role": "Human", "content": "x"}, {"role": "assistant", "content": 3}]}
    source = write(tmp_path / "a.jsonl", row, {"messages": [user("a"), says(KNEW)]})
    _, counts, _ = read_demonstrations(source)
    assert isinstance(counts, RowCounts)
    assert (counts.used, counts.notes, counts.dropped_total) == (1, {}, 1)
