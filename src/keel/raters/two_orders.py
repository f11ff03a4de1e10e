"""Shared parts of model judges: showing a pair to a model, and making one verdict of those in both orders.

A judge sees each pair twice, with the answers in either order. If the two verdicts disagree, the judge has no opinion:
a tie. Answers that are equal but for outer white space are a tie that nobody is asked about.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from keel import stats
from keel.guidelines import Rubric
from keel.raters import Task
from keel.records import MIRROR, Answer, Judgment, Outcome, Preference, Prompt
from keel.text.shown import stripped, text_of, turns_of
from keel.text.tokenisation import prompt_key

_SIGN: dict[Outcome, int] = {"first": 1, "second": -1}


# --- showing --------------------------------------------------------------------------------------


def swap(task: Task) -> Task:
    """Return the pair with its answers in the other order."""
    return replace(task, first=task.second, second=task.first)


def identical(task: Task) -> bool:
    """Say whether there is nothing to compare."""
    return stripped(task.first) == stripped(task.second)


def show(task: Task) -> str:
    """Return the pair as text: the prompt, answer A (the first) and answer B, each between marks.

    The marks hold a hash of the pair, the same in both orders, so that no answer can write a mark and pass for another.
    """
    prompt, first, second = _readable(task.prompt), text_of(task.first), text_of(task.second)
    texts = "\0".join([prompt, *sorted((first, second))])
    seal = hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    parts = (("PROMPT", prompt), ("ANSWER A", first), ("ANSWER B", second))
    return "\n\n".join(f"[{name} {seal}]\n{text}\n[END {name} {seal}]" for name, text in parts)


def _readable(prompt: Prompt) -> str:
    """Return chat turns one beneath the other, each headed by its role; plain text as it stands."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{role}:\n{text}" for role, text in turns_of(prompt))


def wording_version(*words: object) -> str:
    """Return a hash, 4 hex digits, of the words that a judge asks with and of how it is shown a pair."""
    blank = show(Task([{"role": "user", "content": ""}], Answer(""), Answer(" ")))
    return hashlib.sha256(repr((blank, *words)).encode()).hexdigest()[:4]


# --- two orders, one verdict ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """Verdict of a judge on a pair in one order: "first" is the answer that stood first, whichever that was."""

    outcome: Outcome
    strength: float = 0.0
    rationale: str = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """Verdict of both orders. `flipped` says that the same *position* won twice: then the position was judged."""

    preference: Preference
    flipped: bool = False
    comment: str = ""


_DISAGREE = "The two orders disagree."
"""Prefix of the comment on a tie caused by disagreeing orders."""
IDENTICAL = Settled(Preference("tie"), comment="identical answers: nobody was asked")


def settle(shown: Heard, swapped: Heard) -> Settled:
    """Return one verdict, in the order of `shown`: the common one with the mean strength, or a tie (strength 0)."""
    if shown.outcome == MIRROR.get(swapped.outcome, swapped.outcome):
        strength = (shown.strength + swapped.strength) / 2 if shown.outcome in MIRROR else 0.0
        return Settled(Preference(shown.outcome, strength), comment=shown.rationale)
    flipped = shown.outcome == swapped.outcome
    comment = f"{_DISAGREE} As shown: {shown.rationale} Swapped: {swapped.rationale}"
    return Settled(Preference("tie"), flipped, comment)


def as_judgments(
    task: Task, settled: Mapping[str, Settled], judge: str, rubric: Rubric, raw: str = "", seconds: float | None = None
) -> list[Judgment]:
    """Return one judgment per dimension; `judge` is the rater's identity, `raw` what all the judgments stand on."""
    return [
        Judgment(
            task.prompt,
            (task.first, task.second),
            settled[name].preference,
            rater=judge,
            kind="judge",
            dimension=name,
            rubric=rubric.version,
            seconds=seconds,
            comment=settled[name].comment,
            raw=raw,
        )
        for name in rubric.names
    ]


# --- verbosity bias -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VerbosityBias:
    """Bias of a judge towards longer answers, and the share of its ties that are no opinion.

    `prefers_longer`: share for the longer answer among verdicts for one of two answers of unequal length.
    `baseline_agreement`: how often "the longer answer wins" (a tie at equal length) agrees with the judge, over all
    verdicts; ½ if only one of the two says tie. `ties` counts the judge's ties, pairs that are both bad included;
    `equal_length` counts its verdicts between answers of one length. `orders_disagree`: share of the ties that are due
    to disagreeing orders.
    """

    prefers_longer: stats.Estimate
    baseline_agreement: stats.Estimate
    ties: int
    equal_length: int
    orders_disagree: stats.Estimate

    def __str__(self) -> str:
        longer, baseline, ties = self.prefers_longer, self.baseline_agreement, self.orders_disagree
        parts = [
            f"prefers the longer answer {longer} (prompts: {longer.n})" if longer.n else "",
            f'"the longer wins" agrees with it {baseline} (prompts: {baseline.n})' if baseline.n else "no verdict yet",
            f"its two orders disagree in {ties} of its ties (prompts: {ties.n})" if ties.n else "",
        ]
        return "; ".join(filter(None, parts))

    def as_dict(self) -> dict[str, object]:
        """Return the form in a summary; a rate of nothing is None."""
        return {
            name: getattr(self, name).as_dict() if getattr(self, name).n else None
            for name in ("prefers_longer", "baseline_agreement", "orders_disagree")
        } | {"ties": self.ties, "equal_length": self.equal_length}


_Sides = tuple[int, int, bool, str]
"""Winner (1 the first answer, -1 the second, 0 neither), longer answer likewise, whether the two orders disagree, and
the prompt's key."""


def verbosity_bias(judgments: Iterable[Judgment]) -> VerbosityBias:
    """Return the bias of judgments of pairs; other verdicts (scores, rankings) say nothing of it and are skipped.

    Length is counted in characters without outer white space. Intervals treat the prompts as the independent examples.
    Give one dimension at a time, or see `verbosity_biases`.
    """
    return _bias([sides for judgment in judgments if (sides := _sides(judgment)) is not None])


def verbosity_biases(judgments: Iterable[Judgment]) -> dict[str, VerbosityBias]:
    """Return the verbosity bias in each dimension, in the order of their names."""
    verdicts: dict[str, list[_Sides]] = defaultdict(list)
    for judgment in judgments:
        if (sides := _sides(judgment)) is not None:
            verdicts[judgment.dimension].append(sides)
    return {dimension: _bias(some) for dimension, some in sorted(verdicts.items())}


def _sides(judgment: Judgment) -> _Sides | None:
    if not isinstance(judgment.verdict, Preference):
        return None
    first, second = (len(answer.text.strip()) for answer in judgment.answers)
    said = _SIGN.get(judgment.verdict.outcome, 0)
    disagree = judgment.comment.startswith(_DISAGREE)
    return said, (first > second) - (first < second), disagree, prompt_key(judgment.prompt)


def _bias(verdicts: Sequence[_Sides]) -> VerbosityBias:
    clear = [((1 + said * longer) / 2, prompt) for said, longer, _, prompt in verdicts if said and longer]
    alike = [(1 - abs(said - longer) / 2, prompt) for said, longer, _, prompt in verdicts]
    ties = [(float(disagree), prompt) for said, _, disagree, prompt in verdicts if not said]
    return VerbosityBias(
        prefers_longer=_rate(clear),
        baseline_agreement=_rate(alike),
        ties=len(ties),
        equal_length=sum(bool(said) and not longer for said, longer, *_ in verdicts),
        orders_disagree=_rate(ties),
    )


def _rate(outcomes: Sequence[tuple[float, str]]) -> stats.Estimate:
    return stats.rate([outcome for outcome, _ in outcomes], [prompt for _, prompt in outcomes])
