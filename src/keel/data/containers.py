"""Containers: a file, a folder or a hub data set into numbered rows, and rows into a file.

Rows count from 1: lines of JSONL and text (blank ones are no rows), data rows of CSV, elements of JSON and Parquet.
A row that cannot be read is a `RowError` in its place; what makes the whole file unreadable, such as a wrong encoding,
is an `InputError`. What is written is whole or absent: it is written beside and renamed.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TextIO, cast

from keel.data.rows import Numbered, Row, RowError, shown
from keel.errors import InputError

__all__ = ["WRITTEN", "file_hash", "read_rows", "write_rows"]

INSTALL = "pip install 'keel-tune[data]'"


# --- reading


def read_rows(source: str) -> Iterator[Numbered]:
    """Every row of a source with its number. The container follows from the name's ending."""
    path = Path(source)
    name = path.name.lower().removesuffix(".gz")
    container = next((read for ending, read in CONTAINERS.items() if name.endswith(ending)), None)
    if path.is_dir() or (not path.exists() and container is None and HUB_NAME.fullmatch(source)):
        yield from _hub_rows(source)
        return
    if not path.exists():
        raise InputError(f"{source}: no such file, and not the name of a hub data set; check the path")
    if container is None:
        endings = ", ".join(CONTAINERS)
        raise InputError(f"{source}: its name does not say what it holds; end it in {endings} (text ones also .gz)")
    try:
        yield from container(path, source)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{source}: cannot be read ({_first_line(error)}); copy the file anew") from error


def _open(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked where it is gzip by its content, whatever its name."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb") if packed else path.open("rb"))


def _decode(raw: bytes, source: str, offset: int, line: int) -> str:
    """UTF-8 text (without a byte order mark), or a refusal that names the first byte that is not."""
    try:
        return raw.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        likely = "utf-16" if offset == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        raise InputError(
            f"{source}: line {line}, byte {offset + error.start} (0x{raw[error.start]:02x}) is not UTF-8; "
            f"convert the file, for instance with: iconv -f {likely} -t utf-8"
        ) from None


def _lines(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Numbered lines with their line ends; only a newline ends a line (U+2028 does not)."""
    offset = 0
    with _open(path) as file:
        for number, raw in enumerate(file, 1):
            yield number, _decode(raw, source, offset, number)
            offset += len(raw)


def _text_rows(path: Path, source: str) -> Iterator[Numbered]:
    for number, line in _lines(path, source):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def _jsonl_rows(path: Path, source: str) -> Iterator[Numbered]:
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


def _json_rows(path: Path, source: str) -> Iterator[Numbered]:
    """A list of objects; many tools also give the ending .json to one object a line."""
    with _open(path) as file:
        text = _decode(file.read(), source, 0, 1)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not text.lstrip().startswith("["):
            yield from _jsonl_rows(path, source)
            return
        where = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
        detail = _first_line(error)
        raise InputError(f"{source}: {where}broken JSON ({detail}); mend it, or write one object a line") from None
    if isinstance(data, list):
        yield from ((number, _object(value)) for number, value in enumerate(data, 1))
    elif isinstance(data, dict) and "\n" not in text.strip():
        yield 1, data
    else:
        raise InputError(f"{source}: not a list of rows; write a JSON list of objects, or one object a line")


def _csv_rows(path: Path, source: str) -> Iterator[Numbered]:
    """Data rows under a header."""
    limit = csv.field_size_limit(2**31 - 1)  # its default is shorter than some transcripts
    try:
        lines = _csv_cells(path, source)
        first = next(lines, None)
        header = _header(first or [], source)
        for number, cells in enumerate(lines, 1):
            yield number, RowError("broken CSV") if cells is None else _cells(header, cells)
    finally:
        csv.field_size_limit(limit)


def _csv_cells(path: Path, source: str) -> Iterator[list[str] | None]:
    """The cells of header and rows, None for a line that is broken; blank lines are no rows.

    A broken row that spans lines, or a quote that is never closed, may have swallowed other rows: refused.
    """
    reader = csv.reader((line for _, line in _lines(path, source)), strict=True)
    while True:
        before = reader.line_num
        try:
            cells: list[str] | None = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if before == 0 or reader.line_num > before + 1 or "unexpected end" in str(error):
                raise InputError(
                    f"{source}: broken CSV from line {before + 1} on ({error}); mend it, or write JSONL"
                ) from None
            cells = None
        if cells is None or cells:
            yield cells


def _header(cells: list[str], source: str) -> list[str]:
    if twice := sorted({name for name in cells if cells.count(name) > 1}):
        raise InputError(f"{source}: the column {shown(twice[0])} appears twice in the header; rename one")
    return cells


def _cells(header: list[str], cells: list[str]) -> Row | RowError:
    """A row by column; a cell that holds messages as JSON becomes messages."""
    if len(cells) != len(header):
        return RowError("not as many cells as the header")
    row: Row = dict(zip(header, cells, strict=True))
    for column, cell in row.items():
        if _holds_messages(cell):
            try:
                row[column] = json.loads(cell)
            except (ValueError, RecursionError):
                return RowError(f"{shown(column)} holds messages that are not JSON")
    return row


def _holds_messages(cell: str) -> bool:
    return cell.startswith("[{") and "role" in cell[:200]


def _parquet_rows(path: Path, source: str) -> Iterator[Numbered]:
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
        raise InputError(f"{source}: not a readable Parquet file ({_first_line(error)}); write it anew") from error


def _hub_rows(source: str) -> Iterator[Numbered]:
    """A hub data set (`owner/name`; `owner/name:test` for another split), or a folder laid out like one."""
    local = Path(source).is_dir()
    name, split = (source, "") if local else source.partition(":")[::2]
    what = "not readable as a folder of data" if local else "no such local file, and not read from the hub"
    try:
        import datasets
    except ImportError:
        raise InputError(f"{source}: {what} without {INSTALL}") from None
    try:
        loaded = datasets.load_dataset(name, split=split or "train", streaming=True)
        for number, row in enumerate(loaded, 1):
            yield number, dict(row)
    except Exception as error:  # the library's own, the hub's, the network's, pyarrow's
        raise InputError(f"{source}: {what} ({_first_line(error)}); check the path or the name") from error


def _first_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def file_hash(source: str) -> str:
    """First 16 hex digits of the SHA-256 of the raw file (or of a folder's files with their names).

    For a hub data set `hub:` and its commit, or `hub:unknown` where the hub cannot be asked.
    """
    path = Path(source)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if path.is_dir():
        parts = [(str(p.relative_to(path)), file_hash(str(p))) for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    from huggingface_hub import HfApi

    try:
        return f"hub:{str(HfApi().dataset_info(source.partition(':')[0]).sha)[:16]}"
    except Exception:  # offline, gated, no such name: whatever it is, the commit is not known
        return "hub:unknown"


HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
CONTAINERS: dict[str, Callable[[Path, str], Iterator[Numbered]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}


# --- writing

Put = Callable[[Row], None]
BATCH = 1024  # rows of a Parquet row group


@contextmanager
def write_rows(target: Path) -> Iterator[Put]:
    """`with write_rows(target) as put: put(row)`: the container follows from the name's ending, gzip from `.gz`.

    The file is there, whole, after the block; after an exception in the block it is not. Raises `InputError` where
    the target exists or cannot be written; `put` raises `RowError` where the container cannot hold the row.
    """
    name = target.name.lower()
    packed = name.endswith(".gz")
    ending = next((e for e in WRITTEN if name.removesuffix(".gz").endswith(e)), None)
    if ending is None or (packed and ending == ".parquet"):
        endings = ", ".join(WRITTEN)
        raise InputError(f"{target}: its name does not say how to write it; end it in {endings} (text ones also .gz)")
    if target.exists():
        raise InputError(f"{target}: already exists; choose another name, or remove it")
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _write_bytes(partial, packed) as raw, WRITTEN[ending](raw, target) as put:
            yield put
        partial.rename(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({_first_line(error)}); choose another place") from error
    finally:
        if target.parent.is_dir():
            partial.unlink(missing_ok=True)


@contextmanager
def _write_bytes(path: Path, packed: bool) -> Iterator[IO[bytes]]:
    with path.open("wb") as raw:
        if not packed:
            yield raw
            return
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:  # the same rows, the same bytes
            yield cast(IO[bytes], file)


def _json(value: object) -> str:
    """Strict JSON in UTF-8. `RowError` where there is none for it."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        raise RowError("a value is not finite, or nested too deeply for JSON") from None


@contextmanager
def _write_jsonl(raw: IO[bytes], target: Path) -> Iterator[Put]:
    yield lambda row: cast(None, raw.write((_json(row) + "\n").encode()))


@contextmanager
def _write_json(raw: IO[bytes], target: Path) -> Iterator[Put]:
    before = b"[\n"

    def put(row: Row) -> None:
        nonlocal before
        raw.write(before + _json(row).encode())
        before = b",\n"

    yield put
    raw.write(b"\n]\n" if before == b",\n" else b"[]\n")


class _Spool:
    """Rows kept on disk until all columns are known, in the order in which these come up."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.columns: dict[str, None] = {}

    def put(self, row: Row) -> None:
        line = _json(row)
        self.columns |= dict.fromkeys(row)
        self.file.write(line + "\n")

    def rows(self) -> Iterator[Row]:
        self.file.seek(0)
        return (json.loads(line) for line in self.file)


@contextmanager
def _write_csv(raw: IO[bytes], target: Path) -> Iterator[Put]:
    """Lists and objects as JSON, a missing value as an empty cell; every cell quoted, so that all text comes back."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as file:
        spool = _Spool(file)

        def put(row: Row) -> None:
            for column, value in row.items():
                if isinstance(value, str) and _holds_messages(value):
                    raise RowError(f"{shown(column)} is text that a CSV reader would take for messages; write JSONL")
            spool.put(row)

        yield put
        out = io.TextIOWrapper(raw, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(spool.columns)
        writer.writerows([_cell(row.get(column)) for column in spool.columns] for row in spool.rows())
        out.detach()


def _cell(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else _json(value)


@contextmanager
def _write_parquet(raw: IO[bytes], target: Path) -> Iterator[Put]:
    """Columns of one type each, found over all rows before the first is written."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{target}: writing Parquet needs {INSTALL}") from None
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as file:
        spool = _Spool(file)
        yield spool.put
        try:
            schemas = [pyarrow.Table.from_pylist(batch).schema for batch in _batches(spool)]
            schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
            with pyarrow.parquet.ParquetWriter(raw, schema) as writer:
                for batch in _batches(spool):
                    writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
        except (pyarrow.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"{target}: not a table of one type a column ({_first_line(error)}); write JSONL"
            ) from error


def _batches(spool: _Spool) -> Iterator[list[Row]]:
    """Rows by the batch, each with every column, so that a column which begins late is there from the start."""
    rows = ({column: row.get(column) for column in spool.columns} for row in spool.rows())
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch


WRITTEN: dict[str, Callable[[IO[bytes], Path], AbstractContextManager[Put]]] = {
    ".jsonl": _write_jsonl,
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
