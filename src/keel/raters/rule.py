"""Rules as a rater: the answer with the higher score is better, in each dimension of the rubric.

Rules are written in the language of `keel.text.rules`; a reward and a rater can be one file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from keel.config import CollectConfig
from keel.raters import Missing, Rater, Task
from keel.records import Judgment, Outcome, Preference
from keel.text.rules import Measured, RuleFault, RuleSet, load_rules, total
from keel.text.tokenisation import prompt_text


def make(name: str, config: CollectConfig) -> Rater:
    """Return the rater of `--rater rule:FILE.yaml` or `rule:package.module:function`."""
    return RuleRater(load_rules(name))


class RuleRater:
    """A `Rater` that compares by rules. `missing` counts the tasks on which a rule failed: it has no opinion there."""

    def __init__(self, rules: RuleSet) -> None:
        self.rules, self.identity = rules, rules.identity
        self.missing = 0

    def rate(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[Judgment] | Missing]]:
        """Yield the judgments in the order of the tasks."""
        for index, task in enumerate(tasks):
            try:
                yield index, self._judge(task)
            except RuleFault as fault:
                self.missing += 1
                yield index, Missing(f"{self.rules.name}: {fault}")

    def note(self) -> str:
        """Return `3 missing`, or nothing."""
        return f"{self.missing} missing" if self.missing else ""

    def _judge(self, task: Task) -> list[Judgment]:
        prompt = prompt_text(task.prompt)
        first, second = (self.rules.measure(prompt, answer.text) for answer in (task.first, task.second))
        return [self._in(dimension, task, first, second) for dimension in self.rules.dimensions]

    def _in(self, dimension: str, task: Task, first: list[Measured], second: list[Measured]) -> Judgment:
        """Return the judgment in one dimension; its comment gives what each rule found, if that made a gap."""
        gaps, reasons, size = [], [], 0.0
        for rule, one, other in zip(self.rules.rules, first, second, strict=True):
            if rule.dimension != dimension:
                continue
            here, there = rule.weight * one.value, rule.weight * other.value
            size += abs(here) + abs(there)
            if gap := here - there:
                gaps.append(gap)
                name = f"{rule.name}: " if rule.name else ""
                reasons.append(f"{name}{one.words} against {other.words}: {gap:+.4g}")
        return Judgment(
            task.prompt,
            (task.first, task.second),
            Preference(self._outcome(total(gaps), size)),
            rater=self.identity,
            kind="rule",
            dimension=dimension,
            rubric=self.rules.version,
            comment="; ".join(reasons) or "no rule tells them apart",
        )

    def _outcome(self, lead: float, size: float) -> Outcome:
        """Return the outcome for `lead`, the first's score less the second's.

        `lead` is right to some 1e-15 of `size`, the sum of the absolute values of all its parts.
        """
        if abs(lead) <= self.rules.ties + 1e-15 * (size + self.rules.ties):
            return "tie"
        return "first" if lead > 0 else "second"
