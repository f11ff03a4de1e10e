"""`keel data check`: are these data fit to train on? Findings say what is wrong, in which rows, and what to do.

A finding has a level. `refused`: a training command refuses the data, and so does this one (exit code 2, after all
findings are printed). `warning`: training goes on, but its result may not be what one thinks. `note`: good to know.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.text import Text

from keel.audit import cues
from keel.config import DataCheckConfig
from keel.data import checks, doubts, prepare
from keel.data.source import Source, columns_of_two, open_source
from keel.errors import InputError
from keel.files.jsonl import write_json
from keel.files.target import require_writable
from keel.progress import Bar
from keel.records import Bundle, Demonstration, Pair, PromptRow, Result, RowCounts
from keel.says import say
from keel.store import survey
from keel.text import personal, same
from keel.text.near_duplicates import near_duplicates
from keel.text.tokenisation import further, prompt_text

Level = Literal["refused", "warning", "note", "good"]
_Row = Pair | Demonstration | PromptRow

STYLES: dict[Level, str] = {"refused": "bold red", "warning": "yellow", "note": "cyan", "good": "green"}
"""Style of each level on the screen, the worst level first."""

LONGER_AT_LARGE = 0.62
"""Share of people's votes at large that the longer answer wins. Length that predicts more is a bias."""
TELLS = 0.6
"""A surface cue that predicts the better answer more often than this, beyond its interval, is worth a warning."""
LEANS = 0.05
"""Position bias: the first answer's share of wins is further than this from one half, beyond its interval."""
_FEWEST = 30
"""Fewest pairs for which a rate is worth a warning."""
FIRST_ROWS = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know: what it is, what it means, what to do, and the first rows that have it."""

    level: Level
    title: str
    text: str
    rows: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Audit:
    """All findings. `figures` is the content of `--out`, and the page is written from it."""

    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def find(self, level: Level, title: str, text: str, rows: Sequence[int] = ()) -> None:
        """Add a finding with the first of its rows."""
        self.findings.append(Finding(level, title, text, list(rows[:FIRST_ROWS])))


def check(config: DataCheckConfig) -> Result | None:
    """Run all checks, print the findings, and write them to --out and --page.

    Raises InputError if a training command would refuse the data.
    """
    began = time.perf_counter()
    for file in filter(None, (config.out, config.page)):
        require_writable(file)
    audit = _examine(config)
    audit.figures["seconds"] = round(time.perf_counter() - began, 3)
    _tell(audit.findings)
    if config.out is not None:
        write_json(config.out, audit.figures)
    if config.page is not None:
        from keel.audit import page

        page.write_page(audit.figures, config.page)
        say(f"page: {config.page}")
    refused = [finding.title for finding in audit.findings if finding.level == "refused"]
    if refused:
        raise InputError(f"{config.data}: training would refuse these data: {'; '.join(refused)}")
    return None if config.out is None else Result(config.out, audit.figures)


def _tell(findings: Sequence[Finding]) -> None:
    """Print level, title and rows of each finding, and its text beneath."""
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        rows = f"  rows {', '.join(map(str, finding.rows))}" if finding.rows else ""
        line = Text(f"{finding.level:>8}", STYLES[finding.level]).append(f"  {finding.title}", "bold")
        console.print(line.append(rows, "dim"))
        console.print(Text(f"{'':10}{finding.text}"))


def _examine(config: DataCheckConfig) -> Audit:
    """Run all checks that fit the data, in the order of the page."""
    audit = Audit()
    columns, _, _ = columns_of_two(config.data, config.eval_data, config.columns)
    with open_source(config.data, format=config.format, limit=config.limit, columns=columns) as source:
        kind = source.holds()
        if kind == "pairs":
            pairs, counted, agreed = source.judged_pairs()
            pairs = checks.check_pairs(pairs, source.counts, 1.0, config.data)
            rows: Sequence[_Row] = pairs
        else:
            rows = _rows(source)
        audit.figures |= {"command": "data check", "data": config.data, "kind": kind, "format": source.format}
        audit.figures |= source.identity()
    counts = source.counts
    say(checks.summarise(counts, config.data, source.format).partition("\n")[0])  # the rest is in the findings
    if config.eval_data is not None:
        _leaks(audit, rows, config)
    if kind == "pairs":
        _judged(audit, counted, agreed)
        _surface(audit, pairs)
    _prompts(audit, rows)
    _personal(audit, rows)
    if config.model is not None:
        _against_model(audit, rows, counts, config)
    _fates(audit, counts, config.data, config.max_bad_share)
    audit.findings.sort(key=lambda finding: list(STYLES).index(finding.level))
    audit.figures |= {
        "prompts": len(set(same.prompt_keys([row.prompt for row in rows]))),
        "rows": counts.as_dict(),
        "findings": [asdict(finding) for finding in audit.findings],
    }
    return audit


# --- rows -----------------------------------------------------------------------------------------


def _rows(source: Source) -> Sequence[_Row]:
    """Read the rows that a training command would use, whatever share is bad."""
    match source.holds():
        case "pairs":
            return checks.check_pairs(source.pairs(), source.counts, 1.0, source.name)
        case "demonstrations":
            return checks.check_demonstrations(list(source.demonstrations()), source.counts, 1.0, source.name)
        case "prompts":
            return checks.check_prompts(source.prompts(), source.counts, 1.0, source.name)


def _fates(audit: Audit, counts: RowCounts, source: str, max_bad_share: float) -> None:
    """Add findings on rows that are dropped, neutral, or used with a note."""
    share = counts.dropped_total / counts.read
    mend = f"mend it{checks.or_raise(counts)}"
    for reason, (count, rows) in sorted(counts.dropped.items(), key=lambda item: -item[1][0]):
        text = "Training leaves such rows out; mend or remove them."
        if reason == checks.CONTRADICTORY:
            text = "Rows prefer opposite answers of the same pair. Training leaves out both; have them judged again"
            text += f"{checks.one_dimension(counts, source)}."
        audit.find("warning", f"{checks.counted(count, 'row')}: {reason}", text, rows)
    if share > max_bad_share:
        audit.find(
            "refused",
            f"{share:.1%} of the rows are bad",
            f"Above {max_bad_share:.1%} something else is wrong with the file; {mend}.",
        )
    for reason, (count, rows) in counts.neutral.items():
        audit.find(
            "note",
            f"no pair from {checks.counted(count, 'comparison')}: {reason}",
            "Not an error; they teach pair methods nothing.",
            rows,
        )
    for what, (count, rows) in counts.notes.items():
        doubt = doubts.of_note(what)
        level, text = (doubt.level, doubt.meaning) if doubt else ("note", "Used all the same.")
        audit.find(level, f"{checks.counted(count, 'row')}: {what}", text, rows)
    if not counts.dropped:
        audit.find(
            "good",
            "every row can be read and used",
            f"{checks.counted(counts.read, 'row')} read, {counts.used:,} used.",
        )


# --- prompts --------------------------------------------------------------------------------------


def _leaks(audit: Audit, rows: Sequence[_Row], config: DataCheckConfig) -> None:
    """Find held-out prompts that are also in the data: word for word (in whatever bytes), or nearly."""
    other = str(config.eval_data)
    _, columns, noted = columns_of_two(config.data, other, config.columns)
    with open_source(other, columns=columns) as source:
        held = _rows(source)
    if noted:
        source.counts.note(noted, 1)
    say(checks.summarise(source.counts, other, source.format))
    found = checks.leak(rows, held)
    exact = found.rows
    near = [held[at].origin.row for at in _near_across(rows, held) if at not in set(found.places)]
    audit.figures["leak"] = {"eval_data": other, "rows": len(held), "exact": _some(exact), "near": _some(near)}
    if exact:
        text = f"Their prompts are in {config.data}, too{found.otherwise}: an evaluation on them measures memory."
        title = f"leak of {checks.counted(len(exact), 'held-out row')} of {other}"
        audit.find("refused", title, f"{text} Remove them from one of the two.", exact)
    if near:
        text = (
            "Their prompts share most of their words with prompts of the data. Look at them, or split anew by prompt."
        )
        audit.find("warning", f"near leak of {checks.counted(len(near), 'held-out row')} of {other}", text, near)
    if not exact and not near:
        audit.find(
            "good",
            "no held-out prompt is in the data",
            f"{checks.counted(len(held), 'row')} of {other} were compared; no prompt is nearly alike either.",
        )


def _near_across(rows: Sequence[_Row], held: Sequence[_Row]) -> list[int]:
    """Return the indices of held-out rows that are near-duplicates of rows of the data."""
    groups = near_duplicates([prompt_text(row.prompt) for row in (*rows, *held)])
    known = [group for group in groups if group[0] < len(rows)]
    return sorted(at - len(rows) for group in known for at in group if at >= len(rows))


def _prompts(audit: Audit, rows: Sequence[_Row]) -> None:
    """Find prompts that are nearly alike."""
    firsts: dict[Hashable, _Row] = {}
    for row, key in zip(rows, same.prompt_keys([row.prompt for row in rows]), strict=True):
        if row.prompt:
            firsts.setdefault(key, row)
    distinct = list(firsts.values())
    groups = near_duplicates([prompt_text(row.prompt) for row in distinct])
    inside = sorted(distinct[at].origin.row for group in groups for at in group)
    shown = [
        {"rows": [distinct[i].origin.row for i in g], "text": prompt_text(distinct[g[0]].prompt)[:200]} for g in groups
    ]
    audit.figures["near_duplicates"] = {"groups": len(groups), "prompts": len(inside), "first": shown[:FIRST_ROWS]}
    if groups:
        many = checks.counted(len(groups), "group")
        text = f"They make {many} that share most of their words; a random split can put them into both parts."
        audit.find("note", f"{len(inside):,} of {len(distinct):,} prompts are nearly alike", text, inside)


def _personal(audit: Audit, rows: Sequence[_Row]) -> None:
    """Find e-mail addresses, phone and card numbers and the like in prompts and answers, by kind."""
    found: dict[str, list[int]] = {}
    seen: dict[str, set[str]] = {}
    with Bar("personal data", len(rows)) as bar:
        for row in rows:
            kinds: set[str] = set()
            for text in _texts(row):
                if text not in seen:
                    seen[text] = {item.kind for item in personal.find(text)}
                kinds |= seen[text]
            for kind in kinds:
                found.setdefault(kind, []).append(row.origin.row)
            bar.advance()
    audit.figures["personal"] = {kind: _some(numbers) for kind, numbers in sorted(found.items())}
    if found:
        counted = ", ".join(f"{len(numbers):,} with {_KINDS[kind]}" for kind, numbers in sorted(found.items()))
        every = sorted({number for numbers in found.values() for number in numbers})
        text = f"{counted}. A model can learn them by heart; keel collect --personal mask masks prompts."
        audit.find("warning", f"personal data in {checks.counted(len(every), 'row')}", text, every)
    else:
        audit.find("good", "no personal data found", "Addresses, phone, card and account numbers were looked for.")


_KINDS = {
    "email": "an e-mail address",
    "phone": "a phone number",
    "card": "a card number",
    "iban": "an IBAN",
    "ip": "an IP address",
}


def _texts(row: _Row) -> Iterator[str]:
    """Yield all texts of a row, including those in fields of its turns and answers."""
    if isinstance(row.prompt, str):
        yield row.prompt
    else:
        for turn in row.prompt:
            yield turn["content"]
            if more := further(turn):
                yield from personal.texts_in(more)
    match row:
        case Pair():
            yield from (row.chosen, row.rejected)
            for fields in filter(None, row.fields):
                yield from personal.texts_in(dict(fields))
        case Demonstration():
            yield row.completion
            yield from personal.texts_in(dict(row.fields or {}))


def _some(rows: Sequence[int]) -> dict[str, Any]:
    return {"count": len(rows), "rows": list(rows[:FIRST_ROWS])}


# --- judgments ------------------------------------------------------------------------------------


def _judged(audit: Audit, found: survey.Survey, agreed: list[survey.Agreement]) -> None:
    """Add findings on raters: position bias, share of labels by models, agreement."""
    audit.figures |= {"survey": found.as_dict(), "agreement": [one.as_dict() for one in agreed]}
    first = found.first_wins()
    recorded = found.sides_recorded()
    audit.figures["sides_recorded"] = recorded
    if recorded and first.n >= _FEWEST and (first.low > 0.5 + LEANS or first.high < 0.5 - LEANS):
        text = "Raters prefer a position, or one model always has it. Show each pair in a random order, or in both."
        audit.find("warning", f"the answer shown first wins {first.mean:.0%} of {first.n:,}", text)
    elif recorded and first.n >= _FEWEST:
        audit.find("good", "answer positions are balanced", f"The answer shown first wins {first} of {first.n:,}.")
    elif recorded is False:
        text = "The better answer always has the same position, so a position bias of the raters cannot be measured."
        audit.find("note", "answer positions are unknown", text)
    if found.ai_share().mean > 0:
        text = "What is trained on them is RLAIF; manifests say so."
        audit.find("note", f"{found.ai_share().mean:.0%} of the labels are a model's", text)
    for one in agreed:
        _agreed(audit, one)


def _agreed(audit: Audit, one: survey.Agreement) -> None:
    if not one.shared:
        return
    text = f"On {one.shared:,} items judged by two or more, they agree {one.agree}; Krippendorff's alpha {one.alpha}."
    if one.alpha.high < 0.2:
        text += " Near chance: the guidelines do not tell raters what to prefer."
        audit.find("warning", f"raters hardly agree ({one.dimension})", text)
    else:
        audit.find("note", f"raters' agreement ({one.dimension})", text)


# --- surface cues ---------------------------------------------------------------------------------


def _surface(audit: Audit, pairs: Sequence[Pair]) -> None:
    """Measure how well length and other surface cues predict the better answer."""
    found = cues.cues(pairs)
    by_length = cues.length_only(pairs)
    audit.figures["cues"] = [cue.as_dict() for cue in found]
    audit.figures["length"] = {
        "longer_wins": found[0].more.as_dict(),
        "length_only": by_length.as_dict() if by_length else None,
        "by_difference": [step.as_dict() for step in cues.by_difference(pairs)],
    }
    longer = f"The longer answer wins {found[0].more} of the pairs of unequal length"
    if by_length is not None and len(pairs) >= _FEWEST:
        said = f"{longer}; the two lengths alone predict the better answer {by_length} of the time, on unseen prompts."
        if by_length.low > LONGER_AT_LARGE:
            said += (
                f" In people's votes at large it is {LONGER_AT_LARGE:.0%}: a reward model will learn length. Compare at"
                " equal length, or train DPO with --length-alpha."
            )
            audit.find("warning", f"length alone predicts {by_length.mean:.0%} of preferences", said)
        elif by_length.low > 0.5 + LEANS:
            said += f" That is not clearly more than in people's votes at large, {LONGER_AT_LARGE:.0%}."
            audit.find("note", f"length alone predicts {by_length.mean:.0%} of preferences", said)
        else:
            audit.find("good", "length alone predicts little", said)
    for cue in found[1:]:
        if cue.differ >= _FEWEST and max(cue.right.low, 1 - cue.right.high) > TELLS:
            side, share = ("chosen", cue.right.mean) if cue.right.mean > 0.5 else ("rejected", 1 - cue.right.mean)
            text = f"It is in {cue.chosen:.0%} of the chosen and {cue.rejected:.0%} of the rejected answers; remove it."
            audit.find(
                "warning",
                f"a surface cue alone predicts {share:.0%} of preferences: {side} answers “{cue.name}”",
                text,
            )
    cut = found[-1]
    if cut.chosen or cut.rejected:
        text = f"{cut.chosen:.1%} of the chosen and {cut.rejected:.1%} of the rejected; in training they get no EOS."
        audit.find("note", "answers were cut at a length limit when they were drawn", text)


# --- against a model ------------------------------------------------------------------------------


def _against_model(audit: Audit, rows: Sequence[_Row], counts: RowCounts, config: DataCheckConfig) -> None:
    """Check that rows fit the model's tokenizer and template, and compare pairs with its own answers."""
    from keel.audit import on_policy
    from keel.models import checkpoints
    from keel.models.limits import positions

    text = checkpoints.load_text(str(config.model), config)
    model = checkpoints.load_policy(str(config.model), config)
    limit = min(config.max_length, positions(model) or config.max_length)
    done, first_error = prepare.tokenise(rows, counts, text, limit)
    audit.figures |= {"model": config.model, "tokens": _token_counts([bundle for _, bundle in done])}
    if first_error:
        audit.find("note", "the first row that does not fit the model", first_error)
    if strange := prepare.too_much_unknown([bundle for _, bundle in done], counts, text, config.max_bad_share):
        audit.find("refused", strange, "Take a model whose tokenizer knows these characters, or raise --max-bad-share.")
    pairs = [(row, bundle) for row, bundle in done if isinstance(row, Pair)]
    if not pairs:
        return
    found = on_policy.compare_sample(pairs, model, text, config)
    if found is None:
        few = f"Give {on_policy.FEWEST} prompts or more, or raise --compare."
        audit.find("note", on_policy.HEADLINES[on_policy.FEW], few)
        return
    audit.figures["distribution"] = found
    if found["too_long"] or found["cut_at"]:
        cut = f", answers are compared up to {found['cut_at']} tokens" if found["cut_at"] else ""
        left = checks.counted(found["too_long"], "pair")
        audit.find("note", f"{left} not compared: too long", f"The model's own answers must fit beside a prompt{cut}.")
    levels: dict[str, Level] = {on_policy.OFF: "warning", on_policy.ON: "good"}
    several = len(found["sources"]) > 1
    for source in found["sources"] if several else [found]:
        title = on_policy.HEADLINES[source["verdict"]]
        title = f"{source['name']}: {title}" if several else title
        audit.find(levels.get(source["verdict"], "note"), title, source["meaning"])


def _token_counts(bundles: Sequence[Bundle]) -> dict[str, Any]:
    """Count tokens of prompts and of completions by place: median, 95th percentile, maximum; and rows that were cut."""
    parts: dict[str, Iterable[int]] = {"prompt": [len(b.prompt_ids) for b in bundles]}
    widest = max((len(b.completions) for b in bundles), default=0)
    names = ("chosen", "rejected") if widest == 2 else ("completion",) * widest
    parts |= {name: [len(b.completions[i]) for b in bundles] for i, name in enumerate(names)}
    found: dict[str, Any] = {}
    for name, values in parts.items():
        numbers = np.array(list(values))
        if len(numbers):
            median, most = np.quantile(numbers, (0.5, 0.95))
            found[name] = {"median": float(median), "p95": float(most), "max": int(numbers.max())}
    return found | {"cut": sum(any(c.truncated for c in b.completions) for b in bundles), "rows": len(bundles)}
