"""How far the service's predictions are from `research.predict`'s, by what it computes in.

python benchmarks/serve_agreement.py --run=RUN --texts=TEXTS

RUN is a classifier of single texts; TEXTS a file with a text in each line. The texts are answered in a random order, in
random batches of 1 to 19, as requests at the same time would be.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from research.inference.predictor import Predictor
from research.runs.rundir import RunDir
from research.serve.limits import Limits
from research.serve.model import COMPUTE, Answer, ServedModel


def answers(model: ServedModel, texts: Sequence[str], seed: int = 0) -> list[Answer]:
    """The model's answer for each text, from random batches."""
    (column,) = model.signature.inputs
    parts = model.encode({column: list(texts)})
    rng = np.random.default_rng(seed)
    waiting = list(rng.permutation(len(parts)))
    found: dict[int, Answer] = {}
    while waiting:
        count = int(rng.integers(1, 20))
        asked, waiting = waiting[:count], waiting[count:]
        made, _ = model.answer([parts[i] for i in asked])
        found |= {i: answer for i, answer in zip(asked, made, strict=True) if answer is not None}
        waiting = [i for i in asked if i not in found] + waiting
    return [found[i] for i in range(len(parts))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--texts", required=True)
    arguments = parser.parse_args()
    texts = Path(arguments.texts).read_text().splitlines()
    predictor = Predictor.open(arguments.run, "best")
    records = predictor.predict({predictor.signature.inputs[0]: texts})
    for compute in COMPUTE:
        model = ServedModel.open("model", RunDir.open(arguments.run), "best", compute=compute)
        for _ in model.warm_up(Limits()):
            pass
        pairs = list(zip(answers(model, texts), records, strict=True))
        score = max(np.abs(answer.values["scores"] - record["scores"]).max() for answer, record in pairs)
        labels = sum(int(answer.values["prediction"]) != record["prediction"] for answer, record in pairs)
        print(
            f"{compute}: {len(pairs)} texts, scores differ by at most {score:.2g}, {labels} labels differ", flush=True
        )


if __name__ == "__main__":
    main()
