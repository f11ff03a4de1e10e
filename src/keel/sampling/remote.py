"""Completions from any OpenAI-compatible server: vLLM, SGLang, llama.cpp, or a paid one.

Plain prompts go through /v1/completions, chats through /v1/chat/completions. A request that fails for a while (no
connection, 408, 409, 429, 5xx, a reply that is cut off) is sent again after growing, jittered waits until the prompt's
deadline. A prompt with too few completions returns those it has and the reason; nothing is raised. A failure that
waiting does not mend (a wrong key, model or address) raises `InputError`.

Servers have settings of their own, and models bring more. Top-k, min-p and the repetition penalty are switched off if a
server takes them, so that completions are drawn from the distribution that was asked for. Log-probabilities are kept
only at temperature 1 and top-p 1: otherwise servers give those of the raw distribution, which is not the one that was
drawn from.

Tools of a chat are sent in the form that a server takes. Tool calls, and reasoning that comes separately, are fields of
an answer.

Left out on purpose: streaming, and batch interfaces.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from keel.errors import InputError
from keel.files.fields import RowError
from keel.formats.messages import answer_of, messages, without_tools
from keel.records import Answer, Bundle, Completion, Message, Prompt
from keel.sampling.client import AGAIN, first_line, in_thread, public_address, retry_after, server_said
from keel.sampling.protocol import Filled, OnProgress, SamplingOptions

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_ENDED = ("stop", "eos", "eos_token", "stop_sequence", "tool_calls")
_NO_KEY = "none"
_JITTER = random.SystemRandom()  # of waits only
NOT_ASKED = "not asked"
"""Prefix of the reason for a prompt that was given up unasked, since the server has fallen silent."""
_PATIENCE = 10.0
"""Seconds in which a server must be reached for the first time; one never reached is a wrong address."""


@dataclass(slots=True)
class ServerSampler:
    """A `Sampler` behind a server. The same draw need not give the same completions twice.

    A server that has fallen silent is not asked again: prompts then get the reason `silent`.
    """

    url: str
    model: str
    options: SamplingOptions
    seed: int = 0
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 16
    deadline: float = 300.0
    silent: str = ""

    def fill(
        self,
        bundles: Sequence[Bundle],
        n: int,
        *purpose: object,
        have: int = 0,
        progress: OnProgress | None = None,
    ) -> Iterator[list[Filled]]:
        """Draw n completions of every bundle's prompt, which is sent as text; yield each bundle as it comes."""
        if self.silent:
            yield [(index, [], self.silent) for index in range(len(bundles))]
            return
        found = sample_remote(
            self.url,
            self.model,
            [bundle.prompt for bundle in bundles],
            n,
            self.options,
            seed=_seed(self.seed, *purpose[1:], have),
            key_variable=self.key_variable,
            concurrency=self.concurrency,
            deadline=self.deadline,
        )
        for index, answers, why in found:
            self.silent = why if why.startswith(NOT_ASKED) else ""
            if progress is not None:
                progress(len(answers))
            yield [(index, [Completion([], a.truncated, a.text, answer=a) for a in answers], why)]


def _seed(*names: object) -> int:
    """Return the seed of one draw's requests, so that further answers to a prompt differ from the first ones.

    The first word of the purpose is left out, so that stores begun before purposes had one go on alike.
    """
    return int.from_bytes(hashlib.sha256(" ".join(map(str, names)).encode()).digest()[:8], "big")


def sample_remote(
    url: str,
    model: str,
    prompts: Sequence[Prompt],
    n: int,
    options: SamplingOptions,
    *,
    seed: int = 0,
    key_variable: str = "OPENAI_API_KEY",
    concurrency: int = 16,
    deadline: float = 300.0,
) -> Iterator[tuple[int, list[Answer], str]]:
    """Yield (index of a prompt, its completions, why they are fewer than n), as they come and in any order.

    `url` is the server's address, usually ending in /v1; the key is read from the environment variable `key_variable`,
    if it is set. `deadline` is seconds for one prompt, from its first request to its last completion, waits included.
    At most `concurrency` prompts are under way. Each prompt has a seed of its own, drawn from `seed` and its index. If
    `concurrency` prompts in a row, but at least eight, got no reply, the rest is given up. Raises `InputError` if the
    server will never answer. A caller that stops early leaves nothing running.
    """
    if options.temperature <= 0 or n < 1:
        raise InputError(f"temperature {options.temperature:g}, {n} completions: give a temperature above 0 and n >= 1")
    waiting = deque(enumerate(prompts))
    running: dict[Future[tuple[list[Answer], str]], int] = {}
    settings = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_new_tokens": float(options.max_new_tokens),
    }
    client = _client(url, key_variable)
    with in_thread(client, "keel-remote") as loop:
        server = _Server(client, model, n, settings, seed, key_variable, deadline)
        while waiting or running:
            while waiting and len(running) < concurrency:
                index, prompt = waiting.popleft()
                running[asyncio.run_coroutine_threadsafe(server.complete(index, prompt), loop)] = index
            done = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
            yield running.pop(done), *done.result()
            if server.unanswered >= max(8, concurrency):
                break
        given_up = [index for index, _ in waiting] + list(running.values())
    for index in given_up:
        yield index, [], f"{NOT_ASKED}: no reply to the last {server.unanswered} prompts"


# --- the connection -------------------------------------------------------------------------------


def _client(url: str, key_variable: str) -> AsyncOpenAI:
    """Return the official client with its retries and time-outs switched off. A self-hosted server needs no key."""
    try:
        from openai import AsyncOpenAI, Timeout
    except ImportError as error:
        raise InputError("a remote model needs the openai package: pip install 'keel-tune[judge]'") from error
    key = os.environ.get(key_variable, "").strip()
    public_address(url)
    if not key.isascii() or not key.isprintable():  # a client would quote it in its error
        raise InputError(f"the environment variable {key_variable} holds characters that a key cannot have")
    whole = url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/v1"
    return AsyncOpenAI(api_key=key or _NO_KEY, base_url=whole, max_retries=0, timeout=Timeout(None, connect=10.0))


# --- one prompt -----------------------------------------------------------------------------------


class _Failed(Exception):  # noqa: N818  (as `RunFailed`)
    """This prompt will get no more completions than the `answers` that came with it."""

    answers: Sequence[Answer] = ()


class _Refused(_Failed):
    """The server refuses the request as it is written."""


class _Again(Exception):  # noqa: N818  (what to do, not what went wrong)
    """The request failed for a while; `after` is the least number of seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(slots=True)
class _Server:
    """A server and what was learned of it: `optional` arguments that it takes, whether it gives `many` at once."""

    client: AsyncOpenAI
    model: str
    n: int
    settings: Mapping[str, float]
    seed: int
    key_variable: str
    deadline: float
    many: bool = True
    unanswered: int = 0
    reached: bool = False
    begun: float = field(default_factory=time.monotonic)
    optional: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optional = {"seed": True}
        if self.settings["temperature"] == self.settings["top_p"] == 1:
            self.optional["logprobs"] = True
        if not self._paid:
            self.optional |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}

    @property
    def _paid(self) -> bool:
        """Say whether this is OpenAI's own server, which knows fewer arguments, and one by another name."""
        return str(self.client.base_url.host).endswith("openai.com")

    @property
    def _address(self) -> str:
        return public_address(str(self.client.base_url))

    async def complete(self, index: int, prompt: Prompt) -> tuple[list[Answer], str]:
        """Return the completions that came before the deadline, and why they are fewer than n.

        A server may give fewer at once: it is asked for the rest.
        """
        answers: list[Answer] = []
        trouble, attempt = "no reply", 0
        try:
            async with asyncio.timeout(self.deadline):
                while len(answers) < self.n:
                    try:
                        answers += await self._ask(prompt, self.n - len(answers), self._seed(index, len(answers)))
                        self.unanswered = attempt = 0
                    except _Again as fault:
                        trouble = str(fault)
                        await asyncio.sleep(fault.after + min(30.0, 0.5 * 2**attempt) * _JITTER.uniform(0.5, 1))
                        attempt += 1
        except TimeoutError:
            self.unanswered += not answers
            return answers, f"no {self.n} completions within {self.deadline:g} s; the last trouble: {trouble}"
        except _Failed as failure:
            self.unanswered = 0
            return [*answers, *failure.answers], str(failure)
        return answers, ""

    def _seed(self, index: int, have: int) -> int:
        """Return 31 bits that only this request has; a repetition has the same."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {index} {have}".encode()).digest()[:4], "big") >> 1

    async def _ask(self, prompt: Prompt, count: int, seed: int) -> list[Answer]:
        """Return up to `count` completions.

        If a server refuses an argument by name, or more than one completion at once, it is not asked for that again.
        """
        sent = dict(self.optional)
        count = count if self.many else 1
        try:
            return (await self._post(prompt, count, seed, sent))[:count]
        except _Refused as refusal:
            named = [name for name in sent if name in str(refusal)]
            if not named and count == 1:
                raise
            for name in named:
                if sent[name] == -1:
                    self.optional[name] = 0  # how llama.cpp switches top-k off
                else:
                    self.optional.pop(name, None)
        if named:
            return await self._ask(prompt, count, seed)
        answers = await self._post(prompt, 1, seed, sent)
        self.many = False
        return answers[:1]

    async def _post(self, prompt: Prompt, count: int, seed: int, sent: dict[str, Any]) -> list[Answer]:
        """Send one request. Errors of the client become `_Again`, `_Refused` or `InputError`."""
        import openai

        try:
            reply = await self._request(prompt, count, seed, sent)
        except openai.APIConnectionError as error:
            if not self.reached and time.monotonic() - self.begun > min(_PATIENCE, self.deadline / 2):
                raise InputError(f"{self._address}: nobody answers; start the server or mend the address") from error
            raise _Again(f"the connection failed ({first_line(error.__cause__ or error)})") from error
        except openai.APIStatusError as error:
            self.reached = True
            raise self._meaning(error) from error
        except (ValueError, openai.APIResponseValidationError) as error:
            raise _Again("the server's answer is not JSON") from error
        self.reached = True
        return self._read(reply)

    async def _request(self, prompt: Prompt, count: int, seed: int, sent: dict[str, Any]) -> Any:
        extra = {name: sent[name] for name in ("top_k", "min_p", "repetition_penalty") if name in sent}
        chat = not isinstance(prompt, str)
        request: dict[str, Any] = {
            "model": self.model,
            "n": count,
            "temperature": self.settings["temperature"],
            "top_p": self.settings["top_p"],
            "max_completion_tokens" if chat and self._paid else "max_tokens": int(self.settings["max_new_tokens"]),
            "extra_body": extra or None,
        }
        if "seed" in sent:
            request["seed"] = seed
        if "logprobs" in sent:
            request["logprobs"] = True if chat else 1
        if isinstance(prompt, str):
            return await self.client.completions.create(prompt=prompt, **request)
        if tools := prompt[0].get("tools"):
            request["tools"] = tools
        turns: Any = [_sent(turn) for turn in without_tools(prompt)[0]]
        return await self.client.chat.completions.create(messages=turns, **request)

    def _meaning(self, error: Any) -> Exception:
        """Return the exception that a status other than 200 calls for."""
        key = "" if self.client.api_key == _NO_KEY else self.client.api_key
        status, code, said = error.status_code, str(error.code), server_said(error, key)
        if status in (401, 403):
            return InputError(f"the server says {said}; set {self.key_variable} to a key that may ask this model")
        if status == 402 or code == "insufficient_quota":
            return InputError(f"the server says {said}; add credit, or name another server")
        if status == 404:
            remedy = f"check the model's name ({self.model}) and the address ({self._address}, usually …/v1)"
            return InputError(f"the server says {said}; {remedy}")
        named = status == 500 and any(name in said for name in self.optional)  # llama-cpp-python's way to refuse them
        if status in AGAIN or (status >= 500 and not named):
            return _Again(said, retry_after(error.response.headers))
        return _Refused(f"the server refuses the request: {said}")

    # --- replies

    def _read(self, reply: Any) -> list[Answer]:
        choices = getattr(reply, "choices", None)
        if not isinstance(choices, list) or not choices:
            raise _Again("no completion in the server's answer")
        written = getattr(getattr(reply, "usage", None), "completion_tokens", None)
        answers: list[Answer] = []
        faults: list[_Again | _Failed] = []
        for choice in choices:
            try:
                answers.append(self._answer(choice, written if len(choices) == 1 else None))
            except (_Again, _Failed) as fault:
                faults.append(fault)
        if failed := next((fault for fault in faults if isinstance(fault, _Failed)), None):
            failed.answers = answers
            raise failed
        if not answers:
            raise faults[0]
        return answers

    def _answer(self, choice: Any, written: int | None) -> Answer:
        """Return one completion; `written` is its number of tokens if the server lists none."""
        message = getattr(choice, "message", None)
        end = getattr(choice, "finish_reason", None)
        if end is None or end in ("abort", "error"):
            raise _Again("the server did not finish")
        if end != "length" and end not in _ENDED:
            raise _Failed(f"the completion ended by {end}")
        said = Answer(_worded(getattr(choice, "text", None))) if message is None else _said(message)
        logps = _logps(getattr(choice, "logprobs", None)) if "logprobs" in self.optional else None
        return Answer(
            said.text,
            model=self.model,
            sampling=dict(self.settings),
            logp=math.fsum(logps) if logps else None,
            tokens=len(logps) if logps else written,
            truncated=end == "length",
            fields=said.fields,
        )


def _sent(turn: Message) -> Message:
    """Return a turn in the form of the protocol: a call's arguments are JSON text."""
    if "tool_calls" not in turn:
        return turn
    calls = []
    for call in turn["tool_calls"]:
        function = call.get("function")
        given = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(function, dict) and not isinstance(given, str):
            call = {**call, "function": {**function, "arguments": json.dumps(given or {}, ensure_ascii=False)}}
        calls.append(call)
    return {**turn, "tool_calls": calls}


def _said(message: Any) -> Answer:
    """Return a chat's answer: its text, which may be empty beside calls of tools, and what else it holds."""
    content = getattr(message, "content", None)
    calls = [getattr(call, "to_dict", lambda it=call: it)() for call in getattr(message, "tool_calls", None) or []]
    thoughts = {name: getattr(message, name, None) for name in ("reasoning_content", "reasoning")}
    turn = {"role": "assistant", "content": "" if content is None and calls else _worded(content), **thoughts}
    try:
        return answer_of(messages({"answer": [turn | ({"tool_calls": calls} if calls else {})]}, "answer")[0])
    except RowError as fault:
        raise _Failed(f"the completion cannot be kept: {fault}") from fault


def _worded(content: Any) -> str:
    if not isinstance(content, str):
        raise _Failed("the completion has no text")
    return content


def _logps(given: Any) -> list[float] | None:
    """Return the tokens' log-probabilities, from either interface's form; None if one is missing."""
    values = getattr(given, "token_logprobs", None)
    if values is None:
        values = [getattr(token, "logprob", None) for token in getattr(given, "content", None) or []]
    if not values or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        return None
    return [float(value) for value in values]
