"""`keel data`: work on preference data before it trains anything.

Each command reads a config, asks `data/` for the figures, and shows them; --out gets the figures for programs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from keel.commands.prefetch import ahead
from keel.config import (
    DataAgreementConfig,
    DataBackupConfig,
    DataConfig,
    DataConvertConfig,
    DataForgetConfig,
    DataMergeConfig,
    DataSplitConfig,
    DataStatsConfig,
)
from keel.data import checks
from keel.data.convert import convert, trl_row
from keel.data.source import Source, open_source
from keel.errors import InputError
from keel.files.cells import refuse_ambiguous
from keel.files.fields import RowError
from keel.files.jsonl import write_json, write_lines
from keel.files.target import refuse_existing
from keel.progress import Bar
from keel.records import Pair, Result, RowCounts
from keel.says import say
from keel.store import survey, upkeep
from keel.store.opening import is_store
from keel.store.rows import TABLES, Rows, rows_of
from keel.store.schema import judgments
from keel.store.store import Store

# --- what there is --------------------------------------------------------------------------------


def show_stats(config: DataStatsConfig) -> Result | None:
    """Print a survey, and write it to --out if given."""
    with _opened(config) as source:
        found = source.survey()
    console = Console(highlight=False, soft_wrap=True)
    counts = (
        checks.counted(found.prompts, "prompt"),
        checks.counted(found.answers, "answer"),
        checks.counted(found.judgments, "judgment"),
    )
    console.print(f"{config.data}: {', '.join(counts)}")
    if found.retracted:
        console.print(f"{checks.counted(found.retracted, 'judgment')} retracted: they count nowhere")
    console.print(_outcomes(found))
    console.print(_most("rater", [(_rater(name, kind), n) for (name, kind), n in found.raters.items()]))
    console.print(_most("model", [(name or "(not named)", n) for name, n in found.models.items()], "answers"))
    for line in _leanings(found):
        console.print(line)
    return _written(config, found.as_dict())


def _rater(name: str, kind: str) -> str:
    """Return name and kind; in a store an adjudicator's name already says the kind."""
    return name if name.endswith(f" ({kind})") else f"{name or '(not named)'} ({kind})"


def _outcomes(found: survey.Survey) -> Table:
    """Return a table of judgments by dimension and outcome."""
    heads, lines = survey.outcome_table(found.outcomes())
    table = Table("dimension", *heads, box=None, pad_edge=False)
    for dimension, counts in lines:
        table.add_row(dimension, *counts)
    return table


def _most(title: str, rows: list[tuple[str, int]], what: str = "judgments", most: int = 10) -> Table:
    """Return a table of the most frequent, and how many others there are."""
    rows.sort(key=lambda row: (-row[1], row[0]))
    table = Table(title, what, box=None, pad_edge=False)
    for name, n in rows[:most]:
        table.add_row(name, f"{n:,}")
    if others := rows[most:]:
        table.add_row(checks.counted(len(others), "other"), f"{sum(n for _, n in others):,}")
    return table


def _leanings(found: survey.Survey) -> Iterator[str]:
    """Yield what a reader should know before training on the data."""
    first, longer, ai = found.first_wins(), found.longer_wins(), found.ai_share()
    if found.sides_recorded() is False:
        which = "first" if first.mean else "second"
        yield (
            f"the answer shown {which} always wins: these data name the better one {which}, "
            "answer positions are unknown"
        )
    elif found.sides_recorded():
        yield f"the answer shown first wins {first} of {first.n:,}"
    elif first.n:
        yield (
            f"{checks.counted(first.n, 'preference')} with a winner: too few to tell whether answer positions are known"
        )
    if longer.n:
        yield f"the longer answer wins {longer} of {longer.n:,}"
    if ai.n and ai.mean > 0:
        yield f"AI feedback: {ai.mean:.0%} of the labels are a model's; what is trained on them is RLAIF"


# --- agreement ------------------------------------------------------------------------------------


def show_agreement(config: DataAgreementConfig) -> Result | None:
    """Print how far raters agree, by dimension, and write it to --out if given."""
    with _opened(config) as source:
        found = source.agreement()
    console = Console(highlight=False, soft_wrap=True)
    for one in found:
        console.print(_agreement(one))
        if one.pairs:
            console.print(_rater_pairs(one))
    return _written(config, {"agreement": [one.as_dict() for one in found]})


def _agreement(one: survey.Agreement) -> str:
    what = f"{checks.counted(one.things, 'answer')} scored" if one.scored else checks.counted(one.things, "comparison")
    head = f"{one.dimension}: {what}, {one.shared:,} by two raters or more"
    if not one.shared:
        return f"{head}: agreement cannot be told; let raters overlap"
    fleiss = "" if one.fleiss != one.fleiss else f", Fleiss' kappa {one.fleiss:.3f}"
    return f"{head}\n  equal verdicts {one.agree}, Krippendorff's alpha {one.alpha}{fleiss}"


def _rater_pairs(one: survey.Agreement) -> Table:
    table = Table("raters", "shared", "equal", "Cohen's kappa", box=None, pad_edge=False)
    for a, b, n, equal, kappa in one.pairs:
        table.add_row(f"  {a or '(not named)'}, {b or '(not named)'}", f"{n:,}", f"{equal:.3f}", f"{kappa:.3f}")
    return table


# --- converting -----------------------------------------------------------------------------------


def convert_data(config: DataConvertConfig) -> Result | None:
    """Convert a file or store into a file, or into a store."""
    if is_store(config.out):
        if config.pairs:
            raise InputError(f"{config.out}: a store holds judgments as they are, and derives pairs; leave out --pairs")
        gather(config)
        return None
    if config.to is None:
        raise InputError(f"{config.out}: say in which format to write it, such as --to trl")
    options: dict[str, Any] = config.model_dump(include={"format", "limit", "max_bad_share", "pairs", "columns"})
    counts = convert(config.data, Path(config.out), config.to, **options)
    say(checks.summarise(counts, config.data, config.format or ""))
    return Result(Path(config.out), {"command": "data convert", "rows": counts.as_dict()})


def gather(config: DataConvertConfig) -> None:
    """Add a file's judgments to a store. If interrupted, call it again: it goes on, and adds nothing twice.

    One process reads and one writes, since both take about as long.
    """
    added, counts, name = 0, RowCounts(), ""
    read = ahead(read_for_store, config.data, config.format, config.limit, config.columns)
    with Store(config.out, create=True) as store, closing(read), Bar("judgments", None) as bar:
        for rows, counts, name in read:  # noqa: B007  (the last counts are printed)
            added += store.add(rows)
            bar.advance(len(rows[TABLES.index(judgments)]))
    say(checks.summarise(counts, config.data, name))
    say(f"{config.out}: {checks.counted(added, 'judgment')} more")
    checks.refuse_bad(counts, config.max_bad_share, config.data)


def read_for_store(
    data: str, format: str | None, limit: int | None, columns: str | None = None
) -> Iterator[tuple[Rows, RowCounts, str]]:
    """Yield rows for a store in batches, the last one empty, with every row's fate so far and the format's name."""
    with open_source(data, format=format, limit=limit, columns=columns) as source:
        for rows in rows_of(source.keyed()):
            yield rows, source.counts, source.format
        source.identity()  # refuses a file that changed meanwhile: its rows would have false keys
        yield tuple([] for _ in TABLES), source.counts, source.format


# --- splitting ------------------------------------------------------------------------------------


def split_data(config: DataSplitConfig) -> Result:
    """Split preference pairs by prompt into two files."""
    refuse_existing(config.out)
    with open_source(config.data, **_how(config)) as source:
        pairs = checks.check_pairs(source.pairs(), source.counts, config.max_bad_share, config.data)
    say(checks.summarise(source.counts, config.data, source.format))
    train, held_out = checks.split_by_prompt(pairs, config.holdout, config.seed)
    parts = {"train": list(map(_row, train)), "held-out": list(map(_row, held_out))}  # before anything is written
    for file, rows in parts.items():
        write_lines(config.out / f"{file}.jsonl", rows)
        say(f"{config.out / file}.jsonl: {checks.counted(len(rows), 'pair')}")
    return Result(config.out, {"command": "data split", "train": len(train), "held_out": len(held_out)})


def _row(pair: Pair) -> dict[str, Any]:
    """Return a pair in TRL's columns; refuse it if they cannot hold it."""
    try:
        row = trl_row(pair)
        refuse_ambiguous(row)
    except RowError as error:
        raise InputError(f"{pair.origin}: trl cannot hold the pair ({error}); take the row out") from None
    return row


# --- stores ---------------------------------------------------------------------------------------


def forget_person(config: DataForgetConfig) -> None:
    """Erase a person."""
    with Store(config.store) as store:
        count = upkeep.forget(store, config.rater)
    said = checks.counted(count, "judgment")
    say(f"{config.store}: {config.rater!r} and {said} erased; backups and exports made before keep them")


def merge_stores(config: DataMergeConfig) -> None:
    """Add another store."""
    with Store(config.other) as other, Store(config.store, create=True) as store:
        say(f"{config.store}: {checks.counted(upkeep.merge(store, other), 'judgment')} more")


def backup_store(config: DataBackupConfig) -> Result:
    """Copy a store."""
    with Store(config.store) as store:
        upkeep.backup(store, config.out)
    return Result(config.out, {"command": "data backup"})


# --- helpers --------------------------------------------------------------------------------------


@contextmanager
def _opened(config: DataConfig) -> Iterator[Source]:
    """Open the data; at the end print every row's fate, unless it is a store."""
    with open_source(config.data, **_how(config)) as source:
        yield source
    if not source.counts.stored:
        say(checks.summarise(source.counts, config.data, source.format))


def _how(config: DataConfig) -> dict[str, Any]:
    """Return the options for reading the file."""
    return config.model_dump(include={"format", "limit", "columns"})


def _written(config: DataConfig, figures: dict[str, Any]) -> Result | None:
    if config.out is None:
        return None
    write_json(config.out, figures)
    return Result(config.out, figures)
