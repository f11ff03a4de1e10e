"""A judge behind any OpenAI-compatible endpoint: OpenAI, vLLM, SGLang, llama.cpp and many more.

Each pair is asked about twice, once in each order, at temperature 0 (`two_orders` makes one verdict of both, `replies`
has the words). A call that fails for a while (no connection, no reply in time, 408, 409, 429, 5xx) is repeated after
growing, jittered waits; an unreadable reply is asked for once more. Past a deadline the task is `Missing`. A failure
that waiting does not mend (401, 402, 403, 404, an exhausted quota) stops the command.

Left out on purpose: streaming (a verdict is short), batch interfaces (half the price, a day's wait), and caching (a
caller that keeps the judgments asks only for the rest).
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic import ConfigDict, Field, model_validator

from keel.config import CollectConfig
from keel.config.base import Config, Count, NonNegative, Positive
from keel.errors import InputError
from keel.guidelines import DEFAULT_RUBRIC, Rubric, rubric_of
from keel.raters import Missing, Rater, Task
from keel.raters.replies import (
    TEMPLATE,
    NoVerdict,
    Refused,
    Unreadable,
    ask_for_verdict,
    both_as_text,
    read_reply,
    schema,
)
from keel.raters.two_orders import IDENTICAL, as_judgments, identical, settle, swap
from keel.records import Judgment, Message
from keel.sampling.client import AGAIN, first_line, in_thread, retry_after, server_said

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_FORMS = ("json_schema", "json_object", "text")
"""Ways to ask for a structured reply, the strictest first; if a server refuses one, the next is tried."""
_CHARACTERS_PER_TOKEN = 4  # of English; for servers that do not count


class JudgeConfig(Config):
    """Settings of a judge: model, server, patience and budget."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    model: str
    """Name of the model at the endpoint."""
    base_url: str | None = None
    """Address of an OpenAI-compatible server, usually ending in /v1; OPENAI_BASE_URL or OpenAI's own by default."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is written nowhere."""
    concurrency: Count = 8
    """Pairs asked about at once."""
    timeout: Positive = 60.0
    """Seconds for one reply, to its last byte."""
    deadline: Positive = 300.0
    """Seconds for one pair: both orders, all repetitions and all waits."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Repetitions of a call that failed for a while."""
    first_wait: Positive = 0.5
    """Seconds before the first repetition; doubled before each further one, up to half a minute."""
    reply_tokens: Count = 1024
    """Length limit of a reply."""
    temperature: NonNegative | None = 0.0
    """None for models that take no temperature; their verdicts vary from call to call."""
    price_in: NonNegative | None = None
    """Money per million tokens read."""
    price_out: NonNegative | None = None
    """Money per million tokens written."""
    budget: Positive | None = None
    """Money after which no further pair is begun; those under way are finished."""
    token_budget: Count | None = None
    """Tokens, read and written together, after which no further pair is begun."""

    @model_validator(mode="after")
    def _a_budget_needs_prices(self) -> JudgeConfig:
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("give both prices, price_in and price_out, or neither")
        if self.budget is not None and self.price_in is None:
            raise ValueError("a budget in money needs price_in and price_out; or give a token_budget")
        return self


@dataclass(slots=True)
class Spent:
    """Tokens of all replies that came, unreadable ones included; calls that brought none are not counted."""

    tokens_in: int = 0
    tokens_out: int = 0
    replies: int = 0
    estimated: int = 0
    """Replies whose server did not count its tokens; a token is then taken as four characters."""

    def add(self, usage: Any, messages: Sequence[Message], text: str) -> None:
        """Count one reply, by the server's figures or else by the length of its texts."""
        read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
        if not (isinstance(read, int) and isinstance(written, int) and min(read, written) >= 0):
            self.estimated += 1
            read = math.ceil(sum(len(m["content"]) for m in messages) / _CHARACTERS_PER_TOKEN)
            written = math.ceil(len(text) / _CHARACTERS_PER_TOKEN)
        self.replies += 1
        self.tokens_in += read
        self.tokens_out += written

    @property
    def tokens(self) -> int:
        return self.tokens_in + self.tokens_out


class Judge:
    """A `Rater` whose verdicts come from a language model at an endpoint.

    It counts as it goes: `spent`; `missing` (tasks without a verdict); `refused` (those of them that the judge
    declined); `compared` (verdicts of both orders); `position_flips` (those of them in which the same position won
    twice, which makes them ties). `out_of_budget` says whether tasks were left out for lack of budget.
    """

    def __init__(self, config: JudgeConfig, rubric: Rubric = DEFAULT_RUBRIC) -> None:
        self.config, self.rubric = config, rubric
        warmth = "" if config.temperature == 0 else f" temperature {config.temperature}"
        self.identity = f"{config.model}{warmth} @ {rubric.version}-{TEMPLATE}"
        self.spent = Spent()
        self.missing = self.refused = self.compared = self.position_flips = 0
        self.out_of_budget = False
        self._form = 0
        self._jitter = random.SystemRandom()  # waits only: no verdict depends on it
        self._key = _key(config)

    # --- what a rater does

    def rate(self, tasks: Sequence[Task]) -> Iterator[tuple[int, list[Judgment] | Missing]]:
        """Yield verdicts as they come.

        At most `concurrency` pairs are begun and not yet taken, so that stopping wastes few. Raises `InputError` if the
        endpoint will never answer: a wrong key, model or address.
        """
        waiting = deque(enumerate(tasks))
        running: dict[Future[list[Judgment] | Missing], int] = {}
        client = _client(self.config, self._key)
        with in_thread(client, "keel-judge") as loop:
            while True:
                while waiting and len(running) < self.config.concurrency and not self._over_budget():
                    index, task = waiting.popleft()
                    running[asyncio.run_coroutine_threadsafe(self._judge(client, task), loop)] = index
                if not running:
                    return
                done = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
                yield running.pop(done), done.result()

    def require_server(self) -> None:
        """Refuse a self-hosted server that is not there, before anything is drawn for it.

        One connection is tried. Behind a proxy this cannot be told, so nothing is refused.
        """
        address = self.config.base_url or os.environ.get("OPENAI_BASE_URL", "")
        url = urlsplit(address)
        if not url.hostname or (url.scheme in getproxies() and not proxy_bypass(url.hostname)):
            return
        try:
            port = url.port or {"http": 80, "https": 443}[url.scheme]
            socket.create_connection((url.hostname, port), timeout=min(self.config.timeout, 10.0)).close()
        except (KeyError, ValueError):
            return  # no address: the client says so
        except OSError as error:
            said = first_line(error)
            raise InputError(f"{address}: no server there ({said}); start it, or mend --judge-server") from error

    def note(self) -> str:
        """Return `$0.42, 12,300 tokens, 3 missing`."""
        about = "about " if self.spent.estimated else ""
        parts = [] if self.money is None else [f"{about}${self.money:,.2f}"]
        parts.append(f"{about}{self.spent.tokens:,} tokens")
        if self.missing:
            declined = f" ({self.refused} declined)" if self.refused else ""
            parts.append(f"{self.missing} missing{declined}")
        return ", ".join([*parts, *(["budget reached"] if self.out_of_budget else [])])

    @property
    def money(self) -> float | None:
        """Return the money spent; None without prices."""
        if self.config.price_in is None or self.config.price_out is None:
            return None
        return (self.spent.tokens_in * self.config.price_in + self.spent.tokens_out * self.config.price_out) / 1e6

    def _over_budget(self) -> bool:
        """Say whether the budget is spent; asked only if a task waits to be begun, which is then left out."""
        limits = ((self.config.budget, self.money), (self.config.token_budget, self.spent.tokens))
        self.out_of_budget = any(limit is not None and spent is not None and spent >= limit for limit, spent in limits)
        return self.out_of_budget

    # --- one task

    async def _judge(self, client: AsyncOpenAI, task: Task) -> list[Judgment] | Missing:
        """Judge a task in both orders, one after the other, before the deadline."""
        if identical(task):
            return as_judgments(task, dict.fromkeys(self.rubric.names, IDENTICAL), self.identity, self.rubric)
        started, troubles = time.monotonic(), ["no reply"]
        try:
            async with asyncio.timeout(self.config.deadline):
                shown, swapped = [await self._hear(client, t, troubles) for t in (task, swap(task))]
        except (NoVerdict, TimeoutError) as error:
            self.missing += 1
            self.refused += isinstance(error, Refused)
            late = f"no verdict within {self.config.deadline:g} s (--deadline); the last trouble: {troubles[-1]}"
            return Missing(late if isinstance(error, TimeoutError) else str(error))
        heard, mirrored = read_reply(shown, self.rubric), read_reply(swapped, self.rubric)
        settled = {name: settle(heard[name], mirrored[name]) for name in self.rubric.names}
        self.compared += len(settled)
        self.position_flips += sum(verdict.flipped for verdict in settled.values())
        seconds = time.monotonic() - started
        return as_judgments(task, settled, self.identity, self.rubric, both_as_text(shown, swapped), seconds)

    async def _hear(self, client: AsyncOpenAI, task: Task, troubles: list[str]) -> str:
        """Return a readable reply to one order; append what went wrong on the way to `troubles`."""
        messages, unreadable, attempt = ask_for_verdict(task, self.rubric), False, 0
        while True:
            try:
                text, cut = await self._call(client, messages)
                read_reply(text, self.rubric, cut, messages[-1]["content"])
                return text
            except Unreadable as fault:
                if unreadable:
                    raise
                unreadable, pause = True, 0.0
                troubles.append(str(fault))
            except _Again as fault:
                if attempt >= self.config.retries:
                    raise
                growing = min(30.0, self.config.first_wait * 2 ** min(attempt, 20))
                pause = fault.after + growing * self._jitter.uniform(0.5, 1)
                troubles.append(str(fault))
            attempt += 1
            await asyncio.sleep(pause)

    async def _call(self, client: AsyncOpenAI, messages: list[Message]) -> tuple[str, bool]:
        """Return a reply's text, and whether its length limit cut it, in the strictest form that the server takes.

        A looser form is kept for later calls once it has worked: a request refused in every form was at fault itself.
        """
        refusal = _Form("the server refuses the request")
        for form in range(self._form, len(_FORMS)):
            try:
                completion = await self._post(client, messages, _FORMS[form])
            except _Form as error:
                refusal = error
                continue
            self._form = max(self._form, form)
            return self._read(completion, messages)
        raise refusal

    async def _post(self, client: AsyncOpenAI, messages: list[Message], form: str) -> Any:
        """Send one request. Errors of the client become `_Again`, `_Form`, another `NoVerdict`, or `InputError`."""
        import openai

        try:
            async with asyncio.timeout(self.config.timeout):
                return await client.chat.completions.create(**self._request(client, messages, form))
        except (TimeoutError, openai.APITimeoutError) as error:
            raise _Again(f"no whole reply within {self.config.timeout:g} s (--judge-timeout)") from error
        except openai.APIConnectionError as error:
            raise _Again(f"the connection failed ({first_line(error.__cause__ or error)})") from error
        except openai.APIStatusError as error:
            raise self._meaning(error, client) from error
        except (ValueError, openai.APIResponseValidationError) as error:
            raise Unreadable("the server's answer is not JSON") from error
        except Exception as error:  # any other failure costs one task, not the command
            raise NoVerdict(f"the request failed ({type(error).__name__}: {first_line(error)})") from error

    def _request(self, client: AsyncOpenAI, messages: list[Message], form: str) -> dict[str, Any]:
        request: dict[str, Any] = {"model": self.config.model, "messages": messages}
        own = client.base_url.host.endswith("openai.com")  # whose newer models know only max_completion_tokens
        request["max_completion_tokens" if own else "max_tokens"] = self.config.reply_tokens
        if self.config.temperature is not None:
            request["temperature"] = self.config.temperature
        if form == "json_schema":
            named = {"name": "verdicts", "strict": True, "schema": schema(self.rubric)}
            request["response_format"] = {"type": form, "json_schema": named}
        elif form == "json_object":
            request["response_format"] = {"type": form}
        return request

    def _meaning(self, error: Any, client: AsyncOpenAI) -> Exception:
        """Return the exception that a status other than 200 calls for."""
        status, code, said = error.status_code, str(error.code), server_said(error, self._key)
        remedy = None
        if status in (401, 403):
            remedy = f"set {self.config.key_variable} to a key that may ask this model"
        elif status == 402 or code == "insufficient_quota":
            remedy = "add credit, or name another endpoint"
        elif status == 404 or code == "model_not_found":
            remedy = f"check the model's name ({self.config.model}) and the address ({client.base_url}, usually …/v1)"
        elif error.param == "temperature":
            remedy = "say --judge-temperature none, or one that this model takes"
        if remedy:
            return InputError(f"the judge's server says {said}; {remedy}")
        if code in ("content_filter", "content_policy_violation"):
            return Refused(f"the judge's server declined: {said}")
        if code == "context_length_exceeded":
            return NoVerdict(f"the pair is too long for the judge: {said}")
        if status in (400, 422) or "response_format" in said:  # llama-cpp-python answers 500 to a format it lacks
            return _Form(f"the server refuses the request: {said}")
        if status in AGAIN or status >= 500:
            return _Again(said, retry_after(error.response.headers))
        return NoVerdict(said)

    def _read(self, completion: Any, messages: list[Message]) -> tuple[str, bool]:
        """Return a completion's text and whether it was cut; count its tokens, whatever it says."""
        try:
            choice = completion.choices[0]
            text, declined, end = choice.message.content, getattr(choice.message, "refusal", None), choice.finish_reason
        except (AttributeError, TypeError, IndexError) as error:
            raise Unreadable("the server's answer is not a chat completion") from error
        self.spent.add(getattr(completion, "usage", None), messages, text if isinstance(text, str) else "")
        if declined or end == "content_filter":
            raise Refused(f"the judge declined: {declined or 'content filter'}"[:300])
        if end != "length" and (not isinstance(text, str) or not text.strip()):
            raise Unreadable("the reply is empty")
        return text or "", end == "length"


# --- the connection -------------------------------------------------------------------------------


class _Again(NoVerdict):
    """The call failed for a while; `after` is the least number of seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class _Form(NoVerdict):
    """The server refuses the request as it is written."""


def _key(config: JudgeConfig) -> str:
    """Return the key, from the environment alone. Self-hosted servers often need none."""
    key = os.environ.get(config.key_variable, "").strip()
    if not key.isascii() or not key.isprintable():  # a client would quote it in its error
        raise InputError(f"the environment variable {config.key_variable} holds characters that a key cannot have")
    elsewhere = config.base_url is not None or "OPENAI_BASE_URL" in os.environ
    if not key and not (elsewhere and config.key_variable == "OPENAI_API_KEY"):
        raise InputError(f"no API key: set the environment variable {config.key_variable}, or name another one")
    return key


def _client(config: JudgeConfig, key: str) -> AsyncOpenAI:
    """Return the official client, its own retries switched off."""
    try:
        from openai import AsyncOpenAI
    except ImportError as error:
        raise InputError("a judge needs the openai package: pip install 'keel-tune[judge]'") from error
    try:
        client = AsyncOpenAI(api_key=key or "none", base_url=config.base_url, max_retries=0, timeout=config.timeout)
        url = urlsplit(str(client.base_url))
        sound = url.scheme in ("http", "https") and url.hostname and url.port != 0  # a port out of range raises
    except ValueError:
        sound = False
    except Exception as error:  # the library's own: an unusable proxy or address in the environment
        raise InputError(f"{config.base_url}: no connection can be made ({first_line(error)}); mend it") from error
    if not sound:
        raise InputError(f"{config.base_url}: not a server's address; give one such as http://127.0.0.1:8000/v1")
    return client


# --- from the command line ------------------------------------------------------------------------


def make(name: str, config: CollectConfig) -> Rater:
    """Return the rater of `--rater judge:NAME`; raises `RunFailed` if there is no server."""
    shared = ("key_variable", "concurrency", "deadline", "price_in", "price_out", "budget", "token_budget")
    own = ("temperature", "reply_tokens", "timeout", "retries", "first_wait")
    options = {option: getattr(config, option) for option in shared}
    options |= {option: getattr(config, f"judge_{option}") for option in own}
    judge = Judge(JudgeConfig(model=name, base_url=config.judge_server, **options), rubric_of(config.rubric))
    judge.require_server()
    return judge
