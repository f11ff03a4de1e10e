"""Objects handed over from Python in place of a path: rows, data sets, models, reward functions.

A config holds names only, so that it can be written into a run's folder. An object gets a name by its content: the same
rows, weights or function have the same name in another process, and a run can go on with them. Models are saved into a
temporary folder, which is removed when the process ends.
"""

from __future__ import annotations

import atexit
import hashlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from keel.errors import InputError

Function = Callable[[str, str], float]
"""A reward: (prompt, completion) -> score."""
ROWS, HANDED = "rows:", "handed:"
"""Prefixes of the names of rows and of functions."""

_rows: dict[str, list[Any]] = {}
_functions: dict[str, Function] = {}
_folders: dict[int, tuple[object, str]] = {}


def rows_named(name: str) -> list[Any] | None:
    """Return the rows of a name that `name_data` gave, or None for any other name."""
    return _rows.get(name)


def function_named(name: str) -> Function:
    """Return the function of a name that `name_reward` gave."""
    if name not in _functions:
        raise InputError(f"{name} was a function of another process; hand it over again")
    return _functions[name]


def name_data(value: object) -> object:
    """Return a name for rows (a list of dicts, a data set of the library); paths and other names stay as they are."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str | None) or not isinstance(value, Iterable):
        return value
    rows = [dict(row) if isinstance(row, Mapping) else row for row in value]
    content = json.dumps(rows, default=repr, ensure_ascii=False)
    name = ROWS + hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    _rows[name] = rows
    return name


def name_model(value: object) -> object:
    """Return a folder with a model of transformers in it, given alone or as (model, tokenizer)."""
    model, tokenizer = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    if not hasattr(model, "save_pretrained"):
        return str(value) if isinstance(value, Path) else value
    if id(model) not in _folders:
        _folders[id(model)] = model, _saved(model, tokenizer)
    return _folders[id(model)][1]


def name_reward(value: object) -> object:
    """Return a name for a reward: a model, or a function of (prompt, completion)."""
    found = name_model(value)
    if isinstance(found, str) or not callable(found):
        return found
    try:
        source = inspect.getsource(found)
    except (OSError, TypeError):  # typed into an interpreter, or not written in Python
        source = repr(getattr(getattr(found, "__code__", None), "co_code", found))
    name = f"{getattr(found, '__name__', 'function')}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    _functions[HANDED + name] = found
    return f"rule:{HANDED}{name}"


def _saved(model: Any, tokenizer: Any) -> str:
    """Save model and tokenizer into a folder named by what is in it."""
    if tokenizer is None:
        tokenizer = _tokenizer_beside(model)
    home = Path(tempfile.mkdtemp(prefix="keel-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    with _without_bars():
        model.save_pretrained(home / "new")
        tokenizer.save_pretrained(home / "new")
    digest = hashlib.sha256()
    for file in sorted((home / "new").rglob("*")):
        digest.update(file.name.encode() + file.read_bytes())
    folder = home / digest.hexdigest()[:16]
    (home / "new").rename(folder)
    return str(folder)


@contextmanager
def _without_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _tokenizer_beside(model: Any) -> Any:
    from transformers import AutoTokenizer

    name = str(getattr(model, "name_or_path", ""))
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # the library's own, the hub's: whatever it is, there is none
        raise InputError(f"no tokenizer for the model ({name or 'without a name'}); give (model, tokenizer)") from error


DataName = Annotated[str, BeforeValidator(name_data)]
"""A file, folder, hub data set or store; from Python rows, too."""
ModelName = Annotated[str, BeforeValidator(name_model)]
"""A checkpoint folder, run folder or hub name; from Python a model, too."""
RewardName = Annotated[str, BeforeValidator(name_reward)]
"""A reward model or `rule:…`; from Python a model or a function, too."""
