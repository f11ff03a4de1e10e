"""A judge that is your own model: any causal language model, read by the log-probabilities of four letters.

The model reads the guideline and the pair and is asked for one letter: A, B, C (a tie) or D (both bad). The letter with
the highest log-probability is its verdict, so nothing is drawn and nothing needs parsing. Each pair is read in both
orders; if they disagree, it is a tie. It answers in letters, not words, because they are equally long and equally
common.

The verdicts carry no strength (0, not graded): a log-probability is the model's certainty, not the answers' distance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from keel.config import CollectConfig, Machine, Spelling
from keel.engine.forward import in_batches, sequence_logps
from keel.errors import InputError, RowFault
from keel.guidelines import DEFAULT_RUBRIC, Rubric, rubric_of
from keel.models import checkpoints
from keel.models.limits import positions
from keel.raters import Missing, Rater, Task
from keel.raters.two_orders import (
    IDENTICAL,
    Heard,
    Settled,
    as_judgments,
    identical,
    settle,
    show,
    swap,
    wording_version,
)
from keel.records import Bundle, Completion, Judgment, Outcome, Prompt
from keel.text.tokenisation import Text

_LETTERS: dict[str, Outcome] = {"A": "first", "B": "second", "C": "tie", "D": "both_bad"}
_QUESTION = """\
Compare two answers, A and B, to one prompt by this guideline:

{guideline}

{pair}

Which answer is better? Reply with one letter: A, B, C (as good as each other) or D (neither is of use).
"""
_BEFORE_ANSWER = "Verdict:"  # what plain text ends with; in a chat the template asks the model to speak
_AT_ONCE = 16  # tasks per round: results come in rounds, and little is lost when the caller stops

_TEMPLATE = wording_version(_QUESTION, _BEFORE_ANSWER, list(_LETTERS))
"""Version of the question's wording, a hash of it: part of a judge's identity."""

_Scores = dict[str, dict[str, float]]
"""Log-probability of each letter in each dimension, in nats, for one order."""


class LocalJudge:
    """A `Rater` whose verdicts come from a causal language model in this process."""

    def __init__(
        self, model: nn.Module, text: Text, name: str, rubric: Rubric = DEFAULT_RUBRIC, micro_tokens: int = 8192
    ) -> None:
        self.model, self.text, self.rubric = model.requires_grad_(False), text, rubric
        self.micro_tokens = micro_tokens
        weights = f"{checkpoints.weights_hash(model)[:8]}-{text.fingerprint()[:4]}"
        self.identity = f"{name} {weights} @ {rubric.version}-{_TEMPLATE}"
        self.missing = self.compared = self.position_flips = 0
        if len({tuple(ids) for ids in self._letters("")}) < len(_LETTERS):
            raise InputError(f"{name}: its tokenizer does not tell A, B, C and D apart; give another model as judge")

    def rate(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[Judgment] | Missing]]:
        """Yield verdicts in order, a round of tasks at a time."""
        for start in range(0, len(tasks), _AT_ONCE):
            yield from enumerate(self._round(tasks[start : start + _AT_ONCE]), start)

    def note(self) -> str:
        """Return how many tasks have no verdict, or nothing."""
        return f"{self.missing} missing" if self.missing else ""

    def _round(self, tasks: Sequence[Task]) -> list[list[Judgment] | Missing]:
        """Return the verdicts of some tasks, all from as few passes as they need."""
        results: list[list[Judgment] | Missing] = []
        asked: dict[int, list[Bundle]] = {}
        for index, task in enumerate(tasks):
            bundles, fault = self._asked(task)
            self.missing += fault is not None
            same = as_judgments(task, dict.fromkeys(self.rubric.names, IDENTICAL), self.identity, self.rubric)
            results.append(Missing(fault) if fault else same)
            if bundles and not fault:
                asked[index] = bundles
        flat = [bundle for bundles in asked.values() for bundle in bundles]
        found = iter(in_batches(sequence_logps, self.model, flat, self.micro_tokens))
        for index, bundles in asked.items():
            results[index] = self._settled(tasks[index], [next(found).tolist() for _ in bundles])
        return results

    def _asked(self, task: Task) -> tuple[list[Bundle], str | None]:
        """Return a task's bundles, and why the model cannot be asked, or None. Identical answers need no bundle."""
        try:
            bundles = [] if identical(task) else self._bundles(task)
        except RowFault as fault:
            return [], fault.reason
        return bundles, self._fault(bundles)

    def _bundles(self, task: Task) -> list[Bundle]:
        """Return a bundle of four completions, a letter each, per order and dimension."""
        return [self._bundle(guideline, t) for t in (task, swap(task)) for _, guideline in self.rubric.dimensions]

    def _bundle(self, guideline: str, task: Task) -> Bundle:
        question = _QUESTION.format(guideline=guideline, pair=show(task))
        chat = bool(self.text.tokenizer.chat_template)
        prompt: Prompt = [{"role": "user", "content": question}] if chat else question + _BEFORE_ANSWER
        return Bundle(self.text.prompt_ids(prompt), [Completion(ids, truncated=True) for ids in self._letters(prompt)])

    def _letters(self, prompt: Prompt) -> list[list[int]]:
        """Return each letter's tokens as an answer, without EOS: whether the model would stop there is not asked."""
        before = " " if isinstance(prompt, str) else ""
        return [self.text.completion_ids(prompt, before + letter)[:-1] for letter in _LETTERS]

    def _fault(self, bundles: Sequence[Bundle]) -> str | None:
        """Return why the model cannot be asked, or None."""
        most = positions(self.model)
        longest = max((len(b.prompt_ids) + len(c) for b in bundles for c in b.completions), default=0)
        if most is None or longest <= most:
            return None
        return f"the pair is too long for the judge: {longest} tokens, it reads {most}"

    def _settled(self, task: Task, scores: list[list[float]]) -> list[Judgment]:
        """Return one task's judgments from the log-probabilities of its bundles, which are kept as `raw`."""
        if not all(math.isfinite(x) for row in scores for x in row):
            raise InputError("the judge's log-probabilities are not finite: try --precision fp32, or another model")
        rows = iter([dict(zip(_LETTERS, row, strict=True)) for row in scores])
        orders = {order: {name: next(rows) for name in self.rubric.names} for order in ("as_shown", "swapped")}
        settled = {name: _verdict(orders, name) for name in self.rubric.names}
        self.compared += len(settled)
        self.position_flips += sum(verdict.flipped for verdict in settled.values())
        return as_judgments(task, settled, self.identity, self.rubric, json.dumps(orders))


def make(name: str, config: CollectConfig) -> Rater:
    """Return the rater of `--rater local:MODEL`."""
    return load_local_judge(name, config, rubric_of(config.rubric))


def load_local_judge(name: str, machine: Machine, rubric: Rubric = DEFAULT_RUBRIC) -> LocalJudge:
    """Load the judge from a checkpoint folder, a run folder, or a hub name."""
    model = checkpoints.load_policy(name, machine)
    text = checkpoints.load_text(name, Spelling(trust_remote_code=machine.trust_remote_code))
    return LocalJudge(model, text, Path(name).name, rubric, machine.micro_tokens)


def read_scores(raw: str) -> dict[str, Settled]:
    """Return the verdict in each dimension from `Judgment.raw`, as it was; none if empty (identical answers)."""
    orders: dict[str, _Scores] = json.loads(raw) if raw else {"as_shown": {}, "swapped": {}}
    return {name: _verdict(orders, name) for name in orders["as_shown"]}


def _verdict(orders: dict[str, _Scores], name: str) -> Settled:
    return settle(_heard(orders["as_shown"][name]), _heard(orders["swapped"][name]))


def _heard(letters: dict[str, Any]) -> Heard:
    """Return the verdict of the likeliest letter."""
    best = max(letters, key=lambda letter: letters[letter])
    likeliest = ", ".join(f"{letter} {value:.2f}" for letter, value in letters.items())
    return Heard(_LETTERS[best], rationale=f"log-probabilities {likeliest}.")
