"""Conversion of judgments into rows of the store's tables, and of rows into judgments."""

from __future__ import annotations

import json
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from keel.records import Answer, Drawn, Judgment, Origin, Preference, Prompt, Ranking, Score
from keel.store.keys import answer_id, content_of, in_order, prompt_id, stored_json
from keel.store.schema import answers, judgments, places, prompts, raters

CHUNK = 10_000
"""Judgments in one transaction of an import: few enough to wait for, many enough to be fast."""
REMEMBERED = 100_000
"""Number of stored prompts and answers to remember, so that they are not sent again."""
TABLES = prompts, answers, raters, judgments, places
"""Tables of judgments; each comes after those it refers to."""
JUDGMENT_COLUMNS = [c.name for c in judgments.columns if c.name != "id"]
TableRow = tuple[Any, ...]
"""A table's row in the order of its columns; judgments without the id, which the database assigns."""
Rows = tuple[list[TableRow], ...]
"""Rows that some judgments add to each of `TABLES`."""

# --- in -------------------------------------------------------------------------------------------


def rows_of(found: Iterable[tuple[bytes, Judgment]]) -> Iterator[Rows]:
    """Yield the rows of judgments, `CHUNK` at a time, without prompts and answers that came before."""
    known: dict[bytes, None] = {}
    source = iter(found)
    while some := list(islice(source, CHUNK)):
        rows = _rows(some, known)
        known.update(dict.fromkeys(row[0] for row in (*rows[0], *rows[1])))
        for key in list(islice(known, max(0, len(known) - REMEMBERED))):
            del known[key]
        yield rows


def _rows(some: Sequence[tuple[bytes, Judgment]], known: Container[bytes]) -> Rows:
    """Return the rows of some judgments. Rows that another writer may bring, too, are sorted to avoid deadlocks."""
    asked: dict[bytes, TableRow] = {}
    written: dict[bytes, TableRow] = {}
    people: dict[str, TableRow] = {}
    said: list[TableRow] = []
    placed: list[TableRow] = []
    for key, judgment in some:
        prompt = prompt_id(judgment.prompt)
        if prompt not in known and prompt not in asked:
            asked[prompt] = prompt_row(prompt, judgment.prompt, judgment.origin)
        shown = [answer_id(prompt, answer) for answer in judgment.answers]
        for answer_shown, answer in zip(shown, judgment.answers, strict=True):
            if answer_shown not in known and answer_shown not in written:
                written[answer_shown] = answer_row(answer_shown, prompt, answer)
        people.setdefault(judgment.rater, (judgment.rater, judgment.kind))
        said.append(_judgment_row(key, prompt, shown, judgment))
        if isinstance(judgment.verdict, Ranking):
            ranked = enumerate(zip(shown, judgment.verdict.ranks, strict=True))
            placed += ((key, place, answer_shown, rank) for place, (answer_shown, rank) in ranked)
    in_order = ([rows[key] for key in sorted(rows)] for rows in (asked, written))
    return (*in_order, [people[name] for name in sorted(people)], said, placed)


def prompt_row(key: bytes, prompt: Prompt, origin: Origin) -> TableRow:
    """Return a prompt as a row."""
    content, chat = content_of(prompt)
    return key, content, chat, origin.file, origin.row


def answer_row(key: bytes, prompt: bytes, a: Answer) -> TableRow:
    """Return an answer as a row."""
    written = a.model, a.model_hash, in_order(a.sampling), a.draw, a.logp, a.tokens, a.truncated
    drawn = "" if a.drawn is None else json.dumps([a.drawn.tokenizer, a.drawn.ids], separators=(",", ":"))
    return key, prompt, a.text, len(a.text), *written, in_order(a.fields), drawn


def _judgment_row(key: bytes, prompt: bytes, shown: Sequence[bytes], j: Judgment) -> TableRow:
    match j.verdict:
        case Preference(outcome, strength):
            first, second = (len(a.text) for a in j.answers)
            longer = (first > second) - (first < second)
            said: TableRow = "preference", prompt, *shown, outcome, strength, longer
        case Score(value):
            said = "score", prompt, shown[0], None, None, value, None
        case Ranking():
            said = "ranking", prompt, None, None, None, None, None
    by = j.dimension, j.rater, j.rubric, j.seconds, j.comment, j.raw, stored_json(j.extra)
    return key, *said, *by, j.origin.file, j.origin.row, time.time(), None


def insert_statement(table: sa.Table, dialect: sa.Dialect) -> str:
    """Return SQL that adds a row, or leaves an existing one as it is."""
    kinds = {"sqlite": sqlite, "postgresql": postgresql}
    statement = kinds[dialect.name].insert(table).on_conflict_do_nothing()
    names = [c.name for c in table.columns if c.name != "id"]
    return str(statement.compile(dialect=dialect, column_keys=names))


# --- out ------------------------------------------------------------------------------------------


def stored_prompt(row: Any) -> Prompt:
    """Return the prompt in the columns `content` and `chat`."""
    return json.loads(row.content) if row.chat else row.content  # type: ignore[no-any-return]


def stored_answer(row: Any, name: str) -> Answer:
    """Return the answer in the columns that begin with its name."""
    sampling, fields, drawn = (getattr(row, f"{name}_{column}") for column in ("sampling", "fields", "drawn"))
    return Answer(
        text=getattr(row, f"{name}_text"),
        model=getattr(row, f"{name}_model"),
        model_hash=getattr(row, f"{name}_model_hash"),
        sampling=json.loads(sampling) if sampling else None,
        draw=getattr(row, f"{name}_draw"),
        logp=getattr(row, f"{name}_logp"),
        tokens=getattr(row, f"{name}_tokens"),
        truncated=getattr(row, f"{name}_truncated"),
        fields=json.loads(fields) if fields else None,
        drawn=_drawn_of(drawn) if drawn else None,
    )


def _drawn_of(column: str) -> Drawn:
    tokenizer, ids = json.loads(column)
    return Drawn(tokenizer, tuple(ids))


def stored_judgment(row: Any, ranked: list[tuple[Answer, int]] | None) -> Judgment:
    """Return a row of judgment, prompt, rater and answers as a judgment; `ranked` has a ranking's answers and ranks."""
    shown: tuple[Answer, ...]
    verdict: Preference | Score | Ranking
    match row.kind:
        case "preference":
            shown, verdict = (stored_answer(row, "a"), stored_answer(row, "b")), Preference(row.outcome, row.value)
        case "score":
            shown, verdict = (stored_answer(row, "a"),), Score(row.value)
        case _:
            assert ranked is not None
            shown, verdict = tuple(a for a, _ in ranked), Ranking(tuple(rank for _, rank in ranked))
    return Judgment(
        stored_prompt(row),
        shown,
        verdict,
        rater=row.rater,
        kind=row.rater_kind,
        dimension=row.dimension,
        rubric=row.rubric,
        seconds=row.seconds,
        comment=row.comment,
        raw=row.raw,
        extra=json.loads(row.extra) if row.extra else None,
        origin=Origin(row.file, row.row),
    )
