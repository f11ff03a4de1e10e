"""What gives a completion its score: a frozen reward model, or a rule. Both are a `Scorer`; methods know no other.

A rule is Python, `rule:package.module:function` with `function(prompt, completion) -> float`, or a YAML file,
`rule:FILE.yaml`, that adds up weighted features of the text:

    rules:
      - {contains: [bear, teddy], weight: 1.0}     # 1 if any of the words appears, else 0
      - {matches: "(?i)thank you", weight: 0.5}    # 1 if the regular expression is found
      - {words: [20, 60], weight: 0.2}             # 1 if the number of words lies in the range
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch import Tensor, nn

from keel.config import Machine
from keel.data.formats import file_hash
from keel.data.text import named
from keel.engine.forward import in_batches, scalars_at_end
from keel.errors import InputError
from keel.models import checkpoints
from keel.records import Bundle, Prompt

Rule = Callable[[str, str], float]
YAML = (".yaml", ".yml")


class Scorer(Protocol):
    """Gives every completion of some bundles a finite score."""

    identity: str
    """What scored, for the manifest: a hash of the weights, or the rule's name and a hash of its file."""

    def score(self, bundles: Sequence[Bundle]) -> Tensor:
        """Scores, fp32 on the CPU, [C] in bundle order."""
        ...


class RewardModelScorer:
    """A frozen reward model."""

    def __init__(self, model: nn.Module, micro_tokens: int) -> None:
        self.model = model.requires_grad_(False)
        self.micro_tokens = micro_tokens
        self.identity = checkpoints.weights_hash(model)

    def score(self, bundles: Sequence[Bundle]) -> Tensor:
        scores = in_batches(scalars_at_end, self.model, bundles, self.micro_tokens)
        return _finite(torch.cat(scores).cpu(), bundles)


class RuleScorer:
    """A function of prompt and completion text; a chat prompt is given as its turns' contents, line by line."""

    def __init__(self, rule: Rule, name: str, file: str | None = None) -> None:
        self.rule, self.name = rule, name
        self.identity = f"{name} {file_hash(file)}" if file is not None else name

    def score(self, bundles: Sequence[Bundle]) -> Tensor:
        scores = [self._apply(b, c.text) for b in bundles for c in b.completions]
        return _finite(torch.tensor(scores), bundles)

    def _apply(self, bundle: Bundle, completion: str) -> float:
        """The rule's number; what it raises or returns instead of one is the rule's fault, and said so."""
        try:
            value = self.rule(plain(bundle.prompt), completion)
            if not isinstance(value, str):
                return float(value)
            why = f"returned the text {value[:40]!r}"
        except Exception as error:  # whatever a stranger's function may raise
            why = f"failed: {type(error).__name__}: {error}"
        raise InputError(f"{self.name} {why} ({named(bundle)}); mend it to return a number")


def load_scorer(name: str, machine: Machine) -> Scorer:
    """The scorer named by `--reward`: `rule:…`, or a reward model."""
    if name.startswith("rule:"):
        spec = name.removeprefix("rule:")
        rule = _load_rule(spec)
        return RuleScorer(rule, name, spec if spec.endswith(YAML) else _source(rule))
    return RewardModelScorer(checkpoints.load_reward(name, machine), machine.micro_tokens)


def plain(prompt: Prompt) -> str:
    """A prompt as one string for rules and reports."""
    return prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)


def _finite(scores: Tensor, bundles: Sequence[Bundle]) -> Tensor:
    bad = torch.nonzero(~torch.isfinite(scores)).flatten().tolist()
    if bad:
        owner = [b for b in bundles for _ in b.completions][bad[0]]
        raise InputError(
            f"the reward of completion {bad[0] + 1} is {float(scores[bad[0]])} "
            f"({named(owner)}); a score must be a finite number: mend the rule or the reward model"
        )
    return scores


# --- rules ----------------------------------------------------------------------------------------


def _load_rule(spec: str) -> Rule:
    if spec.endswith(YAML):
        return _rule_of_yaml(Path(spec))
    module, _, function = spec.partition(":")
    if not function:
        raise InputError(f"rule:{spec}: give rule:package.module:function or rule:FILE.yaml")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a rule usually lies beside the data, not in an installed package
    try:
        rule = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"rule:{spec}: {error}; is the module in this folder or installed?") from error
    except Exception as error:  # whatever importing a stranger's module may raise
        raise InputError(f"rule:{spec}: {type(error).__name__}: {error}; mend the module") from error
    if not callable(rule):
        raise InputError(f"rule:{spec} is not a function of (prompt, completion)")
    return rule  # type: ignore[no-any-return]


def _source(rule: Rule) -> str | None:
    """The file that a Python rule is written in; None where it is in no file."""
    try:
        return inspect.getsourcefile(rule)
    except TypeError:
        return None


def _rule_of_yaml(file: Path) -> Rule:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; give an existing rule file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not readable as YAML ({str(error).splitlines()[0]}); mend it") from error
    rules = content.get("rules") if isinstance(content, dict) else None
    if not isinstance(rules, list) or not rules:
        raise InputError(f"{file}: no list `rules:` in it; see `keel.engine.scorers` for an example")
    parts = [_feature(file, number, entry) for number, entry in enumerate(rules, 1)]
    return lambda prompt, completion: math.fsum(weight * feature(completion) for weight, feature in parts)


def _feature(file: Path, number: int, entry: Any) -> tuple[float, Callable[[str], bool]]:
    """Weight and test of one entry."""
    fields = dict(entry) if isinstance(entry, dict) else {}
    weight = fields.pop("weight", 1.0)
    if len(fields) != 1 or isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise InputError(f"{file} rule {number}: give one of contains, matches, words, and a finite numeric weight")
    (kind, value), *_ = fields.items()
    if kind not in _FEATURES:
        raise InputError(f"{file} rule {number}: unknown feature {kind!r}; give one of {', '.join(_FEATURES)}")
    make, asks = _FEATURES[kind]
    try:
        return float(weight), make(value)
    except (re.error, TypeError, ValueError) as error:
        raise InputError(f"{file} rule {number}: {kind} cannot be {value!r}; give {asks}") from error


def _contains(value: Any) -> Callable[[str], bool]:
    words = value if isinstance(value, list) else [value]
    if not words or not all(isinstance(w, str | int | float) and str(w).strip() for w in words):
        raise ValueError
    pattern = re.compile(r"(?<!\w)(" + "|".join(re.escape(str(w).lower()) for w in words) + r")(?!\w)")
    return lambda text: pattern.search(text.lower()) is not None


def _matches(value: Any) -> Callable[[str], bool]:
    expression = re.compile(value)
    if not value:
        raise ValueError
    return lambda text: expression.search(text) is not None


def _words(value: Any) -> Callable[[str], bool]:
    low, high = value
    if not (isinstance(low, int) and isinstance(high, int) and 0 <= low <= high):
        raise ValueError
    return lambda text: low <= len(text.split()) <= high


_FEATURES: dict[str, tuple[Callable[[Any], Callable[[str], bool]], str]] = {
    "contains": (_contains, "a word or a list of words"),
    "matches": (_matches, "a regular expression in quotes"),
    "words": (_words, "a range [least, most] of whole numbers"),
}
