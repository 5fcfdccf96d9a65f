"""Least squares, ridge and logistic regression: this project's solvers and scikit-learn's, for the same objective.

python benchmarks/linear.py                                # all sizes: 2 GB of memory, some minutes
python benchmarks/linear.py --sizes 442x10 10000x100       # seconds

Both sides read the same float32 arrays from memory and run alternately, in separate processes (turns.py). A fit covers
everything from there to the coefficients: for this project the compiled `solve_step` including the copy to the device,
for scikit-learn `fit`. Compilation time is a separate column. The objective reached is computed in float64; the last
column is the difference, negative where this project's is lower. Writes benchmarks/results/linear.png.
"""

import argparse
import functools
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from turns import Measure, Results, Side, environment, serve

SIZES = ("442x10", "10000x100", "100000x500", "1000000x100")
KINDS = ("ols", "ridge", "logistic")
# scikit-learn's defaults.
ALPHA, C, TOLERANCE = 1.0, 1.0, 1e-4


@functools.lru_cache(maxsize=1)
def problem(kind: str, size: str) -> tuple[np.ndarray, np.ndarray]:
    """Features that share a common factor, float32 [N, D], and labels [N]."""
    rows, columns = map(int, size.split("x"))
    rng = np.random.default_rng(0)
    features = rng.standard_normal((rows, columns), dtype=np.float32)
    features += 0.5 * rng.standard_normal((rows, 1), dtype=np.float32)
    weights = (rng.standard_normal(columns) / np.sqrt(columns)).astype(np.float32)
    labels = features @ weights + rng.logistic(size=rows).astype(np.float32)
    return features, (labels > 0).astype(np.int32) if kind == "logistic" else labels


def objective(kind: str, size: str, coefficients: np.ndarray, intercept: float) -> float:
    """The objective per example, in float64."""
    features, labels = problem(kind, size)
    total = 0.0
    for part, y in zip(np.array_split(features, 20), np.array_split(labels, 20), strict=True):
        outputs = part.astype(np.float64) @ coefficients + intercept
        total += np.sum(np.logaddexp(0, outputs) - y * outputs if kind == "logistic" else (outputs - y) ** 2)
    penalty = {"ols": 0.0, "ridge": ALPHA, "logistic": 1 / (2 * C)}[kind]
    return float((total + penalty * coefficients @ coefficients) / len(labels))


def timed(kind: str, size: str, steps: int, fit: Any) -> dict[str, float]:
    """Fits once to warm up, then `steps` times; fit() -> coefficients [D], intercept."""
    features, _ = problem(kind, size)
    start = time.perf_counter()
    fit()
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(steps):
        coefficients, intercept = fit()
    seconds = time.perf_counter() - start
    reached = objective(kind, size, np.asarray(coefficients, np.float64), float(intercept))
    return {"seconds": seconds, "examples": steps * len(features), "first": first, "objective": reached}


def ours(arguments: argparse.Namespace) -> Measure:
    """(setting, steps) -> the results of `timed`."""
    from research.devices.platform import prepare_process

    prepare_process()
    import jax
    import jax.numpy as jnp
    import optax

    from research import solvers
    from research.core.state import init_state
    from research.core.tasks import Classification, Regression
    from research.models.linear import LinearRegression, LogisticRegression

    def measure(setting: str, steps: int) -> dict[str, float]:
        kind, size = setting.split()
        features, labels = problem(kind, size)
        module = LogisticRegression(2) if kind == "logistic" else LinearRegression()
        task = Classification() if kind == "logistic" else Regression()
        name = "lbfgs" if kind == "logistic" else "closed_form"
        decay = {"ols": 0.0, "ridge": 2 * ALPHA / len(labels), "logistic": 1 / (C * len(labels))}[kind]
        batch = {"features": features, "labels": labels, "weight": np.ones(len(labels), np.float32)}
        blocks = solvers.blocks(batch, rows=len(labels), devices=1, parameters=features.shape[1])
        # As in the pipeline: rows of weight 0 fill up the last block.
        extra = -len(labels) % blocks
        batch = {k: np.concatenate([x, np.zeros((extra, *x.shape[1:]), x.dtype)]) for k, x in batch.items()}
        state = init_state(module, optax.identity(), jax.tree.map(lambda x: x[:1], batch), 0)
        step = functools.partial(
            solvers.solve_step,
            module=module,
            task=task,
            solver=functools.partial(
                solvers.SOLVERS[name], tolerance=TOLERANCE, max_iterations=1000, factorization=arguments.factorization
            ),
            weight_decay=decay,
            decay_exclude="bias",
            devices=1,
            blocks=blocks,
        )
        start = time.perf_counter()
        compiled = jax.jit(step).lower(state, jax.tree.map(jax.typeof, batch)).compile()
        compiling = time.perf_counter() - start
        iterations: list[float] = []

        def fit() -> tuple[Any, Any]:
            solution, scores = compiled(state, jax.tree.map(jnp.asarray, batch))
            iterations.append(float(scores["iterations"].total))
            linear = jax.device_get(solution.params["linear"])
            return linear["kernel"][:, 0], linear["bias"][0]

        return timed(kind, size, steps, fit) | {"compiling": compiling, "iterations": iterations[-1]}

    return measure


def peer(arguments: argparse.Namespace) -> Measure:
    """The same for scikit-learn, with its defaults."""
    from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge

    def measure(setting: str, steps: int) -> dict[str, float]:
        kind, size = setting.split()
        features, labels = problem(kind, size)
        model = {
            "ols": LinearRegression(),
            "ridge": Ridge(alpha=ALPHA),
            "logistic": LogisticRegression(C=C, tol=TOLERANCE, max_iter=1000),
        }[kind]

        def fit() -> tuple[Any, Any]:
            model.fit(features, labels)
            return np.ravel(model.coef_), np.ravel(model.intercept_)[0]

        result = timed(kind, size, steps, fit)
        return result | {"iterations": float(model.n_iter_[0]) if kind == "logistic" else 1.0}

    return measure


def table(results: Results, settings: list[str]) -> str:
    lines = [
        "| fit | rows × features | ours, s | scikit-learn, s | ratio | compiling, s | iterations, ours / peer | "
        "objective, peer's | ours − peer's, relative |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for setting in settings:
        kind, size = setting.split()
        mine, theirs = (results.of[side, setting] for side in ("ours", "peer"))
        count = int(size.split("x")[0])
        seconds = [count / results.rate(side, setting) for side in ("ours", "peer")]
        compiling = statistics.median(result["compiling"] for result in mine)
        a, b = mine[-1]["objective"], theirs[-1]["objective"]
        lines.append(
            f"| {kind} | {size.replace('x', ' × ')} | {seconds[0]:.4f} | {seconds[1]:.4f} | "
            f"{results.ratio(setting, setting)} | {compiling:.2f} | {mine[-1]['iterations']:.0f} / "
            f"{theirs[-1]['iterations']:.0f} | {b:.8f} | {(a - b) / b:+.1e} |"
        )
    return "\n".join(lines)


def plot(results: Results, settings: list[str], path: Path) -> None:
    """Plots seconds per fit over rows × features."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    for axis, kind in zip(figure.subplots(1, len(KINDS), sharey=True), KINDS, strict=True):
        of_kind = [setting for setting in settings if setting.split()[0] == kind]
        sizes = [tuple(map(int, setting.split()[1].split("x"))) for setting in of_kind]
        for side, name in (("ours", "this project"), ("peer", "scikit-learn")):
            seconds = [rows / results.rate(side, setting) for (rows, _), setting in zip(sizes, of_kind, strict=True)]
            axis.loglog([rows * columns for rows, columns in sizes], seconds, marker="o", label=name)
        axis.set(title=kind, xlabel="rows × features")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.axes[0].set_ylabel("seconds a fit")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="rows x features")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument(
        "--factorization", default="auto", help="for least squares and ridge: auto (as in the configs), qr or cholesky"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="fits a round")
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve({"ours": ours, "peer": peer}[arguments.serve], arguments)
        return
    settings = [f"{kind} {size}" for kind in arguments.kinds for size in arguments.sizes]
    results = Results()
    passed_on = (f"--factorization={arguments.factorization}",)
    sides = {name: Side(__file__, name, passed_on) for name in ("ours", "peer")}
    for setting in settings:  # one problem at a time, so that only one is in memory
        both = [(side, setting) for side in sides]
        results.measure(sides, both, rounds=arguments.rounds, steps=arguments.steps)
    for side in sides.values():
        side.close()
    print(environment("jax", "scikit-learn", "numpy") + "\n")
    print(table(results, settings))
    if set(arguments.kinds) == set(KINDS) and set(arguments.sizes) == set(SIZES):
        plot(results, settings, Path(__file__).parent / "results" / "linear.png")


if __name__ == "__main__":
    main()
