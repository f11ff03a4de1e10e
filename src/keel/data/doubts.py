"""Doubts about rows that are right in form but may not be intended: noted with row numbers, never dropped.

A training command prints these notes at its start; `keel data check` explains each. Every check here is a few searches
for a fixed string in most texts, since it runs over all rows of every command.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from keel.records import Demonstration, Judgment, Pair, Preference, PromptRow, RowCounts
from keel.text import same

_Row = Pair | Demonstration | PromptRow


@dataclass(frozen=True, slots=True)
class Doubt:
    """One kind of doubt: the note under which it is counted, and its meaning."""

    note: str
    level: Literal["warning", "note"]
    meaning: str


MISSING = Doubt(
    "a missing value written as a word, such as nan or None",
    "warning",
    "The whole prompt or answer is such a word. If it was an empty cell of a table, remove these rows.",
)
SPACE = Doubt(
    "the prompt ends in a space",
    "warning",
    "Most tokenizers join a space to the word after it. At a prompt's end the space is a token of its own, and a model "
    "has hardly ever seen a word follow that token. Move the space from the prompt to the start of the answers.",
)
LINE_BREAK = Doubt(
    "the prompt ends in a line break",
    "note",
    "The answer begins a new line. Tokenizers that write several line breaks as one token may split the answer's start "
    "into other tokens than a model would write.",
)
CONTROL = Doubt(
    "a text spells a control token, such as <|im_end|> or </s>",
    "warning",
    "Templates write such tokens themselves. If one was already applied to the data, remove its tokens. With --model "
    "this check says which of them are tokens of the model.",
)
MOJIBAKE = Doubt(
    "characters that were decoded wrongly, such as â€™ or Ã©",
    "note",
    "UTF-8 was read as another encoding, or characters were lost. A model learns to write them: read the source again.",
)
ENTITY = Doubt(
    "an HTML entity, such as &amp;",
    "note",
    "A model learns to write it so. If the text is not meant as HTML, unescape it.",
)
CHAT = Doubt("a chat among plain prompts", "warning", "")
PLAIN = Doubt("a plain prompt among chats", "warning", "")
LAYOUT = Doubt(
    "the answers differ in line breaks, indentation or joined letters alone",
    "note",
    "Training prefers one layout of the same words. If that is not intended, remove these rows.",
)
MIXED = (
    "Chats are rendered by the model's template; plain prompts are continued as they stand. Write all prompts in the "
    "way in which the model will be asked."
)
DOUBTS = {doubt.note: doubt for doubt in (MISSING, SPACE, LINE_BREAK, CONTROL, MOJIBAKE, ENTITY, LAYOUT)} | {
    doubt.note: Doubt(doubt.note, doubt.level, MIXED) for doubt in (CHAT, PLAIN)
}


def of_note(what: str) -> Doubt | None:
    """Return the doubt that a note of `RowCounts` is about, or None."""
    if what.endswith(AGAINST):
        return Doubt(what, "warning", AGAINST_MEANS)
    return DOUBTS.get(what)


# --- texts ----------------------------------------------------------------------------------------

_WORDS = frozenset(
    (
        *("nan", "-nan", "none", "null", "nil", "n/a", "na", "undefined", "missing"),
        *("<na>", "<nan>", "<none>", "<null>", "#n/a", "#na", "#null!", "#value!", "[null]"),
    )
)
_LONGEST = max(map(len, _WORDS)) + 3
_SPELT = (
    *("</s>", "<s>", "<bos>", "<eos>", "<pad>", "<unk>", "_of_turn>"),
    *("[INST]", "[/INST]", "<<SYS>>", "[BOS]", "[EOS]"),
)
_BARRED = re.compile(r"<[|｜][^\s<>|｜][^\n<>|｜]{0,40}[|｜]>")
_WRONG = re.compile("[ÃÂ][\x80-\xbf]|Ã[‰‡ˆŠ€œ„‚]|â€|\ufffd|ï»¿|Ð[\x80-\xbf]Ð")
_SUSPICIOUS = "â€", "Ã", "Â", "\ufffd", "Ð", "ï»¿"
_NAMED = re.compile(
    r"&(?:amp|lt|gt|quot|apos|nbsp|[mn]dash|hellip|[lr][sd]quo|laquo|raquo|bull|middot|copy|reg|trade|deg|euro|times"
    r"|[aeiouyAEIOUY](?:acute|grave|circ|uml)|szlig|[cC]cedil|[nN]tilde|#\d{2,6}|#[xX][0-9a-fA-F]{2,5});"
)


def of_row(row: _Row) -> list[Doubt]:
    """Return the doubts about one row's texts, each once."""
    turns = (row.prompt,) if isinstance(row.prompt, str) else tuple([turn["content"] for turn in row.prompt])
    found = _ending(row.prompt) if isinstance(row.prompt, str) and row.prompt[-1:].isspace() else []
    answers: tuple[str, ...] = ()
    if isinstance(row, Pair):
        answers = row.chosen, row.rejected
        if row.fields[0] == row.fields[1] and same.difference(*answers) == "layout":
            found.append(LAYOUT)
    elif isinstance(row, Demonstration):
        answers = (row.completion,)
    for text in (*turns[-1:], *answers):
        if len(text) < _LONGEST and text.strip().lower() in _WORDS:
            found.append(MISSING)
            break
    return found + _within("\n".join(turns + answers))


def _within(text: str) -> list[Doubt]:
    """Return doubts about a text's content, at any place in it."""
    found = []
    if ("<" in text or "[" in text) and spells_control(text):
        found.append(CONTROL)
    if not text.isascii() and any(sign in text for sign in _SUSPICIOUS) and _WRONG.search(text):
        found.append(MOJIBAKE)
    if "&" in text and _NAMED.search(text):
        found.append(ENTITY)
    return found


def _ending(prompt: str) -> list[Doubt]:
    """Return the doubt about white space at a prompt's end; a line break after a colon, as in Alpaca, raises none."""
    if prompt[-1] not in "\r\n":
        return [SPACE]
    return [] if prompt.rstrip("\r\n").endswith(":") else [LINE_BREAK]


def spells_control(text: str) -> bool:
    """Say whether a text spells a control token of one of the usual models."""
    barred = ("<|" in text or "<｜" in text) and _BARRED.search(text)
    return bool(barred) or any(spelt in text for spelt in _SPELT)


# --- all rows -------------------------------------------------------------------------------------


def note_doubts(rows: Sequence[_Row], counts: RowCounts) -> None:
    """Count every doubt about these rows as a note."""
    for row in rows:
        for doubt in of_row(row):
            counts.note(doubt.note, row.origin.row)
    chats = sum(not isinstance(row.prompt, str) for row in rows)
    if 0 < chats < len(rows):
        fewer, doubt = (False, CHAT) if 2 * chats <= len(rows) else (True, PLAIN)
        for row in rows:
            if isinstance(row.prompt, str) is fewer:
                counts.note(doubt.note, row.origin.row)


# --- scores ---------------------------------------------------------------------------------------

AGAINST = ", against the order"
AGAINST_MEANS = (
    "The answer marked as better has no better score. The label or the score is wrong, or the pair is a tie. "
    "Remove such rows, or swap their answers."
)
_SIDES = (
    ("chosen", "rejected"), ("accepted", "rejected"), ("preferred", "rejected"), ("preferred", "dispreferred"),
    ("preferred", "nonpreferred"), ("winner", "loser"), ("winning", "losing"), ("win", "lose"), ("better", "worse"),
    ("best", "worst"), ("positive", "negative"), ("pos", "neg"),
)  # fmt: skip
"""Words for the better and the worse answer."""
PLACES = (("a", "b"), ("1", "2"), ("0", "1"), ("first", "second"), ("left", "right"))
"""Words for the first answer and for the second."""
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_HIGHER = re.compile(
    r"scor|rat(?:e$|ed|ing)|reward|grad|quality|overall|utility|points?$|elo$|helpful|likert|stars?$|votes?$|value"
    r"|preference|strength|honest|truthful|correct|coheren|instruction"
)
_LOWER = re.compile(
    r"rank|loss|cost|error|perplex|ppl|penalt|toxic|harmful|time|latency|token|length|len$|count|id$|index"
)
FOLLOWS, FEWEST = 0.75, 20
"""A column of unclear name is a score if it has at least `FEWEST` rows and this share of them follows the verdict."""


@dataclass(frozen=True, slots=True)
class ScoreColumns:
    """Two columns, one for each answer, or one column that holds their difference (then `other` is empty).

    `named`: they are named after the better and the worse answer, otherwise after the first and the second. `sure`: the
    name says that it is a score.
    """

    one: str
    other: str
    named: bool
    sure: bool

    @property
    def name(self) -> str:
        """Note on rows whose scores do not follow the verdict."""
        if not self.named:
            return f"{self.one} and {self.other}{AGAINST}"
        return f"{self.one} <= {self.other or 0}{AGAINST}"


@lru_cache(maxsize=1024)
def score_columns(columns: tuple[str, ...]) -> tuple[ScoreColumns, ...]:
    """Find the columns that may hold scores of the two answers, by their names."""
    parts = {tuple(part.lower() for part in _PART.findall(column)): column for column in columns}
    found: dict[str, ScoreColumns] = {}
    for named, pairs in ((True, _SIDES), (False, PLACES)):
        for one, other in pairs:
            for words, column in parts.items():
                partner = parts.get(tuple(other if word == one else word for word in words))
                stem = [word for word in words if word != one]
                if partner is None or len(stem) != len(words) - 1 or _means_less(stem):
                    continue
                if stem and not (one.isdigit() and _numbered(words, one, parts) > 2):
                    found.setdefault(column, ScoreColumns(column, partner, named, any(map(_HIGHER.search, stem))))
    for words, column in parts.items():
        if not {"margin", "gap"}.isdisjoint(words) and not _means_less(words):
            found[column] = ScoreColumns(column, "", True, False)
    return tuple(found.values())


def _numbered(words: tuple[str, ...], place: str, columns: Container[tuple[str, ...]]) -> int:
    """Count the columns that differ from this one in their number alone."""
    return sum(tuple(number if word == place else word for word in words) in columns for number in "0123")


def _means_less(words: Iterable[str]) -> bool:
    """Say whether a column's name says that less of it is better, or that it measures no quality."""
    return any(map(_LOWER.search, words))


class ScoreWatch:
    """Score columns beside the answers of judgments, and the rows in which they contradict the verdict."""

    def __init__(self) -> None:
        self._with: Counter[ScoreColumns] = Counter()
        self._against: dict[ScoreColumns, list[int]] = {}
        self._outcomes: set[str] = set()

    def see(self, judgments: Iterable[Judgment]) -> None:
        """Read the score columns of some judgments."""
        for judgment in judgments:
            if judgment.extra and isinstance(judgment.verdict, Preference):
                self._see(judgment, judgment.extra, judgment.verdict.outcome)

    def _see(self, judgment: Judgment, extra: Mapping[str, Any], outcome: str) -> None:
        if outcome not in ("first", "second"):
            return
        self._outcomes.add(outcome)
        for found in score_columns(tuple(extra)):
            better, worse = _number(extra[found.one]), _number(extra[found.other]) if found.other else 0.0
            if better is None or worse is None:
                continue
            if not found.named and outcome == "second":
                better, worse = worse, better
            if better > worse:
                self._with[found] += 1
            else:
                self._against.setdefault(found, []).append(judgment.origin.row)

    def tell(self, counts: RowCounts) -> None:
        """Note the rows whose scores contradict the verdict.

        Columns named by position say which answer is meant only if verdicts name both: if the better answer always
        stands first, the answers were sorted. A column of unclear name counts if most rows follow the verdict.
        """
        for found, rows in self._against.items():
            total = self._with[found] + len(rows)
            sure = found.sure and (found.named or len(self._outcomes) > 1)
            if sure or (total >= FEWEST and self._with[found] >= FOLLOWS * total):
                for row in rows:
                    counts.note(found.name, row)


def _number(value: Any) -> float | None:
    """Return a finite number, which a CSV cell holds as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if abs(found) < float("inf") else None
