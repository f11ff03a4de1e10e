"""Answers to prompts for a store, from any sampler: a model in this process, or one behind a server."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from keel.config import CollectConfig
from keel.data import checks, lengths, prepare
from keel.errors import RowFault
from keel.records import Answer, Bundle, Completion, Drawn, PromptRow, RowCounts
from keel.sampling.client import public_address
from keel.sampling.protocol import Sampler, options_of
from keel.sampling.remote import ServerSampler
from keel.says import say
from keel.text.tokenisation import Text
from keel.text.tokenizer_facts import remarks_on

ROUNDS_OF_ROWS = 4
"""A round fills the sampler this many times, so that its tail, in which rows run out, is a small part."""
ROUNDS_OF_REQUESTS = 32
"""A round fills a server's concurrent requests this many times, for the same reason."""

Written = tuple[int, list[Answer], str]
"""Index of a prompt, its answers, and why they are fewer than were asked for."""


@dataclass(slots=True)
class Writer:
    """Draws answers to prompts, a round at a time, in the form that a store keeps."""

    sampler: Sampler
    n: int
    """Answers per prompt."""
    like: Answer
    """Fields that all its answers share: the model and the sampling settings."""
    at_once: int
    """Prompts in a round."""
    text: Text | None = None
    """Makes tokens of prompts; None for a server, which does that itself."""
    room: int = sys.maxsize
    """`max_length` of prompts for `Text.encode`."""

    def write(self, rows: Sequence[PromptRow], number: int, have: int) -> Iterator[list[Written]]:
        """Yield the missing answers to the prompts of round `number`, each of which has `have` of the n already.

        A prompt that cannot be asked gets its reason. Store together what comes together: only then can the same call
        go on as if it had never stopped.
        """
        bundles: dict[int, Bundle] = {}
        written: list[Written] = []
        for index, row in enumerate(rows):
            try:
                bundles[index] = self._bundle(row)
            except RowFault as fault:
                written.append((index, [], fault.reason))
        places = list(bundles)
        for some in self.sampler.fill(list(bundles.values()), self.n - have, "collect", number, have=have):
            for at, completions, why in some:
                written.append((places[at], [self._answer(c, draw) for draw, c in enumerate(completions, have)], why))
            yield written
            written = []
        if written:
            yield written

    def _bundle(self, row: PromptRow) -> Bundle:
        if self.text is None:
            return Bundle([], [], prompt=row.prompt, origin=row.origin)
        return self.text.encode(row, self.room)

    def _answer(self, completion: Completion, draw: int) -> Answer:
        answer = replace(self.like, text=completion.text, draw=draw, truncated=completion.truncated)
        if completion.answer is not None:
            told = completion.answer
            return replace(answer, logp=told.logp, tokens=told.tokens, fields=told.fields)
        assert self.text is not None
        assert completion.logps is not None
        return replace(
            answer,
            logp=float(completion.logps.double().sum()),
            tokens=len(completion),
            drawn=Drawn(self.text.fingerprint(), tuple(completion.ids)),
        )


def local_writer(config: CollectConfig, rows: Sequence[PromptRow]) -> Writer:
    """Load the model that answers in this process, and report what its tokenizer makes of the prompts."""
    from keel.models import checkpoints
    from keel.models.limits import positions
    from keel.models.machine import described
    from keel.sampling.local import LocalSampler

    text = checkpoints.load_text(config.model, config)
    policy = checkpoints.load_policy(config.model, config)
    for remark in remarks_on(text, rows):
        say(remark)
    say(described(policy))
    limit = positions(policy)
    longest = lengths.prompt_limit(config, limit)
    fits = sys.maxsize if longest is None else longest
    known = _known(config, rows, text, fits) if limit is not None or text.gaps.unknown_id is not None else []
    config = lengths.fitted(config, limit, (len(bundle.prompt_ids) for bundle in known))
    return Writer(
        LocalSampler(policy, text, options_of(config, config.top_p), config.seed),
        config.n,
        Answer(
            "",
            model=config.model,
            model_hash=checkpoints.weights_hash(policy)[:16],
            sampling={**_sampling(config), **_spelling(config, text)},
        ),
        max(1, ROUNDS_OF_ROWS * config.max_rows // config.n),
        text,
        fits,
    )


def server_writer(config: CollectConfig, server: str) -> Writer:
    """Return a writer of answers from a server, which is not asked before the first round."""
    sampler = ServerSampler(
        server,
        config.model,
        options_of(config, config.top_p),
        config.seed,
        config.server_key_variable or config.key_variable,
        config.concurrency,
        config.deadline,
    )
    like = Answer("", model=config.model, sampling={**_sampling(config), "server": public_address(server)})
    return Writer(sampler, config.n, like, ROUNDS_OF_REQUESTS * config.concurrency)


def _known(config: CollectConfig, rows: Sequence[PromptRow], text: Text, fits: int) -> list[Bundle]:
    """Return the prompts that fit, as tokens.

    Prompts with characters that the tokenizer does not know are reported, and refused past the share of bad rows.
    """
    counts = RowCounts()
    bundles = [bundle for _, bundle in prepare.tokenise(rows, counts, text, fits)[0]]
    prepare.require_known(bundles, counts, text, config.max_bad_share, config.prompts)
    what = prepare.unknown(text)
    if what in counts.notes:
        count, first = counts.notes[what]
        say(f"  note: {count} '{what}': {checks.which(count, first)}")
    return bundles


def _sampling(config: CollectConfig) -> dict[str, float | str]:
    return {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_new_tokens": config.max_new_tokens,
        "seed": config.seed,
    }


def _spelling(config: CollectConfig, text: Text) -> dict[str, str]:
    """Return how prompts are read, unless it is the model's own way: hash of the template, use of control tokens."""
    found = {}
    if config.chat_template is not None:
        template = str(text.tokenizer.chat_template).encode("utf-8", "surrogatepass")
        found["chat_template"] = hashlib.sha256(template).hexdigest()[:16]
    if config.control_tokens != "text":
        found["control_tokens"] = config.control_tokens
    return found
