"""A plan of replicas as text, as JSON and as a figure."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from research.analysis.canvas import add_title, new_figure
from research.analysis.capacity import FRACTION, Measured, Plan, Point, curve, formula, rehearsed
from research.base.errors import UserError
from research.base.paths import expanded

_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94, 0.97)  # of the best rate, in the figure
_DISTURBED = 2.0  # times between the measured and the simulated percentile of the same load
_HIGHEST = 2.5  # times the bound, in the figure
_DRAWN = 6000  # requests of each of these simulations


@dataclasses.dataclass(frozen=True)
class Check:
    """A load that was offered: requests a second, and the 99th percentile of the latency, measured and computed."""

    rate: float
    requests: int
    measured_ms: float
    simulated_ms: float
    formula_ms: float


@dataclasses.dataclass(frozen=True)
class Report:
    """A plan, and what it is from.

    Attributes:
      about: the model and its inputs, in one line.
      checks: of one replica, the rate rising.
    """

    about: str
    measured: Measured
    plan: Plan
    points: Sequence[Point]
    checks: Sequence[Check]

    @classmethod
    def of(cls, about: str, measured: Measured, plan: Plan) -> "Report":
        """With what one replica does under the measured loads."""
        points = curve(measured)
        checks = [
            Check(
                rate,
                len(latencies),
                _p99_ms(latencies),
                _p99_ms(rehearsed(measured, rate, count=_DRAWN).latencies),
                1000 * formula(measured, rate),
            )
            for rate, latencies in measured.offered
        ]
        return cls(about, measured, plan, points, checks)

    def text(self) -> str:
        """The tables, and at the end what is needed."""
        return "\n".join([self.about, "", *self._curve(), "", *self._checks(), "", *self._rows(), self.needed])

    def _curve(self) -> list[str]:
        lines = ["inputs of a batch   batches   mean ms    p99 ms   requests/s"]
        for point in self.points:
            rate = self.measured.workers * point.mean / point.seconds.mean()
            p50, p99 = 1000 * point.seconds.mean(), _p99_ms(point.seconds)
            lines.append(f"{point.mean:17.1f} {len(point.seconds):9d} {p50:9.1f} {p99:9.1f} {rate:12.0f}")
        entry, rest = 1000 * self.measured.entry, 1000 * self.measured.rest
        lines.append(
            f"best: {self.measured.best_rate:.0f} requests/s; besides the model a request takes {entry:.2f} ms of the "
            f"thread that reads it, and {rest:.1f} ms"
        )
        return lines

    def _checks(self) -> list[str]:
        lines = ["one replica, requests/s   requests   p99 measured ms   simulated   formula"]
        for check in self.checks:
            lines.append(
                f"{check.rate:24.0f} {check.requests:10d} {_ms(check.measured_ms):>17} {_ms(check.simulated_ms):>11} "
                f"{_ms(check.formula_ms):>9}"
            )
        if any(not 1 / _DISTURBED <= check.simulated_ms / check.measured_ms <= _DISTURBED for check in self.checks):
            lines.append(
                f"warning: a simulated p99 is not within {_DISTURBED:g} times the measured one; no load of a replica "
                "is planned that was measured above the bound. Other programs may have disturbed the measurement: "
                "repeat it on an idle machine, or with longer --seconds"
            )
        return lines

    def _rows(self) -> list[str]:
        bound = f"within {self.plan.bound_ms:g} ms"
        lines = [f"replicas   load %   mean wait ms   p99 formula   p99 simulated   {bound}   cores      GB"]
        for row in self.plan.rows:
            kept = "yes" if row.kept else "no"
            lines.append(
                f"{row.replicas:8d} {100 * row.utilisation:8.0f} {_ms(row.wait_ms):>14} {_ms(row.formula_ms):>13} "
                f"{_ms(row.simulated_ms):>15} {kept:>{len(bound) + 2}} {row.cores:7d} {row.gigabytes:7.1f}"
            )
        lines.append(
            f"one replica keeps the bound up to {self.plan.sustained:.0f} requests/s by simulation, "
            f"{self.plan.sustained_by_formula:.0f} by formula"
        )
        return lines

    @property
    def needed(self) -> str:
        """One line."""
        row, plan = self.plan.needed, self.plan
        plural = "s" if row.replicas > 1 else ""
        return (
            f"needed for {plan.rate:g} requests/s with a p99 of at most {plan.bound_ms:g} ms: {row.replicas} "
            f"replica{plural} of {self.measured.cores} cores: {row.cores} cores and {row.gigabytes:.1f} GB; p99 "
            f"{row.simulated_ms:.1f} ms"
        )

    def json(self) -> str:
        """One object; null for what is infinite."""
        points = [
            {
                "inputs": point.mean,
                "batches": len(point.seconds),
                "mean_ms": 1000 * float(point.seconds.mean()),
                "p99_ms": _p99_ms(point.seconds),
            }
            for point in self.points
        ]
        found = {
            "about": self.about,
            "rps": self.plan.rate,
            "p99_ms": self.plan.bound_ms,
            "best_rps": self.measured.best_rate,
            "sustained_rps": self.plan.sustained,
            "sustained_rps_by_formula": self.plan.sustained_by_formula,
            "entry_ms": 1000 * self.measured.entry,
            "rest_ms": 1000 * self.measured.rest,
            "curve": points,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "rows": [dataclasses.asdict(row) for row in self.plan.rows],
            "needed": dataclasses.asdict(self.plan.needed),
        }
        return json.dumps(_finite(found))


def figure(report: Report) -> Figure:
    """The 99th percentile of one replica's latency by its load: by simulation, by formula, and as measured."""
    measured, plan = report.measured, report.plan
    rates = np.array(_SHARES) * measured.best_rate
    simulated = [_p99_ms(rehearsed(measured, rate, count=_DRAWN).latencies) for rate in rates]
    computed = [1000 * formula(measured, rate) for rate in rates]
    drawn, (axis,) = new_figure(width=7.0, height=4.2)
    axis.plot(rates, simulated, marker="o", markersize=3, label="simulation with the measured times")
    axis.plot(rates, computed, linestyle="--", label="formula, batches of a fixed size")
    offered = [(check.rate, check.measured_ms) for check in report.checks]
    axis.plot(*zip(*offered, strict=True), "kx", label="measured over HTTP")
    axis.axhline(plan.bound_ms, color="C3", linewidth=1, label=f"bound: {plan.bound_ms:g} ms")
    axis.axvline(measured.best_rate, color="0.5", linestyle=":", label=f"best rate: {measured.best_rate:.0f}/s")
    each = plan.rate / plan.needed.replicas
    axis.plot([each], [plan.needed.simulated_ms], "C3*", markersize=11, label=f"each of {plan.needed.replicas} needed")
    axis.set(xlabel="requests a second of one replica", ylabel=f"latency, {100 * FRACTION:g}th percentile, ms", xlim=0)
    axis.set_ylim(0, _HIGHEST * plan.bound_ms)
    axis.legend(fontsize=8, loc="upper left")
    add_title(drawn, report.needed)
    return drawn


def png(path: str) -> Path:
    """Where to write a figure. Raises UserError if it is not a PNG, or its folder does not exist."""
    found = expanded(path)
    if found.suffix.lower() != ".png":
        raise UserError(f"--plot={path} does not end in .png, the only format")
    if not found.parent.is_dir():
        raise UserError(f"--plot={path}: the folder {found.parent} does not exist; create it first")
    return found


def _p99_ms(seconds: np.ndarray) -> float:
    return 1000 * float(np.quantile(seconds, FRACTION))


def _ms(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "∞"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
