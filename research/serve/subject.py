"""What `research.capacity` measures: a model as the service runs it, some inputs, and the cores that it has."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from research.base.errors import UserError
from research.base.paths import expanded
from research.base.ranges import Range
from research.data.examples import Columns
from research.serve import shapes
from research.serve.limits import Limits
from research.serve.model import ServedModel
from research.serve.rehearsal import Offered, Rehearsal, rehearse
from research.serve.repository import Source
from research.serve.server import REPLICAS, prepare_service, usual_replicas
from research.serve.shapes import Shape

_PREDICT = "predict"
_MOST_INPUTS = 2000  # of a file, taken from all over it

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A compiled model.

    Attributes:
      columns: raw inputs; `lengths` are their items [N].
      description: what it is, in one line, with where the inputs are from.
      replicas: the batches that each device computes at once.
      cores: those that this process may use.
      client_cores: those of the clients, which are not among them if there are others.
    """

    model: ServedModel
    columns: Columns
    lengths: np.ndarray
    description: str
    limits: Limits
    replicas: int
    cores: int
    client_cores: set[int]

    @classmethod
    def open(
        cls,
        workdir: str,
        *,
        texts: str | None,
        cores: int | None,
        replicas: int | None,
        checkpoint: str,
        compute: str,
        say: Say,
        limits: Limits | None = None,
    ) -> "Subject":
        """Opens and compiles a model, with this process on `cores` cores. Call it before JAX starts its devices.

        Raises UserError if the run can't be served or makes no predictions, the file has no texts or the model reads
        something else, there are no inputs, or the cores or replicas are too few or too many.
        """
        if replicas is not None and replicas not in REPLICAS:
            raise UserError(f"--replicas is {replicas}; it must be {REPLICAS}")
        found = Source.of(workdir, checkpoint=checkpoint, compute=compute)
        if found.writes:
            raise UserError(
                f"{workdir} is a decoder, whose texts take as long as their tokens; research.capacity measures models "
                "that predict: see benchmarks/generate_overload.py for one under load"
            )
        lines = _lines(texts) if texts else None
        assert not isinstance(found.run, os.PathLike)
        others = _use(cores)
        prepare_service()
        name = "model"
        model = ServedModel.open(name, found.run, checkpoint, compute=compute)
        if model.operation != _PREDICT:
            raise UserError(f"{workdir} answers {model.operation}, not {_PREDICT}; a classifier or a regression does")
        columns, source = _inputs(model, lines, texts)
        lengths = np.array([part.length for part in model.encode(columns)])
        limits = limits or Limits()
        for shape, seconds in model.warm_up(limits):
            say(f"compiled for {_shown(shape)}: {1000 * seconds:.1f} ms")
        at_once = replicas or (usual_replicas(model.platform) if len(_allowed()) > 1 else 1)
        unit = model.signature.limits.get("unit")
        average = f" of {lengths.mean():.1f} {unit} on average, at most {lengths.max()}" if unit else ""
        text = (
            f"{workdir}, version {model.version}, in {model.compute} on {model.device_count} {model.platform} "
            f"device{'s' if model.device_count > 1 else ''} with {len(_allowed())} cores, {at_once} batches at once; "
            f"{len(lengths)} {source}{average}"
        )
        return cls(model, columns, lengths, text, limits, at_once, len(_allowed()), others)

    @property
    def workers(self) -> int:
        """The batches that are computed at once, on all devices."""
        return self.replicas * self.model.device_count

    def choose(self, lengths: Sequence[int]) -> tuple[Shape, list[int]]:
        """The shape of the next batch for inputs of these lengths, and which are in it, as the service chooses."""
        return self._choose(tuple(lengths))

    @functools.cached_property
    def _choose(self) -> Callable[[tuple[int, ...]], tuple[Shape, list[int]]]:
        @functools.lru_cache(maxsize=2**16)
        def chosen(lengths: tuple[int, ...]) -> tuple[Shape, list[int]]:
            shape, members = shapes.choose(lengths, self.model.programs.seconds)
            return shape, sorted(members[members >= 0].tolist())

        return chosen

    def rehearse(self, seconds: float, say: Say) -> Rehearsal:
        """What it takes, with `seconds` for each load. Raises UserError if requests fail."""
        for found in rehearse(
            self.model,
            self.columns,
            self.limits,
            replicas=self.replicas,
            seconds=seconds,
            client_cores=self.client_cores,
        ):
            if isinstance(found, Rehearsal):
                return found
            say(_progress(found))
        raise AssertionError("a rehearsal ends with what was measured")


def _progress(found: Offered) -> str:
    load = found.load
    what = f"{load.at_once} requests at once" if load.at_once else f"{load.rate:.0f} requests/s at random times"
    p50, p99 = 1000 * np.quantile(found.latencies, [0.5, 0.99])
    refused = f", {found.refused} refused" if found.refused else ""
    return f"{what}: {found.rate:.0f} answers/s, p50 {p50:.1f}, p99 {p99:.1f} ms{refused}"


def _shown(shape: Shape) -> str:
    rows = f"{shape.rows} row{'s' if shape.rows > 1 else ''}"
    return f"{rows} of {shape.length}" if shape.length else rows


def _allowed() -> set[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _use(cores: int | None) -> set[int]:
    """Limits this process to some cores -> those for the clients: the others, or all if there are no others."""
    here = sorted(_allowed())
    count = len(here) if cores is None else cores
    known = Range(1, len(here), integer=True)
    if count not in known:
        raise UserError(f"--cores_per_replica is {count}; it must be {known}, the cores that this process may use here")
    if count == len(here):
        return set(here)
    if not hasattr(os, "sched_setaffinity"):
        raise UserError(f"--cores_per_replica is {count}; this system can't limit a process to cores: leave it out")
    os.sched_setaffinity(0, here[:count])
    return set(here[count:])


def _lines(path: str) -> list[str]:
    try:
        lines = [line for line in expanded(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts={path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    if not lines:
        raise UserError(f"--texts={path} has no texts; write one in each line")
    return [lines[i] for i in np.linspace(0, len(lines) - 1, min(len(lines), _MOST_INPUTS)).astype(int)]


def _inputs(model: ServedModel, lines: Sequence[str] | None, path: str | None) -> tuple[dict[str, Any], str]:
    """Raw inputs by column, and what they are."""
    signature = model.signature
    if lines is not None:
        if signature.kind not in ("text", "text_or_pair") or len(signature.required) != 1:
            names = ", ".join(signature.inputs)
            raise UserError(
                f"--texts={path} has texts; the model reads {signature.kind} ({names}): leave --texts out to use the "
                "run's sample inputs"
            )
        columns: dict[str, Any] = {name: [None] * len(lines) for name in signature.inputs}
        return columns | {signature.required[0]: list(lines)}, f"texts of {path}"
    if model.samples is None:
        raise UserError(
            "the run has no sample inputs (assets/samples.json), as it is from before runs kept them: give --texts, or "
            "python -m research.train --workdir=RUN --extend=1 adds them"
        )
    return dict(model.samples.columns), "sample inputs of the run (real ones may be longer or larger)"
