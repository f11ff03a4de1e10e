"""Configs of the commands on data: `keel data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from keel.config.base import Count, Positive, StoreName
from keel.config.parts import Machine, Reading, Spelling, StoreConfig
from keel.handed import DataName, ModelName


class DataConfig(Reading):
    """Options that the commands on preference data share."""

    data: DataName
    """Judgments or preference pairs: a file in any format that Keel knows, `store:FILE.db` or a database URL."""
    out: Path | None = None
    """JSON file to write as well."""


class DataStatsConfig(DataConfig):
    """Count prompts, answers and judgments, and report biases: answer positions, lengths, models as raters."""


class DataAgreementConfig(DataConfig):
    """Measure how far raters agree on the same answers: per cent, Cohen's and Fleiss' kappa, Krippendorff's alpha."""


class DataCheckConfig(DataConfig, Machine, Spelling):
    """Check whether data are fit to train on: bad rows, leaks, biases, personal data, and pairs against a model.

    The exit code is 2 if a training command would refuse them.
    """

    data: DataName
    """Pairs, judgments, demonstrations or prompts: a file, `store:FILE.db`, a database URL, a hub data set."""
    model: ModelName | None = None
    """Model to train on them: its tokenizer and template are tried, and pairs are compared with its own answers."""
    eval_data: DataName | None = None
    """Held-out data; a prompt in both is a leak."""
    page: Path | None = None
    """HTML page to write."""
    max_length: Count = 1024
    """Tokens of prompt and completion together in training."""
    temperature: Positive = 1.0
    """Temperature at which the model samples its own answers."""
    compare: Count = 400
    """Pairs to compare with the model's own, drawn at random; six copies of the model are trained on them."""


class DataConvertConfig(Reading):
    """Write data in another format, or into a store. What the target cannot hold is refused, not dropped."""

    data: DataName
    """A file in any format that Keel knows, `store:FILE.db`, a database URL, a hub data set, or a folder. Of the last
    two the split train is read; NAME:SPLIT or NAME:SUBSET:SPLIT reads another."""
    out: StoreName
    """File to write (.jsonl, .json, .csv, .parquet; text ones also .gz), or a store to add to (.db, a database URL)."""
    to: str | None = None
    """Format to write; a store needs none. Judgments: hh, rewardbench, rewardbench-2, oasst, llama-factory,
    llama-factory-sharegpt, orca, ms-swift, ms-swift-messages, axolotl, rm-bench, lists, trl, kto, kto-messages,
    openai-preferences, ultrafeedback, helpsteer2, helpsteer2-pairs, helpsteer3, shp, openai-summaries, pandalm,
    alpacaeval, llmbar, judgebench, label-studio, label-studio-min, argilla, preference, two-scores, ranks, scores,
    score. Demonstrations: prompt-completion, messages, alpaca, sharegpt, text."""
    pairs: bool = False
    """Write the pairs that training derives from the raters' majority; ties and split votes make none, and are counted.
    In kto each pair is a good and a bad answer; formats of demonstrations (messages, …) get the chosen answers."""


class DataSplitConfig(DataConfig):
    """Write `train.jsonl` and `held-out.jsonl`: preference pairs, with no prompt in both files."""

    out: Path
    """Folder to write."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the pairs to hold out, as exact as whole prompts allow."""
    seed: int = 0
    """Seed of the draw: the same seed and prompts give the same split."""


class DataForgetConfig(StoreConfig):
    """Erase a person on request: name, judgments, comments. It cannot be undone."""

    rater: str
    """The rater's name in the store."""


class DataMergeConfig(StoreConfig):
    """Add prompts, answers and judgments of another store, each once; its tasks and accounts are not copied."""

    other: StoreName
    """The store to read."""


class DataBackupConfig(StoreConfig):
    """Copy a store, SQLite or PostgreSQL, into one SQLite file, even while others write to the store."""

    out: Path
    """SQLite file to write."""
