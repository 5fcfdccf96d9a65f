"""Compress a run from the command line: a run directory and methods -> a run with a certificate."""

from pathlib import Path
from typing import Any

from research import cli


def parser() -> cli.Parser:
    parser = cli.Parser(
        "compress",
        "Make a run smaller or faster, and certify what that costs: the result is a run that predicts, evaluates, "
        "serves and exports like any, with certificate.json. Methods are applied in order; after the last one that "
        "removes something the network is trained again, by the labels and by the run's own predictions.",
    )
    cli.add_run_flags(parser)
    parser.set_defaults(checkpoint="best")
    parser.add_argument(
        "--method",
        action="append",
        metavar="NAME[=VALUE]",
        help="bfloat16, float32, int8, int8_weights, vocab, layers=N, ffn=FRACTION, heads=FRACTION, "
        "prune=FRACTION or distill; may be repeated. Or onnx, alone: files for ONNX Runtime",
    )
    parser.add_argument("--search", action="store_true", help="try methods here, and name the best of the results")
    parser.add_argument(
        "--max_drop", type=float, default=0.5, help="of --search: the most points that may be lost (default: 0.5)"
    )
    parser.add_argument(
        "--budget_minutes", type=float, default=30.0, help="of --search: when no further one is begun (default: 30)"
    )
    parser.add_argument("--to", help="the folder to write (default: the run's, with the methods added)")
    parser.add_argument("--student", metavar="CONFIG", help="of distill: the config of the smaller network")
    group = parser.add_argument_group("training again")
    group.add_argument("--epochs", type=float, default=1.0, help="over the training split; 0: none (default: 1)")
    group.add_argument("--learning_rate", type=float, help="the peak (default: that of the run)")
    group.add_argument(
        "--soft_weight", type=float, default=0.5, help="of the run's predictions, beside the labels (default: 0.5)"
    )
    group.add_argument("--temperature", type=float, default=2.0, help="of the predictions (default: 2)")
    group.add_argument(
        "--hidden_weight",
        type=float,
        default=0.0,
        help="of the squared difference from the run's [CLS] states after the last layer, of one size (default: 0)",
    )
    group.add_argument(
        "--unlabelled",
        metavar="FILE",
        help="further inputs, whose predictions are learned too: lines of text, or a table with the run's columns",
    )
    group.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="INPUT=COLUMN",
        help="of --unlabelled: the column to read for an input (default: the one called as it); may be repeated",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("workdir",))

    from research.base.errors import UserError
    from research.base.paths import expanded
    from research.compress.certify import table
    from research.compress.methods import Step
    from research.compress.run import Compression, to_onnx
    from research.config import load
    from research.runs.rundir import RunDir
    from research.training.trained_run import TrainedRun

    if not (arguments.search or arguments.method):
        raise UserError("--method is missing; see --help, or let --search try some")
    if arguments.search and arguments.method:
        raise UserError("--search tries methods of its own; leave --method out")
    is_onnx = arguments.method == ["onnx"]
    steps = [] if is_onnx or arguments.search else [Step.of(text) for text in arguments.method]
    tuning = _tuning(arguments, trains=arguments.search or any(step.method.removes for step in steps))
    run = RunDir.open(arguments.workdir, writer=True)
    name = (
        "search" if arguments.search else "onnx" if is_onnx else "-".join(str(step).replace("=", "") for step in steps)
    )
    folder = expanded(arguments.to) if arguments.to else run.path.with_name(f"{run.path.name}-{name}")
    if is_onnx:
        to_onnx(TrainedRun(run, arguments.checkpoint), folder)
        print(f"  {folder}: model files for ONNX Runtime; not a run directory")
        return 0
    student = load(arguments.student).config if arguments.student else None
    compression = Compression(TrainedRun(run, arguments.checkpoint), arguments.checkpoint, student=student)
    if arguments.search:
        return _search(compression, folder, arguments, tuning)
    certificate = compression.run(steps, folder, tuning)
    print(table(certificate))
    print(f"  serve: python -m research.serve --workdir={folder}")
    return 0


def _tuning(arguments: Any, *, trains: bool) -> Any:
    """How to train again; None for no epochs. `trains`: whether a method needs it.

    Raises UserError for a flag that is out of its range, or has no effect.
    """
    from research.base.errors import UserError
    from research.compress.tuning import Tuning
    from research.inference.bulk import renamed_columns

    limits = {"epochs": (0, None), "soft_weight": (0, 1), "temperature": (0.01, None), "hidden_weight": (0, None)}
    for name, (low, high) in limits.items():
        value = getattr(arguments, name)
        if not (low <= value < float("inf")) or (high is not None and value > high):
            limit = f"at least {low}" if high is None else f"{low} to {high}"
            raise UserError(f"--{name} is {value:g}; it must be {limit}")
    if not trains or arguments.epochs == 0:
        for name in ("unlabelled", "hidden_weight"):
            if getattr(arguments, name):
                raise UserError(
                    f"--{name} is for training again, which needs a method that removes something, such as "
                    "layers or distill, and --epochs above 0"
                )
    if arguments.column and arguments.unlabelled is None:
        raise UserError("--column is for --unlabelled=FILE; give that too")
    return (
        None
        if arguments.epochs == 0
        else Tuning(
            epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            soft_weight=arguments.soft_weight,
            temperature=arguments.temperature,
            hidden_weight=arguments.hidden_weight,
            unlabelled=arguments.unlabelled,
            columns=renamed_columns(arguments.column),
        )
    )


def _search(compression: Any, folder: Path, arguments: Any, tuning: Any) -> int:
    from research.base.errors import UserError
    from research.compress.search import BEST, PLOT, fastest, plot, search, table

    found = search(compression, folder, max_drop=arguments.max_drop, minutes=arguments.budget_minutes, tuning=tuning)
    metric = compression.original.config.eval.metric
    if not found:
        raise UserError(f"nothing could be made in {arguments.budget_minutes:g} minutes; raise --budget_minutes")
    plot(found, metric, arguments.max_drop).savefig(folder / PLOT, dpi=120)
    print(table(found, metric, arguments.max_drop))
    print(f"  plot: {folder / PLOT}")
    if fastest(found, arguments.max_drop) is None:
        print(f"  none loses at most {arguments.max_drop:g} points")
    else:
        print(f"  serve: python -m research.serve --variant={folder / BEST} --max_drop={arguments.max_drop:g}")
    return 0


if __name__ == "__main__":
    cli.run(main)
