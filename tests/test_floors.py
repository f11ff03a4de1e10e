"""The house: imports go down only, neighbours that must not know each other do not, and the top imports little."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import keel

SOURCE = Path(keel.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

ROOMS = (
    "cli", "demo", "commands", "web", "audit", "evaluation", "raters", "methods", "sampling", "engine", "models",
    "annotation", "data", "store", "formats", "text", "files", "pages", "config", "progress", "stats", "objectives",
    "guidelines", "records", "handed", "seeds", "says", "errors", "world",
)  # fmt: skip
"""From the roof to the ground: a module imports its own room and those after it."""

NOT_NEIGHBOURS = ("keel.methods", "keel.raters")

SHARED = {"keel.raters", "keel.raters.two_orders", "keel.raters.replies"}
"""What raters stand on: their Protocol, how a pair is shown and a reply read. No rater is in it."""


def name_of(file: Path) -> str:
    parts = ("keel", *file.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> int | None:
    """The room's place among all, 0 at the top; None for the package, which everyone may ask for its version."""
    if module in ("keel", "keel.__version__"):
        return None
    room = module.split(".")[1]
    assert room in ROOMS, f"{module} stands in no room: add it to ROOMS"
    return ROOMS.index(room)


def imports_of(file: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in the file, at any depth; `from keel import stats` is keel.stats.

    A module named as a string, as in `importlib.import_module("keel.demo")`, counts too.
    """
    known = {name_of(f) for f in MODULES}
    package = name_of(file) if file.name == "__init__.py" else name_of(file).rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in known else base
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from ((node.lineno, str(a.value)) for a in node.args[:1] if isinstance(a, ast.Constant))


def own_imports(file: Path) -> list[tuple[int, str]]:
    return [(line, name) for line, name in imports_of(file) if name == "keel" or name.startswith("keel.")]


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_imports_go_down_only(file):
    """A module imports its own room and those below it; TYPE_CHECKING and function bodies are no way round."""
    here = room_of(name_of(file))
    for line, name in own_imports(file):
        there = room_of(name)
        if there is not None:
            assert here is not None, f"{file}:{line}: the package itself imports {name}"
            assert here <= there, f"{file}:{line}: {name_of(file)} imports {name}, which stands above it"


def test_a_room_has_one_purpose_and_a_file_fits_in_the_head():
    """No room above 15 % of the source, no file above 500 lines, no class above 250."""
    lines = Counter({file: file.read_text(encoding="utf-8").count("\n") for file in MODULES})
    rooms = Counter(dict.fromkeys(ROOMS, 0))
    for file, count in lines.items():
        rooms[file.relative_to(SOURCE).with_suffix("").parts[0]] += count
    assert {room: n for room, n in rooms.items() if n > 0.15 * lines.total()} == {}
    assert {str(file): n for file, n in lines.items() if n > 500} == {}
    classes = {
        f"{file}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in MODULES
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    assert {name: n for name, n in classes.items() if n > 250} == {}


VERBS = {"train", "evaluate", "conclude", "make"}
"""What every method does, and how every rater is made: these names stand in each of their files."""


def public_names(file: Path) -> Iterator[str]:
    """Functions, classes and constants of a module; type variables have no meaning to mistake."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        found: list[ast.expr] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found = [ast.Name(node.name)]
        elif isinstance(node, ast.Assign) and getattr(getattr(node.value, "func", None), "id", "") != "TypeVar":
            found = node.targets
        elif isinstance(node, ast.AnnAssign):
            found = [node.target]
        yield from (name.id for name in found if isinstance(name, ast.Name) and not name.id.startswith("_"))


def test_a_public_name_means_one_thing():
    """No name stands in two modules but the verbs of methods, and nobody imports one under another name."""
    places: dict[str, list[str]] = {}
    for file in MODULES:
        for name in public_names(file):
            places.setdefault(name, []).append(name_of(file))
    assert {name: where for name, where in places.items() if len(where) > 1 and name not in VERBS} == {}
    aliases = [
        f"{name_of(file)}: {alias.name} as {alias.asname}"
        for file in MODULES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keel")
        for alias in node.names
        if alias.asname
    ]
    assert aliases == []


def tree() -> str:
    """The rooms as README shows them: what each is for, and its files."""
    shown = ["src/keel/"]
    for room in ROOMS:
        folder = SOURCE / room
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        purpose = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        first = " ".join(purpose.split()).split(". ")[0].rstrip(".")
        shown.append(f"  {room + ('/' if folder.is_dir() else '.py'):<14}{first}")
        if folder.is_dir():
            inside = sorted({f.relative_to(folder).parts[0].removesuffix(".py") for f in folder.rglob("*.py")})
            names = "  ".join(name for name in inside if name != "__init__")
            shown += [f"{' ' * 16}{line}" for line in textwrap.wrap(names, 100) if line]
    return "\n".join(shown)


def test_readme_shows_the_tree():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert tree() in readme, f"README's tree is this now:\n{tree()}"


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_methods_and_raters_do_not_know_each_other(file):
    here = name_of(file)
    for floor in NOT_NEIGHBOURS:
        if here.startswith(floor + "."):
            for line, name in own_imports(file):
                own = name == here or (floor == "keel.raters" and name in SHARED)
                assert own or not name.startswith(NOT_NEIGHBOURS), f"{file}:{line}: {here} imports {name}"


@pytest.mark.parametrize("file", [f for f in MODULES if "world" in f.relative_to(SOURCE).parts], ids=name_of)
def test_the_world_imports_nothing_of_keel_but_itself(file):
    """Plain Python: it trains nothing and needs no installed package."""
    for line, name in imports_of(file):
        assert name.partition(".")[0] in sys.stdlib_module_names or name.startswith("keel.world"), (
            f"{file}:{line}: {name}"
        )


def test_the_oldest_floor_is_the_lowest():
    """The test above sees what it should see."""
    assert len(MODULES) > 20
    assert "keel.engine.run" in {name for _, name in own_imports(SOURCE / "methods" / "ppo.py")}
    assert "keel.stats" in {name for _, name in own_imports(SOURCE / "methods" / "ppo.py")}


def test_errors_and_records_need_no_model_library():
    """The ground knows torch at most."""
    for name in ("errors", "records", "objectives", "stats", "config"):
        files = [f for f in MODULES if f.relative_to(SOURCE).with_suffix("").parts[0] == name]
        found = {module.partition(".")[0] for file in files for _, module in imports_of(file)}
        assert not found & {"transformers", "tokenizers", "datasets"}, name


def modules_after(statement: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


OPTIONAL = {
    "datasets", "pyarrow", "pandas", "sklearn", "vllm", "ray", "liger_kernel", "lm_eval", "psycopg", "wandb",
    "tensorboard", "mlflow", "trackio", "peft", "accelerate", "deepspeed", "flash_attn", "fastapi",
    "openai", "py3langid", "phonenumbers",
}  # fmt: skip


@pytest.mark.parametrize("module", ["keel", "keel.cli", "keel.config", "keel.errors", "keel.world"])
def test_light_modules_import_no_torch(module):
    heavy = {"torch", "transformers", "tokenizers", "matplotlib", "scipy", "numpy", *OPTIONAL}
    assert not modules_after(f"import {module}") & heavy


def importable_methods() -> list[str]:
    return [name_of(f) for f in MODULES if name_of(f).startswith(NOT_NEIGHBOURS)]


def test_methods_and_raters_import_nothing_optional():
    """Nothing of their own accord; what transformers itself imports where it is installed is its affair."""
    base = modules_after("import torch, transformers, transformers.cache_utils, transformers.modeling_utils")
    own = modules_after("; ".join(f"import {name}" for name in importable_methods()))
    assert not (own - base) & OPTIONAL


# --- what is public is documented and annotated


def public_functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """(file, function, whether its docstring is asked for) of functions and methods at module and class level."""
    for file in MODULES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield file, node, not node.name.startswith("_")
            elif isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                        yield file, inner, False


def test_public_functions_have_docstrings():
    silent = [f"{f.relative_to(SOURCE)}:{n.lineno} {n.name}" for f, n, asked in public_functions()
              if asked and not ast.get_docstring(n)]  # fmt: skip
    assert silent == []


def test_public_classes_and_modules_have_docstrings():
    silent = []
    for file in MODULES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree):
            silent.append(str(file.relative_to(SOURCE)))
        silent += [
            f"{file.relative_to(SOURCE)}:{node.lineno} {node.name}"
            for node in tree.body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
        ]
    assert silent == []


CLAUSE = re.compile(
    r"(What|Whether|Of|How|The same|Where|As|That|Which|By|In what|With|For|Who|Whose|When|From|To|Behind|On)\b"
)
"""A docstring that begins so has its verb last."""


def docstrings() -> Iterator[tuple[str, str]]:
    """(place, text) of docstrings, and of the strings that stand beneath fields and constants."""
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                yield f"{file.relative_to(SOURCE)}:{node.lineno}", node.value.value.strip()


def test_prose_is_read_once():
    """Subject, verb, object; "if" for conditions: "where" at most 1.5 times in 1,000 words; "they", not "he"."""
    found = list(docstrings())
    assert len(found) > 1_000
    assert [place for place, text in found if CLAUSE.match(text)] == []
    words = sum(len(text.split()) for _, text in found)
    where = sum(len(re.findall(r"\bwhere\b", text, re.IGNORECASE)) for _, text in found)
    assert where <= 1.5 * words / 1_000
    people = [place for place, text in found if re.search(r"\b(he|him|his)\b", text, re.IGNORECASE)]
    assert people == ["world/__init__.py:1"]  # the bear


def test_every_function_is_annotated():
    bare = []
    for file, node, _ in public_functions():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        arguments += [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
        missing = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        if missing or node.returns is None:
            bare.append(f"{file.relative_to(SOURCE)}:{node.lineno} {node.name} {missing}")
    assert bare == []


def test_what_is_exported_exists():
    import importlib

    for file in MODULES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(
            isinstance(n, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in n.targets) for n in tree.body
        ):
            module = importlib.import_module(name_of(file))
            assert all(hasattr(module, name) for name in module.__all__), name_of(file)


if __name__ == "__main__":
    print(tree())
