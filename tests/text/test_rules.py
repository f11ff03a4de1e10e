"""The rule language: what each kind measures, what a file may say, and what its identity follows."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keel.errors import InputError
from keel.text import rules
from keel.text.rules import KINDS, RuleFault, load_rules


@pytest.fixture
def rubric(tmp_path):
    """`rubric("{words: [1, 2]}", "{json: []}", top="ties: 0.5")`: those entries in a file, read."""

    def read(*entries, top="", name="rule.yaml"):
        file = tmp_path / name
        file.write_text("\n".join([top, "rules:", *(f"  - {entry}" for entry in entries)]), encoding="utf-8")
        return load_rules(str(file))

    return read


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{contains: 14 days}", {"within 14  days.": 1, "within 14\ndays": 1, "14 day": 0, "114 days": 0}),
        ("{contains: [Straße, 3]}", {"in der STRASSE": 0, "eine STRAßE": 1, "3 bears": 1, "33": 0}),
        ("{contains: as an AI, weight: -2}", {"As an AI, I": -2, "as an aim": 0}),
        ("{contains_all: [refund, 14 days]}", {"A refund in 14 days": 1, "a refund": 0, "14 days": 0, "": 0}),
        ("{characters: [2, 4]}", {"": 0, "ab": 1, "a b ": 1, "abcde": 0, "日本": 1}),
        ("{words: [0, 1]}", {"": 1, " \n": 1, "one": 1, "one two": 0}),
        ("{json: []}", {'{"a": 1}': 1, "[1, 2": 0, " 3 \n": 1, "NaN": 0, "": 0, "{'a': 1}": 0, "[" * 100_000: 0}),
        ("{json: [a, b]}", {'{"a": 1, "b": 2, "c": 3}': 1, '{"a": 1}': 0, '["a", "b"]': 0, '"a b"': 0}),
        (
            "{json: [a]}",
            {
                'Here:\n```json\n{"a": 1}\n```\nDone.': 1,
                '```\n{"a": "```"}\n```': 1,
                '```json\n{"b": 1}\n```': 0,
                'Here: {"a": 1}': 0,
                '```json\n{"a": 1}': 0,
            },
        ),
        ("{json: [a]}", {'{"a": ' + "1" * 5000 + "}": 1}),
        ("{repetition: 1}", {"a b A b": 0.5, "a b c d": 0, "": 0, "a": 0, "a a a a": 0.75}),
        ("{repetition: 2, weight: -1}", {"a b a b a": -0.5, "a b": 0, "a": 0, "x y z x y": -0.25}),
        ("{script: Latin}", {"mostly Latin, да": 1, "да, это не Latin": 0, "12!": 0, "": 0, "naïve Ærø: 3 × 4": 1}),
        ("{script: [Han, Hiragana, Katakana]}", {"これは日本語です": 1, "你好": 1, "한국어": 0}),
        ("{script: cyrillic}", {"привет": 1, "hello": 0}),
    ],
)
def test_what_each_kind_measures(rubric, entry, expected):
    own = rubric(entry)
    for text, value in expected.items():
        assert own.score("", text) == pytest.approx(value), text


LANGUAGES = {
    "en": ["What can I do for you today?", "The boat leaves at noon, so be there a little early."],
    "de": ["Das Schiff fährt um zwölf Uhr ab, also sei bitte etwas früher da.", "Ich weiß es leider auch nicht."],
    "fr": ["Le bateau part à midi, soyez là un peu plus tôt.", "Je ne sais pas ce que tu veux dire."],
    "es": ["El barco sale a mediodía, así que llega un poco antes.", "No sé qué quieres decir con eso."],
    "it": ["La barca parte a mezzogiorno, quindi arriva un po' prima.", "Non so che cosa vuoi dire con questo."],
    "pl": ["Statek odpływa w południe, więc przyjdź trochę wcześniej.", "Nie wiem, co masz na myśli."],
    "ru": ["Корабль отходит в полдень, приходите немного раньше.", "Я не знаю, что ты имеешь в виду."],
    "zh": ["船中午开，请早一点到。", "我不知道你是什么意思。"],
    "ja": ["船は正午に出ますので、少し早めに来てください。", "どういう意味か分かりません。"],
    "ar": ["تغادر السفينة عند الظهر، لذا تعال مبكرا قليلا.", "لا أعرف ماذا تقصد بذلك."],
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_are_told_apart(rubric, language):
    own = rubric(f"{{language: {language}}}")
    found = {text: code for code, texts in LANGUAGES.items() for text in texts if own.score("", text)}
    assert found == dict.fromkeys(LANGUAGES[language], language)


def test_of_a_list_of_languages_any_will_do_and_too_little_is_none(rubric):
    own = rubric("{language: [de, fr]}")
    assert [own.score("", LANGUAGES[code][0]) for code in ("de", "fr", "en")] == [1, 1, 0]
    everything = KINDS["language"][0](sorted(rules._guesser().labels))
    assert [everything("", text).value for text in ("", "12", "…", "   ", "Je ne sais pas.")] == [0, 0, 0, 0, 1]


@given(st.text(), st.integers(1, 4))
@example("a b a b", 2)
@example("ᾳ", 1)
def test_repetition_by_hand(text, n):
    """The kinds' own code is the subject; a count by slices the oracle."""
    words = text.lower().split()
    grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    repeated = sum(gram in grams[:i] for i, gram in enumerate(grams))
    measured = KINDS["repetition"][0](n)("", text).value
    assert measured == pytest.approx(repeated / len(grams) if grams else 0)


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_whatever_is_written_as_json_is_json(value):
    measure = KINDS["json"][0]([])
    assert measure("", json.dumps(value)).value == 1
    assert measure("", f"So:\n```json\n{json.dumps(value, indent=1)}\n```").value == 1
    assert measure("", json.dumps([value])[:-1]).value == 0


def test_a_rubric_adds_up_what_its_rules_find(rubric):
    own = rubric(
        "{contains: a, weight: 2}", "{words: [2, 9], weight: 0.25, name: length, dimension: form}", top="ties: 0.5"
    )
    assert own.score("", "a b") == 2.25
    assert own.ties == 0.5
    assert own.dimensions == ["overall", "form"]
    assert [found.words for found in own.measure("", "b")] == ["has none of a", "1 words outside 2-9"]


@pytest.mark.parametrize(
    ("entry", "asks"),
    [
        ("{contains: no}", "quotes"),
        ("{contains: [1.10]}", "quotes"),
        ("{contains_all: []}", "list of words"),
        ("{contains_all: ' '}", "list of words"),
        ("{characters: [1, 2, 3]}", "range"),
        ("{words: [1, yes]}", "range"),
        ("{words: [-1, 2]}", "range"),
        ("{script: Klingon}", "script"),
        ("{language: English}", "two-letter"),
        ("{json: {a: 1}}", "keys"),
        ("{json: true}", "keys"),
        ("{repetition: 0}", "whole number"),
        ("{repetition: yes}", "whole number"),
        ("{repetition: 2.5}", "whole number"),
        ("{python: 3}", "module:function"),
        ("{python: module}", "module:function"),
        ("{python: 'module_absent:f'}", "installed"),
        ("{words: [1, 2], weight: yes}", "finite number"),
        ("{words: [1, 2], weight: .inf}", "finite number"),
        ("{words: [1, 2], name: 3}", "quotes"),
        ("{words: [1, 2], dimension: ' '}", "quotes"),
        ("{words: [1, 2], wieght: 3}", "weight"),
        ("words", "one of contains"),
    ],
)
def test_an_entry_that_says_nothing_is_refused(rubric, entry, asks):
    with pytest.raises(InputError, match=rf"rule\.yaml rule 2: .*{asks}"):
        rubric("{words: [1, 2]}", entry)


@pytest.mark.parametrize("top", ["ties: -1", "ties: .nan", "ties: yes", "ties: few", "tie: 1"])
def test_what_stands_beside_the_rules_is_checked(rubric, top):
    with pytest.raises(InputError, match=r"rule\.yaml: .*tie"):
        rubric("{words: [1, 2]}", top=top)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """`module("name", source)`: a module in the current folder."""
    monkeypatch.chdir(tmp_path)
    return lambda name, source: (tmp_path / f"{name}.py").write_text(source)


def test_a_function_is_a_rule_among_others_and_alone(rubric, module):
    module("rules_own", "def longer(prompt, completion):\n    return len(completion) - len(prompt)\n")
    together = rubric("{python: 'rules_own:longer', weight: 0.5}", "{contains: a}")
    assert together.score("12", "abcd") == 1.0
    assert together.score("12", "a bc") == 2.0
    assert load_rules("rules_own:longer").score("12", "abcd") == 2.0


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return {}['key']", "KeyError"),
        ("return None", "TypeError"),
        ("return '1'", "returned '1'"),
        ("return float('nan')", "nan"),
        ("return -float('inf')", "-inf"),
        ("return 1e308", "adds up"),
    ],
)
def test_a_function_that_gives_no_number_is_at_fault(rubric, module, body, why):
    name = f"rules_fault_{abs(hash(body))}"
    module(name, f"def score(prompt, completion):\n    {body}\n")
    with pytest.raises(RuleFault, match=why):
        rubric("{words: [0, 9]}", *[f"{{python: '{name}:score', weight: 5}}"] * 2).score("", "text")


def test_identity_follows_the_file_the_function_and_the_guesser(rubric, module):
    entry = "{contains: a}"
    assert rubric(entry).identity == rubric(entry).identity != rubric("{contains: b}").identity
    assert rubric(entry, name="other.yaml").identity != rubric(entry).identity
    assert rubric(entry).version == rubric(entry, name="other.yaml").version
    assert "py3langid" in rubric("{language: en}").identity
    identities = set()
    for number in (1, 2):
        module("rules_sourced", f"def score(prompt, completion):\n    return {number}\n")
        identities.add(rubric("{python: 'rules_sourced:score'}").identity)
        identities.add(load_rules("rules_sourced:score").identity)
    assert len(identities) == 4


def test_the_module_s_own_example_is_a_rubric_of_every_kind(tmp_path):
    text = rules.__doc__.split("\n\n")[2]
    assert {kind for kind in KINDS if f"{{{kind}:" in text} == set(KINDS)
    file = tmp_path / "example.yaml"
    file.write_text(text.replace("package.module:function", "math:dist"))
    assert len(load_rules(str(file)).rules) == len(KINDS)


def test_the_page_s_example_is_a_rubric(tmp_path, module):
    readme = Path(__file__).parents[2] / "docs/rewards.md"
    module("my_rules", "def politeness(prompt, completion):\n    return 'please' in completion\n")
    file = tmp_path / "example.yaml"
    blocks = [part.partition("```")[0] for part in readme.read_text().split("```yaml\n")[1:]]
    (example,) = [textwrap.dedent(block) for block in blocks if "rules:" in block]
    file.write_text(example)
    assert load_rules(str(file)).score("", "As an AI, please go on.") == 0.5 - 1
