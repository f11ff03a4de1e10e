"""Turns as raters see them: the text, and beneath it the turn's other fields (reasoning, tool calls)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from keel.records import Answer, Prompt
from keel.text.tokenisation import further


def turns_of(prompt: Prompt) -> list[tuple[str, str]]:
    """Return role and readable text of each turn; plain text is one turn without a role."""
    if isinstance(prompt, str):
        return [("", prompt)]
    return [(turn["role"], _whole(turn["content"], further(turn))) for turn in prompt]


def text_of(answer: Answer) -> str:
    """Return the readable text of an answer."""
    return _whole(answer.text, answer.fields)


def stripped(answer: Answer) -> str:
    """Return the readable text without outer white space: equal if two answers look the same to a rater."""
    return _whole(answer.text.strip(), answer.fields)


def _whole(text: str, fields: Mapping[str, Any] | None) -> str:
    """Return text and fields as one text: reasoning as text, the rest as JSON, each beneath its name."""
    if not fields:
        return text
    parts = [text] if text else []
    for name, value in sorted(fields.items()):
        parts.append(f"{name}:\n{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)}")
    return "\n\n".join(parts)
