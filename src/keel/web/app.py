"""The annotation server: who may ask for what, over the queue of tasks.

Every answer carries headers that let a page run this server's own scripts and nothing else. A request that changes
something needs the session's cookie, which scripts cannot read, and its CSRF word in a header, which other sites cannot
send. What a rater gets never holds a model's name, another's verdict, or a task that is not in his hands.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from markupsafe import escape
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keel.annotation import accounts, team
from keel.annotation.accounts import Session
from keel.annotation.queue import Queue
from keel.annotation.turns import GoneError, Turn
from keel.errors import InputError
from keel.files.jsonl import finite
from keel.guidelines import Rubric
from keel.records import Answer, Preference, Prompt, Ranking, Score, Verdict
from keel.says import say
from keel.store import survey
from keel.store.store import Store
from keel.text.shown import text_of, turns_of
from keel.web.render import sound, to_html

HERE = Path(__file__).parent
COOKIE = "keel_session"
LARGEST = 64 * 1024
"""Bytes of a request: a verdict with a long comment is a hundredth of it."""
FAILURES, WINDOW = 10, 300.0
"""Wrong tokens from one address in so many seconds, after which it must wait."""
FRESH = 5.0
"""Seconds for which figures of the admin page are kept at least."""
GRADES = 5
"""Scores go from 1 to this."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


# --- what pages send ------------------------------------------------------------------------------


class RefusedError(InputError):
    """What a page has sent is not what is asked for; the words are meant for its reader."""


class Body(BaseModel):
    """Base of all bodies: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class SignIn(Body):
    """A personal token."""

    token: Annotated[str, Field(max_length=200)]


class Said(Body):
    """A verdict in one dimension; which fields it has depends on the kind of task."""

    outcome: str | None = None
    strength: Annotated[int | None, Field(ge=1, le=3)] = None
    value: Annotated[int | None, Field(ge=1, le=GRADES)] = None
    ranks: Annotated[list[int] | None, Field(max_length=32)] = None


class Judged(Body):
    """A verdict in each dimension that was asked about."""

    verdicts: Annotated[dict[str, Said], Field(max_length=50)]
    comment: Annotated[str, Field(max_length=10_000)] = ""
    seconds: Annotated[float | None, Field(ge=0, le=86_400)] = None


class Flag(Body):
    """What is wrong with a task."""

    note: Annotated[str, Field(max_length=10_000)] = ""


def verdict_of(kind: str, said: Said, answers: int) -> Verdict:
    """A verdict as the store keeps it; `RefusedError` where it does not fit the kind of task."""
    given = {name for name in ("outcome", "strength", "value", "ranks") if getattr(said, name) is not None}
    if kind == "score" and given == {"value"}:
        assert said.value is not None
        return Score(float(said.value))
    if kind == "ranking" and given == {"ranks"}:
        assert said.ranks is not None
        if len(said.ranks) != answers or set(said.ranks) != set(range(1, max(said.ranks, default=0) + 1)):
            raise RefusedError(f"give {answers} ranks that begin with 1 and leave out none; equal ranks are ties")
        return Ranking(tuple(said.ranks))
    if kind == "pair" and said.outcome in ("first", "second") and given == {"outcome", "strength"}:
        return Preference("first" if said.outcome == "first" else "second", float(said.strength or 0))
    if kind == "pair" and said.outcome in ("tie", "both_bad") and given == {"outcome"}:
        return Preference("tie" if said.outcome == "tie" else "both_bad")
    raise RefusedError(f"this is no verdict on a {kind} task; reload the page")


# --- the application ------------------------------------------------------------------------------


class Desk:
    """What the routes share: store, queue, rubric, and who has tried to sign in how often."""

    def __init__(self, store: Store, queue: Queue, rubric: Rubric, secure: bool) -> None:
        self.store, self.queue, self.rubric, self.secure = store, queue, rubric, secure
        self.guidelines = dict(rubric.dimensions)
        self.failures: dict[str, deque[float]] = defaultdict(deque)
        self.figures: tuple[float, dict[str, Any]] = (0.0, {})
        self.counting, self.lock = threading.Lock(), threading.Lock()

    # --- signing in

    def must_wait(self, address: str) -> bool:
        """Whether an address has been wrong too often of late."""
        with self.lock:
            found = self.failures[address]
            while found and found[0] < time.monotonic() - WINDOW:
                found.popleft()
            if not found:
                del self.failures[address]
            return len(found) >= FAILURES

    def failed(self, address: str) -> None:
        """Count a wrong token."""
        with self.lock:
            if len(self.failures) > 10_000:  # many addresses: somebody tries; old ones are forgotten
                self.failures.clear()
            self.failures[address].append(time.monotonic())

    # --- turns

    def asked(self, turn: Turn) -> tuple[str, ...]:
        """The dimensions that a turn asks about."""
        return (turn.dimension,) if turn.dimension else self.rubric.names

    def show(self, session: Session, turn: Turn | None) -> dict[str, Any]:
        """A turn as the page gets it: no model's name, no other's verdict."""
        progress = self.queue.progress(session.name)
        return {
            "task": None if turn is None else self._task(turn),
            "progress": {name: getattr(progress, name) for name in progress.__slots__},
            "me": {"name": session.name, "role": session.role},
        }

    def _task(self, turn: Turn) -> dict[str, Any]:
        return {
            "key": turn.key,
            "kind": turn.kind,
            "prompt": shown_prompt(turn.prompt),
            "answers": shown_answers(turn.answers),
            "dimensions": self.dimensions(turn.kind, self.asked(turn)),
            "seconds_left": turn.seconds_left,
            "said": turn.said,
        }

    def dimensions(self, kind: str, names: tuple[str, ...]) -> list[dict[str, str]]:
        """What is asked in each dimension."""
        what = {"pair": "Which answer is better?", "score": "How good is the answer?", "ranking": "Best answer first"}[
            kind
        ]
        return [
            {
                "name": name,
                "question": what,
                "guideline_html": html_of(self.guidelines.get(name, "")),
            }
            for name in names
        ]

    def judge(self, session: Session, key: str, body: Judged) -> None:
        """Store a verdict on a turn in somebody's hands."""
        turn = self.queue.held(session.name, key)
        if set(body.verdicts) != set(self.asked(turn)):
            raise RefusedError(f"give a verdict in each of: {', '.join(self.asked(turn))}")
        verdicts = {name: verdict_of(turn.kind, said, len(turn.answers)) for name, said in body.verdicts.items()}
        options = {"rubric": self.rubric.version, "comment": body.comment.strip(), "seconds": body.seconds}
        self.queue.judge(session.name, key, verdicts, **options)  # type: ignore[arg-type]

    # --- the admin page

    def overview(self) -> dict[str, Any]:
        """Figures of the admin page: `FRESH` seconds old at most, or ten times what it takes to count them."""
        with self.counting:
            until, found = self.figures
            if time.monotonic() > until or not found:
                began = time.monotonic()
                found = self._overview()
                took = time.monotonic() - began
                self.figures = (began + max(FRESH, 10 * took), found)
            return found

    def _overview(self) -> dict[str, Any]:
        agreed = survey.agreement(survey.said_in_store(self.store, "person"))
        found = {
            "progress": team.totals(self.store),
            "agreement": [
                {
                    "dimension": one.dimension,
                    "kind": "score" if one.scored else "preference",
                    "shared": one.shared,
                    "agree": one.agree.as_dict() if one.shared else None,
                    "alpha": one.alpha.as_dict() if one.shared else None,
                    "fleiss": one.fleiss,
                    "raters": one.as_dict()["raters"],
                }
                for one in agreed
            ],
            "raters": [worker.as_dict() for worker in team.workers(self.store)],
            "disagreements": [self._disagreement(one) for one in team.disagreements(self.store)],
            "flags": [self._flag(flag) for flag in team.flags(self.store)],
        }
        return finite(found)  # type: ignore[no-any-return]

    def _flag(self, flag: dict[str, Any]) -> dict[str, Any]:
        kept = {name: flag[name] for name in ("task", "kind", "rater", "note")}
        return kept | {"prompt_text": _plain(flag["prompt"]), "answers": shown_answers(flag["answers"])}

    def _disagreement(self, one: team.Disagreement) -> dict[str, Any]:
        names = tuple(dict.fromkeys(verdict["dimension"] for verdict in one.verdicts))
        return {
            "task": one.task,
            "kind": one.kind,
            "prompt": shown_prompt(one.prompt),
            "answers": shown_answers(one.answers),
            "verdicts": one.verdicts,
            "adjudicated": False,
            "dimensions": self.dimensions(one.kind, names),
        }

    def decide(self, session: Session, task: int, body: Judged) -> None:
        """Store an adjudicator's verdict on a task."""
        kind, answers = self.queue.kind_of(task)
        verdicts = {name: verdict_of(kind, said, answers) for name, said in body.verdicts.items()}
        if not verdicts or not set(verdicts) <= set(self.rubric.names):
            raise RefusedError(f"give a verdict in some of: {', '.join(self.rubric.names)}")
        options = {"rubric": self.rubric.version, "comment": body.comment.strip()}
        self.queue.adjudicate(session.name, task, verdicts, **options)
        with self.counting:
            self.figures = (0.0, {})


def shown_answers(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """Answers as the page gets them: safe HTML, the text itself, its length, and nothing of who wrote it."""
    texts = [(text_of(one), len(one.text)) for one in answers]
    return [{"html": html_of(text), "text": sound(text), "characters": length} for text, length in texts]


def shown_prompt(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt's turns as safe HTML and as they are; plain text is one turn that nobody speaks."""
    return [{"role": role, "html": html_of(text), "text": sound(text)} for role, text in turns_of(prompt)]


def _plain(prompt: Prompt) -> str:
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return text[:300]


@lru_cache(maxsize=1024)
def html_of(text: str) -> str:
    """Markdown as safe HTML; the same text comes again with each rater."""
    return to_html(text)


def make_app(
    store: Store, queue: Queue, rubric: Rubric, *, hosts: list[str] | None = None, secure: bool = False
) -> FastAPI:
    """The server over a store. `hosts` are the names under which it may be called; `secure`: cookies by HTTPS only."""
    app = FastAPI(title="Keel", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = Desk(store, queue, rubric, secure)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    _pages(app)
    _signing(app)
    _turns(app)
    _admin(app)
    _refusals(app)
    app.add_middleware(Guard)
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    return app


# --- who is asking --------------------------------------------------------------------------------


def desk(request: Request) -> Desk:
    """What the routes share."""
    found: Desk = request.app.state.desk
    return found


def visitor(request: Request) -> Session | None:
    """Who has signed in, if anybody."""
    cookie = request.cookies.get(COOKIE, "")
    return accounts.session_of(desk(request).store, cookie) if cookie else None


def member(request: Request) -> Session:
    """Who has signed in; 401 where nobody has. A request that changes something must carry the CSRF word."""
    session = visitor(request)
    if session is None:
        raise HTTPException(401, "sign in first")
    if request.method != "GET":
        word = request.headers.get("x-keel-csrf", "")
        if not secrets.compare_digest(word.encode(), session.csrf.encode()):
            raise HTTPException(403, "this request does not come from the page; reload it")
    return session


def leader(request: Request) -> Session:
    """The same for those who may see the figures."""
    session = member(request)
    if session.role == "rater":
        raise HTTPException(403, "this page is for adjudicators and admins")
    return session


Member = Annotated[Session, Depends(member)]
Leader = Annotated[Session, Depends(leader)]
AtDesk = Annotated[Desk, Depends(desk)]


# --- routes ---------------------------------------------------------------------------------------


def _pages(app: FastAPI) -> None:
    templates = Jinja2Templates(directory=HERE / "templates")

    @app.get("/", response_class=HTMLResponse)
    def home(request: Request, at: AtDesk) -> Response:
        session = visitor(request)
        if session is None:
            return templates.TemplateResponse(request, "sign_in.html", {})
        guidelines = "".join(f"<h3>{escape(name)}</h3>{html_of(text)}" for name, text in at.rubric.dimensions)
        parts = {"csrf": session.csrf, "name": session.name, "role": session.role, "guidelines_html": guidelines}
        return templates.TemplateResponse(request, "annotate.html", parts)

    @app.get("/admin", response_class=HTMLResponse)
    def admin(request: Request) -> Response:
        session = visitor(request)
        if session is None:
            return templates.TemplateResponse(request, "sign_in.html", {}, status_code=401)
        if session.role == "rater":
            return templates.TemplateResponse(request, "refused.html", {"name": session.name}, status_code=403)
        parts = {"csrf": session.csrf, "name": session.name, "role": session.role}
        return templates.TemplateResponse(request, "admin.html", parts)


def _signing(app: FastAPI) -> None:
    @app.post("/api/sign-in")
    def sign_in(request: Request, body: SignIn, at: AtDesk, response: Response) -> dict[str, str]:
        address = request.client.host if request.client else ""
        if at.must_wait(address):
            raise HTTPException(429, "too many wrong tokens; wait five minutes", {"Retry-After": str(int(WINDOW))})
        found = accounts.sign_in(at.store, body.token.strip())
        if found is None:
            at.failed(address)
            raise HTTPException(401, "this token opens nothing; ask for another (keel raters add)")
        cookie, session = found
        options: dict[str, Any] = {"httponly": True, "samesite": "strict", "secure": at.secure, "path": "/"}
        response.set_cookie(COOKIE, cookie, max_age=int(accounts.SESSION), **options)
        return {"name": session.name, "role": session.role}

    @app.post("/api/sign-out")
    def sign_out(request: Request, session: Member, at: AtDesk, response: Response) -> dict[str, str]:
        accounts.sign_out(at.store, request.cookies[COOKIE])
        response.delete_cookie(COOKIE, path="/")
        return {}


def _turns(app: FastAPI) -> None:
    def next_of(at: Desk, session: Session) -> dict[str, Any]:
        return at.show(session, at.queue.next(session.name))

    @app.get("/api/task")
    def task(session: Member, at: AtDesk) -> dict[str, Any]:
        return next_of(at, session)

    @app.post("/api/task/{key}")
    def judge(key: str, body: Judged, session: Member, at: AtDesk) -> dict[str, Any]:
        at.judge(session, key, body)
        return next_of(at, session)

    @app.post("/api/task/{key}/skip")
    def skip(key: str, session: Member, at: AtDesk) -> dict[str, Any]:
        at.queue.skip(session.name, key)
        return next_of(at, session)

    @app.post("/api/task/{key}/flag")
    def flag(key: str, body: Flag, session: Member, at: AtDesk) -> dict[str, Any]:
        at.queue.flag(session.name, key, body.note.strip())
        return next_of(at, session)

    @app.post("/api/undo")
    def undo(session: Member, at: AtDesk) -> dict[str, Any]:
        return at.show(session, at.queue.undo(session.name))


def _admin(app: FastAPI) -> None:
    @app.get("/api/admin")
    def overview(session: Leader, at: AtDesk) -> dict[str, Any]:
        return at.overview()

    @app.post("/api/admin/adjudicate/{task}")
    def adjudicate(task: int, body: Judged, session: Leader, at: AtDesk) -> dict[str, Any]:
        at.decide(session, task, body)
        return at.overview()


# --- refusing -------------------------------------------------------------------------------------


def _refusals(app: FastAPI) -> None:
    """Every refusal is one plain sentence; none says how the server is made."""

    @app.exception_handler(StarletteHTTPException)
    def refused(request: Request, error: StarletteHTTPException) -> Response:
        said = str(error.detail) if error.status_code != 404 else "there is nothing here"
        return JSONResponse({"error": said}, error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def misformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"error": f"{where or 'the request'}: {first['msg']}; reload the page"}, 422)

    @app.exception_handler(GoneError)
    def gone(request: Request, error: GoneError) -> Response:
        return JSONResponse({"error": str(error)}, 409)

    @app.exception_handler(RefusedError)
    def wrong(request: Request, error: RefusedError) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> Response:
        say(f"{request.method} {request.url.path}: {type(error).__name__}: {error}")  # paths and SQL are not for raters
        return JSONResponse({"error": "the server could not do this; try again, or tell those who run it"}, 500)


class Guard:
    """Headers on every answer, and no request larger than `LARGEST`, whatever it says of its length."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = dict(HEADERS)
                if not scope["path"].startswith("/static/"):
                    extra["Cache-Control"] = "no-store"
                own = ((name.lower().encode(), value.encode()) for name, value in extra.items())
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        body = await _whole(receive)
        if body is None:
            await JSONResponse({"error": "the request is too large"}, 413)(scope, receive, guarded)
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def again() -> Message:
            return next(messages, None) or await receive()

        await self.app(scope, again, guarded)


async def _whole(receive: Receive) -> bytes | None:
    """A request's body; None as soon as it is beyond `LARGEST`."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > LARGEST:
            return None
    return b"".join(parts)
