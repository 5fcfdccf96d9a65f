"""Corpora in shards: the cost of a shuffled order, what packing cuts off and pads, and how quickly rows are made.

python benchmarks/shards.py --train='corpus/*.array_record*' --tokenizer=TOKENIZER.JSON --row_length=512

Prints Markdown tables. Tokens are counted in the rows of a masked language model, with seed 0.
"""

import argparse
import resource
import time
import tracemalloc

import numpy as np


def orders() -> None:
    from research.data.bijection import Bijection, order_key

    print("| items | one item (µs) | per item of 1,000 (µs) | per item of 10^6 (µs) | peak memory of 1,000 (KiB) |")
    print("|---|---|---|---|---|")
    for power in (4, 6, 9, 12, 18):
        size = 10**power
        bijection, cells = Bijection(size, order_key(0, 0)), []
        for count, repeats in ((1, 200), (1000, 50), (min(size, 10**6), 1)):
            times = []
            for i in range(repeats):
                places = (np.arange(count) + i * 7919) % size
                began = time.perf_counter()
                bijection(places)
                times.append(time.perf_counter() - began)
            cells.append(f"{np.median(times) / count * 1e6:.2f}")
        tracemalloc.start()
        bijection(np.arange(1000))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"| 10^{power} | {' | '.join(cells)} | {peak / 1024:.0f} |")


def packing(train: str, tokenizer: str | None, row_length: int, sizes: list[int], total: int) -> None:
    from research.configs import bert_mlm
    from research.data.load import load
    from research.data.shards.rows import ShardRows

    print("\n| rows of a group | documents | full | full, as estimated | cut off | cut off, as estimated | tokens/s |")
    print("|---|---|---|---|---|---|---|")
    for size in sizes:
        section = bert_mlm.get_config("shards").data
        section.train, section.shards.rows, section.shards.sample = train, size, 2000
        section.transform.update(row_length=row_length, tokenizer=tokenizer)
        examples = load(section).split("train")
        assert isinstance(examples, ShardRows)
        plan, kept, tokens = examples.plan, 0, 0
        groups = -(-total // size)
        began = time.perf_counter()
        for group in range(groups):
            positions = np.arange(group * plan.documents, (group + 1) * plan.documents)
            found = len(examples.encoder.encode({"text": examples.documents(positions, 0)}).labels)  # type: ignore[arg-type]
            kept, tokens = kept + min(found, size * (row_length - 2)), tokens + found
        seconds = time.perf_counter() - began
        full = kept / (groups * size * (row_length - 2))
        print(
            f"| {size:,} | {plan.documents:,} | {full:.1%} | {plan.fullness:.1%} | {1 - kept / tokens:.1%} | "
            f"{plan.cut:.1%} | {tokens / seconds:,.0f} |"
        )
    print(f"\npeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="globs of shards, as in data.train; without them only orders are measured")
    parser.add_argument("--tokenizer", help="a BERT tokenizer.json; without it one is trained on a sample")
    parser.add_argument("--row_length", type=int, default=512)
    parser.add_argument("--rows", type=int, nargs="*", default=[16, 64, 256, 1024], help="the sizes of groups")
    parser.add_argument("--total", type=int, default=8192, help="rows to make of each")
    arguments = parser.parse_args()
    orders()
    if arguments.train:
        packing(arguments.train, arguments.tokenizer, arguments.row_length, arguments.rows, arguments.total)


if __name__ == "__main__":
    main()
