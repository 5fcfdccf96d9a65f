"""Common parts of the command-line shells: flags, errors, exit codes."""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from research.base.errors import UserError
from research.base.registry import ALIASES, nearest
from research.devices.platform import prepare_process


class Parser(argparse.ArgumentParser):
    """The flags of `python -m research.NAME`; all shells have --debug. Raises UserError for invalid arguments."""

    def __init__(self, name: str, description: str, **options: Any):
        super().__init__(prog=f"python -m research.{name}", description=description, allow_abbrev=False, **options)
        self.add_argument("--debug", action="store_true", help="show the stack trace of an error")

    def error(self, message: str) -> NoReturn:  # in one line, without argparse's usage
        raise UserError(f"{message}; see --help")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of commands that read a run: the run directory and the checkpoint."""
    parser.add_argument("--workdir", help="the run directory (required)")
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"), help="the checkpoint (default: last)")


def add_distributed_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several processes (one per host; on Cloud TPU --distributed alone suffices)")
    group.add_argument(
        "--distributed", action="store_true", help="join the other processes of a cluster that JAX detects"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="the address of process 0, if JAX cannot detect it")
    group.add_argument("--processes", type=int, help="the number of processes")
    group.add_argument("--process_id", type=int, help="the index of this process, from 0")


def start_distributed(arguments: argparse.Namespace) -> None:
    """Joins the other processes, if requested. Must be called before JAX initializes its devices."""
    if not (arguments.distributed or arguments.coordinator):
        if arguments.processes is not None or arguments.process_id is not None:
            raise UserError("--processes and --process_id need --coordinator=HOST:PORT, the address of process 0")
        return
    if not arguments.workdir:
        raise UserError("several processes need the same --workdir, on a shared file system")
    from research.devices.processes import join

    join(arguments.coordinator, arguments.processes, arguments.process_id)


def parse(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    *,
    required: tuple[str, ...],
    positive: tuple[str, ...] = (),
    passed_on: str | None = None,
) -> tuple[argparse.Namespace, list[str]]:
    """Parses the flags -> their values, and unchanged those that begin with `passed_on`.

    Raises UserError for an unknown flag, suggesting the nearest one, for a missing one of `required`, and for one of
    `positive` that is below 1.
    """
    arguments, others = parser.parse_known_args(argv)
    known = [flag for action in parser._actions for flag in action.option_strings]
    for other in others:
        if passed_on and other.startswith(passed_on) and "=" in other:
            continue
        if passed_on and other.startswith(passed_on):
            raise UserError(f"{other} has no value; write {other}=VALUE, with an equals sign")
        name = other.split("=")[0]
        if passed_on and "." in name:
            raise UserError(f"unknown flag {name!r}; config keys are written {passed_on}{name.lstrip('-')}=VALUE")
        raise UserError(f"unknown flag {name!r}; {_hint(name, known, passed_on)}")
    for name, value in vars(arguments).items():
        if value == "" or (isinstance(value, list) and "" in value):  # e.g. from an unset shell variable
            raise UserError(f"--{name} is empty; give it a value or leave it out")
    for name in required:
        if getattr(arguments, name) is None:
            raise UserError(f"--{name} is missing; see --help")
    for name in positive:
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    return arguments, others


def _hint(name: str, known: list[str], passed_on: str | None) -> str:
    """The nearest flag, or in a shell that takes overrides, the config keys for which the name may be an alias."""
    meant = ALIASES.get(name.lstrip("-").lower().replace("-", "_"), ())
    if passed_on and any("." in key for key in meant):  # the others are not keys, but names of values
        return f"did you mean {' or '.join(repr(passed_on + key) for key in meant)}?"
    hint = nearest(name, known)
    return f"{hint}; config keys are written {passed_on}KEY=VALUE" if passed_on and hint.startswith("known") else hint


# Packages whose name differs from their module's, and those that only an extra of pyproject.toml installs.
_PACKAGES = {
    "PIL": "pillow",
    "absl": "absl-py",
    "array_record": "array-record",
    "ml_collections": "ml-collections",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
}
_EXTRAS = {
    **dict.fromkeys(("torch", "transformers"), "parity"),
    **dict.fromkeys(("fastapi", "prometheus_client", "pydantic", "uvicorn"), "serve"),
    **dict.fromkeys(("ipykernel", "nbclient", "nbformat", "notebook"), "notebooks"),
}
_OWN = ("benchmarks", "configs", "research", "tests")


def _missing_package(error: BaseException | None) -> str | None:
    """How to install a package that can't be imported, in one line; None for a module of this project."""
    while isinstance(error, ModuleNotFoundError) and not error.name:  # such as JAX's, which is raised from jaxlib's
        error = error.__cause__
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    module = error.name.split(".")[0]
    if module in _OWN:
        return None
    what = f"'.[{_EXTRAS[module]}]'" if module in _EXTRAS else "."
    return f"the package {_PACKAGES.get(module, module)} is not installed: pip install -e {what}"


def _missing_platform(error: Exception) -> str | None:
    """How to fix a JAX_PLATFORMS that JAX can't initialize, in one line; None for any other error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    asked = os.environ.get("JAX_PLATFORMS")
    if not asked or not frame.f_code.co_filename.endswith("xla_bridge.py"):
        return None
    extra = {"cuda": "gpu", "gpu": "gpu", "tpu": "tpu"}.get(asked.split(",")[0])
    needs = f"it needs the hardware and its package: pip install -e '.[{extra}]'" if extra else "unset it"
    return f"JAX_PLATFORMS={asked} is unavailable here; {needs}"


def run(main: Callable[[], int]) -> None:
    """Runs a shell and exits: 0; 2 with one line for a user error; 130 after Ctrl-C. Bugs show their stack trace."""
    # Hides the logs of native libraries, unless the user has set their level. Their errors too: XLA raises its own, and
    # logs one for each program kept in the cache on processors that it tunes for, where there is none.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        prepare_process()
        sys.exit(main())
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except (ModuleNotFoundError, RuntimeError, AssertionError) as error:
        missing = _missing_package(error) if isinstance(error, ModuleNotFoundError) else _missing_platform(error)
        if missing is None or "--debug" in sys.argv:
            raise
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        sys.stdout = None  # type: ignore[assignment]  # else Python writes what is left of it, and fails again
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
