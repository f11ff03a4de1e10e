"""Files into records: what a data file may look like, and where its rows go.

Two layers. A *container* (.jsonl, .json, .csv, .parquet, .txt, a hub data set) yields numbered rows as dicts;
a *format* turns one such dict into a record. A format is one small function and one line in a table:
`PAIR_FORMATS`, `DEMONSTRATION_FORMATS`, `PROMPT_FORMATS`. The first whose columns are all there, and whose
look fits, is recognised.

A row that cannot be read is an outcome, not an exception: it is counted with its number and reason (law 6).
What makes the whole file unreadable, such as a wrong encoding or a missing column, is an `InputError`. Rows
count from 1: lines of JSONL and text (blank ones are no rows), data rows of CSV, elements of JSON and
Parquet.

Left out on purpose: guessing where a prompt ends inside a plain string, and anything that `checks` judges by
content.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, cast

from keel.data.checks import reasons
from keel.errors import InputError
from keel.records import Demonstration, Message, Origin, Pair, Prompt, PromptRow, RowCounts

__all__ = ["file_hash", "read_demonstrations", "read_pairs", "read_prompts"]

Row = dict[str, Any]
R = TypeVar("R")

HEAD = 100  # readable rows from which columns and format are recognised
INSTALL = "pip install 'keel-tune[data]'"


class RowError(Exception):
    """Why one row cannot become a record; the text is the reason under which it is counted."""


Numbered = tuple[int, Row | RowError]


# --- what a command calls


def read_pairs(
    source: str, *, format: str | None = None, limit: int | None = None
) -> tuple[list[Pair], RowCounts, str]:
    """Preference pairs of a file or hub data set, every row's fate, and the format's name."""
    return _read(PAIRS, source, format, limit)


def read_demonstrations(
    source: str, *, format: str | None = None, limit: int | None = None
) -> tuple[list[Demonstration], RowCounts, str]:
    """Prompts with the answers to imitate, or plain texts; every row's fate, and the format's name."""
    return _read(DEMONSTRATIONS, source, format, limit)


def read_prompts(
    source: str, *, format: str | None = None, limit: int | None = None
) -> tuple[list[PromptRow], RowCounts, str]:
    """Prompts alone, those of preference pairs included; every row's fate, and the format's name."""
    return _read(PROMPTS, source, format, limit)


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


# --- formats: one row into one record


@dataclass(frozen=True)
class Format(Generic[R]):
    """A way to write a record: its columns, its converter, and what tells it from another with these
    columns.
    """

    name: str
    needs: tuple[str, ...]
    convert: Callable[[Row, Origin], R]
    fits: Callable[[Row], bool] = lambda row: True


@dataclass(frozen=True)
class Kind(Generic[R]):
    """What a command reads: its formats in the order in which they are tried, and the words of a refusal."""

    noun: str
    asks: str
    formats: tuple[Format[R], ...]


ASSISTANT, HUMAN = "\n\nAssistant:", "\n\nHuman:"


def _hh_pair(row: Row, origin: Origin) -> Pair:
    """Anthropic HH: two whole transcripts, split at the last assistant turn and nowhere else.

    The prompt ends with "\n\nAssistant:" and the completion keeps its leading space.
    """
    sides = {}
    for side in ("chosen", "rejected"):
        before, turn, answer = _text(row, side).rpartition(ASSISTANT)
        if not turn:
            raise RowError(f"{side} has no Assistant turn")
        if HUMAN in answer:
            raise RowError(f"{side} ends with a Human turn")
        sides[side] = before, answer
    (before, chosen), (other, rejected) = sides["chosen"], sides["rejected"]
    if before != other:
        raise RowError("transcripts differ before the last assistant turn")
    if not before.strip():
        raise RowError("empty prompt")
    return Pair(before + ASSISTANT, chosen, rejected, _margin(row), origin)


def _looks_like_hh(row: Row) -> bool:
    return row.get("prompt") is None and isinstance(row.get("chosen"), str) and ASSISTANT in row["chosen"]


def _trl_pair(row: Row, origin: Origin) -> Pair:
    """TRL: `chosen` and `rejected` as text, as one assistant message each, or as whole lists of messages.

    In the last case the prompt is what both share before the last assistant turn; a `prompt` column beside
    them must be that, or, as text, one of its user turns.
    """
    prompt = None if row.get("prompt") is None else _prompt(row, "prompt")
    chosen, rejected, margin = _prompt(row, "chosen"), _prompt(row, "rejected"), _margin(row)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise RowError("no prompt, and the answers are plain text")
        return Pair(prompt, chosen, rejected, margin, origin)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowError("one answer is text and the other messages")
    if prompt is not None and len(chosen) == len(rejected) == 1:
        better, worse = _reply(prompt, chosen, "chosen"), _reply(prompt, rejected, "rejected")
        return Pair(prompt, better, worse, margin, origin)
    (shared, better), (other, worse) = _last_turn(chosen, "chosen"), _last_turn(rejected, "rejected")
    if shared != other:
        raise RowError("transcripts differ before the last assistant turn")
    users = [message["content"] for message in shared if message["role"] == "user"]
    if prompt is not None and prompt != shared and prompt not in users:
        raise RowError("prompt is not the one in the transcripts")
    return Pair(shared, better, worse, margin, origin)


def _prompt_completion(row: Row, origin: Origin) -> Demonstration:
    prompt, completion = _prompt(row, "prompt"), _prompt(row, "completion")
    if isinstance(completion, str):
        return Demonstration(prompt, completion, origin)
    return Demonstration(prompt, _reply(prompt, completion, "completion"), origin)


def _chat(row: Row, origin: Origin) -> Demonstration:
    """A chat whose last turn is the answer to imitate; earlier assistant turns are context."""
    prompt, completion = _last_turn(_messages(row, "messages"), "messages")
    return Demonstration(prompt, completion, origin)


def _alpaca_prompt(row: Row) -> str:
    """The text that Alpaca's authors wrote around an instruction and its optional input."""
    instruction = _text(row, "instruction")
    context = "" if row.get("input") is None else _text(row, "input")
    if not instruction.strip():
        raise RowError("empty instruction")
    if not context.strip():
        return (
            "Below is an instruction that describes a task. Write a response that appropriately completes "
            f"the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        )
    return (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
    )


def _alpaca(row: Row, origin: Origin) -> Demonstration:
    return Demonstration(_alpaca_prompt(row), _text(row, "output"), origin)


def _user_chat(row: Row, origin: Origin) -> PromptRow:
    messages = _messages(row, "messages")
    if messages[-1]["role"] == "assistant":
        raise RowError("messages end with an assistant turn, not a question")
    return PromptRow(messages, origin)


def _prompt_of(pairs: Format[Pair]) -> Format[PromptRow]:
    """The prompts of a format of pairs, under a name that says so."""

    def convert(row: Row, origin: Origin) -> PromptRow:
        return PromptRow(pairs.convert(row, origin).prompt, origin)

    return Format(f"{pairs.name}-pairs", pairs.needs, convert, pairs.fits)


PAIR_FORMATS: tuple[Format[Pair], ...] = (
    Format("hh", ("chosen", "rejected"), _hh_pair, _looks_like_hh),
    Format("trl", ("chosen", "rejected"), _trl_pair),
)
DEMONSTRATION_FORMATS: tuple[Format[Demonstration], ...] = (
    Format("prompt-completion", ("prompt", "completion"), _prompt_completion),
    Format("messages", ("messages",), _chat),
    Format("alpaca", ("instruction", "output"), _alpaca),
    Format("text", ("text",), lambda row, origin: Demonstration("", _text(row, "text"), origin)),
)
PROMPT_FORMATS: tuple[Format[PromptRow], ...] = (
    *(_prompt_of(pairs) for pairs in PAIR_FORMATS),
    Format("prompt", ("prompt",), lambda row, origin: PromptRow(_prompt(row, "prompt"), origin)),
    Format("messages", ("messages",), _user_chat),
    Format("instruction", ("instruction",), lambda row, origin: PromptRow(_alpaca_prompt(row), origin)),
    Format("text", ("text",), lambda row, origin: PromptRow(_text(row, "text"), origin)),
)
PAIRS = Kind("preference pairs", "chosen and rejected, with a prompt or as transcripts", PAIR_FORMATS)
DEMONSTRATIONS = Kind(
    "demonstrations",
    "prompt and completion, messages, instruction and output, or text",
    DEMONSTRATION_FORMATS,
)
PROMPTS = Kind("prompts", "prompt, messages, instruction or text, or preference pairs", PROMPT_FORMATS)


# --- fields of a row


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        raise RowError(f"no {column}")
    if not isinstance(value, str):
        raise RowError(f"{column} is not text")
    if not _is_unicode(value):
        raise RowError(f"{column} is not valid Unicode")
    return value


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can spell but no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _messages(row: Row, column: str) -> list[Message]:
    value = row.get(column)
    if value is None:
        raise RowError(f"no {column}")
    if not isinstance(value, list) or not value:
        raise RowError(f"{column} is not a list of messages")
    messages: list[Message] = []
    for turn in value:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise RowError(f"{column} has a message without role or text content")
        if not _is_unicode(role + content):
            raise RowError(f"{column} is not valid Unicode")
        messages.append({"role": role, "content": content})
    return messages


def _prompt(row: Row, column: str) -> Prompt:
    """Text or messages, whichever the column holds."""
    return _messages(row, column) if isinstance(row.get(column), list) else _text(row, column)


def _last_turn(messages: list[Message], column: str) -> tuple[list[Message], str]:
    """A transcript as (prompt, text of its last assistant turn)."""
    if messages[-1]["role"] != "assistant":
        raise RowError(f"{column} does not end with an assistant turn")
    if len(messages) == 1:
        raise RowError("empty prompt")
    return messages[:-1], messages[-1]["content"]


def _reply(prompt: Prompt, messages: list[Message], column: str) -> str:
    """The text of an answer written as one assistant message, which only a prompt of messages can precede."""
    if isinstance(prompt, str):
        raise RowError(f"prompt is text but {column} is messages")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise RowError(f"{column} is not one assistant message")
    return messages[0]["content"]


def _margin(row: Row) -> float:
    """The optional `margin`; null or an empty cell is a pair without a grade. `checks` judges its range."""
    value = row.get("margin")
    if value is None or value == "":
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise RowError("margin is not a number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise RowError("margin is not a number") from None


# --- from rows to records


def _read(kind: Kind[R], source: str, wanted: str | None, limit: int | None) -> tuple[list[R], RowCounts, str]:
    rows = itertools.islice(_rows(source), limit)
    head = _head(rows)
    counts = RowCounts()
    records: list[R] = []
    readable = [row for _, row in head if isinstance(row, dict)]
    chosen = _recognise(kind, readable, source, wanted) if readable else kind.formats[0]
    for number, row in itertools.chain(head, rows):
        counts.read += 1
        try:
            if isinstance(row, RowError):
                raise row
            records.append(chosen.convert(row, Origin(source, number)))
        except RowError as error:
            counts.drop(str(error), number)
    counts.used = len(records)
    if not counts.read:
        raise InputError(f"{source}: no rows; give a file with at least one")
    if not records:
        raise InputError(f"{source}: none of {counts.read} rows can be read ({reasons(counts)}); mend them")
    return records, counts, chosen.name


def _head(rows: Iterator[Numbered]) -> list[Numbered]:
    """The first rows, up to the `HEAD`th that is readable."""
    head, readable = [], 0
    for number, row in rows:
        head.append((number, row))
        readable += isinstance(row, dict)
        if readable == HEAD:
            break
    return head


def _recognise(kind: Kind[R], head: list[Row], source: str, wanted: str | None) -> Format[R]:
    """The format asked for, or the first that fits; refuses where a column is missing from every row."""
    columns = {column: None for row in head for column in row}  # in the file's order
    formats = [f for f in kind.formats if wanted in (None, f.name)]
    if not formats:
        names = ", ".join(f.name for f in kind.formats)
        raise InputError(f"{source}: --format {wanted} is not a format of {kind.noun}; choose one of {names}")
    if found := _match(formats, columns, head, looks=wanted is None):
        return found
    absent = {f.name: [column for column in f.needs if column not in columns] for f in formats}
    begun = [f for f in formats if len(absent[f.name]) < len(f.needs)]
    nearest = min(begun, key=lambda f: len(absent[f.name])) if begun else formats[0]
    missing = " or ".join(f"'{column}'" for column in absent[nearest.name])
    names = ", ".join(_shown(column) for column in list(columns)[:12]) + (", …" if len(columns) > 12 else "")
    others = cast(tuple[Kind[Any], ...], (PAIRS, DEMONSTRATIONS))
    also = ((other.noun, _match(other.formats, columns, head)) for other in others if other.noun != kind.noun)
    hint = next((f" (these are {noun}, format {found.name})" for noun, found in also if found), "")
    what = f"no column {missing}" if missing else "no format that is known"
    raise InputError(f"{source}: {what}; found: {names or 'none'}{hint}; {kind.noun} need {kind.asks}")


def _match(
    formats: list[Format[R]] | tuple[Format[R], ...],
    columns: dict[str, None],
    head: list[Row],
    looks: bool = True,
) -> Format[R] | None:
    for candidate in formats:
        there = all(column in columns for column in candidate.needs)
        if there and (not looks or any(candidate.fits(row) for row in head)):
            return candidate
    return None


def _shown(name: str) -> str:
    """A column's name, fit for one line on any terminal."""
    short = name if len(name) <= 40 else name[:39] + "…"
    return short if short.isprintable() and short else repr(short)


# --- containers: a source into numbered rows


def _rows(source: str) -> Iterator[Numbered]:
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
        raise InputError(f"{source}: the column {_shown(twice[0])} appears twice in the header; rename one")
    return cells


def _cells(header: list[str], cells: list[str]) -> Row | RowError:
    """A row by column; a cell that holds messages as JSON becomes messages."""
    if len(cells) != len(header):
        return RowError("not as many cells as the header")
    row: Row = dict(zip(header, cells, strict=True))
    for column, cell in row.items():
        if cell.startswith("[{") and "role" in cell[:200]:
            try:
                row[column] = json.loads(cell)
            except (ValueError, RecursionError):
                return RowError(f"{_shown(column)} holds messages that are not JSON")
    return row


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
    except (pyarrow.ArrowException, ValueError, OSError) as error:
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


HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
CONTAINERS: dict[str, Callable[[Path, str], Iterator[Numbered]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
