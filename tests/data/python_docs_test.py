import subprocess
import sys

import pytest

from research.base.errors import UserError
from research.data.sources import python_docs


def test_docstrings_are_in_source_order():
    source = b'''"""Of the module."""
class A:
    """Of a class."""
    def method(self):
        """Of a method."""
        def inner():
            """Of an inner function."""
async def f():
    """Of a function."""
    "not a docstring"
if True:
    def g(): "Of g."
'''
    assert list(python_docs._docstrings(source)) == [
        "Of the module.",
        "Of a class.",
        "Of a method.",
        "Of an inner function.",
        "Of a function.",
        "Of g.",
    ]


@pytest.mark.extended
def test_corpus_is_large_and_has_no_duplicates():
    found = python_docs.documents()
    assert sum(map(len, found.values())) > 1_200_000
    assert {"topic for", "module json/__init__.py", "module heapq.py"} <= found.keys()
    parts = {part for name in found for part in name.removeprefix("module ").split("/")}
    assert not parts & {"test", "tests", "site-packages", "_pydecimal.py", "_pytest"}
    assert found["module heapq.py"].startswith("Heap queue algorithm")
    splits = python_docs.python_docs()
    names = [name for columns in splits.values() for name in columns["name"]]
    assert sorted(names) == sorted(found)
    share = sum(map(len, splits["validation"]["text"])) / sum(map(len, found.values()))
    assert 0.05 < share < 0.2


@pytest.mark.extended
def test_corpus_is_deterministic():
    """Also in another process, with another hash seed."""
    code = (
        "from research.data.sources.python_docs import python_docs; from research.data.load import _fingerprint as f; "
    )
    other = subprocess.run([sys.executable, "-c", code + "print(f(python_docs()))"], capture_output=True, text=True)
    from research.data.load import _fingerprint

    assert other.stdout.strip() == _fingerprint(python_docs.python_docs())


def test_python_without_documentation_is_an_error(monkeypatch):
    python_docs.documents.cache_clear()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UserError, match=r"no pydoc_data\.topics"):
        python_docs.documents()
