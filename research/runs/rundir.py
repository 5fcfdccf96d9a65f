"""The run directory and its files; no other module knows their names."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.base.errors import UserError
from research.base.paths import atomic_write, local
from research.base.registry import nearest
from research.base.trees import jsonable, to_json
from research.runs.saved_config import check_jsonable, completed, differences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOCK = ".lock"
_EXTENSIONS = "extensions"  # the key of config.json that is not one of the config


def _file_name(name: str) -> str:
    """A name with a part of a split, made safe for shells and file systems: "test[:-5%]" -> "test.to-minus5pct".

    No split has a dot in its name, so the result is unique.
    """

    def bounds(match: re.Match[str]) -> str:
        given = ((word, bound) for word, bound in zip(("from", "to"), match.groups(), strict=True) if bound)
        return "".join(f".{word}-{bound.replace('-', 'minus').replace('%', 'pct')}" for word, bound in given)

    return re.sub(r"\[([^\[\]:]*):([^\[\]:]*)\]", bounds, name)


class RunDir:
    """Paths and files of one run. Only the process with `writer` True writes."""

    def __init__(self, path: str | Path, *, writer: bool = True):
        self.path = local(path).absolute()
        self.writer = writer
        self.checkpoints = self.path / "checkpoints"
        self.assets = self.path / "assets"
        self.tensorboard = self.path / "tensorboard"
        self.plots = self.path / "plots"
        self.refits = self.path / "refits"  # runs of the same config except for a key or two
        self._lock: int | None = None
        self._made: list[Path] | None = None  # by `start`, for a new run that has not been kept
        self._config = self.path / "config.json"
        self._metrics = self.path / "metrics.jsonl"
        self._summary = self.path / "summary.json"
        self._latency = self.path / "latency.json"
        self._own_code = self.assets / "own_code.json"
        self._samples = self.assets / "samples.json"

    @classmethod
    def open(cls, path: str | Path, *, writer: bool = False) -> "RunDir":
        """Opens an existing run. Raises UserError if `path` is not a run directory."""
        run = cls(path, writer=writer)
        if not run.is_run:
            raise UserError(f"{run.path} is not a run directory: it has no config.json{run.similar}")
        return run

    @property
    def similar(self) -> str:
        """A hint for an error message, "; did you mean 'plan'?": the runs beside it that are called like it, if any."""
        with contextlib.suppress(OSError):
            beside = [path.parent.name for path in self.path.parent.glob("*/config.json")]
            hint = nearest(self.path.name, beside, whole=True)
            return f"; {hint}" if hint.startswith("did") else ""
        return ""

    def start(self, config: Mapping[str, Any]) -> None:
        """Makes the directory, or resumes the run that it holds.

        Raises UserError, without changing anything, if it can't be written, holds a run of another config or other
        files, or if JSON can't represent the config.
        """
        check_jsonable(config)
        if self.is_run:
            # A run that failed before its first step has nothing to lose: another config may replace it.
            if self.checkpoints.is_dir() or self._metrics.is_file():
                self._check_same(config)
        elif os.path.isdir(self.path) and any(self.path.iterdir()) and self.writer:
            raise UserError(f"workdir {self.path} is not empty and not a run directory; choose another --workdir")
        if not self.writer:
            return
        if not self.is_run:
            self._made = [folder for folder in (self.path, *self.path.parents) if not os.path.exists(folder)]
        try:
            for folder in (self.path, self.assets, self.plots):
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            self.discard()
            raise UserError(f"workdir {self.path} can't be written ({error.strerror}); choose another") from error
        self._lock_or_refuse()
        if not (self.checkpoints.is_dir() or self._metrics.is_file()):
            for path in self.assets.iterdir():
                path.unlink()
            self._write(self._config, jsonable(config))

    def _lock_or_refuse(self) -> None:
        """Locks the directory until `close` or the process ends, as two trainings in it would overwrite each other."""
        self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise UserError(f"workdir {self.path} is in use by another training; wait, or choose another") from error

    def keep(self) -> None:
        """From now on `discard` does nothing: training begins."""
        self._made = None

    def discard(self) -> bool:
        """Removes a new run that was not kept, and the folders made for it -> whether it was one."""
        if self._made is None:
            return False
        for path in self.path.iterdir() if os.path.isdir(self.path) else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in self._made:  # innermost first; another run may be in an outer one by now
            with contextlib.suppress(OSError):
                folder.rmdir()
        return True

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _check_same(self, config: Mapping[str, Any]) -> None:
        differing = differences(self.config(), config)
        if differing:
            more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
            raise UserError(
                f"workdir {self.path} holds another config's run: {'; '.join(differing[:3])}{more}; "
                "nothing was changed, choose another --workdir"
            )

    @property
    def is_run(self) -> bool:
        """Whether the directory holds a run."""
        return os.path.isfile(self._config)  # also False for an invalid path

    @property
    def changed(self) -> float:
        """When the run's metrics, summary or config last changed, in seconds since the epoch."""
        return max(path.stat().st_mtime for path in (self._config, self._metrics, self._summary) if path.is_file())

    @property
    def in_use(self) -> bool:
        """Whether a training holds the lock of the directory."""
        try:
            lock = os.open(self.path / _LOCK, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(lock)
        return False

    @property
    def resumable(self) -> bool:
        """Whether the directory holds a run with a checkpoint."""
        return self.is_run and any(path.name.isdigit() for path in self.checkpoints.glob("*"))

    def config(self) -> dict[str, Any]:
        """The resolved config. Raises UserError if it can't be read."""
        saved = self._read(self._config)
        saved.pop(_EXTENSIONS, None)
        return completed(saved)

    def extensions(self) -> list[dict[str, Any]]:
        """What `extend` recorded, in order."""
        found: list[dict[str, Any]] = self._read(self._config).get(_EXTENSIONS, [])
        return found

    def extend(self, config: Mapping[str, Any], extension: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Replaces the config of a finished run by one of another length, and its summary by one that is not finished.

        `extension`, {"step", "unit", "length", "by"}, says at which step the run was finished, and which length, in
        steps or epochs, it had and gets in addition. Raises UserError if the run is in use.
        """
        self._lock_or_refuse()
        try:
            extensions = [*self.extensions(), dict(extension)]
            # In this order: a run that is not finished, with its old length, is resumed and finishes again.
            self.write_summary(summary)
            self._write(self._config, {**jsonable(config), _EXTENSIONS: extensions})
        finally:
            self.close()

    def check_one_seed(self, what: str) -> None:
        """Raises UserError for a run of several seeds, as `what` needs the parameters of one."""
        config = self.config()
        seeds = config["train"]["seeds"]
        if seeds is not None:
            raise UserError(
                f"{self.path} is a run of {seeds} seeds and {what} takes one: train it again with "
                f"--config.seed={config['seed']} and without train.seeds, which gives that seed's run up to rounding"
            )

    def write_own_code(self, config_file: Path | None, places: Mapping[str, str]) -> None:
        """Records the config file that registers names, if it does, and where the config's `imports` are."""
        if self.writer and (config_file or places):
            self.assets.mkdir(exist_ok=True)
            self._write(self._own_code, {"config_file": config_file and str(config_file), "imports": dict(places)})

    def own_code(self) -> tuple[Path | None, dict[str, str]]:
        """What `write_own_code` recorded: the config file, and the place of each of `imports`."""
        older = self.assets / "config_file.txt"  # of runs before `imports` existed
        if self._own_code.is_file():
            saved = self._read(self._own_code)
            return saved["config_file"] and Path(saved["config_file"]), saved["imports"]
        return (Path(older.read_text()) if older.is_file() else None), {}

    def samples(self) -> dict[str, Any] | None:
        """What `write_samples` wrote; None if it was not called."""
        return self._read(self._samples) if self._samples.is_file() else None

    def write_samples(self, samples: Mapping[str, Any]) -> None:
        """Writes sample inputs with their predictions; see `research.inference.samples`."""
        if self.writer:
            self._write(self._samples, samples)

    def summary(self) -> dict[str, Any] | None:
        """The last summary, if the run has ever ended."""
        return self._read(self._summary) if self._summary.is_file() else None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        if self.writer:
            self._write(self._summary, summary)

    def latency(self) -> dict[str, float] | None:
        """The latencies written by `write_latency`, if any."""
        return self._read(self._latency) if self._latency.is_file() else None

    def write_latency(self, milliseconds: Mapping[str, float]) -> None:
        """Writes the evaluation latencies, by the number of examples."""
        if self.writer:
            self._write(self._latency, milliseconds)

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        if self.writer:
            with self._metrics.open("a") as file:
                file.write(to_json(line) + "\n")

    def metrics(self, split: str | None = None) -> list[dict[str, Any]]:
        """The metric lines (of `split`), in order. A last line truncated by a crash is skipped."""
        if not self._metrics.is_file():
            return []
        lines = []
        for text in self._metrics.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if split in (None, line["split"]):
                lines.append(line)
        return lines

    def truncate_metrics(self, step: int, evaluated: Collection[str]) -> None:
        """Drops the lines that a run resumed at `step` is about to write again.

        These are all later lines and, at `step`, the evaluations of splits other than those in `evaluated`.
        """
        if self.writer and self._metrics.is_file():
            kept = [
                to_json(line) + "\n"
                for line in self.metrics()
                if line["step"] < step or (line["step"] == step and line["split"] in ("train", *evaluated))
            ]
            atomic_write(self._metrics, "".join(kept))

    def write_predictions(
        self, name: str, records: Iterable[Mapping[str, Any]], evaluation: Mapping[str, Any] | None = None
    ) -> Path:
        """Writes predictions to predictions/<name>.jsonl, one JSON object per line.

        `evaluation` describes them, {"step", "split", "metrics"}, and is written to predictions/<name>.metrics.json.
        """
        path, about = self._predictions(name)
        if self.writer:
            path.parent.mkdir(exist_ok=True)
            about.unlink(missing_ok=True)  # so that it never describes other predictions
            atomic_write(path, "".join(to_json(record) + "\n" for record in records))
            if evaluation is not None:
                self._write(about, evaluation)
        return path

    def evaluation(self, name: str) -> dict[str, Any] | None:
        """The `evaluation` that `write_predictions` was given for the predictions `name`; None if there are none."""
        path, about = self._predictions(name)
        return self._read(about) if about.is_file() and path.is_file() else None

    def predictions(self, name: str) -> list[dict[str, Any]]:
        """The records written by `write_predictions`. Raises UserError if they can't be read."""
        path, _ = self._predictions(name)
        try:
            return [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be read ({error})") from error

    def write_plot(self, name: str, figure: "Figure", numbers: Mapping[str, Any]) -> Path:
        """Writes a figure to plots/<name>.png and its numbers to plots/<name>.json; returns the path of the former."""
        path = self.plots / f"{_file_name(name)}.png"
        self.plots.mkdir(exist_ok=True)
        figure.savefig(path, dpi=120)
        self._write(path.with_suffix(".json"), numbers)
        return path

    def _predictions(self, name: str) -> tuple[Path, Path]:
        folder, name = self.path / "predictions", _file_name(name)
        return folder / f"{name}.jsonl", folder / f"{name}.metrics.json"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be read ({error})") from error

    def _write(self, path: Path, value: Any) -> None:
        atomic_write(path, to_json(value, indent=2) + "\n")
