"""Formats of no tool in particular: two answers and a verdict, scores, rankings. `--columns` leads to these, too.

Answers are text or messages as in TRL's pairs (`response_a` and `response_b` for `chosen` and `rejected`), and the
further columns are those of `keel_columns`: a row is read and written as TRL's, under other names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from keel.files.fields import Row, RowError, items, number_in, one_line
from keel.formats.judgments.base import Judged, as_preference, name_in, ranks, score, shape
from keel.formats.judgments.pairs import PAIR_FORMATS
from keel.records import Answer, Judgment, Origin, Outcome, Preference, Prompt, Ranking, Score

__all__ = ["GENERIC", "MEANINGS", "spelt"]

TRL, KTO = PAIR_FORMATS[0], PAIR_FORMATS[1]
_VERDICT = "preference"
MEANINGS: dict[str, Outcome] = {"a": "first", "b": "second", "tie": "tie", "both_bad": "both_bad"}
"""Meanings that a value of a verdict column can be given."""
_ANSWERS = "response_", "answer_", "model_", "output_", "assistant_", "completion_"
_WORDS: dict[str, Outcome] = {
    **dict.fromkeys(("a", "a>b", "a>>b", "b<a", "b<<a", "left", "first", "[[a]]"), "first"),
    **dict.fromkeys(("b", "a<b", "a<<b", "b>a", "b>>a", "right", "second", "[[b]]"), "second"),
    **{f"{name}{side}": "first" for name in _ANSWERS for side in "a1"},
    **{f"{name}{side}": "second" for name in _ANSWERS for side in "b2"},
    **dict.fromkeys(("a=b", "b=a", "a==b", "b==a", "tie", "draw", "equal", "same", "both_good", "both good"), "tie"),
    **dict.fromkeys(("tie (bothgood)", "tie (both good)", "[[c]]"), "tie"),
    **dict.fromkeys(("both_bad", "both bad", "bothbad", "tie (bothbad)", "tie (both bad)", "neither"), "both_bad"),
}
"""Names of verdicts, in lower case and without spaces around <, = and >."""
CODES: dict[str, dict[str, Outcome]] = {
    "0 = the first answer, 1 = the second": {"0": "first", "1": "second"},
    "1 = the first answer, 2 = the second": {"1": "first", "2": "second"},
}
ODD = 5  # at most so many values without a meaning are named
REMEDY = "say what the values mean, as in --columns preference=COLUMN:1=a:2=b:0=tie"


def spelt(value: object) -> str:
    """Return a value of a verdict column in the spelling under which it is looked up."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    word = " ".join(str(value).lower().split())
    for sign in "<=>":
        word = word.replace(f" {sign}", sign).replace(f"{sign} ", sign)
    return word.removesuffix(".0") if word[:-2].lstrip("-").isdigit() else word


# --- two answers and a verdict --------------------------------------------------------------------


def _as_trl(row: Row, without: Iterable[str]) -> Row:
    """Return the row under TRL's names."""
    new: Row = {}
    for column, value in row.items():
        if column in TRL_NAMES:
            new[TRL_NAMES[column]] = value
        elif isinstance(column, str) and column.startswith(("response_a_", "response_b_")):
            new[("chosen" if column[9] == "a" else "rejected") + column[10:]] = value
        elif column not in without and column not in ("chosen", "rejected", "chosen_shown"):
            new[column] = value
    return new


TRL_NAMES = {
    "response_a": "chosen", "response_b": "rejected", "model_a": "chosen_model", "model_b": "rejected_model",
}  # fmt: skip


def _of_trl(row: Row) -> Row:
    """Return a row under this format's names instead of TRL's."""
    new: Row = {}
    for column, value in row.items():
        side, mark, rest = column.partition("_")
        new[{"chosen": "response_a", "rejected": "response_b"}.get(side, side) + mark + rest] = value
    return new


def _renaming(call: Callable[[], Any]) -> Any:
    """Return the result of `call`; if it raises, the reason names the columns that the file has."""
    try:
        return call()
    except RowError as error:
        said = str(error).replace("rejected", "response_b").replace("chosen", "response_a")
        raise type(error)(said) from None


def _two(row: Row, origin: Origin, without: Iterable[str]) -> Judgment:
    """Read two answers to a prompt, with the first marked as the better one."""
    found: list[Judgment] = _renaming(lambda: TRL.read(_as_trl(row, without), origin))
    return found[0]


def _two_prompt(without: Iterable[str]) -> Callable[[Row], Prompt]:
    return lambda row: _renaming(lambda: TRL.prompt(_as_trl(row, without)))  # type: ignore[no-any-return]


def _read_vote(codes: dict[str, Outcome]) -> Callable[[Row, Origin], list[Judgment]]:
    """Return a reader of verdicts, bare numbers by `codes`; the first few values without a meaning are named."""
    odd: set[str] = set()

    def read(row: Row, origin: Origin) -> list[Judgment]:
        outcome = _outcome(row, codes)
        if outcome is None:
            value = one_line(row[_VERDICT])
            if len(odd) < ODD:
                odd.add(value)
            named = f"{_VERDICT} {value}" if value in odd else f"another {_VERDICT}"
            raise RowError(f"{named} says of neither answer that it is better")
        found = _two(row, origin, (_VERDICT,))
        strength = as_preference(found).strength
        return [replace(found, verdict=Preference(outcome, strength if outcome in ("first", "second") else 0.0))]

    return read


def _outcome(row: Row, codes: dict[str, Outcome]) -> Outcome | None:
    """Return the outcome that a word, a code, or the name or text of one answer means; None for anything else."""
    value = row.get(_VERDICT)
    if value is None or value == "":
        raise RowError(f"no {_VERDICT}")
    word = spelt(value)
    found = _WORDS.get(word) or codes.get(word)
    if found is None:
        for a, b in (("model_a", "model_b"), ("response_a", "response_b")):
            if (value == row.get(a)) != (value == row.get(b)):
                return "first" if value == row.get(a) else "second"
    return found


def _write_vote(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in group:
        verdict = as_preference(judgment)
        forward = replace(judgment, verdict=Preference("first", verdict.strength))
        row = _of_trl(_renaming(lambda forward=forward: TRL.write([forward]))[0])  # type: ignore[misc]
        said = {"first": "response_a", "second": "response_b"}.get(verdict.outcome, verdict.outcome)
        if _VERDICT in row:
            raise RowError(f"the further column '{_VERDICT}' has the name of one of the format's own")
        rows.append(row | {_VERDICT: said})
    return rows


def _over(head: Sequence[Row]) -> Judged:
    """Return the format with the meaning of bare numbers from the first rows; raises `RowError` if it is unclear."""
    bare = {spelt(row[_VERDICT]) for row in head if row.get(_VERDICT) not in (None, "")}
    bare = {word for word in bare if word.lstrip("-").replace(".", "", 1).isdigit()}
    if not bare:
        return replace(VOTE, read=_read_vote({}))
    fitting = [said for said, codes in CODES.items() if bare <= codes.keys() and not bare <= {"1"}]
    if len(fitting) != 1:
        raise RowError(
            f"{_VERDICT} is {' or '.join(sorted(bare)[:5])}, and which answer that means cannot be told; {REMEDY}"
        )
    said = fitting[0]
    codes = CODES[said]
    return replace(
        VOTE,
        read=_read_vote(codes),
        remarks=lambda row: (f"{_VERDICT} read as {said}",) if spelt(row[_VERDICT]) in codes else (),
    )


VOTE = Judged(
    _VERDICT, ("response_a", "response_b", _VERDICT), _read_vote({}), _write_vote, _two_prompt((_VERDICT,)), over=_over
)

# --- scores ---------------------------------------------------------------------------------------


def _read_two_scores(row: Row, origin: Origin) -> list[Judgment]:
    """Read one rater's scores of two answers."""
    found = _two(row, origin, ("score_a", "score_b"))
    values = number_in(row, "score_a"), number_in(row, "score_b")
    return [
        replace(found, answers=(answer,), verdict=Score(value))
        for answer, value in zip(found.answers, values, strict=True)
    ]


def _write_two_scores(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for first, second in _in_twos(group):
        both = replace(first, answers=(first.answers[0], second.answers[0]), verdict=Preference("first"))
        row = _of_trl(_renaming(lambda both=both: TRL.write([both]))[0])  # type: ignore[misc]
        if {"score_a", "score_b"} & row.keys():
            raise RowError("a further column has the name of one of the format's own")
        rows.append(row | {"score_a": shape(score(first)), "score_b": shape(score(second))})
    return rows


def _in_twos(group: Sequence[Judgment]) -> Iterator[tuple[Judgment, Judgment]]:
    """Yield scores by the same rater in the same dimension, two by two; raises `RowError` if one is left."""
    waiting: list[Judgment] = []
    for judgment in group:
        score(judgment)
        partner = next((j for j in waiting if _said_by(j) == _said_by(judgment)), None)
        if partner is None:
            waiting.append(judgment)
        else:
            waiting.remove(partner)
            yield partner, judgment
    if waiting:
        raise RowError("a score of one answer alone, but the format holds two")


def _said_by(judgment: Judgment) -> Judgment:
    """Return a judgment without its answers, verdict and origin."""
    return replace(judgment, answers=(), verdict=Score(0), origin=Origin())


def _read_score(row: Row, origin: Origin) -> list[Judgment]:
    found = _one(row, row.get("response"), ("response", "score"), "response", origin)
    return [replace(found, verdict=Score(number_in(row, "score")))]


def _one(row: Row, answer: Any, without: Iterable[str], column: str, origin: Origin) -> Judgment:
    """Read one answer to a prompt as TRL's KTO has it; reasons name `column`."""
    rest = {name: value for name, value in row.items() if name not in without and name not in ("completion", "label")}
    if column == "response":
        rest = {
            (f"completion{name[8:]}" if name.startswith("response_") else name): value for name, value in rest.items()
        }
        rest |= {"completion_model": row["model"]} if rest.pop("model", None) is not None else {}
    try:
        return KTO.read(rest | {"completion": answer, "label": True}, origin)[0]
    except RowError as error:
        raise type(error)(str(error).replace("completion", column)) from None


def _under(row: Row, old: str, new: str) -> Row:
    """Return the row with another name for an answer, also in the columns that say more about it."""
    return {
        (new + name[len(old) :] if name == old or name.startswith(f"{old}_") else name): value
        for name, value in row.items()
    }


def _write_score(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in group:
        row = KTO.write([replace(judgment, verdict=Score(1))])[0]
        del row["label"]
        row = {
            (f"response{name[10:]}" if name.startswith("completion") else name): value for name, value in row.items()
        }
        if "score" in row:
            raise RowError("the further column 'score' has the name of one of the format's own")
        rows.append(row | {"score": shape(score(judgment))})
    return rows


# --- several answers ------------------------------------------------------------------------------


def _several(row: Row, other: str, origin: Origin) -> list[Judgment]:
    """Read each of the `responses` by itself, with its model if `models` names them; `other` holds as many values."""
    responses, more = items(row, "responses"), items(row, other)
    models = items(row, "models") if row.get("models") not in (None, "") else [None] * len(responses)
    if not len(responses) == len(more) == len(models):
        raise RowError(f"responses, {other} and models differ in number")
    if len(responses) < 2:
        raise RowError("responses are fewer than two")
    without = "responses", "models", other
    found = [_one(row, answer, without, "a response", origin) for answer in responses]
    return [
        replace(j, answers=(replace(j.answers[0], model=name_in({"a model": model}, "a model") or j.answers[0].model),))
        for j, model in zip(found, models, strict=True)
    ]


def _read_ranks(row: Row, origin: Origin) -> list[Judgment]:
    """Read ranks from 1 or from 0; the lowest is the best."""
    found = _several(row, "ranks", origin)
    places = [number_in({"a rank": place}, "a rank") for place in items(row, "ranks")]
    if any(place < 0 or not place.is_integer() for place in places):
        raise RowError("ranks are not whole numbers from 0")
    base = 1 if 0 in places else 0
    verdict = Ranking(tuple(int(place) + base for place in places))
    return [replace(found[0], answers=tuple(j.answers[0] for j in found), verdict=verdict)]


def _read_scores(row: Row, origin: Origin) -> list[Judgment]:
    """Read one rater's score of each answer; an answer without one is left out."""
    scored = zip(_several(row, "scores", origin), items(row, "scores"), strict=True)
    found = [replace(j, verdict=Score(number_in({"a score": v}, "a score"))) for j, v in scored if v not in (None, "")]
    if not found:
        raise RowError("no score")
    return found


def _unscored(row: Row) -> Iterable[str]:
    return ("a score is missing" for value in items(row, "scores") if value in (None, ""))


def _listing(judgment: Judgment, answers: Sequence[Answer]) -> Row:
    """Return the row of several answers, without the verdict on them."""
    rows = [KTO.write([replace(judgment, answers=(answer,), verdict=Score(1))])[0] for answer in answers]
    own = {name: value for name, value in rows[0].items() if not name.startswith("completion") and name != "label"}
    if taken := own.keys() & {"responses", "models", "ranks", "scores"}:
        raise RowError(f"the further column {min(taken)!r} has the name of one of the format's own")
    listed: Row = {"responses": [row["completion"] for row in rows]}
    if any(answer.model for answer in answers):
        listed["models"] = [answer.model for answer in answers]
    return own | listed


def _write_ranks(group: Sequence[Judgment]) -> list[Row]:
    return [_listing(judgment, judgment.answers) | {"ranks": list(ranks(judgment))} for judgment in group]


def _write_scores(group: Sequence[Judgment]) -> list[Row]:
    """Return a row for each rater and dimension."""
    rows: list[tuple[Judgment, list[Judgment]]] = []
    for judgment in group:
        score(judgment)
        alike = _said_by(judgment)
        held = next((some for key, some in rows if key == alike), None)
        if held is None:
            rows.append((alike, [judgment]))
        else:
            held.append(judgment)
    if any(len(some) < 2 for _, some in rows):
        raise RowError("a score of one answer alone, but the format holds two or more")
    return [
        _listing(some[0], [j.answers[0] for j in some]) | {"scores": [shape(score(j)) for j in some]}
        for _, some in rows
    ]


# --- the table ------------------------------------------------------------------------------------

KTO_PROMPT = KTO.prompt
GENERIC = (
    VOTE,
    Judged(
        "two-scores",
        ("response_a", "response_b", "score_a", "score_b"),
        _read_two_scores,
        _write_two_scores,
        _two_prompt(("score_a", "score_b")),
    ),
    Judged("ranks", ("prompt", "responses", "ranks"), _read_ranks, _write_ranks, KTO_PROMPT),
    Judged("scores", ("prompt", "responses", "scores"), _read_scores, _write_scores, KTO_PROMPT, remarks=_unscored),
    Judged("score", ("prompt", "response", "score"), _read_score, _write_score, KTO_PROMPT, spread=True),
)
