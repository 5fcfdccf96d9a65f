"""A text classifier on the CPU: this project and ONNX Runtime, each in float32 and int8, in alternation, in one run.

python benchmarks/compress_onnx.py --run=RUN                     # about 6 minutes
python benchmarks/compress_onnx.py --run=RUN --rounds=2 --seconds=0.5
python benchmarks/compress_onnx.py --run=RUN --agreement         # logits and accuracy on the validation split instead

RUN is a text classifier. ONNX Runtime has the run's network as `research.compress.onnx` writes it: fused, and with
dynamic 8-bit products. Batches of N×L are full of tokens. "sentences" are those of the run's validation split, as each
side computes them fastest: packed in rows here, and sorted by length and padded to the longest of 16 there. Inputs are
tokenized before. Each side has two threads: one caller with both, or two callers at once, for ONNX Runtime with one
each. Each side runs in a separate process (turns.py). The table gives medians over the rounds (lowest–highest), of the
ratio within each round, and the ratio of the fastest rounds, which other work on the machine disturbs least. It needs
the extra `onnx`.
"""

import argparse
import dataclasses
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from turns import Measure, Results, Side, environment, serve

SHAPES = ("1x32", "16x32", "8x128")
FORMS = ("float32", "int8")
CALLERS = ("one", "two")
SETTINGS = [
    *(f"{form} {what} {callers}" for what in (*SHAPES, "sentences") for form in FORMS for callers in CALLERS),
]
PACKED_ROWS, PADDED_ROWS = 4, 16  # of a batch of sentences: rows here, sentences there

Batch = dict[str, np.ndarray]


def loop(call: Callable[[int, Batch], Any], batches: Sequence[tuple[int, Batch]], callers: int, seconds: float) -> Any:
    """Threads that call, each beginning elsewhere in the batches -> examples, seconds, the median time of a call."""
    for caller in range(callers):
        for batch in {batch["tokens"].shape + batch["starts"].shape: batch for _, batch in batches}.values():
            call(caller, batch)  # compiles
    counts, times = [0] * callers, []
    began = time.perf_counter()

    def work(caller: int) -> None:
        index = caller * len(batches) // callers
        while (start := time.perf_counter()) < began + seconds:
            examples, batch = batches[index % len(batches)]
            call(caller, batch)
            times.append(time.perf_counter() - start)
            counts[caller] += examples
            index += 1

    threads = [threading.Thread(target=work, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    return {"examples": sum(counts), "seconds": elapsed, "p50_ms": 1000 * statistics.median(times)}


def open_run(arguments: argparse.Namespace) -> Any:
    from research.inference.model import open_model
    from research.runs.rundir import RunDir

    return open_model(RunDir.open(arguments.run), dtype="float32").single


def sentences(model: Any) -> tuple[dict[str, Any], np.ndarray]:
    """The inputs of the validation split, and its labels."""
    from research.data import load

    columns = load.raw(model.config.data)["validation"]
    return {name: columns[name] for name in model.signature.inputs}, np.asarray(columns[model.signature.label])


def full(shape: str, vocab_size: int) -> list[tuple[int, Batch]]:
    """A batch full of random tokens."""
    rows, length = map(int, shape.split("x"))
    tokens = np.random.default_rng(0).integers(5, vocab_size, (rows, length)).astype(np.int32)
    batch = {
        "tokens": tokens,
        "segments": np.ones_like(tokens),
        "type_ids": np.zeros_like(tokens),
        "positions": np.arange(length, dtype=np.int32) + 0 * tokens,
        "starts": np.zeros((rows, 1), np.int32),
    }
    return [(rows, batch)]


def compiled(model: Any, form: str) -> Callable[[Batch], np.ndarray]:
    """The run's network: a batch -> its logits [R, E, C]. It is compiled once for each shape."""
    import jax

    from research.core.quantization import applied, quantized

    def forward(variables: Any, batch: Batch) -> Any:
        return model.module.apply(variables, batch, train=False)

    variables = model.variables
    if form == "int8":
        (_, example), *_ = full("1x32", model.module.vocab_size)
        variables = quantized(variables, lambda variables: forward(variables, example))
    programs: dict[tuple[int, ...], Any] = {}

    def call(batch: Batch) -> np.ndarray:
        shape = batch["tokens"].shape + batch["starts"].shape
        if shape not in programs:
            with applied(variables):
                programs[shape] = jax.jit(forward).lower(variables, batch).compile()
        return np.asarray(programs[shape](variables, batch))

    return call


def ours(arguments: argparse.Namespace) -> Measure:
    from research.data.pipeline import Stream

    model = open_run(arguments)
    examples = model.encode(sentences(model)[0], "the split")
    forward = {form: compiled(model, form) for form in FORMS}

    def packed() -> list[tuple[int, Batch]]:
        rows = Stream.packed(dataclasses.replace(examples, row_length=arguments.row_length)).rows
        own = dataclasses.replace(examples, pad_to=(arguments.row_length,))
        pieces = [rows[i : i + PACKED_ROWS] for i in range(0, len(rows), PACKED_ROWS)]
        return [(int((piece >= 0).sum()), own.batch(piece)) for piece in pieces if len(piece) == PACKED_ROWS]

    def measure(setting: str, steps: int) -> dict[str, float]:
        form, what, callers = setting.split()
        batches = packed() if what == "sentences" else full(what, model.module.vocab_size)

        def call(_: int, batch: Batch) -> None:
            forward[form](batch)

        found: dict[str, float] = loop(call, batches, 1 + CALLERS.index(callers), arguments.seconds)
        return found

    return measure


def peer(arguments: argparse.Namespace) -> Measure:
    from research.compress import onnx

    folder, model = Path(arguments.folder), open_run(arguments)
    examples = model.encode(sentences(model)[0], "the split")
    files = {"float32": onnx.OPTIMIZED, "int8": onnx.INT8}
    opened = {
        (form, callers): [onnx.OnnxModel.open(folder, file, threads=threads)] * callers
        for form, file in files.items()
        for callers, threads in ((1, 2), (2, 1))
    }

    def padded() -> list[tuple[int, Batch]]:
        order = np.argsort(examples.lengths, kind="stable")
        pieces = [order[i : i + PADDED_ROWS] for i in range(0, len(order), PADDED_ROWS)]
        longest = [int(examples.lengths[piece].max()) for piece in pieces]
        return [
            (len(piece), dataclasses.replace(examples, pad_to=(length,)).batch(piece[:, None]))
            for piece, length in zip(pieces, longest, strict=True)
        ]

    def measure(setting: str, steps: int) -> dict[str, float]:
        form, what, number = setting.split()
        callers = 1 + CALLERS.index(number)
        models = opened[form, callers]
        batches = padded() if what == "sentences" else full(what, model.module.vocab_size)
        found: dict[str, float] = loop(
            lambda caller, batch: models[caller].run(batch), batches, callers, arguments.seconds
        )
        return found

    return measure


def write(arguments: argparse.Namespace, folder: Path) -> None:
    """Writes the network, fused and in 8 bits."""
    from research.compress import onnx
    from research.runs.rundir import RunDir

    assets = RunDir.open(arguments.run).assets
    onnx.quantized(onnx.optimized(onnx.write_onnx(open_run(arguments), folder, assets=assets)))


def agreement(arguments: argparse.Namespace, folder: Path) -> None:
    """Prints how far each file is from the run's network, for several batch sizes, and its accuracy."""
    from research.compress import onnx

    model = open_run(arguments)
    columns, labels = sentences(model)
    print(f"{len(labels)} texts\n")
    print("| file | batches of | largest difference of logits | same class | accuracy |\n|---|---|---|---|---|")
    for file in (onnx.MODEL, onnx.OPTIMIZED, onnx.INT8):
        for rows in (1, 7, 32):
            difference, share = onnx.check(model, folder, columns, file=file, batch_rows=rows)
            logits = onnx.OnnxModel.open(folder, file).logits(columns, batch_rows=rows)
            accuracy = np.mean(logits.argmax(axis=1) == labels)
            print(f"| {file} | {rows} | {difference:.2g} | {round(share * len(labels))} | {accuracy:.4f} |", flush=True)
    examples, by_form = model.encode(columns, "the split"), {}
    for form in FORMS:
        forward = compiled(model, form)
        found = [forward(batch)[:, 0] for _, batch in onnx.batches(examples, 32, pad=True)]
        by_form[form] = np.concatenate(found)
    difference = np.abs(by_form["int8"] - by_form["float32"]).max()
    same = np.sum(by_form["int8"].argmax(axis=1) == by_form["float32"].argmax(axis=1))
    accuracy = np.mean(by_form["int8"].argmax(axis=1) == labels)
    print(f"| this project, int8 | any | {difference:.2g} | {same} | {accuracy:.4f} |")


HEAD = """
| batch | callers | examples/s here | ONNX Runtime | ratio | of the fastest | p50 of a call here, ms | ONNX Runtime |
|---|---|---|---|---|---|---|---|"""


def report(results: Results) -> None:
    print(environment("jax", "onnxruntime", "onnx"))
    print(HEAD)
    for setting in SETTINGS:
        form, what, callers = setting.split()
        sides = [("ours", setting), ("peer", setting)]
        rates = [f"{results.rate(*side):.0f} ({results.spread(*side)})" for side in sides]
        fastest = max(results.rates(*sides[0])) / max(results.rates(*sides[1]))
        p50 = ["", ""]
        if what != "sentences":
            p50 = [f"{statistics.median(result['p50_ms'] for result in results.of[side]):.2f}" for side in sides]
        ratios = [f"{results.quotient(*sides):.2f}", f"{fastest:.2f}"]
        print("|", " | ".join([f"{what}, {form}", callers, *rates, *ratios, *p50]), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a run directory of a text classifier")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--row_length", type=int, default=112, help="of packed rows")
    parser.add_argument("--agreement", action="store_true", help="compare logits instead of speed")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve({"ours": ours, "peer": peer}[arguments.serve], arguments)
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "onnx")
        write(arguments, folder)
        if arguments.agreement:
            agreement(arguments, folder)
            return
        options = [f"--run={arguments.run}", f"--folder={folder}", f"--seconds={arguments.seconds}"]
        options.append(f"--row_length={arguments.row_length}")
        sides = {name: Side(__file__, name, options) for name in ("ours", "peer")}
        results = Results()
        both = [(side, setting) for setting in SETTINGS for side in sides]
        results.measure(sides, both, rounds=arguments.rounds, steps=1)
        for side in sides.values():
            side.close()
        report(results)


if __name__ == "__main__":
    main()
