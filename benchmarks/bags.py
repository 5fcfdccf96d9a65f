"""Logistic regression on bags of n-grams: this project with hashing, and scikit-learn with a vocabulary, in one run.

python benchmarks/bags.py                                       # 20 Newsgroups and SST-2
python benchmarks/bags.py --sets=sst2 --buckets 262144 1048576  # what hashing costs

Both sides count the same n-grams (including words of one letter), weight them by sublinear tf-idf and minimize the same
objective, C = 10, to the same tolerance, in float32: this project with hashed buckets and `lbfgs`, scikit-learn with
TfidfVectorizer and LogisticRegression. A fit goes from bags in memory to weights, after compilation; the accuracy is on
the split that the config evaluates. Each side runs in a separate process (turns.py). The data must be prepared for
TFDS.
"""

import argparse
import time
from typing import Any

import numpy as np
from turns import Measure, Results, Side, environment, serve

CONFIGS = {"newsgroups": "configs/logistic_newsgroups.py:newsgroups", "sst2": "configs/logistic_sst2.py:sst2"}


def ours(_: argparse.Namespace) -> Measure:
    """("set buckets", fits) -> seconds, examples, accuracy, iterations, and the compilation time in seconds."""
    from research.devices.platform import prepare_process

    prepare_process()
    import jax

    from research.config import load
    from research.devices.sharding import put_batch
    from research.training.experiment import prepare

    def measure(setting: str, fits: int) -> dict[str, float]:
        name, buckets = setting.split()
        overrides = [f"data.transform.buckets={buckets}", f"model.num_features={buckets}"] if int(buckets) else []
        experiment = prepare(load(CONFIGS[name], overrides).config)
        batch = put_batch(next(experiment.training_batches(0)), experiment.mesh)
        began = time.perf_counter()
        step = experiment.train_step.lower(experiment.state, batch).compile()
        compiling = time.perf_counter() - began
        seconds = 0.0
        for _ in range(fits):
            state = jax.block_until_ready(experiment.init())
            began = time.perf_counter()
            state, scores = jax.block_until_ready(step(state, batch))
            seconds += time.perf_counter() - began
        values, _ = experiment.evaluate(state, experiment.config.eval.splits[0])
        return {
            "seconds": seconds,
            "examples": fits * len(experiment.streams("train").examples),
            "accuracy": values["accuracy"],
            "iterations": float(scores["iterations"].total),
            "compiling": compiling,
            "features": experiment.config.model.num_features,
        }

    return measure


def peer(_: argparse.Namespace) -> Measure:
    """Like `ours`; ignores the buckets and compiles nothing."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from research.config import load
    from research.data.load import raw

    def texts(name: str) -> tuple[Any, dict[str, tuple[Any, np.ndarray]]]:
        config = load(CONFIGS[name]).config
        transform = config.data.transform
        columns = raw(config.data)
        splits = {}
        for split in ("train", config.eval.splits[0]):
            lines = [text.decode("utf-8", "replace") for text in columns[split][transform.inputs[0]]]
            splits[split] = lines, np.asarray(columns[split][transform.label])
        return config, splits

    def measure(setting: str, fits: int) -> dict[str, float]:
        config, splits = texts(setting.split()[0])
        vectorizer = TfidfVectorizer(
            sublinear_tf=True,
            ngram_range=config.data.transform.ngrams,
            token_pattern=r"(?u)\b\w+\b",
            dtype=np.float32,
        )
        features, labels = vectorizer.fit_transform(splits["train"][0]), splits["train"][1]
        model = LogisticRegression(C=config.optimizer.C, tol=config.optimizer.tolerance, max_iter=1000)
        began = time.perf_counter()
        for _ in range(fits):
            model.fit(features, labels)
        seconds = time.perf_counter() - began
        held_out, answers = splits[config.eval.splits[0]]
        return {
            "seconds": seconds,
            "examples": fits * len(labels),
            "accuracy": float(model.score(vectorizer.transform(held_out), answers)),
            "iterations": float(model.n_iter_.max()),
            "compiling": 0.0,
            "features": features.shape[1],
        }

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(CONFIGS), help="some of the datasets, comma-separated")
    parser.add_argument("--buckets", nargs="+", default=["0"], help="buckets of this project; 0: as in the config")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve({"ours": ours, "peer": peer}[arguments.serve], arguments)
        return
    sides = {name: Side(__file__, name) for name in ("ours", "peer")}
    results = Results()
    names = arguments.sets.split(",")
    settings = [("ours", f"{name} {buckets}") for name in names for buckets in arguments.buckets]
    settings += [("peer", f"{name} {arguments.buckets[0]}") for name in names]
    results.measure(sides, settings, rounds=arguments.rounds, steps=1)
    for process in sides.values():
        process.close()
    print(environment("jax", "scikit-learn", "numpy") + "\n")
    print("| | features | accuracy | seconds per fit | compilation, s | iterations | speed relative to scikit-learn |")
    print("|---|---|---|---|---|---|---|")
    for side, setting in settings:
        last = results.of[side, setting][-1]
        seconds = last["examples"] / results.rate(side, setting)
        rival = f"{setting.split()[0]} {arguments.buckets[0]}"
        ratio = results.rate(side, setting) / results.rate("peer", rival)
        print(
            f"| {'this project' if side == 'ours' else 'scikit-learn'}, {setting.split()[0]} | {last['features']:,.0f} "
            f"| {last['accuracy']:.4f} | {seconds:.2f} | {last['compiling']:.1f} | {last['iterations']:.0f} "
            f"| {f'{ratio:.2f}' if side == 'ours' else ''} |"
        )


if __name__ == "__main__":
    main()
