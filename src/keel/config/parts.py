"""What several commands share: loading models, the machine, reading data, spelling conversations, a store."""

from __future__ import annotations

from typing import Literal

from keel.config.base import Config, Count, Share, StoreName


class Loading(Config):
    """How models and tokenizers are loaded."""

    trust_remote_code: bool = False
    """Run the Python code that a model's folder brings, which can do whatever you can: read it first. By default it
    never runs, and a model of a kind that transformers does not know is refused."""


class Machine(Loading):
    """Where and how numbers are computed."""

    seed: int = 0
    """Names every random draw of the run; the same seed gives the same figures."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1 …"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of weights and activations; auto is bf16 on a GPU, and on a processor that multiplies it for a wide model."""
    micro_tokens: Count = 8192
    """Tokens in one forward pass. Lower it when memory is short; it cannot change a result beyond rounding."""


class Reading(Config):
    """How a data file is read."""

    limit: Count | None = None
    """Only the first N rows."""
    format: str | None = None
    """The data's format, where recognising it from its fields is not wanted."""
    columns: str | None = None
    """The file's names of columns, such as prompt=question,chosen=better,rejected=worse: on the left prompt, chosen,
    rejected, response_a, response_b, preference, response, score, completion, messages and others that an error lists,
    on the right the file's; prompt=meta.question reads inside. preference=label:0=a:1=b:2=tie says what values mean."""
    max_bad_share: Share = 0.05
    """Above this share of bad rows the command refuses; below it they are counted, numbered and left out. Rows with
    signs that the tokenizer does not know are used and numbered, up to this share of all tokens."""


class Spelling(Loading):
    """How conversations become tokens."""

    chat_template: str | None = None
    """A file, or a name (chatml, llama3, gemma, phi3, llama2, mistral, vicuna, zephyr, alpaca): in place of the model's
    own template, and saved with what is trained."""
    control_tokens: Literal["text", "refuse", "keep"] = "text"
    """What data become that spell a control token such as </s>: plain text, a dropped row, or the token itself."""


class StoreConfig(Config):
    """A store that a command changes or copies."""

    store: StoreName
    """FILE.db (also written store:FILE.db) or a database URL."""
