"""Files with names of their own: `--columns`, verdicts in any words, and what a refusal proposes to try."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.formats.examples import says, user
from tests.reading import kind_of, open_answers, read_demonstrations, read_judgments, read_pairs, read_prompts

from keel.data import looks
from keel.data.convert import convert
from keel.errors import InputError
from keel.formats import columns
from keel.records import Preference, Ranking


@pytest.fixture
def file(tmp_path, write_rows):
    return lambda rows: str(write_rows(tmp_path / "own.jsonl", rows))


def refusal(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- public layouts that have no reader of their own, with invented contents


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [user(question), says(answer)]


ARENA = [
    {"question_id": f"q{i}", "model_a": "bear-7b", "model_b": "cub-1b", "winner": winner, "judge": "arena_user_9",
     "conversation_a": talk(f"Snow {i}?", "Sledge."), "conversation_b": talk(f"Snow {i}?", "Sleep."),
     "turn": 1, "anony": True, "language": "English", "tstamp": 1682351591.1}
    for i, winner in enumerate(("model_a", "model_b", "tie", "tie (bothbad)"))
]  # fmt: skip
SAFE = [
    {"prompt": f"Snow {i}?", "response_0": "Sledge.", "response_1": "Sleep.", "is_response_0_safe": True,
     "better_response_id": better, "safer_response_id": 0}
    for i, better in enumerate((0, 1, 1))
]  # fmt: skip
NECTAR = [
    {"prompt": "\n\nHuman: Snow?\n\nAssistant: ", "turns": 1, "num_responses": 3,
     "answers": [{"answer": text, "model": model, "rank": rank}
                 for text, model, rank in (("Nap.", "a", 3.0), ("Sledge.", "b", 1.0), ("Sleep.", "c", 2.0))]}
]  # fmt: skip
WEBGPT = [
    {"question": {"dataset": "eli5", "id": "x", "full_text": "Why snow?"}, "quotes_0": {"title": []},
     "answer_0": "Cold.", "tokens_0": {}, "score_0": -0.5, "answer_1": "Clouds.", "score_1": 0.5}
]  # fmt: skip
ORCA = [
    {"system": "", "input": "Snow?", "chosen": "Sledge.", "rejected": "Sleep.", "generations": ["Sledge.", "Sleep."],
     "rating": [9.0, 7.0], "status": "unchanged"}
]  # fmt: skip
SKY = [{"conv": [{"from": "human", "value": "Snow?"}, {"from": "gpt", "value": "Sledge."}], "points": "4.5"}]


def said(pairs) -> list[tuple[Any, str, str]]:
    asked = [p.prompt if isinstance(p.prompt, str) else p.prompt[-1]["content"] for p in pairs]
    return [(prompt, p.chosen, p.rejected) for prompt, p in zip(asked, pairs, strict=True)]


LAYOUTS: list[tuple[Any, str, str, list[tuple[Any, str, str]], dict[str, int]]] = [
    (ARENA, "response_a=conversation_a,response_b=conversation_b,preference=winner,rater=judge", "preference",
     [("Snow 0?", "Sledge.", "Sleep."), ("Snow 1?", "Sleep.", "Sledge.")], {"tie": 1, "both bad": 1}),
    (SAFE, "response_a=response_0,response_b=response_1,preference=better_response_id", "preference",
     [("Snow 0?", "Sledge.", "Sleep."), ("Snow 1?", "Sleep.", "Sledge."), ("Snow 2?", "Sleep.", "Sledge.")], {}),
    (NECTAR, "responses=answers.answer,ranks=answers.rank,models=answers.model", "ranks",
     [(NECTAR[0]["prompt"], "Sledge.", "Nap."), (NECTAR[0]["prompt"], "Sleep.", "Nap."),
      (NECTAR[0]["prompt"], "Sledge.", "Sleep.")], {}),
    (WEBGPT, "prompt=question.full_text,response_a=answer_0,response_b=answer_1,score_a=score_0,score_b=score_1",
     "two-scores", [("Why snow?", "Clouds.", "Cold.")], {}),
    (ORCA, "prompt=input", "trl", [("Snow?", "Sledge.", "Sleep.")], {}),
    (ORCA, "prompt=input,responses=generations,scores=rating", "scores", [("Snow?", "Sledge.", "Sleep.")], {}),
    (SKY * 2, "prompt=conv.0.value,response=conv.-1.value,score=points", "score", [], {}),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "spec", "name", "expected", "neutral"), LAYOUTS)
def test_public_layouts_are_read_by_their_own_names(file, rows, spec, name, expected, neutral):
    source = file(rows)
    if not expected:
        assert [j.verdict.value for j in read_judgments(source, columns=spec)[0]] == [4.5, 4.5]
        return
    pairs, counts, found = read_pairs(source, columns=spec)
    assert found == name
    assert sorted(said(pairs)) == sorted(expected)
    assert {why: count for why, (count, _) in counts.neutral.items()} == neutral
    assert counts.dropped == {}
    assert kind_of(source, None, spec) == "pairs"
    assert len(read_prompts(source, columns=spec)[0]) == len(rows)


@pytest.mark.parametrize(("rows", "spec", "name", "expected", "neutral"), LAYOUTS)
def test_what_was_renamed_is_written_and_read_again(file, tmp_path, rows, spec, name, expected, neutral):
    source, target = file(rows), tmp_path / "out.jsonl"
    convert(source, target, name, columns=spec)
    before, after = (read_judgments(*at) for at in ((source, None, None, spec), (str(target), name)))
    assert after[2] == name
    assert [(j.prompt, j.verdict, [(a.text, a.model) for a in j.answers], j.rater, j.extra) for j in after[0]] == [
        (j.prompt, j.verdict, [(a.text, a.model) for a in j.answers], j.rater, j.extra) for j in before[0]
    ]


def test_details_of_renamed_rows_are_kept(file):
    judged = read_judgments(file(ARENA), columns=LAYOUTS[0][1])[0]
    assert [(j.rater, j.answers[0].model, j.answers[1].model) for j in judged] == [
        ("arena_user_9", "bear-7b", "cub-1b")
    ] * 4
    (ranked,) = read_judgments(file(NECTAR), columns=LAYOUTS[2][1])[0]
    assert ranked.verdict == Ranking((3, 1, 2))
    assert [a.model for a in ranked.answers] == ["a", "b", "c"]
    (first, _) = read_judgments(file(WEBGPT), columns=LAYOUTS[3][1])[0]
    assert first.extra == {"question": {"dataset": "eli5", "id": "x"}, "quotes_0": {"title": []}, "tokens_0": {}}


# --- every kind of data


def test_demonstrations_prompts_and_answers(file):
    rows = [{"q": "Snow?", "a": "Sledge.", "b": "Sleep.", "chat": talk("Hi?", "Ho."), "note": "x"}]
    source = file(rows)
    (shown,), _, name = read_demonstrations(source, columns="prompt=q,completion=a")
    assert (shown.prompt, shown.completion, name) == ("Snow?", "Sledge.", "prompt-completion")
    (shown,), _, name = read_demonstrations(source, columns="messages=chat")
    assert (shown.prompt, shown.completion, name) == ([user("Hi?")], "Ho.", "messages")
    (shown,), _, name = read_demonstrations(source, columns="instruction=q,output=b")
    assert (shown.completion, name) == ("Sleep.", "alpaca")
    assert read_demonstrations(source, columns="text=note")[0][0].completion == "x"
    assert read_prompts(source, columns="prompt=q")[0][0].prompt == "Snow?"
    found, _, _ = open_answers(source, columns="prompt=q,response_a=a,response_b=b")
    assert [[answer.text for answer in answers] for _, answers, _ in found] == [["Sledge.", "Sleep."]]


def test_labels_and_margins(file):
    rows = [{"q": "Snow?", "a": "Sledge.", "ok": True}, {"q": "Snow?", "a": "Sleep.", "ok": False}]
    assert said(read_pairs(file(rows), columns="prompt=q,completion=a,label=ok")[0]) == [("Snow?", "Sledge.", "Sleep.")]
    rows = [{"q": "Snow?", "x": "Sledge.", "y": "Sleep.", "gap": 2, "who": "ann", "about": "tone"}]
    spec = "prompt=q,chosen=x,rejected=y,margin=gap,rater=who,dimension=about,model_a=who"
    (judgment,) = read_judgments(file(rows), columns=spec)[0]
    assert (judgment.verdict.strength, judgment.rater, judgment.dimension) == (2, "ann", "tone")


def test_what_stands_inside_json_in_a_cell(tmp_path):
    source = tmp_path / "own.csv"
    source.write_text('meta,a,b\n"{""question"": ""Snow?"", ""id"": 7}",Sledge.,Sleep.\n')
    (judgment,), _, _ = read_judgments(str(source), columns="prompt=meta.question,chosen=a,rejected=b")
    assert (judgment.prompt, judgment.extra) == ("Snow?", {"meta": {"id": 7}})


def test_messages_that_stand_inside_are_messages(file):
    rows = [{"meta": {"ask": json.dumps([user("Snow?")])}, "a": [says("Sledge.")], "b": [says("Sleep.")]}]
    (pair,), _, _ = read_pairs(file(rows), columns="prompt=meta.ask,chosen=a,rejected=b")
    assert (pair.prompt, pair.chosen) == ([user("Snow?")], "Sledge.")


def test_a_column_s_full_name_counts_before_its_dots(file):
    rows = [{"a.b": "Snow?", "a": {"b": "wrong"}, "x": "Sledge.", "y": "Sleep."}]
    assert said(read_pairs(file(rows), columns="prompt=a.b,chosen=x,rejected=y")[0]) == [("Snow?", "Sledge.", "Sleep.")]


def test_a_column_of_the_file_that_gives_way_is_named(file):
    rows = [{"prompt": "template 3", "q": "Snow?", "chosen": "Sledge.", "rejected": "Sleep."}]
    (pair,), counts, _ = read_pairs(file(rows), columns="prompt=q")
    assert (pair.prompt, counts.notes) == ("Snow?", {"the file's own column prompt gives way to --columns": (1, [1])})


def test_a_comma_in_a_name(file):
    rows = [{"Ask, please": "Snow?", "chosen": "Sledge.", "rejected": "Sleep."}]
    assert read_pairs(file(rows), columns="prompt=Ask, please,chosen=chosen")[0][0].prompt == "Snow?"


# --- verdicts


def votes(*values: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"q": f"{i}?", "one": "Sledge.", "two": "Sleep.", "said": value, **more} for i, value in enumerate(values)]


SPEC = "prompt=q,response_a=one,response_b=two,preference=said"


@pytest.mark.parametrize(
    ("outcome", "values"),
    [
        (
            "first",
            ["A>B", "a >> b", "B<A", "a", "A", "left", "Left ", "first", "model_a", "response_1", "one", "[[A]]"],
        ),
        ("second", ["A<B", "b>a", "B >> A", "b", "right", "SECOND", "model_b", "output_2", "two"]),
        ("tie", ["A=B", "b = a", "tie", "Tie", "equal", "both_good"]),
        ("both_bad", ["tie (bothbad)", "both_bad", "neither", "Both Bad"]),
    ],
)
def test_words_of_a_verdict(file, outcome, values):
    judged, counts, _ = read_judgments(file(votes(*values)), columns=SPEC)
    assert [j.verdict.outcome for j in judged] == [outcome] * len(values)
    assert counts.notes == {}


def test_an_answer_s_writer_or_text_names_it(file):
    rows = votes("bear", "cub", "Sleep.", model_a="bear", model_b="cub")
    assert [j.verdict.outcome for j in read_judgments(file(rows), columns=SPEC)[0]] == ["first", "second", "second"]


@pytest.mark.parametrize(
    ("values", "outcomes", "note"),
    [
        ([0, 1, 1], ["first", "second", "second"], "preference read as 0 = the first answer, 1 = the second"),
        (["0", "0"], ["first", "first"], "preference read as 0 = the first answer, 1 = the second"),
        ([1, 2, 1.0], ["first", "second", "first"], "preference read as 1 = the first answer, 2 = the second"),
        (["2.0", "2"], ["second", "second"], "preference read as 1 = the first answer, 2 = the second"),
    ],
)
def test_numbers_mean_what_the_column_shows(file, values, outcomes, note):
    judged, counts, _ = read_judgments(file(votes(*values)), columns=SPEC)
    assert [j.verdict.outcome for j in judged] == outcomes
    assert counts.notes == {note: (len(values), [*range(1, len(values) + 1)])}


@pytest.mark.parametrize("values", [[1, 1], [0, 1, 2], [-1, 1], [0.3, 0.7], ["1"]])
def test_numbers_that_tell_nothing_are_refused_with_the_remedy(file, values):
    line = refusal(lambda: read_judgments(file(votes(*values)), columns=SPEC))
    assert "which answer that means cannot be told" in line
    assert "--columns preference=COLUMN:1=a:2=b:0=tie" in line


def test_meanings_that_are_stated(file):
    rows = votes(-1, 0, 1, "x", True)
    judged, counts, _ = read_judgments(file(rows), columns=f"{SPEC}:-1=b:0=tie:1=a:x=both_bad:true=a")
    assert [j.verdict.outcome for j in judged] == ["second", "tie", "first", "both_bad", "first"]
    assert counts.notes == {}
    judged, _, _ = read_judgments(file(votes(1, 1)), columns=f"{SPEC}:1=b:0=a")
    assert [j.verdict for j in judged] == [Preference("second")] * 2


def test_what_is_no_verdict_is_dropped_by_its_value(file):
    rows = votes("A>B", "perhaps", None, "", ["a"], "B>A", *(f"word {i}" for i in range(9)))
    _, counts, _ = read_judgments(file(rows), columns=SPEC)
    assert counts.used == 2
    assert counts.dropped["preference perhaps says of neither answer that it is better"] == (1, [2])
    assert counts.dropped["no preference"] == (2, [3, 4])
    assert counts.dropped["another preference says of neither answer that it is better"][0] == 6
    assert len(counts.dropped) == 7


def test_a_number_of_another_code_beyond_the_head_is_dropped(file):
    _, counts, _ = read_judgments(file(votes(*[0, 1] * 60, 2)), columns=SPEC)
    assert counts.dropped == {"preference 2 says of neither answer that it is better": (1, [121])}


# --- what is refused


def test_unknown_and_missing_names(file):
    source = file(votes("a"))
    line = refusal(lambda: read_pairs(source, columns="promt=q"))
    assert "promt is not a name that Keel knows (perhaps prompt); there are prompt, system," in line
    assert all(name in line for name in columns.NAMES)
    line = refusal(lambda: read_pairs(source, columns="prompt=q,chosen=best,rejected=q.x"))
    assert line == f"{source}: no columns 'best' or 'q.x', which --columns names; found: q, one, two, said"
    for spec, words in (
        ("prompt", "write NAME=COLUMN"),
        ("prompt=", "write NAME=COLUMN"),
        ("prompt=q,prompt=one", "names prompt twice"),
        ("preference=said:1=left", "one of a, b, tie, both_bad"),
    ):
        assert words in refusal(lambda spec=spec: read_pairs(source, columns=spec))


@pytest.mark.parametrize("read", [read_pairs, read_judgments, read_prompts, kind_of, open_answers])
def test_a_store_has_columns_of_its_own(tmp_path, read):
    assert "leave out --columns" in refusal(lambda: read(f"store:{tmp_path}/s.db", columns="prompt=q"))


def test_every_name_on_the_left_is_read_somewhere(file):
    """A name that no format asks for would do nothing."""
    seen: set[str] = set()

    class Row(dict):
        def get(self, key, default=None):
            seen.add(key)
            return super().get(key, default)

    from keel.formats.answers import UNJUDGED
    from keel.formats.demonstrations import DEMONSTRATED
    from keel.formats.judgments import JUDGED
    from keel.formats.judgments.generic import TRL_NAMES
    from keel.formats.judgments.keel_columns import ANSWER, JUDGMENT
    from keel.formats.prompts import PROMPTED

    for table in (JUDGED, DEMONSTRATED, PROMPTED, UNJUDGED):
        for it in table:
            seen |= {*it.needs, *getattr(it, "may", ())}
    seen |= {*JUDGMENT, *TRL_NAMES, "margin", "models", *(["model"] if "model" in ANSWER else [])}
    seen |= {"system", "history", "tools"}
    assert set(columns.NAMES) <= seen


# --- what to try


@pytest.mark.parametrize(
    ("read", "rows", "spec"),
    [
        (read_pairs, [{"question": "q", "better": "x", "worse": "y", "id": 1}],
         "prompt=question,chosen=better,rejected=worse"),
        (read_judgments, ARENA, "response_a=conversation_a,response_b=conversation_b,preference=winner"),
        (read_pairs, WEBGPT, LAYOUTS[3][1]),
        (read_pairs, NECTAR, "responses=answers.answer,ranks=answers.rank"),
        (read_pairs, [{"query": "Why so?", "chosen": "a", "rejected": "b"}] * 3, "prompt=query"),
        (read_pairs, [{"instruction": "i", "ans1": "x", "ans2": "y", "verdict": v} for v in ("A", "B")],
         "prompt=instruction,response_a=ans1,response_b=ans2,preference=verdict"),
        (read_pairs, [{"Question": "i", "generations": ["x", "y"], "ratings": [1, 2]}],
         "prompt=Question,responses=generations,scores=ratings"),
        (read_judgments, [{"question": "i", "reply": "x", "rating": 2}], "prompt=question,response=reply,score=rating"),
        (read_demonstrations, [{"question": "i", "answer": "x"}], "prompt=question,completion=answer"),
        (read_demonstrations, [{"chat": talk("a", "b")}], "messages=chat"),
        (read_prompts, [{"query": "Why snow?", "n": 1}], "prompt=query"),
        (open_answers, [{"question": "q", "reply_a": "x", "reply_b": "y"}],
         "prompt=question,response_a=reply_a,response_b=reply_b"),
    ],
)  # fmt: skip
def test_a_refusal_proposes_what_then_works(file, read, rows, spec):
    source = file(rows)
    line = refusal(lambda: read(source))
    assert line.endswith(f": try --columns {spec}")
    assert " looks like a prompt" in line or "conversation_a" in line or "chat looks like chats" in line
    read(source, columns=spec)


@pytest.mark.parametrize(
    ("read", "row", "why"),
    [
        (read_demonstrations, {"instruction": "i", "output": "x", "history": [["a", "b"]]}, "history has no place"),
        (read_prompts, {"instruction": "i", "history": [["a", "b"]], "query": "Why?"}, "history has no place"),
        (read_demonstrations, {"prompt": "p", "completion": 3, "question": "q", "answer": "x"}, "completion is not"),
        (read_pairs, {"chosen": "a", "rejected": ["b"], "question": "q"}, "rejected "),
    ],
)
def test_nothing_is_proposed_that_would_read_past_what_is_wrong(file, read, row, why):
    line = refusal(lambda: read(file([row, row])))
    assert why in line
    assert "--columns" not in line
    assert line.endswith("mend them")


def test_a_broken_row_takes_no_proposal_away(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text('{"query": "Why so?", "chosen": "a", "rejected": "b"}\n{"query": \n')
    assert refusal(lambda: read_pairs(str(source))).endswith("try --columns prompt=query")


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": 1, "x": "a", "y": "b"}],
        [{"task": "Coding", "left": "a b", "right": "b c", "id": "x"}] * 4,  # one word in every row asks nothing
        [{"question": 3, "answer": "x"}],
        [{"question": "q", "response1": "x", "response2": "y", "preference_of_all": -3}],
    ],
)
def test_where_nothing_is_likely_nothing_is_proposed(file, rows):
    assert "--columns" not in refusal(lambda: read_pairs(file(rows)))


def test_what_looks_is_told_of_any_rows():
    for noun in ("preference pairs", "judgments", "answers", "demonstrations", "prompts"):
        for rows in ([], [{}], [{"": None}], [{"question": None, "a": [], "b": {}}], [{"answers": [{}, {}], "q": [1]}]):
            assert looks.suggestion(noun, rows) == ""
