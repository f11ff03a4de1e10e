"""Configs of collecting judgments: from models and rules, and from people on the annotation page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from keel.config.base import Config, Count, NonNegative, Positive, Share, StoreName
from keel.config.parts import Loading, Spelling, StoreConfig
from keel.config.sampling import Sampling
from keel.handed import DataName, ModelName


class CollectConfig(Sampling):
    """Draw answers to prompts, have them judged, and keep both in a store. If it stops, the same command goes on.

    Raters: `rule:FILE.yaml` or `rule:package.module:function`; `judge:NAME`, a model behind an OpenAI-compatible
    endpoint; `local:MODEL`, a causal language model in this process; `people`, on the page of `keel annotate`;
    `simulated`, the embedded world's people.
    """

    model: ModelName
    """Model that answers: checkpoint folder, run folder or hub name; with `server` the model's name there."""
    prompts: DataName
    """File of prompts or chats, a log of chats (up to the last question), or a store that holds prompts."""
    store: StoreName
    """Store for all of it: FILE.db (also written store:FILE.db) or a database URL; created if it does not exist."""
    rater: list[str] = []  # noqa: RUF012  (each config gets a copy)
    """Raters, one or several; without any, answers are only drawn and kept."""
    n: Count = 2
    """Answers per prompt; all n (n - 1) / 2 comparisons are judged."""
    server: str | None = None
    """OpenAI-compatible address of the model, such as http://localhost:8000/v1; by default it runs in this process."""
    personal: Literal["keep", "mask", "drop"] = "keep"
    """Prompts with e-mail addresses, phone or card numbers, IBANs, IP addresses: keep, mask as [email] …, or drop."""
    near_duplicates: Literal["keep", "drop"] = "keep"
    """Prompts that share most of their words with an earlier one: keep or drop."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: keep the smallest set of tokens whose probability reaches this."""
    temperature: Positive = 1.0
    """Divides the logits; answers must differ, so it is above 0."""
    rubric: Path | None = None
    """YAML file of dimensions and guidelines for judges; overall quality by default."""
    judge_server: str | None = None
    """OpenAI-compatible address of `judge:NAME`; OPENAI_BASE_URL or OpenAI's own by default."""
    judge_temperature: NonNegative | None = 0.0
    """Temperature of `judge:NAME`; `none` for models that take none: their verdicts vary from call to call."""
    judge_reply_tokens: Count = 1024
    """Length limit of a judge's reply, its reasoning included; a reply that is cut there gives no verdict."""
    judge_timeout: Positive = 60.0
    """Seconds for one reply of a judge, to its last byte."""
    judge_retries: Annotated[int, Field(ge=0)] = 5
    """Retries of a request to a judge that failed temporarily."""
    judge_first_wait: Positive = 0.5
    """Seconds before the first retry; doubled before each further one, up to half a minute."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the servers' key; the key itself is never written."""
    server_key_variable: str | None = None
    """Environment variable that holds the key of `server`, if the judge has another; `key_variable` by default."""
    concurrency: Count = 8
    """Requests to a server at once."""
    deadline: Positive = 300.0
    """Seconds for one pair or prompt: all its requests, retries and waits."""
    price_in: NonNegative | None = None
    """The judge's price per million tokens read."""
    price_out: NonNegative | None = None
    """The judge's price per million tokens written."""
    budget: Positive | None = None
    """Money for the judge; once it is spent, no further pair is begun."""
    token_budget: Count | None = None
    """Tokens for the judge; once they are spent, no further pair is begun."""
    out: Path | None = None
    """JSON file for the figures, besides the screen."""

    @model_validator(mode="after")
    def _options_that_would_do_nothing(self) -> CollectConfig:
        if self.server is not None:
            for name in Spelling.model_fields.keys() - Loading.model_fields.keys():
                if getattr(self, name) != Spelling.model_fields[name].default:
                    raise ValueError(f"{name} has no meaning with server, which renders chats itself: leave it out")
        return self


class AnnotateConfig(Config):
    """Serve the annotation page, one process over one store. `keel raters add` lets people sign in."""

    store: StoreName
    """Store of tasks and judgments: FILE.db (also written store:FILE.db) or a database URL; created if it does not
    exist."""
    tasks: DataName | None = None
    """File of answers to judge: prompt and completions as `keel generate` writes them, prompt, response_a and
    response_b, or any format of preferences, whose verdicts are ignored. By default the answers in the store."""
    gold: DataName | None = None
    """File of pairs with known verdicts: shown among the others, to measure each rater's reliability."""
    kind: Literal["pair", "score", "ranking"] | None = None
    """Kind of task: every two answers side by side, each answer by itself, or all answers to a prompt in order; pairs
    by default. The store keeps this option and the next two, so that a restart need not repeat them."""
    rubric: Path | None = None
    """YAML file: `dimensions:` and beneath it one `name: guideline` each; overall quality by default."""
    one_at_a_time: bool = False
    """Ask about one dimension of the rubric at a time, instead of all on one page."""
    overlap: Count = 1
    """Raters per task; tasks already in the store never get fewer than they had."""
    gold_every: Annotated[int, Field(ge=2)] = 10
    """Show one gold task in this many, as long as there are any."""
    lease: Positive = 15.0
    """Minutes for one task; after that it may go to another rater."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """Port to listen on; 0 takes a free one."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    https: bool = False
    """Set this if a proxy serves the page by HTTPS: cookies then travel by HTTPS only."""
    limit: Count | None = None
    """Only the first N rows of the files."""
    columns: str | None = None
    """Column names in --tasks and --gold, such as prompt=question,response_a=left,response_b=right: Keel's name on the
    left, the files' on the right; a dot reads inside objects. --gold may have Keel's own names."""
    max_bad_share: Share = 0.05
    """Refuse a file with more than this share of bad rows; up to it they are counted, numbered and left out."""


class RatersAddConfig(StoreConfig):
    """Let a person sign in to the annotation page; prints a token that is kept nowhere else."""

    name: str
    """Name under which judgments are stored."""
    role: Literal["rater", "adjudicator", "admin"] = "rater"
    """A rater judges; an adjudicator also settles disagreements of raters, and sees the figures; so does an admin."""
    address: str = "http://127.0.0.1:8000"
    """Address of the page, for the link."""


class RatersListConfig(StoreConfig):
    """List who may sign in."""


class RatersRevokeConfig(StoreConfig):
    """Take a person's token away; judgments stay (`keel data forget` erases them)."""

    name: str
    """The person's name in `keel raters list`."""
