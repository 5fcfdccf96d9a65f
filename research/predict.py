"""Predict from the command line: a run directory and a file -> a JSON line per row."""

import argparse
import sys

from research import cli


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "predict",
        "Predict with a checkpoint of a run for the rows of a table (CSV, TSV, JSON lines, Parquet, lines of text) or "
        "the images of a folder. Labels are not needed. Writes a JSON line per row, in the order of the input. The "
        "same command continues an interrupted one.",
    )
    cli.add_run_flags(parser)
    parser.add_argument("--input", help="a file, a folder of images, or - for JSON lines on standard input (required)")
    parser.add_argument("--output", help="the file to write (default: standard output)")
    parser.add_argument("--format", help="the format of --input, such as .csv (default: its suffix)")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="INPUT=COLUMN",
        help="the column to read for an input of the model (default: the one called as the input); may be repeated",
    )
    parser.add_argument("--key", action="append", default=[], help="a column to copy to the output; may be repeated")
    parser.add_argument("--show_input", action="store_true", help="copy the columns that the model reads to the output")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("workdir", "input"))

    from research.base.paths import expanded
    from research.inference.bulk import open_source, renamed_columns
    from research.inference.prediction_file import write_predictions
    from research.inference.predictor import Predictor

    columns = renamed_columns(arguments.column)
    predictor = Predictor.open(arguments.workdir, arguments.checkpoint)
    source = open_source(arguments.input, predictor, form=arguments.format, columns=columns)
    output = None if arguments.output is None else expanded(arguments.output)
    rows = write_predictions(
        predictor,
        source,
        output,
        identity={"workdir": str(expanded(arguments.workdir).resolve()), "step": predictor.step},
        keys=tuple(arguments.key),
        inputs=arguments.show_input,
    )
    if output is not None:
        print(f"{rows:,} predictions: {output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    cli.run(main)
