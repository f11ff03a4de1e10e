"""Verdict on a run: its result, the checkpoint kept and why, and what to do if something is wrong.

These are pure functions of figures: they draw nothing and read no model. A method passes in what it measured, a run
what it logged. `RunVerdict.lines` is printed last; `RunVerdict.as_dict` goes into `summary.json`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Figures = Mapping[str, Any]
"""Held-out figures by name, each `{"mean", "low", "high", "n"}` or a number."""
BestBy = Literal["displacement", "loss", "accuracy", "last"]

FALL = 1.0
"""Nats an answer: a smaller fall in the chosen answers' log-probability is not displacement."""
FALL_SHARE = 0.5
"""Displaced if the chosen answers' negative log-probability has risen by this share of the reference's …"""
FALL_PER_TOKEN = 0.25
"""… or by this many nats a token, whatever the reference's is."""
UNREAD = 0.25
"""The policy's text no longer reads well if it is this many nats a token less likely, under the reference, than the
reference's own answers."""
MOVED = 0.01
"""A loss that changed by a smaller share has hardly moved."""
FLAT = 0.01
"""Scores with a smaller standard deviation do not distinguish answers."""
STILL = 0.01
"""Nats an answer: a policy with a smaller KL to its reference has hardly moved."""
LAST = 0.2
"""Share of the steps, at the end of a run, whose mean is its result if nothing is held out."""
_SHOWN = 72
"""Characters of a text that a line shows."""


@dataclass(frozen=True, slots=True)
class Advice:
    """A problem and its remedy: `Advice("equal rewards", "every reward is -1: raise --max-new-tokens")`."""

    about: str
    message: str


@dataclass(frozen=True, slots=True)
class Sample:
    """Two texts to one prompt, each with its label: `Sample("2 + 2 =", {"reference": " 5", "kept": " 4"})`."""

    prompt: str
    texts: Mapping[str, str]

    def line(self) -> str:
        """Return `…2 + 2 = | reference: 5 | kept: 4`, each part cut to fit a line."""
        shown = [f"{label}: {_short(text)}" for label, text in self.texts.items()]
        return "  " + " | ".join([_short(self.prompt, tail=True), *shown])


@dataclass(frozen=True, slots=True)
class ReferenceComparison:
    """Answers of the kept policy to held-out prompts, beside those of its reference.

    `kl` estimates KL(policy || reference) in nats an answer of at most `longest` tokens. `own` is the reference's mean
    log-probability per token of its own answers, `new` that of the policy's answers. `why` says why nothing was drawn.
    """

    samples: Sequence[Sample] = ()
    kl: float | None = None
    kl_se: float | None = None
    answers: int = 0
    longest: int = 0
    own: float | None = None
    new: float | None = None
    why: str = ""

    def fluent(self) -> bool | None:
        """Say whether the reference finds the policy's text about as likely as its own text; None without texts."""
        return None if self.own is None or self.new is None else self.own - self.new < UNREAD

    def fluency(self) -> str:
        """Return the answer of `fluent` in words; empty if nothing was drawn."""
        if (fluent := self.fluent()) is None:
            return ""
        return (
            f"the kept model's text {'still reads' if fluent else 'no longer reads'} well: the reference's mean "
            f"log-probability per token is {self.new:.2f} nats on it, {self.own:.2f} on its own answers"
        )

    def kl_line(self) -> str:
        """Return `1.20 ± 0.11 nats an answer` with the number of answers and their length, or why there is none."""
        if self.kl is None:
            return self.why or "not measured"
        error = "" if self.kl_se is None else f" ± {self.kl_se:.2g}"
        return (
            f"{self.kl:.3g}{error} nats an answer (mean ± standard error of {self.answers} answers of at most "
            f"{self.longest} tokens)"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the form in `summary.json`."""
        return {
            "mean": self.kl,
            "se": self.kl_se,
            "answers": self.answers,
            "max_new_tokens": self.longest,
            "reference_logp_per_token": {"own": self.own, "new": self.new},
        }


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """End of a run in five lines: result, checkpoint kept, KL, samples, warnings."""

    reached: str
    kept: str
    kl: str
    samples: Sequence[Sample] = ()
    warnings: Sequence[Advice] = ()
    no_samples: str = ""
    reference: str = "the reference"
    """Name of the model that the KL is measured against."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Numbers behind the words, for `summary.json`."""

    def lines(self) -> list[str]:
        """Return the lines that are printed last."""
        return [
            f"reached: {self.reached}",
            f"kept: {self.kept}",
            f"KL to {self.reference}: {self.kl}",
            f"samples: {'' if self.samples else self.no_samples or 'none'}".rstrip(),
            *(sample.line() for sample in self.samples),
            *(f"warning: {advice.message}" for advice in self.warnings),
            *([] if self.warnings else ["warnings: none"]),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the form in `summary.json`."""
        return {
            "reached": self.reached,
            "kept": self.kept,
            "kl": self.kl,
            "samples": [{"prompt": sample.prompt, **sample.texts} for sample in self.samples],
            "warnings": [{"about": advice.about, "message": advice.message} for advice in self.warnings],
            "figures": dict(self.figures),
        }


@dataclass(frozen=True, slots=True)
class History:
    """Log of a run: held-out figures at step 0 and later, the best of them, and every step's metrics."""

    steps: int
    rows: Sequence[Mapping[str, float]]
    start: Figures = field(default_factory=dict)
    evaluations: Sequence[Figures] = ()
    best: Mapping[str, Any] = field(default_factory=dict)

    def kept(self) -> Figures:
        """Return the kept checkpoint's held-out figures; none if nothing is held out."""
        return next((e for e in self.evaluations if e["step"] == self.best.get("step")), {})

    def first_and_last(self, name: str) -> tuple[float, float] | None:
        """Return a training metric at the first step that has it, and its mean over the last fifth of the steps."""
        values = [float(row[name]) for row in self.rows if row.get(name) is not None]
        if not values:
            return None
        last = values[-math.ceil(LAST * len(values)) :]
        return values[0], sum(last) / len(last)


# --- what was reached -----------------------------------------------------------------------------


def reached(history: History, held_out: Sequence[str], training: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the figures before and after, in words and as numbers: held out with intervals, else in training."""
    kept = history.kept()
    if kept:
        names = [n for n in held_out if n in kept and n in history.start]
        words = [f"{n} {_figure(history.start[n])} -> {_figure(kept[n])}" for n in names]
        figures = {n: {"before": history.start[n], "after": kept[n]} for n in names}
        return "held out, " + "; ".join(words), {"held_out": True, "figures": figures}
    ends = {n: ends for n in training if (ends := history.first_and_last(n)) is not None}
    words = [f"{n} {before:.4g} -> {after:.4g}" for n, (before, after) in ends.items()]
    figures = {n: {"before": before, "after": after} for n, (before, after) in ends.items()}
    told = "; ".join(words) + " in training, first step -> last fifth; nothing is held out, so this is no measure of "
    return f"{told}new data: add --holdout 0.1", {"held_out": False, "figures": figures}


def chosen(before: Figures, after: Figures) -> tuple[str, dict[str, Any]]:
    """Return the mean score of one answer and of the best of several, in words and as numbers."""
    words = f"score {_figure(before)} (one answer) -> {_figure(after)} (the best)"
    return words, {"held_out": False, "figures": {"score": {"before": dict(before), "after": dict(after)}}}


def kept(history: History, why: str) -> str:
    """Say which checkpoint is in `final/`, and why."""
    if not history.best:
        return f"step {history.steps}, the last one: nothing is held out to choose by"
    return f"step {history.best['step']} of {history.steps}: {why}"


def _figure(figure: Any) -> str:
    if not isinstance(figure, Mapping):
        return f"{float(figure):.4g}"
    mean, low, high = (float(figure[name]) for name in ("mean", "low", "high"))
    interval = f" [{low:.4g}, {high:.4g}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{mean:.4g}{interval}"


def mean_of(figures: Figures, name: str) -> float:
    """Return a figure's mean."""
    figure = figures[name]
    return float(figure["mean"] if isinstance(figure, Mapping) else figure)


# --- DPO: which checkpoint ------------------------------------------------------------------------


def displaced(fall: float, reference: float, tokens: float) -> bool:
    """Say whether the chosen answers have become so much less likely that the text is in doubt.

    `fall` is in nats an answer, `reference` is the reference's log-probability of a chosen answer, `tokens` is its
    length. DPO's loss sees only the margin. It falls just as well if both answers become less likely, and the
    probability that they lose goes to text that nobody compared (Razin et al. 2024, likelihood displacement).
    """
    return fall > FALL and (fall > FALL_SHARE * -reference or fall > FALL_PER_TOKEN * tokens)


def dpo_rank(figures: Figures, by: BestBy, tokens: float) -> tuple[float, ...]:
    """Return a tuple that is lower for a better checkpoint, from held-out figures of `keel.methods.dpo.evaluate`."""
    loss = mean_of(figures, "loss")
    if by == "loss":
        return (loss,)
    if by == "accuracy":
        return -mean_of(figures, "rewards/accuracies"), loss
    fall, chosen = mean_of(figures, "logps/chosen_fall"), mean_of(figures, "logps/chosen")
    return (1.0, fall) if displaced(fall, chosen + fall, tokens) else (0.0, loss)


def dpo_why(history: History, by: BestBy, tokens: float) -> str:
    """Say why the kept checkpoint was kept."""
    if by != "displacement":
        words = {"loss": "the lowest held-out loss", "accuracy": "the highest held-out accuracy", "last": "the last"}
        return f"{words[by]} (--best-by {by})"
    gone = [e["step"] for e in history.evaluations if dpo_rank(e, by, tokens)[0] == 1.0]
    if not gone:
        return "the lowest held-out loss (no checkpoint's chosen answers became much less likely)"
    if history.best["step"] in gone:
        return "at every checkpoint the chosen answers had become much less likely, and at this one least"
    steps = ", ".join(map(str, gone))
    return f"the lowest held-out loss among checkpoints whose chosen answers stayed likely; not so at step {steps}"


def fell(
    history: History, tokens: float, beside: ReferenceComparison, *, learning_rate: float, beta: float, held_out: bool
) -> Advice | None:
    """Return a warning if the chosen answers' log-probability fell: by how much, and whether the text still reads."""
    remedy = f"lower --learning-rate (now {learning_rate:g}) or raise --beta (now {beta:g})"
    if not held_out:
        rewards, logps = history.first_and_last("rewards/chosen"), history.first_and_last("logps/chosen")
        if rewards is None or logps is None or not displaced(-rewards[1] / beta, logps[1] - rewards[1] / beta, tokens):
            return None
        fall = -rewards[1] / beta
        told = f"{_likelier(logps[1] + fall, logps[1])} in training, and no checkpoint was chosen by it"
        return Advice("chosen answers fell", f"{told}; {remedy}, and hold data out (--holdout 0.1)")
    gone = [e for e in history.evaluations if dpo_rank(e, "displacement", tokens)[0] == 1.0]
    if not gone:
        return None
    worst = max(gone, key=lambda e: mean_of(e, "logps/chosen_fall"))
    after = mean_of(worst, "logps/chosen")
    told = f"{_likelier(after + mean_of(worst, 'logps/chosen_fall'), after)} (held out, step {worst['step']})"
    now, fall = mean_of(history.kept(), "logps/chosen"), mean_of(history.kept(), "logps/chosen_fall")
    told += f"; at the kept step {history.best['step']} to {now:.1f}" if history.kept() is not worst else ""
    reading = f"; {beside.fluency()}" if beside.fluency() else ""
    every = ", and evaluate more often (--eval-every) to keep an earlier one" if fall > FALL else ""
    return Advice("chosen answers fell", f"{told}{reading}; {remedy}{every}")


def _likelier(before: float, after: float) -> str:
    return (
        f"the chosen answers' log-probability fell from {before:.1f} to {after:.1f} nats, by {before - after:.1f} an "
        "answer, while the loss went down"
    )


def unread(beside: ReferenceComparison, remedy: str) -> Advice | None:
    """Return a warning if the reference finds the kept policy's text much less likely than its own answers."""
    return Advice("text", f"{beside.fluency()}; {remedy}") if beside.fluent() is False else None


# --- other warnings -------------------------------------------------------------------------------


def those_due(*found: Advice | None) -> list[Advice]:
    """Return the warnings that are due, in order."""
    return [advice for advice in found if advice is not None]


def hardly_moved(history: History, learning_rate: float, start: float | None = None) -> Advice | None:
    """Return a warning if the loss is nearly what it was; `start` is its closed form at step 0, if it has one."""
    kept = history.kept()
    if kept and "loss" in history.start:
        before, after, where = mean_of(history.start, "loss"), mean_of(kept, "loss"), "held-out"
    elif start is not None and (ends := history.first_and_last("loss")) is not None:
        before, after, where = start, ends[1], "training"
    else:
        return None
    if not abs(after - before) < MOVED * abs(before):
        return None
    return Advice(
        "loss hardly moved",
        f"the {where} loss hardly moved ({before:.4f} -> {after:.4f}), so the model is nearly what it was; "
        f"raise --learning-rate (now {learning_rate:g}) or train longer (--epochs, --steps)",
    )


def got_worse(history: History, name: str, learning_rate: float, higher: bool = False) -> Advice | None:
    """Return a warning if even the kept checkpoint is worse than the start, beyond what its interval explains."""
    kept = history.kept()
    if not kept or name not in history.start or not isinstance(kept[name], Mapping):
        return None
    before, figure = mean_of(history.start, name), kept[name]
    if not (figure["high"] < before if higher else figure["low"] > before):
        return None
    return Advice(
        "worse than the start",
        f"the held-out {name} of the kept checkpoint, {_figure(figure)}, is worse than that of the start, "
        f"{before:.4g}: go on with the start; lower --learning-rate (now {learning_rate:g}) or train for fewer steps",
    )


def policy_still(beside: ReferenceComparison, learning_rate: float) -> Advice | None:
    """Return a warning if the policy has hardly left its reference."""
    if beside.kl is None or abs(beside.kl) >= STILL or (beside.kl_se or 0.0) >= STILL:
        return None
    return Advice(
        "policy hardly moved",
        f"the policy hardly moved: KL {beside.kl:.2g} nats an answer; raise --learning-rate (now {learning_rate:g}) or "
        "train longer (--steps)",
    )


def all_cut(cut: int, answers: int, option: str, consequence: str) -> Advice | None:
    """Return a warning if every answer reached the length limit."""
    if not answers or cut < answers:
        return None
    return Advice("all cut", f"all {answers:,} answers were cut at {option}{consequence}; raise it")


def cut_rollouts(history: History, option: str, consequence: str) -> Advice | None:
    """Return a warning if every answer reached the length limit in some of PPO's rollouts."""
    cut = sum(row.get("completions/clipped_ratio") == 1.0 for row in history.rows)
    if not cut:
        return None
    return Advice(
        "all cut",
        f"in {cut} of {history.steps} rollouts all answers were cut at {option}{consequence}; raise it, or start from "
        "a model that ends its answers (keel sft)",
    )


def equal_rewards(value: float, where: str = "") -> Advice:
    """Return the warning that every reward was the same, which teaches nothing."""
    return Advice(
        "equal rewards",
        f"every reward was equal{where}, {value:g}, so none ranks one answer above another; look at the answers, at "
        "--max-new-tokens if they are cut, and at --reward",
    )


def flat_scores(sd: float, remedy: str) -> Advice | None:
    """Return a warning if the scores hardly differ between answers."""
    if not sd < FLAT:
        return None
    return Advice("flat scores", f"the scores hardly differ (standard deviation {sd:.2g}): {remedy}")


def _short(text: str, tail: bool = False) -> str:
    line = " ".join(text.split())
    if len(line) <= _SHOWN:
        return line
    return f"…{line[-_SHOWN:]}" if tail else f"{line[:_SHOWN]}…"
