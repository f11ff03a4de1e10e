"""The annotation server: routes over the queue of tasks, and the check of who may call them.

Every answer carries headers that let a page run this server's own scripts and nothing else. A request that changes
something needs the session's cookie, which scripts cannot read, and its CSRF token in a header, which other sites
cannot send. A rater never gets a model's name, another rater's verdict, or a task that they do not hold.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from markupsafe import escape
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from keel.annotation import accounts
from keel.annotation.accounts import Session
from keel.annotation.queue import Queue
from keel.annotation.turns import GoneError
from keel.guidelines import Rubric
from keel.says import say
from keel.store.store import Store
from keel.web.bodies import FlagBody, JudgmentBody, RefusedError, SignInBody
from keel.web.desk import Desk, html_of
from keel.web.guard import WINDOW, Guard

HERE = Path(__file__).parent
COOKIE = "keel_session"


def make_app(
    store: Store, queue: Queue, rubric: Rubric, *, hosts: list[str] | None = None, secure: bool = False
) -> FastAPI:
    """Return the server over a store. `hosts`: host names that it accepts; `secure`: send cookies over HTTPS only."""
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
    """Return the state that the routes share."""
    found: Desk = request.app.state.desk
    return found


def visitor(request: Request) -> Session | None:
    """Return the session of this request; None if nobody has signed in."""
    cookie = request.cookies.get(COOKIE, "")
    return accounts.session_of(desk(request).store, cookie) if cookie else None


def member(request: Request) -> Session:
    """Return the session; 401 if nobody has signed in, 403 if a request other than GET lacks the CSRF token."""
    session = visitor(request)
    if session is None:
        raise HTTPException(401, "sign in first")
    if request.method != "GET":
        word = request.headers.get("x-keel-csrf", "")
        if not secrets.compare_digest(word.encode(), session.csrf.encode()):
            raise HTTPException(403, "this request does not come from the page; reload it")
    return session


def leader(request: Request) -> Session:
    """Return the session of an adjudicator or admin; 403 for a rater."""
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
    def sign_in(request: Request, body: SignInBody, at: AtDesk, response: Response) -> dict[str, str]:
        address = request.client.host if request.client else ""
        if at.attempts.must_wait(address):
            raise HTTPException(429, "too many wrong tokens; wait five minutes", {"Retry-After": str(int(WINDOW))})
        found = accounts.sign_in(at.store, body.token.strip())
        if found is None:
            at.attempts.failed(address)
            raise HTTPException(401, "this token is not valid; ask for a new one (keel raters add)")
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
    @app.get("/api/task")
    def task(session: Member, at: AtDesk) -> dict[str, Any]:
        return at.serve(session)

    @app.post("/api/task/{key}")
    def judge(key: str, body: JudgmentBody, session: Member, at: AtDesk) -> dict[str, Any]:
        at.judge(session, key, body)
        return at.serve(session)

    @app.post("/api/task/{key}/skip")
    def skip(key: str, session: Member, at: AtDesk) -> dict[str, Any]:
        at.queue.skip(session.name, key)
        return at.serve(session)

    @app.post("/api/task/{key}/flag")
    def flag(key: str, body: FlagBody, session: Member, at: AtDesk) -> dict[str, Any]:
        at.queue.flag(session.name, key, body.note.strip())
        return at.serve(session)

    @app.post("/api/undo")
    def undo(session: Member, at: AtDesk) -> dict[str, Any]:
        return at.show(session, at.queue.undo(session.name), at.queue.progress(session.name))


def _admin(app: FastAPI) -> None:
    @app.get("/api/admin")
    def overview(session: Leader, at: AtDesk) -> dict[str, Any]:
        return at.overview()

    @app.post("/api/admin/adjudicate/{task}")
    def adjudicate(task: int, body: JudgmentBody, session: Leader, at: AtDesk) -> dict[str, Any]:
        at.decide(session, task, body)
        return at.overview()


# --- refusing -------------------------------------------------------------------------------------


def _refusals(app: FastAPI) -> None:
    """Answer every refusal with one plain sentence that shows nothing of how the server works."""

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
