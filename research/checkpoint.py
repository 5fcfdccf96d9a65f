"""Checkpoints: the one place that touches Orbax.

A run keeps its last state and its best one by the config's metric. Saving is asynchronous: the arrays are copied, then
written while training goes on; a checkpoint that was cut off while being written is never seen by `restore`.
"""

import contextlib
import dataclasses
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from research.errors import UserError
from research.state import TrainState, unbiased

# What it prints at level INFO and the advice it warns of are for its own developers.
logging.getLogger("absl").setLevel(logging.WARNING)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is. With the state it is all that a run needs to go on.

    step: updates done; position: rows of the training stream consumed; history: (step, ranking metric) of every
    evaluation so far.
    """

    step: int = 0
    position: int = 0
    history: tuple[tuple[int, float], ...] = ()

    def after(self, rows: int, most: int | None) -> "Progress":
        """After one more step on `rows`, `most` in the whole run."""
        position = self.position + rows
        return dataclasses.replace(self, step=self.step + 1, position=position if most is None else min(position, most))

    def evaluated(self, value: float) -> "Progress":
        """With the value of an evaluation at this step; one that is there already stays."""
        if self.step in dict(self.history):
            return self
        return dataclasses.replace(self, history=(*self.history, (self.step, value)))


# Orbax finds the arrays of a checkpoint by a glob of its unescaped path, and TensorStore reads a backslash as a slash.
_SPECIAL_CHARACTERS = frozenset("[]*?\\")


@contextlib.contextmanager
def _path_for_orbax(folder: Path) -> Iterator[Path]:
    """`folder`, or where its path has special characters a link to it whose path has none, until the context ends.

    Under such a path Orbax would report success and write a checkpoint without arrays.
    """
    if not _SPECIAL_CHARACTERS.intersection(str(folder)):
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="research-checkpoints-") as temporary:
        link = Path(temporary) / "checkpoints"
        link.symlink_to(folder, target_is_directory=True)
        yield link


class Checkpoints:
    """The checkpoints of one run directory. Use as a context manager: leaving it waits for the last write."""

    def __init__(self, folder: Path, *, metric: str, mode: str, writable: bool = True):
        """`metric` names the validation metric that ranks checkpoints, `mode` is "max" or "min".

        With `writable` what an earlier crash left half written is removed; so only one process tree may have it.
        """
        policies = ocp.training.preservation_policies
        self._folder = folder.absolute()
        self._metric = metric
        self._sign = {"max": 1.0, "min": -1.0}[mode]
        self._cleanup = contextlib.ExitStack()
        self._checkpointer = ocp.training.Checkpointer(
            self._cleanup.enter_context(_path_for_orbax(self._folder)),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(1),
                    policies.BestN(
                        get_metric_fn=lambda metrics: self._sign * metrics[metric],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=writable,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        with self._cleanup:
            self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """The steps of which there is a complete checkpoint, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def best_step(self) -> int | None:
        """The step with the best metric, the last of equals; None where none was saved with one."""
        ranked = [c for c in self._checkpointer.checkpoints if c.metrics]
        return max(ranked, key=lambda c: (self._sign * c.metrics[self._metric], c.step)).step if ranked else None

    def step(self, which: str) -> int:
        """The step of the "last" or the "best" checkpoint. Raises UserError if there is none."""
        step = self.best_step if which == "best" else max(self.steps, default=None)
        if step is None:
            raise UserError(f"{self._folder} has no {which} checkpoint yet")
        return step

    def save(self, state: TrainState, progress: Progress, value: float | None) -> None:
        """Starts saving. `value`: the ranking metric, if this state was just evaluated."""
        if progress.step in self.steps:
            return
        self._checkpointer.save_async(
            progress.step,
            state,
            force=True,
            metrics=None if value is None else {self._metric: value},
            custom_metadata={
                "position": progress.position,
                "history": [list(pair) for pair in progress.history],
            },
        )

    def restore(self, abstract_state: Any, step: int) -> tuple[TrainState, Progress]:
        """What was saved at `step`, placed as `abstract_state`'s shardings say.

        Raises UserError if it does not fit `abstract_state` or is damaged.
        """
        state = self._load(step, abstract_state)
        metadata = self._checkpointer.metadata(step).custom_metadata
        history = tuple((int(at), float(value)) for at, value in metadata["history"])
        return state, Progress(step=step, position=int(metadata["position"]), history=history)

    def variables(self, step: int) -> dict[str, Any]:
        """The shapes and types of the variables saved at `step`, as Flax has them: {"params": …, "batch_stats": …}."""
        saved = self._checkpointer.metadata(step).metadata
        shapes = {"params": saved["params"], **saved["model_state"]}
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)

    def restore_variables(
        self, abstract: Mapping[str, Any], step: int, *, average: float | None = None
    ) -> dict[str, Any]:
        """Of what was saved at `step` only the variables that `abstract`, a part of `variables`, names.

        `average`: the decay of the average of them that the run kept, to have that instead. Raises as `restore`.
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

    def _load(self, step: int, abstract: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return jax.block_until_ready(self._checkpointer.load(step, abstract))
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"checkpoint {self._folder}/{step} can't be restored: {reason}") from error
