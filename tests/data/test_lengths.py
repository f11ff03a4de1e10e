"""How long answers may get if nobody asked for a length: the model and the prompts decide, and it is said."""

from __future__ import annotations

import json

import pytest

from keel import cli
from keel.config import GenerateConfig, PPOConfig
from keel.data.lengths import fitted, prompt_limit, remedy

SAID = "answers: up to {} tokens, not 256, since the model has {} positions and the longest prompt {} tokens"


def config(**changes):
    return GenerateConfig(model="m", prompts="p", out="o", **changes)


@pytest.mark.parametrize(
    ("positions", "prompts", "expected"),
    [
        (None, [9000], 256),
        (512, [10, 256], 256),
        (512, [257], 255),
        (256, [16, 3], 240),
        (256, [192], 64),
        (2, [1], 1),
    ],
)
def test_answers_get_what_the_longest_prompt_leaves(positions, prompts, expected):
    found = fitted(config(), positions, prompts)
    assert found.max_new_tokens == expected
    limit = prompt_limit(config(), positions)
    assert limit is None or all(length < limit for length in prompts)


def test_a_prompt_that_leaves_less_than_a_quarter_is_too_long():
    """192 tokens of 256 leave 64; the tokeniser wants a prompt below its limit."""
    assert prompt_limit(config(), 256) == 193
    assert prompt_limit(config(), 100_000) == 100_000 - 256 + 1


def test_a_length_that_was_asked_for_stays(capsys):
    asked = config(max_new_tokens=256)
    assert fitted(asked, 256, [16]).max_new_tokens == 256
    assert prompt_limit(asked, 256) == 1
    assert (remedy(asked), remedy(config())) == ("lower --max-new-tokens", "")
    assert capsys.readouterr().err == ""


def test_a_run_resumes_with_what_it_was_given():
    first = PPOConfig(model="m", reward="r", prompts="p", out="o")
    again = fitted(first, 128, [8])
    assert fitted(again, 128, [100]).max_new_tokens == again.max_new_tokens == 120


def test_what_counts_as_asked_for_on_the_command_line(tmp_path):
    """The parser fills in every default; a file asks as a flag does."""
    flags = ["--model", "m", "--prompts", "p", "--out", "o"]
    (tmp_path / "c.yaml").write_text("max_new_tokens: 256\n")
    assert "max_new_tokens" not in cli._parse("generate", GenerateConfig, flags).model_fields_set
    for more in (["--max-new-tokens", "256"], ["--max_new_tokens=256"], ["--config", str(tmp_path / "c.yaml")]):
        assert "max_new_tokens" in cli._parse("generate", GenerateConfig, [*flags, *more]).model_fields_set


@pytest.fixture
def command(base, prompts_file, reward_folder, tmp_path):
    common = ["--model", base, "--prompts", prompts_file, "--device", "cpu", "--precision", "fp32"]
    small = ["--rollout-size", 2, "--batch-size", 2, "--steps", 1, "--epochs", 1]
    own = {
        "generate": ["--out", tmp_path / "out"],
        "best-of-n": ["--out", tmp_path / "out", "--reward", reward_folder, "--n", 2],
        "collect": ["--store", tmp_path / "s.db", "--out", tmp_path / "out"],
        "ppo": ["--out", tmp_path / "out", "--reward", reward_folder, *small],
    }
    return lambda name, *more: [name, *(str(part) for part in (*common, *own[name], *more))]


@pytest.mark.parametrize("name", ["generate", "best-of-n", "collect", "ppo"])
def test_the_default_fits_a_small_model(command, name, base, prompts_file, capsys):
    """The model has 128 positions, half of the default."""
    from transformers import AutoTokenizer

    assert cli.main(command(name)) == 0
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [json.loads(line)["prompt"] for line in prompts_file.read_text().splitlines()]
    longest = max(len(tokenizer(prompt).input_ids) for prompt in rows)
    assert capsys.readouterr().err.count(SAID.format(128 - longest, 128, longest)) == 1


@pytest.mark.parametrize("name", ["generate", "best-of-n", "ppo"])
def test_a_remedy_that_cannot_help_is_not_offered(command, name, capsys):
    """No row is left, so no share of bad ones helps; generate has no --max-length."""
    assert cli.main(command(name, "--max-new-tokens", 256)) == 2
    said = capsys.readouterr().err
    assert "lower --max-new-tokens" in said
    assert "max-length" not in said
    assert "max-bad-share" not in said


def test_training_is_told_of_its_own_options(base, pairs_file, tmp_path, capsys):
    flags = ["--model", str(base), "--data", str(pairs_file), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main(["dpo", *flags, "--max-length", "3"]) == 2
    said = capsys.readouterr().err
    assert "shorten it, or raise --max-length" in said
    assert "max-new-tokens" not in said
