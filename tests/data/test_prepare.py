"""From files to bundles: what is held out is not trained on, whatever form its prompts have."""

from __future__ import annotations

import pytest

from keel.data import prepare
from keel.errors import InputError
from keel.models import checkpoints


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_chats_that_are_held_out_and_trained_on_are_refused(configure, make_model, tmp_path, write_rows):
    """The third of --eval-data asks what a training row asks, and is answered otherwise."""
    model = str(make_model("llama", tokenizer="chat"))
    text = checkpoints.load_text(model)
    data = str(write_rows(tmp_path / "train.jsonl", [chat("what can teddy do?", "nap"), chat("ok?", "ok.")]))
    held = [chat("what can honey do?", "nap"), chat("why?", "ok."), chat("what can teddy do?", "hug")]

    def prepared(rows):
        config = configure("sft", model=model, data=data, eval_data=str(write_rows(tmp_path / "held.jsonl", rows)))
        return prepare.demonstration_bundles(config, data, text, 128)

    found = prepared(held[:2])
    assert (len(found.train), len(found.held_out)) == (2, 2)
    with pytest.raises(InputError, match=r"held\.jsonl: 1 of its prompts \(rows \[3\]\) also stand in .*train\.jsonl"):
        prepared(held)
