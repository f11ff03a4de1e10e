"""The check that a command may write its results to --out."""

from __future__ import annotations

import os
from pathlib import Path

from keel.errors import InputError


def require_writable(path: Path) -> None:
    """Refuse a file or folder that could not be written, before any work is done for it."""
    base = _nearest(path)
    if not os.access(base, os.W_OK):
        raise InputError(f"{path} cannot be written: no right to write in {base}; choose another place")


def refuse_existing(path: Path, resume: bool | None = None) -> None:
    """Refuse an --out that cannot be written: earlier work, or with `resume` no run's folder, or a path below a file.

    `resume` is None for commands without --resume.
    """
    if str(path) == "-":
        raise InputError("--out -: results are written to a file or folder; give its name")
    base = _nearest(path)
    if base != path and not base.is_dir():
        raise InputError(f"{path} cannot be written, since {base} is a file: choose another --out")
    require_writable(path)
    exists = path.exists() and (path.is_file() or any(path.iterdir()))
    if exists and not resume:
        further = ", or remove it" if resume is None else ", remove it, or add --resume to go on with a run"
        raise InputError(f"{path} already exists: choose another --out{further}")
    if exists and not (path / "config.yaml").is_file():
        raise InputError(
            f"{path} is not a run folder (no config.yaml in it): choose the --out of the run to resume, or remove it"
        )


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())
