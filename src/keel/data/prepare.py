"""Preparation of a data file: read, check, split by prompt, tokenise into bundles, with every row accounted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from keel.config import Reading, Sampling, Training
from keel.data import checks, doubts, lengths
from keel.data.source import Source, columns_of_two, open_source
from keel.errors import InputError, RowFault
from keel.records import Bundle, Demonstration, Pair, PromptRow, RowCounts
from keel.text.tokenisation import NO_ROOM, Text
from keel.text.tokenizer_facts import facts_of, remarks_on

_Row = TypeVar("_Row", PromptRow, Demonstration, Pair)
_Record = TypeVar("_Record", bound=PromptRow | Demonstration | Pair)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Bundles to train on, held-out bundles, every row's fate, and the facts for the manifest."""

    train: list[Bundle]
    held_out: list[Bundle]
    counts: RowCounts
    eval_counts: RowCounts | None
    """Counts of the rows of --eval-data, if it is given."""
    facts: dict[str, object]
    report: str
    """Text printed at the start of a run."""


def pairs(config: Training, source: str, text: Text, positions: int | None) -> Prepared:
    """Prepare preference pairs: completion 0 of each bundle is the chosen one."""
    return _prepare(lambda given: given.pairs(), checks.check_pairs, config, source, text, positions)


def demonstration_bundles(config: Training, source: str, text: Text, positions: int | None) -> Prepared:
    """Prepare demonstrations and plain text: one completion per bundle."""
    return _prepare(
        lambda given: list(given.demonstrations()), checks.check_demonstrations, config, source, text, positions
    )


def prompt_bundles(config: Training, source: str, text: Text, positions: int | None) -> Prepared:
    """Prepare prompts alone: bundles without completions."""
    return _prepare(lambda given: given.prompts(), checks.check_prompts, config, source, text, positions)


def read_prompt_rows(config: Reading, source: str) -> tuple[list[PromptRow], RowCounts, str]:
    """Return a file's checked prompts, counts and format's name, for commands that train nothing."""
    with open_source(source, format=config.format, limit=config.limit, columns=config.columns) as given:
        rows = given.prompts()
    return checks.check_prompts(rows, given.counts, config.max_bad_share, source), given.counts, given.format


Reader = Callable[[Source], list[_Row]]
Checker = Callable[[list[_Row], RowCounts, float, str], list[_Row]]


def _prepare(
    reader: Reader[_Row],
    checker: Checker[_Row],
    config: Training,
    source: str,
    text: Text,
    positions: int | None,
) -> Prepared:
    other = None if config.eval_data is None else str(config.eval_data)
    columns, other_columns, said = columns_of_two(source, other, config.columns)
    with open_source(source, format=config.format, limit=config.limit, columns=columns) as given:
        rows = reader(given)
        identity = given.identity()
    counts = given.counts
    rows = checker(rows, counts, config.max_bad_share, source)
    limit = min(config.max_length, positions or config.max_length)
    held_report = ""
    facts: dict[str, object] = {"data": source, "format": given.format, **identity, **_ai(rows)}
    held: list[Bundle] = []
    held_counts: RowCounts | None = None
    parts: tuple[Sequence[_Row], ...] = (rows,)
    if other is not None:
        with open_source(other, format=config.format, columns=other_columns) as held_out:
            held_rows = reader(held_out)
            facts |= {"eval_data": other, **{f"eval_{key}": value for key, value in held_out.identity().items()}}
        held_counts = held_out.counts
        if said:
            held_counts.note(said, 1)
        held_rows = checker(held_rows, held_counts, config.max_bad_share, other)
        _refuse_leak(rows, held_rows, source, other)
        held = encode(held_rows, held_counts, text, limit, config.max_bad_share, other, _remedy(config, limit))
        held_report = "\n" + checks.summarise(held_counts, other, held_out.format)
    elif config.holdout:
        parts = checks.split_by_prompt(rows, config.holdout, config.seed)
    longer = _remedy(config, limit)
    bundles = encode_parts(parts, counts, text, limit, config.max_bad_share, source, longer)
    train: list[Bundle] = bundles[0]
    held = bundles[1] if len(bundles) > 1 else held
    report = checks.summarise(counts, source, given.format) + held_report
    if "ai_feedback" in facts:
        report += f"\n{facts['ai_feedback']} of its labels are a model's: what is trained on them is RLAIF"
    report = "\n".join([report, *remarks_on(text, train)])
    return Prepared(train, held, counts, held_counts, facts | facts_of(text), report)


def _remedy(config: Training, limit: int) -> str:
    """Return the option that makes room for longer prompts; empty if the model sets the limit."""
    if config.max_length == limit:
        return "raise --max-length"
    return lengths.remedy(config) if isinstance(config, Sampling) else ""


def _ai(rows: Sequence[_Row]) -> dict[str, object]:
    """Return the number of labels that a model gave, if any."""
    count = sum(isinstance(row, Pair) and row.ai for row in rows)
    return {"ai_feedback": count} if count else {}


def _refuse_leak(rows: Sequence[_Row], held: Sequence[_Row], source: str, other: str) -> None:
    """Refuse held-out prompts that are trained on: they measure memory. Plain text has no prompt to compare."""
    found = checks.leak(rows, held)
    if found.rows:
        raise InputError(
            f"{other}: {len(found.rows)} of its prompts (rows {found.rows[:5]}) also stand in {source}"
            f"{found.otherwise}; remove them from one side, or let --holdout split by prompt"
        )


def encode(
    rows: Sequence[PromptRow | Demonstration | Pair],
    counts: RowCounts,
    text: Text,
    max_length: int,
    max_bad_share: float,
    source: str,
    longer: str = "",
) -> list[Bundle]:
    """Tokenise rows. Those that cannot be tokenised are dropped and counted, and refused past `max_bad_share`.

    `longer` is the option, if any, that makes room for longer prompts, such as `raise --max-length`.
    """
    return encode_parts([rows], counts, text, max_length, max_bad_share, source, longer)[0]


def encode_parts(
    parts: Sequence[Sequence[PromptRow | Demonstration | Pair]],
    counts: RowCounts,
    text: Text,
    max_length: int,
    max_bad_share: float,
    source: str,
    longer: str = "",
) -> list[list[Bundle]]:
    """Tokenise the parts of one source as `encode` does; none may end up empty. All are tried before any is refused."""
    tried = [tokenise(rows, counts, text, max_length) for rows in parts]
    bundles = [[bundle for _, bundle in done] for done, _ in tried]
    first_error = next((error for _, error in tried if error), "") or "mend them"
    first_error += f", or {longer}" if longer and NO_ROOM in counts.dropped else ""
    if not any(bundles):
        raise InputError(
            f"{source}: none of {counts.read} rows can be used ({checks.reasons(counts, neutral=True)}); {first_error}"
        )
    if counts.dropped_total > max_bad_share * counts.read:
        more = checks.or_raise(counts)
        raise InputError(
            f"{source}: {counts.dropped_total} of {counts.read} rows are unusable ({checks.reasons(counts)}), "
            f"above the limit of {max_bad_share:.0%}; {first_error}{';' * bool(more)}{more}"
        )
    require_known([bundle for part in bundles for bundle in part], counts, text, max_bad_share, source)
    if not all(bundles):
        side = "to train on" if not bundles[0] else "held out"
        raise InputError(f"{source}: no row {side} can be used ({checks.reasons(counts)}); {first_error}")
    return bundles


def require_known(bundles: Sequence[Bundle], counts: RowCounts, text: Text, share: float, source: str) -> None:
    """Refuse data if more than a share of the tokens stand for characters that the tokenizer does not know."""
    if what := too_much_unknown(bundles, counts, text, share):
        raise InputError(f"{source}: {what}; take a model whose tokenizer knows them, or raise --max-bad-share")


def too_much_unknown(bundles: Sequence[Bundle], counts: RowCounts, text: Text, share: float) -> str:
    """Return a complaint if more than a share of the tokens stand for unknown characters; else an empty text."""
    found = text.gaps.unknown_share(bundles)
    if found <= share:
        return ""
    rows = checks.which(*counts.notes[unknown(text)])
    return (
        f"{found:.0%} of the tokens ({rows}) are {text.gaps.unknown_token}, which stands for characters that the "
        f"tokenizer does not know, above the limit of {share:.0%}"
    )


def unknown(text: Text) -> str:
    """Return the note on rows with characters that the tokenizer does not know."""
    return f"characters that the tokenizer does not know became {text.gaps.unknown_token}"


def tokenise(
    rows: Sequence[_Record], counts: RowCounts, text: Text, max_length: int
) -> tuple[list[tuple[_Record, Bundle]], str]:
    """Return the tokenised rows with their bundles, and the fault of the first of the others; all are counted."""
    counts.notes.pop(doubts.CONTROL.note, None)  # the tokenizer knows exactly
    done: list[tuple[_Record, Bundle]] = []
    first_error = ""
    for row in rows:
        notes: list[str] = []
        try:
            bundle = text.encode(row, max_length, notes.append)
        except RowFault as fault:
            first_error = first_error or str(fault)
            _drop(counts, fault.reason, row.origin.row)
            continue
        except InputError as error:  # a fault of the model, not of the row
            raise InputError(f"{row.origin}: {error}") from error
        for what in dict.fromkeys(notes):
            counts.note(what, row.origin.row)
        if text.gaps.unknown(bundle):
            counts.note(unknown(text), row.origin.row)
        if len(bundle.completions) == 2 and bundle.completions[0].ids == bundle.completions[1].ids:
            _drop(counts, "both answers are the same tokens within the length limit", row.origin.row)
            continue
        if _drawn_to_a_limit(row):
            counts.note("an answer was drawn up to a length limit: it gets no EOS", row.origin.row)
        elif any(c.truncated for c in bundle.completions):
            counts.note("completion cut at the length limit", row.origin.row)
        done.append((row, bundle))
    return done, first_error


def _drawn_to_a_limit(row: PromptRow | Demonstration | Pair) -> bool:
    if isinstance(row, Pair):
        return any(row.cut)
    return isinstance(row, Demonstration) and row.cut


def _drop(counts: RowCounts, reason: str, row: int) -> None:
    counts.used -= 1
    counts.drop(reason, row)
