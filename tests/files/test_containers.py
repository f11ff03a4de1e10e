"""Files as tools leave them: other separators, encodings, wrappers and line ends; JSON in cells; parts of data sets."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import types
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from tests.formats.examples import says, user
from tests.reading import open_demonstrations, read_demonstrations, read_judgments, read_pairs, read_rows

from keel import cli
from keel.errors import InputError
from keel.files import containers
from keel.files.containers import RowReader, file_hash
from keel.files.fields import RowError

PAIR = {"prompt": "Snow?", "chosen": "Sledge.", "rejected": "Sleep."}


def refusal(source: object) -> str:
    with pytest.raises(InputError) as caught:
        read_pairs(str(source))
    line = str(caught.value)
    assert line.startswith(f"{source}: ")
    assert "\n" not in line
    return line


def put(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def rows_of(source: str) -> list:
    return [row for _, row in read_rows(source)]


# --- JSON in cells


CHAT = [user("Snow?"), says("Sledge.")]
AS_TEXT = json.dumps(CHAT)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "csv"])
def test_messages_as_json_text_are_messages_in_every_container(tmp_path, ending):
    row = {"prompt": json.dumps([user("Snow?")]), "chosen": json.dumps([says("Sledge.")]),
           "rejected": json.dumps([says("Sleep.")])}  # fmt: skip
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([row]), path)
    elif ending == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
    else:
        put(path, json.dumps(row) if ending == "jsonl" else json.dumps([row]))
    (pair,), counts, _ = read_pairs(str(path))
    assert (pair.prompt, pair.chosen, pair.rejected, counts.notes) == ([user("Snow?")], "Sledge.", "Sleep.", {})


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        (AS_TEXT, CHAT),
        (json.dumps(CHAT, indent=1), CHAT),
        (json.dumps({"messages": CHAT}), CHAT),
        ({"messages": CHAT}, CHAT),
        (json.dumps(says("Sledge.")), says("Sledge.")),
        (json.dumps([{"content": "x", "role": "user"}]), [{"content": "x", "role": "user"}]),
        (json.dumps([{"from": "human", "value": "x"}]), [{"from": "human", "value": "x"}]),
        ({"messages": CHAT, "n": 1}, {"messages": CHAT, "n": 1}),
        # text that only begins like it
        (f"{AS_TEXT} is a chat", f"{AS_TEXT} is a chat"),
        ('[{"role": "user"}]', '[{"role": "user"}]'),
        ("[1] first, [2] second", "[1] first, [2] second"),
        ("[{role}] is a template", "[{role}] is a template"),
        ('{"role"} is a set', None),
        ("{'role': 1} is a dict, he said", "{'role': 1} is a dict, he said"),
        ("[]", "[]"),
        ('["a", "b"]', '["a", "b"]'),
        ("", ""),
    ],
)
def test_what_is_taken_for_messages(tmp_path, cell, value):
    (row,) = rows_of(put(tmp_path / "a.jsonl", json.dumps({"chosen": cell})))
    assert row == {"chosen": cell if value is None else value}


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (str(CHAT), "chosen holds messages as Python prints them, not JSON; write the cell with json.dumps"),
        (str(CHAT).replace("}, {", "}\n {"), "chosen holds messages as Python prints them"),  # as numpy does
        (str({"role": "assistant", "content": "x"}), "chosen holds messages as Python prints them"),
        (AS_TEXT[:-5], "chosen holds messages that are not JSON"),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_messages_that_no_reader_can_take_are_dropped_by_name(tmp_path, cell, reason, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["chosen"], [cell]])
    else:
        put(path, json.dumps({"chosen": cell}))
    (row,) = rows_of(str(path))
    assert isinstance(row, RowError)
    assert str(row).startswith(reason)


def test_lists_as_python_prints_them_are_named(tmp_path):
    rows = [{"prompt": "Snow?", "responses": str(["a", "b"]), "scores": [1, 2]}]
    source = put(tmp_path / "a.jsonl", json.dumps(rows[0]))
    with pytest.raises(InputError, match=r"responses is not JSON, but as Python prints it; write it with json\.dumps"):
        read_judgments(source)


def test_the_object_of_openai_s_format_stays_an_object(tmp_path):
    row = {"input": {"messages": [user("Snow?")]}, "preferred_output": [says("Sledge.")],
           "non_preferred_output": [says("Sleep.")]}  # fmt: skip
    (pair,), _, name = read_pairs(put(tmp_path / "a.jsonl", json.dumps(row)))
    assert (name, pair.prompt) == ("openai-preferences", [user("Snow?")])


# --- Arrow's types


def test_decimals_are_numbers_and_other_types_do_no_harm(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "prompt": ["Snow?", "Rain?"],
            "response_a": ["Sledge.", "Read."],
            "response_b": ["Sleep.", "Sing."],
            "score_a": pa.array([Decimal("1.5"), Decimal("2")], pa.decimal128(5, 2)),
            "score_b": pa.array([Decimal("-3"), Decimal("7")], pa.decimal128(5, 0)),
            "day": [date(2024, 1, 2)] * 2,
            "at": pa.array([datetime(2024, 1, 2, tzinfo=UTC)] * 2, pa.timestamp("ns", "UTC")),
            "took": [timedelta(seconds=3)] * 2,
            "raw_bytes": [b"\xff", b"a"],
            "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
            "sums": pa.array([[Decimal("0.5")], []], pa.list_(pa.decimal128(3, 1))),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    judged, counts, _ = read_judgments(str(tmp_path / "a.parquet"))
    assert [j.verdict.value for j in judged] == [1.5, -3, 2, 7]
    assert judged[0].extra["sums"] == [0.5]
    json.dumps(judged[0].extra, allow_nan=False)
    assert counts.dropped == {}


# --- CSV


SEMICOLONS = 'prompt;chosen;rejected\n"Snow; or rain?";Sledge, fast.;Sleep.\nWind?;Kite.;"No, ""thanks""."\n'


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (SEMICOLONS, "semicolons"),
        ("\ufeff" + SEMICOLONS, "semicolons"),
        (SEMICOLONS.replace("; or", "\t or").replace(";", "\t").replace("\t or", "; or"), "tabs"),
        (SEMICOLONS.replace("; or", "/ or").replace(";", "|").replace("/ or", "; or"), "bars"),
        (SEMICOLONS + "one cell\n", "semicolons"),
    ],
)
def test_cells_separated_by_something_else_are_read_and_told(tmp_path, content, name):
    pairs, counts, _ = read_pairs(put(tmp_path / "a.csv", content))
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [
        ("Snow; or rain?", "Sledge, fast.", "Sleep."), ("Wind?", "Kite.", 'No, "thanks".'),
    ]  # fmt: skip
    assert counts.notes == {f"cells are separated by {name}, not by commas": (1, [1])}
    assert set(counts.dropped) <= {"not as many cells as the header"}


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "sep=;\r"])
def test_a_first_line_that_names_the_separator(tmp_path, line):
    pairs, counts, _ = read_pairs(put(tmp_path / "a.csv", f"{line}\n{SEMICOLONS}"))
    assert ([p.origin.row for p in pairs], counts.notes) == ([1, 2], {})


def test_a_comma_stays_a_comma(tmp_path):
    content = "prompt,chosen,rejected\n" + "a;b,c;d,e;f\n" * 3 + "x\n"
    pairs, counts, _ = read_pairs(put(tmp_path / "a.csv", content))
    assert (pairs[0].prompt, len(pairs), counts.notes.keys()) == (
        "a;b", 3, set(),
    )  # fmt: skip
    assert read_demonstrations(put(tmp_path / "b.csv", "text\na;b\nc;d\n"))[0][0].completion == "a;b"


def test_a_header_that_commas_do_not_part_is_named(tmp_path):
    line = refusal(put(tmp_path / "a.csv", "prompt;chosen;rejected\nSnow; or rain?;a;b\nx;y\nWind; or so?;a;b\n"))
    assert "its header is one column, prompt;chosen;rejected, with semicolons inside" in line
    assert "separate the cells by commas and quote them" in line


# --- bytes


@pytest.mark.parametrize(
    ("raw", "remedy"),
    [
        ("Bär “so” – it’s".encode("cp1252"), "iconv -f cp1252 -t utf-8"),
        ("Bär".encode("latin1") + b"\n" + "it’s".encode("cp1252"), "iconv -f cp1252 -t utf-8"),
        ("Bär, mühsam".encode("latin1"), "iconv -f latin1 -t utf-8"),
        ("Bär".encode("utf-16"), "iconv -f utf-16 -t utf-8"),
        ("熊です。".encode("shift-jis"), "not Windows-1252 either: export it again as UTF-8"),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "csv", "json", "txt", "csv.gz"])
def test_other_encodings_are_named(tmp_path, raw, remedy, ending):
    packed = gzip.compress(raw) if ending.endswith("gz") else raw
    assert remedy in refusal(put(tmp_path / f"a.{ending}", packed))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt", "jsonl.gz"])
def test_line_ends_of_old_macs(tmp_path, ending):
    texts = {
        "jsonl": "\r".join([json.dumps(PAIR | {"prompt": f"{i}?"}) for i in range(3)]),
        "csv": "prompt,chosen,rejected\r" + "".join(f'"{i}\r?",a,b\r' for i in range(3)),
        "txt": "one\rtwo\rthree",
    }
    content = texts[ending.removesuffix(".gz")].encode()
    source = put(tmp_path / f"a.{ending}", gzip.compress(content) if ending.endswith("gz") else content)
    found = list(read_rows(source))
    assert [number for number, _ in found] == [1, 2, 3]
    assert [row.get("prompt", row.get("text")) for _, row in found][1] in ("1?", "1\r?", "two")


def test_a_carriage_return_among_newlines_ends_no_line(tmp_path):
    content = "prompt,chosen,rejected\n" + '"a\rb",c,d\n'
    assert rows_of(put(tmp_path / "a.csv", content)) == [{"prompt": "a\rb", "chosen": "c", "rejected": "d"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv.gz", "a.txt"])
def test_a_pointer_in_place_of_the_data_is_named(tmp_path, name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132735\n"
    assert "Git LFS pointer in place of the data; fetch these with: git lfs pull" in refusal(
        put(tmp_path / name, pointer)
    )


# --- JSON


@pytest.mark.parametrize(
    ("data", "remark"),
    [
        ({"data": [PAIR, PAIR]}, "rows are the list 'data' of one object"),
        ({"version": 1, "info": {"by": "x"}, "examples": [PAIR, PAIR]},
         "rows are the list 'examples' of one object; beside it, not used: version, info"),
        ({c: {"0": v, "1": v} for c, v in PAIR.items()}, "rows are columns by row number, as pandas writes them"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("indent", [None, 1])
def test_wrapped_rows_are_read_and_told(tmp_path, data, remark, indent):
    pairs, counts, _ = read_pairs(put(tmp_path / "a.json", json.dumps(data, indent=indent)))
    assert [(p.prompt, p.chosen, p.origin.row) for p in pairs] == [("Snow?", "Sledge.", 1), ("Snow?", "Sledge.", 2)]
    assert counts.notes == {remark: (1, [1])}


def test_one_row_in_a_line_is_no_wrapper(tmp_path):
    (shown,), _, _ = read_demonstrations(put(tmp_path / "a.json", json.dumps({"messages": CHAT})))
    assert shown.completion == "Sledge."


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {c: [v, v] for c, v in PAIR.items()},
            "not a list of rows but columns (prompt, chosen, rejected); pandas writes",
        ),
        ({"train": [PAIR], "test": [PAIR]}, "but several lists (train, test), each of which needs its own file"),
        ({"prompt": {"0": "a", "1": "b"}, "chosen": {"0": "a"}}, "not a list of rows; write"),
        ({"data": [1, 2]}, "not a list of rows; write"),
    ],
)
def test_other_objects_are_refused_with_the_remedy(tmp_path, data, words):
    assert words in refusal(put(tmp_path / "a.json", json.dumps(data, indent=1)))


def test_objects_beneath_each_other(tmp_path):
    content = "\n\n".join(json.dumps(PAIR | {"prompt": f"{i}?"}, indent=2) for i in range(3))
    assert [p.prompt for p in read_pairs(put(tmp_path / "a.json", content))[0]] == ["0?", "1?", "2?"]
    line = refusal(put(tmp_path / "b.json", content + "\n{"))
    assert "broken JSON" in line


# --- parts of folders and of hub data sets


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import pyarrow as pa
    import pyarrow.parquet as pq

    home = tmp_path / "set"
    (home / "data").mkdir(parents=True)
    for split in ("train_prefs", "test_sft"):
        for shard in (0, 1):
            rows = [PAIR | {"prompt": f"{split} {shard} {i}"} for i in range(2)]
            pq.write_table(pa.Table.from_pylist(rows), home / "data" / f"{split}-0000{shard}-of-00002.parquet")
    return home


def test_a_split_of_a_folder_laid_out_like_the_hub(folder):
    pairs, _, _ = read_pairs(f"{folder}:test_sft")
    assert [p.prompt for p in pairs] == ["test_sft 0 0", "test_sft 0 1", "test_sft 1 0", "test_sft 1 1"]
    assert [p.origin.row for p in pairs] == [1, 2, 3, 4]
    there = "only test_sft, train_prefs: name one as"
    assert f"no split train, {there} {folder}:test_sft" in refusal(folder)
    assert f"no split validation, {there}" in refusal(f"{folder}:validation")
    assert "no subset de, only default: name one as" in refusal(f"{folder}:de:test_sft")


def test_files_of_a_folder_are_its_parts(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "set"
    (home / "hard").mkdir(parents=True)
    put(home / "people_v2.jsonl", json.dumps(PAIR | {"prompt": "people?"}))
    put(home / "judges.csv", "prompt;chosen;rejected\njudges?;a;b\n")
    put(home / "hard" / "a.jsonl", json.dumps(PAIR | {"prompt": "hard a?"}))
    put(home / "hard" / "b.jsonl.gz", gzip.compress(json.dumps(PAIR | {"prompt": "hard b?"}).encode()))
    for part, prompts in (("people_v2", ["people?"]), ("judges", ["judges?"]), ("hard", ["hard a?", "hard b?"])):
        pairs, _, _ = read_pairs(f"{home}:{part}")
        assert [(p.prompt, p.origin.row) for p in pairs] == list(zip(prompts, (1, 2), strict=False))
    line = refusal(f"{home}:robots")
    assert "no split robots, only" in line
    assert all(part in line for part in ("people_v2", "judges", "hard"))


def test_the_hash_fits_the_part(folder):
    whole, train, test = (file_hash(f"{folder}{part}") for part in ("", ":train_prefs", ":test_sft"))
    assert len({whole, train, test}) == 3
    assert train == file_hash(f"{folder}:train_prefs")
    (folder / "data" / "more.txt").write_text("x")
    assert file_hash(f"{folder}:train_prefs") != train


def test_a_subset_and_split_of_the_hub(monkeypatch, tmp_path):
    calls = []
    subsets = {"en": ["train", "test"], "de": ["train"]}

    def load_dataset(name: str, subset: str = "", *, split: str, streaming: bool) -> list[dict[str, str]]:
        calls.append((name, subset, split))
        if name == "someone/plain" and not subset:
            subset = "de"
        if subset not in subsets or split not in subsets[subset]:
            raise ValueError(f"Bad split or config: {subset} {split}")
        return [PAIR]

    def get_dataset_split_names(name: str, subset: str = "") -> list[str]:
        return subsets["de" if name == "someone/plain" else subset]

    fake = types.SimpleNamespace(
        load_dataset=load_dataset,
        get_dataset_config_names=lambda name: ["default"] if name == "someone/plain" else list(subsets),
        get_dataset_split_names=get_dataset_split_names,
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    for source in ("someone/pairs:en:test", "someone/plain", "someone/plain:train"):
        assert len(read_pairs(source)[0]) == 1
    assert calls == [("someone/pairs", "en", "test"), ("someone/plain", "", "train"), ("someone/plain", "", "train")]
    assert "no split dev, only train, test: name one as someone/pairs:en:train" in refusal("someone/pairs:en:dev")
    assert "no split test, only train: name one as someone/plain:train" in refusal("someone/plain:test")
    assert "no subset fr, only en, de: name one as someone/pairs:en:train" in refusal("someone/pairs:fr:train")
    assert "it has the subsets en, de: name one as someone/pairs:en:SPLIT" in refusal("someone/pairs")
    assert "it has the subsets en, de: name one as someone/pairs:de:SPLIT" in refusal("someone/pairs:de")


def test_pointers_in_a_folder_are_named(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    put(tmp_path / "set" / "train.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    assert "git lfs pull" in refusal(tmp_path / "set")


# --- columns without a use


def test_columns_without_a_use_are_said_once_with_a_count(tmp_path, write_rows):
    rows = [PAIR | {"id": i, "source": "x", "empty": None} for i in range(5)] + [PAIR, PAIR | {"more": 1, "margin": 2}]
    source = str(write_rows(tmp_path / "a.jsonl", rows))
    assert read_pairs(source)[1].notes == {"columns not used: id, source, more": (6, [1])}
    assert read_judgments(source)[1].notes == {"columns carried along, not used: id, source, more": (6, [1])}


def test_of_demonstrations_and_prompts_too(tmp_path, write_rows):
    from tests.reading import open_answers, read_prompts

    rows = [{"prompt": "Snow?", "completion": "Sledge.", "Frobnicate": 1, "empty": []}] * 3
    source = str(write_rows(tmp_path / "a.jsonl", rows))
    assert read_demonstrations(source)[1].notes == {"columns not used: Frobnicate": (3, [1])}
    assert read_prompts(source)[1].notes == {"columns not used: completion, Frobnicate": (3, [1])}
    rows = [{"instruction": "Snow?", "input": "x", "output": "a", "id": 1}]
    source = str(write_rows(tmp_path / "b.jsonl", rows))
    assert open_notes(open_demonstrations(source)) == {"columns not used: id": (1, [1])}
    assert read_prompts(source)[1].notes == {"columns not used: output, id": (1, [1])}
    rows = [{"prompt": "Snow?", "response_a": "a", "response_b": "b", "who": "ann"}]
    source = str(write_rows(tmp_path / "c.jsonl", rows))
    assert open_notes(open_answers(source)) == {"columns not used: who": (1, [1])}


def open_notes(opened) -> dict:
    records, counts, _ = opened
    list(records)
    return counts.notes


@pytest.mark.parametrize(
    ("column", "values", "rows"),
    [("images", [None, ["a.png"], []], [2]), ("loss_mask", [1, 0, None], [1, 2]), ("weight", [1, 0.5, 0], [2, 3])],
)
def test_a_column_that_may_matter_has_a_note_of_its_own(tmp_path, write_rows, column, values, rows):
    source = str(write_rows(tmp_path / "a.jsonl", [PAIR | {column: value, "id": 1} for value in values]))
    assert read_pairs(source)[1].notes == {
        f"{column} is not used, and may change what is learnt": (len(rows), rows),
        "columns not used: id": (3, [1]),
    }


def test_a_long_list_of_columns_is_cut(tmp_path, write_rows):
    source = str(write_rows(tmp_path / "a.jsonl", [PAIR | {f"c{i}": i for i in range(40)}]))
    (note,) = read_pairs(source)[1].notes
    assert note.endswith("c10, c11, … (40 columns)")


# --- the hash of what was read


def content(path: Path, rows: list[dict]) -> str:
    """Rows in a container, by the path's ending."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
        return str(path)
    lines = [json.dumps(row) for row in rows]
    text = {
        "jsonl": "\n".join(lines),
        "json": json.dumps(rows),
        "lines.json": "\n".join(lines),
        "csv": "prompt,chosen,rejected\n" + "\n".join(",".join(row.values()) for row in rows),
        "txt": "\n".join(row["prompt"] for row in rows),
    }[path.name.removesuffix(".gz").partition(".")[2]]
    raw = text.encode()
    return put(path, gzip.compress(raw) if path.name.endswith(".gz") else raw)


MANY = [{"prompt": f"{i}? {'long ' * 200}", "chosen": "a", "rejected": "b"} for i in range(1_000)]
ENDINGS = ("jsonl", "json", "lines.json", "csv", "txt", "parquet", "jsonl.gz", "json.gz", "csv.gz", "txt.gz")


@pytest.mark.parametrize("read", [0, 7, 1_000])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_hash_of_what_is_read_is_the_file_s(tmp_path, ending, read):
    """However much of it is read: the rest belongs to the file, too."""
    path = content(tmp_path / f"a.{ending}", MANY)
    reading = RowReader(path)
    assert len([row for row, _ in zip(reading.rows, range(read), strict=False)]) == read
    assert reading.content() == file_hash(path)
    reading.close()


@pytest.mark.parametrize("ending", [e for e in ENDINGS if e != "parquet"])  # that is hashed once it is read
def test_a_file_that_is_replaced_while_it_is_read_is_hashed_as_it_was_read(tmp_path, ending):
    path = content(tmp_path / f"a.{ending}", MANY)
    before = file_hash(path)
    reading = RowReader(path)
    first = next(reading.rows)
    content(tmp_path / f"b.{ending}", MANY[:3])
    (tmp_path / f"b.{ending}").rename(path)
    assert 1 + sum(1 for _ in reading.rows) == 1_000
    assert first[0] == 1
    assert reading.content() == before != file_hash(path)


def test_a_file_that_changes_between_its_hash_and_its_rows_is_refused(tmp_path):
    path = content(tmp_path / "a.jsonl", MANY)
    reading = RowReader(path)
    ahead = reading.content(ahead=True)
    content(tmp_path / "a.jsonl", [*MANY, *MANY])
    assert sum(1 for _ in reading.rows) == 2_000
    with pytest.raises(InputError, match="changed while it was read; run the command again"):
        reading.content()
    assert file_hash(path) != ahead


def test_the_bytes_of_a_file_are_read_once(tmp_path, monkeypatch):
    """Rows, format and identity of `keel data check` come from one opening; the rows are parsed once."""
    opened, parsed = [], []
    passing, parse = containers.Passing.open, containers._parsed
    monkeypatch.setattr(containers.Passing, "open", lambda self, path: opened.append(path) or passing(self, path))
    monkeypatch.setattr(containers, "_parsed", lambda line: parsed.append(line) or parse(line))
    monkeypatch.setattr(containers, "file_hash", None)
    rows = [{"prompt": f"{i}?", "chosen": "a", "rejected": "b"} for i in range(250)]
    path = content(tmp_path / "a.jsonl", rows)
    assert cli.main(["data", "check", "--data", path]) == 0
    assert (len(opened), len(parsed)) == (1, 250)
