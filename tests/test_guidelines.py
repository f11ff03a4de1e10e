"""Rubrics: what a file says is what everyone reads, and a broken one is refused in a line."""

from __future__ import annotations

import pytest

from keel.errors import InputError
from keel.guidelines import DEFAULT_RUBRIC, Rubric, load_rubric

GOOD = """\
dimensions:
  overall: |
    Which answer would you rather have received?
  "accuracy & sources": Which says fewer untruths?
"""


@pytest.fixture
def write(tmp_path):
    def to(text):
        file = tmp_path / "rubric.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return to


def test_a_file_is_read_as_it_stands(write):
    rubric = load_rubric(write(GOOD))
    assert rubric.dimensions == (
        ("overall", "Which answer would you rather have received?"),
        ("accuracy & sources", "Which says fewer untruths?"),
    )
    assert rubric.names == ("overall", "accuracy & sources")
    assert "accuracy & sources:\nWhich says fewer untruths?" in str(rubric)


def test_the_default_has_one_dimension():
    assert DEFAULT_RUBRIC.names == ("overall",)
    assert len(str(DEFAULT_RUBRIC)) > 100


def test_the_version_follows_the_content_alone(write):
    version = load_rubric(write(GOOD)).version
    assert len(version) == 8
    assert load_rubric(write("# a remark\n" + GOOD + "\n\n")).version == version
    changed = [GOOD.replace("rather", "sooner"), GOOD.replace("overall", "whole"), GOOD.replace("accuracy & ", "")]
    versions = {load_rubric(write(text)).version for text in changed}
    a, b = (("a", "x"), ("b", "y"))
    versions |= {Rubric((a, b)).version, Rubric((b, a)).version, Rubric((("a", "xb"), ("", "y"))).version}
    assert len(versions | {version}) == 7


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "dimensions:"),
        ("- a\n- b\n", "dimensions:"),
        ("dimension:\n  overall: x\n", "nothing else"),
        (GOOD + "extra: 1\n", "nothing else"),
        ("dimensions:\n", "dimensions:"),
        ("dimensions: {}\n", "at least one"),
        ("dimensions: [a, b]\n", "dimensions:"),
        ("dimensions:\n  overall:\n", "write its guideline"),
        ("dimensions:\n  overall: '  '\n", "write its guideline"),
        ("dimensions:\n  overall: 3\n", "write its guideline"),
        ("dimensions:\n  overall: [x]\n", "write its guideline"),
        ("dimensions:\n  yes: x\n", "in quotes"),
        ("dimensions:\n  3: x\n", "in quotes"),
        ("dimensions:\n  ' ': x\n", "must be one or a few words"),
        (f"dimensions:\n  {'a' * 61}: x\n", "at most 60"),
        ('dimensions:\n  "a\\nb": x\n', "must be one or a few words"),
        ("dimensions:\n  a: x\n  b: y\n  a: z\n", "'a' appears twice"),
        ("dimensions:\n  a: x\n  'a ': z\n", "'a' appears twice"),
        ("dimensions:\n  a: x\n b: {\n", "not readable as YAML"),
        ("dimensions:\n  ? [a, b]\n  : x\n", "not readable as YAML"),
        (b"dimensions:\n  a: \xff\xfe\n", "not readable as YAML"),
        ("dimensions: !!python/object/apply:os.getcwd []\n", "not readable as YAML"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(write, text, remedy):
    file = write(text)
    with pytest.raises(InputError) as caught:
        load_rubric(file)
    message = str(caught.value)
    assert remedy in message
    assert str(file) in message
    assert "\n" not in message


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match="give an existing rubric file"):
            load_rubric(path)
