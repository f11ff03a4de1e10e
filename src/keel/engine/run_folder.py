"""A run's folder: settings and manifest, metrics and samples, checkpoints, and the evidence of a failure.

    config.yaml  manifest.json  metrics.jsonl  samples.jsonl  checkpoints/step-N/  failed-batch.jsonl

`final/` and `summary.json` are written by the run when it ends.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keel.config import Training
from keel.errors import InputError, RunFailed, on_one_line
from keel.files.disk import (
    amount,
    append,
    nearest,
    remove_folder,
    remove_leftovers,
    size_of,
    sync,
    whole_file,
    whole_folder,
    writing,
)
from keel.files.jsonl import strict_json, write_json
from keel.files.target import require_command
from keel.models.roles import Role
from keel.records import Bundle
from keel.text.tokenisation import Text

STEPWISE = "metrics.jsonl", "samples.jsonl"
"""Files whose lines each name a step."""


class RunFolder:
    """The files of one run of a command below `path`."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command

    def go_on(self) -> str:
        """Return the remedy for a run that stopped."""
        return f"go on with: keel {self.command} --resume --out {shlex.quote(str(self.path))}"

    @contextmanager
    def _writing(self, target: Path, needed: int = 0) -> Iterator[None]:
        """Raise RunFailed with the remedy if the block cannot write `target`."""
        with writing(target, needed, self._remedy()):
            yield

    def _remedy(self) -> str:
        return f"free space, or move {self.path} to another disk; then {self.go_on()}"

    # --- opening

    def open(self, config: Training, manifest: Mapping[str, object]) -> bool:
        """Begin the folder of a new run, or return True if it holds a run to resume.

        Refuses to resume a run of another command, or with other settings, models or data.
        """
        settings = config.to_yaml()
        file = self.path / "config.yaml"
        if config.resume and file.exists():
            require_command(self.path, self.command)
            _same_settings(file.read_text(), settings, file)
            _same_facts(self.path / "manifest.json", manifest)
            for folder in (self.path, self.path / "checkpoints"):
                remove_leftovers(folder)
            return True
        with writing(file):
            self.path.mkdir(parents=True, exist_ok=True)
            facts = {"command": self.command, "versions": _versions(), "seed": config.seed, **manifest}
            write_json(self.path / "manifest.json", facts)
            with whole_file(file) as partial:  # last: once it exists, there is a run to resume
                partial.write_text(settings)
        return False

    def require_space(self, trained: Iterable[Role], keep: int) -> None:
        """Refuse to begin if the checkpoints will not fit on the disk; those that are there already do."""
        roles = list(trained)
        each, final = bytes_of_checkpoint(roles), bytes_of_weights(roles)
        there = sum(size_of(self.checkpoint(step)) for step in self.checkpoints())
        needed = each * (keep + 2) + final - there  # the best one besides, and one more while it is written
        free = shutil.disk_usage(nearest(self.path)).free
        if needed > free:
            raise InputError(
                f"{self.path}: checkpoints need about {amount(needed)}, {amount(free)} are free; "
                "free space there, choose another --out or lower --keep-checkpoints"
            )

    # --- lines

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a step's figures to `metrics.jsonl`."""
        self._append("metrics.jsonl", [row])

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
        self._append("samples.jsonl", rows)

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(strict_json(row) + "\n" for row in rows)
        with self._writing(self.path / name, len(text)):
            append(self.path / name, text)

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps, and a last line that a kill cut short."""
        for name in STEPWISE:
            file = self.path / name
            if file.exists():
                with file.open("rb+") as lines:
                    kept = 0
                    for line in lines:
                        if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                            break
                        kept += len(line)
                    lines.truncate(kept)  # at once: a kill leaves either all lines or those kept

    def write_evidence(self, bundles: Sequence[Bundle], text: Text, rank: int = 0) -> Path:
        """Write the batch that made a run fail, or a process's share of it, and return the file."""
        evidence = self.path / ("failed-batch.jsonl" if rank == 0 else f"failed-batch-{rank}.jsonl")
        with self._writing(evidence), evidence.open("w", encoding="utf-8") as file:
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
        names = [re.fullmatch(r"step-(\d+)", p.name) for p in self.path.glob("checkpoints/step-*")]
        return [int(name[1]) for name in names if name]

    def save(self, step: int, trained: Mapping[str, Role], text: Text, state: Mapping[str, Any]) -> None:
        """Write a whole checkpoint or none; all lines up to it are then on the disk, too."""
        target = self.checkpoint(step)
        with self._writing(target, bytes_of_checkpoint(trained.values())), whole_folder(target) as partial:
            for name, role in trained.items():
                role.save(text, partial / name)
            with (partial / "state.pt").open("wb") as file:  # Python's file: torch's own hides why a write failed
                torch.save(state, file)
            for lines in STEPWISE:
                if (self.path / lines).exists():
                    sync(self.path / lines)

    def save_final(self, role: Role, text: Text) -> None:
        """Write `final/`, whole or not at all, and read it back."""
        target = self.path / "final"
        with self._writing(target, bytes_of_weights([role])), whole_folder(target) as partial:
            role.save(text, partial)
            role.require_saved(partial)

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`: the run is finished."""
        write_json(self.path / "summary.json", summary, self._remedy())

    def load(self, step: int, trained: Mapping[str, Role]) -> dict[str, Any]:
        """Load a checkpoint's weights into the models, and return the state saved beside them."""
        file = self.checkpoint(step) / "state.pt"
        try:
            state: dict[str, Any] = torch.load(file, weights_only=True)
        except Exception as error:
            remedy = f"remove {file.parent} to go on from the one before, if there is one"
            raise RunFailed(f"{file}: not readable ({on_one_line(error)}); {remedy}") from error
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
            remove_folder(self.checkpoint(step))


def bytes_of_weights(roles: Iterable[Role]) -> int:
    """Return the size of what is trained, as saved."""
    return sum(p.nbytes for role in roles for p in role.parameters().values())


def bytes_of_checkpoint(roles: Iterable[Role]) -> int:
    """Return the size of a checkpoint: weights, two moments in fp32, and fp32 copies of other weights."""
    weights = [p for role in roles for p in role.parameters().values()]
    return sum(p.nbytes + p.numel() * (8 if p.dtype == torch.float32 else 12) for p in weights)


# --- is it the same run? --------------------------------------------------------------------------


OF_THIS_CALL = "resume", "out"
"""Options that say nothing of the run itself: a folder that was moved or copied goes on where it is now."""


def _same_settings(old: str, new: str, file: Path) -> None:
    import yaml

    a, b = yaml.safe_load(old), yaml.safe_load(new)
    changed = sorted(k for k in {*a, *b} if a.get(k) != b.get(k) and k not in OF_THIS_CALL)
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
