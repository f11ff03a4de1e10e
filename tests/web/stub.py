"""A bare server with the routes of the annotation page, over a real queue: what the page's tests run against.

No limits, no policy headers beyond the content policy, no logging: the page is what is tested, not the server.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from keel.data import oversight, people, survey
from keel.data.store import Store
from keel.data.tasks import GoneError, Queue, Turn
from keel.raters.rubric import Rubric
from keel.records import Preference, Ranking, Score, Verdict
from keel.web import render

WEB = Path(render.__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def verdict_of(said: dict[str, Any]) -> Verdict:
    if "ranks" in said:
        return Ranking(tuple(said["ranks"]))
    return Score(said["value"]) if "value" in said else Preference(said["outcome"], said.get("strength", 0))


def turns_of(prompt: Any) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "", "html": render.to_html(prompt)}]
    return [{"role": turn["role"], "html": render.to_html(turn["content"])} for turn in prompt]


def answers_as_shown(answers: Any) -> list[dict[str, Any]]:
    return [{"html": render.to_html(a.text), "characters": len(a.text)} for a in answers]


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def build(store: Store, queue: Queue, rubric: Rubric, guidelines: str) -> FastAPI:
    app = FastAPI()
    app.mount("/static", StaticFiles(directory=WEB / "static"))
    pages = jinja2.Environment(loader=jinja2.FileSystemLoader(WEB / "templates"), autoescape=True)
    questions = [
        {"name": name, "question": text.split("?")[0] + "?", "guideline_html": render.to_html(text)}
        for name, text in rubric.dimensions
    ]

    def dimensions(name: str) -> list[dict[str, str]]:
        return [one for one in questions if name in ("", one["name"])]

    def who(request: Request) -> people.Session:
        found = people.session_of(store, request.cookies.get("session", ""))
        if found is None:
            raise HTTPException(401, "you are signed out; sign in again")
        if request.method == "POST" and request.headers.get("X-Keel-CSRF") != found.csrf:
            raise HTTPException(403, "this page is out of date; load it again")
        return found

    def turn_json(turn: Turn | None, me: people.Session) -> dict[str, Any]:
        task = turn and {
            "key": turn.key,
            "kind": turn.kind,
            "prompt": turns_of(turn.prompt),
            "answers": answers_as_shown(turn.answers),
            "dimensions": dimensions(turn.dimension),
            "seconds_left": turn.seconds_left,
            "said": turn.said,
        }
        return {"task": task, "progress": asdict(queue.progress(me.name)), "me": {"name": me.name, "role": me.role}}

    def admin_json() -> dict[str, Any]:
        agreement = [
            {**one.as_dict(), "kind": "score" if one.scored else "preference", "fleiss": one.fleiss}
            for one in survey.agreement(survey.said_in_store(store, "person"))
        ]
        cases = [
            {
                "task": one.task,
                "kind": one.kind,
                "prompt": turns_of(one.prompt),
                "answers": answers_as_shown(one.answers),
                "verdicts": one.verdicts,
                "adjudicated": False,
                "dimensions": [q for q in questions if q["name"] in {v["dimension"] for v in one.verdicts}],
            }
            for one in oversight.disagreements(store)
        ]
        flags = [{**f, "prompt": None, "prompt_text": str(f["prompt"])[:200]} for f in oversight.flags(store)]
        found = {
            "progress": oversight.totals(store),
            "agreement": agreement,
            "raters": [one.as_dict() for one in oversight.workers(store)],
            "disagreements": cases,
            "flags": flags,
        }
        return without_nan(found)

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.exception_handler(GoneError)
    def gone(request: Request, error: GoneError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 409)

    @app.middleware("http")
    async def with_policy(request: Request, go: Any) -> Any:
        reply = await go(request)
        reply.headers["Content-Security-Policy"] = POLICY
        return reply

    @app.get("/")
    def home(request: Request) -> HTMLResponse:
        me = people.session_of(store, request.cookies.get("session", ""))
        if me is None:
            return HTMLResponse(pages.get_template("sign_in.html").render())
        given = {"csrf": me.csrf, "name": me.name, "role": me.role, "guidelines_html": render.to_html(guidelines)}
        return HTMLResponse(pages.get_template("annotate.html").render(given))

    @app.get("/admin")
    def admin(request: Request) -> HTMLResponse:
        me = who(request)
        if me.role == "rater":
            raise HTTPException(403, "this page is for those who lead the team")
        return HTMLResponse(pages.get_template("admin.html").render(csrf=me.csrf, name=me.name, role=me.role))

    @app.post("/api/sign-in")
    def sign_in(given: dict[str, Any]) -> JSONResponse:
        found = people.sign_in(store, str(given.get("token")))
        if found is None:
            return JSONResponse({"error": "This token opens nothing; check that you copied all of it."}, 401)
        reply = JSONResponse({"name": found[1].name, "role": found[1].role})
        reply.set_cookie("session", found[0], httponly=True, samesite="strict")
        return reply

    @app.post("/api/sign-out")
    def sign_out(request: Request) -> dict[str, Any]:
        people.sign_out(store, request.cookies.get("session", ""))
        return {}

    @app.get("/api/task")
    def task(request: Request) -> dict[str, Any]:
        me = who(request)
        return turn_json(queue.next(me.name), me)

    @app.post("/api/task/{key}")
    def judge(key: str, given: dict[str, Any], request: Request) -> dict[str, Any]:
        me = who(request)
        verdicts = {name: verdict_of(said) for name, said in given["verdicts"].items()}
        queue.judge(me.name, key, verdicts, comment=given["comment"], seconds=given["seconds"])
        return turn_json(queue.next(me.name), me)

    @app.post("/api/task/{key}/skip")
    def skip(key: str, request: Request) -> dict[str, Any]:
        me = who(request)
        queue.skip(me.name, key)
        return turn_json(queue.next(me.name), me)

    @app.post("/api/task/{key}/flag")
    def flag(key: str, given: dict[str, Any], request: Request) -> dict[str, Any]:
        me = who(request)
        queue.flag(me.name, key, given["note"])
        return turn_json(queue.next(me.name), me)

    @app.post("/api/undo")
    def undo(request: Request) -> dict[str, Any]:
        me = who(request)
        return turn_json(queue.undo(me.name), me)

    @app.get("/api/admin")
    def figures(request: Request) -> dict[str, Any]:
        who(request)
        return admin_json()

    @app.post("/api/admin/adjudicate/{task}")
    def adjudicate(task: int, given: dict[str, Any], request: Request) -> dict[str, Any]:
        me = who(request)
        verdicts = {name: verdict_of(said) for name, said in given["verdicts"].items()}
        queue.adjudicate(me.name, task, verdicts, comment=given["comment"])
        return admin_json()

    return app


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The app on a free port of this machine, in a thread: its address."""
    place = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    assert server.started, "the server did not start"
    yield f"http://127.0.0.1:{place.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    place.close()
