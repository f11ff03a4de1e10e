"""Keel takes a language model from preferences to a better policy and shows at every step whether to believe it.

Its modules are imported on first use: `keel.methods.dpo.train(keel.config.DPOConfig(…))`.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["__version__"]

_PARTS = ("config", "errors", "methods", "objectives", "records", "stats")
"""Modules for use by other programs."""


def __getattr__(name: str) -> ModuleType:
    if name in _PARTS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_PARTS]
