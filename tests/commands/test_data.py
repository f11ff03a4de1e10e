"""`keel data` as a user meets it, on files and on stores."""

from __future__ import annotations

import gzip
import json
import re
from hashlib import blake2b

import krippendorff
import numpy as np
import pytest
import sqlalchemy as sa
import tests.reading as sources
from sklearn.metrics import cohen_kappa_score
from tests.reading import read_pairs

from keel import cli
from keel.annotation.queue import Queue
from keel.annotation.tasks import NewTask
from keel.data import checks
from keel.records import Answer, Judgment, Preference, Ranking
from keel.store.keys import said_key
from keel.store.store import Store
from keel.text.tokenisation import prompt_key

ROWS = [
    {"prompt": "a?", "chosen": "yes, of course", "rejected": "no", "margin": 2.0},
    {"prompt": "a?", "chosen": "no", "rejected": "maybe"},
    {"prompt": "b?", "chosen": "no", "rejected": "yes, of course"},
    {"prompt": "c?", "chosen": None, "rejected": "x"},
    *({"prompt": f"{i}?", "chosen": "right", "rejected": "wrong"} for i in range(36)),
]


@pytest.fixture
def file(tmp_path, write_rows):
    return write_rows(tmp_path / "pairs.jsonl", ROWS)


@pytest.fixture
def keel(capfd):
    """`keel("data", "stats", data=…)`: exit code, standard output, standard error."""

    def run(*words, **options):
        capfd.readouterr()
        flags = [str(part) for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
        code = cli.main([*words, *flags])
        return code, *capfd.readouterr()

    return run


# --- into a store and out of it -------------------------------------------------------------------


def test_a_file_goes_into_a_store_once(keel, file, store_source):
    code, _, err = keel("data", "convert", data=file, out=store_source)
    assert code == 0
    assert "40 rows read, 39 used, 1 dropped" in err
    assert "'no chosen': row 4" in err
    assert "39 judgments more" in err
    assert "0 judgments more" in keel("data", "convert", data=file, out=store_source)[2]


def test_what_went_into_a_store_comes_out_as_it_was(keel, file, store_source, tmp_path):
    """Through the store and back into TRL's columns: the same rows but for their order."""
    keel("data", "convert", data=file, out=store_source)
    code, out, _ = keel("data", "convert", data=store_source, out=tmp_path / "back.jsonl", to="trl")
    assert (code, out.strip()) == (0, str(tmp_path / "back.jsonl"))
    back = [json.loads(line) for line in (tmp_path / "back.jsonl").read_text().splitlines()]
    by_text = lambda row: (row["prompt"], row["chosen"])  # noqa: E731
    assert sorted(back, key=by_text) == sorted((r for r in ROWS if r["chosen"]), key=by_text)


def test_a_conversation_with_all_that_trl_can_carry(keel, store_source, tmp_path, write_rows):
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    answer = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    row = {"prompt": chat, "chosen": answer("hello"), "rejected": answer("what"), "margin": 1.5}
    row |= {"rater": "gpt", "dimension": "tone", "feedback": "ai", "source": "logs", "turns": 1}
    file = write_rows(tmp_path / "chat.jsonl", [row])
    keel("data", "convert", data=file, out=store_source)
    keel("data", "convert", data=store_source, out=tmp_path / "back.jsonl", to="trl")
    assert json.loads((tmp_path / "back.jsonl").read_text()) == row


def test_a_target_needs_a_format(keel, file, tmp_path):
    code, _, err = keel("data", "convert", data=file, out=tmp_path / "x.jsonl")
    assert code == 2
    assert "--to trl" in err


def test_too_many_bad_rows(keel, file, store_source):
    code, _, err = keel("data", "convert", data=file, out=store_source, max_bad_share=0.01)
    assert code == 2
    assert "1 of 40 rows are bad" in err


@pytest.mark.parametrize(
    ("name", "rows", "used", "judgments"),
    [
        ("hh-harmless-test.jsonl.gz", 2312, 2307, 2307),
        ("oasst-en-100-trees.jsonl.gz", 100, 100, 212),
        ("pandalm-testset-v1.json.gz", 999, 992, 2976),
        ("alpaca-eval-judgments.jsonl.gz", 6437, 6437, 6437),
    ],
)
def test_real_files_go_into_a_store(keel, shared, tmp_path, name, rows, used, judgments):
    source = f"store:{tmp_path}/s.db"
    _, _, err = keel("data", "convert", data=shared / "data" / name, out=source)
    assert f"{rows:,} rows read, {used:,} used, {rows - used} dropped" in err
    keel("data", "stats", data=source, out=tmp_path / "store.json")
    keel("data", "stats", data=shared / "data" / name, out=tmp_path / "file.json")
    in_store, in_file = (json.loads((tmp_path / f"{kind}.json").read_text()) for kind in ("store", "file"))
    assert in_store == in_file
    assert in_store["judgments"] == judgments


# --- agreement ------------------------------------------------------------------------------------


@pytest.mark.parametrize("through_a_store", [False, True])
def test_three_annotators_agree_as_other_libraries_say(keel, shared, tmp_path, through_a_store):
    """Cohen's kappa by scikit-learn and alpha by krippendorff, from the raw file's rows that have text in them."""
    source = shared / "data" / "pandalm-testset-v1.json.gz"
    raw = [
        row
        for row in json.loads(gzip.decompress(source.read_bytes()))
        if isinstance(row["response1"], str) and isinstance(row["response2"], str) and row["instruction"].strip()
    ]
    votes = np.array([[row[f"annotator{i}"] for row in raw] for i in (1, 2, 3)])
    if through_a_store:
        keel("data", "convert", data=source, out=f"store:{tmp_path}/s.db")
        source = f"store:{tmp_path}/s.db"
    assert keel("data", "agreement", data=source, out=tmp_path / "found.json")[0] == 0
    (found,) = json.loads((tmp_path / "found.json").read_text())["agreement"]
    assert found["alpha"]["mean"] == pytest.approx(krippendorff.alpha(votes, level_of_measurement="nominal"))
    assert found["shared"] == len(raw)
    kappas = {(pair["first"], pair["second"]): pair["kappa"] for pair in found["raters"]}
    for a, b in ((1, 2), (1, 3), (2, 3)):
        expected = cohen_kappa_score(votes[a - 1], votes[b - 1])
        assert kappas[f"annotator{a}", f"annotator{b}"] == pytest.approx(expected)


def test_agreement_of_one_rater_alone_says_so(keel, file):
    code, out, _ = keel("data", "agreement", data=file)
    assert code == 0
    assert "39 comparisons, 0 by two raters or more: agreement cannot be told" in out


# --- a file's own names ---------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, write_rows):
    rows = [{"ask": f"{i}?", "x": "yes, do", "y": "no", "vote": i % 2, "who": "ana"} for i in range(20)]
    return write_rows(tmp_path / "own.jsonl", rows)


SPEC = "prompt=ask,response_a=x,response_b=y,preference=vote,rater=who"


def test_every_command_on_data_takes_names_of_columns(keel, own, store_source, tmp_path):
    for words in (("stats",), ("agreement",), ("check",)):
        assert keel("data", *words, data=own)[0] == 2
        code, _, err = keel("data", *words, data=own, columns=SPEC)
        assert code == 0, err
    assert "10" in keel("data", "stats", data=own, columns=SPEC)[1]
    code, _, err = keel("data", "convert", data=own, columns=SPEC, out=store_source)
    assert (code, "20 judgments more" in err) == (0, True)
    assert "note: 20 'preference read as 0 = the first answer, 1 = the second'" in err
    assert keel("data", "convert", data=own, columns=SPEC, out=tmp_path / "p.jsonl", to="trl")[0] == 0
    assert keel("data", "split", data=own, columns=SPEC, out=tmp_path / "parts")[0] == 0
    held = [json.loads(line) for line in (tmp_path / "parts" / "held-out.jsonl").read_text().splitlines()]
    assert {(row["chosen"], row["rejected"]) for row in held} <= {("yes, do", "no"), ("no", "yes, do")}
    assert len(held) == 2
    assert keel("data", "check", data=own, eval_data=own, columns=SPEC)[0] == 2  # the same file: a leak


def test_what_split_writes_is_the_pair_with_all_that_is_known(keel, tmp_path, write_rows):
    rows = [
        {
            "prompt": f"{i}?",
            "chosen": "yes",
            "rejected": "no",
            "feedback": "ai",
            "margin": 2.0,
            "chosen_truncated": True,
        }
        for i in range(10)
    ]
    keel("data", "split", data=write_rows(tmp_path / "a.jsonl", rows), out=tmp_path / "parts", holdout=0.5)
    parts = (tmp_path / "parts" / f"{part}.jsonl" for part in ("train", "held-out"))
    written = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    assert sorted(written, key=lambda row: row["prompt"]) == rows


# --- stats, split ---------------------------------------------------------------------------------


def test_stats_on_screen(keel, file):
    code, out, _ = keel("data", "stats", data=file)
    assert code == 0
    assert "38 prompts, 77 answers, 39 judgments" in out
    assert "answer positions are unknown" in out
    assert "the longer answer wins 0.333" in out  # 1 of 3; right and wrong are equally long
    assert "Traceback" not in out


def people(source, outcomes, raters=("ana",)):
    """A store in which people prefer what they were shown left, right or neither: "first", "second", "tie"."""
    with Store(source, create=True) as store:
        queue = Queue(store)
        queue.add((NewTask(f"{i}?", (Answer("a"), Answer("b"))) for i in range(len(outcomes))), overlap=len(raters))
        for outcome in outcomes:
            for rater in raters:
                queue.judge(rater, queue.next(rater).key, {"overall": Preference(outcome)})
    return source


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        (["tie"] * 6 + ["first"], "the answer shown first wins 1.000"),
        (["first"] * 40, "the answer shown first wins 1.000"),  # raters who always take the left one
        (["second"] * 40, "the answer shown first wins 0.000"),
        (["tie"] * 6, ""),
    ],
)
def test_of_what_people_judged_here_sides_are_on_record(keel, store_source, outcomes, says):
    _, out, _ = keel("data", "stats", data=people(store_source, outcomes))
    assert "answer positions" not in out
    assert says in out


def test_pairs_of_a_file_hide_no_side_of_what_people_judged_here(keel, file, store_source):
    """40 pairs of a file that names the better one first, and 4 votes of which 1 was for the left one."""
    keel("data", "convert", data=file, out=people(store_source, ["first", "second", "second", "second"]))
    assert "the answer shown first wins 0.250" in keel("data", "stats", data=store_source)[1]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([1] * 19, "19 preferences with a winner: too few to tell whether answer positions are known"),
        ([1], "1 preference with a winner: too few"),
        ([1] * 20, "first always wins: these data name the better one first, answer positions are unknown"),
        ([2] * 20, "the answer shown second always wins"),
        ([1] * 18 + [2], "the answer shown first wins 0.947"),
        ([0] * 30, "overall"),
    ],
)
@pytest.mark.parametrize("through_a_store", [False, True])
def test_a_file_needs_some_preferences_to_say_that_sides_are_unknown(
    keel, tmp_path, write_rows, rows, says, through_a_store
):
    data = [{"instruction": f"{i}?", "response1": "a", "response2": "b", "annotator1": r} for i, r in enumerate(rows)]
    source = write_rows(tmp_path / "votes.jsonl", data)
    if through_a_store:
        keel("data", "convert", data=source, out=f"store:{tmp_path}/s.db")
        source = f"store:{tmp_path}/s.db"
    out = keel("data", "stats", data=source)[1]
    assert says in out
    if 1 not in rows and 2 not in rows:
        assert "answer positions" not in out


def test_one_is_told_in_the_singular_and_an_adjudicator_once(keel, store_source):
    people(store_source, ["tie"])
    with Store(store_source) as store:
        queue = Queue(store)
        queue.adjudicate("lead", 1, {"overall": Preference("first")})
        queue.adjudicate("lead", 1, {"overall": Preference("second")})
    _, out, _ = keel("data", "stats", data=store_source)
    assert "1 prompt, 2 answers, 2 judgments" in out
    assert "1 judgment retracted" in out
    assert re.search(r"^lead \(adjudicator\) +1 *$", out, re.M)
    assert re.search(r"^ana \(person\) +1 *$", out, re.M)
    assert "overall: 1 comparison, 0 by" in keel("data", "agreement", data=store_source)[1]


def test_split_leaves_no_prompt_on_both_sides(keel, file, tmp_path):
    code, out, _ = keel("data", "split", data=file, out=tmp_path / "parts", holdout=0.25)
    assert (code, out.strip()) == (0, str(tmp_path / "parts"))
    parts = [read_pairs(str(tmp_path / "parts" / f"{name}.jsonl"))[0] for name in ("train", "held-out")]
    prompts = [{prompt_key(pair.prompt) for pair in part} for part in parts]
    assert not prompts[0] & prompts[1]
    assert len(parts[0]) + len(parts[1]) == 39
    assert 9 <= len(parts[1]) <= 11
    assert [pair.margin for part in parts for pair in part if pair.margin] == [2.0]
    keel("data", "split", data=file, out=tmp_path / "again", holdout=0.25)
    keel("data", "split", data=file, out=tmp_path / "other", holdout=0.25, seed=1)
    held = [(tmp_path / name / "held-out.jsonl").read_text() for name in ("parts", "again", "other")]
    assert held[0] == held[1] != held[2]
    assert keel("data", "split", data=file, out=tmp_path / "parts")[0] == 2


def test_split_refuses_text_that_would_be_read_back_as_messages(keel, tmp_path, write_rows):
    talk = json.dumps([{"role": "assistant", "content": "yes"}])
    rows = [{"prompt": f"{i}?", "responses": [talk if i == 7 else "yes", "no"], "scores": [2, 1]} for i in range(10)]
    code, _, err = keel("data", "split", data=write_rows(tmp_path / "a.jsonl", rows), out=tmp_path / "parts")
    assert (code, (tmp_path / "parts").exists()) == (2, False)
    assert "a.jsonl row 8: trl cannot hold the pair (chosen is text that a reader would take for messages)" in err


# --- stores ---------------------------------------------------------------------------------------


def test_a_person_is_forgotten_and_named_stores_join(keel, tmp_path, write_rows):
    votes = [{"prompt": "p", "chosen": "a", "rejected": f"b{i}", "rater": f"person-{i}"} for i in range(3)]
    for name, rows in (("one", votes[:2]), ("two", votes[1:])):
        file = write_rows(tmp_path / f"{name}.jsonl", rows)
        keel("data", "convert", data=file, out=f"store:{tmp_path}/{name}.db")
    one, two = (f"store:{tmp_path}/{name}.db" for name in ("one", "two"))
    assert "2 judgments more" in keel("data", "merge", store=one, other=two)[2]
    code, _, err = keel("data", "forget", store=one, rater="person-2")
    assert code == 0
    assert "'person-2' and 1 judgment erased" in err
    code, _, err = keel("data", "forget", store=one, rater="person-2")
    assert code == 2
    assert "no rater 'person-2'" in err
    code, out, _ = keel("data", "backup", store=one, out=tmp_path / "copy.db")
    assert (code, out.strip()) == (0, str(tmp_path / "copy.db"))
    with Store(f"store:{tmp_path}/copy.db") as copy:
        assert sorted(j.rater for group in copy.groups() for _, j in group) == ["person-0", "person-1", "person-1"]


def test_training_on_a_store_records_which_judgments(keel, train, configure, file, store_source, tmp_path):
    keel("data", "convert", data=file, out=store_source)
    found = train("dpo", config=configure("dpo", data=store_source, holdout=0.2))
    manifest = json.loads((found.folder / "manifest.json").read_text())
    assert manifest["judgments"] == 39
    assert manifest["judgment_ids"] == "1-39"
    assert manifest["format"] == "store"
    with Store(store_source) as store:
        key = next(key for group in store.groups() for key, j in group if j.origin.row == 10)
        store.retract(key)
    later = train("dpo", config=configure("dpo", data=store_source, holdout=0.2))
    changed = json.loads((later.folder / "manifest.json").read_text())
    assert changed["judgments"] == 38
    assert changed["data_hash"] != manifest["data_hash"]


def by_sql(source, where="1 = 1"):
    """What a manifest should say of some judgments: their hash, how many they are, and their numbers."""
    with Store(source) as store:
        rows = store.read(sa.text(f"SELECT id, key FROM judgments WHERE {where} ORDER BY id"))
    whole = blake2b(b"".join(bytes(row[1]) for row in rows), digest_size=8).hexdigest()
    return whole, len(rows), {row[0] for row in rows}


def numbers_of(ids):
    """ "1-3,7" as {1, 2, 3, 7}."""
    spans = [part.split("-") for part in ids.split(",")]
    return {number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)}


def told(identity):
    return identity["data_hash"], identity["judgments"], numbers_of(identity["judgment_ids"])


def one_more(source, number=0, rater="late"):
    late = Judgment("what can teddy do now?", (Answer(f"a{number}"), Answer("b")), Preference("first"), rater=rater)
    with Store(source) as other:
        assert other.append([(said_key(late), late)]) == 1


def test_a_manifest_names_only_what_was_trained_on_though_others_write(
    keel, train, configure, file, store_source, monkeypatch
):
    """Another connection adds a judgment once the pairs have been read."""
    keel("data", "convert", data=file, out=store_source)
    expected, check = by_sql(store_source), checks.check_pairs

    def meanwhile(pairs, *rest):
        one_more(store_source)
        return check(pairs, *rest)

    monkeypatch.setattr(checks, "check_pairs", meanwhile)
    found = train("dpo", config=configure("dpo", data=store_source, steps=1))
    assert told(json.loads((found.folder / "manifest.json").read_text())) == expected
    assert by_sql(store_source)[1] == expected[1] + 1


def test_what_comes_while_a_store_is_read_is_not_named(keel, file, store_source):
    keel("data", "convert", data=file, out=store_source)
    ranked = Judgment("r", (Answer("a"), Answer("b"), Answer("c")), Ranking((2, 1, 3)), rater="early")
    with Store(store_source) as store:
        store.append([(said_key(ranked), ranked)])
    expected = by_sql(store_source)
    groups, counts, _ = sources.open_judgments(store_source)
    read = list(next(groups))
    one_more(store_source)
    read += [judgment for group in groups for judgment in group]
    assert told(sources.identify(store_source, counts)) == expected
    assert {judgment.origin.row for judgment in read} == expected[2]


def test_a_part_of_a_store_is_named_as_that_part(keel, file, store_source):
    """By --limit, by rater, by both."""
    keel("data", "convert", data=file, out=store_source)
    for number in range(3):
        one_more(store_source, number, rater="ann")
    joined = "&" if "?" in store_source else "?"
    whole = by_sql(store_source)
    for part, limit, where in (
        (store_source, 5, None),
        (f"{store_source}{joined}rater=ann", None, "rater = 'ann'"),
        (f"{store_source}{joined}rater=ann", 1, "rater = 'ann'"),  # all of one prompt
    ):
        pairs, counts, _ = sources.read_pairs(part, limit=limit)
        numbers = {pair.origin.row for pair in pairs}
        where = where or f"id IN ({','.join(map(str, numbers))})"
        assert told(sources.identify(part, counts)) == by_sql(store_source, where) != whole
    assert len({pair.prompt for pair in sources.read_pairs(store_source, limit=5)[0]}) == 5


def test_prompts_of_a_store_are_named_as_prompts(keel, file, store_source):
    keel("data", "convert", data=file, out=store_source)
    rows, counts, _ = sources.read_prompts(store_source)
    one_more(store_source)
    identity = sources.identify(store_source, counts)
    assert identity["prompts"] == len(rows)
    again = sources.identify(store_source, sources.read_prompts(store_source, limit=len(rows) - 1)[1])
    assert again["prompts"] == len(rows) - 1
    assert again["data_hash"] != identity["data_hash"]


def test_a_store_goes_into_a_store_under_its_own_keys(keel, file, tmp_path, store_source):
    """Converted again after it grew, or merged, what was there is there once; a rater's part goes by itself."""
    other = f"store:{tmp_path}/other.db"
    keel("data", "convert", data=file, out=other)
    assert "39 judgments more" in keel("data", "convert", data=other, out=store_source)[2]
    one_more(other, rater="ann")
    one_more(other, 1, rater="bob")
    assert "1 judgment more" in keel("data", "convert", data=f"{other}?rater=ann", out=store_source)[2]
    assert "1 judgment more" in keel("data", "convert", data=other, out=store_source)[2]
    assert "0 judgments more" in keel("data", "merge", store=store_source, other=other)[2]
    with Store(other) as one, Store(store_source) as two:
        both = [sorted(repr(j) for group in store.groups() for j in group) for store in (one, two)]
    assert both[0] == both[1]
    code, _, err = keel("data", "convert", data=f"{other}?rater=nobody", out=store_source)
    assert code == 2
    assert "no rows" in err


def test_answers_that_were_cut_when_they_were_drawn_are_noted_in_training(train, configure, store_source):
    with Store(store_source, create=True) as store:
        for i in range(8):
            answers = Answer("right", truncated=i < 3), Answer("wrong")
            judgment = Judgment(f"{i}?", answers, Preference("first"))
            store.append([(said_key(judgment), judgment)])
    found = train("dpo", config=configure("dpo", data=store_source))
    count, _ = found.summary["rows"]["notes"]["an answer was drawn up to a length limit: it gets no EOS"]
    assert count == 3


def test_labels_of_a_model_stay_marked(keel, train, configure, tmp_path, write_rows, capfd):
    rows = [{"prompt": f"{i}?", "chosen": "right", "rejected": "wrong", "feedback": "ai"} for i in range(8)]
    found = train("dpo", config=configure("dpo", data=str(write_rows(tmp_path / "ai.jsonl", rows))))
    assert json.loads((found.folder / "manifest.json").read_text())["ai_feedback"] == 8
    assert "RLAIF" in capfd.readouterr().err


def test_help_of_a_family_and_a_wrong_word(keel):
    code, out, _ = keel("data")
    assert code == 0
    assert "keel data convert" in out
    assert "keel dpo" not in out
    code, _, err = keel("data", "nonsense")
    assert code == 2
    assert "data convert" in err


def test_a_file_s_name_is_enough_where_only_a_store_can_stand(keel, file, tmp_path, configure_collect, monkeypatch):
    """In every family of commands; `store:` before it names the same store, and another ending is not taken for one."""
    monkeypatch.chdir(tmp_path)
    with_prefix = {"data": file, "out": "store:named.db"}
    assert "39 judgments more" in keel("data", "convert", **(with_prefix | {"out": "named.db"}))[2]
    assert "0 judgments more" in keel("data", "convert", **with_prefix)[2]
    assert "39 judgments more" in keel("data", "merge", store="other.sqlite", other="named.db")[2]
    assert keel("data", "backup", store="named.db", out="copy.db")[0] == 0
    assert "no rater 'ann'" in keel("data", "forget", store="copy.db", rater="ann")[2]
    assert keel("raters", "add", store="named.db", name="ann")[0] == 0
    assert "ann" in keel("raters", "list", store="store:named.db")[1]
    assert keel("raters", "revoke", store="named.db", name="ann")[0] == 0
    assert "annotate: store:empty.db: nothing to judge" in keel("annotate", store="empty.db", port=0)[2]
    config = configure_collect()
    words = {"model": config.model, "prompts": config.prompts, "n": 1, "max-new-tokens": 4, "device": "cpu"}
    assert keel("collect", store="drawn.sqlite3", **words)[0] == 0
    with Store("store:drawn.sqlite3") as store:
        assert len(list(store.prompts())) == 8
    for name in ("votes.jsonl", "votes", "mydb"):
        code, _, err = keel("data", "forget", store=name, rater="ann")
        assert code == 2
        assert f"{name}: neither a store nor a database URL; give FILE.db, store:FILE or postgresql" in err
    assert keel("data", "convert", data=file, out="plain.jsonl", to="trl")[0] == 0
    assert (tmp_path / "plain.jsonl").read_text().startswith("{")
