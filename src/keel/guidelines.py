"""The rubric: the dimensions by which answers are compared, and the written guideline of each.

A YAML file; people and judges see the same text:

    dimensions:
      overall: |
        Which answer would you rather have received?
      accuracy: |
        Which answer says fewer things that are not so?

Its version is a hash of its content, so that judgments under different wordings are kept apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from keel.errors import InputError

_LONGEST_NAME = 60  # characters; the name becomes a column and a button


@dataclass(frozen=True)
class Rubric:
    """Dimensions and guidelines in the order shown: `Rubric((("overall", "Which answer …"),))`."""

    dimensions: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.dimensions)

    @cached_property
    def version(self) -> str:
        """Return the first 8 hex digits of the SHA-256 of names and guidelines, in order."""
        return hashlib.sha256(repr(self.dimensions).encode("utf-8", "surrogatepass")).hexdigest()[:8]

    def __str__(self) -> str:
        """Return the guidelines as people and judges read them."""
        return "\n\n".join(f"{name}:\n{guideline}" for name, guideline in self.dimensions)


DEFAULT_RUBRIC = Rubric(
    (
        (
            "overall",
            "Which answer serves better the one who wrote the prompt? Weigh, in this order: whether it does what was "
            "asked; whether what it says is true; whether it avoids harm; whether it is clear. A longer answer is "
            "better only where what it adds is of use. Say tie where you would as soon have either, and both bad where "
            "neither is of use.",
        ),
    )
)


def rubric_of(file: str | Path | None) -> Rubric:
    """Return the rubric of a YAML file, or the default one if there is no file."""
    return DEFAULT_RUBRIC if file is None else load_rubric(file)


def load_rubric(file: str | Path) -> Rubric:
    """Return the rubric of a YAML file. Raises `InputError`, one line, if something is wrong with it."""
    path = Path(file)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give an existing rubric file") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not readable as YAML ({why}); mend it") from error
    if not isinstance(content, dict) or set(content) != {"dimensions"} or not isinstance(content["dimensions"], dict):
        raise InputError(f"{path}: must hold `dimensions:` and beneath it one `name: guideline` each, nothing else")
    return Rubric(tuple(_dimensions(path, content["dimensions"])))


def _dimensions(path: Path, table: dict[Any, Any]) -> Iterator[tuple[str, str]]:
    if not table:
        raise InputError(f"{path}: no dimension; write at least one `name: guideline` beneath `dimensions:`")
    for number, (name, guideline) in enumerate(table.items(), 1):
        if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
            raise InputError(
                f"{path} dimension {number}: the name {str(name)[:60]!r} must be one or a few words, "
                f"at most {_LONGEST_NAME} characters; put yes, no and numbers in quotes"
            )
        if not isinstance(guideline, str) or not guideline.strip():
            raise InputError(f"{path} dimension {number} ({name}): write its guideline as text after the name")
        yield name.strip(), guideline.strip()


class _Loader(yaml.SafeLoader):
    """A loader that refuses duplicate keys; YAML would silently drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key).strip() for key in keys if [str(k).strip() for k in keys].count(str(key).strip()) > 1})
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {twice[0]!r} appears twice")
        return super().construct_mapping(node, deep)
