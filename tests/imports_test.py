"""Which modules may import which."""

import ast
import functools
import sys
from pathlib import Path

FILES = sorted(Path("research").rglob("*.py")) + sorted(Path("configs").rglob("*.py"))
_NAMES = (
    "train",
    "evaluate",
    "predict",
    "generate",
    "export",
    "glue",
    "plot",
    "coefficients",
    "ladder",
    "list",
    "serve_keys",
    "capacity",
)
COMMANDS = {f"research.{name}" for name in _NAMES}


@functools.cache
def _imports(path):
    """Every module that a file imports, wherever in the file."""
    return list(_found_imports(path))


def _found_imports(path):
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


# The packages of each layer, lowest first. A package imports only from the layers below its own.
LAYERS = (
    ("base",),
    ("models", "data"),
    ("devices",),
    ("core",),
    ("solvers",),
    ("runs",),
    ("interop",),
    ("inference",),
    ("training",),
    ("analysis", "client", "compress", "preflight", "serve"),
    ("commands",),
)
LAYER = {package: number for number, packages in enumerate(LAYERS) for package in packages}


def _package(module):
    """The package that a module belongs to; None for `research` itself."""
    parts = module.split(".")
    if parts[-1] == "__main__" or (len(parts) == 2 and MODULES[module].name != "__init__.py"):
        return "commands"
    return parts[1] if len(parts) > 1 else None


def test_imports_follow_the_layers():
    for name, path in MODULES.items():
        if not name.startswith("research."):
            continue
        package = _package(name)
        for other in _own(path):
            if other.startswith("research.") and _package(other) not in (None, package):
                assert LAYER[_package(other)] < LAYER[package], f"{name} imports {other}"


def test_only_analysis_and_commands_import_configs():
    for name, path in MODULES.items():
        if name.startswith("research."):
            assert not any(own.startswith("configs") for own in _own(path)) or _package(name) in (
                "analysis",
                "commands",
            ), name


def test_models_import_only_jax_and_flax():
    for name, path in MODULES.items():
        if name.startswith("research.models"):
            assert _third_party(path) <= {
                "jax",
                "flax",
                "research",
                "typing",
                "collections",
                "functools",
                "dataclasses",
            }, name


def test_data_does_not_import_jax():
    """Nor do the modules that it imports: worker processes do not need JAX."""
    allowed = {f"research.base.{name}" for name in ("errors", "registry", "paths", "ranges", "trees")}
    for name, path in MODULES.items():
        if name.startswith("research.data"):
            assert not _third_party(path) & {"jax", "flax", "optax"}, name
            others = {own for own in _own(path) if not own.startswith("research.data")}
            assert others <= allowed | {"research.base"}, name
    for name in allowed:
        assert not _third_party(MODULES[name]) & {"jax", "flax", "optax"}, name


def test_the_client_imports_only_httpx():
    for name, path in MODULES.items():
        if name.startswith("research.client"):
            assert _third_party(path) - sys.stdlib_module_names <= {"httpx", "research"}, name
            assert all(own.startswith("research.client") for own in _own(path) - {"research"}), name


def test_configs_import_only_ml_collections():
    for name, path in MODULES.items():
        if name.startswith("configs") and _package(name) != "commands":
            assert _third_party(path) <= {"ml_collections", "research"}, name
            research = {imported for imported in _imports(path) if imported.startswith("research.")}
            assert all(imported.startswith("research.configs") for imported in research), name


def test_nothing_imports_the_commands_or_argparse():
    for name, path in MODULES.items():
        assert not _own(path) & COMMANDS or path.name == "__main__.py", name
        if name not in COMMANDS | {"research.cli", "research.runs.__main__"}:
            assert "argparse" not in _third_party(path), name


def test_only_checkpoint_imports_orbax_and_only_tfds_source_imports_tfds():
    for name, path in MODULES.items():
        assert "orbax" not in _third_party(path) or name == "research.runs.checkpoint"
        assert "tensorflow_datasets" not in _third_party(path) or name == "research.data.sources.tfds_source"


def test_only_commands_and_config_import_interop():
    """The core does not depend on where parameters come from."""
    for name, path in MODULES.items():
        if not name.startswith("research.interop"):
            uses = any(own.startswith("research.interop") for own in _own(path))
            # A folder predicts, or writes, without a run: where its parameters come from is all that it is about.
            known = {"research.api", "research.config", "research.preflight.shapes"}
            known |= {f"research.inference.{each}" for each in ("folder", "generate")}
            known |= {"research.compress.student"}  # a student starts as a training does
            assert not uses or name in COMMANDS | known, name
            assert not _third_party(path) & {"safetensors", "huggingface_hub"}, name


def test_figures_do_not_import_runs():
    allowed = {f"research.{name}" for name in ("analysis", "analysis.canvas", "analysis.curves", "base", "base.errors")}
    for name in ("canvas", "figures", "class_figures"):
        assert _own(MODULES[f"research.analysis.{name}"]) <= allowed, name


def test_heavy_frameworks_are_never_imported():
    for name, path in MODULES.items():
        assert not _third_party(path) & {"torch", "transformers", "tensorflow"}, name


def test_there_are_no_import_cycles():
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
