"""What Keel writes is JSON that every reader takes."""

from __future__ import annotations

import json
import math

import pytest

from keel.files.jsonl import read_lines, strict_json, write_json, write_lines


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


def test_what_is_not_finite_is_missing(tmp_path):
    content = {"mean": math.nan, "ends": (-math.inf, [math.inf, 0.5]), "n": 3, "words": "NaN, “Infinity”"}
    write_json(tmp_path / "one.json", content)
    write_lines(tmp_path / "lines.jsonl", [content])
    for text in ((tmp_path / "one.json").read_text(), (tmp_path / "lines.jsonl").read_text()):
        found = json.loads(text, parse_constant=refuse)
        assert found == {"mean": None, "ends": [None, [None, 0.5]], "n": 3, "words": "NaN, “Infinity”"}
    assert read_lines(tmp_path / "lines.jsonl")[0]["mean"] is None


@pytest.mark.parametrize("value", [0.1, 1e300, -0.0, "ä", None, [1, {"a": True}]])
def test_the_rest_comes_back_as_it_was(value):
    assert json.loads(strict_json({"x": value}), parse_constant=refuse) == {"x": value}


def test_a_file_is_whole_or_absent(tmp_path):
    def rows():
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lines(tmp_path / "lines.jsonl", rows())
    assert not (tmp_path / "lines.jsonl").exists()
