"""A judgment's whole way: from the page through the store and an export into a training run, sides unflipped."""

from __future__ import annotations

import csv
import json
import re

import tests.reading as sources
from tests.web.served import Client, fill

from keel import cli
from keel.annotation import accounts
from keel.commands.collect import collect
from keel.config import CollectConfig
from keel.store.store import Store

LEFT = {"verdicts": {"overall": {"outcome": "first", "strength": 2}}}


def keel(*words, **options):
    flags = [str(part) for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert cli.main([*map(str, words), *flags]) == 0


def test_a_planted_love_of_the_left_side(run_server, tmp_path, train, configure):
    """Whoever loves the left side chooses each model's answer about half of the time, and always what stood left."""
    source, tokens = fill(f"store:{tmp_path}/v.db", 40)
    ana = Client(run_server(source).url, tokens["ana"])
    stood_left = {}
    for _ in range(40):
        task = ana.task()["task"]
        prompt, text = (re.sub("<[^>]+>", "", part["html"]).strip() for part in (task["prompt"][0], task["answers"][0]))
        stood_left[prompt] = text
        assert ana.post(f"/api/task/{task['key']}", json=LEFT).status_code == 200
    assert 8 < sum(text.startswith("left") for text in stood_left.values()) < 32

    keel("data", "convert", data=source, out=tmp_path / "trl.jsonl", to="trl")
    exported = [json.loads(line) for line in (tmp_path / "trl.jsonl").read_text().splitlines()]
    assert {row["prompt"]: row["chosen"] for row in exported} == stood_left
    keel("data", "convert", data=source, out=tmp_path / "sides.csv", to="shp")
    with (tmp_path / "sides.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["history"]: row["human_ref_A"] for row in rows} == stood_left  # A is what stood left …
    assert {row["labels"] for row in rows} == {"1"}  # … and always won
    keel("data", "stats", data=source, out=tmp_path / "stats.json")
    assert json.loads((tmp_path / "stats.json").read_text())["first_wins"]["mean"] == 1.0

    pairs, _, _ = sources.read_pairs(source)
    assert {str(p.prompt): p.chosen for p in pairs} == stood_left
    assert {p.margin for p in pairs} == {2.0}
    found = train("dpo", config=configure("dpo", data=source, holdout=0.0))
    manifest = json.loads((found.folder / "manifest.json").read_text())
    assert manifest["judgments"] == 40
    assert found.summary["rows"]["used"] == 40


def test_collected_answers_are_put_to_people_whose_verdicts_train(run_server, tmp_path, base, write_rows, capfd):
    source = f"store:{tmp_path}/c.db"
    prompts = write_rows(
        tmp_path / "prompts.jsonl", [{"prompt": f"what can teddy {v}?"} for v in ("hug", "nap", "hop")]
    )
    config = CollectConfig(
        model=str(base), prompts=str(prompts), store=source, rater=["people"], n=3, max_new_tokens=6, temperature=1.0
    )
    for _ in range(2):  # asked again, nothing is put to them twice
        collect(config)
    assert "put to people: keel annotate" in capfd.readouterr().err
    with Store(source) as store:
        token = accounts.add(store, "ana")
    ana = Client(run_server(source).url, token)
    done = 0
    while task := ana.task()["task"]:
        assert ana.post(f"/api/task/{task['key']}", json=LEFT).status_code == 200
        done += 1
    assert 3 <= done <= 9  # three answers each, those that are alike put once
    assert sources.read_pairs(source)[1].used == done
