"""Evaluate a run from the command line: a run directory and a split -> metrics and predictions."""

import argparse
import json

from research import cli


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m research.evaluate",
        description="Evaluate a checkpoint of a run: prints the metrics as JSON and writes predictions/SPLIT.jsonl "
        "(SPLIT-best.jsonl for the best checkpoint; DATA-SPLIT.jsonl for a split of another dataset).",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", help="the run directory (needed)")
    parser.add_argument("--split", default="validation", help="any split of the dataset (default: validation)")
    parser.add_argument("--data", help="another dataset, read as the run reads its own (default: the run's)")
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"), help="which one (default: last)")
    cli.add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("workdir",))

    from research.rundir import RunDir
    from research.trained import Trained

    trained = Trained(RunDir.open(arguments.workdir, writer=True), arguments.checkpoint)
    print(json.dumps(trained.evaluate(arguments.split, data=arguments.data)))
    return 0


if __name__ == "__main__":
    cli.run(main)
