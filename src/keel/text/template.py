"""A chat template: its rendering of a conversation, and the text that it adds, moves, trims or leaves out.

A template is a program that somebody else wrote. It may drop a role that it does not know, cut thinking out of an
answer, put marks around it, raise, or read the clock. So nothing is assumed: every rendering is compared with its
input. For each sequence of roles, one rendering of markers gives the place of each turn's text. If a conversation is
not rendered like that, its texts are searched for one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from keel.errors import RowFault
from keel.records import Fields, Message

__all__ = ["DAY", "Lost", "Rendered", "Template", "TemplateFault"]

DAY = "2024-07-26"
"""The date given to every template that asks for today's, so that a prompt is the same tomorrow. It is the default of
Llama 3.1's own template."""
_DATE = {
    "%d": "26", "%-d": "26", "%e": "26", "%m": "07", "%-m": "7", "%b": "Jul", "%h": "Jul", "%B": "July", "%Y": "2024",
    "%y": "24", "%a": "Fri", "%A": "Friday", "%j": "208", "%H": "12", "%I": "12", "%p": "PM", "%M": "00", "%S": "00",
    "%F": DAY, "%D": "07/26/24", "%T": "12:00:00", "%Z": "", "%z": "",
}  # fmt: skip
_FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace({code!r}, {value!r})" for code, value in _DATE.items())
    + " }}{%- endmacro %}\n"
)
"""A macro put before a template; it replaces the library's clock. Jinja removes the line break after a block."""
_THOUGHT = "</think>"


class TemplateFault(RowFault):
    """A conversation that the template cannot render; the message ends with the template's own words."""


class Lost(RowFault):
    """Text of a conversation that is missing in its rendering."""


@dataclass(slots=True)
class Rendered:
    """A conversation as text, the span of each turn, and notes on what the template changed."""

    text: str
    spans: list[tuple[int, int]]
    """Beginning and end of each turn's own text; equal if the turn is empty."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Layout:
    """The template's own text before, between and after the turns, and whether it keeps white space left and right."""

    parts: list[str]
    keeps: list[tuple[bool, bool]]

    def fit(self, contents: Sequence[str]) -> tuple[str, list[tuple[int, int]], bool]:
        """Return the expected rendering of these turns, the span of each, and whether any was trimmed."""
        text, spans, trimmed = self.parts[0], [], False
        for content, (left, right), after in zip(contents, self.keeps, self.parts[1:], strict=True):
            kept = content if left else content.lstrip()
            kept = kept if right else kept.rstrip()
            trimmed = trimmed or kept != content
            spans.append((len(text), len(text) + len(kept)))
            text += kept + after
        return text, spans, trimmed


class Template:
    """A chat template around a tokenizer's special tokens."""

    def __init__(self, tokenizer: Any, source: str | Mapping[str, str]) -> None:
        """Take as `source` a template, or several by name: `default`, and perhaps `tool_use` for chats with tools."""
        sources = {"default": source} if isinstance(source, str) else dict(source)
        self.reads_clock = any("strftime_now" in one for one in sources.values())
        self._tokenizer = tokenizer
        clock = _FIXED_CLOCK if self.reads_clock else ""
        self._programs = {name: clock + one for name, one in sources.items()}
        self._layouts: dict[tuple[tuple[str, ...], bool], _Layout | None] = {}

    def write(self, turns: Sequence[Message], *, generate: bool) -> str:
        """Return the rendering, unchecked.

        Arguments of tool calls are passed as objects, as servers do, or as JSON text if the template fails on objects.
        Raises `TemplateFault` with the template's own words, whatever it raised.
        """
        tools = turns[0].get("tools") if turns else None
        plain = [{key: value for key, value in turn.items() if key != "tools"} for turn in turns]
        try:
            return self._apply([_with_parsed_calls(turn) for turn in plain], tools, generate)
        except Exception as error:
            if not any("tool_calls" in turn for turn in plain):
                raise _fault(error) from error
        try:
            return self._apply([_with_written_calls(turn) for turn in plain], tools, generate)
        except Exception as error:
            raise _fault(error) from error

    def _apply(self, turns: list[dict[str, Any]], tools: Any, generate: bool) -> str:
        program = self._programs.get("tool_use") if tools else None
        return str(
            self._tokenizer.apply_chat_template(
                turns,
                tools=tools,
                chat_template=program or self._programs["default"],
                tokenize=False,
                add_generation_prompt=generate,
            )
        )

    def render(self, turns: Sequence[Message], *, generate: bool) -> Rendered:
        """Return the rendering, after checking that it holds all of its input.

        Raises `TemplateFault` if the template raises, `Lost` if it leaves out a turn or a part of one.
        """
        text = self.write(turns, generate=generate)
        if all(len(turn) == 2 and turn["content"].strip() for turn in turns):
            layout = self._layout(tuple(turn["role"] for turn in turns), generate)
            if layout is not None:
                expected, spans, trimmed = layout.fit([turn["content"] for turn in turns])
                if expected == text:
                    return Rendered(text, spans, [TRIMMED] if trimmed else [])
        return self._searched(turns, text, generate)

    # --- a sequence of roles

    def _layout(self, roles: tuple[str, ...], generate: bool) -> _Layout | None:
        """Return the layout of a sequence of roles; None if a turn's text is not rendered once and in order."""
        key = roles, generate
        if key not in self._layouts:
            self._layouts[key] = self._tried(roles, generate)
        return self._layouts[key]

    def _tried(self, roles: tuple[str, ...], generate: bool) -> _Layout | None:
        marks = [_marker(at) for at in range(len(roles))]
        turns: list[Message] = [
            {"role": role, "content": f"{_LEFT}{mark}{_RIGHT}"} for role, mark in zip(roles, marks, strict=True)
        ]
        try:
            text = self.write(turns, generate=generate)
        except TemplateFault:
            return None
        parts, keeps, at = [], [], 0
        for mark in marks:
            found = text.find(mark, at)
            if found < 0 or text.count(mark) > 1:
                return None
            left, right = text[:found].endswith(_LEFT), text.startswith(_RIGHT, found + len(mark))
            parts.append(text[at : found - len(_LEFT) * left])
            keeps.append((left, right))
            at = found + len(mark) + len(_RIGHT) * right
        return _Layout([*parts, text[at:]], keeps)

    def around_answers(self) -> tuple[str, str] | None:
        """Return the template's text between generation prompt and answer, and after the answer.

        Found with one question and one answer; None if the answer does not follow the generation prompt as it stands.
        """
        before, after = self._layout(("user",), True), self._layout(("user", "assistant"), False)
        if before is None or after is None or before.parts[0] != after.parts[0]:
            return None
        if not after.parts[1].startswith(before.parts[1]):
            return None
        return after.parts[1][len(before.parts[1]) :], after.parts[2]

    def opened(self) -> str:
        """Return the part of the generation prompt that a finished answer lacks: `<think>` in some templates."""
        before, after = self._layout(("user",), True), self._layout(("user", "assistant"), False)
        if before is None or after is None or after.parts[1].startswith(before.parts[1]):
            return ""
        common = next(
            (i for i, (a, b) in enumerate(zip(before.parts[1], after.parts[1], strict=False)) if a != b),
            min(len(before.parts[1]), len(after.parts[1])),
        )
        return before.parts[1][common:]

    # --- one conversation at a time

    def _searched(self, turns: Sequence[Message], text: str, generate: bool) -> Rendered:
        """Search for every piece of every turn, each after the turn before it."""
        rendered = Rendered(text, [])
        self._require_places(turns, generate, rendered.notes)
        at = 0
        for number, turn in enumerate(turns):
            last = number == len(turns) - 1
            start, end = len(text), at
            for kind, piece in pieces(turn):
                place = _find(kind, piece, turn, text, at, rendered.notes, last)
                if place is not None:
                    start, end = min(start, place[0]), max(end, place[1])
            rendered.spans.append((min(start, end), end))
            at = max(at, end)
        rendered.notes = list(dict.fromkeys(rendered.notes))
        return rendered

    def _require_places(self, turns: Sequence[Message], generate: bool, notes: list[str]) -> None:
        """Refuse turns with a text that the template leaves out.

        Markers stand for the texts, since a short text may be found by accident: `a` in `assistant`.
        """
        markers = _Markers()
        try:
            text = self.write([markers.turn(at, turn) for at, turn in enumerate(turns)], generate=generate)
        except TemplateFault:
            return
        for marker, (number, kind) in markers.places.items():
            role, last = turns[number]["role"], number == len(turns) - 1
            if marker in text:
                if kind == "text" and text.count(marker) > 1:
                    notes.append(f"the chat template writes the {role} turn twice")
            elif kind == "name":
                notes.append(f"the name of a {role} turn is left out by the chat template")
            elif kind == "thinking" and not last:
                notes.append(EARLIER)
            else:
                raise Lost(f"the chat template leaves out {_described(role, kind)}")


class _Markers:
    """Stand-ins for the texts of a conversation, each with its turn's number and its kind of text."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[int, str]] = {}

    def turn(self, number: int, turn: Message) -> Message:
        """Return the turn with a marker in place of every text."""
        copy: Any = {**turn}
        for name, kind in (("content", "text"), ("reasoning_content", "thinking"), ("name", "name")):
            if str(turn.get(name) or "").strip():
                copy[name] = self._new(number, kind)
        for name, kind in (("tool_calls", "call"), ("tools", "tool")):
            if turn.get(name):
                copy[name] = [_with_function(call, partial(self._inside, number, kind)) for call in copy[name]]
        marked: Message = copy
        return marked

    def _new(self, number: int, kind: str) -> str:
        marker = _marker(len(self.places))
        self.places[marker] = number, kind
        return marker

    def _inside(self, number: int, kind: str, value: Any) -> Any:
        if isinstance(value, str):
            return self._new(number, kind) if value.strip() else value
        if isinstance(value, Mapping):
            return {key: self._inside(number, kind, inner) for key, inner in value.items()}
        return [self._inside(number, kind, it) for it in value] if isinstance(value, (list, tuple)) else value


def _with_function(call: Mapping[str, Any], change: Any) -> dict[str, Any]:
    """Return a tool or a tool call with `change` applied to its name and, for a call, its arguments."""
    function = dict(call.get("function") or call)
    for key in ("name", "arguments"):
        if key in function:
            function[key] = change(_parsed(function[key]) if key == "arguments" else function[key])
    return {**call, "function": function} if "function" in call else function


_LEFT, _RIGHT = " \n\t", "\t\n "
TRIMMED = "white space around a turn is trimmed by the chat template"
EARLIER = "thinking in an earlier turn is left out by the chat template"


def _marker(at: int) -> str:
    return f"Zq{at}xKw"


def _fault(error: Exception) -> TemplateFault:
    words = " ".join(str(error).split())[:160] or type(error).__name__
    return TemplateFault(f"the chat template cannot render it: {words}")


def _find(
    kind: str, piece: str, turn: Message, text: str, at: int, notes: list[str], last: bool
) -> tuple[int, int] | None:
    """Return the span of a turn's piece from `at` on, or from 0 if it is a text that the template moved.

    Changes that the template made are added to `notes`. None for thinking that is left out of an earlier turn. Raises
    `Lost` for anything else that is not found.
    """
    ways = ((piece, ""), (piece.strip(), TRIMMED), (_in_json(piece), "a turn is written as JSON by the chat template"))
    for start in (at, 0) if kind == "text" else (at,):
        for form, note in ways:
            found = text.find(form, start)
            if form and found >= 0:
                notes += [note] if note else []
                notes += [f"the chat template moves the {turn['role']} turn"] if start != at else []
                return found, found + len(form)
    if turn["role"] == "assistant" and not last:
        rest = piece.rpartition(_THOUGHT)[2].strip()
        if kind == "thinking":
            return None
        if kind == "text" and _THOUGHT in piece and rest and (found := text.find(rest, at)) >= 0:
            notes.append(EARLIER)
            return found, found + len(rest)
    if last and turn["role"] == "assistant" and kind == "text":
        raise Lost("the chat template cuts the answer")
    raise Lost(f"the chat template leaves out or changes {_described(turn['role'], kind)}")


def _described(role: str, kind: str) -> str:
    what = {"text": f"the {role} turn", "thinking": f"the {role} turn's thinking", "tool": "a tool"}
    return what.get(kind, "a call of a tool")


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


# --- the texts of a turn --------------------------------------------------------------------------


def pieces(turn: Message) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of a turn's thinking, its text, and the names and values of its tool calls."""
    if turn.get("reasoning_content"):
        yield "thinking", turn["reasoning_content"]
    if turn["content"].strip():
        yield "text", turn["content"]
    for call in turn.get("tool_calls") or ():
        function = call.get("function") or call
        for leaf in _leaves([function.get("name"), _parsed(function.get("arguments"))]):
            yield "call", leaf


def _leaves(value: Any) -> Iterator[str]:
    """Yield the texts inside lists and objects, including the objects' keys."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(key)
            yield from _leaves(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner)


def answering(text: str, fields: Fields | None) -> Message:
    """Return an answer as the assistant's turn."""
    return {"role": "assistant", "content": text, **(fields or {})}  # type: ignore[typeddict-item]


def _parsed(arguments: Any) -> Any:
    """Return a call's arguments as an object if they are the JSON text of one, else as they are."""
    if not isinstance(arguments, str):
        return arguments
    try:
        found = json.loads(arguments)
    except ValueError:
        return arguments
    return found if isinstance(found, dict) else arguments


def _with_parsed_calls(turn: Mapping[str, Any]) -> dict[str, Any]:
    return _with_calls(turn, _parsed)


def _with_written_calls(turn: Mapping[str, Any]) -> dict[str, Any]:
    return _with_calls(turn, lambda it: it if isinstance(it, str) else json.dumps(it, ensure_ascii=False))


def _with_calls(turn: Mapping[str, Any], change: Any) -> dict[str, Any]:
    if not turn.get("tool_calls"):
        return dict(turn)
    calls = []
    for call in turn["tool_calls"]:
        function = call.get("function")
        if isinstance(function, Mapping) and "arguments" in function:
            call = {**call, "function": {**function, "arguments": change(function["arguments"])}}
        calls.append(call)
    return {**turn, "tool_calls": calls}
