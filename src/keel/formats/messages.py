"""Chats in a row: turns as tools and people write them, read as the messages that chat templates know.

A turn is `{"role", "content"}` or, in ShareGPT, `{"from", "value"}`. Everything else in a turn, or in a column beside
the chat, is used, or is noted by its name, or drops the row: nothing is lost in silence.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from keel.files.fields import Row, RowError, is_unicode, items, mapping, note, one_line, text
from keel.records import ANSWER_FIELDS, Answer, Message, Prompt
from keel.text.tokenisation import fields_key, further

__all__ = [
    "AROUND",
    "TOOLS",
    "answer_key",
    "answer_of",
    "around",
    "json_column",
    "last_turn",
    "messages",
    "one_side",
    "prompt",
    "read_message",
    "read_side",
    "reply",
    "role_of",
    "says",
    "spoken",
    "texts_alone",
    "tools_of",
    "turn_spoken",
    "without_fields",
    "without_tools",
]

# --- who speaks

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "ai", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool_call",), "assistant"),
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("tool", "function", "observation", "ipython", "environment", "tool_response"), "tool"),
}
"""Roles, by the names that people and tools give to speakers."""
KNOWN = frozenset(ROLES.values())
CALLS = "function_call", "tool_call"
"""Speakers whose text is tool calls as JSON."""
_SHAREGPT = frozenset(("human", "gpt", *CALLS, "observation"))
"""ShareGPT's own names, which are read without a note."""
PROMPTER = frozenset(("prompter",))
"""OpenAssistant's own name."""


def role_of(word: object, own: Collection[str] = ()) -> str | None:
    """Return the role that a speaker's name means, in any case; None if it is no name.

    An unknown name stays as it is. Both a renaming and an unknown name are noted, except the format's `own` names.
    """
    if not isinstance(word, str) or not word.strip() or not is_unicode(word):
        return None
    role = ROLES.get(word.strip().lower())
    if role is None:
        note(f"role {one_line(word)!r} is unknown, and stays as it is")
        return word
    if role != word and word not in own:
        note(f"role {one_line(word)!r} read as {role}")
    return role


def read_message(role: str, content: str) -> Message:
    """Return one message."""
    return {"role": role, "content": content}


# --- chats


def messages(row: Row, column: str, *, imitated: bool = False) -> list[Message]:
    """Return the chat in `column`: at least one message. `imitated`: its last turn is to be learnt."""
    value = row.get(column)
    if value is None:
        raise RowError(f"no {column}")
    if isinstance(value, str) and value.startswith("["):  # a cell of a table
        value = items(row, column)
    if not isinstance(value, list) or not value:
        raise RowError(f"{column} is not a list of messages")
    found: list[Message] = []
    for at, turn in enumerate(value, 1):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if isinstance(content, str) and isinstance(role, str) and role in KNOWN and len(turn) == 2:
            if not is_unicode(content):
                raise RowError(f"{column} is not valid Unicode")
            found.append({"role": role, "content": content})
        else:
            found.append(_turn(turn, column, imitated and at == len(value)))
    if any("tools" in turn for turn in found[1:]):
        raise RowError(f"{column} has tools in a turn that is not the first")
    return found


def prompt(row: Row, column: str) -> Prompt:
    """Return text or messages, whichever the column holds."""
    return messages(row, column) if isinstance(row.get(column), list) else text(row, column)


def read_side(row: Row, column: str) -> Prompt:
    """Return text or messages; a single message, or an object around messages, is read as a list of messages."""
    value = row.get(column)
    if isinstance(value, str):
        return text(row, column)
    if isinstance(value, dict):
        inner = next((value[name] for name in ("messages", "conversations") if isinstance(value.get(name), list)), None)
        if inner is None and not {"role", "from"}.isdisjoint(value):
            inner = [value]
        if inner is not None:
            return messages({column: inner}, column)
    return prompt(row, column)


def one_side(row: Row, column: str) -> Prompt:
    """Read a column as `read_side` does; one message may be JSON text, as in a CSV cell."""
    value = row.get(column)
    cell = isinstance(value, str) and value.startswith(('{"from"', '{"role"'))
    return read_side({column: mapping(row, column)} if cell else row, column)


def last_turn(turns: list[Message], column: str, goes_on: bool = False) -> tuple[list[Message], Answer]:
    """Split a transcript into (prompt, last assistant turn). `goes_on`: it continues a prompt that stands elsewhere."""
    if turns[-1]["role"] != "assistant":
        raise RowError(f"{column} does not end with an assistant turn")
    if len(turns) == 1 and not goes_on:
        raise RowError("empty prompt")
    return turns[:-1], answer_of(turns[-1])


def reply(before: Prompt, turns: list[Message], column: str) -> Answer:
    """Return an answer written as one assistant message; only a prompt of messages can precede it."""
    if isinstance(before, str):
        raise RowError(f"prompt is text but {column} is messages")
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise RowError(f"{column} is not one assistant message")
    return answer_of(turns[0])


# --- one turn

THOUGHTS = "reasoning_content", "thinking", "reasoning"
"""Names of the field that holds an assistant's thinking."""
_WEIGHTS = (
    "weight",
    "loss_weight",
    "loss_scale",
    "train",
    "training",
    "trainable",
    "loss",
    "loss_mask",
    "mask",
    "masked",
)
"""Names of the field that says whether, or how much, a turn is learnt."""
_READ = frozenset(("role", "from", "content", "value", "tool_calls", "tool_call_id", "name", "tools", "function_call"))
TEXTS = "text", "input_text", "output_text"


def _turn(turn: object, column: str, imitated: bool) -> Message:
    """Read a turn that holds more than role and text, or holds them under other names."""
    if not isinstance(turn, dict):
        raise RowError(f"{column} has a message without role or text content")
    word = turn.get("role")
    word, own = (turn.get("from"), _SHAREGPT) if word is None else (word, frozenset[str]())
    role, content = role_of(word, own), turn.get("content")
    content = turn.get("value") if content is None else content
    if role is None:
        raise RowError(f"{column} has a message without role or text content")
    calls = _calls(turn)
    thoughts, content = _thinking(turn, content)
    if str(word).strip().lower() in CALLS and not calls and isinstance(content, str):
        calls, content = _spoken_calls(content)
    words = "" if content is None and calls else _content(content, column)
    found: Message = {"role": role, "content": words}
    if thoughts:
        found["reasoning_content"] = thoughts
    if calls:
        found["tool_calls"] = calls
    for name in ("tool_call_id", "name"):
        if turn.get(name) not in (None, ""):
            found[name] = text(turn, name)  # type: ignore[literal-required]
    if (tools := json_column(turn, "tools")) is not None:
        found["tools"] = _listed(tools)
    if not is_unicode(role + words):
        raise RowError(f"{column} is not valid Unicode")
    _rest(turn, imitated)
    return found


def _content(value: object, column: str) -> str:
    """Return text, or the joined text of parts that are text alone."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowError(f"{column} has a message without role or text content")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        words = part.get("text") if isinstance(part, dict) else part
        if isinstance(part, dict) and kind not in (None, *TEXTS):
            raise RowError(f"a turn has a part of type {one_line(kind)}")
        if not isinstance(words, str):
            raise RowError("a turn has a part without text")
        texts.append(words)
        for key in part if isinstance(part, dict) else ():
            if key not in ("type", "text") and not _says_nothing(part[key]):
                note(f"the key {one_line(key)!r} of a part of a turn is left out")
    if len(texts) > 1:
        note("a turn of several text parts is read as their texts, joined")
    return "".join(texts)


def _thinking(turn: Row, content: object) -> tuple[str, object]:
    """Return thinking that stands apart, in a field or in parts of the content, and the rest of the content."""
    found: dict[str, str] = {}
    for name in THOUGHTS:
        value = turn.get(name)
        if isinstance(value, str) and value:
            found[name] = text(turn, name)
        elif not _says_nothing(value) and not isinstance(value, bool):
            raise RowError(f"a turn's {name} is not text")
    if isinstance(content, list):
        blocks = [part for part in content if isinstance(part, dict) and part.get("type") in THOUGHTS]
        texts = [part.get(part["type"]) or part.get("text") for part in blocks]
        if blocks and all(isinstance(words, str) for words in texts):
            found["a part of thinking"] = text({"thinking": "".join(map(str, texts))}, "thinking")
            content = [part for part in content if not any(part is block for block in blocks)]
    if len(set(found.values())) > 1:
        raise RowError(f"a turn holds its thinking twice, in {' and '.join(found)}")
    for name in found if "reasoning_content" not in found else ():
        note(f"{name} read as reasoning_content")
    return next(iter(found.values()), ""), content


def _rest(turn: Row, imitated: bool) -> None:
    """Note the keys that are left out; drop the row if they say that the turn to imitate is not to be learnt."""
    for key, value in turn.items():
        if key in _READ or (key in THOUGHTS and not isinstance(value, bool)) or _says_nothing(value):
            continue
        if imitated and key in _WEIGHTS:
            if key in ("mask", "masked", "loss_mask") or value not in (True, 1, 1.0):
                _refuse_weight(key, value)
            continue
        note(f"the key {one_line(key)!r} of a turn is left out")


def _refuse_weight(key: str, value: object) -> None:
    """Drop a row whose answer is not to be learnt; an unclear weight drops it, too."""
    if key == "loss_mask" and value in (True, 1):
        return
    if key in ("mask", "masked") or not isinstance(value, (int, float)) or value <= 0:
        raise RowError(f"{key} {one_line(value)} on the answer to be imitated")
    note(f"{key} {one_line(value)} on the answer to be imitated counts as 1")


def _says_nothing(value: object) -> bool:
    return value is None or (not isinstance(value, (bool, int, float)) and value in ("", [], {}))


# --- tool calls


def _calls(turn: Row) -> list[dict[str, Any]]:
    """Return the tool calls in a turn, including those in OpenAI's older form."""
    found = _called(json_column(turn, "tool_calls"))
    older = json_column(turn, "function_call")
    if older is None:
        return found
    if found:
        raise RowError("a turn has both tool_calls and function_call")
    note("function_call read as a tool call")
    return _called(older)


def _called(value: object) -> list[dict[str, Any]]:
    """Return calls, each of which must name its tool; a bare call gets the form that templates know."""
    calls = value if isinstance(value, list) else [] if value is None else [value]
    found = []
    for call in calls:
        call = _filled(call) if isinstance(call, dict) else {}
        inner = _filled(call["function"]) if isinstance(call.get("function"), dict) else call
        if not isinstance(inner.get("name"), str) or not inner["name"]:
            raise RowError("a turn has a call that names no tool")
        found.append({**call, "function": inner} if inner is not call else {"type": "function", "function": call})
    return found


def _filled(value: Row) -> Row:
    """Return `value` without nulls: a table has a cell for each key of any row."""
    return {key: inner for key, inner in value.items() if inner is not None}


def _spoken_calls(words: str) -> tuple[list[dict[str, Any]], str]:
    """Return the calls in a text that is nothing else, and the remaining text; other text stays as it is."""
    try:
        return _called(checked(json.loads(words), "a tool call")), ""
    except (ValueError, RecursionError, RowError):
        note("a tool call that is not JSON stays as text")
        return [], words


def json_column(row: Row, column: str) -> Any:
    """Return the JSON value in `column`, which may hold it as text; None if it is empty."""
    value = row.get(column)
    if _says_nothing(value):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError(f"{column} is not JSON") from None
    return None if _says_nothing(value) else checked(value, column)


def checked(value: Any, name: str) -> Any:
    """Return `value` if JSON can hold it as it is; raises `RowError` otherwise."""
    try:
        words = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise RowError(f"{name} cannot be kept as JSON") from None
    if not is_unicode(words):
        raise RowError(f"{name} is not valid Unicode")
    return value


# --- columns around a chat

SYSTEM = "system", "system_prompt", "system_message"
TOOLS = "tools", "functions"
AROUND = frozenset((*SYSTEM, *TOOLS))
"""Columns that hold a part of the prompt: the system turn in front, and the tools."""


def around(row: Row, before: Prompt) -> Prompt:
    """Return a prompt with the system turn and tools from columns of their own; text becomes a user's turn."""
    if AROUND.isdisjoint(row):
        return before
    system, tools = _system(row), tools_of(row)
    if not system and not tools:
        return before
    turns = before
    if isinstance(turns, str):
        if not turns.strip():
            raise RowError("empty prompt")
        note(f"prompt is text beside a column {'of tools' if tools else 'system'}, read as a chat")
        turns = [read_message("user", turns)]
    there = [turn["content"] for turn in turns if turn["role"] == "system"]
    if system and there and there != [system]:
        raise RowError("the system column is not the system turn of the chat")
    if system and not there:
        turns = [read_message("system", system), *_without_tools(turns)]
        tools = _same_tools(tools, before)
    return _with_tools(turns, tools)


def _system(row: Row) -> str:
    found = {name: text(row, name) for name in SYSTEM if not _says_nothing(row.get(name))}
    if len(set(found.values())) > 1:
        raise RowError(f"{' and '.join(found)} are not the same")
    return next((words for words in found.values() if words.strip()), "")


def tools_of(row: Row) -> list[dict[str, Any]]:
    """Return the tools in a column or field: a list, or its JSON text; OpenAI's older `functions` become tools."""
    value = json_column(row, "tools")
    if value is None and (value := json_column(row, "functions")) is not None:
        note("functions read as tools")
        value = [{"type": "function", "function": it} for it in _listed(value)]
    return [] if value is None else _listed(value)


def _listed(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(it, dict) and it for it in value):
        raise RowError("tools is not a list of objects")
    return value


def _with_tools(turns: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    tools = _same_tools(tools, turns)
    return [{**turns[0], "tools": tools}, *turns[1:]] if tools else turns


def _same_tools(tools: list[dict[str, Any]], before: Prompt) -> list[dict[str, Any]]:
    there = [] if isinstance(before, str) else before[0].get("tools", [])
    if tools and there and tools != there:
        raise RowError("the tools column is not what stands in the chat")
    return tools or there


def _without_tools(turns: list[Message]) -> list[Message]:
    if "tools" not in turns[0]:
        return turns
    first = turns[0].copy()
    del first["tools"]
    return [first, *turns[1:]]


# --- ShareGPT

SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def spoken(turns: list[Message]) -> Row:
    """Return a chat in the columns of ShareGPT."""
    turns, tools = without_tools(turns)
    return {"conversations": [turn_spoken(turn) for turn in turns], **tools}


def turn_spoken(turn: Message) -> Row:
    """Return a turn in ShareGPT's form; tool calls are a turn of their own, whose text is JSON."""
    more = further(turn)
    if calls := more.pop("tool_calls", None):
        bare_calls = [call["function"] for call in calls if call.keys() == {"type", "function"}]
        if more or turn["content"] or len(bare_calls) != len(calls):
            raise RowError("a turn of tool calls that also holds text, thinking or ids has no place")
        value = bare_calls[0] if len(calls) == 1 else bare_calls
        return {"from": "function_call", "value": json.dumps(value, ensure_ascii=False)}
    if turn["role"] not in SPEAKERS:
        raise RowError(f"a turn of the role {turn['role'][:40]!r} has no place")
    return {"from": SPEAKERS[turn["role"]], "value": turn["content"], **more}


# --- answers


def answer_of(turn: Message) -> Answer:
    """Return an assistant's turn as an answer: its text and its other fields."""
    if len(turn) == 2:
        return Answer(turn["content"])
    fields = {name: turn[name] for name in ANSWER_FIELDS if name in turn}  # type: ignore[literal-required]
    for name in turn:
        if name not in ("role", "content", *fields):
            note(f"the key {name!r} of an answer is left out")
    return Answer(turn["content"], fields=fields or None)


def says(answer: Answer) -> Message:
    """Return an answer as an assistant's turn."""
    return {"role": "assistant", "content": answer.text, **(answer.fields or {})}  # type: ignore[typeddict-item]


def without_tools(before: list[Message]) -> tuple[list[Message], Row]:
    """Return a chat without its tools, and the column of the tools: as JSON text, which every container keeps."""
    tools = before[0].get("tools") if before else None
    if not tools:
        return before, {}
    return _without_tools(before), {"tools": json.dumps(tools, ensure_ascii=False)}


def texts_alone(turns: list[Message]) -> list[Message]:
    """Return the turns of a chat that holds text alone; raises `RowError` if a turn holds more."""
    for turn in turns:
        if more := further(turn):
            raise RowError(f"the prompt holds {' and '.join(more)}, but the format holds text alone")
    return turns


def without_fields(answer: Answer) -> str:
    """Return the text of an answer that is text alone; raises `RowError` if it has tool calls or separate thinking."""
    if answer.fields:
        raise RowError(f"the answer holds {' and '.join(answer.fields)}, but the format holds text alone")
    return answer.text


def answer_key(answer: Answer) -> str:
    """Return one string per distinct answer to a prompt: its text, and the other fields of its turn."""
    return f"{answer.text}\1{fields_key(answer.fields)}" if answer.fields else answer.text
