"""The records that everything passes around: prompts, answers, judgments, bundles.

Everything in preference tuning is *one prompt with K >= 1 completions*: a demonstration has K = 1, a pair K = 2,
a PPO group or best-of-N K = N. `Bundle` is that record as tokens; `Pair`, `Demonstration` and `PromptRow` are the
text records of files. `Judgment` is a rater's verdict.

Shapes, here and in every docstring: N bundles, K completions of one bundle, C completions of a batch (all bundles),
P prompt tokens, L tokens of one completion, T = sum of L over the C completions (*flat*), V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:  # code that only reads and stores records needs no torch
    import torch


class _Turn(TypedDict):
    role: str
    content: str


class Message(_Turn, total=False):
    """One turn of a chat: `{"role": "user", "content": "What can teddy do today?"}`.

    Further fields have the names that chat templates read: an assistant's `tool_calls` and `reasoning_content`
    (thinking, separate from the text), a tool's `tool_call_id` and `name`. `tools`, the tools that may be called in the
    conversation, is a field of its first turn only.
    """

    reasoning_content: str
    tool_calls: list[dict[str, Any]]
    tool_call_id: str
    name: str
    tools: list[dict[str, Any]]


TURN_FIELDS = "reasoning_content", "tool_calls", "tool_call_id", "name", "tools"
"""Further fields of a turn, beside role and content, in the order in which they are written."""
ANSWER_FIELDS = "reasoning_content", "tool_calls"
"""Further fields that an answer may have."""
Fields = Mapping[str, Any]
"""Further fields of an answer's turn beside its text: some of `ANSWER_FIELDS`."""


Prompt = str | list[Message]
"""A prompt is plain text, continued as it stands, or a list of chat turns, rendered by the model's template."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Source of a record: `Origin("pairs.jsonl", 17)` is row 17, counted from 1 as in editors."""

    file: str = ""
    row: int = 0

    def __str__(self) -> str:
        return f"{self.file} row {self.row}"


@dataclass(frozen=True, slots=True)
class Drawn:
    """The token ids of an answer as drawn, including its end, and the fingerprint of their tokenizer.

    A text can have several tokenisations, so only these ids are certainly those that the model drew.
    """

    tokenizer: str
    """`Text.fingerprint()` of the tokenizer, template and ends that the ids belong to."""
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt alone: `PromptRow("what can teddy do in the rain?")`."""

    prompt: Prompt
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with the answer to imitate: `Demonstration("2 + 2 =", " 4")`. Plain text has an empty prompt.

    `cut` says that the answer reached a length limit when it was drawn: it has no end. `drawn` are its tokens as drawn.
    """

    prompt: Prompt
    completion: str
    origin: Origin = field(default_factory=Origin)
    fields: Fields | None = None
    cut: bool = False
    drawn: Drawn | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference: `chosen` was judged better than `rejected`.

    `margin` >= 0 says by how much (graded labels; 0 = not graded): the reward model's logit must exceed it. `ai` says
    that a model gave the label (AI feedback: training on it is RLAIF). `writers` names the models that wrote the
    answers. `cut`, `fields` and `drawn` have one entry per answer, the chosen one first, as in `Demonstration`.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float = 0.0
    origin: Origin = field(default_factory=Origin)
    ai: bool = False
    cut: tuple[bool, bool] = (False, False)
    writers: str = ""
    fields: tuple[Fields | None, Fields | None] = (None, None)
    drawn: tuple[Drawn | None, Drawn | None] = (None, None)


@dataclass(slots=True)
class Completion:
    """One answer as tokens.

    `ids` ends with exactly one EOS, unless `truncated`: then a length limit cut it and it has none. `logps` are the
    sampler's own log-probabilities, float32 [L]; None unless a sampler of Keel drew it. A server's completion has no
    ids; `answer` is the server's record of it.
    """

    ids: list[int]
    truncated: bool = False
    text: str = ""
    logps: torch.Tensor | None = None
    answer: Answer | None = None
    _key: tuple[int, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def key(self) -> tuple[int, ...]:
        """Return the ids as a tuple, made once: it tells equal completions, which are computed once."""
        if self._key is None:
            self._key = tuple(self.ids)
        return self._key


@dataclass(slots=True)
class Bundle:
    """One prompt with its K completions, as tokens: `Bundle([1, 17, 9], [Completion([4, 2]), Completion([8, 2])])`.

    In a pair, completion 0 is the chosen one and 1 the rejected.
    """

    prompt_ids: list[int]
    completions: list[Completion]
    prompt: Prompt = ""
    margin: float = 0.0
    origin: Origin = field(default_factory=Origin)
    _key: tuple[int, ...] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def key(self) -> tuple[int, ...]:
        """Return the prompt's ids as a tuple, made once: it tells bundles of one prompt, which is computed once."""
        if self._key is None:
            self._key = tuple(self.prompt_ids)
        return self._key


def lengths_of(bundles: list[Bundle]) -> torch.Tensor:
    """Return the completion lengths of a batch, int64 [C], in order (bundle by bundle)."""
    import torch

    return torch.tensor([len(c) for b in bundles for c in b.completions], dtype=torch.long)


# --- judgments of people, judges and rules --------------------------------------------------------

Outcome = Literal["first", "second", "tie", "both_bad"]
MIRROR: dict[Outcome, Outcome] = {"first": "second", "second": "first"}
"""Outcome after the answers change places; `tie` and `both_bad` stay the same."""
RaterKind = Literal["person", "adjudicator", "judge", "rule", "simulated", "unknown"]
"""Kinds of raters. An adjudicator decides if raters disagree: their verdict then makes the pair."""
OVERALL = "overall"
"""The dimension of a verdict on an answer as a whole."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as text, and its source: `Answer(" Paris.", model="runs/sft", logp=-3.2)`.

    `model` is the writer's name and `model_hash` the hash of its weights. `sampling` holds the sampling settings
    (`{"temperature": 0.8, "max_new_tokens": 64}`), and `draw` numbers several answers drawn with equal settings. `logp`
    is the summed log-probability in nats, over `tokens` tokens, under the model and the distribution that drew the
    answer; `drawn` are these tokens. `fields` are the further fields of its turn, such as tool calls.
    """

    text: str
    model: str = ""
    model_hash: str = ""
    sampling: Mapping[str, float | str] | None = None
    logp: float | None = None
    tokens: int | None = None
    truncated: bool = False
    draw: int = 0
    fields: Fields | None = None
    drawn: Drawn | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """Verdict on two answers: the better one, and by how much (1 slightly, 2 better, 3 much better; 0 not graded)."""

    outcome: Outcome
    strength: float = 0.0


@dataclass(frozen=True, slots=True)
class Score:
    """Verdict on one answer: a finite number on the rater's own scale; higher is better."""

    value: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Verdict on K answers: the rank of each. 1 is best, equal ranks are ties: `Ranking((2, 1, 2))`."""

    ranks: tuple[int, ...]


Verdict = Preference | Score | Ranking


@dataclass(frozen=True, slots=True)
class Judgment:
    """One rater's verdict on answers to one prompt, the answers in the order shown (first is left).

    `Judgment("2 + 2 =", (Answer(" 4"), Answer(" 5")), Preference("first", 3), rater="person-007", kind="person")`

    `rubric` is the version of the guidelines; `comment` the rater's reasons; `raw` a judge's reply as it came, to be
    parsed again; `extra` holds columns of a file that have no meaning to Keel and are given back on export.
    """

    prompt: Prompt
    answers: tuple[Answer, ...]
    verdict: Verdict
    rater: str = ""
    kind: RaterKind = "unknown"
    dimension: str = "overall"
    rubric: str = ""
    seconds: float | None = None
    comment: str = ""
    raw: str = ""
    extra: Mapping[str, Any] | None = None
    origin: Origin = field(default_factory=Origin)

    @property
    def ai(self) -> bool:
        """Say whether a model gave the label (AI feedback: training on it is RLAIF)."""
        return self.kind == "judge"


@dataclass(slots=True)
class RowCounts:
    """Counts of all rows: `read == used + sum(dropped) + sum(neutral)`.

    Each table holds, by reason, the count and the first row numbers. `dropped` are rows that are wrong; `neutral` are
    rows that are right but give nothing, such as a tie if pairs are wanted; `notes` are rows that were used but changed
    or remarkable (a completion cut by the length limit). If one row gives n pairs, or several rows give one,
    comparisons are counted instead: `read` counts each pair, and each comparison that made none.
    """

    read: int = 0
    used: int = 0
    dropped: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    notes: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    neutral: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    stored: bool = field(default=False, compare=False, repr=False)
    """True if the rows are those of a store."""

    def drop(self, reason: str, row: int) -> None:
        """Count `row` as dropped for `reason`; the first ten row numbers are kept."""
        _count(self.dropped, reason, row)

    def skip(self, reason: str, row: int) -> None:
        """Count `row` as right, but of no use here."""
        _count(self.neutral, reason, row)

    def note(self, what: str, row: int) -> None:
        """Count `row` as used, but worth a remark."""
        _count(self.notes, what, row)

    @property
    def dropped_total(self) -> int:
        return sum(count for count, _ in self.dropped.values())

    @property
    def neutral_total(self) -> int:
        return sum(count for count, _ in self.neutral.values())

    def as_dict(self) -> dict[str, object]:
        """Return the form in `summary.json`."""
        tables = {"dropped": self.dropped, "neutral": self.neutral, "notes": self.notes}
        return {"read": self.read, "used": self.used} | {
            name: {what: [count, rows] for what, (count, rows) in table.items()} for name, table in tables.items()
        }


def _count(table: dict[str, tuple[int, list[int]]], key: str, row: int) -> None:
    count, rows = table.get(key, (0, []))
    table[key] = (count + 1, [*rows, row] if len(rows) < 10 else rows)


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a command: its folder, and the content of the folder's `summary.json`."""

    folder: Path
    summary: dict[str, Any]

    @property
    def final(self) -> Path:
        """Return the folder of the checkpoint to use."""
        return self.folder / "final"
