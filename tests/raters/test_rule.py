"""Rules as a rater: verdicts, ties, dimensions, reasons, and tasks on which a rule fails."""

from __future__ import annotations

import random
import time

import pytest

from keel.raters import Missing, Rater, Task
from keel.raters.rule import RuleRater
from keel.records import Answer, Preference
from keel.text.rules import load_rules


@pytest.fixture
def rater(tmp_path):
    """`rater("{words: [1, 2]}", top="ties: 0.5")`: a rater by those rules."""

    def read(*entries, top=""):
        file = tmp_path / "rubric.yaml"
        file.write_text("\n".join([top, "rules:", *(f"  - {entry}" for entry in entries)]), encoding="utf-8")
        return RuleRater(load_rules(str(file)))

    return read


def judge(rater: Rater, first: str, second: str, prompt="p"):
    [(index, judgments)] = rater.rate([Task(prompt, Answer(first, model="m"), Answer(second))])
    assert index == 0
    return judgments


def outcome(rater, first, second):
    [judgment] = judge(rater, first, second)
    return judgment.verdict.outcome


def test_the_higher_score_is_better(rater):
    likes_bears = rater("{contains: bear}", "{words: [2, 9], weight: 0.5}")
    assert outcome(likes_bears, "a bear", "a cat") == "first"
    assert outcome(likes_bears, "long cat text", "bear") == "second"
    assert outcome(likes_bears, "a bear", "the bear") == "tie"
    assert outcome(rater("{contains: bear, weight: -1}"), "a bear", "a cat") == "second"


def test_a_judgment_says_who_why_and_of_what(rater):
    own = rater("{words: [3, 60], weight: 0.5, name: length}", "{contains: bear}", "{contains: cat}")
    [judgment] = judge(own, "a bear", "a cat is here", prompt=[{"role": "user", "content": "who?"}])
    assert judgment.verdict == Preference("second", strength=0)
    assert judgment.kind == "rule"
    assert judgment.rater == own.identity
    assert judgment.rubric == own.rules.version
    assert judgment.answers == (Answer("a bear", model="m"), Answer("a cat is here"))
    assert judgment.prompt == [{"role": "user", "content": "who?"}]
    assert judgment.comment == (
        'length: 2 words outside 3-60 against 4 words: -0.5; has "bear" against has none of bear: +1; '
        'has none of cat against has "cat": -1'
    )
    assert judge(own, "same", "same")[0].comment == "no rule tells them apart"


@pytest.mark.parametrize(
    ("ties", "first", "second", "expected"),
    [
        (0.5, "a b", "b", "tie"),  # 0.5 apart
        (0.4999, "a b", "b", "first"),
        (0.1, "x y", "y", "tie"),  # 0.4 - 0.3, which binary numbers put above 0.1
        (0, "p q", "r", "tie"),  # 0.1 + 0.2 against 0.3
        (0, "p q", "p", "first"),
    ],
)
def test_differences_up_to_ties_are_ties(rater, ties, first, second, expected):
    weights = {"a": 0.5, "x": 0.4, "p": 0.1, "q": 0.2, "r": 0.3}
    entries = [f'{{contains: "{word}", weight: {weight}}}' for word, weight in weights.items()]
    entries += ['{matches: "^y$", weight: 0.3}']
    own = rater(*entries, top=f"ties: {ties}")
    assert outcome(own, first, second) == expected
    mirrored = {"first": "second", "second": "first", "tie": "tie"}[expected]
    assert outcome(own, second, first) == mirrored


def test_each_dimension_is_judged_by_its_own_rules(rater):
    about = [f"{{contains: {word}, dimension: content}}" for word in ("bear", "cat")]
    own = rater(about[0], "{words: [2, 9], dimension: form}", about[1])
    found = {j.dimension: j for j in judge(own, "bear", "a dog")}
    assert list(found) == ["content", "form"]
    assert (found["content"].verdict.outcome, found["form"].verdict.outcome) == ("first", "second")
    assert "words" not in found["content"].comment


def test_a_task_on_which_a_function_fails_is_missing_and_the_others_are_not(rater, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rater_moody.py").write_text(
        "def score(prompt, completion):\n"
        "    if completion == 'raise':\n        raise ValueError('not that')\n"
        "    return float('nan') if completion == 'nan' else len(completion)\n"
    )
    own = rater("{python: 'rater_moody:score'}", "{contains: a, dimension: other}")
    tasks = [Task(prompt, Answer(a), Answer(b)) for prompt, a, b in
             [("p", "aa", "a"), ("p", "raise", "a"), ("p", "a", "nan"), ("p", "a", "aa")]]  # fmt: skip
    found = dict(own.rate(tasks))
    assert [isinstance(found[i], Missing) for i in range(4)] == [False, True, True, False]
    assert "rater_moody:score failed: ValueError: not that" in found[1].reason
    assert "nan" in found[2].reason
    assert [found[i][0].verdict.outcome for i in (0, 3)] == ["first", "second"]
    assert own.missing == 2
    assert own.note() == "2 missing"


def test_ten_thousand_tasks_take_seconds(rater):
    draw = random.Random(0)
    words = ["bear", "teddy", "in", "the", "rain", "refund", "thank", "you", "days", "14", "a", "is", "not", "here"]
    texts = [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(2_000)]
    own = rater(
        "{contains: [bear, cat]}", "{contains_all: [refund, 14 days]}", '{matches: "(?i)thank you"}',
        "{words: [20, 60]}", "{characters: [1, 400]}", "{script: Latin}", "{json: [a]}", "{repetition: 3}",
    )  # fmt: skip
    tasks = [Task("p", Answer(draw.choice(texts)), Answer(draw.choice(texts))) for _ in range(10_000)]
    started = time.process_time()
    found = list(own.rate(tasks))
    assert len(found) == 10_000
    assert time.process_time() - started < 6
