"""Who writes answers to prompts: a model in this process, or one behind an OpenAI-compatible server."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from keel.config import CollectConfig
from keel.data import checks, lengths, prepare
from keel.errors import RowFault
from keel.records import Answer, Bundle, Completion, Drawn, PromptRow, RowCounts
from keel.sampling.client import public_address
from keel.sampling.remote import NOT_ASKED, sample_remote
from keel.says import say
from keel.text.identity import remarks_on
from keel.text.tokenisation import Text

ROUNDS_OF_ROWS = 4
"""A round fills the sampler so many times: its tail, where rows run out, is then a small part."""
ROUNDS_OF_REQUESTS = 32
"""The same of requests to a server."""

Written = tuple[int, list[Answer], str]
"""The index of a prompt, its answers, and why they are fewer than were asked for."""


class Writer(Protocol):
    """Draws answers to prompts, a round at a time."""

    like: Answer
    """What all its answers have in common: writer, and how they are drawn."""
    at_once: int
    """Prompts in a round."""

    def write(self, rows: Sequence[PromptRow], number: int, have: int) -> Iterator[list[Written]]:
        """The answers that are lacking to prompts of round `number`, each of which has `have` of the n already.

        What comes together is to be stored together, or the same call could not go on as if it had never stopped.
        """
        ...


class LocalWriter:
    """A `Writer` that is a model in this process; a round of the same seed and prompts is always the same draw."""

    def __init__(self, config: CollectConfig, rows: Sequence[PromptRow]) -> None:
        from keel.models import checkpoints
        from keel.models.limits import positions
        from keel.models.machine import described

        self.text = checkpoints.load_text(config.model, config)
        self.policy = checkpoints.load_policy(config.model, config)
        for remark in remarks_on(self.text, rows):
            say(remark)
        say(described(self.policy))
        limit = positions(self.policy)
        fits = lengths.prompt_limit(config, limit)
        self.room = sys.maxsize if fits is None else fits
        bundles = self._known(rows, config) if limit is not None or self.text.gaps.unknown_id is not None else []
        self.config = config = lengths.fitted(config, limit, (len(bundle.prompt_ids) for bundle in bundles))
        weights = checkpoints.weights_hash(self.policy)[:16]
        sampling = {**_sampling(config), **_spelling(config, self.text)}
        self.like = Answer("", model=config.model, model_hash=weights, sampling=sampling)
        self.at_once = max(1, ROUNDS_OF_ROWS * config.max_rows // config.n)

    def _known(self, rows: Sequence[PromptRow], config: CollectConfig) -> list[Bundle]:
        """The prompts that fit as tokens.

        Those that hold signs that the tokenizer does not know are told, and refused past the share of bad rows.
        """
        counts = RowCounts()
        bundles = [bundle for _, bundle in prepare.tokenise(rows, counts, self.text, self.room)[0]]
        prepare.require_known(bundles, counts, self.text, config.max_bad_share, config.prompts)
        what = prepare.unknown(self.text)
        if what in counts.notes:
            count, first = counts.notes[what]
            say(f"  note: {count} '{what}': {checks.which(count, first)}")
        return bundles

    def write(self, rows: Sequence[PromptRow], number: int, have: int) -> Iterator[list[Written]]:
        """All of the round at once; a prompt that the model cannot be asked gets its reason."""
        faults = [self._fault(row) for row in rows]
        asked = [index for index, fault in enumerate(faults) if not fault]
        written: list[Written] = [(index, [], fault) for index, fault in enumerate(faults) if fault]
        for index, bundle in zip(asked, self._draw([rows[i] for i in asked], number, have), strict=True):
            answers = [self._answer(completion, draw) for draw, completion in enumerate(bundle.completions, have)]
            written.append((index, answers, ""))
        yield written

    def _fault(self, row: PromptRow) -> str:
        """Why a prompt cannot be asked, or nothing."""
        try:
            self.text.encode(row, self.room)
        except RowFault as fault:
            return fault.reason
        return ""

    def _draw(self, rows: Sequence[PromptRow], number: int, have: int) -> list[Bundle]:
        from keel.sampling.local import sample
        from keel.seeds import generator

        config = self.config
        purpose = ("collect", number, have) if have else ("collect", number)
        return sample(
            self.policy,
            self.text,
            [row.prompt for row in rows],
            config.n - have,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            generator=generator(config.seed, *purpose),
            max_rows=config.max_rows,
        )

    def _answer(self, completion: Completion, draw: int) -> Answer:
        assert completion.logps is not None
        return replace(
            self.like,
            text=completion.text,
            draw=draw,
            logp=float(completion.logps.double().sum()),
            tokens=len(completion),
            truncated=completion.truncated,
            drawn=Drawn(self.text.fingerprint(), tuple(completion.ids)),
        )


class RemoteWriter:
    """A `Writer` behind a server. What it draws twice need not be the same twice, so all that comes is kept at once."""

    def __init__(self, config: CollectConfig, server: str) -> None:
        self.config, self.server = config, server
        sampling = {**_sampling(config), "server": public_address(server)}
        self.like = Answer("", model=config.model, sampling=sampling)
        self.at_once = ROUNDS_OF_REQUESTS * config.concurrency
        self.given_up = ""

    def write(self, rows: Sequence[PromptRow], number: int, have: int) -> Iterator[list[Written]]:
        """Prompt by prompt, as they come; nothing more is asked of a server that has fallen silent."""
        if self.given_up:
            yield [(index, [], self.given_up) for index in range(len(rows))]
            return
        config = self.config
        found = sample_remote(
            self.server,
            config.model,
            [row.prompt for row in rows],
            config.n - have,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=_seed(config.seed, number, have),
            key_variable=config.server_key_variable or config.key_variable,
            concurrency=config.concurrency,
            deadline=config.deadline,
        )
        for index, answers, why in found:
            self.given_up = why if why.startswith(NOT_ASKED) else ""
            yield [(index, [self._named(answer, draw) for draw, answer in enumerate(answers, have)], why)]

    def _named(self, answer: Answer, draw: int) -> Answer:
        return replace(
            self.like,
            text=answer.text,
            draw=draw,
            logp=answer.logp,
            tokens=answer.tokens,
            truncated=answer.truncated,
            fields=answer.fields,
        )


def _sampling(config: CollectConfig) -> dict[str, float | str]:
    return {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_new_tokens": config.max_new_tokens,
        "seed": config.seed,
    }


def _spelling(config: CollectConfig, text: Text) -> dict[str, str]:
    """How prompts are read, where that is not the model's own way: the template's hash, what control tokens become."""
    found = {}
    if config.chat_template is not None:
        template = str(text.tokenizer.chat_template).encode("utf-8", "surrogatepass")
        found["chat_template"] = hashlib.sha256(template).hexdigest()[:16]
    if config.control_tokens != "text":
        found["control_tokens"] = config.control_tokens
    return found


def _seed(seed: int, number: int, have: int) -> int:
    """Of one round's requests: further answers to a prompt must not be the first ones again."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {have}".encode()).digest()[:8], "big")
