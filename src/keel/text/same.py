"""Tests of whether two texts are the same words in other bytes; used for leaks, splits, duplicates and equal answers.

`fold` is for questions. It removes what differs in bytes but not in words: the Unicode form (NFC), white space (any run
becomes one space) and invisible characters (zero-width, bidi, soft hyphens, variation selectors). Letters, case,
accents and punctuation stay. NFKC would be too strong: it turns 2⁵ into 25, ½ into 1⁄2 and ① into 1, so that two
different questions would become one.

`fold_answer` is for answers, since a preference may depend on anything that a reader sees. It keeps line breaks and
indentation (a list, a piece of code), and joiners after letters and emoji that they join: without its joiner 👩‍🚀 is a
woman and a rocket, and Persian and Hindi spelling needs them. In a question they may depend on the keyboard, so `fold`
drops them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Literal, TypeVar

from keel.records import Fields, Message, Prompt
from keel.text.tokenisation import fields_key, further

T = TypeVar("T", str, Prompt)

IGNORED = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e001f\U000e0080-\U000e0fff"
)
"""Unicode's Default_Ignorable_Code_Point, without joiners and tags."""
CONTROLS = "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"
"""Control characters other than white space."""
JOINED = "\u0600-\u1cff\u2190-\u2bff\ua800-\uabff\ufb50-\ufdff\ufe70-\ufefc\U00010a00-\U00011fff\U0001e800-\U0001faff"
"""Scripts with letters that join (Arabic to Vedic and their extensions), symbols and emoji."""
_TAG, _FLAG = "\U000e0020-\U000e007f", "\U0001f3f4"  # 🏴 with tags is the flag of England or Scotland

_UNUSUAL = re.compile("[^\n -~¡-¬®-ʯΑ-ώЀ-҂Ҋ-ԯ‐-‧、-〕ぁ-ゖァ-ヺ一-鿿가-힣！-ﾞ]")
"""Characters that need care. A text without a match has none that is invisible, unusual white space or not in NFC."""
_LOW = bytes(range(33)) + b"\x7f"
_INVISIBLE = re.compile(f"[{IGNORED}{CONTROLS}]")
_LOOSE_TAGS = f"(?<![{_FLAG}{_TAG}])[{_TAG}]+"
_LOOSE = re.compile(f"(?<![{JOINED}])[\u200c\u200d]|{_LOOSE_TAGS}")
_JOINERS = re.compile(f"[\u200c\u200d]+|{_LOOSE_TAGS}")
_BLANK_LINES = re.compile(r"\n{3,}")

Difference = Literal["none", "bytes", "layout", "words"]


def fold(text: str) -> str:
    """Return the words of a text: equal for two texts that differ in bytes only."""
    if not text.isascii() and _UNUSUAL.search(text):
        return " ".join(_drawn(text, _JOINERS).split())
    if text.isprintable() and "  " not in text and text[:1] != " " and text[-1:] != " ":
        return text
    text = " ".join(text.split())
    return text if text.isprintable() else " ".join(_INVISIBLE.sub("", text).split())


@lru_cache(maxsize=4096)
def fold_answer(text: str) -> str:
    """Return the words of a text and its visible layout: lines, their indentation, joined letters and emoji."""
    text = _INVISIBLE.sub("", text) if text.isascii() else _drawn(text, _LOOSE)
    return _BLANK_LINES.sub("\n\n", "\n".join(map(_line, text.strip().splitlines())))


def _drawn(text: str, joiners: re.Pattern[str]) -> str:
    """Return the text in NFC without invisible characters."""
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).replace("\u2800", " ")
    while (less := unicodedata.normalize("NFC", joiners.sub("", text))) != text:
        text = less  # without a character, combining marks may be reordered
    return text


def _line(line: str) -> str:
    words = " ".join(line.split())
    if not words or not line[0].isspace():
        return words
    before = line[: len(line) - len(line.lstrip())]
    return "".join("\t" if sign == "\t" else " " for sign in before) + words


def fold_prompt(prompt: Prompt) -> str:
    """Return one string for all prompts that ask the same: a chat of one user turn asks what its text alone asks.

    An empty system turn does not count; further fields of a turn do.
    """
    text, turns = _asked(prompt)
    return fold(text) if text is not None else "\0".join(_turn(turn, fold) for turn in turns)


def fold_layout(prompt: Prompt) -> str:
    """Return one string for all prompts that look the same to a reader: layout counts, and a chat is not a text."""
    if isinstance(prompt, str):
        return fold_answer(prompt)
    return "\0" + "\0".join(_turn(turn, fold_answer) for turn in _speaking(prompt))


def _asked(prompt: Prompt) -> tuple[str | None, list[Message]]:
    """Return the text of a prompt that is one user's text and nothing else (or None), and the turns of any other."""
    if isinstance(prompt, str):
        return prompt, []
    turns = _speaking(prompt)
    if not turns:
        return "", []
    alone = len(turns) == 1 and turns[0]["role"] == "user" and len(turns[0]) == 2
    return (turns[0]["content"], []) if alone else (None, turns)


def _speaking(turns: list[Message]) -> list[Message]:
    """Return the turns of a chat, without empty system turns."""
    return [turn for turn in turns if turn["role"] != "system" or len(turn) > 2 or turn["content"].strip()]


def _turn(turn: Message, fold: Callable[[str], str]) -> str:
    key = f"{turn['role']}\1{fold(turn['content'])}"
    more = further(turn)
    return f"{key}\1{fold_fields(more)}" if more else key


def fold_fields(fields: Fields | None) -> str:
    """Return one string for the further fields of a turn; empty if it has none."""
    return fold(fields_key(fields))


# --- many texts -----------------------------------------------------------------------------------


def difference(one: str, other: str) -> Difference:
    """Return how two answers differ: none (or outer white space), bytes, layout (which `fold` drops) or words."""
    one, other = one.strip(), other.strip()
    if one == other:
        return "none"
    if _begin_or_end_apart(one, other) or _squeezed(one) != _squeezed(other):
        return "words"
    if fold_answer(one) == fold_answer(other):
        return "bytes"
    return "layout" if fold(one) == fold(other) else "words"


def _begin_or_end_apart(one: str, other: str) -> bool:
    """Say whether the first or last characters already differ: a short cut, as `fold` keeps printable ASCII.

    The second character is looked at because a combining mark there would change the first.
    """
    ends, heads = one[-1:] + other[-1:], one[:2] + other[:2]
    if one[-1:] != other[-1:] and ends.isascii() and ends.isprintable():
        return True
    return one[:1] != other[:1] and heads.isascii() and heads.isprintable()


def prompt_keys(prompts: Sequence[Prompt]) -> list[Hashable]:
    """Return a key for each prompt; two keys are equal if and only if `fold_prompt` makes the prompts equal.

    Most prompts differ in more than white space, or are equal in bytes: these are not folded.
    """
    return _keys(prompts, list(map(_mark, prompts)), fold_prompt)


def answer_keys(answers: Sequence[str], groups: Sequence[Hashable]) -> list[Hashable]:
    """Return a key for each answer; two are equal if and only if `fold_answer` makes two answers of one group equal."""
    ends = [hash((group, _end(answer))) for answer, group in zip(answers, groups, strict=True)]
    alike = _ambiguous(answers, ends)
    marks = [hash((end, _squeezed(text))) if end in alike else end for text, end in zip(answers, ends, strict=True)]
    return _keys(answers, marks, fold_answer)


def _keys(texts: Sequence[T], marks: Sequence[int], fold: Callable[[T], str]) -> list[Hashable]:
    unclear = _ambiguous(texts, marks)
    return [(mark, fold(text)) if mark in unclear else mark for mark, text in zip(marks, texts, strict=True)]


def _ambiguous(texts: Sequence[T], marks: Sequence[int]) -> set[int]:
    """Return the marks shared by texts that differ in bytes."""
    first: dict[int, T] = {}
    return {mark for mark, text in zip(marks, texts, strict=True) if first.setdefault(mark, text) != text}


def _mark(prompt: Prompt) -> int:
    """Return a hash that is equal for prompts that ask the same, and perhaps for others."""
    text, turns = _asked(prompt)
    return hash(tuple([_squeezed(turn["content"]) for turn in turns]) if text is None else _squeezed(text))


def _squeezed(text: str) -> bytes:
    """Return `fold(text)` without its spaces."""
    text = text if text.isascii() or not _UNUSUAL.search(text) else fold(text)
    return text.encode("utf-8", "surrogatepass").translate(None, _LOW)


def _end(text: str) -> bytes:
    """Return the last 8 bytes of `_squeezed(text)`, found from the text's end alone if its characters are usual."""
    end = text[-24:]
    if end.isascii() or not _UNUSUAL.search(end):
        found = end.encode().translate(None, _LOW)[-8:]
        if len(found) == 8:
            return found
    return _squeezed(text)[-8:]


def is_blank(text: str) -> bool:
    """Say whether a text shows nothing."""
    if "!" <= text[:1] <= "~":
        return False
    text = text.strip()
    return not "!" <= text[:1] <= "~" and not fold(text[:64]) and not fold(text)
