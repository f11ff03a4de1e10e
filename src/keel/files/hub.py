"""Data sets of the hub, and folders laid out like one: the part that is named, its rows and its identity.

`owner/name` or a folder alone means its split `train`; `NAME:SPLIT` and `NAME:SUBSET:SPLIT` name another part. A
folder's part may also be a file's name: `FOLDER:train_prefs` reads `train_prefs.jsonl`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.errors import InputError, on_one_line
from keel.files.fields import Numbered, one_line

__all__ = ["INSTALL", "Place", "place_of"]

INSTALL = "pip install 'keel-tune[data]'"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+){0,2}")
SHARD = re.compile(r"-\d+(-of-\d+)?$")
_SHOWN = 12  # names of splits in an error message
LFS = b"version https://git-lfs.github.com/spec/"
Read = Callable[[str], Iterator[Numbered]]


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a data set: `Place("owner/name", "", "test", local=False)`."""

    name: str
    subset: str
    split: str
    local: bool

    @property
    def part(self) -> str:
        """Return the part as it is written after the name; empty for the split `train`, which needs no name."""
        return (
            "" if (self.subset, self.split) in (("", ""), ("", "train")) else f"{self.subset}:{self.split}".strip(":")
        )

    def rows(self, source: str, read: Read, endings: tuple[str, ...]) -> Iterator[Numbered]:
        """Yield every row with its number; if the library fails on a folder's split, `read` the files of that name."""
        what = "not readable as a folder of data" if self.local else "no such local file, and not read from the hub"
        try:
            import datasets
        except ImportError:
            raise InputError(f"{source}: {what} without {INSTALL}") from None
        number = 0
        try:
            subset = [self.subset] if self.subset else []
            loaded = datasets.load_dataset(self.name, *subset, split=self.split or "train", streaming=True)
            for number, row in enumerate(loaded, 1):
                yield number, dict(row)
        except Exception as error:  # of the library, the hub, the network or pyarrow
            files = self._files(endings) if self.local and self.split and not number else []
            if not files:
                raise InputError(f"{source}: {self._why(datasets, error, what, endings)}") from error
            yield from _numbered(files, read)

    def _files(self, endings: tuple[str, ...]) -> list[Path]:
        """Return a folder's files that are named like the split or lie in a folder of that name."""
        folder = Path(self.name) / self.subset
        return list(dict.fromkeys(path for path, name in _data_files(folder, endings) if name == self.split))

    def _why(self, datasets: Any, error: Exception, what: str, endings: tuple[str, ...]) -> str:
        """Return why the data cannot be read; if the part is wrong, with a list of the parts that exist."""
        if self.local and any(map(is_pointer, _some_files(Path(self.name)))):
            return "it holds Git LFS pointers in place of data; fetch these with: git lfs pull"
        if isinstance(error, ValueError):  # the library's error for a missing part
            subsets = _asked(datasets, "get_dataset_config_names", self.name)
            splits = _asked(datasets, "get_dataset_split_names", self.name, *([self.subset] if self.subset else []))
            if self.local:
                splits += sorted({name for _, name in _data_files(Path(self.name) / self.subset, endings)} - {*splits})
            if said := self._no_such_part(subsets, splits):
                return said
        return f"{what} ({on_one_line(error)}); check the path or the name"

    def _no_such_part(self, subsets: list[str], splits: list[str]) -> str:
        """Return that there is no such subset or split, and the existing ones; empty if that is not the fault."""
        split = self.split or "train"
        if self.subset and subsets and self.subset not in subsets:
            there = f"no subset {one_line(self.subset)}, only {_listed(subsets)}"
            return f"{there}: name one as {self.name}:{subsets[0]}:{split}"
        if not splits and len(subsets) > 1:
            example = split if split in subsets else subsets[0]
            return f"it has the subsets {_listed(subsets)}: name one as {self.name}:{example}:SPLIT"
        if splits and split not in splits:
            named = ":".join(filter(None, (self.name, self.subset, splits[0])))
            return f"no split {one_line(split)}, only {_listed(splits)}: name one as {named}"
        return ""

    def identity(self, folder_hash: Callable[[str], str]) -> str:
        """Return a hash of the folder and the named part; for a hub data set its commit and the part."""
        if self.local:
            whole = folder_hash(self.name)
            return whole if not self.part else hashlib.sha256(f"{whole}\0{self.part}".encode()).hexdigest()[:16]
        from huggingface_hub import HfApi

        try:
            commit = str(HfApi().dataset_info(self.name).sha)[:16]
        except Exception:  # offline, gated, no such name: in any case the commit is unknown
            commit = "unknown"
        return ":".join(filter(None, ("hub", commit, self.part)))


def place_of(source: str) -> Place | None:
    """Return the part of a folder or hub data set that a source names; None if the source can only be a file."""
    if Path(source).is_dir():
        return Place(source, "", "", local=True)
    for cuts in (1, 2):
        name, *parts = source.rsplit(":", cuts)
        if len(parts) == cuts and all(parts) and Path(name).is_dir():
            return Place(name, "" if cuts == 1 else parts[0], parts[-1], local=True)
    if not HUB_NAME.fullmatch(source):
        return None
    name, *parts = source.split(":")
    return Place(name, parts[0] if len(parts) == 2 else "", parts[-1] if parts else "", local=False)


def is_pointer(path: Path) -> bool:
    """Say whether a file is a Git LFS pointer, which stands in for data that are not fetched yet."""
    if not path.is_file() or path.stat().st_size > 1024:
        return False
    with path.open("rb") as file:
        return file.read(len(LFS)) == LFS


def _numbered(files: list[Path], read: Read) -> Iterator[Numbered]:
    """Yield the rows of several files, numbered consecutively."""
    before = 0
    for file in files:
        last = 0
        for last, row in read(str(file)):
            yield before + last, row
        before += last


def _data_files(folder: Path, endings: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    """Yield (file, split by its name or folder) for every file that can be read."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        name = path.name.removesuffix(".gz")
        ending = next((e for e in endings if name.lower().endswith(e)), None)
        if ending is None or not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        above = path.relative_to(folder).parts[:-1]
        yield path, SHARD.sub("", name[: -len(ending)])
        if above and above[-1] != "data":
            yield path, above[-1]


def _some_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*"))[:1000] if path.is_file()]


def _asked(datasets: Any, function: str, *names: str) -> list[str]:
    """Return the names that the library lists; none if it fails."""
    try:
        return [str(name) for name in getattr(datasets, function)(*names)]
    except Exception:
        return []


def _listed(names: list[str]) -> str:
    return ", ".join(map(one_line, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")
