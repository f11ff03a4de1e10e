"""`--columns`: renames a file's own columns, and the values of its verdict column, to those that formats read.

`prompt=input,response_a=output_1,response_b=output_2,preference=label:0=a:1=b` puts the columns on the right under the
names on the left. A dot reads inside objects and lists: `prompt=meta.question`, `responses=answers.text` (of each),
`response_a=turns.1.content` (of the second). The meanings of a verdict's values follow its column, if they are not
plain. A renamed row is recognised like any other; columns that are not named stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from keel.errors import InputError
from keel.files.cells import unfold
from keel.files.fields import Numbered, Row, RowError, one_line
from keel.formats.judgments.generic import MEANINGS, spelt

__all__ = ["NAMES", "Columns", "listed_columns", "parse_columns"]

NAMES = (
    *("prompt", "system", "tools", "history", "messages", "conversations", "instruction", "input", "output", "text"),
    *("chosen", "rejected", "margin"),
    *("response_a", "response_b", "preference", "score_a", "score_b", "model_a", "model_b"),
    *("response", "score", "responses", "scores", "ranks", "models", "completion", "completions", "label"),
    *("rater", "feedback", "dimension", "comment"),
)
"""Names allowed on the left."""
_VERDICT = "preference"
_SIDES = "response_a", "response_b"


@dataclass(frozen=True, slots=True)
class Columns:
    """The file's column for each name, and the meanings of the values of its verdict column."""

    paths: dict[str, str]
    means: dict[str, str] = field(default_factory=dict)

    def renamed(self, rows: Iterable[Numbered]) -> Iterator[Numbered]:
        """Yield the rows under the names on the left; rows that cannot be read stay as they are."""
        for number, row in rows:
            yield number, self._renamed(row) if isinstance(row, dict) else row

    def _renamed(self, row: Row) -> Row | RowError:
        inside: dict[str, list[list[str]]] = {}
        new: Row = {}
        for name, path in self.paths.items():
            if path in row:
                new[name] = row[path]
            else:
                column, *rest = path.split(".")
                new[name] = _dig(row.get(column), rest)
                inside.setdefault(column, []).append(rest)
        if _VERDICT in self.paths:
            new[_VERDICT] = self._verdict(new[_VERDICT])
        taken = set(self.paths.values())
        for column, value in row.items():
            if column not in taken and column not in new:
                new[column] = _without(value, inside[column]) if column in inside else value
                if column in inside and new[column] in ({}, []):
                    del new[column]
        return (unfold(new) if inside else None) or new

    def _verdict(self, value: Any) -> Any:
        """Return a verdict as a word that every reader knows, if it was given a meaning or names an answer's column."""
        word = spelt(value)
        if word in self.means:
            return self.means[word]
        named = [side for side in _SIDES if isinstance(value, str) and value and value == self.paths.get(side)]
        return named[0] if named else value

    def refuse_missing(self, head: Sequence[Row], source: str) -> None:
        """Refuse columns that no row of the head has."""
        found = {column: None for row in head for column in row}
        absent = [path for path in dict.fromkeys(self.paths.values()) if not any(_has(row, path) for row in head)]
        if absent:
            what = "no column" if len(absent) == 1 else "no columns"
            names = " or ".join(f"'{one_line(path)}'" for path in absent)
            raise InputError(f"{source}: {what} {names}, which --columns names; found: {listed_columns(found)}")

    def meant_for(self, head: Sequence[Row]) -> bool:
        """Say whether these rows have the names on the right, and not those on the left instead."""
        others = [path for name, path in self.paths.items() if name != path]
        there = [any(_has(row, path) for row in head) for path in others]
        ours = all(any(name in row for row in head) for name in self.paths)
        return all(there) or (any(there) and not ours)

    def hidden(self, head: Sequence[Row]) -> list[str]:
        """Return the file's own columns that give way to others of the same name."""
        taken = set(self.paths.values())
        found = {column: None for row in head for column in row if column in self.paths and column not in taken}
        return list(found)


def parse_columns(spec: str | None) -> Columns | None:
    """Read `NAME=COLUMN,…`; None if nothing is given. Raises `InputError`, which lists the known names."""
    if spec is None:
        return None
    parts: list[str] = []
    for part in spec.split(","):
        if "=" in part or not parts:
            parts.append(part)
        else:  # a comma in a column's name
            parts[-1] += f",{part}"
    paths: dict[str, str] = {}
    means: dict[str, str] = {}
    for part in parts:
        name, _, path = (piece.strip() for piece in part.partition("="))
        if not name or not path:
            raise InputError(f"--columns {one_line(part)}: write NAME=COLUMN, as in prompt=question,chosen=better")
        if name not in NAMES:
            close = get_close_matches(name, NAMES, 1)
            hint = f" (perhaps {close[0]})" if close else ""
            raise InputError(
                f"--columns: {one_line(name)} is not a name that Keel knows{hint}; there are {', '.join(NAMES)}"
            )
        if name in paths:
            raise InputError(f"--columns names {name} twice; name it once")
        if name == _VERDICT:
            path, means = _meant(path)
        paths[name] = path
    return Columns(paths, means)


def _meant(path: str) -> tuple[str, dict[str, str]]:
    """Split `label:0=a:1=b` into the column and the meanings of its values."""
    column, *pairs = path.split(":")
    if not any("=" in pair for pair in pairs):
        return path, {}
    means = {}
    for pair in pairs:
        value, _, meaning = pair.rpartition("=")
        if meaning.strip() not in MEANINGS or not value:
            raise InputError(
                f"--columns preference={one_line(path)}: what a value means is one of {', '.join(MEANINGS)}, "
                "as in preference=label:0=a:1=b:2=tie"
            )
        means[spelt(value)] = meaning.strip()
    return column, means


def listed_columns(columns: Iterable[str], most: int = 12) -> str:
    """Return the first names of columns for a message."""
    names = list(columns)
    return (", ".join(map(one_line, names[:most])) + (", …" if len(names) > most else "")) or "none"


# --- inside objects -------------------------------------------------------------------------------


def _has(row: Row, path: str) -> bool:
    column, *rest = path.split(".")
    return path in row or (bool(rest) and column in row and _dig(row[column], rest) not in (None, [], [None]))


def _dig(value: Any, path: list[str]) -> Any:
    """Return the part of `value` at these names and places; for a list without a place, the part of each element."""
    for at, part in enumerate(path):
        value = _opened(value)
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.lstrip("-").isdigit():
            place = int(part)
            value = value[place] if -len(value) <= place < len(value) else None
        elif isinstance(value, list):
            return [_dig(item, path[at:]) for item in value]
        else:
            return None
    return value


def _without(value: Any, paths: list[list[str]]) -> Any:
    """Return `value` without what was read inside it; a list that was read at one place stays as it is."""
    value = _opened(value)
    if isinstance(value, list):
        if any(path[0].lstrip("-").isdigit() for path in paths):
            return value
        rest = [_without(item, paths) for item in value]
        return rest if any(item not in ({}, None) for item in rest) else []
    if not isinstance(value, dict):
        return value
    deeper = {path[0]: [other[1:] for other in paths if other[0] == path[0]] for path in paths}
    rest_of = {
        name: inner if name not in deeper else _without(inner, deeper[name])
        for name, inner in value.items()
        if [] not in deeper.get(name, [])
    }
    return {name: inner for name, inner in rest_of.items() if name not in deeper or inner not in ({}, [])}


def _opened(value: Any) -> Any:
    """Return the object or list that a cell holds as JSON; any other value as it is."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
