"""Hashed bags of words on the real SST-2 and 20 Newsgroups: what hashing costs in accuracy, and a gradient's time.

PYTHONPATH=. python benchmarks/bags.py accuracy CONFIG.py:PRESET [BUCKETS ...]   # 0: scikit-learn's vocabulary
PYTHONPATH=. python benchmarks/bags.py gradient CONFIG.py:PRESET

`accuracy` is that of the optimum of L2-regularised logistic regression with C = 10, found by SciPy on the sparse
matrix. `gradient` times value and gradient of the mean loss over all training examples, as one jitted program. For
configs/logistic_newsgroups.py:newsgroups and configs/logistic_sst2.py:sst2; their data must be prepared for TFDS.
"""

import argparse
import time
from typing import Any

import numpy as np


def features(config: Any, buckets: int) -> dict[str, tuple[Any, np.ndarray]]:
    """Split -> (CSR matrix, labels) of `train` and the first of eval.splits; buckets 0: by TfidfVectorizer."""
    import scipy.sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    from research.data import load

    names = ("train", config.eval.splits[0])
    section = config.data.to_dict()
    transform = section["transform"]
    if buckets:
        transform["buckets"] = buckets
        splits = {name: load.load(section).split(name) for name in names}
        return {
            name: (
                scipy.sparse.csr_matrix(
                    (bags.values.values, bags.ids.values, bags.ids.offsets), shape=(len(bags), buckets)
                ),
                bags.labels,
            )
            for name, bags in splits.items()
        }
    raw = load.raw(section["name"], section["data_dir"])
    texts = {name: [text.decode("utf-8", "replace") for text in raw[name][transform["inputs"][0]]] for name in names}
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, ngram_range=transform["ngrams"], token_pattern=r"(?u)\b\w+\b", dtype=np.float32
    ).fit(texts["train"])
    return {name: (vectorizer.transform(texts[name]).tocsr(), np.asarray(raw[name]["label"])) for name in names}


def optimum(train: tuple[Any, np.ndarray], num_classes: int, C: float = 10.0) -> tuple[np.ndarray, np.ndarray, int]:
    """Weights [D, columns], intercepts and iterations: the minimum of scikit-learn's objective, to tol=1e-5."""
    import scipy.optimize
    import scipy.special

    matrix, labels = train
    used = np.unique(matrix.indices)  # the others' weights stay zero
    matrix = matrix[:, used].tocsr()
    transposed, (size, width) = matrix.T.tocsr(), matrix.shape
    columns = 1 if num_classes == 2 else num_classes

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[:-columns].reshape(width, columns), flat[-columns:]
        logits = matrix @ weights.astype(np.float32) + bias.astype(np.float32)
        if columns == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        log_probabilities = scipy.special.log_softmax(logits, axis=1)
        error = np.exp(log_probabilities)
        error[np.arange(size), labels] -= 1
        error = error[:, -columns:] / size
        loss = -log_probabilities[np.arange(size), labels].mean(dtype=float) + np.square(weights).sum() / (2 * C * size)
        gradient = transposed @ error + weights / (C * size)
        return float(loss), np.concatenate([gradient.ravel(), error.sum(axis=0)]).astype(float)

    start = np.zeros((width + 1) * columns)
    options = {"maxiter": 1000, "gtol": 1e-5, "ftol": 64 * np.finfo(float).eps, "maxls": 50}
    found = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    kernel = np.zeros((train[0].shape[1], columns))
    kernel[used] = found.x[:-columns].reshape(width, columns)
    return kernel, found.x[-columns:], found.nit


def accuracy(config: Any, buckets: int) -> None:
    splits = features(config, buckets)
    began = time.process_time()
    kernel, bias, iterations = optimum(splits["train"], config.model.num_classes)
    seconds = time.process_time() - began
    matrix, labels = splits[config.eval.splits[0]]
    logits = matrix @ kernel + bias[None, :]
    predictions = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(axis=1)
    what = f"{buckets:,} buckets" if buckets else f"a vocabulary of {kernel.shape[0]:,}"
    print(
        f"{config.data.name}, {what}: {config.eval.splits[0]} accuracy {(predictions == labels).mean():.4f}, "
        f"{iterations} iterations, {seconds:.1f} s of processor time",
        flush=True,
    )


def gradient_times(config: Any, rounds: int = 10) -> tuple[list[float], list[float]]:
    """Seconds of the clock and of the processor, of value and gradient of the mean loss over all of `train`."""
    import jax

    from research.data.pipeline import make_batch
    from research.experiment import prepare
    from research.platform import prepare_process

    prepare_process()
    experiment = prepare(config)
    stream = experiment.streams("train")
    batch = jax.device_put(make_batch(stream.examples, stream.rows))
    params = experiment.init().params

    @jax.jit
    def loss(params: Any, batch: Any) -> Any:
        def mean(params: Any) -> Any:
            outputs = experiment.module.apply({"params": params}, batch, train=True)
            scores = experiment.task.scores(outputs, batch)["loss"]
            return scores.total / scores.weight

        return jax.value_and_grad(mean)(params)

    jax.block_until_ready(loss(params, batch))
    clock, processor = [], []
    for _ in range(rounds):
        began = time.perf_counter(), time.process_time()
        jax.block_until_ready(loss(params, batch))
        clock.append(time.perf_counter() - began[0])
        processor.append(time.process_time() - began[1])
    return clock, processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("accuracy", "gradient"))
    parser.add_argument("config")
    parser.add_argument("buckets", nargs="*", type=int)
    arguments = parser.parse_args()

    from research.config import load

    config = load(arguments.config).config
    if arguments.what == "accuracy":
        for buckets in arguments.buckets or (config.data.transform.buckets, 0):
            accuracy(config, buckets)
        return
    for name, seconds in zip(("clock", "processor"), gradient_times(config), strict=True):
        print(f"{name}: best {min(seconds) * 1e3:.0f} ms, median {np.median(seconds) * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
