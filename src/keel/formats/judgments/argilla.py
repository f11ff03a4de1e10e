"""Argilla's export: fields as columns, and for each question q the columns q.responses, q.responses.users, .status.

The prompt is the first of the columns `prompt`, `instruction`, `question`, `query`. The answers are the other text
columns whose names differ in a last number or letter only (`response-1`, `response-2`; `answer_a`, `answer_b`), or else
one column `response`, `completion`, `answer` or `output`. The values of a question show what it asks:

- texts that name an answer's column, or a tie or two bad answers: a preference
- lists of {rank, value}, each value an answer's column: a ranking
- numbers: a score of the only answer, or of the one whose column or last number ends the question's name
- other texts: a comment of the same person

Only submitted responses count. A question with a usual name (`preference`, `rating`, …) asks for the overall verdict;
any other name is the dimension.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from keel.files.fields import Neutral, Row, RowError, items, number_in, one_line, others, text
from keel.formats.judgments.base import Judged, as_chat, becomes_chat, name_in, one_text, shape, with_extra
from keel.formats.messages import messages, without_fields
from keel.records import OVERALL, Answer, Judgment, Origin, Outcome, Preference, Prompt, Ranking, Score, Verdict

PROMPT_COLUMNS = "prompt", "instruction", "question", "query"
ALONE = "response", "completion", "answer", "output"
NUMBER = re.compile(r"(?:[-_ ]?\d+|[-_ ][A-Za-z])$")
USUAL = {OVERALL, "preference", "ranking", "rating", "score", "label", "choice", "better", "best", "quality"}
OUTCOMES: dict[str, Outcome] = {
    "tie": "tie", "equal": "tie", "same": "tie", "both_good": "tie",
    "both_bad": "both_bad", "neither": "both_bad", "none": "both_bad",
}  # fmt: skip
RESPONSES = ".responses"
NO_ANSWERS = "no columns of answers, such as response-1 and response-2"
STATUSES = "submitted", "draft", "discarded", "pending"


@dataclass(frozen=True, slots=True)
class _Response:
    """One person's response to one question."""

    question: str
    user: str
    value: Any


def _questions(row: Row) -> list[str]:
    return [c.removesuffix(RESPONSES) for c in row if isinstance(c, str) and c.endswith(RESPONSES)]


def _responses(row: Row, question: str) -> Iterator[tuple[_Response, str]]:
    """Yield (response, status) for each person."""
    if row.get(question + RESPONSES) in (None, ""):
        return
    column = question + RESPONSES
    values, users, statuses = (items(row, c) for c in (column, f"{column}.users", f"{column}.status"))
    if not len(values) == len(users) == len(statuses):
        raise RowError(f"{one_line(column)}, its users and its status differ in number")
    for value, user, status in zip(values, users, statuses, strict=True):
        known = isinstance(status, str) and status in STATUSES
        yield _Response(question, name_in({"a user": user}, "a user"), value), status if known else "of unknown status"


def _prompt_column(row: Row) -> str:
    found = next((column for column in PROMPT_COLUMNS if row.get(column) is not None), None)
    if found is None:
        raise RowError(f"no prompt, which is looked for as {', '.join(PROMPT_COLUMNS)}")
    return found


def prompt_in(row: Row) -> Prompt:
    """Return the prompt, from the first column that is named as one."""
    column = _prompt_column(row)
    return messages(row, column) if isinstance(row[column], list) else as_chat(text(row, column))


def answers_in(row: Row) -> dict[str, str]:
    """Return answers by column; an empty cell is no answer."""
    fields = {
        column: value
        for column, value in row.items()
        if value and isinstance(value, str) and "." not in column and column != _prompt_column(row)
    }
    stems: dict[str, list[str]] = defaultdict(list)
    for column in fields:
        stems[NUMBER.sub("", column)].append(column)
    if not stems:
        raise RowError(NO_ANSWERS)
    usual = max(stems, key=lambda stem: (len(stems[stem]) > 1, any(w in stem.lower() for w in ALONE), len(stems[stem])))
    columns = stems[usual] if len(stems[usual]) > 1 else [column for column in ALONE if column in fields][:1]
    if not columns:
        raise RowError(NO_ANSWERS)
    return {column: text(row, column) for column in columns}


def _read(row: Row, origin: Origin) -> list[Judgment]:
    before, answers = prompt_in(row), answers_in(row)
    known = {_prompt_column(row), *answers}
    known |= {f"{q}{RESPONSES}{more}" for q in _questions(row) for more in ("", ".users", ".status")}
    found, comments = [], defaultdict(list)
    for question in _questions(row):
        for response, status in _responses(row, question):
            if status != "submitted" or response.value is None:
                continue
            if _is_comment(response.value, answers):
                comments[response.user].append(text({question: response.value}, question))
            else:
                found.append(_judgment(before, response, answers, origin))
    if not found and comments:
        raise RowError("no question prefers, ranks or rates an answer")
    if not found:
        raise Neutral("no submitted response")
    extra = others(row, known)
    return [replace(j, extra=extra, comment="\n".join(comments[j.rater])) for j in found]


def _is_comment(value: object, answers: dict[str, str]) -> bool:
    return isinstance(value, str) and value not in answers and value.lower() not in OUTCOMES


def _judgment(before: Prompt, response: _Response, answers: dict[str, str], origin: Origin) -> Judgment:
    names, name = list(answers), response.question
    dimension = text({"a question": name}, "a question")
    verdict: Verdict
    if isinstance(response.value, str):
        if len(names) != 2:
            raise RowError(f"{one_line(name)} prefers one of {len(names)} answers, and a preference is between two")
        value = response.value
        verdict = Preference(OUTCOMES[value.lower()] if value not in names else ("first", "second")[names.index(value)])
    elif isinstance(response.value, list):
        verdict = Ranking(_ranks(response, names))
    else:
        verdict = Score(number_in({name: response.value}, name))
        rated, dimension = _rated(name, names)
        names = [rated]
    judged = tuple(Answer(answers[column]) for column in names)
    dimension = OVERALL if not dimension or dimension.lower() in USUAL else dimension
    return Judgment(before, judged, verdict, rater=response.user, kind="person", dimension=dimension, origin=origin)


def _ranks(response: _Response, names: list[str]) -> tuple[int, ...]:
    """Return the rank of each answer, in the order of their columns."""
    places: dict[str, int] = {}
    for item in response.value:
        value, rank = (item.get("value"), item.get("rank")) if isinstance(item, dict) else (None, None)
        if not isinstance(value, str) or isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise RowError(f"{one_line(response.question)} has no rank from 1 and value in each place")
        places[value] = rank
    if len(places) != len(response.value) or set(places) != set(names) or len(names) < 2:
        raise RowError(f"{one_line(response.question)} does not rank each answer once")
    return tuple(places[name] for name in names)


def _rated(question: str, names: list[str]) -> tuple[str, str]:
    """Return (the answer's column, the dimension) of a question that asks for a number."""
    if len(names) == 1:
        return names[0], question
    for name in names:
        ending = NUMBER.search(name)
        for tail in (name, ending.group().lstrip("-_ ") if ending else name):
            stem = question.removesuffix(tail)
            apart = not stem or stem[-1] in "-_ " or (tail.isdigit() and not stem[-1].isdigit())
            if stem != question and apart:
                return name, stem.rstrip("-_ ") or OVERALL
    raise RowError(f"{one_line(question)} does not say which answer it rates")


def _remarks(row: Row) -> Iterator[str]:
    answers = answers_in(row)
    for question in _questions(row):
        for response, status in _responses(row, question):
            if status != "submitted":
                yield f"a response is {status}, not submitted"
            elif response.value is None:
                yield "a submitted response is empty"
            elif _is_comment(response.value, answers):
                yield f"text of {one_line(question)} kept as a comment"


# --- writing


def _write(group: Sequence[Judgment]) -> list[Row]:
    """Return a row for answers that were judged together; a new one begins when these or the further columns change."""
    rows: list[Row] = []
    last: Judgment | None = None
    for judgment in group:
        texts = [without_fields(answer) for answer in judgment.answers]
        columns = [f"response-{i}" for i in range(1, len(texts) + 1)] if len(texts) > 1 else ["response"]
        together = last and (last.prompt, [a.text for a in last.answers], last.extra)
        if together != (judgment.prompt, texts, judgment.extra):
            row = {"prompt": _asked(judgment.prompt)} | dict(zip(columns, texts, strict=True))
            rows.append(with_extra(judgment, row))
        _respond(rows[-1], judgment, columns)
        last = judgment
    return rows


def _asked(prompt: Prompt) -> Prompt:
    try:
        return one_text(prompt)
    except RowError:
        return prompt  # a chat field holds turns


def _respond(row: Row, judgment: Judgment, columns: list[str]) -> None:
    match judgment.verdict:
        case Preference("first" | "second" as outcome):
            value: Any = columns[0 if outcome == "first" else 1]
        case Preference(outcome):
            value = outcome
        case Ranking(places):
            value = [{"rank": place, "value": column} for place, column in zip(places, columns, strict=True)]
        case Score(number_in):
            value = shape(number_in)
    _append(row, judgment.dimension, value, judgment.rater)
    said = zip(row.get("comment" + RESPONSES, []), row.get(f"comment{RESPONSES}.users", []), strict=False)
    if judgment.comment and (judgment.comment, judgment.rater) not in said:
        _append(row, "comment", judgment.comment, judgment.rater)


def _append(row: Row, question: str, answer: Any, user: str) -> None:
    for more, item in (("", answer), (".users", user), (".status", "submitted")):
        column = f"{question}{RESPONSES}{more}"
        if not isinstance(row.setdefault(column, []), list):
            raise RowError(f"the further column {one_line(column)} has the name of one of the format's own")
        row[column].append(item)


def _looks_like_argilla(row: Row) -> bool:
    return any(f"{question}{RESPONSES}.{more}" in row for question in _questions(row) for more in ("users", "status"))


ARGILLA = Judged(
    "argilla", (), _read, _write, prompt_in, fits=_looks_like_argilla, becomes=becomes_chat, remarks=_remarks
)
