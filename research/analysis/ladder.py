"""Compares models from the smallest to the largest on the same data: trains each several times, times it, tabulates."""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.analysis import figures
from research.base.errors import UserError
from research.base.paths import atomic_write, expanded
from research.base.trees import to_json
from research.core.statistics import interval
from research.data import pipeline
from research.data.examples import Examples
from research.devices import sharding
from research.inference.model import TrainedModel
from research.runs.rundir import RunDir
from research.training.method import is_deterministic
from research.training.summary import seconds_of_a_seed
from research.training.trained_run import TrainedRun

# The size of the batch whose latency is measured, and the number of measurements.
BATCH, TIMES = 64, 30


@dataclasses.dataclass(frozen=True)
class Rung:
    """A config with its preset, and overrides "key=value"."""

    config: str
    overrides: tuple[str, ...] = ()


# (rung, number of seeds, workdir) -> the run's summary. A model fitted by a solver has one optimum and takes no seeds.
Train = Callable[[Rung, int, Path], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Rungs by name, from the smallest to the largest model, and the split on which they are compared."""

    split: str
    rungs: dict[str, Rung]


LADDERS: dict[str, Ladder] = {
    "digits": Ladder(
        "test",
        {
            "majority": Rung("majority:embedded"),
            "logistic": Rung("logistic_digits:embedded"),
            "mlp": Rung("mlp_mnist:embedded"),
            "cnn": Rung("cnn_mnist:embedded"),
            "resnet": Rung("resnet_digits:embedded"),
        },
    ),
    "mnist": Ladder(
        "test",
        {
            "majority": Rung("majority:mnist"),
            # A network without hidden layers is multinomial logistic regression.
            "logistic": Rung("mlp_mnist:mnist", ("model.hidden_sizes=()",)),
            "mlp": Rung("mlp_mnist:mnist"),
            "cnn": Rung("cnn_mnist:mnist"),
            "resnet": Rung("resnet_mnist:mnist"),
        },
    ),
    "newsgroups": Ladder(
        "test",
        {
            "majority": Rung("majority:newsgroups"),
            "logistic": Rung("logistic_newsgroups:newsgroups"),
            "bert": Rung(
                "bert_sst2:scratch",
                (
                    "data.name=twenty_newsgroups",
                    "data.transform.inputs=text",
                    "data.transform.max_length=128",
                    "data.transform.pad_to=(32, 64, 128)",
                    "data.transform.row_length=256",
                    "model.num_classes=20",
                    "train.epochs=8",
                    "eval.splits=test",
                ),
            ),
        },
    ),
    "sst2": Ladder(
        "validation",
        {
            "majority": Rung("majority:sst2"),
            "logistic": Rung("logistic_sst2:sst2"),
            "bert": Rung("bert_sst2:scratch"),
            "minilm": Rung("bert_sst2:minilm"),
        },
    ),
}


def run_ladder(
    ladder: Ladder,
    out: Path,
    *,
    names: Iterable[str] | None = None,
    seeds: int,
    train: Train,
    say: Callable[[str], None] = print,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Trains `seeds` replicas of each rung in one run and measures it; writes a table and a plot as it goes.

    The files are table.md, table.json and ladder.png. Rows in table.json for rungs other than `names` (None: all) are
    kept, in the ladder's order. A rung that fails gets a row with the reason, and the next rung follows. Finished runs
    in `out` are not trained again.

    Returns:
      The table's rows, each "rung" with "failed" or with the values of `measure`; and the names that failed this time.

    Raises:
      UserError: `out` holds something else, or table.json can't be read.
    """
    out = expanded(out)
    saved = out / "table.json"
    if out.exists() and not saved.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty and not a ladder's; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    rows = _saved(saved)
    _write(out, list(rows.values()), ladder.split)  # from now on it is a ladder's
    names = list(ladder.rungs if names is None else names)
    failed: list[str] = []
    for number, name in enumerate(names, 1):
        rung = ladder.rungs[name]
        say(f"rung {number} of {len(names)}: {name}, {rung.config}")
        try:
            workdir = out / f"{name}-{seeds}-seeds"
            summary = train(rung, seeds, workdir)
            if summary["status"] != "completed":
                raise UserError(f"{workdir} is {summary['status']}: {summary['reason']}")
            rows[name] = {"rung": name, **measure(RunDir.open(workdir, writer=True), summary, ladder.split)}
        except Exception as error:  # whatever makes one model fail, continue with the others
            reason = " ".join((str(error) or type(error).__name__).split())
            failed.append(name)
            measured = "failed" not in rows.get(name, {"failed": None})
            say(f"rung {name} failed: {reason}" + ("; the table keeps its earlier row" if measured else ""))
            if not measured:
                rows[name] = {"rung": name, "failed": reason}
        order = [*(one for one in ladder.rungs if one in rows), *(one for one in rows if one not in ladder.rungs)]
        rows = {one: rows[one] for one in order}
        _write(out, list(rows.values()), ladder.split)
    return list(rows.values()), failed


def _write(out: Path, rows: list[dict[str, Any]], split: str) -> None:
    atomic_write(out / "table.json", to_json(rows, indent=2) + "\n")
    atomic_write(out / "table.md", table(rows, split))
    done = [row for row in rows if "failed" not in row]
    figures.ladder(done, split=split).savefig(out / "ladder.png", dpi=120)


def _saved(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of an earlier table, by rung. Raises UserError if they can't be read."""
    if not path.is_file():
        return {}
    try:
        return {row["rung"]: row for row in json.loads(path.read_text())}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} can't be read ({error}); move it away, or choose another --out") from error


def measure(run: RunDir, summary: dict[str, Any], split: str) -> dict[str, Any]:
    """Measures a finished run, of several seeds or of a solver.

    Returns:
      "accuracy" of the split: {"values", "mean", "low", "high"} (Student's t over the seeds, 95 %; low and high are
      None for one seed); "optimum", whether a solver found it; "examples", the number in the split; "parameters" of one
      seed; "size_mib", that of the parameters and the model's state in memory; "train_seconds", from
      `seconds_of_a_seed`; "latency_ms", the median time of one seed's compiled evaluation step, for {"one": an example,
      "batch": 64}, with its input on the device; "device".
    """
    trained = TrainedRun(run, "last")
    model, examples = trained.model.single, trained.streams()(split).examples
    latency = run.latency()
    if latency is None:
        latency = {str(n): latency_ms(model, examples, n) for n in (1, BATCH)}
        run.write_latency(latency)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((model.state.params, model.state.model_state)))
    seeds = summary.get("seeds", 1)  # a summary omits the default
    one = interval([summary["metrics"][split]["accuracy"]])
    return {
        "accuracy": one if seeds == 1 else summary["intervals"][split]["accuracy"],
        "optimum": is_deterministic(trained.config.optimizer.name),
        "examples": len(examples),
        "parameters": summary["param_count"],
        "size_mib": size / 2**20,
        "train_seconds": seconds_of_a_seed(summary),
        "latency_ms": {"one": latency["1"], "batch": latency[str(BATCH)]},
        "device": summary["environment"]["device_kind"],
    }


def latency_ms(model: TrainedModel, examples: Examples, count: int) -> float:
    """The median time of the evaluation step on `count` of the examples, one per row, compiled and warm.

    Several devices share the rows, which are padded to a multiple of their number.
    """
    stream, evaluation = pipeline.Stream.unpacked(examples, np.arange(count)), model.evaluation
    ((_, batch),) = pipeline.evaluation_batches(stream, batch_rows=count, rows=evaluation.rows)
    on_devices = sharding.put_batch(batch, evaluation.mesh)
    times = []
    for _ in range(TIMES + 2):
        start = time.perf_counter()
        jax.block_until_ready(evaluation.step(model.state, on_devices))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[2:])  # the first compiles


def table(rows: list[dict[str, Any]], split: str) -> str:
    """The rows of `run_ladder` as a Markdown table."""
    lines = [
        f"| rung | {split} accuracy | parameters | training | MiB | one example | a batch of {BATCH} |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['rung']} | failed: {row['failed'].replace('|', '/')} | | | | | |")
            continue
        accuracy, latency = row["accuracy"], row["latency_ms"]
        half = "" if accuracy["low"] is None else f" ± {accuracy['high'] - accuracy['mean']:.4f}"
        half = " (one optimum)" if row["optimum"] else half
        seconds = "–" if row["train_seconds"] is None else f"{row['train_seconds']:.1f} s"
        lines.append(
            f"| {row['rung']} | {accuracy['mean']:.4f}{half} | {row['parameters']:,} | {seconds} | "
            f"{row['size_mib']:.3g} | {latency['one']:.2f} ms | {latency['batch']:.2f} ms |"
        )
    done = [row for row in rows if "failed" not in row]
    if done:
        of_seeds = {len(row["accuracy"]["values"]) for row in done if not row["optimum"]}
        runs = [f"the mean of {n} seeds, ± 95 % by Student's t" if n > 1 else "one seed" for n in sorted(of_seeds)]
        if any(row["optimum"] for row in done):
            runs.append("one optimum, where a solver fits the model, whatever the seed")
        examples, devices = done[0]["examples"], dict.fromkeys(row["device"] for row in done)
        best = max(row["accuracy"]["mean"] for row in done)
        # The standard deviation of the binomial distribution, and the 97.5 % point of the normal one.
        other = 1.96 * math.sqrt(best * (1 - best) / examples)
        lines += [
            "",
            f"Accuracy: {'; '.join(runs)}. All on the same {examples:,} examples; on another sample of "
            f"this size, the largest would be within ± {other:.4f} with 95 % probability. Training: the steps alone, "
            f"of one seed. Latency: median of {TIMES} evaluation steps, {', '.join(devices)}.",
        ]
    return "\n".join(lines) + "\n"
