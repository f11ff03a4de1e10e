"""JSON and JSONL on disk. Files are strict JSON, and whole or absent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from keel.files.disk import FREE_SPACE, whole_file, writing


def strict_json(content: Any, indent: int | None = None) -> str:
    """Return strict JSON, which every reader accepts. It has no number that is not finite; null takes its place."""
    try:
        return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(finite_only(content), indent=indent, ensure_ascii=False, allow_nan=False)


def finite_only(value: Any) -> Any:
    """Return the value with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {name: finite_only(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite_only(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(file: Path, content: Mapping[str, Any], remedy: str = FREE_SPACE) -> None:
    """Write one object, indented; `remedy` is for a full disk."""
    text = strict_json(content, indent=2) + "\n"
    with writing(file, len(text), remedy), whole_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one object per line, and create the folder if it is missing."""
    lines = (strict_json(row) + "\n" for row in rows)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as partial, partial.open("w", encoding="utf-8") as out:
            out.writelines(lines)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the object of every line."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
