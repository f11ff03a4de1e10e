"""Keys of the store's rows: hashes of a row's content, so that the same prompt or answer is stored once.

`prompt_id` and `answer_id` are keys of the tables, as bytes; `text.tokenisation.prompt_key` and
`formats.messages.answer_key` are texts to group by in memory.
"""

from __future__ import annotations

import json
import uuid
from array import array
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from keel.records import Answer, Judgment, Prompt
from keel.text.tokenisation import further

PROMPT_BYTES = 8
"""Bytes of a prompt's key with which the keys of its answers and judgments begin."""
BELOW_BYTES = 12
"""Bytes that follow them in these keys."""


def prompt_id(prompt: Prompt) -> bytes:
    """Return the key of a prompt, 16 bytes."""
    if isinstance(prompt, str):
        return _text_id(prompt)
    return _hash(b"chat", content_of(prompt)[0].encode())


@lru_cache(maxsize=1_024)
def _text_id(prompt: str) -> bytes:
    return _hash(b"text", prompt.encode())


def answer_id(prompt: bytes, answer: Answer) -> bytes:
    """Return the key of an answer: a hash of its text, model, sampling settings, draw number and further fields."""
    drawn = answer.model or answer.model_hash or answer.sampling or answer.draw
    if not drawn and not answer.fields:
        return _below(prompt, answer.text.encode())
    parts = [answer.text]
    if drawn:
        parts += answer.model, answer.model_hash, in_order(answer.sampling), str(answer.draw)
    if answer.fields:
        parts.append(in_order(answer.fields))
    return _below(prompt, *[part.encode() for part in parts])


def row_key(data_hash: str, judgment: Judgment, index: int) -> bytes:
    """Return the key of the `index`th judgment in a row of a file; importing the file again adds nothing."""
    return _below(prompt_id(judgment.prompt), data_hash.encode(), f"{judgment.origin.row}:{index}".encode())


def said_key(judgment: Judgment) -> bytes:
    """Return the key of a rater's judgment: random for people, who may answer differently when asked again."""
    prompt = prompt_id(judgment.prompt)
    if judgment.kind in ("person", "adjudicator", "unknown"):
        return _below(prompt, uuid.uuid4().bytes)
    shown = [answer_id(prompt, answer) for answer in judgment.answers]
    return _below(prompt, judgment.rater.encode(), judgment.rubric.encode(), judgment.dimension.encode(), *shown)


def retraction_key(prompt: bytes, judgment: bytes) -> bytes:
    """Return the key of the one retraction that a judgment can have."""
    return _below(prompt, b"retraction", judgment)


def _below(prompt: bytes, *parts: bytes) -> bytes:
    """Return the key of something that belongs to a prompt, 20 bytes."""
    return prompt[:PROMPT_BYTES] + _hash(*parts, size=BELOW_BYTES)


def _hash(*parts: bytes, size: int = 16) -> bytes:
    """Return a hash of the parts. A byte 255 separates them: no UTF-8 text holds it, and keys have a fixed length."""
    return blake2b(b"\xff".join(parts), digest_size=size).digest()


# --- content of a key -----------------------------------------------------------------------------


def content_of(prompt: Prompt) -> tuple[str, bool]:
    """Return a prompt as one text, and whether that is a chat's turns as JSON."""
    if isinstance(prompt, str):
        return prompt, False
    turns = [{"role": turn["role"], "content": turn["content"], **further(turn)} for turn in prompt]
    return json.dumps(turns, ensure_ascii=False, separators=(",", ":")), True


def in_order(values: Mapping[str, Any] | None) -> str:
    """Return values as JSON, sorted by name, so that equal values give equal texts; empty for none."""
    return stored_json(dict(sorted(values.items()))) if values else ""


def stored_json(values: Mapping[str, Any] | None) -> str:
    """Return values as JSON in their own order; empty for none."""
    return json.dumps(values, ensure_ascii=False) if values else ""


# --- identity of judgments and prompts ------------------------------------------------------------


class Given:
    """The judgments that were read, by number and key, added in any order."""

    def __init__(self) -> None:
        self._numbers, self._keys = array("q"), bytearray()  # 28 bytes each: there may be millions

    def add(self, number: int, key: bytes) -> None:
        """Add one judgment."""
        self._numbers.append(number)
        self._keys += key

    def identity(self) -> dict[str, object]:
        """Return their identity for a manifest: a hash of their keys, their count, their numbers ("1-6240,6300")."""
        whole, ranges, size = blake2b(digest_size=8), list[list[int]](), PROMPT_BYTES + BELOW_BYTES
        for place in sorted(range(len(self._numbers)), key=self._numbers.__getitem__):
            whole.update(self._keys[place * size : (place + 1) * size])
            number = self._numbers[place]
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
        ids = ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in ranges)
        return {"data_hash": whole.hexdigest(), "judgments": len(self._numbers), "judgment_ids": ids}


def prompts_identity(keys: Iterable[bytes]) -> dict[str, object]:
    """Return the identity of prompts for a manifest: a hash of their keys, and their count."""
    found = list(keys)
    return {"data_hash": _hash(*found, size=8).hex(), "prompts": len(found)}
