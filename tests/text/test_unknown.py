"""Texts of which a tokenizer makes nothing, signs that it does not know: counted by row, refused past a share."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from keel.config import CollectConfig, GenerateConfig
from keel.errors import InputError, RowFault
from keel.records import Demonstration
from keel.text.tokenisation import Text

NOTHING = "\u2603\u2603"
CHAT = "{% for m in messages %}<s>{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"


def tokenizer(kind: str, adds_bos: bool = False) -> Any:
    """Letters alone: other signs are `dropped`, or `unknown`. Or `bytes`, which spell all."""
    names = ["<s>", "</s>", "<unk>", "<pad>"]
    signs = sorted(pre_tokenizers.ByteLevel.alphabet()) if kind == "bytes" else list("abcdefghijklmnopqrstuvwxyz \n.")
    vocabulary = {sign: i for i, sign in enumerate([*names, *signs])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>" if kind == "unknown" else None))
    if kind == "bytes":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
    else:
        core.decoder = decoders.Fuse()
    core.add_special_tokens(names)
    if adds_bos:
        from tokenizers.processors import TemplateProcessing

        core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    special |= {"unk_token": "<unk>"} if kind == "unknown" else {}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("prompt", [NOTHING, "\u200b", "\u4f60\u597d"])
def test_a_prompt_of_nothing_is_a_row_s_fault(prompt, adds_bos):
    """A BOS alone is no prompt; the last of its tokens is where an answer is read from."""
    text = Text(tokenizer("dropped", adds_bos))
    with pytest.raises(RowFault) as caught:
        text.prompt_ids(prompt)
    assert caught.value.reason == "the tokenizer makes nothing of the prompt"
    assert text.prompt_ids(f"a{prompt}")


@pytest.mark.parametrize("kind", ["unknown", "bytes"])
def test_other_tokenizers_make_something_of_it(kind):
    text = Text(tokenizer(kind))
    assert len(text.prompt_ids(NOTHING)) == {"unknown": 2, "bytes": 6}[kind]
    assert text.prompt_ids("") == [text.bos_id]  # plain text has no prompt, which is right


@pytest.mark.parametrize("turns", [[NOTHING], ["good day", "good day", NOTHING], [NOTHING, "good day", "and now"]])
def test_a_chat_with_a_turn_of_nothing(turns):
    text = Text(tokenizer("dropped"))
    text.tokenizer.chat_template = CHAT
    prompt: Any = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    with pytest.raises(RowFault) as caught:
        text.prompt_ids(prompt)
    assert caught.value.reason == "the tokenizer makes nothing of the prompt"
    text = Text(tokenizer("bytes"))
    text.tokenizer.chat_template = CHAT
    assert text.prompt_ids(prompt)


@pytest.mark.parametrize("prompt", ["say", [{"role": "user", "content": "say"}]], ids=["plain", "chat"])
def test_an_answer_of_nothing(prompt):
    text = Text(tokenizer("dropped"))
    text.tokenizer.chat_template = CHAT
    with pytest.raises(RowFault) as caught:
        text.encode(Demonstration(prompt, NOTHING), 64)
    assert caught.value.reason == "the tokenizer makes nothing of an answer"
    assert text.encode(Demonstration(prompt, f"a {NOTHING}"), 64).completions[0].ids


@pytest.mark.parametrize(("kind", "found"), [("unknown", 2), ("dropped", None), ("bytes", None)])
def test_which_id_signs_become_that_are_not_known(kind, found):
    assert Text(tokenizer(kind)).gaps.unknown_id == found


def test_an_end_that_also_stands_for_unknown_signs_is_no_such_id():
    """As GPT-2 names it: a chat holds ends of its turns, and its bytes spell every sign."""
    gpt2 = tokenizer("bytes")
    gpt2.unk_token = gpt2.eos_token
    assert Text(gpt2).gaps.unknown_id is None


# --- through commands


@pytest.fixture
def model(base, tmp_path):
    """`model("dropped")`: a model with this tokenizer."""

    def make(kind: str) -> str:
        folder = tmp_path / kind
        if not folder.exists():
            shutil.copytree(base, folder)
            tokenizer(kind).save_pretrained(folder)
        return str(folder)

    return make


def rows(method: str, spoilt: dict[int, dict[str, str]]) -> list[dict[str, str]]:
    found = []
    for i in range(1, 31):
        say = f"say {'abcdefghij'[i % 10]} {'klm'[i // 11]}"
        row = {"prompt": say, "completion": f" yes {say}"}
        if method in ("dpo", "reward"):
            row = {"prompt": say, "chosen": f" yes {say}", "rejected": " no"}
        found.append(row | spoilt.get(i, {}))
    return found


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("sft", "prompt"),
        ("sft", "completion"),
        ("dpo", "prompt"),
        ("dpo", "chosen"),
        ("dpo", "rejected"),
        ("reward", "rejected"),
        ("ppo", "prompt"),
    ],
)
def test_training_drops_the_row_by_number(model, train, write_rows, tmp_path, method, field):
    data = str(write_rows(tmp_path / "data.jsonl", rows(method, {7: {field: NOTHING}})))
    what = "the prompt" if field == "prompt" else "an answer"
    where = {"prompts": data, "reward": f"rule:{_rule(tmp_path)}"} if method == "ppo" else {"data": data}
    summary = train(method, model=model("dropped"), steps=1, max_bad_share=0.1, **where).summary
    assert summary["rows"]["dropped"] == {f"the tokenizer makes nothing of {what}": [1, [7]]}


def _rule(folder: Any) -> str:
    (folder / "rules.yaml").write_text("rules:\n  - contains: a\n")
    return str(folder / "rules.yaml")


def _generate(model: str, prompts: Any, out: Any, **changes: Any) -> Any:
    from keel.methods.best_of_n import generate

    config = GenerateConfig(model=model, prompts=str(prompts), out=out, max_new_tokens=3, device="cpu", **changes)
    return generate(config)


def _collect(model: str, prompts: Any, out: Any, **changes: Any) -> None:
    from keel.commands.collect import collect

    more = {"max_new_tokens": 3, "device": "cpu", "precision": "fp32", **changes}
    collect(CollectConfig(model=model, prompts=str(prompts), store=f"store:{out}", **more))


def test_generate_drops_the_prompt_by_number(model, write_rows, tmp_path):
    prompts = write_rows(tmp_path / "prompts.jsonl", rows("sft", {4: {"prompt": NOTHING}}))
    result = _generate(model("dropped"), prompts, tmp_path / "out.jsonl")
    assert result.summary["rows"]["dropped"] == {"the tokenizer makes nothing of the prompt": [1, [4]]}
    written = [json.loads(line)["prompt"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(written) == 29
    assert NOTHING not in written


def test_collect_asks_the_others(model, write_rows, tmp_path, capfd):
    prompts = write_rows(tmp_path / "prompts.jsonl", rows("sft", {4: {"prompt": NOTHING}}))
    _collect(model("dropped"), prompts, tmp_path / "store.db")
    assert "1 prompts lack answers: the tokenizer makes nothing of the prompt" in capfd.readouterr().err


FEW = {3: {"prompt": "say \u2603"}, 9: {"prompt": "say \u00e9 \u00e9"}}
MANY = {i: {"prompt": f"say {'abcdefghij'[i % 10]}{'klmn'[i // 10]} {NOTHING * 3}"} for i in range(1, 31)}
NOTE = "characters that the tokenizer does not know became <unk>"


@pytest.mark.parametrize("method", ["sft", "dpo", "ppo"])
def test_unknown_signs_are_counted_and_refused_past_the_share(model, train, write_rows, tmp_path, method):
    def run(spoilt: Any, **changes: Any) -> Any:
        data = str(write_rows(tmp_path / "data.jsonl", rows(method, spoilt)))
        where = {"prompts": data, "reward": f"rule:{_rule(tmp_path)}"} if method == "ppo" else {"data": data}
        return train(method, model=model("unknown"), steps=1, **where, **changes).summary["rows"]

    found = run(FEW)
    assert found["notes"][NOTE] == [2, [3, 9]]
    assert found["used"] == 30
    with pytest.raises(
        InputError, match=r"data.jsonl: \d\d% of the tokens .rows 1, 2, 3, 4.*, …. are <unk>.*limit of 5%; take"
    ):
        run(MANY)
    assert run(MANY, max_bad_share=0.9)["used"] == 30


@pytest.mark.parametrize("command", [_generate, _collect])
def test_unknown_signs_in_prompts(model, write_rows, tmp_path, capfd, command):
    command(model("unknown"), write_rows(tmp_path / "few.jsonl", rows("sft", FEW)), tmp_path / "few.db")
    assert f"note: 2 '{NOTE}': rows 3, 9" in capfd.readouterr().err
    many = write_rows(tmp_path / "many.jsonl", rows("sft", MANY))
    with pytest.raises(InputError, match=r"many.jsonl: .* of the tokens .rows 1, .* are <unk>"):
        command(model("unknown"), many, tmp_path / "many.db")


def test_data_check_refuses_what_training_refuses(model, write_rows, tmp_path, capfd):
    from keel.audit.check import check
    from keel.config import DataCheckConfig

    def run(spoilt: Any) -> None:
        data = str(write_rows(tmp_path / "data.jsonl", rows("sft", spoilt)))
        check(DataCheckConfig(data=data, model=model("unknown"), device="cpu", precision="fp32"))

    run(FEW)
    assert NOTE in capfd.readouterr().out
    with pytest.raises(InputError, match=r"training would refuse these data.*of the tokens .rows 1, .* are <unk>"):
        run(MANY)
