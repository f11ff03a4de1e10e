"""How a turn is shown to who judges it: its text, and beneath it what else it holds (reasoning, calls of tools)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from keel.records import Answer, Prompt
from keel.text.tokenisation import further


def turns_of(prompt: Prompt) -> list[tuple[str, str]]:
    """Role and readable text of each turn; plain text is one turn that nobody speaks."""
    if isinstance(prompt, str):
        return [("", prompt)]
    return [(turn["role"], _whole(turn["content"], further(turn))) for turn in prompt]


def text_of(answer: Answer) -> str:
    """The readable text of an answer."""
    return _whole(answer.text, answer.fields)


def stripped(answer: Answer) -> str:
    """The same without the outer white space of its text: equal if two answers are the same to who judges them."""
    return _whole(answer.text.strip(), answer.fields)


def _whole(text: str, fields: Mapping[str, Any] | None) -> str:
    """Reasoning as text, the rest as JSON, each beneath its name."""
    if not fields:
        return text
    parts = [text] if text else []
    for name, value in sorted(fields.items()):
        parts.append(f"{name}:\n{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)}")
    return "\n\n".join(parts)
