"""Checkpoints: the one place that touches Orbax.

A run keeps its last state and its best one by the config's metric. A state is saved before it is evaluated, so that a
failed evaluation does not lose training; its metric is recorded afterwards. Saving is asynchronous: the arrays are
copied, then written while training continues; `restore` never sees a checkpoint whose write was interrupted.
"""

import contextlib
import dataclasses
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from research.base.errors import UserError, first_line
from research.base.paths import atomic_write
from research.core.state import TrainState, unbiased

# Orbax's INFO messages and its warnings are meant for its developers.
logging.getLogger("absl").setLevel(logging.WARNING)


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run. Together with the state, this is all that a run needs to resume.

    step: updates done; position: rows of the training stream consumed; history: (step, ranking metric) of every
    evaluation so far.
    """

    step: int = 0
    position: int = 0
    history: tuple[tuple[int, float], ...] = ()

    def after(self, rows: int, most: int | None) -> "Progress":
        """The progress after one more step on `rows` rows; `most` is the limit of rows in the whole run."""
        position = self.position + rows
        return dataclasses.replace(self, step=self.step + 1, position=position if most is None else min(position, most))

    @property
    def is_evaluated(self) -> bool:
        """Whether the history has a value for this step."""
        return self.step in dict(self.history)

    def evaluated(self, value: float) -> "Progress":
        """The progress with the value of an evaluation at this step, unless there is one already."""
        if self.is_evaluated:
            return self
        return dataclasses.replace(self, history=(*self.history, (self.step, value)))


# Orbax finds a checkpoint's arrays by globbing its unescaped path, and TensorStore treats a backslash as a slash.
_SPECIAL_CHARACTERS = frozenset("[]*?\\")


@contextlib.contextmanager
def _path_for_orbax(folder: Path) -> Iterator[Path]:
    """`folder`, or if its path has special characters a temporary symlink to it whose path has none.

    Under a path with such characters Orbax would report success but write a checkpoint without arrays.
    """
    if not _SPECIAL_CHARACTERS.intersection(str(folder)):
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="research-checkpoints-") as temporary:
        link = Path(temporary) / "checkpoints"
        link.symlink_to(folder, target_is_directory=True)
        yield link


@dataclasses.dataclass(frozen=True)
class _Preserved:
    """A preservation policy for Orbax: keeps the existing steps that `needed` selects."""

    needed: Callable[[Sequence[int]], set[int]]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        needed = self.needed([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in needed for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run directory. Use as a context manager: leaving it waits for the last write."""

    def __init__(self, folder: Path, *, metric: str, mode: str, writable: bool = True):
        """`metric` names the validation metric that ranks checkpoints; `mode` is "max" or "min".

        With `writable`, partial files of an earlier crash are removed, so only one process tree may open it so.
        """
        self._folder = folder.absolute()
        self._metric = metric
        self._sign = {"max": 1.0, "min": -1.0}[mode]
        self._values: dict[int, float] = {}  # the metric by step
        self._cleanup = contextlib.ExitStack()
        self._checkpointer = ocp.training.Checkpointer(
            self._cleanup.enter_context(_path_for_orbax(self._folder)),
            preservation_policy=_Preserved(self._needed),
            cleanup_tmp_directories=writable,
        )
        self._ranking = self._folder / "ranking.json"
        self._values |= self._read_values()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        with self._cleanup:
            self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def best_step(self) -> int | None:
        """The step with the best metric, the last one if tied; None if none was evaluated."""
        return self._best(self.steps)

    def step(self, which: str) -> int:
        """The step of the "last" or the "best" checkpoint. Raises UserError if there is none."""
        step = self.best_step if which == "best" else max(self.steps, default=None)
        if step is None:
            raise UserError(f"{self._folder} has no {which} checkpoint yet")
        return step

    def save(self, state: TrainState, progress: Progress) -> None:
        """Starts saving the state, unless this step is saved already."""
        if progress.step in self.steps:
            return
        self._checkpointer.save_async(
            progress.step,
            state,
            force=True,
            custom_metadata={
                "position": progress.position,
                "history": [list(pair) for pair in progress.history],
            },
        )

    def rank(self, progress: Progress) -> None:
        """Records the metric of the evaluations so far, and removes the checkpoints that are no longer needed."""
        self._values |= dict(progress.history)
        if jax.process_index() == 0:
            atomic_write(self._ranking, json.dumps(self._values))
        steps = self.steps
        for step in set(steps) - self._needed(steps):
            self._checkpointer.delete(step)

    def _needed(self, steps: Sequence[int]) -> set[int]:
        """The last and the best of these steps."""
        return {step for step in (max(steps, default=None), self._best(steps)) if step is not None}

    def _best(self, steps: Iterable[int]) -> int | None:
        ranked = [step for step in steps if step in self._values]
        return max(ranked, key=lambda step: (self._sign * self._values[step], step)) if ranked else None

    def _read_values(self) -> dict[int, float]:
        """The metric by step, from ranking.json, or from the checkpoints themselves if an older run lacks the file."""
        values = {c.step: float(c.metrics[self._metric]) for c in self._checkpointer.checkpoints if c.metrics}
        if self._ranking.is_file():
            values |= {int(step): value for step, value in json.loads(self._ranking.read_text()).items()}
        return values

    def restore(self, abstract_state: Any, step: int) -> tuple[TrainState, Progress]:
        """Restores the checkpoint of `step` with the shardings of `abstract_state`.

        Raises UserError if it does not match `abstract_state` or is damaged.
        """
        state = self._load(step, abstract_state)
        metadata = self._checkpointer.metadata(step).custom_metadata
        values = {int(at): float(value) for at, value in metadata["history"]} | self._values
        history = tuple(sorted((at, value) for at, value in values.items() if at <= step))
        return state, Progress(step=step, position=int(metadata["position"]), history=history)

    def variables(self, step: int) -> dict[str, Any]:
        """The shapes and types of the variables saved at `step`, in Flax's form: {"params": …, "batch_stats": …}."""
        saved = self._checkpointer.metadata(step).metadata
        shapes: dict[str, Any] = _shapes({"params": saved["params"], **(saved.get("model_state") or {})})
        return shapes

    def restore_variables(
        self, abstract: Mapping[str, Any], step: int, *, average: float | None = None
    ) -> dict[str, Any]:
        """Restores only those variables of `step` that are in `abstract`, a part of `variables`.

        `average`: the decay of the run's average of the variables, to restore the average instead. Raises like
        `restore`.
        """
        model_state = {name: collection for name, collection in abstract.items() if name != "params"}
        parts = {"params": abstract.get("params"), "model_state": model_state}
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            wanted = {name: part for name, part in parts.items() if part}
            if average is None:
                loaded = self._load(step, wanted)
            else:
                loaded = unbiased(self._load(step, {"average": wanted})["average"], average, step)
        return {**{name: loaded[name] for name in ("params",) if name in loaded}, **loaded.get("model_state", {})}

    def inference_state(self, step: int, *, average: bool) -> TrainState:
        """The shapes and types of the state saved at `step`, without the optimizer's part.

        `average`: whether the run keeps an average of its parameters.
        """
        saved = self._checkpointer.metadata(step).metadata
        return TrainState(
            step=_shapes(saved["step"]),
            params=_shapes(saved["params"]),
            model_state=_shapes(saved.get("model_state") or {}),
            opt_state={},
            average=_shapes(saved["average"]) if average else {},
        )

    def restore_inference(self, abstract: TrainState, step: int) -> TrainState:
        """Restores what `inference_state` describes with the shardings of `abstract`. Raises like `restore`."""
        parts = {field.name: getattr(abstract, field.name) for field in dataclasses.fields(abstract)}
        wanted = {name: part for name, part in parts.items() if jax.tree.leaves(part)}
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            return TrainState(**{**parts, **self._load(step, wanted)})

    def _load(self, step: int, abstract: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return jax.block_until_ready(self._checkpointer.load(step, abstract))
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"checkpoint {self._folder}/{step} can't be restored: {first_line(error)}") from error


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
