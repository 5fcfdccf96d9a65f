"""English text that comes with Python, its documentation, for training without a download.

The texts depend on the running Python: another version, or one built with fewer modules, has different texts, hence a
different fingerprint and different results.
"""

import ast
import functools
import importlib
import os
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

from research.base.errors import UserError
from research.data.examples import Columns

# Not documentation, or not part of the library. Underscored modules are left out too: most duplicate another one.
_SKIPPED = {"idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages", "test", "tests", "turtledemo"}

# One in this many documents is held out for validation. A module is in one split, as its docstrings are similar.
_VALIDATION = 10

# Shorter docstrings are remarks, not texts.
_SHORTEST = 200  # characters


def _modules() -> Iterator[tuple[str, Path]]:
    """Yields (path within the library, file) of the library's modules, in order."""
    library = Path(os.__file__).parent
    for folder, folders, files in os.walk(library):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith(("_", "config-")))
        for name in sorted(files):
            if name.endswith(".py") and (name == "__init__.py" or not name.startswith("_")):
                path = Path(folder, name)
                yield path.relative_to(library).as_posix(), path


def _docstrings(source: bytes) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, in order of appearance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes that a later Python forbids
        tree = ast.parse(source)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
        if not isinstance(node, ast.expr):  # expressions contain no definitions
            waiting.extend(reversed(list(ast.iter_child_nodes(node))))


@functools.cache
def documents() -> dict[str, str]:
    """Name -> text: the topics of Python's `help()`, then every module's docstrings, without duplicates.

    Raises UserError if the running Python lacks them.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise UserError("this Python has no pydoc_data.topics, its documentation; use another data.name") from error
    found = {f"topic {name}": topics[name].strip() for name in sorted(topics)}
    seen: set[str] = set()
    for name, path in _modules():
        try:
            texts = list(dict.fromkeys(text for text in _docstrings(path.read_bytes()) if text not in seen))
        except (OSError, SyntaxError, ValueError):  # templates of modules, and unreadable files
            continue
        seen.update(texts)
        found[f"module {name}"] = "\n\n".join(texts)
    return {name: text for name, text in found.items() if len(text) >= _SHORTEST}


def python_docs() -> dict[str, Columns]:
    """Columns `text` and `name`, one row per document; its split depends on its name alone."""
    splits: dict[str, dict[str, list[str]]] = {split: {"text": [], "name": []} for split in ("train", "validation")}
    for name, text in documents().items():
        split = "validation" if zlib.crc32(name.encode()) % _VALIDATION == 0 else "train"
        splits[split]["text"].append(text)
        splits[split]["name"].append(name)
    return dict(splits)
