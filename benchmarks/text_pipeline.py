# mypy: disable-error-code="misc"
"""The text pipeline on SST-2: tokenization, the cache, packing, seeking.

python benchmarks/text_pipeline.py --tokenizer=TOKENIZER.JSON

Prepare SST-2 for TFDS first. Uses a temporary cache folder.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any


def seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="a BERT tokenizer.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RESEARCH_CACHE"] = cache
        measure(arguments.tokenizer)


def measure(tokenizer: str) -> None:
    from research.configs import bert_sst2
    from research.data import load
    from research.data.cache import ArtifactCache
    from research.data.examples import TextExamples
    from research.data.pipeline import Rows, Stream, training_batches
    from research.data.sources import tfds_source
    from research.data.text.wordpiece import WordPiece

    section = bert_sst2.get_config("base").data
    section.transform.tokenizer = tokenizer
    section.transform.max_length = 128
    section.transform.pad_to = (128,)
    options = {key: value for key, value in section.transform.items() if key != "name"}

    reading, columns = seconds(lambda: tfds_source.load(section.name, None))
    rows = sum(len(split["label"]) for split in columns.values())

    def tokenize() -> dict[str, TextExamples]:
        cache = ArtifactCache(source="benchmark")
        encoder = WordPiece(**options).fit(columns, cache)
        return {split: encoder.encode(columns[split], split=split, cache=cache) for split in columns}

    tokenizing, examples = seconds(tokenize)
    print(f"reading {rows:,} sentences of SST-2 with TFDS, including its import: {reading:.2f} s")
    print(f"tokenizing them and writing the cache: {tokenizing:.2f} s")
    first, _ = seconds(lambda: load.load(section))
    second, _ = seconds(lambda: load.load(section))
    print(f"the whole data section, first start: {first:.2f} s; second start, from the cache: {1e3 * second:.1f} ms")

    train = examples["train"]
    lengths = train.tokens.lengths
    print(f"\n{len(train):,} training sentences, {lengths.mean():.2f} tokens on average, {lengths.max()} at most")
    print("row length | rows | sentences a row (standard deviation) | real tokens / all tokens | planning")
    for row_length in (72, 112, 128, 256, 512):
        planning, stream = seconds(lambda n=row_length: Stream.packed(_with_row_length(train, n)))
        held = (stream.rows >= 0).sum(axis=1)
        efficiency = lengths.sum() / (len(stream.rows) * row_length)
        sentences = f"{held.mean():.2f} ({held.std():.2f})"
        print(f"{row_length} | {len(stream.rows)} | {sentences} | {efficiency:.4f} | {planning:.3f} s")

    print("\nfrom opening the stream to the batch of a step, median of 20:")
    times = {}
    for step in (1, 1_000_000):
        repeats = []
        for _ in range(20):
            stream = Stream.packed(_with_row_length(train, 128))

            def first_batch(stream: Stream = stream, step: int = step) -> Any:
                return next(
                    training_batches(
                        stream, batch_rows=4, start_step=step, steps=step + 1, total_rows=None, seed=0, rows=Rows()
                    )
                )

            repeats.append(seconds(first_batch)[0])
        times[step] = statistics.median(repeats)
        print(f"step {step:,}: {1e3 * times[step]:.2f} ms")
    print(f"difference: {1e3 * (times[1_000_000] - times[1]):.2f} ms")

    stream = Stream.packed(_with_row_length(train, 128))
    batches = training_batches(stream, batch_rows=4, start_step=0, steps=3000, total_rows=None, seed=0, rows=Rows())
    spent, made = seconds(lambda: [float(batch["weight"].sum()) for batch in batches])
    print(f"\nmaking batches of 4 rows: {len(made) / spent:.0f} a second, {sum(made) / spent:.0f} sentences a second")


def _with_row_length(examples: Any, row_length: int) -> Any:
    import dataclasses

    return dataclasses.replace(examples, row_length=row_length, pad_to=(row_length,))


if __name__ == "__main__":
    main()
