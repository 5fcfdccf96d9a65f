"""Reports of a run: progress bar, metric lines, TensorBoard, the training curve."""

import math
import sys
from collections.abc import Callable
from typing import Any

import jax
from tqdm import tqdm

from research.core import metrics
from research.core.statistics import Value, interval, means
from research.runs.rundir import RunDir


class Reporter:
    """Writes a run's metrics to all destinations; the progress bar shows evaluations by `metric`. A context manager."""

    def __init__(
        self,
        run: RunDir,
        start: int,
        total: int,
        learning_rate: Callable[[int], Any] | None,
        *,
        metric: str,
        check: Callable[[dict[str, Value], str, int], None],
        show: bool,
    ):
        """`check`: (metrics, what they are of, step) -> None; called before they are written, and may raise."""
        from tensorboardX import SummaryWriter

        self._check = check
        self._run = run
        self._learning_rate = learning_rate
        self._metric = metric
        self._pending: list[tuple[int, list[Any]]] = []
        self._steps: list[Any] = []
        self._latest: dict[str, str] = {}
        self.show = show and run.writer
        self._board = SummaryWriter(str(run.tensorboard), purge_step=start + 1) if run.writer else None
        self._bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            disable=not self.show,
            dynamic_ncols=True,
            delay=0.5,
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 20.0,  # few lines in a log file
        )

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()
        if self._board:
            self._board.close()

    def say(self, text: str) -> None:
        """Prints one line above the bar."""
        if self.show:
            tqdm.write(text, file=sys.stdout)

    def step(self, scores: Any) -> None:
        """Collects a step's scores, still on the device."""
        self._steps.append(scores)
        self._bar.update()

    def log(self, step: int) -> None:
        """Closes an interval of steps and writes the previous one, whose scores are ready, so that nothing blocks."""
        if self._steps:
            self._pending.append((step, self._steps))
            self._steps = []
        while len(self._pending) > 1:
            self._write(*self._pending.pop(0))

    def flush(self, step: int) -> None:
        """Writes everything up to `step`, waiting for the device."""
        self.log(step)
        while self._pending:
            self._write(*self._pending.pop(0))

    def _write(self, step: int, scores: list[Any]) -> None:
        fetched = jax.device_get(scores)
        total = fetched[0]
        for more in fetched[1:]:
            total = metrics.add(total, more)
        values = metrics.compute(total)
        self._check(values, f"the training loss between steps {step - len(scores)} and {step}", step)
        mean = means(values)
        rate = {"learning_rate": float(self._learning_rate(step - 1))} if self._learning_rate else {}
        self._line(step, "train", {**mean, **rate})
        if mean["loss"] is not None:  # else all examples of these steps have weight 0
            self._latest["loss"] = f"{mean['loss']:.4f}"
        self._bar.set_postfix(self._latest, refresh=False)

    def evaluation(self, step: int, split: str, values: dict[str, Value]) -> None:
        """Writes an evaluation's metrics; for several seeds, the means and the `values` of each seed."""
        self._check(values, f"the loss on {split} at step {step}", step)
        mean = means(values)
        by_seed = {name: value for name, value in values.items() if isinstance(value, list)}
        self._line(step, split, mean, by_seed)
        value = mean[self._metric]
        if value is not None:
            self._latest[f"{split} {self._metric}"] = f"{value:.4f}"
        self._bar.set_postfix(self._latest, refresh=False)

    def _line(
        self,
        step: int,
        split: str,
        values: dict[str, float | None],
        by_seed: dict[str, list[float | None]] | None = None,
    ) -> None:
        self._run.append_metrics({"step": step, "split": split, **values, **({"values": by_seed} if by_seed else {})})
        if self._board:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(f"{split}/{name}", value, step)


def plot_training_curve(run: RunDir, metric: str) -> None:
    """Plots the loss and `metric`, if different, over the steps, a line per split, to plots/training_curve.png.

    For several seeds, plots the mean and its confidence interval. Values that are not finite are left out, and so is a
    metric without any value; if nothing is left, nothing is written.
    """
    lines = run.metrics()
    if not run.writer or max((line["step"] for line in lines), default=0) < 2:  # one step makes no curve
        return
    from matplotlib.figure import Figure

    names = [name for name in dict.fromkeys(("loss", metric)) if any(_value(line, name) is not None for line in lines)]
    if not names:
        return
    figure = Figure(figsize=(5.5 * len(names) + 1, 4), layout="constrained")
    named: dict[str, Any] = {}  # a curve of each split, for the legend
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for i, split in enumerate(dict.fromkeys(line["split"] for line in lines)):
            of_split = [line for line in lines if line["split"] == split]
            points = [(line["step"], value) for line in of_split if (value := _value(line, name)) is not None]
            if points:
                marker = "" if split == "train" and len(points) > 1 else "o"
                (curve,) = axis.plot(
                    *zip(*points, strict=True), color=f"C{i}", label=split, marker=marker, markersize=4
                )
                named.setdefault(split, curve)
                low, high = metrics.metric_bounds(name)
                bands = [
                    (step, max(band["low"], low), min(band["high"], high)) for step, band in _bands(lines, split, name)
                ]
                if bands:  # a single one has only the line
                    axis.fill_between(*zip(*bands, strict=True), color=curve.get_color(), alpha=0.2, linewidth=0)
                    axis.vlines(*zip(*bands, strict=True), color=curve.get_color(), alpha=0.5, linewidth=1)
        axis.set(xlabel="step", ylabel=name)
        axis.grid(alpha=0.3)
    figure.legend(named.values(), named, loc="outside right upper", fontsize=8)
    figure.suptitle(f"{run.path.name}, by training step", fontsize=11)
    figure.savefig(run.plots / "training_curve.png", dpi=120)


def _value(line: dict[str, Any], name: str) -> float | None:
    """A metric of a line; None if it is missing, None or not finite."""
    value = line.get(name)
    return value if value is not None and math.isfinite(value) else None


def _bands(lines: list[dict[str, Any]], split: str, name: str) -> list[tuple[int, dict[str, Any]]]:
    """The intervals of a metric, with their steps."""
    found = [
        (line["step"], interval(line["values"][name]))
        for line in lines
        if line["split"] == split and name in line.get("values", {})
    ]
    return [(step, band) for step, band in found if band["low"] is not None]
