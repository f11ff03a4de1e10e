"""Survey of judgments: counts, rates with intervals, and agreement between raters, from a stream or by query.

A store of millions is counted by its database; a file is counted as it is read. Both fill the same `Survey`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import sqlalchemy as sa

from keel import stats
from keel.records import Judgment, Preference, Ranking, RaterKind, Score
from keel.stats import Estimate
from keel.store import schema
from keel.store.keys import answer_id, prompt_id
from keel.store.store import Store

# --- counts ---------------------------------------------------------------------------------------

FEWEST_SIDES = 20
"""Fewest preferences that show a fixed side if all name the same one: with fair sides, 2 in a million."""


@dataclass(slots=True)
class Survey:
    """Counts of judgments, and of the prompts and answers that they are about."""

    prompts: int = 0
    answers: int = 0
    said: Counter[tuple[str, str, str, int]] = field(default_factory=Counter)
    """(dimension, kind of verdict, outcome, sign of the first answer's length minus the second's): judgments."""
    strengths: Counter[float] = field(default_factory=Counter)
    """Strength of a preference with a winner: judgments."""
    raters: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(name, kind): judgments."""
    models: Counter[str] = field(default_factory=Counter)
    """Name of the model: answers that it wrote."""
    retracted: int = 0
    placed: Counter[str] = field(default_factory=Counter)
    """Side preferred: judgments made here (on a page or by a model), for which the order shown is known."""

    @property
    def judgments(self) -> int:
        return sum(self.said.values())

    def outcomes(self) -> dict[str, dict[str, int]]:
        """Count judgments by dimension, and by outcome, `score` or `ranking`."""
        table: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for (dimension, kind, outcome, _), count in self.said.items():
            table[dimension][outcome or kind] += count
        return table

    def first_wins(self) -> Estimate:
        """Return how often the answer shown first wins, among preferences with a winner: 1/2 without position bias.

        If there are judgments made here, those of files that always name the same side do not count.
        """
        first, second = self._sided()
        return stats.wilson(first, first + second)

    def sides_recorded(self) -> bool | None:
        """Say whether it is known which answer was shown first; None if too few preferences have a winner.

        A file that always has the better answer on the same side does not tell.
        """
        first, second = self._sided()
        if (first and second) or self.placed.total():
            return True
        return None if first + second < FEWEST_SIDES else False

    def _sided(self) -> tuple[int, int]:
        """Return the wins of the first and of the second answer, as `first_wins` counts them."""
        first, second, here = self._won("first"), self._won("second"), self.placed
        if here.total() and (first == here["first"] or second == here["second"]):
            return here["first"], here["second"]
        return first, second

    def longer_wins(self) -> Estimate:
        """Return how often the longer answer (in characters) wins, among preferences with unequal lengths."""
        longer = self._won("first", 1) + self._won("second", -1)
        return stats.wilson(longer, longer + self._won("first", -1) + self._won("second", 1))

    def _won(self, side: str, sign: int | None = None) -> int:
        """Count preferences for a side; with `sign`, only those with that sign of the difference in length."""
        rows = ((key, count) for key, count in self.said.items() if key[2] == side)
        return sum(count for (_, _, _, longer), count in rows if sign is None or longer == sign)

    def ai_share(self) -> Estimate:
        """Return the share of judgments by a model (AI feedback)."""
        return stats.wilson(sum(n for (_, kind), n in self.raters.items() if kind == "judge"), self.judgments)

    def as_dict(self) -> dict[str, Any]:
        """Return the survey for a summary: counts, and rates with their intervals."""
        return {
            "prompts": self.prompts,
            "answers": self.answers,
            "judgments": self.judgments,
            "retracted": self.retracted,
            "outcomes": {dimension: dict(outcomes) for dimension, outcomes in self.outcomes().items()},
            "strengths": {f"{strength:g}": n for strength, n in sorted(self.strengths.items())},
            "raters": [{"name": name, "kind": kind, "judgments": n} for (name, kind), n in self.raters.most_common()],
            "models": dict(self.models.most_common()),
            "first_wins": self.first_wins().as_dict(),
            "longer_wins": self.longer_wins().as_dict(),
            "ai_feedback": self.ai_share().as_dict(),
        }


class Listener:
    """Counter of judgments, one by one as they are read; it keeps only the keys of prompts and answers."""

    def __init__(self) -> None:
        self._survey = Survey()
        self._prompts, self._answers = set[bytes](), set[bytes]()
        self._said: list[Said] = []

    def hear(self, judgment: Judgment) -> None:
        """Count a judgment, and remember its verdict on each comparison for `agreement`."""
        self.count(judgment)
        self._said.extend(comparisons_of(judgment, None if judgment.origin.file else {}))

    def count(self, judgment: Judgment) -> None:
        """Count a judgment for the survey alone."""
        survey, prompt = self._survey, prompt_id(judgment.prompt)
        self._prompts.add(prompt)
        for answer in judgment.answers:
            key = answer_id(prompt, answer)
            if key not in self._answers:
                self._answers.add(key)
                survey.models[answer.model] += 1
        kind, outcome, longer = type(judgment.verdict).__name__.lower(), "", 0
        if isinstance(judgment.verdict, Preference):
            outcome = judgment.verdict.outcome
            first, second = (len(a.text) for a in judgment.answers)
            longer = (first > second) - (first < second)
            if outcome in ("first", "second"):
                survey.strengths[judgment.verdict.strength] += 1
                survey.placed[outcome] += not judgment.origin.file
        survey.said[judgment.dimension, kind, outcome, longer] += 1
        survey.raters[judgment.rater, judgment.kind] += 1

    def survey(self) -> Survey:
        """Return the counts so far."""
        self._survey.prompts, self._survey.answers = len(self._prompts), len(self._answers)
        return self._survey

    def agreement(self) -> list[Agreement]:
        """Return the agreement of raters so far."""
        return agreement(self._said)


def count(judgments: Iterable[Judgment]) -> Survey:
    """Return the survey of a stream of judgments."""
    listener = Listener()
    for judgment in judgments:
        listener.count(judgment)
    return listener.survey()


def count_store(store: Store) -> Survey:
    """Return the survey of a store by queries, in seconds for a million judgments; counts all prompts and answers."""
    j, n, holding = schema.judgments, sa.func.count(), store.holding()
    kinds = j.c.dimension, j.c.kind, j.c.outcome, j.c.longer, j.c.file == sa.literal_column("''")
    graded = (j.c.outcome.in_(("first", "second")), *holding)
    raters = sa.select(j.c.rater, schema.raters.c.kind, n).join(schema.raters).where(*holding)
    said, placed = Counter[tuple[str, str, str, int]](), Counter[str]()
    for row in map(tuple, store.stream(sa.select(*kinds, n).where(*holding).group_by(*kinds))):
        said[row[0], row[1], row[2] or "", row[3] or 0] += row[5]
        if row[4] and row[2] in ("first", "second"):
            placed[row[2]] += row[5]
    models = _counter(store, sa.select(schema.answers.c.model, n).group_by(schema.answers.c.model))
    return Survey(
        prompts=store.read(sa.select(n).select_from(schema.prompts))[0][0],
        answers=models.total(),
        said=said,
        strengths=_counter(store, sa.select(j.c.value, n).where(*graded).group_by(j.c.value)),
        raters=_counter(store, raters.group_by(j.c.rater, schema.raters.c.kind)),
        models=models,
        retracted=store.read(sa.select(n).where(j.c.retracts.is_not(None)))[0][0],
        placed=placed,
    )


def _counter(store: Store, statement: sa.Select[Any]) -> Counter[Any]:
    """Return the counts in the last column by the columns before it; a single column is not made a tuple."""
    return Counter({row[0] if len(row) == 2 else tuple(row[:-1]): row[-1] for row in store.read(statement)})


_OUTCOMES = {
    "first": "first better",
    "second": "second better",
    "tie": "tie",
    "both_bad": "both bad",
    "score": "scores",
    "ranking": "rankings",
}
"""Heads of a table of `Survey.outcomes`."""


def outcome_table(outcomes: Mapping[str, Mapping[str, int]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the heads of the outcomes that occur, and each dimension's line of counts, sorted by name."""
    names = [name for name in _OUTCOMES if any(name in row for row in outcomes.values())]
    lines = [(dimension, [f"{row.get(name, 0):,}" for name in names]) for dimension, row in sorted(outcomes.items())]
    return [_OUTCOMES[name] for name in names], lines


# --- agreement ------------------------------------------------------------------------------------

FIRST, SECOND, TIE, BOTH_BAD = 1.0, 2.0, 0.0, 3.0
"""Codes for the outcome of a comparison, for the two answers in a given order."""
_MIRROR = {FIRST: SECOND, SECOND: FIRST}


@dataclass(frozen=True, slots=True)
class Said:
    """One rater's verdict on one item: a comparison of two answers (`value` is a code) or one answer (a score).

    `thing` is the key of the item: the keys of the two answers, the lesser first, or that of the one answer.
    """

    dimension: str
    rater: str
    thing: bytes
    value: float
    scored: bool
    swapped: bool = False
    """True if the answers of a comparison were shown in the reverse order of their keys."""
    own: bool | None = None
    """True if the comparison's stored order is the reverse order of the keys; None if it came from a file."""


Orders = Mapping[bytes, bool]
"""Comparisons (two answers' keys, the lesser first): True if their stored order is the reverse."""


def comparisons_of(judgment: Judgment, orders: Orders | None = None) -> Iterator[Said]:
    """Yield a judgment's verdict on each comparison, or on its one answer; nothing for an adjudicator's.

    An adjudicator has seen the others' verdicts. `orders`: stored orders of comparisons, for a judgment made here; None
    for one from a file.
    """
    if judgment.kind == "adjudicator":
        return
    prompt = prompt_id(judgment.prompt)
    keys = [answer_id(prompt, answer) for answer in judgment.answers]
    match judgment.verdict:
        case Preference(outcome, _):
            yield comparison_of(judgment.dimension, judgment.rater, keys[0], keys[1], outcome, orders)
        case Score(value):
            yield Said(judgment.dimension, judgment.rater, keys[0], value, True)
        case Ranking(ranks):
            for (a, rank), (b, other) in combinations(zip(keys, ranks, strict=True), 2):
                outcome = "first" if rank < other else "second" if rank > other else "tie"
                yield comparison_of(judgment.dimension, judgment.rater, a, b, outcome, orders)


def said_in_store(store: Store, kind: RaterKind | None = None) -> Iterator[Said]:
    """Yield the verdicts in a store, in the order in which judgments came, by one kind of rater or all.

    All excludes adjudicators. A judgment that came with a file is in the file's order. For one made here, sides were
    drawn at random, and the comparison's order is that of its task, or else of its keys. Rankings come last; they are
    few, and are read as whole judgments.
    """
    j, orders = schema.judgments, task_orders(store)
    columns = (j.c.dimension, j.c.rater, j.c.first, j.c.second, j.c.outcome, j.c.value, j.c.file)
    their = schema.raters.c.kind == kind if kind else schema.raters.c.kind != "adjudicator"
    names = sa.select(schema.raters.c.name).where(their)
    wanted = *store.holding(), j.c.rater.in_(names)
    statement = sa.select(*columns).where(*wanted, j.c.kind != "ranking").order_by(j.c.id)
    for row in store.stream(statement):
        if row.second is None:
            yield Said(row.dimension, row.rater, row.first, row.value, True)
        else:
            known = None if row.file else orders
            yield comparison_of(row.dimension, row.rater, row.first, row.second, row.outcome, known)
    for group in store.groups(j.c.kind == "ranking", j.c.rater.in_(names)):
        for _, judgment in group:
            yield from comparisons_of(judgment, None if judgment.origin.file else orders)


def task_orders(store: Store) -> Orders:
    """Return the order of every two answers in the first task that asks about both."""
    left, right = schema.shown.alias("left"), schema.shown.alias("right")
    both = sa.and_(left.c.task == right.c.task, left.c.place < right.c.place)
    orders: dict[bytes, bool] = {}
    statement = sa.select(left.c.answer, right.c.answer).join(right, both)
    statement = statement.order_by(left.c.task, left.c.place, right.c.place)
    for first, second in map(tuple, store.stream(statement)):
        orders.setdefault(min(first, second) + max(first, second), first > second)
    return orders


def comparison_of(
    dimension: str, rater: str, first: bytes, second: bytes, outcome: str, orders: Orders | None = None
) -> Said:
    """Return the verdict on a comparison; its `thing` is the same whichever answer was shown first."""
    code = {"first": FIRST, "second": SECOND, "tie": TIE, "both_bad": BOTH_BAD}[outcome]
    thing = min(first, second) + max(first, second)
    own = None if orders is None else orders.get(thing, False)
    return Said(dimension, rater, thing, code, False, first > second, own)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of raters in one dimension. Figures that cannot be computed are NaN."""

    dimension: str
    scored: bool
    """True for scores of single answers, False for preferences; alpha of scores uses interval values."""
    things: int
    """Items judged."""
    shared: int
    """Items judged by at least two raters."""
    agree: Estimate
    """Share of equal verdicts among all pairs of raters on the same item; `n` of its interval counts items."""
    alpha: Estimate
    fleiss: float
    """NaN unless every shared item has the same number of raters."""
    pairs: list[tuple[str, str, int, float, float]]
    """(rater, rater, shared items, share of equal verdicts, Cohen's kappa), the most shared first."""

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for a summary."""
        named = ("first", "second", "shared", "agree", "kappa")
        return {
            "dimension": self.dimension,
            "scored": self.scored,
            "things": self.things,
            "shared": self.shared,
            "agree": self.agree.as_dict(),
            "alpha": self.alpha.as_dict(),
            "fleiss_kappa": self.fleiss,
            "raters": [dict(zip(named, pair, strict=True)) for pair in self.pairs],
        }


def agreement(everything: Iterable[Said], most_pairs: int = 20) -> list[Agreement]:
    """Return the agreement in each dimension.

    An item that a rater judged twice is two items: second verdicts are compared with second verdicts.

    Chance-corrected figures take "first" and "second" as two values. So every comparison is read in one order: that of
    the first row of a file that has it, or else its stored order. Who judged first, and the side on which each rater
    saw an answer, change no figure.
    """
    tables: dict[tuple[str, bool], dict[bytes, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    of_file: dict[tuple[str, bytes], bool] = {}
    own: dict[tuple[str, bytes], bool] = {}
    for one in everything:
        table, thing, times = tables[one.dimension, one.scored], one.thing, 0
        while one.rater in table[thing]:
            times += 1
            thing = one.thing + times.to_bytes(4, "big")
        table[thing][one.rater] = _MIRROR.get(one.value, one.value) if one.swapped else one.value
        if one.own is None:
            of_file.setdefault((one.dimension, thing), one.swapped)
        else:
            own[one.dimension, thing] = one.own
    return [_agreement(*key, _in_order(key, table, own | of_file), most_pairs) for key, table in sorted(tables.items())]


def _in_order(
    key: tuple[str, bool], table: dict[bytes, dict[str, float]], swapped: Mapping[tuple[str, bytes], bool]
) -> list[dict[str, float]]:
    """Return each item's verdicts in the item's own order, not that of its keys; sorted by key and rater."""
    dimension, scored = key
    found = []
    for thing in sorted(table):
        verdicts = {rater: table[thing][rater] for rater in sorted(table[thing])}
        if not scored and swapped[dimension, thing]:
            verdicts = {rater: _MIRROR.get(value, value) for rater, value in verdicts.items()}
        found.append(verdicts)
    return found


def _agreement(dimension: str, scored: bool, things: list[dict[str, float]], most_pairs: int) -> Agreement:
    shared = [said for said in things if len(said) > 1]
    units = np.repeat(np.arange(len(shared)), [len(s) for s in shared])
    values = np.array([v for s in shared for v in s.values()])
    between: dict[tuple[str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    equal: list[float] = []
    for verdicts in shared:
        for a, b in combinations(verdicts, 2):
            left, right = between[a, b]
            left.append(verdicts[a])
            right.append(verdicts[b])
            equal.append(float(verdicts[a] == verdicts[b]))
    pairs = [
        (a, b, len(x), float(np.mean(np.equal(x, y))), stats.cohen_kappa(x, y)) for (a, b), (x, y) in between.items()
    ]
    pairs.sort(key=lambda pair: (-pair[2], pair[:2]))
    return Agreement(
        dimension,
        scored,
        len(things),
        len(shared),
        stats.wilson(float(np.mean(equal)) * len(shared), len(shared)) if shared else stats.wilson(0, 0),
        stats.krippendorff_alpha(units, values, interval=scored),
        _fleiss(shared),
        pairs[:most_pairs],
    )


def _fleiss(shared: list[dict[str, float]]) -> float:
    if len({len(verdicts) for verdicts in shared}) != 1:
        return float("nan")
    kinds = sorted({value for verdicts in shared for value in verdicts.values()})
    counts = np.array([[sum(v == kind for v in verdicts.values()) for kind in kinds] for verdicts in shared])
    return stats.fleiss_kappa(counts)
