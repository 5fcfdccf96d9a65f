"""The leaves of a tree of arrays, by name."""

from typing import Any

import jax


def path_name(path: Any) -> str:
    """A leaf's path as `a/b/c`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
