"""`keel collect`: prompts → several answers each → judged → kept. The loop that makes preference data.

Work goes in rounds of prompts: a round's answers are stored in one transaction, its judgments as they come. Called
again after it was stopped anywhere, it finds what is there, draws the other rounds as they would have been drawn, and
asks no judge for what he has said.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from keel.config import CollectConfig
from keel.data import checks, prepare
from keel.data.files import write_json
from keel.data.store import Store, answer_key, prompt_key, said_key
from keel.data.text import Text
from keel.engine.progress import Bar, peak_rss_gb, say
from keel.errors import InputError, RunFailed
from keel.raters import Missing, Rater, Task
from keel.records import Answer, Judgment, PromptRow, Result, RowCounts

ROUNDS_OF_ROWS = 4
"""A round fills the sampler so many times: its tail, where rows run out, is then a small part."""
HOPELESS = 25
"""Pairs without a verdict, one after the other from the first on, after which a rater is not asked any more."""
COMMIT = 256
"""Judgments of free raters in one transaction; a judge's are stored one by one, since each has cost money."""


def collect(config: CollectConfig) -> Result | None:
    """Draw what is missing, have it judged, keep it; returns the figures where --out wants them."""
    began = time.perf_counter()
    rows, counts = _prompts(config)
    raters = [load_rater(name, config) for name in config.rater]
    tally = Tally()
    with Store(config.store, create=True) as store:
        writer = _writer(config, rows, counts)
        rounds = [rows[i : i + writer.at_once] for i in range(0, len(rows), writer.at_once)]
        asked = {rater.identity: store.said_by(rater.identity) for rater in raters}
        with Bar("prompts", len(rows)) as bar:
            for number, some in enumerate(rounds):
                drawn = _answers(store, writer, some, number, config.n, tally)
                tasks = [Task(row.prompt, a, b) for row, few in drawn for a, b in combinations(few, 2)]
                for rater in raters:
                    _judge(store, rater, tasks, asked[rater.identity], tally)
                bar.advance(len(some), "; ".join(filter(None, (r.note() for r in raters))))
    return _told(config, counts, raters, tally, time.perf_counter() - began)


@dataclass(slots=True)
class Tally:
    """What was done by this call, and how long each part took."""

    found: int = 0
    """Answers that were in the store."""
    drawn: int = 0
    judged: Counter[str] = field(default_factory=Counter)
    """By rater: judgments that are new in the store."""
    missing: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By rater and reason: pairs without a verdict."""
    left: Counter[str] = field(default_factory=Counter)
    """By rater: pairs that were not begun, since a budget was spent."""
    sampling: float = 0.0
    rating: float = 0.0


# --- prompts --------------------------------------------------------------------------------------


def _prompts(config: CollectConfig) -> tuple[list[PromptRow], RowCounts]:
    """Distinct prompts, in the order of the file."""
    rows, counts, name = prepare.read_prompt_rows(config, config.prompts)
    distinct: dict[bytes, PromptRow] = {}
    for row in rows:
        if distinct.setdefault(prompt_key(row.prompt), row) is not row:
            counts.used -= 1
            counts.drop("prompt of an earlier row", row.origin.row)
    say(checks.summarise(counts, config.prompts, name))
    return list(distinct.values()), counts


# --- answers --------------------------------------------------------------------------------------


class LocalWriter:
    """Draws answers with a model in this process; round k of the same seed and prompts is always the same draw."""

    def __init__(self, config: CollectConfig, rows: Sequence[PromptRow], counts: RowCounts) -> None:
        from keel.engine.sampler import room
        from keel.models import checkpoints
        from keel.models.machine import described

        self.config = config
        self.text: Text = checkpoints.load_text(config.model)
        self.policy = checkpoints.load_policy(config.model, config)
        say(described(self.policy))
        limit = room(self.policy, config.max_new_tokens)
        for row in rows:
            if limit is not None and len(self.text.prompt_ids(row.prompt)) >= limit:
                raise InputError(
                    f"{row.origin}: with {config.max_new_tokens} new tokens the prompt does not fit the model; "
                    "shorten it, leave it out, or lower --max-new-tokens"
                )
        drawn = {"temperature": config.temperature, "top_p": config.top_p, "max_new_tokens": config.max_new_tokens}
        self.like = Answer(
            "",
            model=config.model,
            model_hash=checkpoints.weights_hash(self.policy)[:16],
            sampling={**drawn, "seed": config.seed},
        )
        self.at_once = max(1, ROUNDS_OF_ROWS * config.max_rows // config.n)

    def write(self, rows: Sequence[PromptRow], number: int) -> Iterator[list[Answer]]:
        """n answers to each prompt, round `number`."""
        from keel.engine.run import generator
        from keel.engine.sampler import sample

        config = self.config
        bundles = sample(
            self.policy,
            self.text,
            [row.prompt for row in rows],
            config.n,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            generator=generator(config.seed, "collect", number),
            max_rows=config.max_rows,
        )
        for bundle in bundles:
            answers = []
            for draw, c in enumerate(bundle.completions):
                assert c.logps is not None
                logp = float(c.logps.double().sum())
                drawn = replace(self.like, text=c.text, draw=draw, logp=logp, tokens=len(c), truncated=c.truncated)
                answers.append(drawn)
            yield answers


def _writer(config: CollectConfig, rows: Sequence[PromptRow], counts: RowCounts) -> LocalWriter:
    return LocalWriter(config, rows, counts)


def _answers(
    store: Store, writer: LocalWriter, some: Sequence[PromptRow], number: int, n: int, tally: Tally
) -> list[tuple[PromptRow, list[Answer]]]:
    """The round's answers: those in the store where all are there, else drawn and stored."""
    found = [store.answers_to(row.prompt, writer.like) for row in some]
    if all(len(answers) >= n for answers in found):
        tally.found += n * len(some)
        return [(row, answers[:n]) for row, answers in zip(some, found, strict=True)]
    began = time.perf_counter()
    drawn = list(zip(some, writer.write(some, number), strict=True))
    tally.sampling += time.perf_counter() - began
    tally.drawn += sum(len(answers) for _, answers in drawn)
    store.add_answers(drawn)
    return drawn


# --- judgments ------------------------------------------------------------------------------------


def _judge(store: Store, rater: Rater, tasks: Sequence[Task], asked: set[bytes], tally: Tally) -> None:
    """Have a rater judge what he has not judged yet, and keep it as it comes."""
    waiting = [task for task in tasks if _about(task) not in asked]
    began, name = time.perf_counter(), rater.identity
    done = 0
    kept: list[Judgment] = []
    try:
        for _, result in rater.rate(waiting):
            done += 1
            if isinstance(result, Missing):
                tally.missing[name, result.reason] += 1
                if done == HOPELESS and not tally.judged[name] + len(kept):
                    raise RunFailed(f"{name}: none of {HOPELESS} pairs has a verdict; the last: {result.reason}")
                continue
            kept += result
            if len(kept) >= (1 if result[0].ai else COMMIT):
                tally.judged[name] += _keep(store, kept)
    finally:
        tally.judged[name] += _keep(store, kept)
    tally.left[name] += len(waiting) - done
    tally.rating += time.perf_counter() - began


def _keep(store: Store, judgments: list[Judgment]) -> int:
    """Store some; returns how many were new."""
    added = store.append((said_key(judgment), judgment) for judgment in judgments)
    judgments.clear()
    return added


def _about(task: Task) -> bytes:
    prompt = prompt_key(task.prompt)
    return answer_key(prompt, task.first) + answer_key(prompt, task.second)


def load_rater(name: str, config: CollectConfig) -> Rater:
    """The rater that `--rater` names."""
    kind, _, rest = name.partition(":")
    if kind == "simulated" and not rest:
        from keel.raters.simulated import Simulated

        return Simulated(config.seed)
    if not rest or kind not in ("rule", "judge", "local"):
        raise InputError(f"--rater {name}: give rule:FILE.yaml, judge:NAME, local:MODEL or simulated")
    if kind == "rule":
        from keel.data.rules import load_rubric as load_rules
        from keel.raters.rules import RuleRater

        return RuleRater(load_rules(rest))
    from keel.raters.rubric import DEFAULT, load_rubric

    rubric = DEFAULT if config.rubric is None else load_rubric(config.rubric)
    if kind == "local":
        from keel.raters.local_judge import load_local_judge

        return load_local_judge(rest, config, rubric)
    from keel.raters.judge import Judge, JudgeConfig

    shared = ("key_variable", "concurrency", "deadline", "price_in", "price_out", "budget", "token_budget")
    options = {option: getattr(config, option) for option in shared}
    return Judge(JudgeConfig(model=rest, base_url=config.judge_server, **options), rubric)


# --- telling --------------------------------------------------------------------------------------


def _told(
    config: CollectConfig, counts: RowCounts, raters: Sequence[Rater], tally: Tally, seconds: float
) -> Result | None:
    """One line for each thing that was done or not done, and the figures."""
    say(f"{config.store}: {tally.drawn:,} answers drawn, {tally.found:,} were there")
    for rater in raters:
        name = rater.identity
        line = f"{name}: {tally.judged[name]:,} judgments"
        if note := rater.note():
            line += f" ({note})"
        say(line)
        for (who, why), count in tally.missing.most_common():
            if who == name:
                say(f"  {count:,} without a verdict: {why}; the same call asks again")
        if tally.left[name]:
            say(f"  {tally.left[name]:,} pairs left, the budget is spent: the same call with a larger one goes on")
    figures: dict[str, Any] = {
        "command": "collect",
        "seconds": round(seconds, 3),
        "sample_seconds": round(tally.sampling, 3),
        "rate_seconds": round(tally.rating, 3),
        "drawn": tally.drawn,
        "found": tally.found,
        "judged": dict(tally.judged),
        "missing": [{"rater": who, "reason": why, "pairs": n} for (who, why), n in tally.missing.items()],
        "left": {name: n for name, n in tally.left.items() if n},
        "peak_rss_gb": peak_rss_gb(),
        "rows": counts.as_dict(),
    }
    if config.out is None:
        return None
    write_json(config.out, figures)
    return Result(config.out, figures)
