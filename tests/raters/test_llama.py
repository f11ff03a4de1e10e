"""The judge at llama.cpp's own server. Its model tells stories and cannot judge: what is tested is the protocol."""

from __future__ import annotations

import openai
import pytest

from keel.guidelines import Rubric
from keel.raters import Missing, Task
from keel.raters.judge import Judge, JudgeConfig
from keel.records import Answer

SHORT = Rubric((("overall", "Which is better?"),))
TASKS = [Task("Once upon a time", Answer(f" there was a {x}."), Answer(f" {x} {x} {x}")) for x in ("cat", "dog")]


@pytest.fixture
def client(llama_url):
    return openai.OpenAI(base_url=llama_url, api_key="none", max_retries=0, timeout=60)


def test_it_completes_chats_and_texts(client):
    """The server is what the other tests take it for."""
    chat = client.chat.completions.create(
        model="stories", messages=[{"role": "user", "content": "Once"}], max_tokens=8, temperature=0
    )
    text = client.completions.create(model="stories", prompt="Once upon", max_tokens=8, temperature=0)
    assert chat.choices[0].message.content
    assert text.choices[0].text.startswith(" a time")
    assert chat.usage.completion_tokens == text.usage.completion_tokens == 8


def test_a_model_that_cannot_judge_gives_reasons_and_is_paid(llama_url, client):
    """It takes JSON, though no schema: what it writes has the form and not the content."""
    config = JudgeConfig(
        model="stories", base_url=llama_url, concurrency=2, reply_tokens=48, first_wait=0.05, price_in=1, price_out=1
    )
    judge = Judge(config, SHORT)
    found = dict(judge.rate(TASKS))
    assert sorted(found) == [0, 1]
    assert all(isinstance(result, Missing) and "reply" in result.reason for result in found.values())
    assert judge.missing == 2
    assert judge.spent.replies == 4  # each asked once more
    assert judge.spent.estimated == 0
    assert judge.spent.tokens_in > 4 * 200
    assert 0 < judge.spent.tokens_out <= 4 * 48
    assert judge.money == pytest.approx(judge.spent.tokens / 1e6)
    assert judge._form == 1  # it answered 500 to a schema, which was given up


def test_a_pair_beyond_its_window_is_missing(llama_url):
    judge = Judge(JudgeConfig(model="stories", base_url=llama_url, first_wait=0.05), SHORT)
    found = dict(judge.rate([Task("Once upon a time", Answer("long " * 2000), Answer("short"))]))
    assert "too long" in found[0].reason
    assert judge.spent.tokens == 0
