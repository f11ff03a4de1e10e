"""JSON and JSONL on disk. What is written is whole or absent (it is written beside and renamed), and strict JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def strict_json(content: Any, indent: int | None = None) -> str:
    """JSON as every reader takes it: it has no word for what is not finite, which is missing (null) in it."""
    try:
        return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(finite_only(content), indent=indent, ensure_ascii=False, allow_nan=False)


def finite_only(value: Any) -> Any:
    """The same with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {name: finite_only(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite_only(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """One object, indented."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(strict_json(content, indent=2) + "\n", encoding="utf-8")
    partial.rename(file)


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One object a line; the folder is made where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(strict_json(row) + "\n")
    partial.rename(file)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Every line's object."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
