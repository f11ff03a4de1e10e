"""`keel collect`: draw several answers per prompt, have them judged, store both. The loop that makes preference data.

Work goes in rounds of prompts: a round's answers are stored as they come from the writer, its judgments as they come
from the raters. If it was stopped at any point, the next call finds what is there and draws the rest as it would have
been drawn. It asks no server and no judge again for what they have said.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from keel.commands import prompt_filters
from keel.config import CollectConfig
from keel.data import checks, prepare
from keel.engine import verdict
from keel.engine.verdict import Advice, RunVerdict, Sample
from keel.errors import InputError, RunFailed, interruption
from keel.files.jsonl import write_json
from keel.progress import Bar, peak_rss_gb
from keel.raters import Missing, Rater, Task
from keel.raters.simulated import Simulated
from keel.raters.two_orders import VerbosityBias, verbosity_biases
from keel.records import Answer, Judgment, Preference, PromptRow, Result, RowCounts
from keel.sampling.writers import Writer, Written, local_writer, server_writer
from keel.says import say
from keel.store.keys import answer_id, prompt_id, said_key
from keel.store.store import Store
from keel.text.tokenisation import prompt_text

HOPELESS = 25
"""Give up if so many pairs from the first on have no verdict, or so many prompts no answer."""
JUDGES = "judge:", "local:"
"""Prefixes of the names of raters that are language models."""
_SAMPLES = 3
"""Number of prompts whose answers are shown at the end."""
COMMIT = 256
"""Judgments of free raters per transaction; a judge's are stored one by one, since each has cost money."""


def collect(config: CollectConfig) -> Result | None:
    """Draw the missing answers, have them judged, store both; return the figures if --out is given."""
    try:
        return _collect(config)
    except KeyboardInterrupt as stop:
        raise interruption(stop, "; what was drawn and judged is kept: the same call goes on") from stop


def _collect(config: CollectConfig) -> Result | None:
    began = time.perf_counter()
    rows, counts = _prompts(config)
    raters = [load_rater(name, config) for name in config.rater]
    for rater in raters:
        if isinstance(rater, Simulated):
            rater.require_known(rows, config.prompts)
    tally = Tally()
    with Store(config.store, create=True) as store:
        writer = _writer(config, rows)
        rounds = [rows[i : i + writer.at_once] for i in range(0, len(rows), writer.at_once)]
        asked = {rater.identity: store.said_by(rater.identity) for rater in raters}
        each = math.comb(config.n, 2) * len(raters) or 1
        with Bar("pairs judged" if raters and config.n > 1 else "prompts", len(rows) * each) as bar:

            def progress(done: int = 0) -> None:
                bar.advance(done, "; ".join(filter(None, (tally.note(), *(r.note() for r in raters)))))

            for number, some in enumerate(rounds):
                before = bar.done
                drawn = _answers(store, writer, some, number, config.n, tally, progress)
                tally.look(drawn)
                tasks = [Task(row.prompt, a, b) for row, few in drawn for a, b in combinations(few, 2)]
                for rater in raters:
                    _judge(store, rater, tasks, asked[rater.identity], tally, progress)
                progress(before + len(some) * each - bar.done)  # and those judged earlier, or not at all
        if not tally.found + tally.drawn:
            raise RunFailed(f"no answer to any prompt: {checks.reasons(tally.silent)}")
        for name, rater in zip(config.rater, raters, strict=True):
            if name != "people":  # people answer in their own time
                _refuse_silence(rater.identity, asked[rater.identity], tally)
        judges = [r.identity for name, r in zip(config.rater, raters, strict=True) if name.startswith(JUDGES)]
        tally.bias = _biases(store, judges, rows)
    return _told(config, counts, raters, tally, time.perf_counter() - began)


@dataclass(slots=True)
class Tally:
    """Work done by this call, and the time that each part took."""

    found: int = 0
    """Answers that were already in the store."""
    drawn: int = 0
    silent: RowCounts = field(default_factory=RowCounts)
    """`dropped`: prompts that lack some of the requested answers, by reason."""
    pairs: int = 0
    """Pairs that raters were asked about."""
    judged: Counter[str] = field(default_factory=Counter)
    """New judgments in the store, by rater."""
    missing: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Pairs without a verdict, by rater and reason."""
    left: Counter[str] = field(default_factory=Counter)
    """Pairs that were not begun since a budget was spent, by rater."""
    bias: dict[str, dict[str, VerbosityBias]] = field(default_factory=dict)
    """Verbosity biases, by judge and dimension."""
    cut: int = 0
    """Answers, found and drawn, that reached the length limit."""
    ties: Counter[str] = field(default_factory=Counter)
    """New judgments that call a pair a tie, by rater."""
    samples: list[Sample] = field(default_factory=list)
    """Two answers to each of the first few prompts."""
    sampling: float = 0.0
    rating: float = 0.0

    def look(self, drawn: Sequence[tuple[PromptRow, list[Answer]]]) -> None:
        """Count the cut answers of a round, and keep some answers to show."""
        self.cut += sum(answer.truncated for _, answers in drawn for answer in answers)
        for row, answers in drawn:
            if len(answers) > 1 and len(self.samples) < _SAMPLES:
                self.samples.append(
                    Sample(prompt_text(row.prompt), {"one": answers[0].text, "another": answers[1].text})
                )

    def note(self) -> str:
        """Return `1,024 answers, 2 prompts are incomplete, 512 pairs`."""
        missing = f", {self.silent.dropped_total:,} prompts are incomplete" if self.silent.dropped else ""
        pairs = f", {checks.counted(self.pairs, 'pair')}" if self.pairs else ""
        return f"{self.found + self.drawn:,} answers{missing}{pairs}"


# --- prompts --------------------------------------------------------------------------------------


def _prompts(config: CollectConfig) -> tuple[list[PromptRow], RowCounts]:
    """Return distinct prompts in file order, and every row's fate."""
    rows, counts, name = prepare.read_prompt_rows(config, config.prompts)
    rows = prompt_filters.choose(rows, counts, config.personal, config.near_duplicates == "drop")
    say(checks.summarise(counts, config.prompts, name))
    if kept := [note for note in counts.notes if note.startswith("personal data kept")]:
        kinds = ", ".join(f"{note.rpartition(' ')[2]} in {counts.notes[note][0]:,}" for note in sorted(kept))
        say(f"  these prompts are kept, and sent, with the personal data in them ({kinds}): --personal mask hides it")
    return rows, counts


# --- answers --------------------------------------------------------------------------------------


def _writer(config: CollectConfig, rows: Sequence[PromptRow]) -> Writer:
    return local_writer(config, rows) if config.server is None else server_writer(config, config.server)


def _answers(
    store: Store,
    writer: Writer,
    some: Sequence[PromptRow],
    number: int,
    n: int,
    tally: Tally,
    progress: Callable[[], None],
) -> list[tuple[PromptRow, list[Answer]]]:
    """Return the round's answers, up to n per prompt: those in the store, and the missing ones, drawn and stored."""
    found = [answers[:n] for answers in store.answers_to([row.prompt for row in some], writer.like)]
    tally.found += sum(map(len, found))
    for have in sorted({len(answers) for answers in found} - {n}):
        lacking = [index for index, answers in enumerate(found) if len(answers) == have]
        began = time.perf_counter()
        for written in writer.write([some[index] for index in lacking], number, have):
            tally.sampling += time.perf_counter() - began
            _keep_answers(store, [(lacking[i], answers, why) for i, answers, why in written], some, found, tally)
            progress()
            began = time.perf_counter()
        tally.sampling += time.perf_counter() - began
    return list(zip(some, found, strict=True))


def _keep_answers(
    store: Store,
    written: Sequence[Written],
    some: Sequence[PromptRow],
    found: list[list[Answer]],
    tally: Tally,
) -> None:
    """Store the new answers in one transaction and add them to `found`; count what is missing."""
    store.add_answers((some[index], answers) for index, answers, _ in written if answers)
    for index, answers, why in written:
        found[index] += answers
        tally.drawn += len(answers)
        if why:
            tally.silent.drop(why, some[index].origin.row)
            if tally.silent.dropped_total == HOPELESS and not tally.found + tally.drawn:
                raise RunFailed(f"no answer to the first {HOPELESS} prompts: {checks.reasons(tally.silent)}")


# --- judgments ------------------------------------------------------------------------------------


def _judge(
    store: Store, rater: Rater, tasks: Sequence[Task], asked: set[bytes], tally: Tally, progress: Callable[[int], None]
) -> None:
    """Have a rater judge the tasks that they have not judged yet, and store each judgment as it comes."""
    waiting = [task for task in tasks if not asked or _about(task) not in asked]
    began, name = time.perf_counter(), rater.identity
    done = 0
    kept: list[Judgment] = []
    try:
        for _, result in rater.rate(waiting):
            done += 1
            tally.pairs += 1
            if isinstance(result, Missing):
                tally.missing[name, result.reason] += 1
                progress(1)
                if done == HOPELESS and not result.waiting and not tally.judged[name] + len(kept):
                    raise RunFailed(f"{name}: none of {HOPELESS} pairs has a verdict; the last: {result.reason}")
                continue
            kept += result
            progress(1)
            tally.ties[name] += sum(isinstance(j.verdict, Preference) and j.verdict.outcome == "tie" for j in result)
            if len(kept) >= (1 if result[0].ai else COMMIT):
                tally.judged[name] += _keep(store, kept)
    finally:
        tally.judged[name] += _keep(store, kept)
    tally.left[name] += len(waiting) - done
    tally.rating += time.perf_counter() - began


def _refuse_silence(judge: str, asked: set[bytes], tally: Tally) -> None:
    """Raise `RunFailed` if a rater has given no verdict at all, now or before."""
    reasons = [(why, count) for (who, why), count in tally.missing.most_common() if who == judge]
    if reasons and not tally.judged[judge] and not asked:
        missing = checks.counted(sum(count for _, count in reasons), "pair")
        raise RunFailed(f"{judge}: none of {missing} has a verdict ({reasons[0][0]}); answers are kept: call again")


def _keep(store: Store, judgments: list[Judgment]) -> int:
    """Store judgments; return how many were new."""
    added = store.append((said_key(judgment), judgment) for judgment in judgments)
    judgments.clear()
    return added


def _about(task: Task) -> bytes:
    prompt = prompt_id(task.prompt)
    return answer_id(prompt, task.first) + answer_id(prompt, task.second)


def _biases(store: Store, judges: Sequence[str], rows: Sequence[PromptRow]) -> dict[str, dict[str, VerbosityBias]]:
    """Measure verbosity biases, by judge and dimension, from all judgments of these prompts, earlier calls included."""
    asked = {prompt_id(row.prompt) for row in rows} if judges else set()
    return {judge: verbosity_biases(store.judgments_by(judge, asked)) for judge in judges}


BARE = "people", "simulated"
"""Raters that are named without a colon."""


def load_rater(name: str, config: CollectConfig) -> Rater:
    """Return the rater that `--rater` names: `KIND:NAME`, made by the `make` of `keel.raters.KIND`."""
    kind, _, rest = name.partition(":")
    known = kind.isidentifier() and importlib.util.find_spec(f"keel.raters.{kind}") is not None
    make = getattr(importlib.import_module(f"keel.raters.{kind}"), "make", None) if known else None
    if make is None or bool(rest) == (kind in BARE):
        raise InputError(f"--rater {name}: give rule:FILE.yaml, judge:NAME, local:MODEL, people or simulated")
    rater: Rater = make(rest, config)
    return rater


# --- telling --------------------------------------------------------------------------------------


def _told(
    config: CollectConfig, counts: RowCounts, raters: Sequence[Rater], tally: Tally, seconds: float
) -> Result | None:
    """Print one line for each thing that was done or not done; return the figures if --out is given."""
    say(f"{config.store}: {tally.drawn:,} answers drawn, {tally.found:,} were in the store")
    for reason, (count, _) in tally.silent.dropped.items():
        say(f"  {count:,} prompts lack answers: {reason}; the same call asks again")
    for rater in raters:
        _tell_of(rater, tally)
    end = _conclude(config, raters, tally)
    for line in end.lines():
        say(line)
    if config.out is None:
        return None
    figures = {**_figures(counts, tally, seconds), "verdict": end.as_dict()}
    write_json(config.out, figures)
    return Result(config.out, figures)


def _conclude(config: CollectConfig, raters: Sequence[Rater], tally: Tally) -> RunVerdict:
    """Return the verdict on this call."""
    names = [rater.identity for rater in raters]
    judged = "".join(f"; {name}: {tally.judged[name]:,} new judgments" for name in names)
    answers = tally.found + tally.drawn
    tied = [name for name in names if tally.judged[name] and tally.ties[name] == tally.judged[name]]
    return RunVerdict(
        f"{answers:,} answers, {tally.drawn:,} of them new{judged}",
        f"all of them, in {config.store}",
        "0, since the answers are the model's own",
        tally.samples,
        verdict.those_due(
            verdict.all_cut(tally.cut, answers, f"--max-new-tokens {config.max_new_tokens}", ""),
            *(
                Advice("equal rewards", f"{name}: every new judgment is a tie, which makes no pair; look at --rater")
                for name in tied
            ),
        ),
        "no prompt has two answers",
        figures={"answers": answers, "cut": tally.cut, "judged": dict(tally.judged), "ties": dict(tally.ties)},
    )


def _tell_of(rater: Rater, tally: Tally) -> None:
    name, note = rater.identity, rater.note()
    say(f"{name}: {tally.judged[name]:,} judgments" + (f" ({note})" if note else ""))
    for (who, why), count in tally.missing.most_common():
        if who == name:
            say(f"  {count:,} without a verdict: {why}; the same call asks again")
    if tally.left[name]:
        say(f"  {tally.left[name]:,} pairs left, the budget is spent: the same call with a larger one goes on")
    for dimension, bias in tally.bias.get(name, {}).items():
        say(f"  {dimension}: {bias}")


def _figures(counts: RowCounts, tally: Tally, seconds: float) -> dict[str, Any]:
    bias = [
        {"rater": name, "dimension": dimension, **found.as_dict()}
        for name, of in tally.bias.items()
        for dimension, found in of.items()
    ]
    return {
        "command": "collect",
        "seconds": round(seconds, 3),
        "sample_seconds": round(tally.sampling, 3),
        "rate_seconds": round(tally.rating, 3),
        "drawn": tally.drawn,
        "found": tally.found,
        "unanswered": tally.silent.as_dict()["dropped"],
        "judged": dict(tally.judged),
        "missing": [{"rater": who, "reason": why, "pairs": n} for (who, why), n in tally.missing.items()],
        "left": {name: n for name, n in tally.left.items() if n},
        "judges": bias,
        "peak_rss_gb": peak_rss_gb(),
        "rows": counts.as_dict(),
    }
