"""The certificate of a compressed network: what changed on the validation split, and what was gained."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize

from research.base.errors import UserError
from research.compress.calibration import Calibration
from research.compress.measure import hardware, timings
from research.compress.network import Network
from research.core.pruning import zeros
from research.runs.certificate import code_hash, write_certificate
from research.training.trained_run import TrainedRun

_RESAMPLES = 2000
_BINS = 15
_MOST_FLIPPED = 1000

Records = Sequence[Mapping[str, Any]]
Columns = Mapping[str, np.ndarray]

# Metrics of examples, whose mean is that of a split, and metrics of a whole split; by their names in a config.
_OF_EXAMPLES: dict[str, Callable[[Columns], np.ndarray]] = {
    "accuracy": lambda x: (x["prediction"] == x["label"]).astype(np.float64),
    "mean_absolute_error": lambda x: np.abs(x["prediction"] - x["label"]),
}
_OF_SPLITS: dict[str, Callable[[Columns], float]] = {
    "f1": lambda x: _scikit_learn("f1_score", x, zero_division=0.0),
    "matthews": lambda x: _scikit_learn("matthews_corrcoef", x),
    "pearson": lambda x: float(np.corrcoef(x["prediction"], x["label"])[0, 1]),
    "r2": lambda x: _scikit_learn("r2_score", x),
}


def _scikit_learn(name: str, columns: Columns, **options: Any) -> float:
    from sklearn import metrics  # takes a second

    return float(getattr(metrics, name)(columns["label"], columns["prediction"], **options))


def columns_of(records: Records) -> Columns:
    """Labels, predictions and scores of the records whose label is not hidden."""
    names = [name for name in ("index", "label", "prediction", "scores") if records and name in records[0]]
    columns = {name: np.asarray([record[name] for record in records]) for name in names}
    if "scores" in columns and "label" in columns:
        visible = columns["label"] >= 0
        columns = {name: column[visible] for name, column in columns.items()}
    return columns


def interval_of_change(metric: str, original: Columns, compressed: Columns) -> tuple[float, float] | None:
    """The 95 % interval of compressed − original, by a bootstrap of pairs; None for a metric without examples.

    Both are computed on the same draws of examples (Efron & Tibshirani 1993, chapter 13).
    """
    if "label" not in original or "label" not in compressed:
        return None
    rng = np.random.default_rng(0)
    draws = rng.integers(len(original["label"]), size=(_RESAMPLES, len(original["label"])))
    if metric in _OF_EXAMPLES:
        of_examples = _OF_EXAMPLES[metric]
        changes = (of_examples(compressed) - of_examples(original))[draws].mean(axis=1)
    elif metric in _OF_SPLITS:
        of_split = _OF_SPLITS[metric]

        def change(draw: np.ndarray) -> float:
            pair = ({name: x[draw] for name, x in each.items()} for each in (compressed, original))
            after, before = (of_split(each) for each in pair)
            return float(after - before)

        changes = np.asarray([change(draw) for draw in draws])
    else:
        return None
    low, high = np.nanquantile(changes, (0.025, 0.975))
    return float(low), float(high)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The expected calibration error, [0, 1], of [N, C] probabilities in 15 bins of equal width (Guo et al. 2017)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    count = np.bincount(bins, minlength=_BINS)
    gaps = np.abs(np.bincount(bins, right, _BINS) - np.bincount(bins, confidence, _BINS))
    return float(gaps[count > 0].sum() / len(labels))


def temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, 0.05 to 20, by which logarithms of probabilities fit labels best (Guo et al. 2017)."""
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))

    def loss(log_temperature: float) -> float:
        scaled = _softmax(logits / np.exp(log_temperature))
        picked = scaled[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(picked, np.finfo(np.float32).tiny)).mean())

    found = scipy.optimize.minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _calibrated(columns: Columns) -> dict[str, float] | None:
    """The calibration error as it is, the temperature that fits best, and the error with it."""
    if "scores" not in columns or "label" not in columns:
        return None
    probabilities, labels = columns["scores"].astype(np.float64), columns["label"].astype(int)
    best = temperature(probabilities, labels)
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return {
        "error": calibration_error(probabilities, labels),
        "temperature": best,
        "error_at_temperature": calibration_error(_softmax(logits / best), labels),
    }


def _change(metric: str, mode: str, before: float | None, after: float | None) -> dict[str, Any]:
    """The metric's values, and how much worse it is: in points, or for errors and losses in percent of what it was."""
    drop = None
    if before is not None and after is not None:
        drop = 100 * (before - after) if mode == "max" else 100 * (after - before) / abs(before or 1.0)
    return {"name": metric, "original": before, "compressed": after, "drop": drop}


def certify(
    original: Network,
    compressed: Network,
    source: TrainedRun,
    result: TrainedRun,
    calibration: Calibration,
    methods: Sequence[str],
    *,
    seconds: float = 2.0,
) -> dict[str, Any]:
    """Measures both networks and writes the certificate of `result` -> the certificate.

    Raises UserError if the run's main split is its test split.
    """
    config = compressed.config
    split, metric, mode = config.eval.splits[0], config.eval.metric, config.eval.mode
    if split.partition("[")[0] == "test":
        raise UserError("eval.splits begins with the test split, on which nothing may be chosen; name another first")
    (before, old), (after, new) = source.predictions(split), result.predictions(split)
    old_columns, new_columns = columns_of(old), columns_of(new)
    times = timings([original, compressed], calibration, seconds=seconds)
    change = _change(metric, mode, before.get(metric), after.get(metric))
    flips = _flips(old_columns, new_columns)
    dataset = source.dataset()
    contents = {
        "methods": list(methods),
        "of": {"run": str(source.run.path), "step": source.step, "params_sha256": _sha(source)},
        "split": split,
        "examples": len(old),
        "metric": {**change, "interval": interval_of_change(metric, old_columns, new_columns)},
        "agreement": None if flips is None else 1 - len(flips) / max(1, len(old_columns["prediction"])),
        "flipped": None if flips is None else flips[:_MOST_FLIPPED],
        "calibration": {"original": _calibrated(old_columns), "compressed": _calibrated(new_columns)},
        "parameters": {"original": original.parameters, "compressed": compressed.parameters},
        "zeros": zeros(compressed.variables["params"]),
        "bytes_in_memory": {"original": original.bytes, "compressed": compressed.bytes},
        "bytes_on_disk": {"compressed": _on_disk(result.run.path)},
        "times": {
            name: [dataclasses.asdict(timing) for timing in each]
            for name, each in zip(("original", "compressed"), times, strict=True)
        },
        "hardware": hardware(),
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "code": code_hash(),
    }
    return write_certificate(result.run, contents)


def _sha(trained: TrainedRun) -> str | None:
    return (trained.run.summary() or {}).get("params_sha256")


def _flips(old: Columns, new: Columns) -> list[dict[str, Any]] | None:
    """The examples whose class changed; None if no classes are predicted."""
    if "scores" not in old or "scores" not in new:
        return None
    where = np.flatnonzero(old["prediction"] != new["prediction"])
    return [
        {"index": int(old["index"][i]), "original": int(old["prediction"][i]), "compressed": int(new["prediction"][i])}
        for i in where
    ]


def _on_disk(folder: Path) -> int:
    """The bytes of what predicting needs."""
    parts = (folder / "config.json", folder / "assets", folder / "checkpoints")
    files = {path for part in parts for path in (part, *part.rglob("*")) if path.is_file()}
    return sum(path.stat().st_size for path in files)


def table(certificate: Mapping[str, Any]) -> str:
    """The certificate in a few lines, for people."""
    metric, sizes = certificate["metric"], certificate["bytes_in_memory"]
    lines = []
    if metric["compressed"] is not None:
        span = metric["interval"]
        low_high = "" if span is None else f" (95 % interval of the change {span[0]:+.4f} to {span[1]:+.4f})"
        lines.append(
            f"{certificate['split']} {metric['name']}: {metric['original']:.4f} -> {metric['compressed']:.4f}{low_high}"
        )
    if certificate["agreement"] is not None:
        lines.append(f"same class: {certificate['agreement']:.2%} of {certificate['examples']:,} examples")
    before, after = (certificate["calibration"][name] for name in ("original", "compressed"))
    if before and after:
        lines.append(f"calibration error: {before['error']:.4f} -> {after['error']:.4f}")
    parameters = certificate["parameters"]
    lines.append(
        f"parameters: {parameters['original']:,} -> {parameters['compressed']:,}; in memory "
        f"{sizes['original'] / 1e6:.1f} -> {sizes['compressed'] / 1e6:.1f} MB"
    )
    for old, new in zip(certificate["times"]["original"], certificate["times"]["compressed"], strict=True):
        shape = f"{old['rows']} × {old['length']}" if old["length"] else f"{old['rows']}"
        lines.append(
            f"batches of {shape}: {old['p50_ms']:.1f} -> {new['p50_ms']:.1f} ms, "
            f"{old['p50_ms'] / new['p50_ms']:.2f} times as fast"
        )
    return "\n".join(f"  {line}" for line in lines)
