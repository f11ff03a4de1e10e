"""Completions from a server that behaves and misbehaves on a real socket. What counts is what the server saw."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from keel.errors import InputError
from keel.records import Answer, Bundle
from keel.sampling import remote
from keel.sampling.protocol import SamplingOptions, sample
from keel.sampling.remote import ServerSampler, sample_remote

CHAT = [{"role": "user", "content": "Who are you?"}]


@dataclass
class Reply:
    """A status and a body, sent whole, or (`manner`) dripping, cut in the middle, or not at all."""

    body: object = None
    status: int = 200
    headers: dict = field(default_factory=dict)
    manner: str = "whole"
    delay: float = 0.0


class Stub:
    """`with Stub(script) as server:`, where `script(path, body, number of the call)` is a `Reply`."""

    def __init__(self, script):
        self.script, self.calls, self.headers = script, [], []
        self.open = self.most_at_once = 0
        self.lock, self.over = threading.Lock(), threading.Event()

    def __enter__(self):
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub.lock:
                    stub.calls.append((self.path, body))
                    stub.headers.append({k.lower(): v for k, v in self.headers.items()})
                    number = len(stub.calls)
                    stub.open += 1
                    stub.most_at_once = max(stub.most_at_once, stub.open)
                try:
                    self.answer(stub.script(self.path, body, number))
                except OSError:
                    pass  # the client hung up
                finally:
                    with stub.lock:
                        stub.open -= 1

            def answer(self, reply):
                stub.over.wait(reply.delay)
                if reply.manner == "hang":
                    stub.over.wait(60)
                    return
                content = reply.body.encode() if isinstance(reply.body, str) else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if reply.manner == "drip":
                    for byte in content:
                        if stub.over.wait(0.05):
                            return
                        self.wfile.write(bytes([byte]))
                else:
                    self.wfile.write(content[: len(content) // 2] if reply.manner == "cut" else content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def plain(*texts, finish="stop", logps=None, usage=None):
    """A reply of /v1/completions; `logps` are those of each text's tokens."""
    given = {"token_logprobs": logps, "tokens": ["x"] * len(logps)} if logps else None
    choices = [{"index": i, "text": t, "finish_reason": finish, "logprobs": given} for i, t in enumerate(texts)]
    counted = {"usage": {"completion_tokens": usage, "prompt_tokens": 1, "total_tokens": 1 + usage}} if usage else {}
    return Reply({"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": choices} | counted)


def chat(*texts, finish="stop", logps=None):
    """A reply of /v1/chat/completions."""
    given = {"content": [{"token": "x", "logprob": v, "top_logprobs": []} for v in logps]} if logps else None
    choices = [
        {"index": i, "message": {"role": "assistant", "content": t}, "finish_reason": finish, "logprobs": given}
        for i, t in enumerate(texts)
    ]
    return Reply({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices})


def error(status, message="no", **headers):
    return Reply({"error": {"message": message, "type": "error"}}, status, headers)


def n_of(path, body, _):
    """As many as asked for, each named by its prompt and number."""
    if path.endswith("/chat/completions"):
        return chat(*(f"{body['messages'][-1]['content']} {i}" for i in range(body["n"])))
    return plain(*(f"{body['prompt']} {i}" for i in range(body["n"])))


DRAWN = {"max_new_tokens", "temperature", "top_p"}


def draw_all(server, prompts, n=1, **options):
    """Answers, and why they are fewer than n, by index."""
    url = server if isinstance(server, str) else server.url
    drawn = SamplingOptions(**{"max_new_tokens": 8} | {k: options.pop(k) for k in DRAWN & options.keys()})
    results = sample_remote(url, "m", prompts, n, drawn, **{"deadline": 10.0} | options)
    return {index: (answers, why) for index, answers, why in results}


def draw(server, prompts, n=1, **options):
    """By index: all answers, or why there are none."""
    found = draw_all(server, prompts, n, **options)
    assert all(len(answers) == (0 if why else n) for answers, why in found.values())
    return {index: why or answers for index, (answers, why) in found.items()}


@pytest.fixture(autouse=True)
def nothing_left_behind(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(remote, "_JITTER", type("Fast", (), {"uniform": staticmethod(lambda low, high: 0.02)}))
    yield
    assert [t for t in threading.enumerate() if t.name == "keel-remote"] == []


# --- what is asked, and what comes of it


def test_plain_prompts_and_chats_go_their_ways_and_come_back_whole():
    prompts = ["a", CHAT, "b"]
    with Stub(n_of) as server:
        found = draw(server, prompts, 3, temperature=0.7, top_p=0.9)
    assert {i: [a.text for a in answers] for i, answers in found.items()} == {
        0: ["a 0", "a 1", "a 2"],
        1: ["Who are you? 0", "Who are you? 1", "Who are you? 2"],
        2: ["b 0", "b 1", "b 2"],
    }
    assert found[0][0] == Answer(
        "a 0", model="m", sampling={"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 8}, truncated=False
    )
    by_path = Counter(path for path, _ in server.calls)
    assert by_path == {"/v1/completions": 2, "/v1/chat/completions": 1}
    for _, body in server.calls:
        assert {k: body[k] for k in ("model", "n", "temperature", "top_p", "max_tokens")} == {
            "model": "m", "n": 3, "temperature": 0.7, "top_p": 0.9, "max_tokens": 8,
        }  # fmt: skip
        assert {k: body[k] for k in ("top_k", "min_p", "repetition_penalty")} == {
            "top_k": -1, "min_p": 0, "repetition_penalty": 1,
        }  # fmt: skip
    assert next(body for _, body in server.calls if "messages" in body)["messages"] == CHAT


@pytest.mark.parametrize("reply", [plain, chat])
def test_log_probabilities_are_summed_where_they_mean_something(reply):
    prompt = "p" if reply is plain else CHAT
    with Stub(lambda *_: reply("x", logps=[-0.5, -1.25, -2.0])) as server:
        [answer] = draw(server, [prompt])[0]
        assert (answer.logp, answer.tokens) == (-3.75, 3)
        assert server.calls[0][1]["logprobs"] == (1 if reply is plain else True)
        [warm] = draw(server, [prompt], temperature=0.7)[0]
        [nucleus] = draw(server, [prompt], top_p=0.9)[0]
    assert warm.logp is nucleus.logp is None, "a server's log-probabilities are those of the raw distribution"
    assert all("logprobs" not in body for _, body in server.calls[1:])


@pytest.mark.parametrize("logps", [None, [-0.5, None], [-0.5, -math.inf]])
def test_log_probabilities_that_are_missing_are_none(logps):
    with Stub(lambda *_: plain("x", logps=logps, usage=7)) as server:
        [answer] = draw(server, ["p"])[0]
    assert (answer.text, answer.logp, answer.tokens) == ("x", None, 7)


def test_finish_reason_length_is_truncated():
    with Stub(lambda path, body, number: plain("x", finish="length" if body["prompt"] == "long" else "stop")) as server:
        found = draw(server, ["long", "short"])
    assert [found[i][0].truncated for i in (0, 1)] == [True, False]


def test_each_prompt_has_a_seed_of_its_own_and_the_same_again():
    with Stub(n_of) as server:
        for seed in (1, 1, 2):
            draw(server, ["a", "a", "b"], seed=seed, concurrency=1)
    seeds = [body["seed"] for _, body in server.calls]
    assert seeds[:3] == seeds[3:6]
    assert len(set(seeds)) == 6
    assert all(0 <= s < 2**31 for s in seeds)


def test_a_server_that_gives_one_at_a_time_is_asked_for_the_rest():
    with Stub(lambda path, body, number: plain(f"x{number}")) as server:
        answers = draw(server, ["p"], 3)[0]
    assert [a.text for a in answers] == ["x1", "x2", "x3"]
    assert [body["n"] for _, body in server.calls] == [3, 2, 1]
    assert len({body["seed"] for _, body in server.calls}) == 3


def test_more_than_asked_for_is_cut():
    with Stub(lambda *_: plain("a", "b", "c")) as server:
        assert [a.text for a in draw(server, ["p"], 2)[0]] == ["a", "b"]


def test_what_a_server_refuses_by_name_or_more_than_one_is_not_asked_again():
    def picky(path, body, number):
        for name in ("top_k", "logprobs"):
            if name in body:
                return error(400, f"unknown field `{name}`")
        return error(400, "only one at a time") if body["n"] > 1 else plain("x")

    with Stub(picky) as server:
        found = draw(server, ["a", "b"], 2, concurrency=1)
    assert [len(found[i]) for i in (0, 1)] == [2, 2]
    assert [body["n"] for _, body in server.calls] == [2, 2, 2, 2, 1, 1, 1, 1]
    sent = [(body.get("top_k"), "logprobs" in body) for _, body in server.calls]
    assert sent == [(-1, True), (0, True), (None, True), *[(None, False)] * 5]


def test_an_argument_refused_with_a_500_is_not_asked_again():
    """As llama-cpp-python refuses a top-k below 0, and log-probabilities where it keeps none."""

    def picky(path, body, number):
        if body.get("top_k", 0) < 0:
            return error(500, "1 validation error: 'loc': ('body', 'top_k'), 'msg': 'should be >= 0'")
        return error(500, "logprobs is not supported") if "logprobs" in body else plain("x")

    with Stub(picky) as server:
        found = draw(server, ["a", "b"], concurrency=1, deadline=2.0)
    assert [found[i][0].text for i in (0, 1)] == ["x", "x"]
    assert [body["top_k"] for _, body in server.calls] == [-1, 0, 0, 0]


def test_llama_cpp_completes_texts_and_chats(llama_url):
    """n of each, and not the same n times."""
    found = draw(llama_url, ["Once upon a time", CHAT], 3, max_new_tokens=12, deadline=60.0, concurrency=1)
    assert [len(found[i]) for i in (0, 1)] == [3, 3]
    assert len({a.text for a in found[0]}) > 1
    assert all(a.tokens == 12 or not a.truncated for answers in found.values() for a in answers)
    assert any(a.truncated for a in found[0])


def test_the_key_is_sent_and_an_address_may_leave_out_v1(monkeypatch):
    monkeypatch.setenv("OWN_KEY", " secret-1 ")
    with Stub(n_of) as server:
        draw(server.url.removesuffix("/v1"), ["a"], key_variable="OWN_KEY")
    assert server.calls[0][0] == "/v1/completions"
    assert server.headers[0]["authorization"] == "Bearer secret-1"


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_than_asked_for_are_under_way(most):
    def slowly(*call):
        reply = n_of(*call)
        reply.delay = 0.05
        return reply

    with Stub(slowly) as server:
        assert len(draw(server, ["p"] * 9, concurrency=most)) == 9
    assert server.most_at_once == most


# --- failures


@pytest.mark.parametrize(
    "bad",
    [
        error(429, "slow down"),
        error(500),
        error(503),
        error(408),
        Reply('{"id": "1", "choices": [{"te'),
        Reply("<html>busy</html>", headers={"Content-Type": "text/html"}),
        Reply([]),
        Reply({"choices": []}),
        plain("x", finish=None),
        plain("x", finish="abort"),
        Reply({"choices": [{"text": "x"}]}, manner="cut"),
    ],
    ids=["429", "500", "503", "408", "truncated", "html", "list", "empty", "unfinished", "aborted", "cut"],
)
def test_what_fails_for_a_while_is_asked_again(bad):
    with Stub(lambda path, body, number: bad if number < 3 else plain("x")) as server:
        assert [a.text for a in draw(server, ["p"])[0]] == ["x"]
    assert len(server.calls) == 3
    assert len({body["seed"] for _, body in server.calls}) == 1


def test_a_server_s_wish_to_wait_is_kept():
    first = error(429, "slow down", **{"Retry-After": "0.7"})
    started = time.monotonic()
    with Stub(lambda path, body, number: first if number == 1 else plain("x")) as server:
        draw(server, ["p"])
    assert 0.7 < time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("bad", "trouble"),
    [
        (error(500, "out of memory"), "500: out of memory"),
        (Reply(manner="hang"), "no reply"),
        (Reply({"choices": ["x" * 2_000]}, manner="drip"), "no reply"),
        (Reply('{"id'), "not JSON"),
    ],
    ids=["500", "hang", "drip", "truncated"],
)
def test_past_the_deadline_a_prompt_is_a_reason_and_the_others_are_not(bad, trouble):
    with Stub(lambda path, body, number: bad if body["prompt"] == "bad" else n_of(path, body, number)) as server:
        started = time.monotonic()
        found = draw(server, ["good", "bad", "fine"], deadline=1.0)
        assert time.monotonic() - started < 4
    assert [a.text for a in found[0]] == ["good 0"]
    assert [a.text for a in found[2]] == ["fine 0"]
    assert "within 1 s" in found[1]
    assert trouble in found[1]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (error(400, "the prompt is too long"), "too long"),
        (error(422, "temperature out of range"), "out of range"),
        (plain("x", finish="content_filter"), "content_filter"),
        (plain(None), "no text"),
    ],
)
def test_a_refusal_is_a_reason_at_once(bad, reason):
    with Stub(lambda path, body, number: bad if body["prompt"] == "bad" else n_of(path, body, number)) as server:
        found = draw(server, ["bad", "good"], concurrency=1)
    assert reason in found[0]
    assert [a.text for a in found[1]] == ["good 0"]
    assert len(server.calls) == 2


def test_what_came_before_a_failure_is_kept():
    """A server that gives one at once: two come, then one is refused, or hangs until the deadline."""
    for end, reason in ((error(400, "enough"), "enough"), (Reply(manner="hang"), "no 4 completions within 1 s")):
        script = lambda path, body, number, end=end: plain(f"answer {number}") if number < 3 else end  # noqa: E731
        with Stub(script) as server:
            ((answers, why),) = draw_all(server, ["p"], n=4, deadline=1.0).values()
        assert [a.text for a in answers] == ["answer 1", "answer 2"]
        assert reason in why


@pytest.mark.parametrize(("finish", "why"), [("content_filter", "content_filter"), ("abort", "")])
def test_one_bad_completion_among_good_ones(finish, why):
    """What the server filters ends the prompt, what it did not finish is asked for again; the others are kept."""

    def script(path, body, number):
        reply = plain(*(f"answer {number} {i}" for i in range(body["n"])))
        if number == 1:
            reply.body["choices"][1]["finish_reason"] = finish
        return reply

    with Stub(script) as server:
        ((answers, reason),) = draw_all(server, ["p"], n=3).values()
    assert [a.text for a in answers[:2]] == ["answer 1 0", "answer 1 2"]
    assert why in reason
    assert bool(reason) == bool(why)
    assert len(answers) == (2 if why else 3)
    assert [body["n"] for _, body in server.calls] == ([3] if why else [3, 1])


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "set OWN_KEY"), (403, "set OWN_KEY"), (402, "add credit"), (404, "address")]
)
def test_what_cannot_get_better_stops(status, remedy, monkeypatch):
    """And a server that repeats the key is not repeated."""
    monkeypatch.setenv("OWN_KEY", "secret-1")
    stub = Stub(lambda *_: error(status, "not with secret-1"))
    with stub as server, pytest.raises(InputError, match=remedy) as caught:
        draw(server, ["p"] * 50, key_variable="OWN_KEY", concurrency=2)
    assert "secret-1" not in str(caught.value)
    assert len(server.calls) <= 4


def test_a_server_that_was_never_there_is_a_wrong_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match="nobody answers"):
        draw(f"http://127.0.0.1:{port}/v1", ["p"] * 20, deadline=1.0)


def test_a_server_that_falls_silent_is_given_up():
    """Eight prompts wait in vain, one after the other; the other ninety do not."""
    with Stub(lambda path, body, number: plain("x") if number == 1 else Reply(manner="hang")) as server:
        started = time.monotonic()
        found = draw(server, ["p"] * 100, deadline=0.3, concurrency=4)
        assert time.monotonic() - started < 4
    assert len(found) == 100
    assert sum(isinstance(v, list) for v in found.values()) == 1
    assert sum("not asked" in v for v in found.values() if isinstance(v, str)) >= 80


def test_a_server_that_answers_now_and_then_is_not_given_up():
    hang = Reply(manner="hang")
    with Stub(lambda path, body, number: hang if body["prompt"] == "bad" else plain("x")) as server:
        found = draw(server, ["bad", "good"] * 10, deadline=0.1, concurrency=1)
    assert sum(isinstance(v, list) for v in found.values()) == 10


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"n": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match="give a temperature above 0"):
        draw("http://127.0.0.1:1/v1", ["p"], **options)


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "ftp://host/v1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(InputError, match="not an address"):
        draw(url, ["p"])


def test_whoever_stops_early_leaves_nothing_running():
    """The server sees its open connections closed."""
    dripping = Reply("x" * 5_000, manner="drip")
    with Stub(lambda path, body, number: plain("x") if number == 1 else dripping) as server:
        results = sample_remote(server.url, "m", ["p"] * 20, 1, SamplingOptions(8), concurrency=4)
        assert next(results)[1][0].text == "x"
        time.sleep(0.2)
        started = time.monotonic()
        results.close()
        assert time.monotonic() - started < 2
        until = time.monotonic() + 5
        while server.open and time.monotonic() < until:
            time.sleep(0.02)
        assert server.open == 0
        assert len(server.calls) <= 5


def test_a_caller_that_pauses_loses_nothing():
    """Replies are taken while the caller does something else for longer than the deadline."""
    with Stub(n_of) as server:
        found = {}
        options = {"concurrency": 3, "deadline": 0.4}
        for index, answers, _ in sample_remote(server.url, "m", ["p"] * 6, 1, SamplingOptions(8), **options):
            found[index] = answers
            time.sleep(0.5)
    assert all(len(answers) == 1 for answers in found.values())


# --- tools and thinking

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def message(finish="stop", **fields):
    """A reply whose message holds these fields."""
    reply = chat("", finish=finish)
    reply.body["choices"][0]["message"] = {"role": "assistant", **fields}
    return reply


def test_tools_are_sent_beside_the_turns_and_calls_kept_as_fields():
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Łódź"}'}}
    prompt = [{"role": "system", "content": "Be brief.", "tools": [TOOL]}, {"role": "user", "content": "Rain?"}]
    with Stub(lambda *_: message("tool_calls", content=None, tool_calls=[call])) as server:
        [answer] = draw(server, [prompt])[0]
    [(path, body)] = server.calls
    assert path == "/v1/chat/completions"
    assert body["tools"] == [TOOL]
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rain?"}]
    assert prompt[0]["tools"] == [TOOL], "what was given is not changed"
    assert (answer.text, answer.fields, answer.truncated) == ("", {"tool_calls": [call]}, False)
    assert type(answer.fields["tool_calls"][0]["function"]) is dict


def test_earlier_calls_are_sent_with_arguments_as_text_and_no_tools_where_there_are_none():
    def spelt(arguments):
        return {"id": "7", "type": "function", "function": {"name": "weather", "arguments": arguments}}

    called = {"role": "assistant", "content": "", "tool_calls": [spelt({"place": "Łódź"}), spelt('{"a": 1}')]}
    told = {"role": "tool", "content": "Wet.", "tool_call_id": "7"}
    with Stub(lambda *_: chat("Yes.")) as server:
        [answer] = draw(server, [[*CHAT, called, told]])[0]
    [(_, body)] = server.calls
    assert "tools" not in body
    assert [body["messages"][0], body["messages"][2]] == [CHAT[0], told]
    sent = [call["function"]["arguments"] for call in body["messages"][1]["tool_calls"]]
    assert [json.loads(words) for words in sent] == [{"place": "Łódź"}, {"a": 1}]
    assert (answer.text, answer.fields) == ("Yes.", None)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking_that_stands_apart_is_a_field(name):
    with Stub(lambda *_: message(content="4.", **{name: "2 and 2."})) as server:
        [answer] = draw(server, [CHAT])[0]
    assert (answer.text, answer.fields) == ("4.", {"reasoning_content": "2 and 2."})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"content": None, "reasoning": "2 and 2."}, "the completion has no text"),
        ({"content": None, "tool_calls": [{"type": "function", "function": {"arguments": "{}"}}]}, "names no tool"),
        ({"content": None, "tool_calls": ["weather"]}, "names no tool"),
    ],
)
def test_what_is_no_answer_has_its_reason(fields, why):
    with Stub(lambda *_: message(**fields)) as server:
        assert why in draw(server, [CHAT])[0]


# --- as a sampler


def test_a_server_fills_bundles_as_a_model_in_this_process_does():
    """Texts and no ids; what else the server said of an answer stays with it."""
    with Stub(n_of) as server:
        sampler = ServerSampler(server.url, "m", SamplingOptions(8), deadline=10.0)
        told = []
        bundles = sample(sampler, [Bundle([], [], prompt=p) for p in ("a", "b")], 2, "generate", progress=told.append)
    assert [[c.text for c in b.completions] for b in bundles] == [["a 0", "a 1"], ["b 0", "b 1"]]
    assert all(c.ids == [] and c.answer.model == "m" for b in bundles for c in b.completions)
    assert sum(told) == 4


def test_a_server_is_asked_under_other_seeds_for_other_purposes():
    with Stub(n_of) as server:
        sampler = ServerSampler(server.url, "m", SamplingOptions(8), seed=3, deadline=10.0)
        for purpose, have in ((1, 0), (1, 0), (2, 0), (1, 2)):
            list(sampler.fill([Bundle([], [], prompt="a")], 1, "collect", purpose, have=have))
        first, again, *others = [body["seed"] for _, body in server.calls]
    assert first == again
    assert len({first, *others}) == 3
