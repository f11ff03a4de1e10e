"""Derivation of training pairs and ranked bundles from judgments. Nothing derived is stored: it is computed each time.

The rules, for all judgments of one prompt:

1. A `Preference` is a vote between two answers, with its strength as margin. A `Ranking` is a vote between every two
   answers of different rank, with margin 0: a rank is an order, not a distance. One rater's `Score`s are a vote
   between every two answers that they scored, with the difference as margin.
2. Dimensions: if any judgment is "overall", only those count. Otherwise a rater's verdicts on the same two answers in
   several dimensions make one vote: the mean of the signed strengths. Its sign names the better answer, and its size
   is the margin. A tie and two bad answers count 0, a preference without a grade 1; if any preference has no grade,
   the vote has none. If all verdicts are "both bad", so is the vote; any other mean of 0 is a tie. A rater's scores of
   an answer are averaged over the dimensions in which they scored both answers. A rater asked twice in a dimension
   casts two votes: the first answers in each dimension together, then the second. Unnamed judgments are paired up the
   same way: a row of a file says one thing in each dimension, and the next row the next.
3. If several named raters voted on the same two answers, the majority makes one pair, with the mean margin of those
   who agree with it. If as many prefer one as the other, or most prefer neither, there is no pair. Without names every
   vote makes a pair of its own.
4. If an adjudicator has judged two answers in a dimension, only their verdict counts there; of several, the last. If
   every dimension is decided so, these verdicts are the only vote. Otherwise they join each rater's verdicts in the
   other dimensions.
5. An answer drawn up to a length limit stays marked as cut: training gives it no EOS.
6. A tie and two bad answers make no pair. They are not faults, and are counted apart from rows that are wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import fmean

from keel.formats.messages import answer_key
from keel.records import OVERALL, Answer, Judgment, Pair, Preference, Ranking, Score

TIE, BOTH_BAD, SPLIT, ALONE = "tie", "both bad", "raters split evenly", "one answer alone"
_APART = "answers scored in different dimensions"


@dataclass(slots=True)
class Derived:
    """Pairs, and the number of comparisons that made none, by reason."""

    pairs: list[Pair] = field(default_factory=list)
    neutral: dict[str, int] = field(default_factory=lambda: defaultdict(int))


@dataclass(frozen=True, slots=True)
class _Vote:
    """A vote on two answers. `sign` is 1 if the first is better, -1 if the second is, 0 if neither: `why` says why."""

    first: Answer
    second: Answer
    sign: int
    margin: float
    why: str
    judgment: Judgment
    dimension: str
    """Empty for scores in several dimensions."""


def derive(judgments: Sequence[Judgment]) -> Derived:
    """Derive pairs from one prompt's judgments, by the rules above."""
    if any(j.dimension == OVERALL for j in judgments):
        judgments = [j for j in judgments if j.dimension == OVERALL]
    contests: dict[frozenset[str], list[_Vote]] = defaultdict(list)
    derived = Derived()
    for vote in _votes(judgments, derived):
        answers = vote.first, vote.second
        contests[frozenset([answer_key(a) if a.fields else a.text for a in answers])].append(vote)
    for votes in map(_whole, contests.values()):
        named = {v.judgment.rater for v in votes if v.judgment.rater}
        _majority(votes, derived) if len(named) > 1 else _each(votes, derived)
    return derived


def _whole(votes: list[_Vote]) -> list[_Vote]:
    """Merge the votes of one comparison: adjudicators overrule raters (rule 4), dimensions are averaged (rule 2)."""
    decided = {v.dimension: v for v in votes if v.judgment.kind == "adjudicator"}
    if decided:
        votes = [v for v in votes if v.dimension not in decided]
        if not votes:
            return [_mean(list(decided.values()))]
    elif len({v.dimension for v in votes}) == 1:
        return votes
    times: Counter[tuple[str, str]] = Counter()
    words: dict[tuple[str, int], list[_Vote]] = defaultdict(list)
    for vote in votes:
        said = vote.judgment.rater, vote.dimension
        words[said[0], times[said]].append(vote)
        times[said] += 1
    return [_mean([*some, *decided.values()]) for some in words.values()]


def _mean(votes: list[_Vote]) -> _Vote:
    """Average votes in several dimensions into one, with the answers in the order of the first."""
    if len(votes) == 1:
        return votes[0]
    lead = votes[0]
    signs = [v.sign if answer_key(v.first) == answer_key(lead.first) else -v.sign for v in votes]
    mean = fmean(sign * (v.margin or 1.0) for v, sign in zip(votes, signs, strict=True))
    graded = all(v.margin for v in votes if v.sign)
    why = BOTH_BAD if all(v.why == BOTH_BAD and not v.sign for v in votes) else TIE
    judgment = next((v.judgment for v in votes if v.judgment.ai), lead.judgment)
    margin = abs(mean) if graded else 0.0
    return replace(lead, sign=(mean > 0) - (mean < 0), margin=margin, why=why, judgment=judgment)


def _each(votes: list[_Vote], derived: Derived) -> None:
    for vote in votes:
        if vote.sign:
            derived.pairs.append(_pair(vote, vote.margin, vote.judgment.ai))
        else:
            derived.neutral[vote.why] += 1


def _majority(votes: list[_Vote], derived: Derived) -> None:
    """Add one pair for the majority, or count why there is none; each vote is read in the answer order of the first."""
    signs = [v.sign if answer_key(v.first) == answer_key(votes[0].first) else -v.sign for v in votes]
    lead = sum(signs)
    neither = [v.why for v, sign in zip(votes, signs, strict=True) if not sign]
    if lead == 0 or len(neither) > sum(sign * lead > 0 for sign in signs):
        split = len(neither) <= len(signs) - len(neither)
        derived.neutral[SPLIT if split else BOTH_BAD if set(neither) == {BOTH_BAD} else TIE] += 1
        return
    winners = [v for v, sign in zip(votes, signs, strict=True) if sign * lead > 0]
    derived.pairs.append(_pair(winners[0], fmean(v.margin for v in winners), any(v.judgment.ai for v in winners)))


def _pair(vote: _Vote, margin: float, ai: bool) -> Pair:
    chosen, rejected = (vote.first, vote.second) if vote.sign > 0 else (vote.second, vote.first)
    return Pair(
        vote.judgment.prompt,
        chosen.text,
        rejected.text,
        margin,
        vote.judgment.origin,
        ai,
        (chosen.truncated, rejected.truncated),
        " and ".join(sorted({chosen.model, rejected.model} - {""})),
        (chosen.fields, rejected.fields),
        (chosen.drawn, rejected.drawn),
    )


def _votes(judgments: Sequence[Judgment], derived: Derived) -> Iterator[_Vote]:
    scored: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        match judgment.verdict:
            case Preference(outcome, strength):
                first, second = judgment.answers
                sign = {"first": 1, "second": -1}.get(outcome, 0)
                why = BOTH_BAD if outcome == "both_bad" else TIE
                yield _Vote(first, second, sign, strength, why, judgment, judgment.dimension)
            case Ranking(ranks):
                for (a, rank), (b, other) in combinations(zip(judgment.answers, ranks, strict=True), 2):
                    sign = (other > rank) - (other < rank)
                    yield _Vote(a, b, sign, 0.0, TIE, judgment, judgment.dimension)
            case Score():
                scored[judgment.rater].append(judgment)
    for group in scored.values():
        yield from _votes_of_scores(group, derived)


def _votes_of_scores(group: list[Judgment], derived: Derived) -> Iterator[_Vote]:
    """Yield votes from one rater's scores of one prompt's answers; of two scores of one answer the last counts."""
    table: dict[str, dict[str, float]] = defaultdict(dict)
    last: dict[str, Judgment] = {}
    for judgment in group:
        assert isinstance(judgment.verdict, Score)
        key = answer_key(judgment.answers[0])
        table[key][judgment.dimension] = judgment.verdict.value
        last[key] = judgment
    if len(table) == 1:
        derived.neutral[ALONE] += 1
    for a, b in combinations(table, 2):
        shared = table[a].keys() & table[b].keys()
        if not shared:
            derived.neutral[_APART] += 1
            continue
        lead = fmean(table[a][d] - table[b][d] for d in shared)
        first, second = last[a].answers[0], last[b].answers[0]
        dimension = next(iter(shared)) if len(shared) == 1 else ""
        yield _Vote(first, second, (lead > 0) - (lead < 0), abs(lead), TIE, last[a], dimension)
