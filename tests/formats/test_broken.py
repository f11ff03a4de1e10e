"""Broken files: each is refused in one line that names it, or its rows are counted by number. Nothing else escapes.

The names of the files in `broken` say what must happen to them as judgments, decided by whoever wrote them by hand:
`row2-…` the second of two rows is dropped, `kept-…` both are used, `refused-…` the file is.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.formats.examples import EXAMPLES
from tests.reading import open_judgments, read_demonstrations, read_pairs, read_prompts

from keel.data import checks
from keel.data.convert import convert
from keel.errors import InputError
from keel.formats.judgments import JUDGED
from keel.records import RowCounts

BROKEN = sorted((Path(__file__).parent / "broken").iterdir())


def account(call: Callable[[], RowCounts], source: str) -> str:
    """What became of it: `counted`, or the refusal."""
    try:
        counts = call()
    except InputError as error:
        line = str(error)
        assert "\n" not in line
        assert source in line
        assert len(line) < 2000
        line.encode()
        return line
    assert counts.read == counts.used + counts.dropped_total + counts.neutral_total
    for table in (counts.dropped, counts.neutral, counts.notes):
        assert all(count >= len(rows) > 0 and all(row > 0 for row in rows) for count, rows in table.values())
    checks.summarise(counts, source, "any").encode()
    assert all("\n" not in reason for reason in (*counts.dropped, *counts.neutral, *counts.notes))
    return "counted"


def judgments(source: str, format: str | None = None) -> RowCounts:
    groups, counts, _ = open_judgments(source, format)
    seen = 0
    for group in groups:
        seen += 1
        assert group
        assert counts.read == counts.used + counts.dropped_total + counts.neutral_total
        for judgment in group:
            json.dumps(judgment.extra, allow_nan=False, ensure_ascii=False).encode()
            str(judgment.prompt).encode()
            "".join([a.text + a.model for a in judgment.answers]).encode()
            "".join([judgment.rater, judgment.dimension, judgment.comment, judgment.raw]).encode()
    assert seen == counts.used
    return counts


def every_way(source: Path, folder: Path, format: str | None = None) -> None:
    """Through all readers and into TRL's pairs."""
    name, target = str(source), folder / "out.jsonl"
    account(lambda: judgments(name, format), name)
    for read in (read_pairs, read_demonstrations, read_prompts):
        account(lambda read=read: read(name, format=format)[1], name)
    account(lambda: convert(name, target, "trl", format=format, max_bad_share=1.0), name)
    target.unlink(missing_ok=True)
    assert not target.with_name("out.jsonl.partial").exists()


def test_there_are_many():
    assert len(BROKEN) >= 100
    with_files = [it.name for it in JUDGED if any(f"-{it.name}-" in file.name for file in BROKEN)]
    assert len(with_files) >= 34  # rows of every format are also broken at random, below


@pytest.mark.parametrize("file", BROKEN, ids=lambda file: file.name)
def test_a_broken_file_is_refused_or_counted(tmp_path, file):
    every_way(file, tmp_path)
    fate = account(lambda: judgments(str(file)), str(file))
    expected = file.name.partition("-")[0]
    if expected == "refused":
        assert fate != "counted"
        return
    counts = judgments(str(file))
    dropped = {"row2": [2], "kept": []}[expected]
    assert (counts.read, counts.used) == (2, 2 - len(dropped))
    assert [row for _, rows in counts.dropped.values() for row in rows] == dropped
    assert counts.neutral == {}


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
TREE = '{"text": "a", "role": "assistant", "rank": 0, "replies": ['


def holding(row: dict[str, object], column: str, value: str) -> str:
    """A line with `value`, which is JSON already, in one column."""
    return json.dumps(row | {column: "HERE"}).replace('"HERE"', value) + "\n"


SUMMARY = {"summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}
BIG = {
    "ten-megabytes.jsonl": json.dumps(PAIR | {"chosen": "x" * 10_000_000}) + "\n",
    "ten-megabytes-of-nothing.jsonl": " " * 10_000_000,
    "ten-megabytes.csv": "prompt,chosen,rejected\np," + "x" * 10_000_000 + ",b\n",
    "ten-megabytes-of-quotes.csv": "prompt,chosen,rejected\n" + '"' * 10_000_000,
    "deep.jsonl": nested(200_000) + "\n",
    "deep.json": nested(200_000),
    "deep-column.jsonl": json.dumps(PAIR) + "\n" + holding(PAIR, "x", nested(900)),
    "deeper-than-kept.jsonl": holding(PAIR, "x", nested(150)) + json.dumps(PAIR),
    "deep-chosen.jsonl": holding(PAIR, "chosen", nested(950)) + json.dumps(PAIR),
    "deep-label.jsonl": holding({"prompt": "p", "completion": "c"}, "label", nested(950)),
    "deep-tree.jsonl": '{"prompt": {"text": "q", "replies": [' + TREE * 300 + "]}" * 300 + "]}}",
    "deep-info.jsonl": holding(SUMMARY, "info", '{"post": "p", "x": ' + nested(400) + "}"),
    "deep-cell.csv": "instruction,completions\np," + nested(5000) + "\n",
    "wide-tree.jsonl": json.dumps({"prompt": {"text": "q", "replies": [
        {"text": f"a{i}", "role": "assistant", "rank": i, "replies": []} for i in range(300)]}}),
    "many-columns.jsonl": json.dumps(PAIR | {f"c{i}": i for i in range(50_000)}),
    "long-column-name.jsonl": json.dumps({"c" * 1_000_000: 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", BIG)
def test_a_monstrous_file_is_refused_or_counted(tmp_path, name):
    source = tmp_path / name
    source.write_text(BIG[name], encoding="utf-8")
    every_way(source, tmp_path)


def test_a_gzip_that_ends_too_soon_after_good_rows_is_refused(tmp_path):
    source = tmp_path / "a.jsonl.gz"
    rows = "".join(json.dumps(PAIR | {"prompt": f"{i} {hash(str(i))}"}) + "\n" for i in range(20_000))
    source.write_bytes(gzip.compress(rows.encode())[:-100])
    assert "cannot be read" in account(lambda: judgments(str(source)), str(source))
    every_way(source, tmp_path)


# --- anything at all

WORDS = [
    "a",
    "",
    " ",
    "1",
    "nan",
    "true",
    "[",
    "{",
    "\ud800",
    "\n\nHuman: a\n\nAssistant: b",
    "submitted",
    "response-1",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 5)
    | st.sampled_from([10**400, -1, 0.5, 1.5, float("nan"), float("inf")])
    | st.sampled_from(WORDS)
    | st.text(max_size=5)
)
KEYS = st.sampled_from(
    ["role", "content", "text", "replies", "rank", "value", "from", "response", "model", "annotations", "Rating",
     "messages", "post", "title", "policy", "user", "assistant"]
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[str, list[object]]:
    """Rows of one format, each with some columns replaced, dropped or added."""
    name = draw(st.sampled_from(list(EXAMPLES)))
    rows: list[object] = []
    for row in draw(st.lists(st.sampled_from(EXAMPLES[name][0]), min_size=1, max_size=3)):
        changed = dict(row)
        for column in draw(st.lists(st.sampled_from(list(row)), max_size=2)):
            changed[column] = draw(spoil(changed[column]))
        rows.append(changed | draw(st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=2)))
    return name, rows


COLUMNS = sorted({column for rows, _ in EXAMPLES.values() for row in rows for column in row} | {
    "rater", "feedback", "dimension", "seconds", "raw", "chosen_model", "chosen_sampling", "rejected_logp",
    "chosen_shown", "completion_tokens", "margin", "x.responses", ".responses", ".responses.users",
})  # fmt: skip


def spoil(value: object) -> st.SearchStrategy[object]:
    """Anything, or the value with something inside replaced."""
    if isinstance(value, dict) and value:
        inside = st.sampled_from(list(value)).flatmap(lambda k: spoil(value[k]).map(lambda new: value | {k: new}))
        return JSON | inside
    if isinstance(value, list) and value:
        at = st.integers(0, len(value) - 1)
        return JSON | at.flatmap(lambda i: spoil(value[i]).map(lambda new: [*value[:i], new, *value[i + 1 :]]))
    return JSON


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("anything")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    case=spoiled(),
    container=st.sampled_from(["jsonl", "json"]),
    forced=st.booleans(),
    to=st.sampled_from(list(EXAMPLES)),
)
def test_any_row_of_any_format_is_counted_or_refused(folder, case, container, forced, to):
    name, rows = case
    source = folder / f"rows.{container}"
    source.write_text("\n".join(map(json.dumps, rows)) if container == "jsonl" else json.dumps(rows))
    every_way(source, folder, name if forced else None)
    target = folder / "other.jsonl"
    account(lambda: convert(str(source), target, to, format=name if forced else None, max_bad_share=1.0), str(source))
    target.unlink(missing_ok=True)


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=80) | st.text('instruction,output_1"\n\r\0[]{}:\ufeff', max_size=60).map(str.encode),
    header=st.sampled_from(
        [b"", b"instruction,completions\n", b"prompt,completion,label\n", b'{"prompt": {"replies": [', b"\x1f\x8b\x08"]
    ),
    ending=st.sampled_from(["jsonl", "json", "csv", "txt", "csv.gz", "parquet"]),
)
def test_any_bytes_are_counted_or_refused(folder, data, header, ending):
    source = folder / f"bytes.{ending}"
    source.write_bytes(header + data)
    every_way(source, folder)
