"""CSV: rows under a header, and the separator of its cells."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

from keel.errors import InputError
from keel.files.fields import Numbered, Row, RowError, one_line

__all__ = ["csv_rows"]

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SAMPLE = 200  # lines from which the separator is guessed
STATED = re.compile(r'"?sep=(.)"?\s*')
"""First line of some spreadsheets, which names the separator."""


def csv_rows(lines: Iterator[str], source: str, remarks: list[str]) -> Iterator[Numbered]:
    """Yield the numbered data rows under a header; anything unusual that is read all the same is a remark."""
    limit = csv.field_size_limit(2**31 - 1)  # its default is shorter than some transcripts
    try:
        sample = list(itertools.islice(lines, _SAMPLE))
        stated = STATED.fullmatch(sample[0]) if sample else None
        skipped = 1 if stated else 0
        sample = sample[skipped:]
        separator: str = stated[1] if stated else _separator(sample)
        if separator != "," and not stated:
            remarks.append(f"cells are separated by {SEPARATORS[separator]}, not by commas")
        rows: Iterator[list[str] | None] = _records(itertools.chain(sample, lines), source, separator, skipped)
        first = next(rows, None)
        header = _header(first or [], source)
        for number, cells in enumerate(rows, 1):
            yield number, RowError("broken CSV") if cells is None else _row(header, cells)
    finally:
        csv.field_size_limit(limit)


def _separator(sample: list[str]) -> str:
    """Return the separator that the sample suggests.

    It is the comma, unless no row fits a header of several columns by it, and most rows do by just one of the others.
    """
    widths = {separator: _widths(sample, separator) for separator in SEPARATORS}
    wide = {separator: found for separator, found in widths.items() if len(found) > 1 and found[0] > 1}
    if "," in wide and wide[","][0] in wide[","][1:]:
        return ","
    others = [s for s, found in wide.items() if s != "," and 2 * found[1:].count(found[0]) > len(found) - 1]
    return others[0] if len(others) == 1 else ","


def _widths(sample: list[str], separator: str) -> list[int]:
    """Return the number of cells in the header and in each row, as far as the lines can be read."""
    found: list[int] = []
    with suppress(csv.Error):  # the sample may end within a row
        found.extend(len(cells) for cells in csv.reader(sample, delimiter=separator, strict=True) if cells)
    return found


def _records(lines: Iterable[str], source: str, separator: str, skipped: int) -> Iterator[list[str] | None]:
    """Yield the cells of header and rows, None for a broken line; blank lines are no rows.

    Raises `InputError` for a broken row over several lines or a quote that is never closed: other rows may be inside.
    """
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        before = reader.line_num
        try:
            cells: list[str] | None = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if before == 0 or reader.line_num > before + 1 or "unexpected end" in str(error):
                raise InputError(
                    f"{source}: broken CSV from line {before + 1 + skipped} on ({error}); mend it, or write JSONL"
                ) from None
            cells = None
        if cells is None or cells:
            yield cells


def _header(cells: list[str], source: str) -> list[str]:
    if twice := sorted({name for name in cells if cells.count(name) > 1}):
        raise InputError(f"{source}: the column {one_line(twice[0])} appears twice in the header; rename one")
    inside = [name for mark, name in SEPARATORS.items() if mark != "," and len(cells) == 1 and mark in cells[0]]
    if inside:
        raise InputError(
            f"{source}: its header is one column, {one_line(cells[0])}, with {inside[0]} inside, but split by these "
            "its rows do not fit the header; separate the cells by commas and quote them, or write JSONL"
        )
    return cells


def _row(header: list[str], cells: list[str]) -> Row | RowError:
    if len(cells) != len(header):
        return RowError("not as many cells as the header")
    return dict(zip(header, cells, strict=True))
