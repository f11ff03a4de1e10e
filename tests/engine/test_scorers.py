"""What scores a completion: rules as Python and YAML, and the refusals of both."""

from __future__ import annotations

import pytest
import torch

from keel.config import Machine
from keel.engine.scorers import load_scorer
from keel.errors import InputError
from keel.records import Bundle, Completion
from keel.text.tokenisation import prompt_text

CPU = Machine(device="cpu", precision="fp32")


def bundles(*texts, prompt="p"):
    return [Bundle([0], [Completion([1], text=t) for t in texts], prompt=prompt)]


def yaml_rule(tmp_path, content):
    file = tmp_path / "rule.yaml"
    file.write_text(content)
    return load_scorer(f"rule:{file}", CPU)


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        ("{contains: [bear, teddy], weight: 2.0}", {"A Teddy!": 2, "a bear": 2, "bears": 0, "forbear": 0, "": 0}),
        ("{contains: bear}", {"a bear": 1, "none": 0, "bear bear": 1}),
        ('{contains: "c++", weight: 1}', {"in c++.": 1, "in c": 0}),
        ('{matches: "(?i)thank you", weight: 0.5}', {"Thank You so": 0.5, "thanks": 0}),
        ("{words: [2, 3], weight: -1}", {"one": 0, "one two": -1, "one two three": -1, "a b c d": 0, "": 0}),
    ],
)
def test_yaml_features(tmp_path, feature, expected):
    scorer = yaml_rule(tmp_path, f"rules:\n  - {feature}\n")
    assert scorer.score(bundles(*expected)).tolist() == pytest.approx(list(expected.values()))


def test_yaml_features_add_up_in_bundle_order(tmp_path):
    scorer = yaml_rule(tmp_path, "rules:\n  - {contains: a, weight: 1}\n  - {words: [2, 9], weight: 0.25}\n")
    both = [*bundles("a", "a b"), *bundles("c", "c d", "x a")]
    scores = scorer.score(both)
    assert scores.tolist() == [1, 1.25, 0, 0.25, 1.25]
    assert scores.dtype == torch.float32
    assert scorer.identity.startswith("rule:")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "rules: []",
        "[]",
        "rules:\n  - {weight: 1}",
        "rules:\n  - {contains: a, words: [1, 2]}",
        "rules:\n  - {contains: a, weight: heavy}",
        "rules:\n  - {sings: a}",
        "rules:\n  - {matches: '('}",
        "rules:\n  - {words: 3}",
        "rules:\n  - {words: [1]}",
        "rules:\n  - {words: [a, b]}",
        "rules:\n  - {contains: }",
        "rules:\n  - {contains: []}",
        "rules:\n  - {contains: a, weight: .nan}",
        "rules:\n  - {words: [5, 2]}",
        "rules: {",
    ],
)
def test_a_rule_file_that_says_nothing_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"rule\.yaml"):
        yaml_rule(tmp_path, content)


def test_a_missing_rule_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent\.yaml"):
        load_scorer(f"rule:{tmp_path / 'absent.yaml'}", CPU)


def test_python_rules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rule_mine.py").write_text(
        "WORD = 'no'\n"
        "def length(prompt, completion):\n    return len(completion) - len(prompt)\n"
        "def text(prompt, completion):\n    return 'high'\n"
        "def nothing(prompt, completion):\n    return None\n"
        "def broken(prompt, completion):\n    return {}['key']\n"
        "def nan(prompt, completion):\n    return float('nan')\n"
    )
    assert load_scorer("rule:rule_mine:length", CPU).score(bundles("abc", "a", prompt="xx")).tolist() == [1, -1]
    chat = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
    assert prompt_text(chat) == "ab\nc"
    assert load_scorer("rule:rule_mine:length", CPU).score(bundles("abcde", prompt=chat)).tolist() == [1]
    for spec in ("rule_mine", "rule_mine:absent", "rule_absent:x", "rule_mine:WORD"):
        with pytest.raises(InputError, match=f"rule:{spec}"):
            load_scorer(f"rule:{spec}", CPU)
    with pytest.raises(InputError, match="finite"):
        load_scorer("rule:rule_mine:nan", CPU).score(bundles("a"))


@pytest.mark.parametrize("body", ["return {}['key']", "return None", "return 'high'"])
def test_a_rule_that_fails_is_named(tmp_path, monkeypatch, body, request):
    """No traceback of a stranger's KeyError without the rule's name."""
    monkeypatch.chdir(tmp_path)
    name = f"rule_fails_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def score(prompt, completion):\n    {body}\n")
    with pytest.raises(InputError, match=name):
        load_scorer(f"rule:{name}:score", CPU).score(bundles("a"))


def test_a_rule_s_identity_follows_its_file(tmp_path, monkeypatch):
    """The manifest tells a rule from another of the same name."""
    identities = {yaml_rule(tmp_path, f"rules:\n  - {{contains: {word}}}\n").identity for word in "abb"}
    assert len(identities) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rule_named.py").write_text("def score(prompt, completion):\n    return 1\n")
    identity = load_scorer("rule:rule_named:score", CPU).identity
    assert identity.startswith("rule:rule_named:score ")
    assert load_scorer("rule:builtins:max", CPU).identity == "rule:builtins:max"


def test_a_reward_folder_that_is_a_language_model_is_refused(base):
    with pytest.raises(InputError, match="keel reward"):
        load_scorer(str(base), CPU)


@pytest.mark.parametrize("micro_tokens", [1, 60, 4096])
def test_scores_come_back_in_order_however_passes_are_cut(reward_folder, micro_tokens):
    """Eleven answers of mixed lengths to one prompt, none to another: each as the classifier scores it alone."""
    from transformers import AutoModelForSequenceClassification

    theirs = AutoModelForSequenceClassification.from_pretrained(reward_folder, dtype=torch.float32).eval()
    scorer = load_scorer(str(reward_folder), Machine(device="cpu", precision="fp32", micro_tokens=micro_tokens))
    lengths = [5, 1, 9, 3, 3, 12, 2, 7, 4, 1, 6]
    bundles = [
        Bundle([7, 8, 9], [Completion([10 + i] * n) for i, n in enumerate(lengths)]),
        Bundle([5], []),
        Bundle([4, 30, 31, 32], [Completion([40, 41]), Completion([42])]),
    ]
    with torch.no_grad():
        expected = [
            float(theirs(input_ids=torch.tensor([b.prompt_ids + c.ids])).logits) for b in bundles for c in b.completions
        ]
    assert scorer.score(bundles).tolist() == pytest.approx(expected, abs=1e-4)
