"""The rule language: a text's score as a weighted sum of measures that need no model.

A rule is a Python function, `package.module:function` with `function(prompt, completion) -> float`, or an entry of a
YAML file:

    ties: 0.1                                     # two answers whose scores differ by at most this are a tie
    rules:
      - {contains: [bear, teddy], weight: 2.0}    # 1 if any of the words or phrases appears, else 0
      - {contains_all: [refund, "14 days"]}       # 1 if all of them appear
      - {matches: "(?i)thank you", weight: 0.5}   # 1 if the regular expression is found
      - {words: [20, 60]}                         # 1 if the number of words lies in the range
      - {characters: [1, 400]}                    # 1 if the number of characters lies in the range
      - {script: Latin}                           # 1 if most letters are of this script, or one of a list
      - {language: en}                            # 1 if the text is mostly in this language, or one of a list
      - {json: [name, age]}                       # 1 if it is a JSON object with these keys; `json: []` for any JSON
      - {repetition: 3, weight: -1.0}             # share of its word 3-grams that are repeats, 0 to 1
      - {python: package.module:function}         # the function's number

An entry may also have a `weight` (default 1; a negative one penalises), a `name` (shown in the reasons) and a
`dimension` (default "overall"). Words and phrases match whole, in upper or lower case. JSON is the whole text, or its
first block fenced by ```. Scripts follow from Unicode. Languages are guessed by py3langid, a model of 4 MB that reads
letter sequences in 20 microseconds per 100 characters and is unsure below about five words.

The reward (`--reward rule:…`) and the rater (`keel.raters.rule`) read the same language.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from keel.errors import InputError
from keel.files.containers import INSTALL, file_hash
from keel.handed import HANDED, function_named
from keel.records import OVERALL

YAML = (".yaml", ".yml")


class RuleFault(Exception):  # noqa: N818  (the rule's fault, not Keel's)
    """Failure of a user's function on a text, or a score that is not finite; the message says which and how."""


class Measured(NamedTuple):
    """A rule's finding in one text: `Measured(0.0, "12 words outside 20-60")`."""

    value: float
    words: str


Measure = Callable[[str, str], Measured]
"""A function of (prompt, completion). It may raise `RuleFault`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry: its measure times `weight` is one term of the score in its dimension."""

    measure: Measure
    weight: float = 1.0
    name: str = ""
    dimension: str = OVERALL


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Some rules. `version` hashes everything that affects a score: rule file, functions' files, language guesser."""

    name: str
    version: str
    rules: tuple[Rule, ...]
    ties: float = 0.0

    @property
    def identity(self) -> str:
        """Return `rule:FILE.yaml` (without its folder) and the version; equal identities mean equal scores."""
        return f"{self.name} {self.version}".rstrip()

    @property
    def dimensions(self) -> list[str]:
        """Return the dimensions in order of first appearance."""
        return list(dict.fromkeys(rule.dimension for rule in self.rules))

    def measure(self, prompt: str, completion: str) -> list[Measured]:
        """Return every rule's finding, in order. Raises `RuleFault`."""
        return [rule.measure(prompt, completion) for rule in self.rules]

    def score(self, prompt: str, completion: str) -> float:
        """Return the weighted sum over all dimensions, a finite number. Raises `RuleFault`."""
        found = self.measure(prompt, completion)
        return total([rule.weight * m.value for rule, m in zip(self.rules, found, strict=True)])


def total(parts: list[float]) -> float:
    """Return the finite sum of a score's parts. Raises `RuleFault` if they overflow."""
    try:
        result = math.fsum(parts)
    except (OverflowError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise RuleFault(f"adds up to no finite number ({', '.join(f'{part:g}' for part in parts)})")
    return result


# --- reading --------------------------------------------------------------------------------------


def load_rules(spec: str) -> RuleSet:
    """Return the rules of `FILE.yaml`, or the one rule `package.module:function`."""
    if spec.endswith(YAML):
        return _of_file(Path(spec))
    try:
        measure = _python(spec)
    except (InputError, ValueError, TypeError) as error:
        said = str(error) if isinstance(error, InputError) else "give rule:package.module:function or rule:FILE.yaml"
        raise InputError(f"rule:{spec}: {said}") from error
    return RuleSet(f"rule:{spec}", " ".join(_sources([spec])), (Rule(measure),))


def _of_file(file: Path) -> RuleSet:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; give an existing rule file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not readable as YAML ({str(error).splitlines()[0]}); mend it") from error
    entries = content.get("rules") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{file}: no list `rules:` in it; see `keel.text.rules` for an example")
    if unknown := content.keys() - {"rules", "ties"}:
        raise InputError(f"{file}: unknown {', '.join(map(str, unknown))}; give `rules` and, if wanted, `ties`")
    ties = content.get("ties", 0.0)
    if not _is_number(ties) or ties < 0:
        raise InputError(f"{file}: ties cannot be {ties!r}; give the largest difference that is a tie, 0 or more")
    rules = tuple(_entry(f"{file} rule {number}", entry) for number, entry in enumerate(entries, 1))
    functions = [entry["python"] for entry in entries if "python" in entry]
    guesser = [f"py3langid-{_guesser().version}"] if any("language" in entry for entry in entries) else []
    version = " ".join([file_hash(str(file)), *_sources(functions), *guesser])
    return RuleSet(f"rule:{file.name}", version, rules, float(ties))


def _entry(where: str, entry: Any) -> Rule:
    """Return the rule of one entry; `where` names the entry in error messages."""
    fields = dict(entry) if isinstance(entry, dict) else {}
    weight, name, dimension = fields.pop("weight", 1.0), fields.pop("name", ""), fields.pop("dimension", OVERALL)
    if not _is_number(weight):
        raise InputError(f"{where}: weight cannot be {weight!r}; give a finite number")
    if not isinstance(name, str) or not isinstance(dimension, str) or not dimension.strip():
        raise InputError(f"{where}: name and dimension are text; put them in quotes")
    if len(fields) != 1 or (kind := next(iter(fields))) not in KINDS:
        given = ", ".join(map(str, fields)) or "nothing"
        raise InputError(f"{where}: {given}; give one of {', '.join(KINDS)}, and weight, name, dimension if wanted")
    make, asks = KINDS[kind]
    try:
        return Rule(make(fields[kind]), float(weight), name, dimension)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (re.error, TypeError, ValueError) as error:
        raise InputError(f"{where}: {kind} cannot be {fields[kind]!r}; give {asks}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _listed(value: Any) -> list[str]:
    """Return a word or a list of words as a list. Words that YAML reads otherwise (no, 1.10) must be quoted."""
    words = value if isinstance(value, list) else [value]
    if not words or any(isinstance(w, bool) or not isinstance(w, str | int) or not str(w).strip() for w in words):
        raise ValueError
    return [str(word) for word in words]


# --- content --------------------------------------------------------------------------------------


def _whole(phrase: str) -> str:
    """Return a pattern for a whole phrase, with any white space between its words."""
    return r"(?<!\w)" + r"\s+".join(re.escape(word) for word in phrase.lower().split()) + r"(?!\w)"


def _contains(value: Any) -> Measure:
    phrases = _listed(value)
    pattern = re.compile("|".join(_whole(phrase) for phrase in phrases))

    def measure(_: str, text: str) -> Measured:
        found = pattern.search(text.lower())
        return Measured(1.0, f'has "{found[0]}"') if found else Measured(0.0, f"has none of {_some(phrases)}")

    return measure


def _contains_all(value: Any) -> Measure:
    patterns = [(phrase, re.compile(_whole(phrase))) for phrase in _listed(value)]

    def measure(_: str, text: str) -> Measured:
        lowered = text.lower()
        lacking = next((phrase for phrase, pattern in patterns if not pattern.search(lowered)), None)
        return Measured(1.0, "has all words") if lacking is None else Measured(0.0, f'lacks "{lacking}"')

    return measure


def _matches(value: Any) -> Measure:
    if not value:
        raise ValueError
    expression = re.compile(value)

    def measure(_: str, text: str) -> Measured:
        found = expression.search(text) is not None
        return Measured(float(found), f"{'a' if found else 'no'} match of {value:.40}")

    return measure


def _json(value: Any) -> Measure:
    keys = _listed(value) if value != [] else []

    def measure(_: str, text: str) -> Measured:
        try:
            content = _parsed(text)
        except (ValueError, RecursionError):
            return Measured(0.0, "no valid JSON")
        if keys and not isinstance(content, dict):
            return Measured(0.0, "no JSON object")
        lacking = next((key for key in keys if key not in content), None)
        return Measured(1.0, "valid JSON") if lacking is None else Measured(0.0, f'lacks the key "{lacking}"')

    return measure


_FENCED = re.compile(r"^```(?:json)?[ \t]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _parsed(text: str) -> Any:
    block = _FENCED.search(text)
    return json.loads(block[1] if block else text, parse_int=str, parse_float=str, parse_constant=_no_constant)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


# --- form -----------------------------------------------------------------------------------------


def _words(value: Any) -> Measure:
    return _in_range(value, "words", lambda text: len(text.split()))


def _characters(value: Any) -> Measure:
    return _in_range(value, "characters", len)


def _in_range(value: Any, unit: str, count: Callable[[str], int]) -> Measure:
    low, high = value
    if not (type(low) is int and type(high) is int and 0 <= low <= high):
        raise ValueError

    def measure(_: str, text: str) -> Measured:
        number = count(text)
        inside = low <= number <= high
        return Measured(float(inside), f"{number} {unit}" + ("" if inside else f" outside {low}-{high}"))

    return measure


def _repetition(value: Any) -> Measure:
    if type(value) is not int or value < 1:
        raise ValueError

    def measure(_: str, text: str) -> Measured:
        words = text.lower().split()
        grams = list(zip(*(words[start:] for start in range(value)), strict=False))
        share = 1 - len(set(grams)) / len(grams) if grams else 0.0
        return Measured(share, f"{100 * share:.0f} % of its {value}-grams repeated")

    return measure


# --- script and language --------------------------------------------------------------------------

_UNICODE = {"han": "cjk"}  # its characters are called CJK UNIFIED IDEOGRAPH


@lru_cache(maxsize=1 << 16)
def _script_of(letter: str) -> str:
    """Return a letter's script: `latin` for LATIN SMALL LETTER A."""
    return unicodedata.name(letter, "").partition(" ")[0].partition("-")[0].lower()


@lru_cache(maxsize=1)
def _scripts() -> frozenset[str]:
    return frozenset(_script_of(c) for c in map(chr, range(0x30000)) if c.isalpha())


def _script(value: Any) -> Measure:
    named = _listed(value)
    wanted = {_UNICODE.get(name.lower(), name.lower()) for name in named}
    if not wanted <= _scripts():
        raise ValueError

    def measure(_: str, text: str) -> Measured:
        letters = {c: n for c, n in Counter(text).items() if c.isalpha()}
        inside = sum(n for c, n in letters.items() if _script_of(c) in wanted)
        share = inside / max(1, sum(letters.values()))
        return Measured(float(share > 0.5), f"{100 * share:.0f} % {_some(named)}")

    return measure


class _Guesser(NamedTuple):
    version: str
    labels: frozenset[str]
    guess: Callable[[str], tuple[str, float]]


@lru_cache(maxsize=1)
def _guesser() -> _Guesser:
    """Return a language guesser of Keel's own, as other code may change the package's global one.

    It answers "und" if the text is too short.
    """
    try:
        import py3langid
    except ImportError as error:
        raise InputError(f"`language` needs py3langid: {INSTALL}") from error
    kind = py3langid.langid.LanguageIdentifier
    own = kind.from_model_file(py3langid.langid.MODEL_FILE, norm_probs=True, min_confidence=0.1)
    return _Guesser(py3langid.__version__, frozenset(own.labels), own.classify)


def _language(value: Any) -> Measure:
    wanted = _listed(value)
    guesser = _guesser()
    if not guesser.labels.issuperset(wanted):
        raise ValueError

    def measure(_: str, text: str) -> Measured:
        guess = guesser.guess(text)[0]
        return Measured(float(guess in wanted), "language unknown" if guess == "und" else f"written in {guess}")

    return measure


# --- Python ---------------------------------------------------------------------------------------


def _python(value: Any) -> Measure:
    function = _function(value)

    def measure(prompt: str, text: str) -> Measured:
        try:
            result = function(prompt, text)
            number = math.nan if isinstance(result, str) else float(result)
        except Exception as error:  # a user's function may raise anything
            asked = "; it is called as (prompt, completion) and returns one number" * isinstance(error, TypeError)
            raise RuleFault(f"{value} failed: {type(error).__name__}: {error}{asked}") from error
        if not math.isfinite(number):
            raise RuleFault(f"{value} returned {str(result)[:40]!r}, no finite number")
        return Measured(number, f"{value} {number:g}")

    return measure


def _function(spec: Any) -> Callable[[str, str], Any]:
    if isinstance(spec, str) and spec.startswith(HANDED):
        return function_named(spec)
    module, _, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if not module or not name:
        raise ValueError
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a rule usually lies beside the data, not in an installed package
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{error}; is the module in this folder or installed?") from error
    except Exception as error:  # a user's module may raise anything on import
        raise InputError(f"{type(error).__name__}: {error}; mend the module") from error
    if not callable(function):
        raise InputError(f"{spec} is not a function of (prompt, completion)")
    return function  # type: ignore[no-any-return]


def _sources(specs: list[str]) -> list[str]:
    """Return hashes of the functions' source files, not of what these import; functions without a file have none."""
    hashes = []
    for spec in specs:
        try:
            file = inspect.getsourcefile(_function(spec))
        except TypeError:
            continue
        hashes += [file_hash(file)] if file else []
    return hashes


def _some(words: list[str]) -> str:
    return ", ".join(words[:3]) + (", …" if len(words) > 3 else "")


KINDS: dict[str, tuple[Callable[[Any], Measure], str]] = {
    "contains": (_contains, "a word or a list of words; in quotes where YAML would read something else"),
    "contains_all": (_contains_all, "a word or a list of words; in quotes where YAML would read something else"),
    "matches": (_matches, "a regular expression in quotes"),
    "words": (_words, "a range [least, most] of whole numbers"),
    "characters": (_characters, "a range [least, most] of whole numbers"),
    "script": (_script, "a script such as Latin, Cyrillic or Han, or a list of them"),
    "language": (_language, "a two-letter code such as en, or a list of them"),
    "json": (_json, "a list of required keys, or []"),
    "repetition": (_repetition, "a whole number of words"),
    "python": (_python, "package.module:function"),
}
"""Function that makes the measure of each kind of entry, and the value to ask for if that fails."""
