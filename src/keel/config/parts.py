"""Options that several commands share: loading models, the machine, reading data, conversations, a store."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from keel.config.base import Config, Count, Positive, Share, StoreName


class Loading(Config):
    """Options for loading models and tokenizers."""

    trust_remote_code: bool = False
    """Run the Python code in a model's folder. It can do whatever you can: read it first. By default it never runs, and
    a kind of model that transformers does not know is refused."""


class Machine(Loading):
    """Options for the computation."""

    seed: int = 0
    """Seed of every random draw of the run; the same seed gives the same figures."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 …"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of weights and activations; auto is bf16 on a GPU, and for wide models on CPUs that multiply bf16."""
    micro_tokens: Count = 8192
    """Tokens in one forward pass. Lower it if memory is short; it changes results by rounding only."""


class Reading(Config):
    """Options for reading a data file."""

    limit: Count | None = None
    """Only the first N rows."""
    format: str | None = None
    """Format of the data; by default it is recognised from the fields."""
    columns: str | None = None
    """Column names of the file, such as prompt=question,chosen=better,rejected=worse. On the left: prompt, chosen,
    rejected, response_a, response_b, preference, response, score, completion, messages, and others that an error lists.
    On the right: the file's name. prompt=meta.question reads inside objects; preference=label:0=a:1=b:2=tie says what
    values mean."""
    max_bad_share: Share = 0.05
    """Refuse data with more than this share of bad rows; up to it they are counted, numbered and left out. Rows with
    characters that the tokenizer does not know are used and numbered, up to this share of all tokens."""


class Spelling(Loading):
    """Options for turning conversations into tokens."""

    chat_template: str | None = None
    """A file, or a name (chatml, llama3, gemma, phi3, llama2, mistral, vicuna, zephyr, alpaca). It replaces the
    model's own template, and is saved with what is trained."""
    control_tokens: Literal["text", "refuse", "keep"] = "text"
    """If data spell a control token such as </s>: read it as plain text, drop the row, or keep the token itself."""


class StoreConfig(Config):
    """A store that a command changes or copies."""

    store: StoreName
    """FILE.db (also written store:FILE.db) or a database URL."""


class Adapting(Config):
    """Options for training a LoRA adapter in place of all weights."""

    lora: bool = False
    """Train a low-rank adapter on the frozen model. --model may be an adapter folder, which is then trained on."""
    lora_rank: Count = 16
    """Rank of the adapter's matrices."""
    lora_alpha: Positive | None = None
    """The adapter's product is multiplied by alpha / rank; twice the rank by default."""
    lora_targets: str | None = None
    """Names of the layers that get an adapter, such as q_proj,v_proj; all linear layers of the trunk by default."""

    @model_validator(mode="after")
    def _nothing_without_lora(self) -> Self:
        for name in ("lora_rank", "lora_alpha", "lora_targets"):
            if not self.lora and getattr(self, name) != Adapting.model_fields[name].default:
                raise ValueError(f"{name} has no meaning without lora: add --lora, or leave it out")
        return self
