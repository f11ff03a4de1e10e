"""Containers: a file, a folder or a hub data set into numbered rows.

Rows count from 1: lines of JSONL and text (blank ones are no rows), data rows of CSV, elements of JSON and Parquet.
A row that cannot be read is a `RowError` in its place; what makes the whole file unreadable, such as a wrong encoding,
is an `InputError`. What is read although it is unusual, such as cells that are separated by semicolons, is a remark.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from keel.config.base import STORE_ENDINGS
from keel.errors import InputError, on_one_line
from keel.files.cells import unfold
from keel.files.delimited import csv_rows
from keel.files.fields import Numbered, Row, RowError, one_line
from keel.files.hub import INSTALL, is_pointer, place_of

__all__ = ["INSTALL", "file_hash", "read_rows"]

Container = Callable[[Path, str, list[str]], Iterator[Numbered]]


def read_rows(source: str, remarks: list[str] | None = None) -> Iterator[Numbered]:
    """Every row of a source with its number. The container follows from the name's ending.

    `remarks` learns what is unusual about the file, by the time of its first row.
    """
    for numbered in _raw_rows(source, [] if remarks is None else remarks):
        row = numbered[1]
        error = unfold(row) if row.__class__ is dict else None  # type: ignore[arg-type]
        yield numbered if error is None else (numbered[0], error)


def _raw_rows(source: str, remarks: list[str]) -> Iterator[Numbered]:
    path = Path(source)
    name = path.name.lower().removesuffix(".gz")
    container = next((read for ending, read in CONTAINERS.items() if name.endswith(ending)), None)
    place = None if path.is_file() else place_of(source)
    if place is not None and (place.local or container is None):
        yield from place.rows(source, lambda file: _raw_rows(file, remarks), tuple(CONTAINERS))
        return
    if not path.exists():
        raise InputError(f"{source}: no such file, and not the name of a hub data set; check the path")
    if container is None:
        if name.endswith(STORE_ENDINGS):
            raise InputError(f"{source}: a store is named store:{source}")
        endings = ", ".join(CONTAINERS)
        raise InputError(f"{source}: its name does not say what it holds; end it in {endings} (text ones also .gz)")
    if is_pointer(path):
        raise InputError(f"{source}: a Git LFS pointer in place of the data; fetch these with: git lfs pull")
    try:
        yield from container(path, source, remarks)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{source}: cannot be read ({on_one_line(error)}); copy the file anew") from error


def file_hash(source: str) -> str:
    """First 16 hex digits of the SHA-256 of the raw file (or of a folder's files with their names, and its part).

    For a hub data set `hub:`, its commit and its part; `hub:unknown` where the hub cannot be asked.
    """
    path = Path(source)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    place = place_of(source)
    return "hub:unknown" if place is None else place.identity(_folder_hash)


def _folder_hash(folder: str) -> str:
    path = Path(folder)
    parts = [(str(p.relative_to(path)), file_hash(str(p))) for p in sorted(path.rglob("*")) if p.is_file()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


# --- bytes and lines ------------------------------------------------------------------------------


def _open(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked where it is gzip by its content, whatever its name."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb") if packed else path.open("rb"))


def _decode(raw: bytes, path: Path, source: str, offset: int, line: int) -> str:
    """UTF-8 text (without a byte order mark), or a refusal that names the first byte that is not."""
    try:
        return raw.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise InputError(
            f"{source}: line {line}, byte {offset + error.start} (0x{raw[error.start]:02x}) is not UTF-8; "
            f"convert the file, {_encoding(path)}"
        ) from None


def _encoding(path: Path) -> str:
    """How to convert a file that is not UTF-8, told by the bytes of the whole of it.

    Windows-1252 puts quotation marks and dashes where Latin-1 has control characters that nobody writes.
    """
    with _open(path) as file:
        raw = file.read()
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        likely = "utf-16"
    elif not UNUSED_IN_1252.isdisjoint(raw):
        return "which is no Windows-1252 either: write it anew as UTF-8 from where it comes"
    else:
        likely = "latin1" if _CONTROL.isdisjoint(raw) else "cp1252"
    return f"for instance with: iconv -f {likely} -t utf-8"


_CONTROL = frozenset(range(0x80, 0xA0))
UNUSED_IN_1252 = frozenset((0x81, 0x8D, 0x8F, 0x90, 0x9D))
_HEAD = 1 << 16  # bytes in which a line's end is looked for


def _lines(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Numbered lines with their line ends; only a newline ends a line (U+2028 does not), or \\r where there is none."""
    offset = 0
    with _open(path) as file:
        for number, raw in enumerate(_raw_lines(file), 1):
            yield number, _decode(raw, path, source, offset, number)
            offset += len(raw)


def _raw_lines(file: IO[bytes]) -> Iterator[bytes]:
    head = file.read(_HEAD)
    file.seek(0)
    if b"\r" not in head or b"\n" in head:
        yield from file
        return
    whole = file.read()
    file.seek(0)
    yield from file if b"\n" in whole else whole.splitlines(keepends=True)  # as Macs wrote them once


# --- one container after the other ----------------------------------------------------------------


def _text_rows(path: Path, source: str, remarks: list[str]) -> Iterator[Numbered]:
    for number, line in _lines(path, source):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def _jsonl_rows(path: Path, source: str, remarks: list[str]) -> Iterator[Numbered]:
    for number, line in _lines(path, source):
        if line.strip():
            yield number, _parsed(line)


def _parsed(line: str) -> Row | RowError:
    try:
        return _object(json.loads(line))
    except (ValueError, RecursionError):  # ValueError: broken, or a number of thousands of digits
        return RowError("broken JSON")


def _object(value: object) -> Row | RowError:
    return value if isinstance(value, dict) else RowError("not a JSON object")


def _csv_rows(path: Path, source: str, remarks: list[str]) -> Iterator[Numbered]:
    return csv_rows((line for _, line in _lines(path, source)), source, remarks)


def _json_rows(path: Path, source: str, remarks: list[str]) -> Iterator[Numbered]:
    """A list of objects; many tools also give the ending .json to one object a line, or to one beneath another."""
    with _open(path) as file:
        text = _decode(file.read(), path, source, 0, 1)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not text.lstrip().startswith("["):
            following = _following(text)
            yield from enumerate(following, 1) if following else _jsonl_rows(path, source, remarks)
            return
        where = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
        detail = on_one_line(error)
        raise InputError(f"{source}: {where}broken JSON ({detail}); mend it, or write one object a line") from None
    one_line = "\n" not in text.strip()
    found = data if isinstance(data, list) else _inside(data, remarks)
    if found is not None:
        yield from ((number, _object(value)) for number, value in enumerate(found, 1))
    elif isinstance(data, dict) and one_line:
        yield 1, data
    else:
        raise InputError(f"{source}: not a list of rows{_shape(data)}; write a JSON list of objects, or one a line")


def _following(text: str) -> list[Row]:
    """Objects that stand one behind another, the first over several lines; none where they are not the whole text."""
    if isinstance(_parsed(text.lstrip().partition("\n")[0]), dict):
        return []
    decoder, at, found = json.JSONDecoder(), 0, []
    try:
        while (rest := text[at : at + 1]) != "":
            if rest.isspace():
                at += 1
                continue
            value, at = decoder.raw_decode(text, at)
            found.append(value)
    except (ValueError, RecursionError):
        return []
    return found if all(isinstance(value, dict) for value in found) else []


WRAPPERS = "data", "rows", "examples", "records", "instances", "samples", "items"
"""Names under which files keep their list of rows."""


def _inside(data: object, remarks: list[str]) -> list[Any] | None:
    """The rows of an object that wraps a list of them, or that holds columns by row number; else None."""
    if not isinstance(data, dict) or not data:
        return None
    lists = [name for name, value in data.items() if name in WRAPPERS and isinstance(value, list)]
    if len(lists) == 1 and data[lists[0]] and all(isinstance(value, dict) for value in data[lists[0]]):
        others = [one_line(name) for name in data if name != lists[0]]
        left = f"; beside it, not used: {', '.join(others[:5])}" if others else ""
        remarks.append(f"rows are the list {lists[0]!r} of one object{left}")
        return list(data[lists[0]])
    first = next(iter(data.values()))
    numbered = isinstance(first, dict) and bool(first) and all(key.isdigit() for key in first)
    if numbered and all(isinstance(value, dict) and value.keys() == first.keys() for value in data.values()):
        remarks.append("rows are columns by row number, as pandas writes them")
        return [{column: cells[key] for column, cells in data.items()} for key in first]
    return None


def _shape(data: object) -> str:
    """What an object holds in place of rows, where that can be told."""
    if not isinstance(data, dict) or len(data) < 2 or not all(isinstance(value, list) for value in data.values()):
        return ""
    names = ", ".join(map(one_line, list(data)[:5]))
    if all(isinstance(item, dict) for value in data.values() for item in value):
        return f" but several lists ({names}), of which each needs a file"
    return f" but columns ({names}); pandas writes rows with to_json(orient='records')"


def _parquet_rows(path: Path, source: str, remarks: list[str]) -> Iterator[Numbered]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{source}: reading Parquet needs {INSTALL}") from None
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, ValueError, OSError, TypeError, OverflowError) as error:
        raise InputError(f"{source}: not a readable Parquet file ({on_one_line(error)}); write it anew") from error


CONTAINERS: dict[str, Container] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
