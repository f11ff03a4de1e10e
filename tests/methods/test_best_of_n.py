"""Best-of-N and plain generation: what is written is what was sampled, and the best has the highest score."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch
from tests.reading import read_demonstrations
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from keel import stats
from keel.config import BestOfNConfig, GenerateConfig
from keel.data.convert import convert
from keel.data.prepare import encode
from keel.errors import InputError
from keel.methods.best_of_n import best_of_n, generate
from keel.models import checkpoints
from keel.records import Drawn


@pytest.fixture
def options(base, prompts_file, tmp_path):
    return {
        "model": str(base),
        "prompts": str(prompts_file),
        "out": tmp_path / "out.jsonl",
        "max_new_tokens": 8,
        "device": "cpu",
        "precision": "fp32",
    }


def rows_of(result):
    return [json.loads(line) for line in result.folder.read_text(encoding="utf-8").splitlines()]


def prompts_in(file):
    return [json.loads(line)["prompt"] for line in file.read_text().splitlines()]


def rule_file(tmp_path, text):
    (tmp_path / "rule.yaml").write_text(text)
    return f"rule:{tmp_path / 'rule.yaml'}"


def test_the_best_has_the_highest_score(options, tmp_path):
    reward = rule_file(tmp_path, "rules:\n  - {matches: a, weight: 1}\n  - {matches: e, weight: 0.5}\n")
    result = best_of_n(BestOfNConfig(**options, reward=reward, n=6))
    rows = rows_of(result)
    for row in rows:
        scores = [1.0 * ("a" in c["text"]) + 0.5 * ("e" in c["text"]) for c in row["candidates"]]
        assert [c["score"] for c in row["candidates"]] == scores
        assert len(scores) == 6
        assert row["score"] == max(scores) == scores[row["best"]]
        assert row["completion"] == row["candidates"][row["best"]]["text"]
    best = [row["score"] for row in rows]
    everything = [[c["score"] for c in row["candidates"]] for row in rows]
    figures = result.summary["metrics"]
    assert figures["score_best"]["mean"] == pytest.approx(statistics.fmean(best))
    assert figures["score_best"]["n"] == figures["score_mean"]["n"] == len(rows)
    assert figures["score_mean"]["mean"] == pytest.approx(statistics.fmean(map(statistics.fmean, everything)))
    assert figures["score_sd_within"] == pytest.approx(statistics.fmean(map(statistics.stdev, everything)), abs=1e-6)
    assert figures["kl_bound"] == pytest.approx(math.log(6) - 5 / 6)
    assert result.summary["examples"] == 6 * len(rows)
    sampling, scoring = (result.summary[f"{part}_seconds"] for part in ("sample", "score"))
    assert 0 < sampling <= sampling + scoring <= result.summary["seconds"]


def test_scores_of_a_reward_model(options, reward_folder, monkeypatch):
    """Each candidate's score is Hugging Face's own, on the ids that were sampled."""
    from keel.methods import best_of_n as module

    drawn = []
    real = module.sample
    monkeypatch.setattr(module, "sample", lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1])
    rows = rows_of(best_of_n(BestOfNConfig(**options, reward=str(reward_folder), n=4)))
    scorer = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()
    with torch.no_grad():
        for row, bundle in zip(rows, drawn[0], strict=True):
            expected = [
                scorer(input_ids=torch.tensor([bundle.prompt_ids + c.ids])).logits.item() for c in bundle.completions
            ]
            assert [c["score"] for c in row["candidates"]] == pytest.approx(expected, abs=1e-4)
            assert [c["text"] for c in row["candidates"]] == [c.text for c in bundle.completions]
            assert row["best"] == max(range(4), key=expected.__getitem__)


def test_a_python_rule_sees_prompt_and_completion(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rule_pair.py").write_text(
        "def score(prompt, completion):\n    return len(prompt) + completion.count('a') / 100\n"
    )
    for row in rows_of(best_of_n(BestOfNConfig(**options, reward="rule:rule_pair:score", n=3))):
        expected = [len(row["prompt"]) + c["text"].count("a") / 100 for c in row["candidates"]]
        assert [c["score"] for c in row["candidates"]] == pytest.approx(expected)


def test_more_samples_score_higher(options, tmp_path):
    reward = rule_file(tmp_path, "rules:\n  - {matches: a, weight: 1}\n")
    means = []
    for n in (1, 16):
        options["out"] = tmp_path / f"{n}.jsonl"
        means.append(best_of_n(BestOfNConfig(**options, reward=reward, n=n)).summary["metrics"]["score_best"]["mean"])
    assert means[1] > means[0]


def test_generate_writes_what_was_sampled(options, prompts_file, base):
    result = generate(GenerateConfig(**options, n=3))
    rows = rows_of(result)
    assert [r["prompt"] for r in rows] == prompts_in(prompts_file)
    assert all(len(r["completions"]) == 3 for r in rows)
    assert result.summary["examples"] == 3 * len(rows)
    assert result.summary["rows"]["used"] == len(rows)
    completions = [c for r in rows for c in r["completions"]]
    assert {c["truncated"] for c in completions} == {True, False}
    assert all(c["tokens"] <= 8 and (c["tokens"] == 8 or not c["truncated"]) and c["logp"] < 0 for c in completions)
    prompts = [r["prompt"] for r in rows for _ in r["completions"]]
    lengths, cut = ([c[name] for c in completions] for name in ("tokens", "truncated"))
    figures = result.summary["metrics"]  # the prompts are the independent examples
    assert figures["length"] == pytest.approx(stats.mean(lengths, prompts).as_dict())
    assert figures["truncated"] == pytest.approx(stats.rate(cut, prompts).as_dict())
    assert figures["length"]["n"] == figures["truncated"]["n"] == len(rows)
    assert figures["truncated"]["mean"] == sum(cut) / len(completions)
    assert "</s>" not in "".join(c["text"] for c in completions)


def test_greedy_generation_is_hugging_face_s(options, base):
    rows = rows_of(generate(GenerateConfig(**options, temperature=0.0)))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    for row in rows:
        ids = tokenizer(row["prompt"], return_tensors="pt")
        ids.pop("token_type_ids", None)
        made = model.generate(**ids, do_sample=False, max_new_tokens=8)[0, ids["input_ids"].shape[1] :]
        assert row["completions"][0]["text"] == tokenizer.decode(made).removesuffix("</s>")


def test_same_seed_same_file(options, tmp_path):
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options["out"] = tmp_path / name
        generate(GenerateConfig(**options, seed=seed))
        texts.append(options["out"].read_text())
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("change", [{"temperature": 0.3}, {"max_new_tokens": 4}, {"limit": 3}, {"n": 2}])
def test_options_change_the_file(options, tmp_path, change):
    generate(GenerateConfig(**options))
    first = options["out"].read_text()
    generate(GenerateConfig(**(options | change | {"out": tmp_path / "other"})))
    assert (tmp_path / "other").read_text() != first
    assert change != {"limit": 3} or len((tmp_path / "other").read_text().splitlines()) == 3


def test_from_a_run_folder(options, train):
    """`--model RUN` takes its final/."""
    options["model"] = str(train("sft", steps=1).folder)
    assert rows_of(generate(GenerateConfig(**options)))


def test_an_existing_file_is_refused_before_any_work(options, monkeypatch):
    options["out"].write_text("precious")
    for config, command in (
        (GenerateConfig(**options), generate),
        (BestOfNConfig(**options, reward="rule:nothing:there"), best_of_n),
    ):
        with pytest.raises(InputError, match=r"choose another --out, or remove it$"):  # there is no --resume
            command(config)
    assert options["out"].read_text() == "precious"


def test_a_folder_is_no_file_to_write(options):
    """Seen before anything is sampled, an empty one too."""
    options["out"].mkdir()
    for config, command in (
        (GenerateConfig(**options), generate),
        (BestOfNConfig(**options, reward="rule:nothing:there"), best_of_n),
    ):
        with pytest.raises(InputError, match="folder"):
            command(config)


def test_a_prompt_beyond_the_positions_is_counted_and_the_rest_goes_on(options, make_model, write_rows, tmp_path):
    """Fewer bad rows than the share: numbered, left out; above it: refused with file and row."""
    options["model"] = str(make_model("llama", max_position_embeddings=24))
    prompts = ["ok"] * 30
    prompts[6] = "what can teddy do in the rain? " * 5
    options["prompts"] = str(write_rows(tmp_path / "prompts.jsonl", [{"prompt": p} for p in prompts]))
    result = generate(GenerateConfig(**options))
    assert len(rows_of(result)) == 29
    assert [rows for _, rows in result.summary["rows"]["dropped"].values()] == [[7]]
    options |= {"out": tmp_path / "other", "max_bad_share": 0.0}
    with pytest.raises(InputError, match=r"prompts\.jsonl.*7"):
        generate(GenerateConfig(**options))


def test_chat_prompts(options, make_model, write_rows, tmp_path):
    options["model"] = str(make_model("llama", tokenizer="chat"))
    chat = [{"role": "user", "content": "what can teddy do?"}]
    options["prompts"] = str(write_rows(tmp_path / "chats.jsonl", [{"prompt": chat}]))
    (row,) = rows_of(generate(GenerateConfig(**options)))
    assert row["prompt"] == chat


# --- the file as demonstrations


@pytest.mark.parametrize(("tokenizer", "limit"), [("plain", 16), ("chat", 12)])
def test_the_best_are_imitated_as_they_were_drawn(options, make_model, write_rows, tmp_path, tokenizer, limit):
    """Ids and end are the sampler's, which the text alone does not give: some respelt, some cut."""
    prompts = [f"what can {name} do" for name in ("teddy", "bruno", "mila", "otto", "ida", "leo")]
    asked = [[{"role": "user", "content": it}] for it in prompts] if tokenizer == "chat" else prompts
    options |= {
        "model": str(make_model("llama", tokenizer=tokenizer)),
        "prompts": str(write_rows(tmp_path / "asked.jsonl", [{"prompt": it} for it in asked])),
        "max_new_tokens": limit,
    }
    rows = rows_of(best_of_n(BestOfNConfig(**options, reward=rule_file(tmp_path, "rules: [{matches: a}]"), n=4)))
    read, counts, name = read_demonstrations(str(options["out"]))
    assert name == "prompt-completion"
    text = checkpoints.load_text(options["model"])
    bundles = dict(zip([it.origin.row for it in read], encode(read, counts, text, 100, 0.05, "best"), strict=True))
    kept = {at: row["candidates"][row["best"]] for at, row in enumerate(rows, 1)}
    assert {it["truncated"] for it in kept.values()} == {True, False}
    respelt = 0
    for at, bundle in bundles.items():
        [completion] = bundle.completions
        assert (completion.ids, completion.truncated) == (kept[at]["ids"], kept[at]["truncated"])
        plain = text.completion_ids(bundle.prompt, rows[at - 1]["completion"])
        respelt += plain[: len(completion)] != completion.ids
    assert respelt > 0
    cut = [at for at, it in kept.items() if it["truncated"]]
    assert counts.notes["an answer was drawn up to a length limit: it gets no EOS"] == (len(cut), cut)
    assert not any("not used" in note for note in counts.notes)


def best_row(**changes):
    best = {"text": "honey", "truncated": True, "ids": [5, 6]}
    row = {"prompt": "p", "completion": "honey", "tokenizer": "f", "best": 1, "candidates": [{"text": "tea"}, best]}
    return {**row, **changes}


@pytest.mark.parametrize(
    ("changes", "cut", "drawn", "note"),
    [
        ({}, True, Drawn("f", (5, 6)), None),
        ({"tokenizer": None}, True, None, None),
        ({"completion": "honey."}, False, None, "completion is not the text of the best candidate"),
        ({"best": 2}, False, None, "best and candidates are not those of best-of-n"),
        ({"best": "B", "candidates": ["A", "B"]}, False, None, "best and candidates are not those of best-of-n"),
    ],
)
def test_what_stands_beside_a_completion_is_used_where_it_belongs_to_it(
    write_rows, tmp_path, changes, cut, drawn, note
):
    [read], counts, _ = read_demonstrations(str(write_rows(tmp_path / "best.jsonl", [best_row(**changes)])))
    assert (read.cut, read.drawn) == (cut, drawn)
    assert [found for found in counts.notes if note and note in found] or not note


def test_what_another_format_cannot_hold_of_the_best_is_said(write_rows, tmp_path):
    rows = [best_row(), {**best_row(), "prompt": "q", "best": 0, "completion": "tea"}]
    counts = convert(str(write_rows(tmp_path / "best.jsonl", rows)), tmp_path / "chats.jsonl", "messages")
    assert counts.notes["messages does not hold the answers' truncated"] == (1, [1])
    assert counts.notes["messages does not hold the answers' ids as drawn"] == (1, [1])
    written = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    assert [row["messages"][-1]["content"] for row in written] == ["honey", "tea"]
