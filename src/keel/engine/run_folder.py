"""A run's folder: settings and manifest, metrics and samples, checkpoints, and the evidence of a failure.

    config.yaml  manifest.json  metrics.jsonl  samples.jsonl  checkpoints/step-N/  failed-batch.jsonl

`final/` and `summary.json` are written by the run when it ends.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keel.config import Training
from keel.errors import InputError
from keel.files.jsonl import strict_json, write_json
from keel.models.roles import Role
from keel.records import Bundle
from keel.text.tokenisation import Text

STEPWISE = "metrics.jsonl", "samples.jsonl"
"""Files whose lines each name a step."""


class RunFolder:
    """The files of one run below `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # --- opening

    def open(self, command: str, config: Training, manifest: Mapping[str, object]) -> bool:
        """Begin the folder of a new run, or return True if it holds a run to resume.

        Refuses to resume a finished run, or a run with other settings, models or data.
        """
        settings = config.to_yaml()
        file = self.path / "config.yaml"
        if config.resume and (self.path / "summary.json").exists():
            raise InputError(f"{self.path}: this run is finished; its result is in final/")
        if config.resume and file.exists():
            _same_settings(file.read_text(), settings, file)
            _same_facts(self.path / "manifest.json", manifest)
            return True
        self.path.mkdir(parents=True, exist_ok=True)
        facts = {"command": command, "versions": _versions(), "seed": config.seed, **manifest}
        write_json(self.path / "manifest.json", facts)
        file.write_text(settings)  # last: once it exists, there is a run to resume
        return False

    def require_space(self, trained: Iterable[Role], keep: int) -> None:
        """Refuse to begin if the checkpoints will not fit on the disk."""
        weights = sum(p.numel() * p.element_size() for role in trained for p in role.parameters().values())
        needed = weights * 3 * (keep + 2) + weights  # weights and two moments, one more while writing, and final/
        base = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        free = shutil.disk_usage(base).free
        if needed > free:
            raise InputError(
                f"{self.path}: checkpoints need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
                "choose another --out or lower --keep-checkpoints"
            )

    # --- lines

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a step's figures to `metrics.jsonl`."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(strict_json(row) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the figures of all steps."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def add_samples(self, step: int, bundles: Sequence[Bundle], figures: Mapping[str, Tensor]) -> None:
        """Append a step's completions to `samples.jsonl`, with figures [C] whose first entries are theirs."""
        columns = {name: figure.tolist() for name, figure in figures.items()}
        rows: list[dict[str, Any]] = []
        for bundle in bundles:
            for c in bundle.completions:
                row = {"step": step, "prompt": bundle.prompt, "completion": c.text, "truncated": c.truncated}
                rows.append(row | {name: column[len(rows)] for name, column in columns.items()})
        with (self.path / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(strict_json(row) + "\n" for row in rows)

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps, and a last line that a kill cut short."""
        for name in STEPWISE:
            file = self.path / name
            if file.exists():
                *lines, _torn = file.read_bytes().split(b"\n")
                file.write_bytes(b"".join(line + b"\n" for line in lines if json.loads(line)["step"] <= step))

    def write_evidence(self, bundles: Sequence[Bundle], text: Text) -> Path:
        """Write the batch that made a run fail, and return the file."""
        evidence = self.path / "failed-batch.jsonl"
        with evidence.open("w", encoding="utf-8") as file:
            for b in bundles:
                texts = [c.text or text.decode(c.ids) for c in b.completions]
                row = {"file": b.origin.file, "row": b.origin.row, "prompt": b.prompt, "completions": texts}
                file.write(strict_json(row) + "\n")
        return evidence

    # --- checkpoints

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint, which need not exist."""
        return Path(self.path, "checkpoints", f"step-{step}")

    def checkpoints(self) -> list[int]:
        """Return the steps that have a checkpoint, in no particular order."""
        return [int(p.name.removeprefix("step-")) for p in self.path.glob("checkpoints/step-*") if p.suffix == ""]

    def save(self, step: int, trained: Mapping[str, Role], text: Text, state: Mapping[str, Any]) -> None:
        """Write a checkpoint under another name, then rename it, so that a kill leaves no partial checkpoint."""
        target = self.checkpoint(step)
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name, role in trained.items():
            role.save(text, partial / name)
        torch.save(state, partial / "state.pt")
        partial.rename(target)

    def save_final(self, role: Role, text: Text) -> None:
        """Write the weights that the run keeps, and read them back."""
        role.save(text, self.path / "final")
        role.require_saved(self.path / "final")

    def load(self, step: int, trained: Mapping[str, Role]) -> dict[str, Any]:
        """Load a checkpoint's weights into the models, and return the state saved beside them."""
        state: dict[str, Any] = torch.load(self.checkpoint(step) / "state.pt", weights_only=True)
        self.load_weights(step, trained)
        return state

    def load_weights(self, step: int, trained: Mapping[str, Role]) -> None:
        """Load a checkpoint's weights into the models."""
        for name, role in trained.items():
            role.restore(self.checkpoint(step) / name)

    def prune(self, keep: int, best: int | None) -> None:
        """Remove all checkpoints but the last `keep`, and the best one."""
        kept = {*sorted(self.checkpoints())[-keep:], best}
        for step in set(self.checkpoints()) - kept:
            shutil.rmtree(self.checkpoint(step))


# --- is it the same run? --------------------------------------------------------------------------


def _same_settings(old: str, new: str, file: Path) -> None:
    import yaml

    a, b = yaml.safe_load(old), yaml.safe_load(new)
    changed = sorted(k for k in {*a, *b} if a.get(k) != b.get(k) and k != "resume")
    if changed:
        raise InputError(
            f"{file}: the run was started with other settings of {', '.join(changed)}; resume with the same"
        )


def _same_facts(file: Path, facts: Mapping[str, object]) -> None:
    """Refuse to resume with other models or data than the manifest's; let pass what the hub did not identify."""
    old = json.loads(file.read_text(encoding="utf-8"))
    changed = sorted(k for k, v in facts.items() if "hub:unknown" not in (v, old.get(k)) and old.get(k) != v)
    if changed:
        raise InputError(
            f"{file}: the content of {', '.join(changed)} has changed since the run was started; "
            "resume with the same models and data, or start anew with another --out"
        )


def _versions() -> dict[str, str]:
    import transformers

    import keel

    return {
        "keel": keel.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
