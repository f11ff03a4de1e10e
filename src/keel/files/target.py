"""The check that a command may write its results to --out."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from keel.errors import InputError
from keel.files.disk import PARTIAL, nearest

BEGINNING = {"manifest.json", *(name + PARTIAL for name in ("manifest.json", "config.yaml"))}
"""Files of a run that was killed before its config.yaml was whole: it has not begun yet."""


def require_writable(path: Path) -> None:
    """Refuse a file or folder that could not be written, before any work is done for it."""
    base = nearest(path)
    if not os.access(base, os.W_OK):
        raise InputError(f"{path} cannot be written: no right to write in {base}; choose another place")
    if base.is_dir():
        try:
            tempfile.TemporaryFile(dir=base).close()
        except OSError as error:
            why = f"no file can be made in {base} ({error.strerror})"
            raise InputError(f"{path} cannot be written: {why}; choose another place") from error


def refuse_existing(path: Path, resume: bool | None = None) -> None:
    """Refuse an --out that cannot be written: earlier work, or with `resume` no run's folder, or a path below a file.

    `resume` is None for commands without --resume.
    """
    if str(path) == "-":
        raise InputError("--out -: results are written to a file or folder; give its name")
    base = nearest(path)
    if base != path and not base.is_dir():
        raise InputError(f"{path} cannot be written, since {base} is a file: choose another --out")
    require_writable(path)
    exists = path.exists() and (path.is_file() or any(inner.name not in BEGINNING for inner in path.iterdir()))
    if exists and not resume:
        further = ", or remove it" if resume is None else ", remove it, or add --resume to go on with a run"
        raise InputError(f"{path} already exists: choose another --out{further}")
    if exists and not (path / "config.yaml").is_file():
        raise InputError(
            f"{path} is not a run folder (no config.yaml in it): choose the --out of the run to resume, or remove it"
        )
    if exists and (path / "summary.json").exists():
        raise InputError(f"{path}: this run is finished; its result is in final/")


def require_command(path: Path, command: str) -> None:
    """Refuse to resume a run of another command."""
    told = None
    with suppress(OSError, ValueError):
        told = json.loads((path / "manifest.json").read_text(encoding="utf-8")).get("command")
    if told not in (None, command):
        raise InputError(f"{path}: a run of keel {told}; go on with: keel {told} --resume --out {path}")
