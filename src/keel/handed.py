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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from keel.errors import InputError

Function = Callable[[str, str], float]
"""A reward: (prompt, completion) -> score."""
ROWS, HANDED = "rows:", "handed:"
"""Prefixes of the names of rows and of functions."""
AN_ADDRESS = " at 0x"
"""Part of the default repr of an object: it says nothing of the object's content."""

_rows: dict[str, list[Any]] = {}
_functions: dict[str, Function] = {}
_home: list[Path] = []


def rows_named(name: str) -> list[Any] | None:
    """Return the rows of a name that `name_data` gave, or None for any other name."""
    return _rows.get(name)


def function_named(name: str) -> Function:
    """Return the function of a name that `name_reward` gave."""
    if name not in _functions:
        raise InputError(f"{name} was a function of another process; hand it over again")
    return _functions[name]


def refuse_temporary(folder: str) -> None:
    """Refuse to train an adapter on a model that was handed over: its folder ends with this process."""
    if any(home in Path(folder).parents for home in _home):
        raise InputError(
            "--lora on a model that was handed over: an adapter names its base, and this one's folder ends with the "
            "process; save the model (save_pretrained) and give the folder"
        )


def name_data(value: object) -> object:
    """Return a name for rows (a list of dicts, a data set of the library); paths and other names stay as they are."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "to_dict") and hasattr(value, "columns"):  # pandas
        value = value.to_dict("records")
    if isinstance(value, str | None) or not isinstance(value, Iterable):
        return value
    rows = [] if isinstance(value, Mapping) else [dict(row) if isinstance(row, Mapping) else row for row in value]
    if not any(isinstance(row, dict) for row in rows):
        what = f"{type(value).__name__} of {type(rows[0]).__name__}" if rows else type(value).__name__
        raise InputError(f"data from Python are a list of dicts, a datasets.Dataset or a DataFrame, not a {what}")
    content = json.dumps(rows, default=repr, ensure_ascii=False)
    name = ROWS + hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    _rows[name] = rows
    return name


def name_model(value: object) -> object:
    """Return a folder with a model of transformers in it, given alone or as (model, tokenizer)."""
    model, tokenizer = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    if not hasattr(model, "save_pretrained"):
        return str(value) if isinstance(value, Path) else value
    return _saved(model, tokenizer)


def name_reward(value: object) -> object:
    """Return a name for a reward: a model, or a function of (prompt, completion)."""
    found = name_model(value)
    if isinstance(found, str) or not callable(found):
        return found
    content = _content_of(found)
    name = f"{HANDED}{getattr(found, '__name__', 'function')}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    while _functions.get(name, found) is not found and AN_ADDRESS in content:
        name += "+"  # what it holds cannot be told from what another one holds
    _functions[name] = found
    return f"rule:{name}"


def _content_of(function: Any) -> str:
    """Return all that decides what a function returns, as far as it can be written down: source, closure, defaults."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # typed into an interpreter, or not written in Python
        source = repr(getattr(getattr(function, "__code__", None), "co_code", function))
    held = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    held += [getattr(function, name, None) for name in ("__defaults__", "__kwdefaults__", "__self__", "__dict__")]
    return f"{source} {held!r}"


def _saved(model: Any, tokenizer: Any) -> str:
    """Save model and tokenizer into a folder named by what is in it."""
    from keel.says import quiet_library  # every command reads this module at its start, and few need a console then

    if tokenizer is None:
        tokenizer = _tokenizer_beside(model)
    if not _home:
        _home.append(Path(tempfile.mkdtemp(prefix="keel-")))
        atexit.register(shutil.rmtree, _home[0], ignore_errors=True)
    home = _home[0]
    with quiet_library():
        model.save_pretrained(home / "new")
        tokenizer.save_pretrained(home / "new")
    digest = hashlib.sha256()
    for file in sorted((home / "new").rglob("*")):
        digest.update(file.name.encode() + file.read_bytes())
    folder = home / digest.hexdigest()[:16]
    if folder.exists():
        shutil.rmtree(home / "new")
    else:
        (home / "new").rename(folder)
    return str(folder)


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
