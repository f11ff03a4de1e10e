"""One hand-written file for each format of judgments, from the fields its authors publish, and what it says.

`EXAMPLES[name] = (rows, judgments)`: the judgments are written out by hand, without their origin.
"""

from __future__ import annotations

import json
from typing import Any

from keel.records import Answer, Judgment, Preference, Ranking, Score


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


WEATHER = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
"""What may be called."""


def calls(name: str, **arguments: str) -> dict[str, Any]:
    """An assistant's turn that calls a tool and says nothing."""
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


FIRST, SECOND, TIE = Preference("first"), Preference("second"), Preference("tie")


def vote(prompt: Any, first: str, second: str, verdict: Any = FIRST, **more: Any) -> Judgment:
    return Judgment(prompt, (Answer(first), Answer(second)), verdict, **more)


def graded(text: str, value: float, name: str, **more: Any) -> Judgment:
    return Judgment([user("Sun?")], (Answer(text),), Score(value), dimension=name, **more)


HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: sun?\n\nAssistant:"
TREE = {
    "message_tree_id": "t1",
    "tree_state": "ready_for_export",
    "prompt": {
        "text": "Sun?",
        "role": "prompter",
        "replies": [
            {
                "text": "Sleep.",
                "role": "assistant",
                "rank": 1,
                "replies": [],
            },
            {
                "text": "Picnic!",
                "role": "assistant",
                "rank": 0,
                "model_name": "bear",
                "replies": [
                    {
                        "text": "And if it rains?",
                        "role": "prompter",
                        "replies": [
                            {"text": "Read.", "role": "assistant", "rank": 0, "replies": []},
                            {"text": "No.", "role": "assistant", "rank": 2, "replies": []},
                            {"text": "Nap.", "role": "assistant", "rank": 1, "replies": []},
                        ],
                    },
                ],
            },
        ],
    },
}
TREE_EXTRA = {"message_tree_id": "t1", "tree_state": "ready_for_export"}
POST = "SUBREDDIT: r/bears\n\nTITLE: Honey\n\nPOST: I ate it all.\nTwice.\n\nTL;DR:"
INFO = {"id": "x1", "subreddit": "bears", "title": "Honey", "post": "I ate it all.\nTwice."}
FIVE = {"helpfulness": 4, "correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 2}
STYLES = "{}.", "It is {}.", "It is **{}**."
REASONED = {"score": -2, "reasoning": "Kind.", "feedback1": "Good.", "feedback2": "Dull."}

EXAMPLES: dict[str, tuple[list[dict[str, Any]], list[Judgment]]] = {
    "hh": (
        [{"chosen": HH + " Picnic.", "rejected": HH + " Sleep."}],
        [vote(HH, " Picnic.", " Sleep.")],
    ),
    "trl": (
        [
            {"prompt": "Sun?", "chosen": " Picnic.", "rejected": " Sleep."},
            {
                "prompt": [system("Bear."), user("Sun?")],
                "chosen": [says("Picnic.")],
                "rejected": [says("Sleep.")],
                "margin": 2.0,
                "rater": "gpt",
                "feedback": "ai",
                "dimension": "safety",
                "source": {"page": 3},
            },
        ],
        [
            vote("Sun?", " Picnic.", " Sleep."),
            vote(
                [system("Bear."), user("Sun?")],
                "Picnic.",
                "Sleep.",
                Preference("first", 2.0),
                rater="gpt",
                kind="judge",
                dimension="safety",
                extra={"source": {"page": 3}},
            ),
        ],
    ),
    "kto": (
        [
            {"prompt": "Sun?", "completion": " Picnic.", "label": True},
            {"prompt": "Sun?", "completion": " Sleep.", "label": False},
            {"prompt": [user("Rain?")], "completion": [says("Read.")], "label": True, "rater": "ann", "id": 7},
        ],
        [
            Judgment("Sun?", (Answer(" Picnic."),), Score(1)),
            Judgment("Sun?", (Answer(" Sleep."),), Score(0)),
            Judgment([user("Rain?")], (Answer("Read."),), Score(1), rater="ann", extra={"id": 7}),
        ],
    ),
    "ultrafeedback": (
        [
            {
                "source": "evol",
                "instruction": "Sun?",
                "completions": [
                    {
                        "model": "bear-7b",
                        "response": "Picnic.",
                        "principle": "helpfulness",
                        "annotations": {
                            "helpfulness": {"Rating": "5", "Rationale": "Kind.", "Type": ["1"]},
                            "honesty": {"Rating": "4", "Rationale": ""},
                        },
                    },
                    {
                        "model": "cub-1b",
                        "response": "Sleep.",
                        "annotations": {"helpfulness": {"Rating": "2", "Rationale": "Dull."}},
                    },
                ],
            }
        ],
        [
            Judgment(
                [user("Sun?")],
                (Answer("Picnic.", model="bear-7b"),),
                Score(5),
                kind="judge",
                dimension="helpfulness",
                comment="Kind.",
                extra={
                    "source": "evol",
                    "completion": {"principle": "helpfulness"},
                    "annotation": {"Type": ["1"]},
                },
            ),
            Judgment(
                [user("Sun?")],
                (Answer("Picnic.", model="bear-7b"),),
                Score(4),
                kind="judge",
                dimension="honesty",
                extra={"source": "evol", "completion": {"principle": "helpfulness"}},
            ),
            Judgment(
                [user("Sun?")],
                (Answer("Sleep.", model="cub-1b"),),
                Score(2),
                kind="judge",
                dimension="helpfulness",
                comment="Dull.",
                extra={"source": "evol"},
            ),
        ],
    ),
    "helpsteer2": (
        [
            {"prompt": "Sun?", "response": "Picnic."} | FIVE,
            {"prompt": "Sun?", "response": "Sleep."} | dict.fromkeys(FIVE, 1),
        ],
        [graded("Picnic.", value, name, kind="person") for name, value in FIVE.items()]
        + [graded("Sleep.", 1, name, kind="person") for name in FIVE],
    ),
    "helpsteer2-pairs": (
        [
            {
                "prompt": "Sun?",
                "response_1": "Picnic.",
                "response_2": "Sleep.",
                "preference_strength": -3,
                "split": "t",
            },
            {"prompt": "Sun?", "response_1": "Nap.", "response_2": "Picnic.", "preference_strength": 2},
            {"prompt": "Sun?", "response_1": "Nap.", "response_2": "Sleep.", "preference_strength": 0},
        ],
        [
            vote([user("Sun?")], "Picnic.", "Sleep.", Preference("first", 3), kind="person", extra={"split": "t"}),
            vote([user("Sun?")], "Nap.", "Picnic.", Preference("second", 2), kind="person"),
            vote([user("Sun?")], "Nap.", "Sleep.", TIE, kind="person"),
        ],
    ),
    "shp": (
        [
            {"history": "Sun?", "human_ref_A": "Picnic.", "human_ref_B": "Sleep.", "labels": 1, "score_A": 9},
            {"history": "Sun?", "human_ref_A": "Nap.", "human_ref_B": "Picnic.", "labels": 0},
        ],
        [
            vote([user("Sun?")], "Picnic.", "Sleep.", FIRST, kind="person", extra={"score_A": 9}),
            vote([user("Sun?")], "Nap.", "Picnic.", SECOND, kind="person"),
        ],
    ),
    "openai-summaries": (
        [
            {
                "info": INFO,
                "summaries": [{"text": " Ate.", "policy": "sup1", "note": "short"}, {"text": " Ate honey."}],
                "choice": 1,
                "worker": "w7",
                "batch": "b3",
            }
        ],
        [
            Judgment(
                POST,
                (Answer(" Ate.", model="sup1"), Answer(" Ate honey.")),
                SECOND,
                rater="w7",
                kind="person",
                extra={"batch": "b3", "info": INFO, "summaries": [{"note": "short"}, {}]},
            )
        ],
    ),
    "openai-preferences": (
        [
            {
                "input": {"messages": [system("Bear."), user("Sun?")], "parallel_tool_calls": True},
                "preferred_output": [says("Picnic.")],
                "non_preferred_output": [says("Sleep.")],
            }
        ],
        [
            vote(
                [system("Bear."), user("Sun?")],
                "Picnic.",
                "Sleep.",
                extra={"input": {"parallel_tool_calls": True}},
            )
        ],
    ),
    "oasst": (
        [TREE],
        [
            Judgment(
                [user("Sun?")],
                (Answer("Sleep."), Answer("Picnic!", model="bear")),
                Ranking((2, 1)),
                kind="person",
                extra=TREE_EXTRA,
            ),
            Judgment(
                [user("Sun?"), says("Picnic!"), user("And if it rains?")],
                (Answer("Read."), Answer("No."), Answer("Nap.")),
                Ranking((1, 3, 2)),
                kind="person",
                extra=TREE_EXTRA,
            ),
        ],
    ),
    "pandalm": (
        [
            {
                "idx": 4,
                "instruction": "Sort.",
                "input": "2 1",
                "response1": "1 2",
                "response2": "2 1",
                "annotator1": 1,
                "annotator2": 0,
                "annotator3": 2,
            }
        ],
        [
            vote([user("Sort.\n2 1")], "1 2", "2 1", verdict, rater=name, kind="person", extra={"idx": 4})
            for name, verdict in (("annotator1", FIRST), ("annotator2", TIE), ("annotator3", SECOND))
        ],
    ),
    "alpacaeval": (
        [
            {
                "instruction": "Sun?",
                "output_1": "Picnic.",
                "output_2": "Sleep.",
                "generator_1": "bear",
                "generator_2": "cub",
                "annotator": "gpt4",
                "preference": preference,
                "dataset": "koala",
            }
            for preference in (1, 1.9, 1.5, 0)
        ],
        [
            Judgment(
                [user("Sun?")],
                (Answer("Picnic.", model="bear"), Answer("Sleep.", model="cub")),
                verdict,
                rater="gpt4",
                kind="judge",
                raw=raw,
                extra={"dataset": "koala"},
            )
            for verdict, raw in ((FIRST, "1"), (SECOND, "1.9"), (TIE, "1.5"), (TIE, "0"))
        ],
    ),
    "argilla": (
        [
            {
                "id": "r1",
                "prompt": "Sun?",
                "response-1": "Picnic.",
                "response-2": "Sleep.",
                "preference.responses": ["response-2", "tie", "response-1"],
                "preference.responses.users": ["ann", "bo", "cy"],
                "preference.responses.status": ["submitted", "submitted", "discarded"],
                "order.responses": [[{"rank": 2, "value": "response-2"}, {"rank": 1, "value": "response-1"}]],
                "order.responses.users": ["ann"],
                "order.responses.status": ["submitted"],
                "why.responses": ["Longer."],
                "why.responses.users": ["bo"],
                "why.responses.status": ["submitted"],
            },
            {
                "id": "r2",
                "prompt": "Sun?",
                "response": "Picnic.",
                "helpfulness.responses": [4, 2],
                "helpfulness.responses.users": ["ann", "bo"],
                "helpfulness.responses.status": ["submitted", "draft"],
            },
        ],
        [
            vote([user("Sun?")], "Picnic.", "Sleep.", SECOND, rater="ann", kind="person", extra={"id": "r1"}),
            vote(
                [user("Sun?")],
                "Picnic.",
                "Sleep.",
                TIE,
                rater="bo",
                kind="person",
                comment="Longer.",
                extra={"id": "r1"},
            ),
            vote(
                [user("Sun?")],
                "Picnic.",
                "Sleep.",
                Ranking((1, 2)),
                rater="ann",
                kind="person",
                dimension="order",
                extra={"id": "r1"},
            ),
            graded("Picnic.", 4, "helpfulness", rater="ann", kind="person", extra={"id": "r2"}),
        ],
    ),
    "llama-factory": (
        [
            {"instruction": "Sort.", "input": "2 1", "chosen": "1 2", "rejected": "2 1", "lang": "en"},
            {
                "instruction": "And rain?",
                "input": "",
                "system": "Bear.",
                "history": [["Sun?", "Picnic."]],
                "chosen": "Read.",
                "rejected": "No.",
            },
        ],
        [
            vote([user("Sort.\n2 1")], "1 2", "2 1", extra={"lang": "en"}),
            vote([system("Bear."), user("Sun?"), says("Picnic."), user("And rain?")], "Read.", "No."),
        ],
    ),
    "llama-factory-sharegpt": (
        [
            {
                "conversations": [
                    {"from": "human", "value": "Sun?"},
                    {"from": "gpt", "value": "Picnic."},
                    {"from": "human", "value": "And rain?"},
                ],
                "chosen": {"from": "gpt", "value": "Read."},
                "rejected": {"from": "gpt", "value": "No."},
            }
        ],
        [vote([user("Sun?"), says("Picnic."), user("And rain?")], "Read.", "No.")],
    ),
    "rewardbench": (
        [
            {
                "prompt": "Sun?",
                "chosen": "Picnic.",
                "chosen_model": "bear",
                "rejected": "Sleep.",
                "rejected_model": "cub",
                "subset": "alpacaeval-easy",
                "id": 31,
            }
        ],
        [
            Judgment(
                [user("Sun?")],
                (Answer("Picnic.", model="bear"), Answer("Sleep.", model="cub")),
                FIRST,
                extra={"subset": "alpacaeval-easy", "id": 31},
            )
        ],
    ),
    "rewardbench-2": (
        [
            {
                "id": "5",
                "prompt": "Name a bear.",
                "chosen": ["Teddy.", "Bruno."],
                "rejected": ["Tom.", "Rex."],
                "num_correct": 2,
                "num_incorrect": 2,
                "total_completions": 4,
                "models": ["a", "b", "c", "d"],
                "subset": "Ties",
            }
        ],
        [
            Judgment(
                [user("Name a bear.")],
                (
                    Answer("Teddy.", model="a"),
                    Answer("Bruno.", model="b"),
                    Answer("Tom.", model="c"),
                    Answer("Rex.", model="d"),
                ),
                Ranking((1, 1, 2, 2)),
                extra={"id": "5", "subset": "Ties"},
            )
        ],
    ),
    "kto-messages": (
        [
            {"messages": [user("Sun?"), says("Picnic.")], "label": True},
            {"messages": [user("Sun?"), says("Sleep.")], "label": False, "id": 3},
            {
                "messages": [user("Warm?"), calls("weather", town="Oslo")],
                "tools": json.dumps(WEATHER),
                "label": True,
            },
        ],
        [
            Judgment([user("Sun?")], (Answer("Picnic."),), Score(1)),
            Judgment([user("Sun?")], (Answer("Sleep."),), Score(0), extra={"id": 3}),
            Judgment(
                [user("Warm?") | {"tools": WEATHER}],
                (Answer("", fields={"tool_calls": calls("weather", town="Oslo")["tool_calls"]}),),
                Score(1),
            ),
        ],
    ),
    "orca": (
        [
            {"system": "Bear.", "question": "Sun?", "chosen": "Picnic.", "rejected": "Sleep."},
            {"system": "", "question": "Sun?", "chosen": "Picnic.", "rejected": "Sleep.", "margin": 2},
        ],
        [
            vote([system("Bear."), user("Sun?")], "Picnic.", "Sleep."),
            vote([user("Sun?")], "Picnic.", "Sleep.", Preference("first", 2)),
        ],
    ),
    "ms-swift": (
        [
            {"messages": [system("Bear."), user("Sun?"), says("Picnic.")], "rejected_response": "Sleep.", "id": 4},
        ],
        [vote([system("Bear."), user("Sun?")], "Picnic.", "Sleep.", extra={"id": 4})],
    ),
    "ms-swift-messages": (
        [
            {
                "messages": [user("Sun?"), says("Picnic.")],
                "rejected_messages": [user("Sun?"), says("Sleep.") | {"reasoning_content": "It is late."}],
            },
        ],
        [
            Judgment(
                [user("Sun?")],
                (Answer("Picnic."), Answer("Sleep.", fields={"reasoning_content": "It is late."})),
                FIRST,
            )
        ],
    ),
    "axolotl": (
        [
            {
                "messages": [user("Sun?"), says("Maybe."), user("And now?")],
                "chosen": says("Picnic."),
                "rejected": says("Sleep."),
                "lang": "en",
            },
        ],
        [vote([user("Sun?"), says("Maybe."), user("And now?")], "Picnic.", "Sleep.", extra={"lang": "en"})],
    ),
    "lists": (
        [
            {"prompt": "Sun?", "chosen": " Picnic.", "rejected": [" Sleep.", " No."]},
            {"prompt": "Rain?", "chosen": [" Read."], "rejected": [" No."], "id": 9},
        ],
        [
            Judgment("Sun?", (Answer(" Picnic."), Answer(" Sleep."), Answer(" No.")), Ranking((1, 2, 2))),
            Judgment("Rain?", (Answer(" Read."), Answer(" No.")), Ranking((1, 2)), extra={"id": 9}),
        ],
    ),
    "rm-bench": (
        [
            {
                "id": "chat/1",
                "prompt": "Name a bear.",
                "chosen": ["Teddy.", "It is Teddy.", "It is **Teddy**."],
                "rejected": ["Tom.", "It is Tom.", "It is **Tom**."],
                "domain": "chat",
            },
        ],
        [
            Judgment(
                [user("Name a bear.")],
                tuple(Answer(style.format(name)) for name in ("Teddy", "Tom") for style in STYLES),
                Ranking((1, 1, 1, 2, 2, 2)),
                extra={"id": "chat/1", "domain": "chat"},
            )
        ],
    ),
    "helpsteer3": (
        [
            {
                "domain": "general",
                "language": "english",
                "context": [user("Sun?"), says("Yes."), user("What now?")],
                "response1": "Picnic.",
                "response2": "Sleep.",
                "overall_preference": -2,
                "individual_preference": [REASONED],
            },
            {"context": [user("Sun?")], "response1": "Nap.", "response2": "Sleep.", "overall_preference": 0},
        ],
        [
            vote(
                [user("Sun?"), says("Yes."), user("What now?")],
                "Picnic.",
                "Sleep.",
                Preference("first", 2),
                kind="person",
                extra={
                    "domain": "general",
                    "language": "english",
                    "individual_preference": [REASONED],
                },
            ),
            vote([user("Sun?")], "Nap.", "Sleep.", TIE, kind="person"),
        ],
    ),
    "llmbar": (
        [
            {"input": "Sun?", "output_1": "Picnic.", "output_2": "Sleep.", "label": 1},
            {"input": "Sun?", "output_1": "Nap.", "output_2": "Picnic.", "label": 2},
        ],
        [vote([user("Sun?")], "Picnic.", "Sleep."), vote([user("Sun?")], "Nap.", "Picnic.", SECOND)],
    ),
    "judgebench": (
        [
            {
                "pair_id": "81ec",
                "original_id": "10",
                "source": "mmlu",
                "question": "Sun?",
                "response_model": "bear",
                "response_A": "Picnic.",
                "response_B": "Sleep.",
                "label": label,
            }
            for label in ("A>B", "B>A")
        ],
        [
            Judgment(
                [user("Sun?")],
                (Answer("Picnic.", model="bear"), Answer("Sleep.", model="bear")),
                verdict,
                extra={"pair_id": "81ec", "original_id": "10", "source": "mmlu"},
            )
            for verdict in (FIRST, SECOND)
        ],
    ),
    "label-studio": (
        [
            {
                "id": 17,
                "data": {"prompt": "Sun?", "answer1": "Picnic.", "answer2": "Sleep.", "batch": "b1"},
                "annotations": [
                    {
                        "id": 40,
                        "completed_by": 2,
                        "was_cancelled": False,
                        "lead_time": 12.5,
                        "result": [
                            {
                                "id": "S",
                                "from_name": "comparison",
                                "to_name": "answer1,answer2",
                                "type": "pairwise",
                                "value": {"selected": "left"},
                            },
                            {
                                "id": "T",
                                "from_name": "why",
                                "to_name": "prompt",
                                "type": "textarea",
                                "value": {"text": ["Kinder."]},
                            },
                        ],
                    },
                    {
                        "completed_by": {"id": 3, "email": "ann@bears.org"},
                        "was_cancelled": False,
                        "lead_time": 3,
                        "result": [
                            {
                                "from_name": "safety",
                                "to_name": "answer1,answer2",
                                "type": "pairwise",
                                "value": {"selected": "equal"},
                            },
                        ],
                    },
                ],
            },
        ],
        [
            vote(
                [user("Sun?")],
                "Picnic.",
                "Sleep.",
                rater="2",
                kind="person",
                seconds=12.5,
                comment="Kinder.",
                extra={"id": 17, "data": {"batch": "b1"}, "annotation": {"id": 40}},
            ),
            vote(
                [user("Sun?")],
                "Picnic.",
                "Sleep.",
                TIE,
                rater="ann@bears.org",
                kind="person",
                dimension="safety",
                seconds=3,
                extra={"id": 17, "data": {"batch": "b1"}},
            ),
        ],
    ),
    "label-studio-min": (
        [
            {
                "prompt": "Sun?",
                "answer1": "Picnic.",
                "answer2": "Sleep.",
                "pairwise": "right",
                "id": 17,
                "annotator": 2,
                "annotation_id": 40,
                "created_at": "2026-01-01T00:00:00Z",
                "updated_at": "2026-01-01T00:00:00Z",
                "lead_time": 3.25,
            },
        ],
        [
            vote(
                [user("Sun?")],
                "Picnic.",
                "Sleep.",
                SECOND,
                rater="2",
                kind="person",
                seconds=3.25,
                extra={
                    "id": 17,
                    "annotation_id": 40,
                    "created_at": "2026-01-01T00:00:00Z",
                    "updated_at": "2026-01-01T00:00:00Z",
                },
            )
        ],
    ),
    "preference": (
        [
            {"prompt": "Sun?", "response_a": " Picnic.", "response_b": " Sleep.", "preference": "A>B", "rater": "ann"},
            {
                "prompt": [user("Sun?")],
                "response_a": [says("Sleep.")],
                "response_b": [says("Picnic.")],
                "preference": "right",
                "model_a": "cub",
                "model_b": "bear",
                "margin": 2,
                "turn": 1,
            },
            {"prompt": "Sun?", "response_a": " Picnic.", "response_b": " Nap.", "preference": "tie (bothbad)"},
            {
                "response_a": [user("Sun?"), says("Picnic.")],
                "response_b": [user("Sun?"), says("Nap.")],
                "preference": "Tie",
            },
        ],
        [
            vote("Sun?", " Picnic.", " Sleep.", rater="ann"),
            Judgment(
                [user("Sun?")],
                (Answer("Sleep.", model="cub"), Answer("Picnic.", model="bear")),
                Preference("second", 2.0),
                extra={"turn": 1},
            ),
            vote("Sun?", " Picnic.", " Nap.", Preference("both_bad")),
            vote([user("Sun?")], "Picnic.", "Nap.", TIE),
        ],
    ),
    "two-scores": (
        [
            {"prompt": "Sun?", "response_a": "Picnic.", "response_b": "Sleep.", "score_a": 1, "score_b": -0.5, "id": 3},
        ],
        [
            Judgment("Sun?", (Answer("Picnic."),), Score(1), extra={"id": 3}),
            Judgment("Sun?", (Answer("Sleep."),), Score(-0.5), extra={"id": 3}),
        ],
    ),
    "ranks": (
        [
            {
                "prompt": "Sun?",
                "responses": ["Picnic.", "Sleep.", "Nap."],
                "ranks": [1.0, 3.0, 2.0],
                "models": ["bear", "", "cub"],
                "feedback": "ai",
            },
            {"prompt": [user("Rain?")], "responses": [[says("No.")], [says("Read.")]], "ranks": [1, 0]},
        ],
        [
            Judgment(
                "Sun?",
                (Answer("Picnic.", model="bear"), Answer("Sleep."), Answer("Nap.", model="cub")),
                Ranking((1, 3, 2)),
                kind="judge",
            ),
            Judgment([user("Rain?")], (Answer("No."), Answer("Read.")), Ranking((2, 1))),
        ],
    ),
    "scores": (
        [{"prompt": "Sun?", "responses": ["Picnic.", "Sleep."], "scores": [4, 1.5], "rater": "ann", "id": 1}],
        [
            Judgment("Sun?", (Answer("Picnic."),), Score(4), rater="ann", extra={"id": 1}),
            Judgment("Sun?", (Answer("Sleep."),), Score(1.5), rater="ann", extra={"id": 1}),
        ],
    ),
    "score": (
        [
            {"prompt": "Sun?", "response": "Picnic.", "score": 0.75, "model": "bear"},
            {"prompt": "Sun?", "response": "Sleep.", "score": -2, "id": 1},
            {"prompt": "Rain?", "response": "Read.", "score": 3, "dimension": "tone"},
        ],
        [
            Judgment("Sun?", (Answer("Picnic.", model="bear"),), Score(0.75)),
            Judgment("Sun?", (Answer("Sleep."),), Score(-2), extra={"id": 1}),
            Judgment("Rain?", (Answer("Read."),), Score(3), dimension="tone"),
        ],
    ),
}
