"""A JAX/Flax research codebase: one train loop for every model. README.md gives a reading order of the code."""

from typing import Any

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """`research.fit` and `research.open_run`, imported on first use, as they import JAX."""
    if name in ("compare", "fit", "open_run"):
        from research import api

        return getattr(api, name)
    raise AttributeError(f"module 'research' has no attribute {name!r}")
