"""Tries methods on a run, and says which of their results are worth having."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from research.base.errors import UserError
from research.compress.context import Say
from research.compress.methods import Step
from research.compress.run import Compression
from research.compress.tuning import Tuning
from research.runs.certificate import read_certificate
from research.runs.rundir import RunDir

BEST = "best"
PLOT = "search.png"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A result.

    Attributes:
      name: its methods.
      folder: None for the run as it is.
      metric, drop: the metric on the run's main split, and by how many points it fell.
      milliseconds: the median time of a batch of the middle shape, and of the run's own in the same measurement.
      bytes: in memory.
    """

    name: str
    folder: Path | None
    metric: float
    drop: float
    milliseconds: float
    original_milliseconds: float
    bytes: int

    @classmethod
    def of(cls, name: str, folder: Path, certificate: Mapping[str, Any]) -> "Candidate":
        own, other = (_middle(certificate["times"][key]) for key in ("compressed", "original"))
        metric = certificate["metric"]
        size = certificate["bytes_in_memory"]["compressed"]
        return cls(name, folder, metric["compressed"], metric["drop"], own, other, size)

    @property
    def speed(self) -> float:
        """Times the run's own."""
        return self.original_milliseconds / self.milliseconds

    def is_beaten_by(self, other: "Candidate") -> bool:
        """Whether another is at least as good in metric, speed and size, and better in one."""
        pairs = ((other.drop, self.drop), (-other.speed, -self.speed), (other.bytes, self.bytes))
        return all(one <= own for one, own in pairs) and any(one < own for one, own in pairs)


def _middle(times: Sequence[Mapping[str, Any]]) -> float:
    return float(times[len(times) // 2]["p50_ms"])


def candidates(compression: Compression) -> list[tuple[str, ...]]:
    """Chains to try: first those that do not train, then those that take little away."""
    chains: list[tuple[str, ...]] = [("int8",), ("bfloat16",), ("int8_weights",)]
    if "encoder" in compression.original.variables["params"]:
        half = max(1, compression.original.config.model.num_layers // 2)
        chains += [("vocab", "int8"), ("ffn=0.5", "int8"), (f"layers={half}", "int8")]
        chains += [("vocab", f"layers={half}", "ffn=0.5", "int8")]
    return chains


def search(
    compression: Compression,
    folder: Path,
    *,
    max_drop: float,
    minutes: float,
    tuning: Tuning | None,
    say: Say = print,
    clock: Callable[[], float] = time.monotonic,
) -> list[Candidate]:
    """Tries the `candidates`, each in its own folder in `folder`, until `minutes` have passed -> those that worked.

    The fastest of those that drop by at most `max_drop` points is called `best` there. What an earlier search certified
    is not made again. A chain that trains is begun only if the longest so far would still fit.
    """
    began, longest, found = clock(), 0.0, []
    for chain in candidates(compression):
        steps = [Step.of(text) for text in chain]
        name = "-".join(chain).replace("=", "")
        trains = tuning is not None and any(step.method.removes for step in steps)
        left = 60 * minutes - (clock() - began)
        if left <= 0 or (trains and longest > left):
            say(f"{name}: no time left")
            continue
        start = clock()
        try:
            certificate = _made(compression, steps, folder / name, tuning)
        except UserError as error:
            say(f"{name}: {error}")
            continue
        if trains:
            longest = max(longest, clock() - start)
        if certificate["metric"]["drop"] is not None:
            found.append(Candidate.of(name, folder / name, certificate))
    best = fastest(found, max_drop)
    if best is not None and best.folder is not None:
        link = folder / BEST
        link.unlink(missing_ok=True)
        link.symlink_to(best.folder.name, target_is_directory=True)
    return found


def _made(compression: Compression, steps: Sequence[Step], folder: Path, tuning: Tuning | None) -> dict[str, Any]:
    """The certificate of the folder, which is made if there is none."""
    if folder.is_dir() and any(folder.iterdir()):
        certificate = read_certificate(RunDir.open(folder))
        if certificate["of"]["step"] != compression.source.step:
            raise UserError(f"{folder} is of another checkpoint; choose another --to")
        return certificate
    return compression.run(steps, folder, tuning)


def fastest(found: Sequence[Candidate], max_drop: float) -> Candidate | None:
    """The fastest of those that drop by at most `max_drop`."""
    return max((each for each in found if each.drop <= max_drop), key=lambda each: each.speed, default=None)


def table(found: Sequence[Candidate], metric: str, max_drop: float) -> str:
    """The results, the fastest first; those that no other beats have a star."""
    best = fastest(found, max_drop)
    width = max([len("methods"), *(len(each.name) for each in found)])
    lines = [f"    {'methods':<{width}}  {metric:>10}  {'drop':>6}  {'ms':>8}  {'speed':>6}  {'MB':>7}"]
    for each in sorted(found, key=lambda each: -each.speed):
        star = " " if any(each.is_beaten_by(other) for other in found) else "*"
        mark = ">" if each is best else " "
        lines.append(
            f"  {mark}{star}{each.name:<{width}}  {each.metric:>10.4f}  {each.drop:>6.2f}  {each.milliseconds:>8.1f}  "
            f"{each.speed:>6.2f}  {each.bytes / 1e6:>7.1f}"
        )
    return "\n".join(lines)


def plot(found: Sequence[Candidate], metric: str, max_drop: float) -> Figure:
    """The drop by the speed of each result, its area by its size; filled where no other beats it."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axis = figure.subplots()
    largest, best = max(each.bytes for each in found), fastest(found, max_drop)
    for each in found:
        beaten = any(each.is_beaten_by(other) for other in found)
        axis.scatter(
            each.speed, each.drop, s=40 + 260 * each.bytes / largest, edgecolors="C7" if beaten else "C0",
            facecolors="none" if beaten else "C0", alpha=0.7,
        )  # fmt: skip
        mark = " (best)" if each is best else ""
        axis.annotate(each.name + mark, (each.speed, each.drop), xytext=(9, 6), textcoords="offset points", fontsize=8)
    axis.scatter(1, 0, marker="x", color="black")
    axis.annotate("the run", (1, 0), xytext=(-6, -12), textcoords="offset points", fontsize=8, ha="right")
    axis.axhline(max_drop, color="C3", linestyle="--", linewidth=1)
    axis.text(0.01, max_drop, f"--max_drop={max_drop:g}", color="C3", fontsize=8, va="bottom",
              transform=axis.get_yaxis_transform())  # fmt: skip
    axis.set_xlabel("times as fast as the run")
    axis.set_ylabel(f"{metric}, points lost")
    axis.set_title("filled: no other is at least as good in all; area: bytes in memory", fontsize=9)
    axis.margins(0.25)
    axis.grid(alpha=0.3)
    return figure
