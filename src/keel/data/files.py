"""JSON and JSONL on disk. What is written is whole or absent: it is written beside and renamed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """One object, indented."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(file)


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One object a line; the folder is made where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.rename(file)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Every line's object."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
