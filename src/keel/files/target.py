"""Whether a command may write where it is told to."""

from __future__ import annotations

from pathlib import Path

from keel.errors import InputError


def refuse_existing(path: Path, resume: bool = False) -> None:
    """Refuse an --out that cannot be written: earlier work, or with `resume` what is no run, or a path below a file."""
    base = next(p for p in (path, *path.absolute().parents) if p.exists())
    if base != path and not base.is_dir():
        raise InputError(f"{path} cannot be written, since {base} is a file: choose another --out")
    exists = path.exists() and (path.is_file() or any(path.iterdir()))
    if exists and not resume:
        raise InputError(f"{path} already exists: choose another --out, remove it, or add --resume to go on with a run")
    if exists and not (path / "config.yaml").is_file():
        raise InputError(
            f"{path} is not a run folder (no config.yaml in it): choose the --out of the run to resume, or remove it"
        )
