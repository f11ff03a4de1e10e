"""`keel data check` as a user meets it: what is planted in a file is found, with its rows, and nothing else is."""

from __future__ import annotations

import json
import random
import re
import unicodedata

import pytest
import torch
from transformers import AutoTokenizer

from keel import cli
from keel.config import Machine
from keel.data import source
from keel.models import checkpoints
from keel.records import Answer, Judgment, Preference
from keel.sampling.local import LocalSampler
from keel.sampling.protocol import SamplingOptions, as_bundles, sample
from keel.store.keys import said_key
from keel.store.store import Store

WORDS = [
    *("bear", "honey", "river", "stone", "cloud", "lantern", "garden", "window"),
    *("meadow", "whistle", "pepper", "ribbon", "anchor", "velvet", "copper"),
]


def sentence(rng, least=5, most=25):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most))) + "."


def rows_like(count, seed=0):
    """Pairs of random sentences: nothing tells chosen from rejected, and no two prompts are alike."""
    rng = random.Random(seed)
    return [{"prompt": sentence(rng, 8), "chosen": sentence(rng), "rejected": sentence(rng)} for _ in range(count)]


@pytest.fixture
def check(tmp_path, write_rows, capfd):
    """`check(rows, …)`: exit code, findings by title, figures, standard error. The page is always written."""

    def run(rows, **options):
        data = rows if isinstance(rows, str) else write_rows(tmp_path / "data.jsonl", rows)
        out = tmp_path / "check.json"
        flags = {"data": data, "out": out, "page": tmp_path / "check.html"} | options
        words = [str(part) for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
        code = cli.main(["data", "check", *words])
        figures = json.loads(out.read_text(encoding="utf-8"))
        return code, {found["title"]: found for found in figures["findings"]}, figures, capfd.readouterr().err

    return run


def titled(findings, pattern):
    return next((found for title, found in findings.items() if re.search(pattern, title)), None)


# --- sound data -----------------------------------------------------------------------------------


def test_nothing_is_found_where_nothing_is_wrong(check):
    code, findings, figures, _ = check(rows_like(300))
    assert code == 0
    assert {found["level"] for found in findings.values()} <= {"good", "note"}
    assert titled(findings, "every row can be read")["level"] == "good"
    assert titled(findings, "length alone predicts little")["level"] == "good"
    assert titled(findings, "answer positions are unknown")
    assert figures["prompts"] == figures["rows"]["used"] == 300


# --- rows -----------------------------------------------------------------------------------------


def test_rows_that_are_wrong_are_named(check):
    rows = rows_like(200)
    rows[10] |= {"rejected": rows[10]["chosen"]}
    rows[20] |= {"chosen": ""}
    rows[30] = {**rows[31], "chosen": rows[31]["rejected"], "rejected": rows[31]["chosen"]}
    rows[40] = rows[41]
    code, findings, figures, _ = check(rows)
    assert code == 0
    assert titled(findings, "chosen equals rejected")["rows"] == [11]
    assert titled(findings, "empty chosen")["rows"] == [21]
    assert titled(findings, "contradictory pair")["rows"] == [31, 32]
    assert titled(findings, "exact duplicate")["rows"] == [42]
    assert titled(findings, "every row can be read") is None
    assert figures["rows"]["read"] == 200
    assert figures["rows"]["used"] == 196


def test_too_many_bad_rows_are_refused_after_all_has_been_told(check, tmp_path):
    rows = [*rows_like(80), *({"prompt": "p", "chosen": "same", "rejected": "same"} for _ in range(20))]
    code, findings, _, said = check(rows)
    assert code == 2
    assert titled(findings, "20.0% of the rows are bad")["level"] == "refused"
    assert "training would refuse these data" in said
    assert "Not fit to train on" in (tmp_path / "check.html").read_text(encoding="utf-8")
    assert check(rows, max_bad_share=0.3)[0] == 0


@pytest.mark.parametrize(
    ("row", "kind"),
    [({"prompt": "one {}?", "completion": "answer {}"}, "demonstrations"), ({"prompt": "{}?"}, "prompts")],
)
def test_other_data_are_checked_too(check, row, kind):
    rows = [{key: value.format(WORDS[i] * 3) for key, value in row.items()} for i in range(10)]
    rows[3]["prompt"] = "write to bear@example.com, please"
    code, findings, figures, _ = check(rows)
    assert code == 0
    assert figures["kind"] == kind
    assert figures["rows"]["used"] == 10
    assert titled(findings, "personal data in 1 row")["rows"] == [4]
    assert "cues" not in figures


@pytest.mark.parametrize(
    ("change", "title", "level"),
    [
        ({"chosen": "N/A"}, "a missing value written as a word", "warning"),
        ({"prompt": "the river is "}, "the prompt ends in a space", "warning"),
        ({"rejected": "bear<|eot_id|>"}, "a text spells a control token", "warning"),
        ({"good_score": 1}, "good_score", None),
        ({"rating_chosen": 1, "rating_rejected": 2}, "rating_chosen <= rating_rejected, against the order", "warning"),
        ({"rejected": "itâ€™s"}, "characters that were decoded wrongly", "note"),
        ({"chosen": "a &lt; b"}, "an HTML entity", "note"),
        ({"prompt": [{"role": "user", "content": "bear?"}]}, "a chat among plain prompts", "warning"),
        ({"chosen": "a\nb", "rejected": "a b"}, "the answers differ in line breaks", "note"),
    ],
)
def test_what_is_doubtful_is_told_with_its_rows(check, change, title, level):
    rows = rows_like(30)
    rows[6] = {**rows[6], **change}
    if isinstance(rows[6]["prompt"], list):
        rows[6] |= {side: [{"role": "assistant", "content": rows[6][side]}] for side in ("chosen", "rejected")}
    code, findings, _, _ = check(rows)
    found = titled(findings, f"^1 row: {re.escape(title)}")
    assert code == 0
    assert (found and (found["level"], found["rows"])) == (level and (level, [7]))
    assert not found or found["text"] != "Used all the same."


# --- prompts --------------------------------------------------------------------------------------


def test_leaks_between_splits(check, tmp_path, write_rows):
    data, held = rows_like(100), rows_like(20, seed=1)
    clean = write_rows(tmp_path / "held.jsonl", held)
    assert titled(check(data, eval_data=clean)[1], "no held-out prompt is in the data")
    held[4]["prompt"] = data[50]["prompt"]
    held[7]["prompt"] = data[60]["prompt"].upper() + " Indeed!"
    data[60]["prompt"] = data[60]["prompt"] + " " + data[60]["prompt"]  # long enough for one word more to be little
    held[7]["prompt"] = data[60]["prompt"].upper() + " Indeed!"
    code, findings, figures, said = check(data, eval_data=write_rows(tmp_path / "leaky.jsonl", held))
    assert code == 2
    assert titled(findings, "^leak of 1 held-out row of")["rows"] == [5]
    assert titled(findings, "near leak of 1 held-out row of")["rows"] == [8]
    assert (figures["leak"]["exact"]["count"], figures["leak"]["near"]["count"]) == (1, 1)
    assert "leak" in said


def test_a_leak_in_other_bytes_is_a_leak_and_no_near_one(check, write_rows, tmp_path):
    data, held = rows_like(60), rows_like(10, seed=1)
    data[7]["prompt"] = "Wo überwintern die Zugvögel aus dem hohen Norden, und fressen sie dort Früchte?"
    held[2]["prompt"] = unicodedata.normalize("NFD", data[7]["prompt"])
    held[3]["prompt"] = data[7]["prompt"].replace(" und ", " und\u00a0\u200b ")
    held[4]["prompt"] = data[7]["prompt"].lower()
    code, findings, figures, _ = check(data, eval_data=write_rows(tmp_path / "held.jsonl", held))
    assert code == 2
    found = titled(findings, "^leak of 2 held-out rows of")
    assert found["rows"] == [3, 4]
    assert "2 of them written otherwise" in found["text"]
    assert titled(findings, "near leak of 1 held-out row of")["rows"] == [5]
    assert (figures["leak"]["exact"]["count"], figures["leak"]["near"]["count"]) == (2, 1)


def test_prompts_that_are_nearly_alike(check):
    rows = rows_like(50)
    rows[5]["prompt"] = " ".join(WORDS)
    rows[9]["prompt"] = " ".join(WORDS).title() + "!!"
    found = titled(check(rows)[1], "2 of 50 prompts are nearly alike")
    assert found["rows"] == [6, 10]


def test_personal_data_by_kind(check):
    rows = rows_like(60)
    rows[3]["chosen"] += " Write to honey.bear@example.org."
    rows[4]["prompt"] = [{"role": "user", "content": "Call +44 20 7946 0958, or paddington@example.net"}]
    rows[4] |= {side: [{"role": "assistant", "content": rows[4][side]}] for side in ("chosen", "rejected")}
    _, findings, figures, _ = check(rows)
    assert titled(findings, "personal data in 2 rows")["rows"] == [4, 5]
    assert figures["personal"] == {"email": {"count": 2, "rows": [4, 5]}, "phone": {"count": 1, "rows": [5]}}


def test_personal_data_in_fields_of_turns_and_answers(check):
    """Of the prompt's tools and of both answers' calls and thoughts."""
    rows = rows_like(60)
    for at in (6, 7, 8):
        rows[at]["prompt"] = [{"role": "user", "content": rows[at]["prompt"]}]
        for side in ("chosen", "rejected"):
            rows[at][side] = [{"role": "assistant", "content": rows[at][side]}]
    call = {"type": "function", "function": {"name": "send", "arguments": '{"to": {"address": "bear@example.org"}}'}}
    rows[6]["rejected"][0]["tool_calls"] = [call]
    rows[7]["chosen"][0]["reasoning_content"] = "Their number is +44 20 7946 0958."
    tool = {"type": "function", "function": {"name": "send", "description": "Mails as bear@example.net."}}
    rows[8]["tools"] = [tool]
    _, _, figures, _ = check(rows)
    assert figures["personal"] == {"email": {"count": 2, "rows": [7, 9]}, "phone": {"count": 1, "rows": [8]}}


def test_personal_data_in_the_thoughts_of_a_demonstration(check):
    turns = [{"role": "user", "content": "Sun?"}, {"role": "assistant", "content": "Yes.", "reasoning_content": "?"}]
    rows = [{"messages": turns}, {"messages": [turns[0], {**turns[1], "reasoning_content": "Ask bear@example.org."}]}]
    assert check(rows)[2]["personal"] == {"email": {"count": 1, "rows": [2]}}


# --- surface cues ---------------------------------------------------------------------------------


def test_length_and_marks(check):
    rng = random.Random(3)
    rows = rows_like(300)
    for row in rows:
        if (len(row["chosen"]) < len(row["rejected"])) == (rng.random() < 0.9):
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        row["chosen"] = "**So:** " + row["chosen"] if rng.random() < 0.8 else row["chosen"]
    _, findings, figures, _ = check(rows)
    assert titled(findings, "length alone predicts [89].% of preferences")["level"] == "warning"
    cue = "a surface cue alone predicts [89].% of preferences: chosen answers “Markdown”"
    assert titled(findings, cue)["level"] == "warning"
    assert figures["length"]["longer_wins"]["low"] > 0.8


def test_length_that_tells_as_much_as_in_votes_at_large(check):
    """63 % of 600: more than chance, not clearly more than 62 %. Neither a warning nor "little"."""
    rows = rows_like(600)
    for at, row in enumerate(rows):
        short, long = "no, not now", "yes, " * 8 + "now and then"
        row["chosen"], row["rejected"] = (long, short) if at % 100 < 63 else (short, long)
    _, findings, _, _ = check(rows)
    found = titled(findings, "length alone predicts 63% of preferences")
    assert (found["level"], "people's votes at large, 62%" in found["text"]) == ("note", True)
    assert not titled(findings, "length alone predicts little")


def test_a_mark_of_rejected_answers(check):
    rows = [row | {"rejected": " " + row["rejected"]} for row in rows_like(100)]
    found = titled(check(rows)[1], "rejected answers “begins with white space”")
    assert found["level"] == "warning"
    assert "0% of the chosen and 100% of the rejected" in found["text"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda row: {"chosen": row["chosen"] + "</s>"}, r"chosen answers “ends with '\.</s>'”"),
        (lambda row: {"rejected": "Certainly, " + row["rejected"]}, r"rejected answers “begins with 'Certainly,'”"),
        (lambda row: {"rejected": row["rejected"][:-1]}, r"chosen answers “ends with '\.'”"),
    ],
)
def test_an_opening_or_an_ending_that_one_side_has(check, change, name):
    rows = [row | change(row) for row in rows_like(100)]
    assert titled(check(rows)[1], f"a surface cue alone predicts 100% of preferences: {name}")["level"] == "warning"
    assert titled(check(rows[:10] + rows_like(90, seed=1))[1], name) is None


@pytest.mark.parametrize(("share", "level"), [(0.5, "good"), (0.7, "warning"), (0.3, "warning")])
def test_sides(check, share, level):
    """Columns that keep the order in which answers were shown."""
    rng = random.Random(5)
    made = rows_like(600)
    rows = [
        {
            "instruction": row["prompt"],
            "output_1": row["chosen"],
            "output_2": row["rejected"],
            "generator_1": "a",
            "generator_2": "b",
            "preference": 1 if rng.random() < share else 2,
        }
        for row in made
    ]
    found = titled(check(rows)[1], "answer positions are balanced" if level == "good" else "answer shown first wins")
    assert found["level"] == level


@pytest.mark.parametrize("agreeing", [True, False])
def test_raters_who_agree_no_more_than_chance(check, tmp_path, agreeing):
    rng = random.Random(7)
    source = f"store:{tmp_path / 'votes.db'}"
    with Store(source, create=True) as store:
        for row in rows_like(150):
            said = rng.choice(("first", "second"))
            answers = Answer(row["chosen"], model="one"), Answer(row["rejected"], model="two")
            votes = [said, said if agreeing else rng.choice(("first", "second"))]
            given = [Judgment(row["prompt"], answers, Preference(v), rater=f"r{i}") for i, v in enumerate(votes)]
            store.append((said_key(judgment), judgment) for judgment in given)
    _, findings, figures, _ = check(source)
    found = titled(findings, "raters( hardly agree|' agreement)")
    assert found["level"] == ("note" if agreeing else "warning")
    assert figures["agreement"][0]["shared"] == 150
    assert figures["judgments"] == 300


def votes_in(source, count):
    with Store(source, create=True) as store:
        for row in rows_like(count):
            judgment = Judgment(row["prompt"], (Answer(row["chosen"]), Answer(row["rejected"])), Preference("first"))
            store.append([(said_key(judgment), judgment)])


def test_what_is_said_of_raters_is_of_the_same_judgments(check, store_source, monkeypatch):
    """Though others write between the reading of pairs and the counting of raters."""
    votes_in(store_source, 60)
    figures = check(store_source)[2]
    assert figures["survey"]["judgments"] == figures["judgments"] == 60
    limited = check(store_source, limit=20)[2]
    assert limited["survey"]["judgments"] == limited["judgments"] < 60
    assert limited["data_hash"] != figures["data_hash"]
    count = source.count_store

    def meanwhile(store):
        late = Judgment("late", (Answer("a"), Answer("b")), Preference("first"), rater="late")
        with Store(store_source) as other:
            other.append([(said_key(late), late)])
        return count(store)

    monkeypatch.setattr(source, "count_store", meanwhile)
    later = check(store_source)[2]
    assert later["data_hash"] == figures["data_hash"]
    assert later["survey"]["judgments"] == later["judgments"] == 60
    with Store(store_source) as other:
        assert count(other).judgments == 61


# --- against a model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stories(shared):
    return str(shared / "models" / "stories260k")


@pytest.fixture(scope="module")
def said(stories):
    """Openings of stories, and four ways in which the model goes on with each."""
    machine = Machine(device="cpu", precision="fp32")
    model, text = checkpoints.load_policy(stories, machine), checkpoints.load_text(stories)

    def draw(prompts, n, length, name):
        sampler = LocalSampler(model, text, SamplingOptions(length, max_rows=512), 3)
        return sample(sampler, as_bundles(text, prompts), n, name)

    (openings,) = draw([""], 120, 12, "openings")
    prompts = sorted({c.text for c in openings.completions})
    return draw(prompts, 2, 40, "answers")


def test_pairs_of_the_model_itself_and_of_another_writer(check, stories, said, tmp_path):
    """In one store: half the prompts answered by the model, half in words that it would not use."""
    rng = random.Random(11)
    source = f"store:{tmp_path / 'mixed.db'}"
    own, other = said[::2], said[1::2]
    with Store(source, create=True) as store:
        for i, bundle in enumerate([*own, *other]):
            if i < len(own):
                answers = tuple(Answer(c.text, model="stories", truncated=c.truncated) for c in bundle.completions)
            else:
                answers = Answer(sentence(rng), model="words"), Answer(sentence(rng), model="words")
            given = Judgment(bundle.prompt, answers, Preference(rng.choice(("first", "second"))))
            store.append([(said_key(given), given)])
    code, _, figures, _ = check(source, model=stories, seed=4)
    assert code == 0
    sources = {source["name"]: source for source in figures["distribution"]["sources"]}
    assert sources["words"]["auc"]["low"] > 0.9
    assert sources["stories"]["auc"]["mean"] < 0.65
    assert figures["distribution"]["logp_per_token"]["own"]["mean"] > -2.5
    counted = figures["distribution"]["histogram"]
    assert sum(counted["pairs"]) == sum(counted["own"]) == figures["rows"]["used"]


def test_a_verdict_and_what_it_means(check, stories):
    rows = rows_like(60)
    _, findings, figures, _ = check(rows, model=stories)
    found = titled(findings, "the pairs do not look like what the model says")
    assert found["level"] == "warning"
    assert "keel sft" in found["text"]
    assert figures["distribution"]["verdict"] == "off"
    few = check(rows, model=stories, compare=20)[1]
    assert titled(few, "too few pairs to compare")


def test_tokens_and_rows_that_do_not_fit(check, stories):
    rows = rows_like(60)
    rows[7]["prompt"] = sentence(random.Random(0), 900, 900)
    rows[9]["rejected"] = sentence(random.Random(1), 200, 200)
    code, findings, figures, _ = check(rows, model=stories, max_length=300, compare=1)
    assert code == 0
    positions = check(rows, model=stories, max_length=100_000, compare=1)[1]  # the model has 512
    assert titled(positions, "leaves no room")["rows"] == [8]
    code, findings, figures, _ = check(rows, model=stories, max_length=300, compare=1)
    assert titled(findings, "leaves no room")["rows"] == [8]
    assert titled(findings, "cut at the length limit")["rows"] == [10]
    tokenizer = AutoTokenizer.from_pretrained(stories)
    kept = [row["chosen"] for row in rows if row is not rows[7]]
    ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    lengths = [1 + len(ids("\n" + text)) - len(ids("\n")) for text in kept]  # as behind another text
    told = figures["tokens"]["chosen"]
    assert told["max"] == max(lengths)
    assert told["median"] == float(torch.tensor(lengths, dtype=torch.float64).quantile(0.5))
    assert figures["tokens"]["cut"] == 1


def test_a_long_prompt_beside_long_answers_does_not_end_the_comparison(check, stories):
    """The model has 512 positions: one prompt of 400 tokens and answers of 200 elsewhere fit apart, not together."""
    rows = rows_like(60)
    rows[7]["prompt"] = sentence(random.Random(0), 130, 130)
    for at in range(20, 40):
        rows[at]["chosen"] = sentence(random.Random(at), 120, 120)
    code, findings, figures, _ = check(rows, model=stories, compare=60)
    assert code == 0
    left_out = figures["distribution"]["too_long"]
    assert 1 <= left_out <= 3  # the long one, and what is longer than the prompts of 95 pairs in 100
    assert titled(findings, "not compared: too long")
    assert figures["distribution"]["pairs"] == figures["distribution"]["of"] - left_out


# --- the page -------------------------------------------------------------------------------------


def test_the_page_is_one_file_and_escapes_what_it_shows(check, tmp_path):
    rows = rows_like(50)
    for at in (3, 4):
        rows[at]["prompt"] = '<script>alert("bear")</script><img src=http://evil.example/x> ' + " ".join(WORDS)
    check(rows)
    page = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img" not in page
    assert "{{" not in page
    assert "&lt;script&gt;" not in page  # equal prompts are one
    rows[4]["prompt"] += " again"
    check(rows)
    page = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert page.count("&lt;script&gt;") == 1
    assert {r for r in re.findall(r'href="([^"]*)"', page) if not r.startswith("#")} == {"data:,"}


def test_the_page_of_pairs_that_all_go_one_way(check, tmp_path):
    """The longer answer always wins, at whatever number of prompts: an interval that ends at 1 is drawn."""
    for count in range(40, 52):
        rows = [row | {"chosen": "bear " * (2 + i % 6), "rejected": "bear"} for i, row in enumerate(rows_like(count))]
        assert check(rows)[0] == 0
        assert "<svg" in (tmp_path / "check.html").read_text(encoding="utf-8")


def test_the_page_of_pairs_of_two_lengths(check, tmp_path):
    """One difference of lengths is nothing to draw."""
    rows = [row | {"chosen": "bear", "rejected": "moss and stones"} for row in rows_like(5)]
    assert check(rows)[0] == 0
    assert "<svg" not in (tmp_path / "check.html").read_text(encoding="utf-8")


def test_refusals_name_file_and_remedy(check, tmp_path, write_rows, capfd):
    file = write_rows(tmp_path / "odd.jsonl", [{"a": 1}])
    assert cli.main(["data", "check", "--data", str(file)]) == 2
    assert "odd.jsonl: no column" in capfd.readouterr().err
    assert cli.main(["data", "check", "--data", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capfd.readouterr().err


def test_a_few_pairs_say_nothing_of_sides(check, tmp_path):
    _, findings, figures, _ = check(rows_like(12))
    assert titled(findings, "positions") is None
    assert figures["sides_recorded"] is None
    assert "Too few preferences have a winner" in (tmp_path / "check.html").read_text(encoding="utf-8")


# --- several dimensions ---------------------------------------------------------------------------


def test_dimensions_that_disagree_are_no_contradiction_but_one_vote(check, tmp_path):
    """Of 40 contests the better tone always stands against the better facts, and facts weigh more."""
    source = f"store:{tmp_path}/s.db"
    with Store(source, create=True) as store:
        for row in rows_like(40):
            answers = Answer(row["chosen"]), Answer(row["rejected"])
            for dimension, verdict in (("tone", Preference("second", 1)), ("facts", Preference("first", 3))):
                judgment = Judgment(row["prompt"], answers, verdict, rater="ana", kind="person", dimension=dimension)
                store.append([(said_key(judgment), judgment)])
    code, findings, figures, _ = check(source)
    assert (code, figures["rows"]["used"], figures["rows"]["dropped"]) == (0, 40, {})
    assert titled(findings, "every row can be read")


def test_contradictions_in_a_store_name_the_way_to_one_dimension(check, tmp_path):
    source = f"store:{tmp_path}/s.db"
    with Store(source, create=True) as store:
        for outcome in ("first", "second"):
            judgment = Judgment("p", (Answer("a"), Answer("b")), Preference(outcome), kind="person", dimension="tone")
            store.append([(said_key(judgment), judgment)])
        for row in rows_like(30):
            judgment = Judgment(row["prompt"], (Answer(row["chosen"]), Answer(row["rejected"])), Preference("first"))
            store.append([(said_key(judgment), judgment)])
    code, findings, _, _ = check(source)
    assert code == 2
    assert f"take one dimension: {source}?dimension=NAME" in titled(findings, "contradictory pair")["text"]
    _, findings, _, _ = check(f"{source}?dimension=overall")
    assert titled(findings, "contradictory pair") is None
