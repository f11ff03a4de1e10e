"""Keel takes a language model from preferences to a better policy and shows at every step whether to believe it."""

__version__ = "0.1.0"
__all__ = ["__version__"]
