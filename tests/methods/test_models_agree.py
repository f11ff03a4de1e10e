"""Two models that must read the same: what differs is said before anything is drawn, and what is saved keeps it."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoTokenizer, GenerationConfig

from keel.config import BestOfNConfig, Machine, PPOConfig, RewardConfig, SFTConfig, Spelling
from keel.errors import InputError
from keel.methods import best_of_n, dpo, ppo, reward, sft
from keel.models import checkpoints
from keel.text.tokenisation import PAD_TOKEN

CHAT = [{"role": "user", "content": "what can teddy do?"}]
CPU = Machine(device="cpu", precision="fp32")
CHATML = (
    "{% for m in messages %}<|user|>{{ m.content }}<pad>\n{% endfor %}{% if add_generation_prompt %}<|user|>{% endif %}"
)


def rewritten(folder, target, change):
    """A copy of a model with another tokenizer.json or tokenizer_config.json."""
    shutil.copytree(folder, target)
    change(target)
    return target


def with_template(template):
    def change(folder):
        (folder / "chat_template.jinja").write_text(template)

    return change


def shuffled(folder):
    """As many tokens, two of them with each other's numbers."""
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())
    vocabulary = whole["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    file.write_text(json.dumps(whole))


def splits_digits(folder):
    """The same vocabulary, cut otherwise before it is looked up."""
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())
    digits = {"type": "Punctuation", "behavior": "Isolated"}
    whole["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, whole["pre_tokenizer"]]}
    file.write_text(json.dumps(whole))


def more_ends(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 3]}))


OTHERS = {"tokenizer": shuffled, "tokenizer ": splits_digits, "end of an answer": more_ends}


@pytest.fixture
def chats(tmp_path, write_rows):
    return write_rows(
        tmp_path / "chats.jsonl", [{"prompt": [{"role": "user", "content": f"teddy {i}"}]} for i in range(8)]
    )


@pytest.mark.parametrize("what", OTHERS)
def test_a_reference_that_reads_otherwise_is_refused(configure, base, tmp_path, what):
    other = rewritten(base, tmp_path / "other", OTHERS[what])
    with pytest.raises(InputError, match=f"its {what.strip()}.* differs from the policy's"):
        dpo.train(configure("dpo", reference=str(other)))
    assert dpo.train(configure("dpo", reference=str(base), steps=1)).folder.exists()


@pytest.mark.parametrize("what", OTHERS)
def test_a_reward_model_that_reads_otherwise_is_refused_before_anything_is_drawn(
    configure, reward_folder, tmp_path, monkeypatch, what
):
    other = rewritten(reward_folder, tmp_path / "other", OTHERS[what])

    def never(*args, **kwargs):
        raise AssertionError("drawn all the same")

    monkeypatch.setattr(ppo, "sample", never)
    monkeypatch.setattr(best_of_n, "sample", never)
    config = configure("ppo", reward=str(other))
    with pytest.raises(InputError, match=f"its {what.strip()}.* differs from the policy's"):
        ppo.train(config)
    shared = {"model": config.model, "prompts": config.prompts, "max_new_tokens": 8, "device": "cpu"}
    with pytest.raises(InputError, match=f"its {what.strip()}.* differs from the policy's"):
        best_of_n.best_of_n(BestOfNConfig(**shared, reward=str(other), out=tmp_path / "best.jsonl"))


def test_another_template_matters_where_prompts_are_chats(make_model, make_reward, tmp_path, chats, prompts_file):
    model, judge = make_model("llama", tokenizer="chat"), make_reward("llama", tokenizer="chat")
    template = (judge / "chat_template.jinja").read_text()
    other = rewritten(judge, tmp_path / "other", with_template(template.replace("<|{{ m.role }}|>", "{{ m.role }}:")))
    shared = {"model": str(model), "reward": str(other), "n": 2, "max_new_tokens": 4, "device": "cpu"}
    with pytest.raises(InputError, match="its chat template differs"):
        best_of_n.best_of_n(BestOfNConfig(**shared, prompts=str(chats), out=tmp_path / "chats-best.jsonl"))
    with pytest.raises(InputError, match="its chat template differs"):
        ppo.train(
            PPOConfig(
                model=str(model),
                reward=str(other),
                prompts=str(chats),
                out=tmp_path / "p",
                device="cpu",
                max_new_tokens=4,
            )
        )
    plain = best_of_n.best_of_n(BestOfNConfig(**shared, prompts=str(prompts_file), out=tmp_path / "plain.jsonl"))
    assert plain.summary["examples"] == 16


# --- ends and templates stay with what is trained


def test_what_is_saved_keeps_the_ends_of_its_template(make_model, tmp_path, write_rows):
    """A base model, whose EOS is not what its template ends with: servers stop where training did."""
    base = rewritten(make_model("llama", tokenizer="chat"), tmp_path / "base", with_template(CHATML))
    rows = [{"messages": [*CHAT, {"role": "assistant", "content": "nap"}]}] * 4
    data = write_rows(tmp_path / "sft.jsonl", rows)
    run = sft.train(SFTConfig(model=str(base), data=str(data), out=tmp_path / "sft", steps=1, device="cpu"))
    assert GenerationConfig.from_pretrained(run.final).eos_token_id == [1, 3]  # </s>, and <pad> as the template has it
    assert checkpoints.load_text(str(run.final)).eos_ids == {1, 3}
    sides = [{"chosen": "nap", "rejected": "hop"}, {"chosen": "hug", "rejected": "sing"}]
    pairs = [
        {"prompt": CHAT} | {side: [{"role": "assistant", "content": t}] for side, t in two.items()} for two in sides
    ]
    data = write_rows(tmp_path / "pairs.jsonl", pairs)
    more = rewritten(
        run.final, tmp_path / "more", lambda f: (f / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    )
    first = reward.train(RewardConfig(model=str(more), data=str(data), out=tmp_path / "one", steps=1, device="cpu"))
    second = reward.train(
        RewardConfig(model=str(first.final), data=str(data), out=tmp_path / "two", steps=1, device="cpu")
    )
    texts = [checkpoints.load_text(str(folder)) for folder in (more, first.final, second.final)]
    assert [text.eos_ids for text in texts] == [{1, 2, 3}] * 3
    assert len({tuple(text.completion_ids(CHAT, "nap")) for text in texts}) == 1
    assert first.final.joinpath("config.json").exists()
    assert checkpoints.load_reward(str(second.final), CPU)


def test_a_template_that_is_given_is_trained_with_and_saved(make_model, tmp_path, write_rows):
    base = make_model("llama")  # without a template
    rows = [{"messages": [*CHAT, {"role": "assistant", "content": "nap"}]}] * 4
    data = write_rows(tmp_path / "sft.jsonl", rows)
    shared = {"model": str(base), "data": str(data), "steps": 1, "device": "cpu", "precision": "fp32"}
    shared["max_bad_share"] = 0.5  # the tokenizer knows few of the templates' capitals
    with pytest.raises(InputError, match="--chat-template"):
        sft.train(SFTConfig(**shared, out=tmp_path / "none"))
    finals = []
    for name in ("vicuna", "alpaca"):
        finals.append(sft.train(SFTConfig(**shared, out=tmp_path / name, chat_template=name, learning_rate=1e-2)).final)
    texts = [checkpoints.load_text(str(final)) for final in finals]
    assert [text.render(CHAT) for text in texts] == [
        "<s>USER: what can teddy do?\nASSISTANT:",
        "<s>### Instruction:\nwhat can teddy do?\n\n### Response:\n",
    ]
    assert texts[0].fingerprint() != texts[1].fingerprint()
    manifest = json.loads((tmp_path / "vicuna" / "manifest.json").read_text())
    assert manifest["tokenizer"] == texts[0].fingerprint()


def test_control_tokens_change_what_is_trained(make_model, tmp_path, write_rows):
    base = make_model("llama", tokenizer="bytes")
    data = write_rows(tmp_path / "sft.jsonl", [{"prompt": "what", "completion": "nap</s>"}] * 4)
    shared = {"model": str(base), "data": str(data), "steps": 1, "device": "cpu", "precision": "fp32"}
    runs = {w: sft.train(SFTConfig(**shared, out=tmp_path / w, control_tokens=w)) for w in ("text", "keep")}
    tokens = {
        w: json.loads((r.folder / "metrics.jsonl").read_text().splitlines()[0])["num_tokens"] for w, r in runs.items()
    }
    assert tokens == {"text": 4 * (3 + 4 + 1), "keep": 4 * (3 + 1)}
    assert any("are encoded as text" in note for note in runs["text"].summary["rows"]["notes"])
    with pytest.raises(InputError, match=r"spells a control token \(</s>\)"):
        sft.train(SFTConfig(**shared, out=tmp_path / "refuse", control_tokens="refuse"))


# --- tokenizers that the library saves as others


def test_a_tokenizer_that_would_be_saved_as_another_is_saved_as_itself(make_model, tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz?"]
    names = ["<unk>", "<s>", "</s>"]
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*names, *letters])}, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    core.add_special_tokens(names)
    folder = tmp_path / "base"
    shutil.copytree(make_model("llama"), folder)
    core.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    text = checkpoints.load_text(str(folder))
    asked = "<s>what</s>teddy"
    expected = text.tokenizer(asked, add_special_tokens=False).input_ids
    text.tokenizer.save_pretrained(tmp_path / "library")
    other = AutoTokenizer.from_pretrained(tmp_path / "library")(asked, add_special_tokens=False).input_ids
    assert other != expected  # else the library has been mended, and this may go
    checkpoints.save(checkpoints.load_policy(str(folder), CPU), text, tmp_path / "saved")
    again = checkpoints.load_text(str(tmp_path / "saved"))
    assert again.tokenizer(asked, add_special_tokens=False).input_ids == expected
    assert again.fingerprint() == text.fingerprint()


def test_a_pad_token_that_keel_adds_is_no_token_of_the_data(make_model):
    text = checkpoints.load_text(str(make_model("llama", tokenizer="no-pad")))
    spelt = f"nap {PAD_TOKEN} hop"
    pad = checkpoints.ensure_pad(text)
    assert pad in text.tokenizer(spelt, add_special_tokens=False).input_ids  # else nothing is shown
    assert pad not in text.prompt_ids(spelt)
    assert pad not in text.completion_ids("what", spelt)


def test_a_template_with_other_line_breaks_survives_saving(make_model, tmp_path):
    """A file is read back with line breaks of one kind: reward and policy would seem to differ."""
    base = rewritten(make_model("llama", tokenizer="chat"), tmp_path / "base", lambda folder: None)
    file = base / "chat_template.jinja"
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["chat_template"] = file.read_text().replace("\n", "\r\n")
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    file.unlink()
    text = checkpoints.load_text(str(base))
    checkpoints.save(checkpoints.load_policy(str(base), CPU), text, tmp_path / "saved")
    assert checkpoints.load_text(str(tmp_path / "saved")).fingerprint() == text.fingerprint()


def test_one_template_of_several_is_chosen_for_every_role_of_ppo(make_model, tmp_path, chats):
    base = rewritten(make_model("llama", tokenizer="chat"), tmp_path / "base", lambda folder: None)
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").unlink()
    (base / "additional_chat_templates").mkdir()
    for name in ("short", "long"):
        (base / "additional_chat_templates" / f"{name}.jinja").write_text(template)
    rule = tmp_path / "rule.yaml"
    rule.write_text("rules:\n  - {words: [1, 5]}\n")
    given = {"model": str(base), "prompts": str(chats), "reward": f"rule:{rule}", "device": "cpu", "steps": 1}
    with pytest.raises(InputError, match="name one with --chat-template: long, short"):
        ppo.train(PPOConfig(**given, out=tmp_path / "none", max_new_tokens=4))
    run = ppo.train(PPOConfig(**given, out=tmp_path / "ppo", max_new_tokens=4, rollout_size=4, chat_template="short"))
    assert checkpoints.load_text(str(run.final)).tokenizer.chat_template == template


def test_spelling_is_no_part_of_a_fingerprint(base):
    assert (
        len({checkpoints.load_text(str(base), Spelling(control_tokens=w)).fingerprint() for w in ("text", "keep")}) == 1
    )
