"""Check a run before its hardware is rented, from the command line: a config and a topology -> a report."""

import sys
from typing import Any

from research import cli


def parser() -> cli.Parser:
    parser = cli.Parser(
        "preflight",
        "Compile the train step of a config for devices that need not be here, and print whether it fits in their "
        "memory, and how fast it can be at best. Exit code 1: it does not fit. Config keys are overridden with "
        "--config.KEY=VALUE. A config without a preset has its full size.",
    )
    parser.add_argument("--config", help="the config, such as bert_mlm:base (required)")
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="v5e:16x16, v6e:4x4, v5p:4x4x4: a TPU slice (needs the extra tpu); gpu:8, gpu:8:a100, gpu:8:h200: "
        "CPU devices in the place of GPUs, for an estimate; cpu:8 (default: the devices of this machine)",
    )
    parser.add_argument("--price", type=float, metavar="DOLLARS", help="of a chip, per hour, for the cost of the run")
    parser.add_argument(
        "--largest", action="store_true", help="find the largest batch that fits; each try is a compilation"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, overrides = cli.parse(parser(), argv, required=("config",), passed_on="--config.")

    from research.base.errors import UserError
    from research.preflight.topology import open_topology

    if arguments.price is not None and not 0 <= arguments.price < float("inf"):
        raise UserError(f"--price is {arguments.price:g}; it must be at least 0")
    topology = open_topology(arguments.topology)  # before anything initializes JAX's devices

    from research.config import load
    from research.config_files import open_file
    from research.devices.platform import x64
    from research.preflight.shapes import with_shapes
    from research.training import own_files

    spec = arguments.config
    if arguments.topology and (preset := open_file(spec))[1] in ("", "auto"):
        spec = f"{spec.removesuffix(':auto')}:{preset[0].module.FULL}"
    loaded = load(spec, overrides)
    config, lines = own_files.fill_in(loaded.config, loaded.given)
    config, notes, known = with_shapes(config, loaded.given)
    if not topology.here and topology.chip is not None:
        config.compiler = "default"  # the others are for CPUs
    for line in [*lines, *notes]:
        _say(line)
    with x64(config.dtype):
        report = _report(f"{loaded.file.stem}:{config.preset}", config, topology, arguments, tuple(notes), known)
        print(report.json() if arguments.json else report.text())
        if arguments.largest:
            return _largest(config, topology, report)
    return 0 if report.fits else 1


def _report(what: str, config: Any, topology: Any, arguments: Any, notes: tuple[str, ...], known: bool) -> Any:
    from research.preflight.advice import advice
    from research.preflight.compilation import compile_step
    from research.preflight.report import Report

    _say("compiling")
    program = compile_step(config, topology)
    if topology.estimated:
        notes += ("compiled for CPU devices: memory is an estimate, and its bandwidth is left out of the bound",)
    if topology.chip and config.dtype != "bfloat16":
        notes += (f"dtype is {config.dtype}; the bound of compute is that of bfloat16",)
    if not known:
        notes += ("the number of steps in an epoch is unknown; give --config.train.steps for the hours",)
    unknown = program.flops.unknown + (program.traffic.unknown if program.traffic else 0)
    if unknown:
        notes += (f"{unknown} operations in loops of unknown length are counted once",)
    steps = program.steps if known else None
    clause = advice(config, program, len(topology.devices))
    return Report(what, topology, program, _limit(topology), steps, arguments.price, clause, notes)


def _limit(topology: Any) -> float | None:
    """The bytes that each device has."""
    from research.devices import memory

    if topology.chip is not None and not topology.here:
        return float(topology.chip.memory * topology.chip.usable)
    return memory.available()


def _largest(config: Any, topology: Any, report: Any) -> int:
    """Prints the largest batch that fits, as multiples of what the devices can share -> the exit code."""
    from research.preflight.compilation import compile_step
    from research.preflight.largest import largest

    key = "batch_size" if config.train.batch_rows is None else "batch_rows"
    unit = len(topology.devices) // config.mesh.tensor * report.program.blocks
    known = {max(1, config.train[key] // unit): report.fits} if config.train[key] % unit == 0 else {}

    def fits(n: int) -> bool:
        if n not in known:
            config.train[key] = n * unit
            program = compile_step(config, topology)
            needed = program.memory.total if program.refused is None else program.refused[0]
            known[n] = program.refused is None and (report.limit is None or needed <= report.limit)
        _say(f"train.{key}={n * unit}: {'fits' if known[n] else 'does not fit'}")
        return known[n]

    found = largest(fits, max(1, config.train[key] // unit), 2**20)
    if not found:
        print(f"not even train.{key}={unit} fits")
        return 1
    print(f"largest train.{key} that fits, to within 1/16: {found * unit}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
