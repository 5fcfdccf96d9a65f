"""The time limit of a run, `train.max_minutes`, which includes the evaluation at its end."""

import collections
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

# A training step computes a forward and a backward pass, an evaluation a forward pass: a third of the operations, and
# some more time for its records. Used until an evaluation has been measured.
EVALUATION_SHARE = 0.5

# The part of the limit that the end may take from training. If it needs more, the run ends late, and says so.
LARGEST_RESERVE = 0.5

MARGIN = 1.1  # on the estimate of the end


class Deadline:
    """Keeps back the time that the end of a run needs: evaluating all splits, and saving.

    The time is estimated from the number of rows, and the time per row of the last evaluation or, before the first one,
    of training steps.
    """

    def __init__(
        self,
        max_minutes: float | None,
        rows: Mapping[str, int],
        *,
        batch_rows: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`rows`: of each split that is evaluated at the end; `batch_rows`: of a training step; `clock`: in seconds."""
        self._limit = 60 * (max_minutes or float("inf"))
        self._rows, self._batch_rows, self._clock = rows, batch_rows, clock
        self._start = self._step_began = clock()
        self._steps: collections.deque[float] = collections.deque(maxlen=5)  # seconds of the last ones
        self._row_seconds: float | None = None  # of the last evaluation
        self._saving_seconds = 0.0
        self._running: Any = None  # the scores of the last step
        self._said = False

    def step(self, scores: Any) -> None:
        """Measures a step that was started and will return `scores`.

        With a limit, waits for the step before: otherwise minutes of steps might be started before the limit and run
        after it.
        """
        if self._limit < float("inf"):
            jax.block_until_ready(self._running)
            now = self._clock()
            if self._running is not None:  # the first step includes compiling
                self._steps.append(now - self._step_began)
            self._running, self._step_began = scores, now

    @contextlib.contextmanager
    def _aside(self, measured: Callable[[float], None]) -> Iterator[None]:
        start = self._clock()
        yield
        seconds = self._clock() - start
        self._step_began += seconds
        measured(seconds)

    def evaluating(self, split: str) -> contextlib.AbstractContextManager[None]:
        """Context that measures an evaluation of a whole split."""

        def measured(seconds: float) -> None:
            row_seconds = seconds / max(1, self._rows[split])
            if self._row_seconds is None and self._steps:  # the first one includes compiling
                row_seconds = min(row_seconds, self._step_seconds / self._batch_rows)
            self._row_seconds = row_seconds

        return self._aside(measured)

    def saving(self) -> contextlib.AbstractContextManager[None]:
        """Context that measures saving a state."""

        def measured(seconds: float) -> None:
            self._saving_seconds = seconds

        return self._aside(measured)

    @property
    def _step_seconds(self) -> float:
        """The time of a step; the median, as other shapes of batches compile in between."""
        return statistics.median(self._steps) if self._steps else 0.0

    def _evaluation_seconds(self, rows: int) -> float:
        of_training = EVALUATION_SHARE * self._step_seconds / self._batch_rows
        return rows * (of_training if self._row_seconds is None else self._row_seconds)

    @property
    def end_seconds(self) -> float:
        """The estimated time from the last step to the end of the run."""
        return MARGIN * (self._evaluation_seconds(sum(self._rows.values())) + self._saving_seconds)

    @property
    def late_seconds(self) -> float:
        """The estimated time by which the run ends after its limit if training stops now; negative before it."""
        return self._clock() - self._start + self.end_seconds - self._limit

    def reached(self, *, evaluates: str | None = None) -> bool:
        """Whether training must stop after this step, as another one would take time from the end.

        `evaluates`: the split that is evaluated before the next step, if one is.
        """
        reserve = min(self.end_seconds, LARGEST_RESERVE * self._limit)
        first = 0.0 if evaluates is None else self._evaluation_seconds(self._rows[evaluates])
        return self._clock() - self._start + first + self._step_seconds + reserve > self._limit

    def notice(self) -> str | None:
        """A line for the user, once, if the limit can't be kept: the end needs more than LARGEST_RESERVE of it."""
        if self._said or self.end_seconds <= LARGEST_RESERVE * self._limit:
            return None
        self._said = True
        return (
            f"  warning: train.max_minutes={self._limit / 60:g} can't be kept: evaluating {self._splits} at the end "
            f"takes about {_minutes(self.end_seconds)}; half of the limit is for training, so the run ends about "
            f"{_minutes(self.end_seconds - LARGEST_RESERVE * self._limit)} late"
        )

    def describe_end(self) -> str:
        """Describes in one line what follows when the limit has stopped training."""
        late = self.late_seconds
        after = f", {_minutes(late)} more than the limit leaves" if late > 0.1 * self._limit else ""
        return (
            f"  train.max_minutes={self._limit / 60:g}: evaluating {self._splits}, about "
            f"{_minutes(self.end_seconds)}{after}"
        )

    @property
    def _splits(self) -> str:
        return " and ".join(f"{split} ({rows:,} rows)" for split, rows in self._rows.items())


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
