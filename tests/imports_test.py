"""Who may import whom."""

import ast
from pathlib import Path

import pytest

FILES = sorted(Path("research").rglob("*.py")) + sorted(Path("configs").rglob("*.py"))
SHELLS = {f"research.{name}" for name in ("train", "evaluate", "export", "glue", "plot", "coefficients", "ladder")}


def _imports(path):
    """Every module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module(path):
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for path in FILES}


def _own(path):
    return {name for name in _imports(path) if name in MODULES and name != _module(path)}


def _third_party(path):
    return {name.split(".")[0] for name in _imports(path)}


def test_models_know_jax_and_flax_only():
    for name, path in MODULES.items():
        if name.startswith("research.models"):
            assert all(own.startswith("research.models") for own in _own(path)), name
            assert _third_party(path) <= {"jax", "flax", "research", "typing", "collections", "functools"}, name


def test_data_does_not_know_jax():
    for name, path in MODULES.items():
        if name.startswith("research.data"):
            assert not _third_party(path) & {"jax", "flax", "optax"}, name
            assert _own(path) <= {m for m in MODULES if m.startswith("research.data")} | {
                "research.base.errors",
                "research.base.registry",
                "research.base.paths",
            }, name


def test_configs_know_ml_collections_only():
    for name, path in MODULES.items():
        if name.startswith("configs"):
            assert _third_party(path) <= {"ml_collections", "configs"}, name


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("research.core.step", {"research.core.state", "research.core.tasks", "research.core.metrics", "research"}),
        ("research.core.tasks", {"research.base.errors", "research.core.metrics", "research"}),
        ("research.core.metrics", set()),
        ("research.core.state", set()),
    ],
)
def test_the_core_stays_small(module, allowed):
    assert _own(MODULES[module]) <= allowed


def test_nobody_imports_the_shells_or_flags():
    for name, path in MODULES.items():
        assert not _own(path) & SHELLS, name
        if name not in SHELLS | {"research.cli"}:
            assert "argparse" not in _third_party(path), name


def test_only_checkpoint_touches_orbax_and_only_tfds_source_tfds():
    for name, path in MODULES.items():
        assert "orbax" not in _third_party(path) or name == "research.runs.checkpoint"
        assert "tensorflow_datasets" not in _third_party(path) or name == "research.data.sources.tfds_source"


def test_only_the_shells_and_config_know_interop():
    """The core trains whatever parameters it is given."""
    for name, path in MODULES.items():
        if not name.startswith("research.interop"):
            uses = any(own.startswith("research.interop") for own in _own(path))
            assert not uses or name in SHELLS | {"research.config"}, name
            assert "research.config" not in _own(path) or name in SHELLS, name
            assert not _third_party(path) & {"safetensors", "huggingface_hub"}, name


def test_only_the_shells_know_analysis_and_it_knows_no_shell():
    for name, path in MODULES.items():
        if not name.startswith("research.analysis"):
            assert not any(own.startswith("research.analysis") for own in _own(path)) or name in SHELLS, name
        if name == "research.analysis.figures":
            assert _own(path) <= {"research.analysis", "research.analysis.curves", "research.base.errors"}


def test_heavy_frameworks_are_never_needed():
    for name, path in MODULES.items():
        assert not _third_party(path) & {"torch", "transformers", "tensorflow"}, name


def test_there_are_no_circles():
    done, under_way = set(), []

    def visit(name):
        assert name not in under_way, " -> ".join([*under_way, name])
        if name not in done:
            under_way.append(name)
            for other in sorted(_own(MODULES[name]) - {"research"}):
                visit(other)
            under_way.pop()
            done.add(name)

    for name in MODULES:
        visit(name)
