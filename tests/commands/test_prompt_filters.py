"""Which prompts are asked: every row accounted for, nothing of a person left in a masked chat."""

from __future__ import annotations

import json

import pytest

from keel.commands import prompt_filters
from keel.errors import InputError
from keel.records import Origin, PromptRow, RowCounts

MAIL, PHONE = "ann@example.com", "+49 30 1234567"
BEAR = "please tell me what a small brown bear can do with a child on a rainy sunday afternoon at home"


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def says(content):
    return {"role": "assistant", "content": content}


def chosen(*prompts, **options):
    """(prompts that are asked, counts)."""
    rows = [PromptRow(prompt, Origin("f", number)) for number, prompt in enumerate(prompts, 1)]
    counts = RowCounts(read=len(rows), used=len(rows))
    found = prompt_filters.choose(rows, counts, **options)
    assert counts.read == counts.used + counts.dropped_total
    assert counts.used == len(found)
    return [row.prompt for row in found], counts


# --- personal data


CHAT = [system(f"Our number is {PHONE}."), user(f"I am {MAIL}"), says(f"Hello {MAIL}!"), user("What now?")]
GIVEN = ["Sun?", f"Write to {MAIL} and {MAIL}.", CHAT, f"Call {PHONE}"]
BY_KIND = {"email": (2, [2, 3]), "phone": (2, [3, 4])}


def test_personal_data_are_kept_and_counted_by_kind():
    found, counts = chosen(*GIVEN)
    assert found == GIVEN
    assert counts.notes == {f"personal data kept: {kind}": seen for kind, seen in BY_KIND.items()}


def test_personal_data_are_masked_in_every_turn():
    found, counts = chosen(*GIVEN, personal_data="mask")
    assert found == [
        "Sun?",
        "Write to [email] and [email].",
        [system("Our number is [phone]."), user("I am [email]"), says("Hello [email]!"), user("What now?")],
        "Call [phone]",
    ]
    assert counts.notes == {f"personal data masked: {kind}": seen for kind, seen in BY_KIND.items()}
    assert chosen(*found, personal_data="mask")[0] == found


def test_rows_with_personal_data_are_dropped():
    found, counts = chosen(*GIVEN, personal_data="drop")
    assert found == ["Sun?"]
    assert counts.dropped == {"personal data": (3, [2, 3, 4])}
    assert counts.notes == {f"personal data dropped: {kind}": seen for kind, seen in BY_KIND.items()}


def test_what_masking_makes_equal_is_asked_once():
    found, counts = chosen(f"Write to {MAIL}", "Write to bob@example.org", personal_data="mask")
    assert found == ["Write to [email]"]
    assert counts.dropped == {"prompt of an earlier row": (1, [2])}


# --- repeats


def test_of_near_duplicates_the_first_stays():
    """One word of twenty, or case and full stop: near. Another question: not. An exact repeat is one, and no more."""
    given = ["Sun?", BEAR, BEAR.replace("home", "school"), BEAR.upper() + ".", "Where do bears sleep at night?", BEAR]
    found, counts = chosen(*given)
    assert found == given[:5]
    assert counts.notes == {"near-duplicate of an earlier prompt, kept": (2, [3, 4])}
    assert counts.dropped == {"prompt of an earlier row": (1, [6])}
    found, counts = chosen(*given, drop_near=True)
    assert found == ["Sun?", BEAR, "Where do bears sleep at night?"]
    assert counts.dropped == {
        "prompt of an earlier row": (1, [6]),
        "near-duplicate of an earlier prompt": (2, [3, 4]),
    }
    assert counts.notes == {}


def test_a_shared_system_turn_makes_no_near_duplicates_and_another_one_none_either():
    rules = " ".join(f"Rule {i}: be kind and never say the word {i}." for i in range(60))
    apart = [[system(rules), user(q)] for q in ("Sun?", "Where do bears sleep at night?", "May I have the honey?")]
    other = [[system("Answer in French."), user(BEAR)], [system("Answer in German."), user(BEAR)]]
    same = [[system(rules), user(BEAR)], [system(rules), user(BEAR + "!")]]
    found, counts = chosen(*apart, *other, *same, drop_near=True)
    assert found == [*apart, *other, same[0]]
    assert counts.dropped == {"near-duplicate of an earlier prompt": (1, [7])}


def test_a_log_is_near_only_where_its_earlier_turns_are():
    told = "Once upon a time a bear lost a red boat on the lake and a child found it in the reeds on monday."
    given = [[user(told), says("Nice."), user("Why?")], [user(BEAR), says("Play."), user("Why?")]]
    assert chosen(*given, drop_near=True)[0] == given


def test_nothing_left_to_ask_is_refused():
    with pytest.raises(InputError, match=r"none of 1 prompts is left to ask .*'personal data': row 1"):
        chosen(f"Call {PHONE}", personal_data="drop")


# --- other bytes


def test_a_prompt_is_asked_once_in_whatever_bytes():
    asked = ["Où ?", "Ou\u0300\u00a0?", [user("Où ?")], [user("Où  ? ")], [system("Bear."), user("Où ?")], "Ou ?"]
    found, counts = chosen(*asked)
    assert found == ["Où ?", [user("Où ?")], [system("Bear."), user("Où ?")], "Ou ?"]
    assert counts.dropped == {"prompt of an earlier row": (2, [2, 4])}


def test_prompts_of_another_layout_are_all_asked():
    loop, chat = ["for x in y:\n\tp(x)\nq(y)", "for x in y:\n\tp(x)\n\tq(y)"], "1.\n2."
    given = [*loop, [user(chat)], [user(chat.replace("\n", " "))]]
    found, counts = chosen(*given)
    assert (found, counts.dropped) == (given, {})


def test_masking_keeps_what_a_turn_holds_beside_its_text():
    turn = {"role": "tool", "content": f"It is {MAIL}.", "tool_call_id": "7"}
    found, _ = chosen([user("Whose?"), turn], personal_data="mask")
    assert found == [[user("Whose?"), turn | {"content": "It is [email]."}]]


def test_system_turns_in_other_bytes_do_not_part_near_repeats():
    rows = [[system(name), user(BEAR + more)] for name, more in (("Ä\nB", ""), ("A\u0308 B", "!"), ("A B", "?"))]
    assert chosen(*rows, drop_near=True)[1].dropped == {"near-duplicate of an earlier prompt": (1, [2])}


def test_personal_data_are_masked_in_calls_thoughts_and_tools():
    """At any depth, in arguments as an object or as JSON text, which stays JSON; the rest stays as it is."""
    lookup = {"type": "function", "function": {"name": "find", "description": f"Ask {MAIL} for access."}}
    called = [
        {"type": "function", "function": {"name": "find", "arguments": {"who": [MAIL, 7], "phone": 2025550143}}},
        {"id": "c2", "type": "function", "function": {"name": "find", "arguments": '{"mobile": 2025550143, "é": "b"}'}},
        {"id": "c3", "type": "function", "function": {"name": "find", "arguments": '{"n": 1}'}},
    ]
    chat = [
        {**user("Whose?"), "tools": [lookup]},
        {**says(""), "reasoning_content": f"I call {PHONE}.", "tool_calls": called},
        {"role": "tool", "content": "Ann's.", "tool_call_id": "c2", "name": "find"},
    ]
    [kept], counts = chosen(chat, personal_data="mask")
    assert counts.notes == {f"personal data masked: {kind}": (1, [1]) for kind in ("email", "phone")}
    assert kept[0]["tools"] == [{**lookup, "function": {"name": "find", "description": "Ask [email] for access."}}]
    assert kept[1]["reasoning_content"] == "I call [phone]."
    first, second, third = (call["function"]["arguments"] for call in kept[1]["tool_calls"])
    assert first == {"who": ["[email]", 7], "phone": "[phone]"}
    assert json.loads(second) == {"mobile": "[phone]", "é": "b"}
    assert third == '{"n": 1}'
    assert kept[2] == chat[2]
    assert called[0]["function"]["arguments"]["who"] == [MAIL, 7], "what was given is not changed"
    assert chosen(kept, personal_data="mask")[0] == [kept]
    with pytest.raises(InputError, match="personal data"):
        chosen(chat, personal_data="drop")
