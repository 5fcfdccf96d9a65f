"""Evaluate a run from the command line: a run directory and a split -> metrics and predictions."""

import argparse
import sys

from research import cli


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "evaluate",
        "Evaluate a checkpoint of a run: prints the metrics as JSON and writes predictions/SPLIT.jsonl "
        "(SPLIT-best.jsonl for the best checkpoint; DATA-SPLIT.jsonl for a split of another dataset; "
        "test.to-5pct.jsonl for test[:5%%]).",
    )
    cli.add_run_flags(parser)
    parser.add_argument(
        "--split",
        default="validation",
        help="any split of the dataset, or a part such as 'test[:5%%]' (default: validation)",
    )
    parser.add_argument(
        "--data",
        help="another dataset, encoded as in the run; for a run on own files also another file (default: the run's)",
    )
    parser.add_argument("--show_input", action="store_true", help="copy the inputs, except images, to the predictions")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("workdir",))

    from research.base.trees import to_json
    from research.runs.rundir import RunDir
    from research.training.trained_run import TrainedRun

    trained = TrainedRun(RunDir.open(arguments.workdir, writer=True), arguments.checkpoint)
    evaluation = trained.evaluate(arguments.split, data=arguments.data, show=True, inputs=arguments.show_input)
    print(to_json(evaluation))
    if all(value is None for value in evaluation["metrics"].values()):
        print(
            f"no metrics: the labels of split {arguments.split!r} are hidden; predictions: {evaluation['predictions']}",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    cli.run(main)
