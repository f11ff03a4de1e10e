"""The commands as a user meets them: help, options from file and flags, and what bad input gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from keel import __version__, cli, config

EVERY = ("demo", "sft", "reward", "dpo", "ppo", "best-of-n", "generate")
TRAINING = ("sft", "reward", "dpo", "ppo")
SMALL = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def command(base, reward_folder, pairs_file, demonstrations_file, prompts_file, tmp_path):
    """`command("dpo", data=…)`: arguments of a small run; None leaves an option out."""

    def build(name, **changes):
        options = {"model": base, "out": tmp_path / "run", "max-new-tokens": 8}
        if name in TRAINING:
            options |= {"batch-size": 4, "steps": 2, "learning-rate": 1e-3}
        if name in ("sft", "reward", "dpo"):
            options["data"] = demonstrations_file if name == "sft" else pairs_file
            del options["max-new-tokens"]
        else:
            options["prompts"] = prompts_file
        if name == "ppo":
            options |= {"rollout-size": 4, "batch-size": 2, "epochs": 1}
        if name in ("ppo", "best-of-n"):
            options["reward"] = reward_folder
        if name == "best-of-n":
            options["n"] = 2
        options |= {key.replace("_", "-"): value for key, value in changes.items()}
        flags = [part for key, value in options.items() if value is not None for part in (f"--{key}", str(value))]
        return [name, *flags, *SMALL]

    return build


def refused(arguments, capfd, *needles):
    """Exit code 2, one line that begins with the command and holds every needle, no run folder; returns the line."""
    capfd.readouterr()
    code = cli.main([str(a) for a in arguments])
    out, err = capfd.readouterr()
    assert code == 2, err
    assert "Traceback" not in err
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith(f"keel {arguments[0]}: ")]
    assert len(lines) == 1, err
    assert err.rstrip().endswith(lines[0]), "nothing follows it"
    for needle in needles:
        assert str(needle) in lines[0], f"{needle!r} is not in: {lines[0]}"
    if "--out" in arguments:
        folder = Path(arguments[arguments.index("--out") + 1])
        assert not folder.exists()
        assert not folder.with_name(folder.name + ".partial").exists()
    return lines[0]


# --- help


def test_help_names_every_command(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.main(arguments) == 0
        text = capsys.readouterr().out
        assert all(f"keel {name} " in text for name in EVERY)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"keel {__version__}"


@pytest.mark.parametrize("name", EVERY)
def test_help_of_a_command_shows_every_option(name, capsys, monkeypatch):
    import importlib

    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    kind = getattr(importlib.import_module("keel.config"), cli.COMMANDS[name][0])
    flat = " ".join(text.replace("│", " ").split())
    for option, field in kind.model_fields.items():
        assert "--" + option.replace("_", "-") in text
        documented = field.description or next(
            (
                b.model_fields[option].description
                for b in kind.__mro__[1:-2]
                if option in getattr(b, "model_fields", {})
            ),
            "",
        )
        assert documented, f"{option} has no help"
        assert " ".join(documented.split())[:25].replace("`", "") in flat.replace("`", ""), option


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in EVERY)])
def test_help_is_quick_because_it_imports_little(arguments):
    """No torch, no transformers, no plotting; the overview not even the option parser."""
    script = (
        "import sys, io, contextlib\n"
        "from keel import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    try:\n"
        "        code = cli.main(sys.argv[1:])\n"
        "    except SystemExit as left:\n"
        "        code = left.code\n"
        "assert not code, code\n"
        "print(' '.join(sorted(name.partition('.')[0] for name in sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    heavy = {"torch", "transformers", "numpy", "scipy", "matplotlib", "jinja2", "datasets", "pyarrow", "tokenizers"}
    assert not loaded & heavy
    if len(arguments) == 1:
        assert not loaded & {"tyro", "pydantic", "yaml", "rich"}


@pytest.mark.parametrize("name", ["generate", "best-of-n", "dpo"])
def test_an_existing_result_is_refused_before_the_libraries_are_imported(command, tmp_path, name):
    """They take seconds."""
    (tmp_path / "run").write_text("precious")
    script = "import sys; from keel import cli; code = cli.main(sys.argv[1:]); assert 'torch' not in sys.modules; "
    done = subprocess.run(
        [sys.executable, "-c", script + "sys.exit(code)", *map(str, command(name))], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert ("already exists" in done.stderr, "--resume" in done.stderr) == (True, name == "dpo")


# --- a run from the command line


@pytest.mark.parametrize("name", [name for name in EVERY if name != "demo"])
def test_a_command_runs_and_says_where_its_result_lies(command, capsys, name, tmp_path):
    assert cli.main(command(name)) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(tmp_path / "run")
    if name in TRAINING:
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["command"] == name
        assert (tmp_path / "run" / "final" / "config.json").exists()


def test_in_a_process_of_its_own(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "keel.cli", *command("dpo", steps=1)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "run")


@pytest.mark.parametrize("name", ["reward"])
def test_bad_data_is_one_line_in_a_process_of_its_own(command, tmp_path, write_rows, name):
    """Nothing of the libraries' own reports stands around it."""
    file = write_rows(tmp_path / "wrong.jsonl", [{"question": "q", "answer": "a"}])
    done = subprocess.run(
        [sys.executable, "-m", "keel.cli", *command(name, **{"prompts" if name == "ppo" else "data": file})],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert str(file) in done.stderr


# --- options


def saved(folder):
    import yaml

    return yaml.safe_load((folder / "config.yaml").read_text())


def test_flags_win_over_the_file(command, tmp_path, base, pairs_file):
    file = tmp_path / "settings.yaml"
    file.write_text(
        f"model: {base}\ndata: {pairs_file}\nbeta: 0.3\nloss: ipo\nsteps: 1\nlearning_rate: 1.0e-4\nholdout: 0.25\n"
        "resume: false\nlimit: null\n"
    )
    flags = ["dpo", "--config", str(file), "--beta", "0.7", "--out", str(tmp_path / "run"), *SMALL]
    assert cli.main(flags) == 0
    settings = saved(tmp_path / "run")
    assert (settings["beta"], settings["loss"], settings["steps"], settings["holdout"]) == (0.7, "ipo", 1, 0.25)
    assert (settings["resume"], settings["limit"]) == (False, None)


@pytest.mark.parametrize("order", ["before", "after", "joined"])
def test_where_the_file_stands_does_not_matter(command, tmp_path, order):
    file = tmp_path / "settings.yaml"
    file.write_text("beta: 0.3\n")
    name, *flags = command("dpo", beta=0.7)
    config = {"joined": [f"--config={file}"]}.get(order, ["--config", str(file)])
    assert cli.main([name, *config, *flags] if order != "after" else [name, *flags, *config]) == 0
    assert saved(tmp_path / "run")["beta"] == 0.7


def test_a_run_s_own_config_starts_it_again(command, tmp_path):
    assert cli.main(command("dpo", beta=0.25)) == 0
    assert cli.main(["dpo", "--config", str(tmp_path / "run" / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    first, second = saved(tmp_path / "run"), saved(tmp_path / "again")
    assert first | {"out": None} == second | {"out": None}
    weights = [(tmp_path / n / "final" / "model.safetensors").read_bytes() for n in ("run", "again")]
    assert weights[0] == weights[1]


BAD_OPTIONS = [
    ({"beta": 0}, "beta"),
    ({"beta": -1}, "beta"),
    ({"beta": "much"}, "beta"),
    ({"loss": "nonsense"}, "loss"),
    ({"surprise": 1}, "surprise"),
    ({"data": None}, "data"),
    ({"model": None}, "model"),
    ({"batch_size": 0}, "batch"),
    ({"label_smoothing": 0.1, "loss": "hinge"}, "label_smoothing"),
    ({"learning_rate": "nan"}, "learning"),
    ({"learning_rate": "inf"}, "learning"),
    ({"beta": "inf"}, "beta"),
]


@pytest.mark.parametrize(("changes", "name"), BAD_OPTIONS)
def test_impossible_options(command, capfd, changes, name):
    refused(command("dpo", **changes), capfd, name)


def test_ppo_s_beta_may_be_0_but_not_below(command, capfd):
    refused(command("ppo", beta=-0.1), capfd, "beta")
    assert cli.main(command("ppo", beta=0, steps=1)) == 0


def test_unknown_command(capfd):
    refused(["dance"], capfd, "no such command", "sft")
    refused(["genrate"], capfd, "did you mean generate?")
    refused(["data", "chek"], capfd, "did you mean data check? there are data check, data convert")


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--lr=1e-4", "no option --lr; did you mean --learning-rate?"),
        ("--batchsize", "did you mean --batch-size?"),
        ("--gradient_accumulation_steps", "passes of --micro-tokens tokens"),
        ("--qlora-bits", "no option --qlora-bits; see --help"),
    ],
)
def test_an_option_that_is_none_is_told_with_what_was_meant(command, capfd, flag, meant):
    refused([*command("dpo"), flag], capfd, meant)


def test_a_result_is_not_written_to_a_file_of_the_name_of_standard_output(command, capfd):
    refused(command("generate", out="-"), capfd, "--out -: ")


def test_a_store_without_its_word_is_told_how_to_write_it(command, capfd, tmp_path):
    (tmp_path / "votes.db").write_bytes(b"")
    refused(command("dpo", data=tmp_path / "votes.db"), capfd, f"a store is named store:{tmp_path}/votes.db")


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        (None, "settings.yaml: No such file or directory; give an existing file"),
        ("beta: [", "YAML"),
        ("- beta", "settings.yaml"),
        ("betta: 1\n", "no option --betta; did you mean --beta?"),
        ("beta: -2\n", "beta"),
        ("beta: [1, 2]\n", "beta"),
        ("beta:\n", "settings.yaml: beta has no value; give it one, or leave the line out"),
        ("model: null\n", "model has no value"),
    ],
)
def test_bad_config_files(command, capfd, tmp_path, content, needle):
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_text(content)
    refused([*command("dpo"), "--config", str(file)], capfd, needle)
    refused([*command("dpo"), "--config"], capfd, "--config")


@pytest.mark.parametrize("word", ["none", "None", "null"])
def test_an_option_without_a_value_is_said_in_words(word):
    """Where none is not the default, too; a file says it as YAML does. A name of a model is not such a word."""
    kind = config.CollectConfig
    common = ["--model", "none", "--prompts", "p", "--store", "s.db", "--budget", word, "--price-in=" + word]
    found = cli._parse("collect", kind, [*common, "--judge-temperature", word, "--rater", "none"])
    assert (found.judge_temperature, found.budget, found.price_in) == (None, None, None)
    assert (found.model, found.rater) == ("none", ["none"])


def test_null_in_a_file_is_none(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("judge_temperature: null\nlimit: ~\nrubric:\nmodel: m\nprompts: p\nstore: s.db\n")
    found = cli._parse("collect", config.CollectConfig, ["--config", str(file)])
    assert (found.judge_temperature, found.limit, found.rubric) == (None, None, None)
    again = tmp_path / "again.yaml"
    again.write_text(found.to_yaml())
    assert cli._parse("collect", config.CollectConfig, ["--config", str(again)]) == found


# --- bad input: the list


@pytest.fixture
def spoil(pair_table, tmp_path, write_rows):
    """`spoil("dpo", change)`: a data file for the command, its rows changed by `change(rows)`; row numbers from 1."""

    def make(name, change):
        rows = [dict(r) for r in pair_table]
        if name == "sft":
            rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows]
        elif name in ("ppo", "generate", "best-of-n"):
            rows = [{"prompt": r["prompt"]} for r in rows]
        return write_rows(tmp_path / f"spoiled-{name}.jsonl", change(rows))

    return make


def with_data(command, name, file):
    return command(name, **{"data" if name in ("sft", "reward", "dpo") else "prompts": file})


def each(name, **change):
    """Every third row changed."""
    del name
    return lambda rows: [r | change if i % 3 == 2 else r for i, r in enumerate(rows)]


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo", "generate", "best-of-n"])
def test_missing_column(command, capfd, spoil, name):
    column = {"sft": "completion", "reward": "rejected", "dpo": "chosen"}.get(name, "prompt")
    file = spoil(name, lambda rows: [{k: v for k, v in r.items() if k != column} | {"note": "x"} for r in rows])
    refused(with_data(command, name, file), capfd, file, column)


@pytest.mark.parametrize("name", ["reward", "dpo"])
def test_chosen_equal_to_rejected(command, capfd, spoil, name):
    file = spoil(name, lambda rows: [r | {"chosen": r["rejected"]} if i in (3, 9) else r for i, r in enumerate(rows)])
    refused(with_data(command, name, file), capfd, file, "chosen equals rejected", "4, 10", "--max-bad-share")


@pytest.mark.parametrize(("name", "column"), [("sft", "completion"), ("reward", "rejected"), ("dpo", "chosen")])
@pytest.mark.parametrize("value", ["", " \n", None, 7])
def test_empty_or_missing_completion(command, capfd, spoil, name, column, value):
    file = spoil(name, lambda rows: [r | {column: value} if i in (1, 5) else r for i, r in enumerate(rows)])
    refused(with_data(command, name, file), capfd, file, column, "2, 6", "--max-bad-share")


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo", "generate", "best-of-n"])
def test_prompt_longer_than_the_model(command, capfd, spoil, name):
    file = spoil(name, lambda rows: [r | {"prompt": "ok" * 200} if i in (1, 5) else r for i, r in enumerate(rows)])
    refused(with_data(command, name, file), capfd, file, "2")


@pytest.mark.parametrize("name", ["reward", "dpo"])
def test_contradictory_pairs(command, capfd, spoil, name):
    def change(rows):
        return [*rows, rows[2] | {"chosen": rows[2]["rejected"], "rejected": rows[2]["chosen"]}]

    refused(with_data(command, name, spoil(name, change)), capfd, "contradictory", "3, 17", "--max-bad-share")


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo", "generate", "best-of-n"])
def test_broken_json(command, capfd, spoil, name):
    file = spoil(name, lambda rows: [*rows[:4], '{"prompt": "what can', *rows[5:]])
    refused(with_data(command, name, file), capfd, file, "broken JSON", "row 5")


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo", "generate", "best-of-n"])
def test_wrong_encoding(command, capfd, spoil, name):
    file = spoil(name, lambda rows: rows)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"what", b"what \xe9")
    file.write_bytes(b"".join(lines))
    refused(with_data(command, name, file), capfd, file, "line 3", "UTF-8", "iconv")


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo", "generate", "best-of-n"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_file(command, capfd, tmp_path, name, content):
    file = tmp_path / "empty.jsonl"
    file.write_text(content)
    refused(with_data(command, name, file), capfd, file, "no rows")


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo", "generate"])
def test_missing_file(command, capfd, tmp_path, name):
    refused(with_data(command, name, tmp_path / "absent.jsonl"), capfd, tmp_path / "absent.jsonl", "no such file")


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo", "generate", "best-of-n"])
def test_model_folder_without_weights(command, capfd, tmp_path, base, name):
    import shutil

    folder = shutil.copytree(base, tmp_path / "hollow", ignore=shutil.ignore_patterns("*.safetensors"))
    refused(command(name, model=folder), capfd, folder, "no weights")


@pytest.mark.parametrize("name", ["sft", "dpo", "generate"])
def test_model_folders_that_are_none(command, capfd, tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.bin").write_text("")
    for folder in (tmp_path / "absent", tmp_path / "empty", tmp_path / "model.bin"):
        refused(command(name, model=folder), capfd, folder)


def test_broken_model_files(command, capfd, tmp_path, base):
    import shutil

    for number, (file, content) in enumerate(
        [("config.json", "{"), ("model.safetensors", "x"), ("tokenizer.json", "{")]
    ):
        folder = shutil.copytree(base, tmp_path / f"broken{number}")
        (folder / file).write_text(content)
        refused(command("sft", model=folder), capfd, folder)


@pytest.mark.parametrize("name", ["ppo", "best-of-n"])
def test_reward_folder_that_is_a_plain_language_model(command, capfd, base, name):
    refused(command(name, reward=base), capfd, base, "plain language model", "keel reward")


@pytest.mark.parametrize("name", ["ppo", "best-of-n"])
def test_reward_folder_whose_head_is_missing(command, capfd, reward_folder, tmp_path, name):
    """The config says classifier, the weights do not hold its head: it would be random."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(reward_folder, tmp_path / "headless")
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("score")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(command(name, reward=folder), capfd, folder, "random")


@pytest.mark.parametrize("name", ["sft", "dpo", "generate"])
def test_a_reward_model_is_not_a_policy(command, capfd, reward_folder, name):
    """Its language-model head would be random."""
    refused(command(name, model=reward_folder), capfd, reward_folder)


@pytest.mark.parametrize("missing", ["lm_head", "layers.1"])
def test_a_policy_with_missing_weights_is_refused(command, capfd, base, tmp_path, missing):
    """A checkpoint that lacks tensors would be completed at random."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(base, tmp_path / "partial")
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if missing not in k}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(command("sft", model=folder), capfd, folder)


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo", "generate", "best-of-n"])
def test_existing_output(command, capfd, tmp_path, name):
    out = tmp_path / "run"
    if name in TRAINING:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        out.write_text("mine")
    capfd.readouterr()
    assert cli.main(command(name)) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert str(out) in err
    assert "--out" in err
    assert (out / "notes.txt").read_text() == "mine" if name in TRAINING else out.read_text() == "mine"


@pytest.mark.parametrize("name", ["sft", "generate"])
def test_output_below_a_file(command, capfd, tmp_path, name):
    (tmp_path / "file").write_text("")
    capfd.readouterr()
    assert cli.main(command(name, out=tmp_path / "file" / "run")) == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert str(tmp_path / "file") in err


def test_messages_without_a_template(command, capfd, spoil):
    file = spoil(
        "sft",
        lambda rows: [
            {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
            for r in rows
        ],
    )
    refused(with_data(command, "sft", file), capfd, file, "template")


def test_mixed_text_and_messages(command, capfd, spoil):
    message = [{"role": "assistant", "content": "nap"}]
    file = spoil("dpo", lambda rows: [r | {"chosen": message} if i < 4 else r for i, r in enumerate(rows)])
    refused(with_data(command, "dpo", file), capfd, file, "1, 2, 3, 4")


def test_wrong_format_name(command, capfd):
    refused(command("dpo", format="nonsense"), capfd, "nonsense", "trl")


def test_holdout_of_one_prompt(command, capfd, spoil):
    file = spoil("dpo", lambda rows: [r | {"prompt": "ok"} for r in rows])
    refused(command("dpo", data=file, holdout=0.5), capfd, file, "holdout")


# --- below the share the run goes on


def test_fewer_bad_rows_than_the_share(command, capfd, spoil, tmp_path):
    """Each kind once: counted, numbered, reported; the books add up; nothing bad is trained on."""

    def change(rows):
        spoiled = list(rows)
        spoiled[0] = rows[0] | {"chosen": rows[0]["rejected"]}
        spoiled[1] = rows[1] | {"rejected": ""}
        spoiled[2] = '{"prompt": '
        spoiled[3] = rows[3] | {"chosen": None}
        spoiled[4] = rows[4] | {"prompt": "ok" * 200}
        spoiled[5] = "[1, 2]"
        spoiled[8] = rows[8] | {"rejected": "nap</s>and more"}
        spoiled.append(rows[7] | {"chosen": rows[7]["rejected"], "rejected": rows[7]["chosen"]})
        return spoiled

    file = spoil("dpo", change)
    capfd.readouterr()
    assert cli.main(command("dpo", data=file, max_bad_share=0.6, control_tokens="keep", steps=None, epochs=1)) == 0
    err = capfd.readouterr().err
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["rows"]
    by_row = {n: reason for reason, (count, numbers) in rows["dropped"].items() for n in numbers}
    assert sorted(by_row) == [1, 2, 3, 4, 5, 6, 8, 9, 17]
    assert by_row[8] == by_row[17]
    assert "EOS" in by_row[9]
    assert (rows["read"], rows["used"]) == (17, 8)
    assert rows["read"] == rows["used"] + sum(count for count, _ in rows["dropped"].values())
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["examples"] == 8
    for reason in rows["dropped"]:
        assert reason in err, "every count is printed at the start"


@pytest.mark.parametrize("name", ["sft", "reward", "ppo"])
def test_one_broken_line_in_thirty_is_no_reason_to_stop(command, spoil, tmp_path, name):
    file = spoil(name, lambda rows: [*rows, *rows, "{"])
    assert cli.main(with_data(command, name, file)) == 0
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["rows"]
    assert rows["dropped"] == {"broken JSON": [1, [33]]}
    assert (rows["read"], rows["used"]) == (33, 32)


def test_books_add_up_with_held_out_rows(command, spoil, tmp_path):
    file = spoil("dpo", lambda rows: [*rows, "{"])
    assert cli.main(command("dpo", data=file, holdout=0.25, max_bad_share=0.1, steps=None)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rows"]["read"] == 17
    assert summary["rows"]["used"] == 16
    assert summary["examples"] + summary["eval"]["loss"]["n"] == 16


def test_limit_reads_the_first_rows_only(command, spoil, tmp_path):
    file = spoil("dpo", lambda rows: [*rows[:8], "{", "{"])
    assert cli.main(command("dpo", data=file, limit=8)) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rows"]["read"] == 8


OWN = {"prompt": "ask", "completion": "say", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize("name", [name for name in EVERY if name != "demo"])
def test_a_file_s_own_names_of_columns(command, capfd, tmp_path, write_rows, name):
    """Every command that reads data does the same on renamed columns as on its own names, and refuses without."""
    plain = command(name)
    option = "--data" if "--data" in plain else "--prompts"
    file = Path(plain[plain.index(option) + 1])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    spec = ",".join(f"{ours}={theirs}" for ours, theirs in OWN.items() if ours in rows[0])
    own = write_rows(tmp_path / "own.jsonl", [{OWN.get(k, k): v for k, v in row.items()} for row in rows])
    arguments = command(name, **{option[2:]: own})
    refused(arguments, capfd, own, "no column")
    assert cli.main(plain) == 0
    assert cli.main([*command(name, **{option[2:]: own, "out": tmp_path / "again"}), "--columns", spec]) == 0
    if name not in TRAINING:
        assert (tmp_path / "run").read_text() == (tmp_path / "again").read_text()
        return
    first, second = (json.loads((tmp_path / at / "summary.json").read_text()) for at in ("run", "again"))
    assert (first["metrics"], first["rows"]) == (second["metrics"], second["rows"])


def test_held_out_data_have_the_same_columns(command, tmp_path, write_rows):
    rows = [{"ask": f"where is {i}?", "good": "here, I think", "bad": "no"} for i in range(8)]
    train, held = (write_rows(tmp_path / f"{i}.jsonl", rows[4 * i : 4 * i + 4]) for i in (0, 1))
    spec = "prompt=ask,chosen=good,rejected=bad"
    assert cli.main([*command("reward", data=train, eval_data=held), "--columns", spec]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["eval"]["loss"]["n"] == 4


ASKED = [{"ask": f"where is {i}?", "good": "here, I think", "bad": "no"} for i in range(8)]
CALLED = "prompt=ask,chosen=good,rejected=bad"


def renamed(rows):
    return [dict(zip(("prompt", "chosen", "rejected"), row.values(), strict=True)) for row in rows]


def test_held_out_data_may_have_the_names_that_keel_knows(command, capfd, tmp_path, write_rows):
    train = str(write_rows(tmp_path / "train.jsonl", ASKED[:4]))
    held = str(write_rows(tmp_path / "held.jsonl", renamed(ASKED[4:])))
    said = "note: 1 '--columns is not used: the file has none of the columns it names': row 1"
    assert cli.main([*command("reward", data=train, eval_data=held), "--columns", CALLED]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["eval"]["loss"]["n"] == 4
    assert said in capfd.readouterr().err
    assert cli.main(["data", "check", "--data", train, "--eval-data", held, "--columns", CALLED]) == 0
    assert said in capfd.readouterr().err
    partly = [{"ask": row["ask"], "chosen": row["good"], "rejected": row["bad"]} for row in ASKED[4:]]
    held = write_rows(tmp_path / "partly.jsonl", partly)
    arguments = [*command("reward", data=train, eval_data=held, out=tmp_path / "other"), "--columns", CALLED]
    refused(arguments, capfd, "no columns 'good' or 'bad'")


def test_beside_a_store_held_out_data_have_names_of_their_own(command, capfd, tmp_path, write_rows):
    rows = renamed(ASKED[:4])
    store = f"store:{tmp_path / 'votes.db'}"
    assert cli.main(["data", "convert", "--data", str(write_rows(tmp_path / "a.jsonl", rows)), "--out", store]) == 0
    held = str(write_rows(tmp_path / "held.jsonl", ASKED[4:]))
    told = ["--columns", CALLED]
    assert cli.main([*command("reward", data=store, eval_data=held), *told]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["eval"]["loss"]["n"] == 4
    assert cli.main(["data", "check", "--data", store, "--eval-data", held, *told]) == 0
    refused([*command("reward", data=store, out=tmp_path / "other"), *told], capfd, "leave out --columns")
    wrong = write_rows(tmp_path / "wrong.jsonl", renamed(ASKED[4:]))
    arguments = [*command("reward", data=store, eval_data=wrong, out=tmp_path / "other"), *told]
    refused(arguments, capfd, "which --columns names")


def test_help_lists_what_can_be_written(capsys, monkeypatch):
    from keel.formats.demonstrations import DEMONSTRATED
    from keel.formats.judgments import JUDGED

    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main(["data", "convert", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    listed = text.partition("Judgments: ")[2].partition(" text.")[0]
    names = listed.replace(" Demonstrations: ", " ").replace(".", ",").replace(",,", ",")
    assert {name.strip() for name in names.split(",")} | {"text"} >= {it.name for it in (*JUDGED, *DEMONSTRATED)}


def test_nothing_is_left_in_gradient_mode_or_seeds(command):
    """A command does not change how its caller computes."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert cli.main(command("ppo", steps=1)) == 0
    assert torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), expected)


def test_n_may_be_written_short():
    """The README and the usage in every help text write `-n 4`."""
    from keel.cli import _parse
    from keel.config import GenerateConfig

    flags = ["--model", "m", "--prompts", "p", "--out", "o"]
    assert _parse("generate", GenerateConfig, [*flags, "-n", "4"]).n == 4
    assert _parse("generate", GenerateConfig, flags).n == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--overlap 0", "--overlap: must be greater than or equal to 1"),
        ("--overlap 0 --lease -1", "--overlap: must be greater than or equal to 1; --lease: must be greater than 0"),
        ("--overlap two", "--overlap: not a whole number: 'two'"),
        ("--lease x", "--lease: not a number: 'x'"),
        ("--kind stars", "invalid choice 'stars' for argument '--kind'. Expected one of ("),
    ],
)
def test_a_wrong_value_is_said_by_its_option(words, said, capsys):
    """Its name first, and neither a title, a frame, nor a class of the program."""
    assert cli.main(["annotate", "--store", "store:none.db", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"keel annotate: {said}")
    assert not any(word in line for word in ("Config", "error", "None", "http", "--help", "type="))


WRITE = {
    "sft": ["--model", "{base}", "--data", "{demonstrations}", "--out", "{out}"],
    "generate": ["--model", "{base}", "--prompts", "{prompts}", "--out", "{out}.jsonl"],
    "best-of-n": [
        "--model",
        "{base}",
        "--reward",
        "rule:builtins:max",
        "--prompts",
        "{prompts}",
        "--out",
        "{out}.jsonl",
    ],
    "data check": ["--data", "{pairs}", "--page", "{out}.html"],
    "data split": ["--data", "{pairs}", "--out", "{out}"],
}


@pytest.mark.parametrize("command", WRITE)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    command, base, demonstrations_file, prompts_file, pairs_file, tmp_path, monkeypatch, capsys
):
    (tmp_path / "ro").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "ro" and access(path, mode))
    names = {"base": base, "demonstrations": demonstrations_file, "prompts": prompts_file, "pairs": pairs_file}
    flags = [flag.format(out=tmp_path / "ro" / "x", **names) for flag in WRITE[command]]
    assert cli.main([*command.split(), *flags]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"cannot be written: no right to write in {tmp_path / 'ro'}; choose another place" in said


@pytest.mark.parametrize("ending", ["csv", "jsonl.gz", "parquet"])
def test_answers_are_written_as_json_lines_and_nothing_else(base, prompts_file, tmp_path, ending, capsys):
    flags = ["--model", str(base), "--prompts", str(prompts_file), "--out", str(tmp_path / f"x.{ending}")]
    assert cli.main(["generate", *flags]) == 2
    assert "end the name in .jsonl" in capsys.readouterr().err


# --- a run to go on with


def test_resume_where_no_run_is_says_so(tmp_path, capfd):
    """Not what options are missing: they would begin a run, which nobody asked for."""
    line = refused(
        ["sft", "--resume", "--out", tmp_path / "gone"], capfd, "no run to resume is there", "--model, --data"
    )
    assert line.startswith(f"keel sft: {tmp_path / 'gone'}: ")
    refused(["sft", "--resume"], capfd, "--resume needs --out, the folder of the run to go on with")


def test_resume_with_all_options_begins_a_run_that_is_not_there(command, tmp_path):
    """A scheduler may give the same call for the first time and for every later one."""
    assert cli.main([*command("sft"), "--resume"]) == 0
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("file", ["manifest.json", "config.yaml.partial"])
def test_a_run_that_was_killed_before_it_began_is_no_obstacle(command, tmp_path, file):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / file).write_text('{"command": "sf')
    assert cli.main(command("sft")) == 0


@pytest.fixture
def sft_run(command, tmp_path, capfd):
    """A finished run of keel sft."""
    assert cli.main(command("sft")) == 0
    capfd.readouterr()
    return tmp_path / "run"


def test_a_run_of_another_command_is_named(sft_run, command, capfd):
    """With its folder alone, and with all options of the wrong command."""
    for flags in (["dpo", "--resume", "--out", str(sft_run)], [*command("dpo"), "--resume"]):
        (sft_run / "summary.json").unlink(missing_ok=True)
        assert cli.main(flags) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line == f"keel dpo: {sft_run}: a run of keel sft; go on with: keel sft --resume --out {sft_run}"


def test_the_config_of_another_command_is_no_way_round(sft_run, command, capfd, tmp_path):
    """Options from a file: the run's folder itself knows whose it is."""
    (sft_run / "summary.json").unlink()
    file = tmp_path / "dpo.yaml"
    flags = iter(command("dpo")[1:])
    file.write_text("".join(f"{name.removeprefix('--')}: {next(flags)}\n" for name in flags))
    assert cli.main(["dpo", "--config", str(file), "--resume"]) == 2
    assert "a run of keel sft; go on with: keel sft --resume" in capfd.readouterr().err.splitlines()[-1]


def test_a_finished_run_is_refused_before_anything_is_loaded(sft_run, capfd):
    assert cli.main(["sft", "--resume", "--out", str(sft_run)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("this run is finished; its result is in final/")


@pytest.mark.parametrize("name", TRAINING)
def test_a_folder_in_which_no_file_can_be_made_is_no_matter_of_size(command, capfd, name):
    """Root may write everywhere, but /proc takes no files."""
    line = refused(command(name, out="/proc/keel"), capfd, "/proc/keel cannot be written: no ", "choose another place")
    assert "free" not in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_torch_is_imported_ends_the_process_there(number):
    """An exception raised inside its import would abort with a core dump: nothing is unwound, no caller comes back."""
    script = (
        "import os, sys\n"
        "from keel import cli\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        "            for _ in range(100): pass\n"
        "sys.meta_path.insert(0, Finder())\n"
        "print(cli.main(['generate', '--model', 'm', '--prompts', 'p.jsonl', '--out', 'o.jsonl']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr.splitlines()[-1] == f"keel generate: stopped by {'SIGTERM' if number == 15 else 'Ctrl-C'}"
