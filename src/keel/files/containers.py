"""Containers: numbered rows of a file, a folder or a hub data set.

Rows count from 1: lines of JSONL and text (blank lines are no rows), data rows of CSV, elements of JSON and Parquet.
An unreadable row is a `RowError` in its place; an unreadable file, for example in a wrong encoding, is an `InputError`.
Anything unusual that is read all the same, such as cells separated by semicolons, is a remark.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from keel.config.base import STORE_ENDINGS
from keel.errors import InputError, on_one_line
from keel.files.cells import unfold
from keel.files.delimited import csv_rows
from keel.files.fields import Numbered, Row, RowError, one_line
from keel.files.hub import INSTALL, is_pointer, place_of
from keel.handed import ROWS, rows_named

__all__ = ["INSTALL", "RowReader", "file_hash"]


class RowReader:
    """The rows of a source while they are read, and the hash of the bytes read.

    The bytes of a file are hashed as they are read, so that the hash fits the rows even if the file changes later.
    Folders and hub data sets are read by the library and hashed by name.
    """

    def __init__(self, source: str, remarks: list[str] | None = None) -> None:
        """Open a source; `remarks` holds all that is unusual about the file once its first row is read."""
        self._source, self._bytes = source, Passing()
        self._ahead: str | None = None
        self.rows = _unfolded(_raw_rows(source, [] if remarks is None else remarks, self._bytes))
        """Every row with its number; the file name's ending decides the container."""

    def content(self, ahead: bool = False) -> str:
        """Return `file_hash` of the source; set `ahead` while rows are still to come.

        Raises `InputError` if the hash ahead and that of the bytes read differ.
        """
        if ahead:
            self._ahead = file_hash(self._source)
            return self._ahead
        found = self._bytes.digest() or file_hash(self._source)
        if self._ahead not in (None, found):
            raise InputError(f"{self._source}: it changed while it was read; run the command again")
        return found

    def close(self) -> None:
        """Close the file and end the rows."""
        self.rows.close()
        self._bytes.close()


def _unfolded(rows: Iterator[Numbered]) -> Generator[Numbered]:
    for numbered in rows:
        row = numbered[1]
        error = unfold(row) if row.__class__ is dict else None  # type: ignore[arg-type]
        yield numbered if error is None else (numbered[0], error)


def _raw_rows(source: str, remarks: list[str], passing: Passing | None) -> Iterator[Numbered]:
    if (handed := rows_named(source)) is not None:
        yield from ((number, _object(row)) for number, row in enumerate(handed, 1))
        return
    path = Path(source)
    name = path.name.lower().removesuffix(".gz")
    container = next((read for ending, read in CONTAINERS.items() if name.endswith(ending)), None)
    place = None if path.is_file() else place_of(source)
    if place is not None and (place.local or container is None):
        yield from place.rows(source, lambda file: _raw_rows(file, remarks, None), tuple(CONTAINERS))
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
        yield from container(_File(path, source, remarks, passing))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{source}: cannot be read ({on_one_line(error)}); copy the file anew") from error


def file_hash(source: str) -> str:
    """Return the first 16 hex digits of the SHA-256 of the raw file (or of a folder's files with names, and its part).

    For a hub data set: `hub:`, its commit and its part; `hub:unknown` if the hub cannot be reached.
    """
    if rows_named(source) is not None:
        return source.removeprefix(ROWS)
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


class Passing:
    """Hash of one file's bytes while they are read: `open` the file, read any part of it, then take the `digest`."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._file: IO[bytes] | None = None

    def open(self, path: Path) -> io.BufferedReader:
        """Open the file to read and hash."""
        self._file = path.open("rb", buffering=0)
        return io.BufferedReader(_Hashing(self._file, self._hash), _HEAD)

    @property
    def opened(self) -> bool:
        """Say whether a file was opened."""
        return self._file is not None

    def digest(self) -> str:
        """Read the rest and return the first 16 hex digits of the whole file's hash; empty if no file was opened."""
        if self._file is None:
            return ""
        if not self._file.closed:
            while more := self._file.read(1 << 20):
                self._hash.update(more)
            self._file.close()
        return self._hash.hexdigest()[:16]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class _Hashing(io.RawIOBase):
    """Raw bytes of a file, hashed while they are read in order; closing this stream leaves the file open."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self._file, self._digest = file, digest

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        count: int = self._file.readinto(into)  # type: ignore[attr-defined]
        self._digest.update(memoryview(into)[:count])
        return count


@dataclass(frozen=True, slots=True)
class _File:
    """A file to read: its path, its name in errors, the list for remarks, and the hash of its bytes."""

    path: Path
    source: str
    remarks: list[str]
    passing: Passing | None = None

    def open(self) -> IO[bytes]:
        """Return the file's bytes, unpacked if their content is gzip, whatever the name."""
        if self.passing is None or self.passing.opened:
            with self.path.open("rb") as file:
                packed = file.read(2) == MAGIC
            return cast(IO[bytes], gzip.open(self.path, "rb") if packed else self.path.open("rb"))
        raw = self.passing.open(self.path)
        packed = raw.peek(2)[:2] == MAGIC
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _HEAD) if packed else raw  # type: ignore[arg-type]


MAGIC = b"\x1f\x8b"
"""First bytes of a gzip file."""


def _decode(raw: bytes, at: _File, offset: int, line: int) -> str:
    """Return UTF-8 text without a byte order mark. Raise `InputError` with the place of the first byte that is not."""
    try:
        return raw.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise InputError(
            f"{at.source}: line {line}, byte {offset + error.start} (0x{raw[error.start]:02x}) is not UTF-8; "
            f"convert the file, {_encoding(at)}"
        ) from None


def _encoding(at: _File) -> str:
    """Return advice on converting a file that is not UTF-8, based on all its bytes.

    Windows-1252 puts quotation marks and dashes where Latin-1 has control characters that nobody writes.
    """
    with at.open() as file:
        raw = file.read()
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        likely = "utf-16"
    elif not UNUSED_IN_1252.isdisjoint(raw):
        return "which is not Windows-1252 either: export it again as UTF-8 from its source"
    else:
        likely = "latin1" if _CONTROL.isdisjoint(raw) else "cp1252"
    return f"for instance with: iconv -f {likely} -t utf-8"


_CONTROL = frozenset(range(0x80, 0xA0))
UNUSED_IN_1252 = frozenset((0x81, 0x8D, 0x8F, 0x90, 0x9D))
_HEAD = 1 << 16  # bytes searched for a line's end


def _lines(at: _File) -> Iterator[tuple[int, str]]:
    """Yield numbered lines with their ends. Only a newline ends a line (not U+2028), or \\r if there is no newline."""
    offset = 0
    with at.open() as file:
        for number, raw in enumerate(_raw_lines(file), 1):
            yield number, _decode(raw, at, offset, number)
            offset += len(raw)


def _raw_lines(file: IO[bytes]) -> Iterator[bytes]:
    head = file.peek(_HEAD)  # type: ignore[attr-defined]
    if b"\r" not in head or b"\n" in head:
        yield from file
        return
    whole = file.read()  # "\r" alone ends lines, as on old Macs, unless a newline comes later
    yield from io.BytesIO(whole) if b"\n" in whole else whole.splitlines(keepends=True)


# --- one container after the other ----------------------------------------------------------------


def _text_rows(at: _File) -> Iterator[Numbered]:
    for number, line in _lines(at):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def _jsonl_rows(at: _File) -> Iterator[Numbered]:
    for number, line in _lines(at):
        if line.strip():
            yield number, _parsed(line)


def _parsed(line: str) -> Row | RowError:
    try:
        return _object(json.loads(line))
    except (ValueError, RecursionError):  # ValueError: broken, or a number of thousands of digits
        return RowError("broken JSON")


def _object(value: object) -> Row | RowError:
    return value if isinstance(value, dict) else RowError("not a JSON object")


def _csv_rows(at: _File) -> Iterator[Numbered]:
    return csv_rows((line for _, line in _lines(at)), at.source, at.remarks)


def _json_rows(at: _File) -> Iterator[Numbered]:
    """Yield the objects of a list. Many tools also write .json files with one object a line or several in a row."""
    with at.open() as file:
        text = _decode(file.read(), at, 0, 1)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not text.lstrip().startswith("["):
            following = _following(text)
            yield from enumerate(following, 1) if following else _jsonl_rows(at)
            return
        where = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
        detail = on_one_line(error)
        raise InputError(f"{at.source}: {where}broken JSON ({detail}); mend it, or write one object a line") from None
    one_line = "\n" not in text.strip()
    found = data if isinstance(data, list) else _inside(data, at.remarks)
    if found is not None:
        yield from ((number, _object(value)) for number, value in enumerate(found, 1))
    elif isinstance(data, dict) and one_line:
        yield 1, data
    else:
        raise InputError(f"{at.source}: not a list of rows{_shape(data)}; write a JSON list of objects, or one a line")


def _following(text: str) -> list[Row]:
    """Return objects that follow one another, the first over several lines; none if the text holds anything else."""
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
"""Keys under which files keep their list of rows."""


def _inside(data: object, remarks: list[str]) -> list[Any] | None:
    """Return the rows of an object that wraps a list of them or holds columns by row number; else None."""
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
    """Return a description of an object that holds no rows, with the remedy; empty if it is not recognised."""
    if not isinstance(data, dict) or len(data) < 2 or not all(isinstance(value, list) for value in data.values()):
        return ""
    names = ", ".join(map(one_line, list(data)[:5]))
    if all(isinstance(item, dict) for value in data.values() for item in value):
        return f" but several lists ({names}), each of which needs its own file"
    return f" but columns ({names}); pandas writes rows with to_json(orient='records')"


def _parquet_rows(at: _File) -> Iterator[Numbered]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{at.source}: reading Parquet needs {INSTALL}") from None
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(at.path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, ValueError, OSError, TypeError, OverflowError) as error:
        raise InputError(f"{at.source}: not a readable Parquet file ({on_one_line(error)}); write it anew") from error


CONTAINERS: dict[str, Callable[[_File], Iterator[Numbered]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
