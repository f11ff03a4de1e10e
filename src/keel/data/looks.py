"""Guesses at the columns of an unknown file, from their names and contents, and the `--columns` to try.

Cautious on purpose: if the prompt or the answers cannot be identified, nothing is proposed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

from keel.files.fields import Row, one_line
from keel.formats.judgments.generic import spelt

__all__ = ["suggestion"]

CLEAR = "prompt", "question", "query", "instruction", "user_prompt"
"""Names that mean a prompt and nothing else; columns of other names must also read like one."""
_PROMPTS = (
    *CLEAR,
    *("input", "context", "request", "problem", "task", "user", "human", "post", "inputs", "user_input", "source"),
)
BETTER = (
    *("chosen", "better", "best", "preferred", "good", "winner", "win", "accepted", "accept", "positive", "pos"),
    *("preferred_output", "better_response", "chosen_response", "response_chosen", "good_response", "winning", "yw"),
)
WORSE = (
    *("rejected", "worse", "worst", "dispreferred", "bad", "loser", "lose", "refused", "reject", "negative", "neg"),
    *("non_preferred_output", "worse_response", "rejected_response", "response_rejected", "bad_response", "losing"),
    *("unpreferred", "non_preferred", "less_preferred", "yl"),
)
_ANSWERS = (
    *("response", "resp", "answer", "completion", "output", "reply", "generation", "target", "result", "assistant"),
    *("model_answer", "summary", "solution", "text_output", "gpt", "outputs"),
)
_LISTS = (
    *("responses", "answers", "completions", "outputs", "generations", "candidates", "replies", "solutions"),
    *_ANSWERS,
)
VERDICTS = (
    *("preference", "winner", "label", "verdict", "choice", "better", "preferred", "vote", "judgment", "judgement"),
    *("annotation", "human_label", "result", "labels", "overall_preference", "human_preference"),
)
_SCORES = (
    "score",
    "rating",
    "reward",
    "grade",
    "quality",
    "helpfulness",
    "overall_score",
    "scores",
    "ratings",
    "rewards",
)
_RANKS = "rank", "ranks", "ranking", "rankings", "order"
_CHATS = "messages", "conversation", "conversations", "chat", "dialogue", "dialog", "turns"
ENDS = {"a": "b", "1": "2", "0": "1", "left": "right", "first": "second", "one": "two"}
"""Endings of names for the first of two things, and for the second."""
SPLIT = re.compile(r"(?<=[a-z])(?=[A-Z0-9])|[-_. ]+")
FEW = 6  # distinct values of a verdict, at most


def suggestion(noun: str, head: Sequence[Row]) -> str:
    """Return `question looks like a prompt, …: try --columns …`; empty if nothing is likely."""
    seen = _Columns(head)
    finders = {
        "preference pairs": (_pair, _contest, _listed, _scored),
        "judgments": (_pair, _contest, _listed, _scored),
        "answers": (_contest, _several),
        "demonstrations": (_demonstration,),
        "prompts": (_prompt,),
    }
    for find in finders.get(noun, ()):
        if found := find(seen):
            told, mapping = found
            named = [f"{name}={column}" for name, column in mapping.items() if name != column]
            if named and not any("," in column or "=" in column for column in mapping.values()):
                return f"{told}: try --columns {','.join(named)}"
    return ""


_Found = tuple[str, dict[str, str]] | None


class _Columns:
    """Columns, by name, with their values."""

    def __init__(self, head: Sequence[Row]) -> None:
        names = {
            column: None for row in head for column in row if isinstance(column, str) and one_line(column) == column
        }
        self.values = {name: [row[name] for row in head if row.get(name) not in (None, "")] for name in names}

    def named(self, words: Iterable[str], fits: Callable[[list[Any]], bool], without: Iterable[str] = ()) -> str:
        """Return the first column with one of these names whose values fit; empty if there is none."""
        lower = {name.lower(): name for name in reversed(self.values)}
        found = (lower[word] for word in words if word in lower)
        return next((name for name in found if name not in without and fits(self.values[name])), "")

    def of(self, fits: Callable[[list[Any]], bool], without: Iterable[str]) -> list[str]:
        return [name for name, values in self.values.items() if name not in without and fits(values)]

    def prompt(self, without: Iterable[str] = ()) -> str:
        """Find the prompt's column: by name, the only one with messages, or text in an object of such a name."""
        if found := self.named(CLEAR, _says, without) or self.named(_PROMPTS, _asks_something, without):
            return found
        chats = self.of(_is_chat, without)
        return chats[0] if len(chats) == 1 else next(self._inner(without), "")

    def _inner(self, without: Iterable[str]) -> Iterator[str]:
        for name in self.values:
            objects = [value for value in self.values[name] if isinstance(value, dict)]
            if name.lower() in _PROMPTS and objects and name not in without:
                inner = _Columns(objects).named(("full_text", "text", "content", *_PROMPTS), _asks_something)
                if inner:
                    yield f"{name}.{inner}"

    def twos(self, fits: Callable[[list[Any]], bool], without: Iterable[str] = ()) -> list[tuple[str, str]]:
        """Find pairs of columns whose names differ in one of `ENDS`, as answer_a and answer_b; longest texts first."""
        pairs = [pair for pair in combinations(self.of(fits, without), 2) if _is_second(*pair)]
        return sorted(pairs, key=lambda pair: -sum(len(str(value)) for value in self.values[pair[0]]))


def _is_second(one: str, other: str) -> bool:
    first, second = (SPLIT.split(name) for name in (one, other))
    apart = [(a.lower(), b.lower()) for a, b in zip(first, second, strict=False) if a != b]
    return len(first) == len(second) and len(apart) == 1 and ENDS.get(apart[0][0]) == apart[0][1]


def _says(values: list[Any]) -> bool:
    """Say whether the values are texts or messages."""
    return bool(values) and (all(isinstance(v, str) for v in values) or _is_chat(values))


def _asks_something(values: list[Any]) -> bool:
    """Say whether the values are messages, or texts of more than one word that differ from row to row."""
    if not values or not all(isinstance(value, str) for value in values):
        return _is_chat(values)
    return any(" " in value.strip() for value in values) and 2 * len(set(values)) > len(values)


def _is_chat(values: list[Any]) -> bool:
    return bool(values) and all(
        isinstance(v, list) and v and all(isinstance(turn, dict) and "role" in turn for turn in v) for v in values
    )


def _is_text_list(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(v, list) and len(v) > 1 and isinstance(v[0], (str, list)) for v in values)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"-?\d+(\.\d+)?", value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _counts(values: list[Any]) -> bool:
    return bool(values) and all(map(_is_number, values))


def _number_lists(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(v, list) and len(v) > 1 and all(map(_is_number, v)) for v in values)


def _decides(values: list[Any]) -> bool:
    """Say whether the values are a few distinct words; numbers must be possible codes."""
    if not values or any(isinstance(value, (list, dict)) for value in values):
        return False
    words = {spelt(value) for value in values}
    codes = {word for word in words if _is_number(word)}
    return len(words) <= FEW and codes <= {"0", "1", "2"} and all(len(word) <= 20 for word in words)


# --- what a command may read ----------------------------------------------------------------------


def _asks(prompt: str) -> str:
    return f"{prompt} looks like a prompt, " if prompt else ""


def _with(prompt: str, mapping: dict[str, str]) -> dict[str, str]:
    return ({"prompt": prompt} if prompt else {}) | mapping


def _pair(seen: _Columns) -> _Found:
    """Find a better and a worse answer, by their names."""
    better, worse = seen.named(BETTER, _says), seen.named(WORSE, _says)
    prompt = seen.prompt((better, worse))
    if not better or not worse or not (prompt or _is_chat(seen.values[better])):
        return None
    return f"{_asks(prompt)}{better} and {worse} like two answers", _with(prompt, {"chosen": better, "rejected": worse})


def _contest(seen: _Columns) -> _Found:
    """Find two answers, with a verdict or scores that say which is better."""
    verdict = seen.named(VERDICTS, _decides)
    answers = next(iter(seen.twos(_says, (verdict,))), None)
    if answers is None:
        return None
    a, b = answers
    prompt = seen.prompt((a, b, verdict))
    if not prompt and not _is_chat(seen.values[a]):
        return None
    mapping = _with(prompt, {"response_a": a, "response_b": b})
    said = f"{_asks(prompt)}{a} and {b} like two answers"
    scores = seen.twos(_counts, (verdict,))
    if verdict:
        return f"{said}, {verdict} like a verdict", mapping | {"preference": verdict}
    if len(scores) == 1:
        return f"{said}, {scores[0][0]} and {scores[0][1]} like scores", mapping | {
            "score_a": scores[0][0],
            "score_b": scores[0][1],
        }
    return None


def _several(seen: _Columns) -> _Found:
    """Find answers that nobody has judged."""
    answers = next(iter(seen.twos(_says)), None)
    if answers is not None and (prompt := seen.prompt(answers)):
        a, b = answers
        return f"{_asks(prompt)}{a} and {b} like two answers", {"prompt": prompt, "response_a": a, "response_b": b}
    listed = seen.named(_LISTS, _is_text_list)
    prompt = seen.prompt((listed,))
    if listed and prompt:
        return f"{_asks(prompt)}{listed} like answers", {"prompt": prompt, "responses": listed}
    return None


def _listed(seen: _Columns) -> _Found:
    """Find a list of answers with a list of scores or ranks, or a list of objects that hold both."""
    answers = seen.named(_LISTS, _is_text_list)
    column, name = seen.named(_RANKS, _number_lists), "ranks"
    if not column:
        column, name = seen.named(_SCORES, _number_lists), "scores"
    if not answers or not column:
        answers, column, name = _inside(seen)
    prompt = seen.prompt((answers, column, answers.partition(".")[0]))
    if not (prompt and answers and column):
        return None
    mapping = {"prompt": prompt, "responses": answers, name: column}
    return f"{_asks(prompt)}{answers} like answers, {column} like their {name}", mapping


def _inside(seen: _Columns) -> tuple[str, str, str]:
    """Find a list of objects, each an answer with its rank or score."""
    for name, values in seen.values.items():
        if not all(isinstance(v, list) and len(v) > 1 and all(isinstance(o, dict) for o in v) for v in values):
            continue
        inner = _Columns([item for value in values for item in value])
        answer = inner.named((*_ANSWERS, "text", "content"), _says)
        for kind, words in (("ranks", _RANKS), ("scores", _SCORES)):
            said = inner.named(words, _counts)
            if answer and said:
                return f"{name}.{answer}", f"{name}.{said}", kind
    return "", "", ""


def _scored(seen: _Columns) -> _Found:
    """Find an answer and its score."""
    answer, score = seen.named(_ANSWERS, _says), seen.named(_SCORES, _counts)
    prompt = seen.prompt((answer,))
    if not (prompt and answer and score):
        return None
    told = f"{_asks(prompt)}{answer} like an answer, {score} like its score"
    return told, {"prompt": prompt, "response": answer, "score": score}


def _demonstration(seen: _Columns) -> _Found:
    chat = seen.named(_CHATS, _is_chat)
    answer = seen.named(("chosen", *_ANSWERS), _says, (chat,))
    prompt = seen.prompt((answer, chat))
    if prompt and answer:
        return f"{_asks(prompt)}{answer} like an answer", {"prompt": prompt, "completion": answer}
    return (f"{chat} looks like chats", {"messages": chat}) if chat else None


def _prompt(seen: _Columns) -> _Found:
    prompt = seen.prompt()
    chat = seen.named(_CHATS, _is_chat)
    if prompt:
        return f"{prompt} looks like a prompt", {"prompt": prompt}
    return (f"{chat} looks like chats", {"messages": chat}) if chat else None
