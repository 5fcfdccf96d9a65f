"""How many replicas, cores and gigabytes a load needs, from the command line: a run, and a load -> a table."""

import argparse
import sys

from research import cli


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "capacity",
        "Measure the service of a model on this machine, and print how many replicas, cores and gigabytes a load needs "
        "so that 99 of 100 requests are answered in time: by queueing formulas, and by a simulation with the measured "
        "times. A request has one input.",
    )
    parser.add_argument("--workdir", help="a run, or a folder that transformers saved, that predicts (required)")
    parser.add_argument("--rps", type=float, help="the load, in requests a second (required)")
    parser.add_argument("--p99_ms", type=float, help="the bound of the 99th percentile of the latency (required)")
    parser.add_argument(
        "--texts", metavar="FILE", help="a file with an input in each line (default: the sample inputs of the run)"
    )
    parser.add_argument("--checkpoint", default="best", choices=("last", "best"), help="of a run (default: best)")
    parser.add_argument(
        "--compute", default="float32", choices=("float32", "bfloat16", "int8"), help="as for serve (default: float32)"
    )
    parser.add_argument(
        "--cores_per_replica", type=int, metavar="N", help="the cores of a process of the service (default: all here)"
    )
    parser.add_argument(
        "--replicas", type=int, metavar="N", help="the batches that each device computes at once, as for serve"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load that is measured (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--plot", metavar="FILE", help="draw the latency by load into this PNG")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("workdir", "rps", "p99_ms"))

    from research.analysis import capacity, capacity_report
    from research.base.errors import UserError
    from research.serve.subject import Subject

    capacity.check(arguments.rps, arguments.p99_ms)
    if not 0 < arguments.seconds < float("inf"):
        raise UserError(f"--seconds is {arguments.seconds:g}; it must be above 0")
    destination = capacity_report.png(arguments.plot) if arguments.plot else None
    subject = Subject.open(
        arguments.workdir,
        texts=arguments.texts,
        cores=arguments.cores_per_replica,
        replicas=arguments.replicas,
        checkpoint=arguments.checkpoint,
        compute=arguments.compute,
        say=_say,
    )
    found = subject.rehearse(arguments.seconds, say=_say)
    measured = capacity.Measured(
        workers=subject.workers,
        capacity=subject.model.capacity,
        choose=subject.choose,
        lengths=subject.lengths,
        expected=subject.model.programs.seconds,
        entry=found.entry,
        rest=found.rest,
        best_rate=found.best_rate,
        offered=[(each.load.rate, each.latencies) for each in found.at_random],
        cores=subject.cores,
        gigabytes=found.gigabytes,
        **found.columns,
    )
    plan = capacity.plan(measured, arguments.rps, arguments.p99_ms, say=_say)
    report = capacity_report.Report.of(subject.description, measured, plan)
    if destination:
        capacity_report.figure(report).savefig(destination, dpi=150)
        _say(f"plot: {destination}")
    print(report.json() if arguments.json else report.text())
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
