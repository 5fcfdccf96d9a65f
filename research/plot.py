"""Plots of a run from the command line: a run directory -> PNGs in its plots/, and their numbers as JSON."""

import argparse
from typing import Any

from research import cli
from research.base.errors import UserError
from research.base.registry import lookup

WHAT = "fit, residuals, coefficients, roc, precision_recall, confusion, regularization_path, learning_curve"


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "plot",
        "Plot the results of a run. regularization_path and learning_curve train its config again, in the "
        "run's refits/; finished refits are not trained again.",
    )
    parser.add_argument("--workdir", help="the run directory (required)")
    parser.add_argument(
        "--what", help=f"some of {WHAT}, comma-separated (default: all that apply, without the two that train again)"
    )
    parser.add_argument(
        "--split",
        help="any split of the dataset, or a part such as 'test[:5%%]' (default: the first of the run's eval.splits, "
        "which regularization_path and learning_curve always use); files of another one are called WHAT-SPLIT",
    )
    parser.add_argument(
        "--checkpoint",
        default="last",
        choices=("last", "best"),
        help="the checkpoint (default: last, which regularization_path and learning_curve always use); files of the "
        "best one are called WHAT-best",
    )
    parser.add_argument("--repeats", type=int, default=3, help="seeds at each point of a learning curve (default: 3)")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("workdir",), positive=("repeats",))

    from ml_collections import ConfigDict

    from research.analysis.plots import PLOTS, PlotContext, draw, draw_all
    from research.base.trees import flatten
    from research.interop import pretrained
    from research.runs.rundir import RunDir

    run = RunDir.open(arguments.workdir, writer=True)
    saved = ConfigDict(run.config())

    def load_variables(variables: Any) -> Any:
        # All keys count as given: those that follow the weights are already in the run's config.
        start = pretrained.resolve_init_from(saved, frozenset(flatten(saved.to_dict())), run.refits)
        assert start.load_variables is not None
        return start.load_variables(variables)

    start = load_variables if saved.init_from else None
    subject = PlotContext(run, arguments.checkpoint, arguments.split, arguments.repeats, start)
    subject.trained.predictions(subject.of_split)  # fails here without a checkpoint or for an unknown split
    if arguments.what is not None:
        names = arguments.what.split(",")
        for name in names:
            lookup(PLOTS, name, "--what")
        missing: dict[str, list[str]] = {}
        for name in names:
            try:
                print(f"{name}: {draw(subject, name)}", flush=True)
            except UserError as error:
                missing.setdefault(str(error), []).append(name)
        if missing:
            raise UserError(". ".join(f"{', '.join(of)} not drawn: {why}" for why, of in missing.items()))
        return 0
    for name, path, why in draw_all(subject):
        print(f"{name}: {path}" if path else f"{name} not drawn: {why}", flush=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
