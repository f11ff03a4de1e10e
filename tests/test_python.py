"""Keel from Python: what `import keel` brings, and what it leaves until it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

import keel
from keel import cli
from keel.errors import InputError

SCRIPT = """
import sys
import keel
assert not {"torch", "transformers", "numpy", "pydantic"} & set(sys.modules), "importing keel is light"
assert {"config", "methods", "objectives", "stats", "__version__"} <= set(dir(keel))
assert set(dir(keel.methods)) == {"best_of_n", "dpo", "ppo", "reward", "sft"}
assert "torch" not in sys.modules
assert keel.config.DPOConfig(model="m", data="d", out="o").beta == 0.1
assert keel.methods.dpo.train.__module__ == "keel.methods.dpo"
assert all(hasattr(keel, name) for name in dir(keel))
assert not hasattr(keel, "nonsense") and not hasattr(keel.methods, "nonsense")
"""


def test_the_line_of_the_readme_works_after_import_keel():
    """In a process of its own: other tests have imported the modules already."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- objects in place of paths


def rows_in(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def as_data_set(rows):
    import datasets

    return datasets.Dataset.from_list(rows)


def loaded(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def trained(folder):
    """What training left, without what names files and times."""
    return (folder / "metrics.jsonl").read_text(), (folder / "final/model.safetensors").read_bytes()


@pytest.mark.parametrize("hand", [lambda rows: rows, as_data_set, iter], ids=["list", "Dataset", "iterator"])
def test_rows_and_a_model_train_as_their_files_do(pairs_file, base, tmp_path, hand):
    """And a run on rows goes on in another process, if it is handed the same rows."""
    common = {"steps": 2, "device": "cpu", "precision": "fp32", "batch_size": 4, "holdout": 0.25}
    by_path = keel.config.DPOConfig(model=str(base), data=str(pairs_file), out=tmp_path / "path", **common)
    keel.methods.dpo.train(by_path)
    given = keel.config.DPOConfig(model=loaded(base), data=hand(rows_in(pairs_file)), out=tmp_path / "given", **common)
    keel.methods.dpo.train(given)
    assert trained(tmp_path / "given") == trained(tmp_path / "path")
    manifest = json.loads((tmp_path / "given/manifest.json").read_text())
    again = keel.config.DPOConfig(model=str(base), data=rows_in(pairs_file), out=tmp_path / "x", **common)
    assert manifest["data"] == again.data == given.data == f"rows:{manifest['data_hash']}"
    assert keel.config.DPOConfig(model="m", data=rows_in(pairs_file)[1:], out="o").data != given.data
    assert given.data in (tmp_path / "given/config.yaml").read_text()


def test_a_function_rewards_as_a_rule_does(base, prompts_file, tmp_path, monkeypatch):
    def many_letters(prompt: str, completion: str) -> float:
        return len(completion) - 0.5 * len(prompt)

    found = {}
    (tmp_path / "letters_rule.py").write_text(
        "def many(prompt, completion):\n    return len(completion) - len(prompt) / 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, reward in (("function", many_letters), ("rule", "rule:letters_rule:many")):
        config = keel.config.BestOfNConfig(
            model=str(base), reward=reward, prompts=rows_in(prompts_file), out=tmp_path / f"{name}.jsonl",
            n=3, max_new_tokens=6, device="cpu", precision="fp32",
        )  # fmt: skip
        keel.methods.best_of_n.best_of_n(config)
        found[name] = rows_in(tmp_path / f"{name}.jsonl")
    assert found["function"] == found["rule"]
    assert config.reward == "rule:letters_rule:many"


def test_a_loaded_reward_model_is_a_reward(base, reward_folder, prompts_file, tmp_path):
    from transformers import AutoModelForSequenceClassification

    reward = AutoModelForSequenceClassification.from_pretrained(reward_folder)  # its folder has the tokenizer
    for name, given in (("loaded", reward), ("path", reward_folder)):
        config = keel.config.BestOfNConfig(
            model=str(base), reward=given, prompts=prompts_file, out=tmp_path / f"{name}.jsonl", n=2, max_new_tokens=4,
            device="cpu", precision="fp32",
        )  # fmt: skip
        keel.methods.best_of_n.best_of_n(config)
    assert rows_in(tmp_path / "loaded.jsonl") == rows_in(tmp_path / "path.jsonl")


def test_objects_that_cannot_be_used_say_so(base, tmp_path, capsys):
    model, _ = loaded(base)
    model.name_or_path = ""
    with pytest.raises(InputError, match=r"no tokenizer for the model .without a name.; give .model, tokenizer."):
        keel.config.DPOConfig(model=model, data="d", out="o")
    with pytest.raises(ValidationError):
        keel.config.DPOConfig(model="m", data=7, out="o")
    for data, what in (([1, "two"], "list of int"), ({"prompt": ["p"]}, "dict"), ([], "list")):
        with pytest.raises(InputError, match=f"a list of dicts, a datasets.Dataset or a DataFrame, not a {what}$"):
            keel.config.DPOConfig(model=str(base), data=data, out="o")
    config = keel.config.DPOConfig(model=str(base), data=[1, {"prompt": "p"}], out=tmp_path / "o", device="cpu")
    with pytest.raises(InputError, match=r"rows:[0-9a-f]{16}: "):
        keel.methods.dpo.train(config)
    assert cli.main(["data", "stats", "--data", "rows:0123456789abcdef"]) == 2  # nobody handed these over
    assert "rows:0123456789abcdef" in capsys.readouterr().err


def test_functions_are_told_apart_by_what_they_hold():
    """Two rewards of one source; the same one again has the same name, so that a run can go on."""

    class Scale:
        def __init__(self, factor):
            self.factor = factor

    def made(held):
        return lambda prompt, completion: held if isinstance(held, int) else held.factor

    def name_of(reward):
        return keel.config.BestOfNConfig(model="m", reward=reward, prompts="p", out="o").reward

    assert name_of(made(1)) == name_of(made(1)) != name_of(made(7))
    one, seven = made(Scale(1)), made(Scale(7))  # their reprs hold addresses
    names = [name_of(one), name_of(seven), name_of(one)]
    assert names[0] == names[2] != names[1]
    from keel.text.rules import load_rules

    assert [load_rules(n.removeprefix("rule:")).score("p", "c") for n in names] == [1, 7, 1]


def test_a_model_that_changed_is_another(base):
    import torch

    model, tokenizer = loaded(base)
    before = keel.config.SFTConfig(model=(model, tokenizer), data="d", out="o").model
    assert keel.config.SFTConfig(model=(model, tokenizer), data="d", out="o").model == before
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert keel.config.SFTConfig(model=(model, tokenizer), data="d", out="o").model != before


def test_a_batch_reward_is_told_what_is_asked(base, prompts_file, tmp_path):
    config = keel.config.BestOfNConfig(
        model=str(base), reward=lambda prompts, completions: [0.0], prompts=prompts_file, out=tmp_path / "o.jsonl", n=1,
        max_new_tokens=2, device="cpu",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"it is called as .prompt, completion. and returns one number"):
        keel.methods.best_of_n.best_of_n(config)


def test_a_data_frame_is_rows(pairs_file):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows_in(pairs_file))
    rows = keel.config.DPOConfig(model="m", data=rows_in(pairs_file), out="o").data
    assert keel.config.DPOConfig(model="m", data=frame, out="o").data == rows
