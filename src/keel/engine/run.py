"""A training run: everything in a step that belongs to no method. Parts: folder, optimisation, schedule, signals.

A loop *calls* a run; a run never calls back:

    run = open_run("dpo", config, [policy], text, total_steps=…, manifest={…}, rows=counts)
    for step in run.steps():
        …
            run.backward(loss.sum(), len(batch), bundles)
            run.observe(metrics)
        run.update()
        if run.evaluation_due():
            run.record_evaluation(evaluate(…), best="loss")
    run.keep()
    return run.finish(…, verdict=…)

Every random draw takes a generator named by (seed, purpose, step), so no generator state has to be saved. A step's
draws depend on its number alone, and a run killed and resumed equals one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from keel.config import Training
from keel.engine import processes
from keel.engine.optimisation import NotFinite, Optimisation, Schedule
from keel.engine.run_folder import RunFolder
from keel.engine.signals import Signals
from keel.engine.verdict import History, RunVerdict
from keel.errors import Interrupted, KeelError, RunFailed
from keel.files.target import refuse_existing
from keel.models.machine import described
from keel.models.roles import Role
from keel.progress import Bar, peaks_gb
from keel.records import Bundle, Result, RowCounts
from keel.says import say
from keel.seeds import generator
from keel.text.tokenisation import Text

EVALUATIONS = 5
"""Number of evaluations on held-out data in a run, and of checkpoints, unless the config sets it."""
_SHOWN = "loss", "accuracy", "rewards/accuracies", "objective/scores", "objective/rlhf_reward", "objective/kl"
"""Figures of a step that are shown beside the progress bar."""


def begin(config: Training) -> None:
    """Join the other processes if there are any, and refuse an --out that cannot be written."""
    processes.join_others(config.device)
    processes.from_first(lambda: refuse_existing(config.out, config.resume))


def open_run(
    command: str,
    config: Training,
    trained: Sequence[Role],
    text: Text,
    *,
    total_steps: int,
    manifest: Mapping[str, object],
    rows: RowCounts | None = None,
    rows_eval: RowCounts | None = None,
    learning_rates: Mapping[str, float] | None = None,
    adam_eps: float = 1e-8,
    final_role: str = "policy",
) -> Run:
    """Build a run from its parts: a new one, or with `--resume` one as it was at its last checkpoint."""
    rates = {role.name: (learning_rates or {}).get(role.name, config.learning_rate) for role in trained}
    optimisation = Optimisation(
        trained, rates, weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm, adam_eps=adam_eps
    )
    schedule = Schedule(config.schedule, total_steps, config.warmup)
    files = RunFolder(config.out, command)
    run = Run(command, config, text, files, optimisation, schedule, Signals(), final_role, rows, rows_eval)
    say(described(optimisation.trained[final_role].model))

    def first() -> bool:
        refuse_existing(files.path, config.resume)
        files.require_space(trained, config.keep_checkpoints)
        return files.open(config, manifest)

    if processes.from_first(first):
        run.restore()
    return run


class Run:
    """The steps of one run, on the parts that `open_run` passes in. See the module's docstring."""

    def __init__(
        self,
        command: str,
        config: Training,
        text: Text,
        files: RunFolder,
        optimisation: Optimisation,
        schedule: Schedule,
        signals: Signals,
        final_role: str,
        rows: RowCounts | None,
        rows_eval: RowCounts | None,
    ) -> None:
        self.command, self.config, self.text = command, config, text
        self.files, self.optimisation, self.schedule, self.signals = files, optimisation, schedule, signals
        self.folder, self.trained, self.total_steps = files.path, optimisation.trained, schedule.total
        self.final_role, self.rows, self.rows_eval = final_role, rows, rows_eval
        self.step = 0
        self.extra: dict[str, Any] = {}
        self._sums: dict[str, tuple[Tensor | float, int]] = {}
        self._best: dict[str, Any] = {}
        self._start: dict[str, Any] = {}
        self._kept = False
        self._evaluations: list[dict[str, Any]] = []
        self._started, self._loop_seconds = time.perf_counter(), 0.0
        self._bundles: list[Bundle] = []
        self._updated = False
        self._warned: set[str] = set()

    def restore(self) -> None:
        """Continue from the last checkpoint, or start from the beginning if there is none."""
        newest = max(self.files.checkpoints(), default=0)
        processes.from_first(lambda: self.files.forget_after(newest))
        if newest == 0:
            say(f"{self.folder}: no checkpoint yet, starting from the beginning")
            return
        state = self.files.load(newest, self.trained)
        self.optimisation.load_state_dict(state["optimizers"])
        self.step, self.extra, self._best = state["step"], state["extra"], state["best"]
        self._evaluations, self._loop_seconds = state["evaluations"], state["loop_seconds"]
        self._start = state.get("start", {})
        say(f"resuming {self.folder} after step {self.step} of {self.total_steps}")

    # --- the loop's calls

    def steps(self) -> Iterator[int]:
        """Yield step numbers from the current one on. After each body, write metrics, and a checkpoint if due."""
        with self.signals, Bar(self.command, self.total_steps, self.step) as bar:
            while self.step < self.total_steps:
                began = time.perf_counter()
                rate = self.optimisation.rates[self.final_role]
                self.observe({"learning_rate": rate * self.schedule.factor(self.step)})
                yield self.step
                self.step += 1
                note, asked = self._write_metrics()
                self._loop_seconds += time.perf_counter() - began
                self._checkpoint_if_due()
                bar.advance(1, note)
                if processes.world_size() == 1:  # several must have agreed on it: they hear of it with the next step
                    asked = self.signals.asked
                if asked is not None:
                    self.save_checkpoint()
                    raise Interrupted(asked, f" after step {self.step}; {self.files.go_on()}")

    def generator(self, purpose: str) -> torch.Generator:
        """Return the generator for one purpose in this step."""
        return generator(self.config.seed, purpose, self.step)

    def backward(self, total: Tensor, count: int, bundles: Sequence[Bundle]) -> None:
        """Accumulate the gradients of `total / count`; stop the run before a loss that is not finite moves a weight.

        `total` sums the loss over these bundles' examples or tokens. `count` is their number in the whole batch of the
        optimiser step, however it is cut into passes. No loss is divided anywhere else.
        """
        self._collect(bundles)
        loss = total / count
        if not bool(torch.isfinite(loss)):
            raise self._stop(f"the loss is {float(loss.detach())} at step {self.step + 1}", bundles)
        loss.backward()

    def update(self, *roles: str) -> None:
        """Make one optimiser step for the given roles (default: all): check, clip, step, clear. Logs `grad_norm`.

        All roles are checked before the first one moves.
        """
        try:
            norms = self.optimisation.update(roles or tuple(self.trained), self.schedule.factor(self.step))
        except NotFinite as fault:
            raise self._stop(f"{fault} at step {self.step + 1}") from fault
        self.observe({"grad_norm" if role == self.final_role else f"grad_norm/{role}": n for role, n in norms.items()})
        self._updated = True

    def require_finite(self, what: str, values: Sequence[Tensor], bundles: Sequence[Bundle]) -> None:
        """Stop the run if a number of a bundle is not finite; `values` has a tensor per bundle."""
        bad = [b for b, v in zip(bundles, values, strict=True) if not bool(torch.isfinite(v).all())]
        if bad:
            self._collect(bundles)
            raise self._stop(f"{what} are not finite for {len(bad)} of {len(bundles)} at step {self.step + 1}", bad)

    @contextmanager
    def evidence(self, bundles: Sequence[Bundle]) -> Iterator[None]:
        """Turn an error inside (a rule, a score, the sampler) into a failed run, and save these bundles."""
        try:
            yield
        except KeelError as error:
            self._collect(bundles)
            raise self._stop(f"step {self.step + 1}: {error}", []) from error

    def warn(self, about: str, message: str) -> None:
        """Print a warning, once per `about`."""
        if about not in self._warned:
            self._warned.add(about)
            say(f"warning: {message}")

    def observe(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Add to this step's means. A tensor counts once per entry, so means weigh examples, not batches."""
        for name, value in metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            if isinstance(value, Tensor):  # read when the step is over: a GPU need not wait for it
                self._sums[name] = (total + value.detach().double().sum(), count + value.numel())
            else:
                self._sums[name] = (total + value, count + 1)

    def evaluation_due(self) -> bool:
        """Say whether this step (in the loop's body) ends with an evaluation: each `eval_every`, and the last."""
        every = self.config.eval_every or math.ceil(self.total_steps / EVALUATIONS)
        return (self.step + 1) % every == 0 or self.step + 1 == self.total_steps

    def record_start(self, metrics: Mapping[str, Any]) -> None:
        """Keep held-out figures of the model before its first step, for the verdict and not the metrics."""
        self._start = dict(metrics)

    def record_evaluation(
        self, metrics: Mapping[str, Any], *, best: str, higher: bool = False, rank: tuple[float, ...] = ()
    ) -> None:
        """Log held-out figures as `eval/…`, and keep this step's weights if they are the best so far.

        The best have the lowest `metrics[best]` (the highest with `higher`), or the lowest `rank` if it is given.
        """
        value = metrics[best]["mean"] if isinstance(metrics[best], dict) else float(metrics[best])
        if not math.isfinite(value):
            raise self._stop(f"the held-out {best} is {value} at step {self.step + 1}")
        self._evaluations.append({"step": self.step + 1, **metrics})
        for name, figure in metrics.items():
            self.observe({f"eval/{name}": figure["mean"] if isinstance(figure, dict) else float(figure)})
        sign = -1 if higher else 1
        rank = rank or (sign * value,)
        if not self._best or rank < tuple(self.extra.get("rank", [sign * self._best["value"]])):
            self._best = {"step": self.step + 1, "metric": best, "value": value}
            self.extra["rank"] = list(rank)

    def record_samples(self, bundles: Sequence[Bundle], **figures: Tensor) -> None:
        """Append completions to `samples.jsonl`, with named figures [C] whose first entries belong to these bundles."""
        if processes.own_rank() == 0:
            self.files.add_samples(self.step + 1, bundles, figures)

    def keep(self) -> None:
        """Load the best held-out checkpoint, or keep the last weights; write them to `final/` and read it back."""
        if self._best and self._best["step"] != self.step:
            self.files.load_weights(self._best["step"], self.trained)
        processes.from_first(lambda: self.files.save_final(self.trained[self.final_role], self.text))
        processes.from_first(self._prune)
        self._kept = True

    def history(self) -> History:
        """Return what the run has logged, for its verdict."""
        return History(self.step, self.files.metrics(), self._start, self._evaluations, self._best)

    def finish(self, *, examples: int, verdict: RunVerdict | None = None) -> Result:
        """Print the verdict and write `summary.json`; first keep the weights, if `keep` was not called."""
        if not self._kept:
            self.keep()
        seconds = time.perf_counter() - self._started
        summary = {
            "command": self.command,
            "seconds": round(seconds, 3),
            "train_seconds": round(self._loop_seconds, 3),
            "steps": self.step,
            "examples": examples,
            "examples_per_second": round(examples / max(self._loop_seconds, 1e-9), 3),
            **peaks_gb(),
            "best": self._best or None,
            "metrics": next(reversed(self.files.metrics()), {}),
            "eval": next((e for e in self._evaluations if e["step"] == self._best.get("step")), {}),
            "rows": self.rows.as_dict() if self.rows is not None else None,
            "rows_eval": self.rows_eval.as_dict() if self.rows_eval is not None else None,
            "verdict": verdict.as_dict() if verdict is not None else None,
        }
        processes.from_first(lambda: self.files.save_summary(summary))
        for line in verdict.lines() if verdict is not None else ():
            say(line)
        return Result(self.folder, summary)

    def charge(self, seconds: float) -> None:
        """Add to `train_seconds` work that belongs to training but is done outside the loop (reference caching)."""
        if self.step == 0:
            self._loop_seconds += seconds

    def save_checkpoint(self) -> None:
        """Write everything that a resumed run needs."""
        state = {
            "step": self.step,
            "extra": self.extra,
            "best": self._best,
            "evaluations": self._evaluations,
            "start": self._start,
            "loop_seconds": self._loop_seconds,
            "optimizers": self.optimisation.state_dict(),
        }
        processes.from_first(lambda: self._write_checkpoint(state))

    def _write_checkpoint(self, state: Mapping[str, Any]) -> None:
        if not self.files.checkpoint(self.step).exists():
            self.files.save(self.step, self.trained, self.text, state)
            self._prune()

    def _checkpoint_if_due(self) -> None:
        every = self.config.save_every or math.ceil(self.total_steps / EVALUATIONS)
        if self.step < self.total_steps and (self.step % every == 0 or self._best.get("step") == self.step):
            self.save_checkpoint()

    def _prune(self) -> None:
        self.files.prune(self.config.keep_checkpoints, self._best.get("step"))

    def _write_metrics(self) -> tuple[str, int | None]:
        """Write this step's means over all processes; return some to show, and the signal that any of them got."""
        own = {name: (float(total), count) for name, (total, count) in self._sums.items() if count}
        everywhere = processes.from_all((own, self.signals.asked))
        self._sums = {}
        row = {"step": self.step, **_means([sums for sums, _ in everywhere])}
        if processes.own_rank() == 0:
            self.files.add_metrics(row)
        note = "  ".join(f"{name} {row[name]:.3f}" for name in _SHOWN if name in row)
        return note, next((asked for _, asked in everywhere if asked), None)

    def _collect(self, bundles: Sequence[Bundle]) -> None:
        """Add bundles to the batch of this update, each once (PPO passes it through two models)."""
        before = [] if self._updated else self._bundles
        self._bundles = list({id(b): b for b in (*before, *bundles)}.values())
        self._updated = False

    def _stop(self, why: str, suspects: Sequence[Bundle] | None = None) -> RunFailed:
        """Save the batch and return the failure to raise; it names `suspects` (default: all bundles of the batch)."""
        evidence = self.files.write_evidence(self._bundles, self.text, processes.own_rank())
        rows = [b.origin.row for b in (self._bundles if suspects is None else suspects) if b.origin.row]
        named = f" (rows {', '.join(map(str, rows[:5]))}{', …' if len(rows) > 5 else ''})" if rows else ""
        return RunFailed(f"{why}{named}; no weight was changed by it; the batch is in {evidence}")


def _means(everywhere: Sequence[Mapping[str, tuple[float, int]]]) -> dict[str, float]:
    """Return the means of each process's (total, count) by name."""
    means = {}
    for name in dict.fromkeys(name for sums in everywhere for name in sums):
        parts = [sums[name] for sums in everywhere if name in sums]
        means[name] = sum(total for total, _ in parts) / sum(count for _, count in parts)
    return means
