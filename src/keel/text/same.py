"""When two texts are the same words in other bytes: what leaks, splits, duplicates and equal answers are compared by.

`fold` is for questions. It undoes what differs in bytes and not in words: the Unicode form (NFC), white space (a run of
any is one space), and signs that draw nothing (zero-width and bidi signs, soft hyphens, variation selectors). Letters,
case, accents and punctuation stay. NFKC would be too strong: it makes 2⁵ into 25, ½ into 1⁄2 and ① into 1, and then
two questions would be one.

`fold_answer` is for answers, where a preference may be about anything that a reader sees. It keeps line breaks and
indentation (a list, a piece of code), and joiners behind letters and emoji that they join: without its joiner 👩‍🚀 is a
woman and a rocket, and words of Persian and Hindi are spelt with them. In a question such signs may come and go with
the keyboard, so that `fold` leaves them out.
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
"""Unicode's Default_Ignorable_Code_Point, but for joiners and tags."""
CONTROLS = "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"
"""Control characters that are no white space."""
JOINED = "\u0600-\u1cff\u2190-\u2bff\ua800-\uabff\ufb50-\ufdff\ufe70-\ufefc\U00010a00-\U00011fff\U0001e800-\U0001faff"
"""Scripts whose letters join (Arabic to Vedic and their extensions), symbols and emoji."""
_TAG, _FLAG = "\U000e0020-\U000e007f", "\U0001f3f4"  # 🏴 with tags is the flag of England or Scotland

_UNUSUAL = re.compile("[^\n -~¡-¬®-ʯΑ-ώЀ-҂Ҋ-ԯ‐-‧、-〕ぁ-ゖァ-ヺ一-鿿가-힣！-ﾞ]")
"""No sign of a text without a match is invisible, white space of another kind, or written otherwise in NFC."""
_LOW = bytes(range(33)) + b"\x7f"
_INVISIBLE = re.compile(f"[{IGNORED}{CONTROLS}]")
_LOOSE_TAGS = f"(?<![{_FLAG}{_TAG}])[{_TAG}]+"
_LOOSE = re.compile(f"(?<![{JOINED}])[\u200c\u200d]|{_LOOSE_TAGS}")
_JOINERS = re.compile(f"[\u200c\u200d]+|{_LOOSE_TAGS}")
_BLANK_LINES = re.compile(r"\n{3,}")

Difference = Literal["none", "bytes", "layout", "words"]


def fold(text: str) -> str:
    """The words of a text: equal for two texts that differ in bytes only."""
    if not text.isascii() and _UNUSUAL.search(text):
        return " ".join(_drawn(text, _JOINERS).split())
    if text.isprintable() and "  " not in text and text[:1] != " " and text[-1:] != " ":
        return text
    text = " ".join(text.split())
    return text if text.isprintable() else " ".join(_INVISIBLE.sub("", text).split())


@lru_cache(maxsize=4096)
def fold_answer(text: str) -> str:
    """The same with what a reader sees of the layout: lines, their indentation, joined letters and emoji."""
    text = _INVISIBLE.sub("", text) if text.isascii() else _drawn(text, _LOOSE)
    return _BLANK_LINES.sub("\n\n", "\n".join(map(_line, text.strip().splitlines())))


def _drawn(text: str, joiners: re.Pattern[str]) -> str:
    """Text in NFC without signs that draw nothing."""
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).replace("\u2800", " ")
    while (less := unicodedata.normalize("NFC", joiners.sub("", text))) != text:
        text = less  # with a sign gone, marks may change places
    return text


def _line(line: str) -> str:
    words = " ".join(line.split())
    if not words or not line[0].isspace():
        return words
    before = line[: len(line) - len(line.lstrip())]
    return "".join("\t" if sign == "\t" else " " for sign in before) + words


def fold_prompt(prompt: Prompt) -> str:
    """One string for all prompts that ask the same: a chat of one user turn asks what its text alone asks.

    A system turn that says nothing counts as none; what turns hold beside their text counts.
    """
    text, turns = _asked(prompt)
    return fold(text) if text is not None else "\0".join(_turn(turn, fold) for turn in turns)


def fold_layout(prompt: Prompt) -> str:
    """One string for all prompts that a reader cannot tell apart: layout counts, and a chat is not a text."""
    if isinstance(prompt, str):
        return fold_answer(prompt)
    return "\0" + "\0".join(_turn(turn, fold_answer) for turn in _speaking(prompt))


def _asked(prompt: Prompt) -> tuple[str | None, list[Message]]:
    """The text of a prompt that is one user's text and nothing else, and the turns of another."""
    if isinstance(prompt, str):
        return prompt, []
    turns = _speaking(prompt)
    if not turns:
        return "", []
    alone = len(turns) == 1 and turns[0]["role"] == "user" and len(turns[0]) == 2
    return (turns[0]["content"], []) if alone else (None, turns)


def _speaking(turns: list[Message]) -> list[Message]:
    """The turns of a chat, without system turns that say nothing."""
    return [turn for turn in turns if turn["role"] != "system" or len(turn) > 2 or turn["content"].strip()]


def _turn(turn: Message, fold: Callable[[str], str]) -> str:
    key = f"{turn['role']}\1{fold(turn['content'])}"
    more = further(turn)
    return f"{key}\1{fold_fields(more)}" if more else key


def fold_fields(fields: Fields | None) -> str:
    """One string for what a turn holds beside its text; empty for nothing."""
    return fold(fields_key(fields))


# --- many texts -----------------------------------------------------------------------------------


def difference(one: str, other: str) -> Difference:
    """In what two answers differ: in nothing but outer white space, in bytes, in what `fold` leaves out, in words."""
    one, other = one.strip(), other.strip()
    if one == other:
        return "none"
    if _begin_or_end_apart(one, other) or _squeezed(one) != _squeezed(other):
        return "words"
    if fold_answer(one) == fold_answer(other):
        return "bytes"
    return "layout" if fold(one) == fold(other) else "words"


def _begin_or_end_apart(one: str, other: str) -> bool:
    """A short cut that looks at ends alone: signs of ASCII stay what they are unless a mark stands behind them."""
    ends, heads = one[-1:] + other[-1:], one[:2] + other[:2]
    if one[-1:] != other[-1:] and ends.isascii() and ends.isprintable():
        return True
    return one[:1] != other[:1] and heads.isascii() and heads.isprintable()


def prompt_keys(prompts: Sequence[Prompt]) -> list[Hashable]:
    """A key for each prompt, equal for those that `fold_prompt` makes equal, and only for them.

    Most prompts differ in more than white space, or are the same bytes: these are not folded.
    """
    return _keys(prompts, list(map(_mark, prompts)), fold_prompt)


def answer_keys(answers: Sequence[str], groups: Sequence[Hashable]) -> list[Hashable]:
    """The same for answers: a key of a group's answers that `fold_answer` makes equal, and of no others."""
    ends = [hash((group, _end(answer))) for answer, group in zip(answers, groups, strict=True)]
    alike = _ambiguous(answers, ends)
    marks = [hash((end, _squeezed(text))) if end in alike else end for text, end in zip(answers, ends, strict=True)]
    return _keys(answers, marks, fold_answer)


def _keys(texts: Sequence[T], marks: Sequence[int], fold: Callable[[T], str]) -> list[Hashable]:
    unclear = _ambiguous(texts, marks)
    return [(mark, fold(text)) if mark in unclear else mark for mark, text in zip(marks, texts, strict=True)]


def _ambiguous(texts: Sequence[T], marks: Sequence[int]) -> set[int]:
    """The marks that texts of other bytes share."""
    first: dict[int, T] = {}
    return {mark for mark, text in zip(marks, texts, strict=True) if first.setdefault(mark, text) != text}


def _mark(prompt: Prompt) -> int:
    """A hash that is equal for prompts that ask the same, if not only for them."""
    text, turns = _asked(prompt)
    return hash(tuple([_squeezed(turn["content"]) for turn in turns]) if text is None else _squeezed(text))


def _squeezed(text: str) -> bytes:
    """`fold(text)` without its spaces."""
    text = text if text.isascii() or not _UNUSUAL.search(text) else fold(text)
    return text.encode("utf-8", "surrogatepass").translate(None, _LOW)


def _end(text: str) -> bytes:
    """The last of `_squeezed(text)`: nothing before a usual sign changes it or what stands behind it."""
    end = text[-24:]
    if end.isascii() or not _UNUSUAL.search(end):
        found = end.encode().translate(None, _LOW)[-8:]
        if len(found) == 8:
            return found
    return _squeezed(text)[-8:]


def is_blank(text: str) -> bool:
    """Whether nothing of a text is drawn."""
    if "!" <= text[:1] <= "~":
        return False
    text = text.strip()
    return not "!" <= text[:1] <= "~" and not fold(text[:64]) and not fold(text)
