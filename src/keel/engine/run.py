"""A run: its folder, optimisers, schedule, metrics, checkpoints, and how it goes on after it was killed.

A loop *calls* a run; a run never calls back:

    run = Run("dpo", config, {"policy": policy}, text, total_steps=…, manifest={…}, rows=counts)
    for step in run.steps():
        …
            run.backward(loss, bundles)
            run.observe(metrics)
        run.update()
        if run.evaluation_due():
            run.record_evaluation(evaluate(…), best="loss")
    run.keep()
    return run.finish(…, verdict=…)

Every random draw takes a generator named by (seed, purpose, step), so that no generator state has to be saved: what a
step draws depends on its number alone, and a run killed and resumed equals one that was not (law 10).
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from keel.config import Training, refuse_existing
from keel.engine.optimizer import Optimizer
from keel.engine.verdict import History, Verdict
from keel.errors import InputError, KeelError, RunFailed
from keel.files.jsonl import as_json, write_json
from keel.models import checkpoints
from keel.models.machine import described
from keel.progress import Bar, peak_rss_gb
from keel.records import Bundle, Result, RowCounts
from keel.says import say
from keel.text.tokenisation import Text

EVALUATIONS = 5
"""Evaluations on held-out data in a run, where nothing else is asked for."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, answered at a step's end with a checkpoint saved."""


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A generator named by its purpose: `generator(0, "rollout", 17)` draws the same on every call and machine."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Run:
    """One run folder and everything that belongs to a step but not to a method. See the module's docstring."""

    def __init__(
        self,
        command: str,
        config: Training,
        trained: Mapping[str, nn.Module],
        text: Text,
        *,
        total_steps: int,
        manifest: Mapping[str, object],
        rows: RowCounts | None = None,
        rows_eval: RowCounts | None = None,
        learning_rates: Mapping[str, float] | None = None,
        adam_eps: float = 1e-8,
        final_role: str = "policy",
    ) -> None:
        self.command, self.config, self.text = command, config, text
        self.folder = config.out
        self.trained = dict(trained)
        self.total_steps, self.final_role = total_steps, final_role
        self.rows, self.rows_eval = rows, rows_eval
        self.step = 0
        self.extra: dict[str, Any] = {}
        self._rates = {role: (learning_rates or {}).get(role, config.learning_rate) for role in self.trained}
        self._optimizers = {role: Optimizer(m, config.weight_decay, adam_eps) for role, m in self.trained.items()}
        self._scale = 1.0
        self._sums: dict[str, tuple[float, int]] = {}
        self._best: dict[str, Any] = {}
        self._start: dict[str, Any] = {}
        self._kept = False
        self._evaluations: list[dict[str, Any]] = []
        self._started, self._loop_seconds, self._interrupt = time.perf_counter(), 0.0, False
        self._bundles: list[Bundle] = []
        self._updated = False
        self._warned: set[str] = set()
        refuse_existing(self.folder, config.resume)
        say(described(self.trained[final_role]))
        _check_disk(self.folder, self.trained, config.keep_checkpoints)
        self._open(manifest)

    # --- opening and resuming

    def _open(self, manifest: Mapping[str, object]) -> None:
        settings = self.config.to_yaml()
        file = self.folder / "config.yaml"
        if self.config.resume and (self.folder / "summary.json").exists():
            raise InputError(f"{self.folder}: this run is finished; its result is in final/")
        if self.config.resume and file.exists():
            _same_settings(file.read_text(), settings, file)
            _same_facts(self.folder / "manifest.json", manifest)
            self._restore()
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {"command": self.command, "versions": _versions(), "seed": self.config.seed, **manifest}
        write_json(self.folder / "manifest.json", facts)
        file.write_text(settings)  # last: where it stands, there is a run to resume

    def _restore(self) -> None:
        newest = max(self._checkpoints(), default=0)
        for name in ("metrics.jsonl", "samples.jsonl"):
            _keep_lines_up_to(self.folder / name, newest)
        if newest == 0:
            say(f"{self.folder}: no checkpoint yet, starting from the beginning")
            return
        folder = self._checkpoint(newest)
        state = torch.load(folder / "state.pt", weights_only=True)
        self._load_weights(folder)
        for role, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][role])
        self.step, self.extra, self._best = state["step"], state["extra"], state["best"]
        self._evaluations, self._loop_seconds = state["evaluations"], state["loop_seconds"]
        self._start = state.get("start", {})
        say(f"resuming {self.folder} after step {self.step} of {self.total_steps}")

    def _load_weights(self, checkpoint: Path) -> None:
        for role, model in self.trained.items():
            model.load_state_dict(checkpoints.reload(model, checkpoint / role).state_dict())

    # --- the loop's calls

    def steps(self) -> Iterator[int]:
        """Step numbers from where the run stands. After each body: metrics are written and a checkpoint where due."""
        previous = _handle_interrupt(self)
        try:
            with Bar(self.command, self.total_steps, self.step) as bar:
                while self.step < self.total_steps:
                    began = time.perf_counter()
                    self._set_learning_rate_scale()
                    yield self.step
                    self.step += 1
                    note = self._write_metrics()
                    self._loop_seconds += time.perf_counter() - began
                    self._checkpoint_if_due()
                    bar.advance(1, note)
                    if self._interrupt:
                        self.save_checkpoint()
                        raise Interrupted(f"stopped after step {self.step}; go on with --resume")
        finally:
            if previous is not None:
                signal.signal(signal.SIGINT, previous)

    def generator(self, purpose: str) -> torch.Generator:
        """The generator for one purpose in this step."""
        return generator(self.config.seed, purpose, self.step)

    def backward(self, loss: Tensor, bundles: Sequence[Bundle]) -> None:
        """Accumulate gradients; a non-finite loss stops the run before it can touch a weight (law 8)."""
        self._collect(bundles)
        if not bool(torch.isfinite(loss)):
            raise self._stop(f"the loss is {float(loss.detach())} at step {self.step + 1}", bundles)
        loss.backward()

    def update(self, *roles: str) -> None:
        """One optimiser step for the given roles (all by default): check, clip, step, clear. Logs `grad_norm`.

        All roles are checked before the first one moves.
        """
        norms = {role: self._gradient_norm(role) for role in roles or tuple(self.trained)}
        for role, norm in norms.items():
            nn.utils.clip_grads_with_norm_(self.trained[role].parameters(), self.config.max_grad_norm, norm)
            self._optimizers[role].step(self._rates[role] * self._scale)
            self.observe({"grad_norm" if role == self.final_role else f"grad_norm/{role}": norm})
        self._updated = True

    def require_finite(self, what: str, values: Sequence[Tensor], bundles: Sequence[Bundle]) -> None:
        """Stop the run where one of a bundle's numbers is not finite (law 8); `values` has a tensor per bundle."""
        bad = [b for b, v in zip(bundles, values, strict=True) if not bool(torch.isfinite(v).all())]
        if bad:
            self._collect(bundles)
            raise self._stop(f"{what} are not finite for {len(bad)} of {len(bundles)} at step {self.step + 1}", bad)

    @contextmanager
    def evidence(self, bundles: Sequence[Bundle]) -> Iterator[None]:
        """What goes wrong inside with these bundles (a rule, a score, the sampler) is a failed run; they are saved."""
        try:
            yield
        except KeelError as error:
            self._collect(bundles)
            raise self._stop(f"step {self.step + 1}: {error}", []) from error

    def warn(self, about: str, message: str) -> None:
        """A line for the reader, once per matter."""
        if about not in self._warned:
            self._warned.add(about)
            say(f"warning: {message}")

    def observe(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Add to this step's means. A tensor counts once per entry, so that means weigh examples and not batches."""
        for name, value in metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            if isinstance(value, Tensor):
                self._sums[name] = (total + float(value.detach().double().sum()), count + value.numel())
            else:
                self._sums[name] = (total + value, count + 1)

    def evaluation_due(self) -> bool:
        """Whether this step (inside the loop's body) ends with an evaluation: each `eval_every`, and the last."""
        every = self.config.eval_every or math.ceil(self.total_steps / EVALUATIONS)
        return (self.step + 1) % every == 0 or self.step + 1 == self.total_steps

    def record_start(self, metrics: Mapping[str, Any]) -> None:
        """Keep held-out figures of the model before its first step; they stand in the verdict, not in the metrics."""
        self._start = dict(metrics)

    def record_evaluation(
        self, metrics: Mapping[str, Any], *, best: str, higher: bool = False, rank: tuple[float, ...] = ()
    ) -> None:
        """Log held-out figures as `eval/…`, and keep this step's weights if they are the best so far.

        The best is that of the lowest `metrics[best]` (the highest with `higher`), or of the lowest `rank` if given.
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
        """Append completions to `samples.jsonl`, with named figures [C] that begin with those of these bundles."""
        columns = [figures[name].tolist() for name in figures]
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            at = 0
            for bundle in bundles:
                for c in bundle.completions:
                    row = {
                        "step": self.step + 1,
                        "prompt": bundle.prompt,
                        "completion": c.text,
                        "truncated": c.truncated,
                    }
                    row |= {name: column[at] for name, column in zip(figures, columns, strict=True)}
                    file.write(as_json(row) + "\n")
                    at += 1

    def keep(self) -> None:
        """Take the weights of the best held-out checkpoint, else the last, write them to `final/` and read it back."""
        if self._best and self._best["step"] != self.step:
            self._load_weights(self._checkpoint(self._best["step"]))
        model = self.trained[self.final_role]
        checkpoints.save(model, self.text, self.folder / "final")
        checkpoints.require_reload(model, self.folder / "final")
        self._prune()
        self._kept = True

    def history(self) -> History:
        """What the run has logged, for its verdict."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return History(self.step, [json.loads(line) for line in lines], self._start, self._evaluations, self._best)

    def finish(self, *, examples: int, verdict: Verdict | None = None) -> Result:
        """Say how the run ended and write `summary.json`; the weights are kept first, if `keep` was not called."""
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
            "peak_rss_gb": peak_rss_gb(),
            "best": self._best or None,
            "metrics": self._last_metrics(),
            "eval": next((e for e in self._evaluations if e["step"] == self._best.get("step")), {}),
            "rows": self.rows.as_dict() if self.rows is not None else None,
            "rows_eval": self.rows_eval.as_dict() if self.rows_eval is not None else None,
            "verdict": verdict.as_dict() if verdict is not None else None,
        }
        write_json(self.folder / "summary.json", summary)
        for line in verdict.lines() if verdict is not None else ():
            say(line)
        return Result(self.folder, summary)

    def charge(self, seconds: float) -> None:
        """Add to `train_seconds` work that belongs to training but stands outside the loop (reference caching)."""
        if self.step == 0:
            self._loop_seconds += seconds

    # --- checkpoints

    def save_checkpoint(self) -> None:
        """Everything a resumed run needs, written beside and renamed, so that a kill leaves no half checkpoint."""
        target = self._checkpoint(self.step)
        if target.exists():
            return
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        for role, model in self.trained.items():
            checkpoints.save(model, self.text, partial / role)
        state = {
            "step": self.step,
            "extra": self.extra,
            "best": self._best,
            "evaluations": self._evaluations,
            "start": self._start,
            "loop_seconds": self._loop_seconds,
            "optimizers": {role: o.state_dict() for role, o in self._optimizers.items()},
        }
        torch.save(state, partial / "state.pt")
        partial.rename(target)
        self._prune()

    def _checkpoint_if_due(self) -> None:
        every = self.config.save_every or math.ceil(self.total_steps / EVALUATIONS)
        if self.step < self.total_steps and (self.step % every == 0 or self._best.get("step") == self.step):
            self.save_checkpoint()

    def _checkpoint(self, step: int) -> Path:
        return Path(self.folder, "checkpoints", f"step-{step}")

    def _checkpoints(self) -> list[int]:
        return [int(p.name.removeprefix("step-")) for p in self.folder.glob("checkpoints/step-*") if p.suffix == ""]

    def _prune(self) -> None:
        keep = {*sorted(self._checkpoints())[-self.config.keep_checkpoints :], self._best.get("step")}
        for step in set(self._checkpoints()) - keep:
            shutil.rmtree(self._checkpoint(step))

    # --- the rest

    def _set_learning_rate_scale(self) -> None:
        self._scale = schedule(self.config.schedule, self.step, self.total_steps, self.config.warmup)
        self.observe({"learning_rate": self._rates[self.final_role] * self._scale})

    def _write_metrics(self) -> str:
        row: dict[str, Any] = {"step": self.step}
        row |= {name: total / count for name, (total, count) in self._sums.items() if count}
        self._sums = {}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(as_json(row) + "\n")
        shown = ("loss", "accuracy", "rewards/accuracies", "objective/scores", "objective/rlhf_reward", "objective/kl")
        return "  ".join(f"{name} {row[name]:.3f}" for name in shown if name in row)

    def _last_metrics(self) -> dict[str, Any]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return dict(json.loads(lines[-1])) if lines else {}

    def _collect(self, bundles: Sequence[Bundle]) -> None:
        """Add to the batch of this update, each bundle once (PPO passes it through two models)."""
        before = [] if self._updated else self._bundles
        self._bundles = list({id(b): b for b in (*before, *bundles)}.values())
        self._updated = False

    def _gradient_norm(self, role: str) -> Tensor:
        """Norm over all of a role's gradients, before anything is clipped: a non-finite one stops the run."""
        gradients = {n: p.grad for n, p in self.trained[role].named_parameters() if p.grad is not None}
        norm = nn.utils.get_total_norm(gradients.values())
        if not bool(torch.isfinite(norm)):
            bad = [n for n, g in gradients.items() if not g.isfinite().all()]
            worst = bad[0] if bad else max(gradients, key=lambda n: float(gradients[n].abs().max()))
            raise self._stop(f"the gradient of {role}.{worst} is not finite at step {self.step + 1}")
        return norm

    def _stop(self, why: str, suspects: Sequence[Bundle] | None = None) -> RunFailed:
        """The failure to raise, its batch saved; `suspects` are the bundles to name, all of the batch by default."""
        evidence = self.folder / "failed-batch.jsonl"
        with evidence.open("w", encoding="utf-8") as file:
            for b in self._bundles:
                texts = [c.text or self.text.decode(c.ids) for c in b.completions]
                row = {"file": b.origin.file, "row": b.origin.row, "prompt": b.prompt, "completions": texts}
                file.write(as_json(row) + "\n")
        rows = [b.origin.row for b in (self._bundles if suspects is None else suspects) if b.origin.row]
        named = f" (rows {', '.join(map(str, rows[:5]))}{', …' if len(rows) > 5 else ''})" if rows else ""
        return RunFailed(f"{why}{named}; no weight was changed by it; the batch is in {evidence}")


# --- helpers --------------------------------------------------------------------------------------


def schedule(kind: str, step: int, total: int, warmup: float) -> float:
    """Factor on the learning rate at `step` of `total`: a linear rise over the warm-up share, then the fall."""
    rise = math.ceil(warmup * total)
    if step < rise:
        return (step + 1) / rise
    share = (step - rise) / max(1, total - rise)
    return {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}[kind]


def _handle_interrupt(run: Run) -> Any:
    """First Ctrl-C: finish the step, save, stop. Second: stop at once. None where signals cannot be handled."""

    def answer(number: int, frame: FrameType | None) -> None:
        if run._interrupt:
            raise KeyboardInterrupt
        run._interrupt = True
        say("interrupted: finishing this step and saving a checkpoint (Ctrl-C again stops at once)")

    try:
        return signal.signal(signal.SIGINT, answer)
    except ValueError:  # not in the main thread
        return None


def _check_disk(folder: Path, trained: Mapping[str, nn.Module], keep: int) -> None:
    weights = sum(p.numel() * p.element_size() for m in trained.values() for p in m.parameters())
    needed = weights * 3 * (keep + 2) + weights  # weights and two moments, one more while writing, and final/
    base = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(base).free
    if needed > free:
        raise InputError(
            f"{folder}: checkpoints need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "choose another --out or lower --keep-checkpoints"
        )


def _same_settings(old: str, new: str, file: Path) -> None:
    import yaml

    a, b = yaml.safe_load(old), yaml.safe_load(new)
    changed = sorted(k for k in {*a, *b} if a.get(k) != b.get(k) and k != "resume")
    if changed:
        raise InputError(
            f"{file}: the run was started with other settings of {', '.join(changed)}; resume with the same"
        )


def _same_facts(file: Path, facts: Mapping[str, object]) -> None:
    """Refuse to go on with other models or data than the manifest tells of; what the hub did not tell is let pass."""
    old = json.loads(file.read_text(encoding="utf-8"))
    changed = sorted(k for k, v in facts.items() if "hub:unknown" not in (v, old.get(k)) and old.get(k) != v)
    if changed:
        raise InputError(
            f"{file}: the run was started with other content behind {', '.join(changed)}; "
            "resume with the same models and data, or start anew with another --out"
        )


def _keep_lines_up_to(file: Path, step: int) -> None:
    """Drop lines of later steps, and a last one that a kill cut short."""
    if file.exists():
        *lines, _torn = file.read_bytes().split(b"\n")
        file.write_bytes(b"".join(line + b"\n" for line in lines if json.loads(line)["step"] <= step))


def _versions() -> dict[str, str]:
    import transformers

    import keel

    return {
        "keel": keel.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
