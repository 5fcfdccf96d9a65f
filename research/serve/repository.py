"""Opens the models of a service, checks them, and replaces them when their runs have a better checkpoint."""

import dataclasses
import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.base.errors import UserError
from research.base.paths import expanded
from research.inference.folder import Folder, is_folder
from research.inference.generate import Generator, folder_version, is_decoder
from research.inference.model import checkpoint_step
from research.inference.samples import Records, add_predictions
from research.runs.certificate import check_drop, code_hash, is_compressed
from research.runs.rundir import RunDir
from research.serve.compute import AUTO, fastest, predictions, relative_difference
from research.serve.limits import Limits
from research.serve.model import ServedModel
from research.serve.operations import USUAL
from research.serve.splits import is_name
from research.serve.writer import Writer

log = logging.getLogger("research.serve")

# How far predictions may be from those that the run has for its sample inputs: probabilities absolutely, numbers
# relative to the largest. In float32 other batch shapes differ by 1e-6; in bfloat16, by up to 0.01 (interop/export.py).
# int8 was up to 0.073 off on SST-2's dev set (benchmarks/results/serve.md).
_CLOSE = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.15}


@dataclasses.dataclass(frozen=True)
class Certified:
    """Which compressed runs are served.

    Attributes:
      max_drop: the most points by which the metric may have fallen; None: certificates are not looked at.
      needed: whether a run that is not a compressed one needs a certificate too.
    """

    max_drop: float | None = 1.0
    needed: bool = False

    def check(self, run: RunDir | Folder | Path) -> dict[str, Any] | None:
        """The certificate of a compressed run; None for others, and where certificates are not looked at.

        Raises UserError if it is not valid, or has a larger drop.
        """
        if self.max_drop is None or not isinstance(run, RunDir) or not (self.needed or is_compressed(run)):
            return None
        try:
            return check_drop(run, self.max_drop)
        except UserError as error:
            raise UserError(f"{error}; --uncertified serves it nevertheless") from error


USUAL_CERTIFIED = Certified()


@dataclasses.dataclass(frozen=True)
class Source:
    """A model to serve: its name, which folder or checkpoint of which run it is, and what it is asked for.

    Attributes:
      writes: whether it is a decoder, which writes texts.
      certified: which certificate it needs, whenever it is loaded.
    """

    name: str
    run: RunDir | Folder | Path  # a path: the folder of a decoder
    checkpoint: str = "best"
    compute: str = "float32"
    operations: tuple[str, ...] = USUAL
    writes: bool = False
    certified: Certified = USUAL_CERTIFIED

    @classmethod
    def of(cls, text: str, **options: Any) -> "Source":
        """From "NAME=RUN" or "RUN", which is called as its folder.

        Raises UserError if it is neither a run directory nor a folder of transformers that can be served.
        """
        name, _, path = text.rpartition("=")
        folder = expanded(path)
        writes = is_decoder(folder)
        run: RunDir | Folder | Path = RunDir.open(path)
        if is_folder(folder):
            run = folder if writes else Folder.open(path)
        name = name or Path(path).resolve().name
        if not is_name(name):
            raise UserError(f"the model's name {name!r} is not of letters, digits and . _ -; give one: NAME={path}")
        return cls(name, run, writes=writes, **options)

    def version(self) -> str:
        """The version of the folder, or the step of the checkpoint, now. Raises UserError if there is none."""
        if isinstance(self.run, RunDir):
            return str(checkpoint_step(self.run, self.checkpoint))
        return folder_version(self.run) if isinstance(self.run, Path) else self.run.version


def sources(
    texts: Sequence[str], variants: Sequence[str] = (), certified: Certified = USUAL_CERTIFIED, **options: Any
) -> list[Source]:
    """The models of --workdir and --variant flags, with the options of `Source`.

    Raises UserError if two have the same name, or a compressed run is not `certified`.
    """
    needed = dataclasses.replace(certified, needed=True)
    found = [Source.of(text, certified=certified, **options) for text in texts]
    found += [Source.of(text, certified=needed, **options) for text in variants]
    for source in found:
        source.certified.check(source.run)
    names = [source.name for source in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two models are called {name!r}; name them: --workdir=NAME=RUN")
    return found


class Repository:
    """Loads models in a thread, and again when there is another checkpoint.

    Attributes:
      states: what happens with each model: "loading", "ready", or an error.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        limits: Limits,
        install: Callable[[ServedModel | Writer], None],
        *,
        devices: Sequence[jax.Device],
        poll_seconds: float = 5.0,
    ):
        self.states = {source.name: "loading" for source in sources}
        self._sources = list(sources)
        self._limits = limits
        self._install = install
        self._devices = devices
        self._poll_seconds = poll_seconds
        self._versions: dict[str, str] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="repository", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        for source in self._sources:
            self._load_if_new(source)
        # What is there now stays: collections of garbage, in which nothing is answered, need not look at it.
        gc.collect()
        gc.freeze()
        while not self._stopped.wait(self._poll_seconds):
            for source in self._sources:
                self._load_if_new(source)

    def _load_if_new(self, source: Source) -> None:
        try:
            version = source.version()
            if self._versions.get(source.name) == version:
                return
            _check_certificate(source)
            self._install(self._load_writer(source) if source.writes else self._load(source))
            self._versions[source.name] = version
            self.states[source.name] = "ready"
        except Exception as error:  # a run that can't be read must not end the service; the last model stays
            if source.name not in self._versions:
                self.states[source.name] = f"{type(error).__name__}: {error}"
            log.error("model %s can't be loaded: %s", source.name, error)
            self._stopped.wait(self._poll_seconds)

    def _load_writer(self, source: Source) -> Writer:
        began = time.perf_counter()
        path = source.run if isinstance(source.run, Path) else source.run.path
        compute = "float32" if source.compute == AUTO else source.compute
        if source.compute == AUTO:
            log.info("model %s: computes in float32; name another --compute for a decoder", source.name)
        writer = Writer(source.name, Generator.open(path, source.checkpoint, compute=compute), self._limits)
        for what in writer.warm_up():
            log.info("model %s: compiled for %s", source.name, what)
        writer.start()
        log.info("model %s, version %s: ready after %.1f s", writer.name, writer.version, time.perf_counter() - began)
        return writer

    def _load(self, source: Source) -> ServedModel:
        began = time.perf_counter()
        assert not isinstance(source.run, Path)
        model = self._open(source)
        for number, (shape, seconds) in enumerate(model.warm_up(self._limits), 1):
            log.info("model %s: batch shape %d, %s: %.1f ms", source.name, number, shape, 1000 * seconds)
        check(model, source.run)
        log.info("model %s, version %s: ready after %.1f s", model.name, model.version, time.perf_counter() - began)
        return model

    def _open(self, source: Source) -> ServedModel:
        assert not isinstance(source.run, Path)
        run = source.run

        def make(compute: str) -> ServedModel:
            return ServedModel.open(
                source.name,
                run,
                source.checkpoint,
                compute=compute,
                operations=source.operations,
                devices=self._devices,
            )

        return fastest(source.name, make, self._limits) if source.compute == AUTO else make(source.compute)


def _check_certificate(source: Source) -> None:
    """Warns if other code than this measured a compressed run. Raises UserError if it may not be served as it is."""
    certificate = source.certified.check(source.run)
    if certificate is not None and certificate.get("code") != code_hash():
        log.warning(
            "model %s: its certificate is of other code than serves it, such as another version; compress the run "
            "again to measure it with this code",
            source.name,
        )


def check(model: ServedModel, run: RunDir | Folder) -> None:
    """Compares the model's predictions for the run's sample inputs with those that the run has for its version.

    Where a run has none for this version, they are added, if the model computes in float32 and the run can be written.
    Raises UserError if they differ.
    """
    samples = model.samples
    if samples is None or (isinstance(run, Folder) and model.version not in samples.predictions):
        log.warning("model %s: %s has no sample inputs to check it by", model.name, run.path)
        return
    found = predictions(model)
    if isinstance(run, RunDir) and model.version not in samples.predictions:
        names = ("prediction", "scores")
        records = [{name: values[name].tolist() for name in names if name in values} for values in found]
        try:
            if model.compute == "float32":
                add_predictions(RunDir(run.path), records, int(model.version))  # a writer, which readers are not
        except OSError:
            log.warning("model %s: %s can't be written; its sample predictions are not kept", model.name, run.path)
        return
    close = max(_CLOSE.get(dtype, 0.0) for dtype in (model.compute, samples.dtype))
    _compare(model.name, samples.predictions[model.version], found, close)


def _compare(name: str, expected: Records, found: Sequence[Mapping[str, np.ndarray]], close: float) -> None:
    for i, (record, values) in enumerate(zip(expected, found, strict=True)):
        what = "scores" if "scores" in record else "prediction"
        difference = relative_difference(np.asarray(record[what]), values[what])
        if not difference <= close:
            raise UserError(
                f"model {name}: the {what} of sample input {i} differ by {difference:.2g} from those of the run, and "
                f"rounding explains at most {close}: the checkpoint or this machine's compiler is not that of the run"
            )
