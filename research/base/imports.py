"""A user's own modules: importing them registers their models, tasks, sources and transforms."""

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from research.base.errors import UserError, first_line
from research.base.paths import expanded


def import_own(modules: Iterable[str], places: Mapping[str, str] | None = None) -> dict[str, str]:
    """Imports each module, once per process -> {module: the folder from which it can be imported, or its file}.

    Args:
      modules: names such as "my_lab.models", looked up in the current directory too, or paths of .py files.
      places: what an earlier call returned; used for the modules that are not found from here.

    Raises:
      UserError: a module is not found, or importing it fails.
    """
    places = places or {}
    return {name: (_file if name.endswith(".py") else _module)(name, places.get(name)) for name in modules}


def _module(name: str, place: str | None) -> str:
    for folder in filter(None, (os.getcwd(), place)):  # appended: a folder of the user's hides no installed package
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UserError(_failed(name, error)) from error
        raise UserError(
            f"imports: there is no module {error.name!r} in {os.getcwd()} or among the installed packages; run the "
            "command in the folder that holds it, or give a path, --config.imports=FOLDER/FILE.py"
        ) from error
    except Exception as error:
        raise UserError(_failed(name, error)) from error
    return str(_root(module))


def _root(module: ModuleType) -> Path:
    """The folder that has to be in `sys.path` to import the module."""
    paths = [module.__file__] if module.__file__ else list(module.__path__)  # the latter without an __init__.py
    path = Path(paths[0]).absolute()
    is_package = hasattr(module, "__path__") and module.__file__
    return path.parents[module.__name__.count(".") + (1 if is_package else 0)]


def _file(name: str, place: str | None) -> str:
    path = expanded(name).absolute()
    if not path.is_file() and place is not None:
        path = Path(place)
    if not path.is_file():
        raise UserError(f"imports: there is no file {path}")
    unique = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"  # two files may have one name
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[unique]
            raise UserError(_failed(name, error)) from error
    return str(path)


def _failed(name: str, error: Exception) -> str:
    """Why importing failed, with the file and the line, if known, that are the user's."""
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}, line {error.lineno})"
    else:
        own = [
            (frame.f_code.co_filename, line)
            for frame, line in traceback.walk_tb(error.__traceback__)
            if not frame.f_code.co_filename.startswith("<frozen") and frame.f_code.co_filename != __file__
        ]
        own = [place for place in own if f"{os.sep}importlib{os.sep}" not in place[0]]
        where = f" ({own[-1][0]}, line {own[-1][1]})" if own else ""
    return f"imports: {name} can't be imported: {type(error).__name__}: {first_line(error)}{where}"
