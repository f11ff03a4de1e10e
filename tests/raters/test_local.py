"""The local judge against plain transformers: no packing, no sharing, one sequence at a time."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from keel.config import Machine
from keel.errors import InputError
from keel.guidelines import DEFAULT_RUBRIC, Rubric
from keel.raters import Missing, Task, local
from keel.raters.local import load_local_judge, read_scores
from keel.raters.two_orders import swap
from keel.records import Answer, Preference

MACHINE = Machine(device="cpu", precision="fp32")
TWO = Rubric((("overall", "which is better?"), ("form", "which reads well, ok?")))
LETTERS = ("A", "B", "C", "D")
KINDS = ("llama", "plain"), ("qwen3", "chat"), ("gpt2", "bare")


@pytest.fixture(scope="module")
def lettered(make_model, tmp_path_factory):
    """`lettered("llama", "plain", seed=3)`: a model with a window that holds a pair, whose tokenizer knows capitals."""

    def make(architecture="llama", kind="plain", seed=3):
        window = "n_positions" if architecture == "gpt2" else "max_position_embeddings"
        source = make_model(architecture, tokenizer=kind, seed=seed, **{window: 2048})
        tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModelForCausalLM.from_pretrained(source)
        tokenizer.add_tokens(list("BCD"))
        torch.manual_seed(seed)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        folder = tmp_path_factory.mktemp("lettered")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(kind))
def folder(request, lettered):
    return lettered(*request.param)


@pytest.fixture(scope="module")
def tasks():
    words = ["hug", "nap, ok", "hop in the rain", "sing, let teddy swim", "read", "hide near it, ok."]
    return [
        Task(f"what can {name} do?", Answer(f" {a}"), Answer(f" {b}"))
        for name in ("teddy", "bruno")
        for a, b in zip(words, words[1:] + words[:1], strict=True)
    ]


def by_hand(folder, task, guideline):
    """Log-probability of each letter behind the question, by a plain forward pass over each."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    question = local._QUESTION.format(guideline=guideline, pair=local.show(task))
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        prompt, before = tokenizer(text, add_special_tokens=False).input_ids, ""
    else:
        prompt, before = tokenizer(question + "Verdict:").input_ids, " "
    found = {}
    for letter in LETTERS:
        ids = tokenizer(before + letter, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0].double()
        places = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
        found[letter] = sum(float(logits[at].log_softmax(-1)[i]) for at, i in zip(places, ids, strict=True))
    return found


def test_verdicts_are_those_of_the_log_probabilities(folder, tasks):
    """Numbers and verdicts, in both orders and both dimensions."""
    judge = load_local_judge(str(folder), MACHINE, TWO)
    results = dict(judge.rate(tasks))
    assert sorted(results) == list(range(len(tasks)))
    flips = 0
    for index, task in enumerate(tasks[:4]):
        assert [j.dimension for j in results[index]] == ["overall", "form"]
        for judgment, (name, guideline) in zip(results[index], TWO.dimensions, strict=True):
            shown, swapped = by_hand(folder, task, guideline), by_hand(folder, swap(task), guideline)
            raw = json.loads(judgment.raw)
            assert raw["as_shown"][name] == pytest.approx(shown, abs=2e-4)
            assert raw["swapped"][name] == pytest.approx(swapped, abs=2e-4)
            one, other = max(shown, key=shown.get), max(swapped, key=swapped.get)
            pairs = {("A", "B"): "first", ("B", "A"): "second", ("D", "D"): "both_bad"}
            assert judgment.verdict == Preference(pairs.get((one, other), "tie"))
            flips += (one, other) in (("A", "A"), ("B", "B"))
            assert (judgment.kind, judgment.rater, judgment.rubric) == ("judge", judge.identity, TWO.version)
            assert read_scores(judgment.raw)[name].preference == judgment.verdict
    again = load_local_judge(str(folder), MACHINE, TWO)
    list(again.rate(tasks[:4]))
    assert (again.position_flips, again.compared) == (flips, 8)


@pytest.fixture(scope="module")
def taught(lettered, tasks, tmp_path_factory):
    """A model whose head says A where the first answer is the longer one, and B where the second is.

    Its letters' rows are solved for, on the hidden states of a plain forward pass over both orders of each task.
    """
    source, folder = lettered("qwen3", "chat", 5), tmp_path_factory.mktemp("taught")
    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModelForCausalLM.from_pretrained(source).eval()
    states, targets = [], []
    for task in [*tasks, *map(swap, tasks)]:
        question = local._QUESTION.format(guideline=DEFAULT_RUBRIC.dimensions[0][1], pair=local.show(task))
        chat = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
        with torch.no_grad():
            states.append(model.model(ids).last_hidden_state[0, -1].double())
        targets.append(5.0 if len(task.first.text) > len(task.second.text) else -5.0)
    row = torch.linalg.lstsq(torch.stack(states), torch.tensor(targets, dtype=torch.double)).solution
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        for letter, sign in zip(LETTERS, (1, -1, 0, 0), strict=True):
            head[tokenizer.convert_tokens_to_ids(letter)] = sign * row.float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_knows_gives_its_verdict_wherever_the_answers_stand(taught, tasks):
    judge = load_local_judge(str(taught), MACHINE)
    for order in (tasks, [swap(t) for t in tasks]):
        for index, (judgment,) in judge.rate(order):
            longer = "first" if len(order[index].first.text) > len(order[index].second.text) else "second"
            assert judgment.verdict == Preference(longer)
    assert judge.position_flips == 0
    assert judge.compared == 2 * len(tasks)


def test_swapping_the_answers_mirrors_the_verdict(folder, tasks):
    judge = load_local_judge(str(folder), MACHINE)
    there, back = dict(judge.rate(tasks)), dict(judge.rate([swap(t) for t in tasks]))
    mirror = {"first": "second", "second": "first"}
    for index in there:
        outcome = there[index][0].verdict.outcome
        assert back[index][0].verdict.outcome == mirror.get(outcome, outcome)


def test_a_model_that_sees_nothing_ties(lettered, tasks):
    """One that reads nothing names the same place in both orders; that is counted and is no verdict."""
    judge = load_local_judge(str(lettered()), MACHINE)
    with torch.no_grad():
        judge.model.model.norm.weight.zero_()
    results = [judgments[0] for _, judgments in judge.rate(tasks)]
    assert {j.verdict.outcome for j in results} == {"tie"}
    assert judge.position_flips == judge.compared == len(tasks)


def test_a_tokenizer_without_the_letters_is_refused(make_model):
    """The tests' own tokenizer has no capital B: it would read three letters as one unknown."""
    with pytest.raises(InputError, match="apart"):
        load_local_judge(str(make_model("llama")), MACHINE)


def test_rounds_give_what_one_round_gives(folder, tasks, monkeypatch):
    whole = dict(load_local_judge(str(folder), MACHINE).rate(tasks))
    monkeypatch.setattr(local, "_AT_ONCE", 5)
    rounds = dict(load_local_judge(str(folder), MACHINE).rate(tasks))
    assert [whole[i][0].verdict for i in whole] == [rounds[i][0].verdict for i in whole]


def test_what_does_not_fit_is_missing_and_what_is_equal_a_tie(folder, tasks):
    judge = load_local_judge(str(folder), MACHINE)
    long = Task("what?", Answer("hop " * 2000), Answer("nap"))
    same = Task("what?", Answer(" hop "), Answer("hop"))
    results = dict(judge.rate([long, same, tasks[0]]))
    assert isinstance(results[0], Missing)
    assert "2048" in results[0].reason
    assert results[1][0].verdict == Preference("tie")
    assert results[1][0].raw == ""
    assert results[2][0].raw
    assert (judge.missing, judge.compared, judge.note()) == (1, 1, "1 missing")


def test_identity_names_weights_rubric_and_words(lettered, monkeypatch):
    folders = [lettered(seed=s) for s in (3, 4)]
    names = [load_local_judge(str(f), MACHINE).identity for f in (*folders, folders[0])]
    names.append(load_local_judge(str(folders[0]), MACHINE, TWO).identity)
    monkeypatch.setattr(local, "_TEMPLATE", "ffff")
    names.append(load_local_judge(str(folders[0]), MACHINE).identity)
    assert names[0] == names[2]
    assert len(set(names)) == 4


def test_broken_weights_stop_the_command(lettered, tasks):
    judge = load_local_judge(str(lettered()), MACHINE)
    with torch.no_grad():
        judge.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        list(judge.rate(tasks[:1]))
