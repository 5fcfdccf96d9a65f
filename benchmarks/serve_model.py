"""A model as the service computes it, without HTTP: how much several batches at once are worth, and a pause before one.

python benchmarks/serve_model.py --run=RUN --texts=TEXTS [--compute=float32]        # about 1 minute

RUN is a text classifier; TEXTS a file with a text in each line. In a loop, one thread and then two take a single text,
the texts of a row, or those of four rows; each is repeated in turn. Then one text is computed after pauses.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from turns import environment

from research.data.parts import Part
from research.runs.rundir import RunDir
from research.serve.limits import Limits
from research.serve.model import ServedModel

SECONDS = 2.0  # of a loop
REPLICAS = (1, 2)
ROWS = (0, 1, 4)  # of texts; 0 for a single one
PAUSES_MS = (0, 10, 250)  # 250: light load, 4 requests a second


def in_loop(model: ServedModel, parts: Sequence[Part], replicas: int) -> float:
    """The inputs a second of threads that compute the same inputs again and again."""
    counts, end = [0] * replicas, time.perf_counter() + SECONDS

    def work(thread: int) -> None:
        while time.perf_counter() < end:
            answers, _ = model.answer(parts)
            counts[thread] += sum(answer is not None for answer in answers)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(replicas)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def after_pause(model: ServedModel, part: Part, pause_ms: float, count: int = 24) -> float:
    """The median time of an input after pauses, in milliseconds."""
    times = []
    for _ in range(count):
        time.sleep(pause_ms / 1000)
        began = time.perf_counter()
        model.answer([part])
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def filling(parts: Sequence[Part], items: int) -> Sequence[Part]:
    """The first parts that have at most as many items."""
    count = total = 0
    while count < len(parts) and total + parts[count].length <= items:
        total += parts[count].length
        count += 1
    return parts[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a run directory of a text classifier")
    parser.add_argument("--texts", required=True, help="a file with a text in each line")
    parser.add_argument("--compute", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model = ServedModel.open("model", RunDir.open(arguments.run), compute=arguments.compute, operations=("predict",))
    for _ in model.warm_up(Limits()):
        pass
    (name,) = model.signature.inputs
    parts = [model.encode({name: [text]})[0] for text in Path(arguments.texts).read_text().splitlines()[:64]]
    batches = {rows: filling(parts, rows * model.row_length) if rows else parts[:1] for rows in ROWS}
    found: dict[tuple[int, int], list[float]] = {(rows, replicas): [] for rows in ROWS for replicas in REPLICAS}
    for _ in range(arguments.rounds):
        for rows, replicas in found:
            found[rows, replicas].append(in_loop(model, batches[rows], replicas))
    print(environment("jax"), arguments.compute, jax.default_backend())
    for (rows, replicas), values in found.items():
        what = f"texts of {rows} rows ({len(batches[rows])})" if rows else "a single text"
        rates = f"{statistics.median(values):.0f} inputs/s ({min(values):.0f}–{max(values):.0f})"
        print(f"{what}, {replicas} at once: {rates}")
    for pause in PAUSES_MS:
        print(f"a text of {parts[0].length} tokens after {pause} ms: {after_pause(model, parts[0], pause):.1f} ms")


if __name__ == "__main__":
    main()
