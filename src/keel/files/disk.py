"""Writing that lasts: files and folders are whole or absent, survive a power cut, and a full disk gives one line.

A file or folder is written under another name, put on the disk (fsync) and then renamed. A kill in between leaves
`NAME.partial`, or `NAME.removed` of what was being deleted; neither is ever read.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from keel.errors import KeelError, RunFailed

PARTIAL, REMOVED = ".partial", ".removed"
"""Endings of what is being written, and of what is being deleted."""
FREE_SPACE = "free space there, or choose another --out"


@contextmanager
def writing(target: Path, needed: int = 0, remedy: str = FREE_SPACE) -> Iterator[None]:
    """Raise RunFailed that names `target`, the reason and the remedy if the block cannot write it.

    `needed` is the size of what is written, in bytes, if it is known.
    """
    try:
        yield
    except KeelError:
        raise
    except Exception as error:
        number = _errno_of(error)
        if number is None:
            raise
        raise RunFailed(f"{target}: not written, since {_why(number, target, needed)}; {remedy}") from error


def _errno_of(error: BaseException) -> int | None:
    """Return the system's number for a failed write; torch hides it in a context, Rust libraries in a message."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        if found := re.search(r"\(os error (\d+)\)", str(seen)):
            return int(found[1])
        seen = seen.__cause__ or seen.__context__
    return None


def _why(number: int, target: Path, needed: int) -> str:
    if number == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        most = f" of {amount(limit)}" if limit != resource.RLIM_INFINITY else ""
        return f"a file is larger than the limit{most} on this process's files (ulimit -f)"
    if number not in (errno.ENOSPC, errno.EDQUOT):
        return f"the system refused it ({os.strerror(number)})"
    free = amount(shutil.disk_usage(nearest(target)).free)
    what = "the disk quota is used up" if number == errno.EDQUOT else "the disk is full"
    return f"{what} (it needs about {amount(needed)}, {free} are free)" if needed else f"{what} ({free} are free)"


def amount(count: float) -> str:
    """Return a number of bytes as `12.3 MB`."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def nearest(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


# --- files ----------------------------------------------------------------------------------------


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a path to write. After the block the file stands at `target`; after an exception nothing new does."""
    partial = target.with_name(target.name + PARTIAL)
    try:
        yield partial
        sync(partial)
        partial.rename(target)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync(target.parent)


def append(file: Path, text: str) -> None:
    """Append text, all of it or, if the disk is full, none."""
    left = memoryview(text.encode("utf-8"))
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        before = os.fstat(handle).st_size
        try:
            while left:
                left = left[os.write(handle, left) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; a file system that cannot tell passes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


# --- folders --------------------------------------------------------------------------------------


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder to fill. After the block it stands at `target`; after an exception nothing new does."""
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.rglob("*"), partial):
            sync(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    remove_folder(target)
    partial.rename(target)
    sync(target.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder if it exists; a kill in between leaves no part of it under its name."""
    removed = folder.with_name(folder.name + REMOVED)
    shutil.rmtree(removed, ignore_errors=True)
    if folder.exists():
        folder.rename(removed)
        shutil.rmtree(removed)


def remove_leftovers(folder: Path) -> None:
    """Delete what a kill left half written or half deleted in a folder."""
    for path in (*folder.glob(f"*{PARTIAL}"), *folder.glob(f"*{REMOVED}")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
