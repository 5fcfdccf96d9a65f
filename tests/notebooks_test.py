"""The notebooks run without errors and are stored without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted(Path("notebooks").glob("*.ipynb"))


def _execute(name, *replaced):
    """Runs a notebook, in which the pairs `replaced` make the work less -> what it prints."""
    notebook = nbformat.read(Path("notebooks") / name, as_version=4)
    for old, new in replaced:
        cell = next(cell for cell in notebook.cells if old in cell.source)
        cell.source = cell.source.replace(old, new)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": "notebooks"}}).execute()
    return "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if cell.outputs
    )


def test_notebooks_were_found():
    assert len(NOTEBOOKS) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_no_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_gradient_descent():
    assert "closed form:" in _execute("00_gradient_descent.ipynb")


@pytest.mark.slow
def test_linear_regression():
    assert "closed form:" in _execute("01_linear_regression.ipynb")


@pytest.mark.slow
def test_bert():
    # .ci/run trains this config whole from the command line.
    text = _execute("02_bert_sst2.ipynb", ('sst2:embedded")', 'sst2:embedded", ["train.epochs=0.5"])'))
    assert "completed at step" in text
    assert "sentences are right" in text


@pytest.mark.slow
def test_own_data():
    text = _execute("03_own_data.ipynb")
    assert text.count("completed at step") == 3
    assert "label: cultivar (3 classes: class_0 " in text
    assert "food" in text
