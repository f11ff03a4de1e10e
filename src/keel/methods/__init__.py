"""One visible loop for each method. They never import each other."""

from importlib import import_module
from types import ModuleType

METHODS = ("best_of_n", "dpo", "ppo", "reward", "sft")


def __getattr__(name: str) -> ModuleType:
    """A method's module, imported when it is asked for: they bring torch."""
    if name in METHODS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(METHODS)
