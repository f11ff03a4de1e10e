"""What model judges share: how a pair is shown to a model, and how its verdicts in both orders become one.

A judge sees each pair twice, with the answers in either order. Where the two verdicts disagree, the judge has no
opinion: a tie. Answers that are equal but for outer white space are a tie that nobody is asked about.
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
    """The same pair with its answers in the other order."""
    return replace(task, first=task.second, second=task.first)


def identical(task: Task) -> bool:
    """Whether there is nothing to compare."""
    return stripped(task.first) == stripped(task.second)


def show(task: Task) -> str:
    """The pair as text: the prompt, answer A (the first) and answer B, each between marks.

    The marks hold a hash of the pair, the same in both orders, so that no answer can write one and pass for another.
    """
    prompt, first, second = _readable(task.prompt), text_of(task.first), text_of(task.second)
    texts = "\0".join([prompt, *sorted((first, second))])
    seal = hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    parts = (("PROMPT", prompt), ("ANSWER A", first), ("ANSWER B", second))
    return "\n\n".join(f"[{name} {seal}]\n{text}\n[END {name} {seal}]" for name, text in parts)


def _readable(prompt: Prompt) -> str:
    """Chat turns one beneath the other, each headed by who speaks; plain text as it stands."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{role}:\n{text}" for role, text in turns_of(prompt))


def wording_version(*words: object) -> str:
    """Hash, 4 hex digits, of the words by which a judge asks and of how it is shown a pair."""
    blank = show(Task([{"role": "user", "content": ""}], Answer(""), Answer(" ")))
    return hashlib.sha256(repr((blank, *words)).encode()).hexdigest()[:4]


# --- two orders, one verdict ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """What a judge said of a pair in one order: "first" is the answer that stood first, whichever that was."""

    outcome: Outcome
    strength: float = 0.0
    rationale: str = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """The verdict of both orders. `flipped` says that the same *place* won twice: then the place was judged."""

    preference: Preference
    flipped: bool = False
    comment: str = ""


_DISAGREE = "The two orders disagree."
"""How the comment begins of a tie that is one for that."""
IDENTICAL = Settled(Preference("tie"), comment="identical answers: nobody was asked")


def settle(shown: Heard, swapped: Heard) -> Settled:
    """One verdict, in the order of `shown`: that of both orders with their mean strength, or a tie (strength 0)."""
    if shown.outcome == MIRROR.get(swapped.outcome, swapped.outcome):
        strength = (shown.strength + swapped.strength) / 2 if shown.outcome in MIRROR else 0.0
        return Settled(Preference(shown.outcome, strength), comment=shown.rationale)
    flipped = shown.outcome == swapped.outcome
    comment = f"{_DISAGREE} As shown: {shown.rationale} Swapped: {swapped.rationale}"
    return Settled(Preference("tie"), flipped, comment)


def as_judgments(
    task: Task, settled: Mapping[str, Settled], judge: str, rubric: Rubric, raw: str = "", seconds: float | None = None
) -> list[Judgment]:
    """One judgment per dimension of the rubric; `judge` is the rater's identity, `raw` what all of them stand on."""
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


# --- does it count words? -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VerbosityBias:
    """How far a judge can be replaced by counting characters, and how many of its ties are no opinion.

    `prefers_longer`: share of verdicts for one of two answers of unequal length that are for the longer one.
    `baseline_agreement`: how often "the longer answer wins" (a tie at equal length) says what the judge says, over all
    verdicts; ½ where only one of the two says tie. `ties` counts the judge's ties, pairs that are both bad included,
    `equal_length` its verdicts between answers of one length. `orders_disagree`: share of the ties that are one since
    the judge said otherwise when the answers changed places.
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
        """For a summary; a rate of nothing is None."""
        return {
            name: getattr(self, name).as_dict() if getattr(self, name).n else None
            for name in ("prefers_longer", "baseline_agreement", "orders_disagree")
        } | {"ties": self.ties, "equal_length": self.equal_length}


_Sides = tuple[int, int, bool, str]
"""Of a verdict: 1 for the first answer, -1 for the second, 0 for neither; the same of the longer answer; whether the
two orders disagree; the prompt's key."""


def verbosity_bias(judgments: Iterable[Judgment]) -> VerbosityBias:
    """The bias of some judgments of pairs; other verdicts (scores, rankings) say nothing of it and are passed over.

    Length is counted in characters without outer white space. Intervals treat the prompts as the independent examples.
    Give one dimension at a time, or see `verbosity_biases`.
    """
    return _bias([sides for judgment in judgments if (sides := _sides(judgment)) is not None])


def verbosity_biases(judgments: Iterable[Judgment]) -> dict[str, VerbosityBias]:
    """The same by dimension, in the order of their names."""
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
