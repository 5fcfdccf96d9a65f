"""Correctness and speed on a machine with one GPU, in commands of at most 8 minutes.

benchmarks/accelerator.sh --out=RESULTS.jsonl           # or PYTHONPATH=. python benchmarks/accelerator.py …
benchmarks/accelerator.sh --parts=bert,resnet --out=…   # some of the parts, in the same time
benchmarks/accelerator.sh --rehearse                    # everything at tiny sizes, on the CPU, in 8 minutes
PYTHONPATH=. python benchmarks/accelerator.py --write-cpu-losses   # rewrites accelerator_losses.json, on a CPU

Prints each finding as a JSON line as soon as it is known. The parts, the most important first:

  environment  the device, the versions, the speed of bfloat16 matrix products (the reference for "MFU" below), and
               whether the peer can start;
  correctness  20 float32 steps of an embedded BERT and ResNet against losses and gradient norms stored from a CPU;
  resume       whether a run resumed in a new process ends with the same parameters, bit for bit, with XLA's
               deterministic operations and without;
  bert         fine-tuning at BERT-base's size, compared with PyTorch + transformers;
  resnet       ResNet-50's training step, compared with PyTorch;
  attention    this project's attention, compared with jax.nn.dot_product_attention with and without cuDNN;
  serve        the service at BERT-base's size, compared with transformers' pipeline.

Each part, and each side that it measures, runs in a separate process with a deadline; unused time passes to the next
part. The parts `bert` and `resnet` print a new table whenever a contender joins: the last line with "table" is
complete. JAX allocates memory on demand (XLA_PYTHON_CLIENT_PREALLOCATE=false), so that both sides fit on the device
together; they run alternately, never at the same time. SST-2 is used if it is prepared for TFDS, with the tokenizer of
--tokenizer or .gpu/tokenizer.json; otherwise the embedded corpus.

Compilation takes most of the time: the contenders of a table compile at the same time, and one that takes too long is
left out. Several commands measure more than one: --parts=environment,bert,attention, then --parts=environment,resnet.
"""

import argparse
import functools
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from parts import Deadline, Line, Writer, deadlines, run_part, serve_part

# Each part's share of the time; the module and the function of each part.
BUDGETS = {
    "environment": 20,
    "correctness": 40,
    "resume": 60,
    "bert": 140,
    "resnet": 100,
    "attention": 35,
    "serve": 75,
}
FUNCTIONS = {
    "environment": ("accelerator_checks", "environment"),
    "correctness": ("accelerator_checks", "correctness"),
    "resume": ("accelerator_resume", "resume"),
    "bert": ("accelerator_speed", "bert"),
    "resnet": ("accelerator_speed", "resnet"),
    "serve": ("accelerator_serve", "serve"),
    "attention": ("accelerator_attention", "attention"),
}
KEEPING = 10  # seconds of the limit, reserved for starting and ending processes


def run_all(arguments: argparse.Namespace) -> dict[str, str]:
    """Runs the chosen parts one after another -> how each ended."""
    budgets = {name: BUDGETS[name] for name in arguments.parts.split(",")}
    write = Writer(arguments.out)
    limit = 60 * arguments.minutes - KEEPING
    start = Deadline.after(0.0)
    log = arguments.out.with_suffix(".log") if arguments.out else None
    write("start", {"argv": sys.argv[1:], "rehearsal": arguments.rehearse, "seconds": limit})
    known: Line = {}  # findings of the part `environment`, for the other parts
    ends: dict[str, str] = {}
    for name, end in deadlines(budgets, limit).items():
        deadline = Deadline(start.end + end)

        def emit(line: Line, name: str = name) -> None:
            if name == "environment":
                known.update({key: line[key] for key in ("peak_flops", "libraries") if key in line})
            write(name, line)

        ends[name] = run_part(_command(name, deadline, arguments, known), deadline, emit, log)
    write("end", {"parts": ends})
    return ends


def _command(name: str, deadline: Deadline, arguments: argparse.Namespace, known: Line) -> list[str]:
    command = [sys.executable, __file__, f"--part={name}", f"--known={json.dumps(known)}"]
    command += [f"--seconds={deadline.remaining:.1f}"]
    command += ["--rehearse"] if arguments.rehearse else []
    return command + ([f"--tokenizer={arguments.tokenizer}"] if arguments.tokenizer else [])


def run_here(arguments: argparse.Namespace) -> int:
    """Runs one part in this process -> its exit code."""
    module, function = FUNCTIONS[arguments.part]
    part: Any = getattr(importlib.import_module(module), function)
    return serve_part(functools.partial(part, deadline=Deadline.after(arguments.seconds), options=arguments))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file to append the lines to; stderr is written to *.log next to it")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--parts", default=",".join(BUDGETS), help="some of the parts, comma-separated")
    parser.add_argument("--tokenizer", help="a BERT tokenizer.json (default: .gpu/tokenizer.json if it exists)")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--write-cpu-losses", action="store_true", help="rewrite accelerator_losses.json and exit")
    parser.add_argument("--part", choices=tuple(FUNCTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--known", type=json.loads, default={}, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts.split(",")) - set(BUDGETS):
        parser.error(f"--parts has {', '.join(sorted(unknown))}; known: {', '.join(BUDGETS)}")
    if arguments.rehearse or arguments.write_cpu_losses:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads wait for each other on a busy machine
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if not arguments.tokenizer and Path(".gpu/tokenizer.json").is_file():
        arguments.tokenizer = ".gpu/tokenizer.json"
    if arguments.write_cpu_losses:
        import accelerator_checks

        accelerator_checks.write_cpu_losses()
        return 0
    if arguments.part:
        return run_here(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # also terminates the running part
    ends = run_all(arguments)
    return int(any(end != "done" for end in ends.values()))


if __name__ == "__main__":
    sys.exit(main())
