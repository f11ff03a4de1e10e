"""The annotation server as a client meets it, friendly or not: a real process, real HTTP."""

from __future__ import annotations

import re
import sqlite3
from contextlib import ExitStack

import httpx
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from tests.web.served import Client, fill

from keel.annotation import accounts
from keel.annotation.queue import Queue
from keel.annotation.tasks import NewTask
from keel.guidelines import DEFAULT_RUBRIC
from keel.records import Answer
from keel.store.store import Store
from keel.web.app import make_app
from keel.web.desk import shown_answers, shown_prompt

PAGES = ["/admin", "/api/task", "/api/admin"]
POSTS = [
    "/api/task/00",
    "/api/task/00/skip",
    "/api/task/00/flag",
    "/api/undo",
    "/api/sign-out",
    "/api/admin/adjudicate/1",
]
BETTER = {"verdicts": {"overall": {"outcome": "first", "strength": 2}}}


@pytest.fixture
def served(run_server, filled):
    source, tokens = filled
    return run_server(source), source, tokens


def held(source):
    with Store(source) as store:
        return [j for group in store.groups() for _, j in group]


# --- judging --------------------------------------------------------------------------------------


def test_a_session_of_judging(served):
    server, source, tokens = served
    ana = Client(server.url, tokens["ana"])
    turn = ana.task()
    assert turn["me"] == {"name": "ana", "role": "rater"}
    assert turn["task"]["kind"] == "pair"
    assert [d["name"] for d in turn["task"]["dimensions"]] == ["overall"]
    assert turn["progress"] == {"mine": 0, "mine_today": 0, "team": 0, "total": 6, "can_undo": False}
    said = BETTER | {"comment": "so <b>", "seconds": 4.5}
    following = ana.post(f"/api/task/{turn['task']['key']}", json=said).json()
    assert following["task"]["key"] != turn["task"]["key"]
    assert following["progress"]["mine"] == 1
    (judgment,) = held(source)
    assert (judgment.rater, judgment.kind, judgment.comment, judgment.seconds) == ("ana", "person", "so <b>", 4.5)
    assert judgment.verdict.outcome == "first"
    assert judgment.answers[0].text in turn["task"]["answers"][0]["html"]  # first is what stood on the left
    assert len(judgment.rubric) == 8
    undone = ana.post("/api/undo").json()
    assert undone["task"]["key"] == turn["task"]["key"]
    assert undone["task"]["said"] == {"overall": {"outcome": "first", "strength": 2}}
    assert held(source) == []
    ana.post(f"/api/task/{turn['task']['key']}/skip", json={})
    ana.post(f"/api/task/{ana.task()['task']['key']}/flag", json={"note": "odd"})
    for _ in range(4):
        ana.post(f"/api/task/{ana.task()['task']['key']}", json={"verdicts": {"overall": {"outcome": "tie"}}})
    assert ana.task()["task"] is None


def test_a_click_is_three_transactions_at_most(tmp_path, filled):
    """The session, the verdict, and the next task with the progress of all; so are the other buttons."""
    source, tokens = filled
    with Store(source) as store, TestClient(make_app(store, Queue(store), DEFAULT_RUBRIC)) as client:
        word = client.post("/api/sign-in", json={"token": tokens["ana"]})
        assert word.status_code == 200
        csrf = re.search(r'name="csrf" content="([^"]+)"', client.get("/").text)[1]
        begun = []
        sa.event.listen(store._engine, "begin", lambda connection: begun.append(1))
        key = client.get("/api/task").json()["task"]["key"]
        assert len(begun) <= 3
        for path, body in ((key, BETTER), (None, {}), ("skip", {}), ("flag", {"note": "odd"})):
            where = "/api/undo" if path is None else f"/api/task/{key}" + (f"/{path}" if path != key else "")
            begun.clear()
            answer = client.post(where, json=body, headers={"x-keel-csrf": csrf})
            assert answer.status_code == 200, answer.text
            assert len(begun) <= 3, path
            key = answer.json()["task"]["key"]


def test_what_a_rater_gets_names_no_model_and_no_other(run_server, tmp_path):
    source, tokens = fill(f"store:{tmp_path}/v.db", 12, overlap=2)
    server = run_server(source)
    seen = {}
    for name in ("ana", "ben"):
        client, parts = Client(server.url, tokens[name]), []
        for _ in range(5):
            answer = client.get("/api/task")
            said = BETTER | {"comment": f"a word of {name}"}
            parts += [answer.text, client.get("/").text]
            parts.append(client.post(f"/api/task/{answer.json()['task']['key']}", json=said).text)
        seen[name] = "".join(parts)
    assert "left 1" in seen["ben"]
    for word in ("secret-one", "secret-two", '"ana"', "a word of"):
        assert word not in seen["ben"]


def test_what_stands_beside_a_text_is_seen_by_who_judges_it():
    call = {"tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]}
    (answer,) = shown_answers([Answer("Let me look.", fields=call)])
    (turn,) = shown_prompt([{"role": "assistant", "content": "", "reasoning_content": "Hm <b>.", **call}])
    for shown in (answer, turn):
        assert "Oslo" in shown["text"]
        assert "weather" in shown["html"]
    assert answer["characters"] == len("Let me look.")
    assert "<b>" not in turn["html"]


@pytest.mark.parametrize(
    "verdicts",
    [
        {},
        {"overall": {}},
        {"overall": {"outcome": "third", "strength": 1}},
        {"overall": {"outcome": "first"}},
        {"overall": {"outcome": "tie", "strength": 1}},
        {"overall": {"outcome": "first", "strength": 4}},
        {"overall": {"value": 3}},
        {"overall": {"ranks": [1, 2]}},
        {"overall": {"outcome": "tie"}, "style": {"outcome": "tie"}},
        {"style": {"outcome": "tie"}},
        {"overall": {"outcome": "tie", "model": "x"}},
        {"overall": "tie"},
        [],
        None,
    ],
)
def test_verdicts_that_are_none_are_refused(shared_server, verdicts):
    _, source, ana = shared_server
    key = ana.task()["task"]["key"]
    answer = ana.post(f"/api/task/{key}", json={"verdicts": verdicts})
    assert answer.status_code in (400, 422)
    assert len(answer.json()["error"]) > 10
    assert held(source) == []


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    from tests.web.served import Server

    source, tokens = fill(f"store:{tmp_path_factory.mktemp('web')}/votes.db", 6)
    server = Server(source)
    yield server, source, Client(server.url, tokens["ana"])
    server.kill()


def test_scores_and_rankings(run_server, tmp_path):
    source = f"store:{tmp_path}/s.db"
    answers = [Answer(text) for text in ("a", "b", "c")]
    with Store(source, create=True) as store:
        Queue(store).add([NewTask("p", answers, "ranking"), NewTask("p", answers[:1], "score")])
        token = accounts.add(store, "ana")
    ana = Client(run_server(source, kind="score").url, token)
    for good, bad in (({"ranks": [2, 1, 2]}, {"ranks": [1, 3, 3]}), ({"value": 5}, {"value": 6})):
        key = ana.task()["task"]["key"]
        assert ana.post(f"/api/task/{key}", json={"verdicts": {"overall": bad}}).status_code in (400, 422)
        assert ana.post(f"/api/task/{key}", json={"verdicts": {"overall": good}}).status_code == 200
    verdicts = {type(j.verdict).__name__: j.verdict for j in held(source)}
    assert verdicts["Ranking"].ranks == (2, 1, 2)
    assert verdicts["Score"].value == 5


# --- who is not let in ----------------------------------------------------------------------------


def test_without_a_cookie_nothing_is_readable(shared_server):
    server, _, _ = shared_server
    for path in PAGES:
        answer = httpx.get(server.url + path)
        assert answer.status_code == 401, path
        assert "prompt" not in answer.text
    for path in POSTS:
        assert httpx.post(server.url + path, json={}).status_code in (401, 422), path
    assert httpx.get(server.url).status_code == 200  # the page to sign in
    assert "csrf" not in httpx.get(server.url).text


def test_a_rater_sees_no_admin_page(shared_server):
    _, _, ana = shared_server
    for path in ("/admin", "/api/admin"):
        assert ana.get(path).status_code == 403
    assert ana.post("/api/admin/adjudicate/1", json=BETTER).status_code == 403


@pytest.mark.parametrize("word", [None, "", "x" * 32, "é"])
def test_a_forged_csrf_word_changes_nothing(shared_server, word):
    server, source, ana = shared_server
    key = ana.task()["task"]["key"]
    headers = {} if word is None else {"X-Keel-CSRF": word.encode()}
    for path in (f"/api/task/{key}", f"/api/task/{key}/skip", "/api/undo", "/api/sign-out"):
        answer = httpx.post(server.url + path, json=BETTER, headers=headers, cookies=dict(ana.cookies))
        assert answer.status_code == 403
        assert "reload" in answer.json()["error"]
    assert held(source) == []
    assert ana.task()["task"]["key"] == key


def test_cookies_that_were_signed_out_revoked_or_have_expired(served):
    server, source, tokens = served
    ana = Client(server.url, tokens["ana"])
    cookie = dict(ana.cookies)
    attributes = ana.signed.headers["set-cookie"].lower()
    assert "httponly" in attributes
    assert "samesite=strict" in attributes
    assert ana.post("/api/sign-out").status_code == 200
    assert httpx.get(server.url + "/api/task", cookies=cookie).status_code == 401
    ben = Client(server.url, tokens["ben"])
    assert ben.get("/api/task").status_code == 200
    with Store(source) as store:
        accounts.revoke(store, "ben")
    assert ben.get("/api/task").status_code == 401
    assert Client(server.url, tokens["ben"]).signed.status_code == 401
    zoe = Client(server.url, tokens["zoe"])
    assert zoe.get("/api/admin").status_code == 200
    with sqlite3.connect(source.removeprefix("store:")) as connection:
        connection.execute("UPDATE sessions SET expires = 1")
    assert zoe.get("/api/admin").status_code == 401


def test_wrong_tokens_have_to_wait(served):
    server, _, tokens = served
    codes = [httpx.post(server.url + "/api/sign-in", json={"token": f"keel-{i}"}).status_code for i in range(12)]
    assert codes == [401] * 10 + [429] * 2
    assert httpx.post(server.url + "/api/sign-in", json={"token": tokens["ana"]}).status_code == 429


def test_another_raters_turn_cannot_be_touched(served):
    server, source, tokens = served
    ana, ben = Client(server.url, tokens["ana"]), Client(server.url, tokens["ben"])
    key = ana.task()["task"]["key"]
    for path in (f"/api/task/{key}", f"/api/task/{key}/skip", f"/api/task/{key}/flag"):
        assert ben.post(path, json=BETTER if path.endswith(key) else {}).status_code == 409
    assert held(source) == []
    assert ben.post("/api/undo").status_code == 409


# --- hostile requests -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/....//app.py",
        "/static//etc/passwd",
        "/static/..%5capp.py",
        "/..%2f..%2fetc/passwd",
        "/templates/admin.html",
    ],
)
def test_no_path_leads_out_of_the_static_files(shared_server, path):
    server, _, ana = shared_server
    request = ana.build_request("GET", server.url)
    request.url = request.url.copy_with(raw_path=path.encode())
    answer = ana.send(request)
    assert answer.status_code in (400, 404)
    assert "import" not in answer.text
    assert "root:" not in answer.text


def test_bodies_that_are_too_large(shared_server):
    _, source, ana = shared_server
    key = ana.task()["task"]["key"]
    huge = BETTER | {"comment": "x" * 100_000}
    answer = ana.post(f"/api/task/{key}", json=huge)
    assert answer.status_code == 413
    assert "too large" in answer.json()["error"]
    stream = (b'{"verdicts": {}, "comment": "' + b"x" * 8_192 for _ in range(100))
    answer = ana.post(f"/api/task/{key}", content=stream, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert ana.post(f"/api/task/{key}", json=BETTER | {"comment": "x" * 10_001}).status_code == 422
    assert held(source) == []


SQL = ["'; DROP TABLE judgments; --", '" OR 1=1 --', "\x00", "%00", "1 UNION SELECT token FROM accounts", "é" * 50]


@pytest.mark.parametrize("text", SQL)
def test_sql_in_every_field_is_only_text(served, text):
    server, source, tokens = served
    assert httpx.post(server.url + "/api/sign-in", json={"token": text}).status_code == 401
    cookie = {"Cookie": f"keel_session={httpx.QueryParams({'x': text})}"}
    assert httpx.get(server.url + "/api/task", headers=cookie).status_code == 401
    ana = Client(server.url, tokens["ana"])
    key = ana.task()["task"]["key"]
    quoted = str(httpx.QueryParams({"": text})).lstrip("=")
    assert ana.post(f"/api/task/{quoted}", json=BETTER).status_code in (404, 405, 409)
    assert ana.post(f"/api/task/{key}", json={"verdicts": {text: {"outcome": "tie"}}}).status_code == 400
    assert ana.post(f"/api/task/{key}", json={"verdicts": {"overall": {"outcome": text}}}).status_code == 400
    answer = ana.post(f"/api/task/{key}", json=BETTER | {"comment": text})
    assert answer.status_code == 200
    (judgment,) = held(source)
    assert judgment.comment == text.strip()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[1]", b"\xff\xfe", b'{"verdicts": {"overall": NaN}}', b"{}" * 9]
)
def test_bodies_that_are_no_json_of_ours(shared_server, content):
    _, source, ana = shared_server
    key = ana.task()["task"]["key"]
    answer = ana.post(f"/api/task/{key}", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "error" in answer.json()
    assert "Traceback" not in answer.text
    assert held(source) == []
    assert ana.task()["task"]["key"] == key  # it is still to be judged


def test_every_answer_carries_the_headers(shared_server):
    server, _, ana = shared_server
    for path in ("/", "/api/task", "/static/style.css", "/nothing", "/admin"):
        headers = ana.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
    assert ana.get("/api/task").headers["cache-control"] == "no-store"
    assert httpx.get(server.url, headers={"Host": "evil.example"}).status_code == 400


# --- those who lead -------------------------------------------------------------------------------


def test_an_admin_sees_figures_and_decides(run_server, tmp_path):
    source, tokens = fill(f"store:{tmp_path}/a.db", 2, overlap=2)
    server = run_server(source)
    for name in ("ana", "ben"):
        client = Client(server.url, tokens[name])
        for outcome in ("left", "left" if name == "ana" else "right"):
            turn = client.task()["task"]
            side = "first" if outcome in turn["answers"][0]["html"] else "second"
            said = {"verdicts": {"overall": {"outcome": side, "strength": 1}}, "seconds": 2}
            client.post(f"/api/task/{turn['key']}", json=said)
    zoe = Client(server.url, tokens["zoe"])
    found = zoe.get("/api/admin").json()
    assert found["progress"] == {"judged": 4, "wanted": 4, "tasks": 2, "skipped": 0, "flagged": 0}
    assert found["agreement"][0]["shared"] == 2
    assert found["agreement"][0]["agree"]["mean"] == 0.5
    assert {r["name"]: r["judged"] for r in found["raters"]} == {"ana": 2, "ben": 2, "zoe": 0}
    (one,) = found["disagreements"]
    assert sorted(v["outcome"] for v in one["verdicts"]) == ["first", "second"]
    after = zoe.post(f"/api/admin/adjudicate/{one['task']}", json=BETTER).json()
    assert after["disagreements"] == []
    assert "zoe (adjudicator)" in {j.rater for j in held(source)}
    assert zoe.post("/api/admin/adjudicate/999", json=BETTER).status_code == 409
    assert zoe.get("/admin").status_code == 200


@pytest.fixture
def within(tmp_path):
    """`within(secure=True)`: a client of the application itself, in this process, and its store."""
    from fastapi.testclient import TestClient

    with ExitStack() as stack:

        def make(**options):
            store = stack.enter_context(Store(f"store:{tmp_path}/w.db", create=True))
            queue = Queue(store)
            queue.add([NewTask("p", (Answer("left"), Answer("right")))], overlap=2)
            app = make_app(store, queue, DEFAULT_RUBRIC, **options)
            return stack.enter_context(TestClient(app, base_url="https://127.0.0.1")), store

        yield make


@pytest.mark.parametrize("secure", [False, True])
def test_a_session_s_cookie_is_for_no_script_no_other_site_and_https_where_that_is_asked_for(within, secure):
    client, store = within(secure=secure)
    answer = client.post("/api/sign-in", json={"token": accounts.add(store, "ana")})
    cookie = [part.strip().lower() for part in answer.headers["set-cookie"].split(";")]
    assert {"httponly", "samesite=strict", "path=/"} <= set(cookie)
    assert ("secure" in cookie) == secure
    assert f"max-age={24 * 3600}" in cookie


@pytest.mark.parametrize(("role", "allowed"), [("rater", False), ("adjudicator", True), ("admin", True)])
def test_who_may_see_figures_and_decide(within, role, allowed):
    client, store = within()
    assert client.get("/api/admin").status_code == 401
    assert client.get("/admin").status_code == 401
    client.post("/api/sign-in", json={"token": accounts.add(store, "pat", role)})
    csrf = {"x-keel-csrf": re.search(r'name="csrf" content="([^"]+)"', client.get("/").text)[1]}
    assert client.get("/api/admin").status_code == (200 if allowed else 403)
    assert client.get("/admin").status_code == (200 if allowed else 403)
    assert client.post("/api/admin/adjudicate/1", json=BETTER).status_code == 403  # without the page's word
    assert client.post("/api/admin/adjudicate/1", json=BETTER, headers=csrf).status_code == (200 if allowed else 403)
    decided = [j.rater for group in store.groups() for _, j in group]
    assert decided == (["pat (adjudicator)"] if allowed else [])
