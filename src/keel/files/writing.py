"""Rows into a file. The file is whole or absent: it is written under another name, then renamed."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TextIO, cast

from keel.errors import InputError, on_one_line
from keel.files.cells import refuse_ambiguous
from keel.files.fields import Row, RowError
from keel.files.hub import INSTALL

__all__ = ["WRITTEN", "write_rows"]

Put = Callable[[Row], None]
BATCH = 1024  # rows of a Parquet row group


@contextmanager
def write_rows(target: Path) -> Iterator[Put]:
    """Write rows: `with write_rows(target) as put: put(row)`. The name's ending decides the container, `.gz` gzip.

    The file exists, whole, after the block; after an exception in the block it does not. Raises `InputError` if the
    target exists or cannot be written; `put` raises `RowError` if the container cannot hold the row.
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

            def checked(row: Row) -> None:
                refuse_ambiguous(row)
                put(row)

            yield checked
        partial.rename(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({on_one_line(error)}); choose another place") from error
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
    """Return strict JSON. Raises `RowError` if the value has none."""
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
    """Rows kept on disk until all columns are known; columns are in order of first appearance."""

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
    """Write lists and objects as JSON and a missing value as an empty cell; quote every cell to preserve all text."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as file:
        spool = _Spool(file)
        yield spool.put
        out = io.TextIOWrapper(raw, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(spool.columns)
        writer.writerows([_cell(row.get(column)) for column in spool.columns] for row in spool.rows())
        out.detach()


def _cell(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else _json(value)


@contextmanager
def _write_parquet(raw: IO[bytes], target: Path) -> Iterator[Put]:
    """Write columns of one type each, found from all rows before the first is written."""
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
                f"{target}: not a table with one type per column ({on_one_line(error)}); write JSONL"
            ) from error


def _batches(spool: _Spool) -> Iterator[list[Row]]:
    """Yield batches of rows, each row with every column, so that a late column exists from the start."""
    rows = ({column: row.get(column) for column in spool.columns} for row in spool.rows())
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch


WRITTEN: dict[str, Callable[[IO[bytes], Path], AbstractContextManager[Put]]] = {
    ".jsonl": _write_jsonl,
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
