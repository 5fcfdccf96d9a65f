"""Early stopping: when a run ends before its last step, and the metric that decides it."""

import enum
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from research.base.errors import UserError
from research.core.statistics import Value, mean
from research.devices.throughput import Throughput


class Reason(enum.StrEnum):
    """Why a run ended before its last step: `reason_code` in summary.json."""

    STALLED = "stalled"
    OUT_OF_TIME = "out_of_time"
    ASKED = "asked"
    EXTENDED = "extended"
    DIVERGED = "diverged"
    ERROR = "error"


# How a summary explains a reason; reasons not listed use the error's message.
PROSE = {
    Reason.STALLED: "eval.metric stopped improving",
    Reason.OUT_OF_TIME: "the time limit train.max_minutes is reached",
    Reason.ASKED: "asked to stop",
    Reason.EXTENDED: "extended, and not trained further yet",
}

# Summaries from before 0.2 have no code; this is their reason for a complete run.
_STALLED_BEFORE = "eval.metric stopped improving"


def is_finished(summary: Mapping[str, Any] | None) -> bool:
    """Whether a run with this summary is complete; if not, the same command resumes it."""
    if not summary:
        return False
    if "reason_code" in summary:
        stalled = summary["reason_code"] == Reason.STALLED
    else:
        stalled = summary.get("reason") == _STALLED_BEFORE
    return summary.get("status") == "completed" or stalled


def _allgather(value: float) -> np.ndarray:
    """The values of all processes."""
    return np.asarray([value] if jax.process_count() == 1 else multihost_utils.process_allgather(value))


def any_process(flag: bool) -> bool:
    """Whether `flag` is True in any process: all must leave the loop at the same step."""
    return bool(_allgather(flag).any())


# Grace period in seconds before the data wait is checked: at the start the pipeline is not filled yet.
SETTLED_SECONDS = 10.0


def check_data_wait(throughput: Throughput, limit: float | None) -> None:
    """Raises UserError if a process waited for data for a larger fraction of the time than the config allows."""
    if limit is None:
        return
    settled = throughput.seconds >= SETTLED_SECONDS
    fraction = float(_allgather(throughput.data_wait_fraction if settled else 0.0).max())
    if fraction > limit:
        raise UserError(
            f"{fraction:.3f} of the time was spent waiting for data; train.max_data_wait_fraction is {limit}: raise "
            "data.workers or the limit, then rerun the same command to resume"
        )


def ranking_metric(metrics: dict[str, Value], name: str) -> float:
    """The mean over seeds of the metric that ranks evaluations. Raises UserError if it has no value."""
    value = mean(metrics[name])
    if value is None:
        raise UserError(
            f"eval.metric {name!r} has no value on the first of eval.splits; choose another metric or split"
        )
    return value


def stalled(history: tuple[tuple[int, float], ...], section: Any) -> bool:
    """Whether the last `patience` evaluations did not improve on the best before them by `min_delta`."""
    if section.patience <= 0:
        return False
    sign = 1 if section.mode == "max" else -1
    best, since = -float("inf"), 0
    for _, value in history:
        if sign * value > best + section.min_delta:
            best, since = sign * value, 0
        else:
            since += 1
    return since >= section.patience
