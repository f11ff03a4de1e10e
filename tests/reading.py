"""A source read to its end in one call: (what it gives, every row's fate, the format's name)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from keel.data.source import Source, open_source
from keel.files.containers import RowReader

_IDENTITIES: dict[int, dict[str, object]] = {}


def _read(take: Callable[[Source], Any], source: str, how: tuple[Any, ...], named: dict[str, Any]) -> Any:
    with open_source(source, **dict(zip(("format", "limit", "columns"), how, strict=False)), **named) as opened:
        found = list(take(opened))
        _IDENTITIES[id(opened.counts)] = opened.identity()
    return found, opened.counts, opened.format


def read_pairs(source: str, *how: Any, **named: Any) -> Any:
    return _read(Source.pairs, source, how, named)


def read_judgments(source: str, *how: Any, **named: Any) -> Any:
    return _read(lambda opened: (j for group in opened.judgments() for j in group), source, how, named)


def read_demonstrations(source: str, *how: Any, **named: Any) -> Any:
    return _read(lambda opened: opened.demonstrations(), source, how, named)


def read_prompts(source: str, *how: Any, **named: Any) -> Any:
    return _read(lambda opened: opened.prompts(), source, how, named)


def identify(source: str, counts: Any) -> dict[str, object]:
    """The identity of the rows that were counted last by these counts."""
    return _IDENTITIES[id(counts)]


def kind_of(source: str, format: str | None = None, columns: str | None = None) -> str:
    with open_source(source, format=format, columns=columns) as opened:
        return opened.holds()


def _opened(take: Callable[[Source], Iterator[Any]], source: str, how: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The same as it is read: the file is recognised at once, and closed at the end."""
    opened = open_source(source, **dict(zip(("format", "limit", "columns"), how, strict=False)), **named)
    found = take(opened)

    def stream() -> Iterator[Any]:
        with opened:
            yield from found
            _IDENTITIES[id(opened.counts)] = opened.identity()

    return stream(), opened.counts, opened.format


def open_judgments(source: str, *how: Any, **named: Any) -> Any:
    return _opened(lambda opened: opened.judgments(), source, how, named)


def open_answers(source: str, *how: Any, **named: Any) -> Any:
    return _opened(lambda opened: opened.answers(), source, how, named)


def open_demonstrations(source: str, *how: Any, **named: Any) -> Any:
    return _opened(lambda opened: opened.demonstrations(), source, how, named)


def open_keyed(source: str, *how: Any, **named: Any) -> Any:
    return _opened(lambda opened: opened.keyed(), source, how, named)


def read_rows(source: str) -> Iterator[Any]:
    """Every row of a source with its number, before any format is known."""
    return RowReader(source).rows
