"""GLUE from the command line: runs on its tasks -> a table of dev scores, and the leaderboard's files."""

import argparse
import sys
from pathlib import Path

from research import cli


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "glue",
        "Score runs of configs/bert_glue.py on their dev splits (a Markdown table) and write the files "
        "that the GLUE leaderboard takes. A run on MNLI also answers the diagnostic set, AX. Missing predictions are "
        "computed and saved in the run directory.",
    )
    parser.add_argument("--workdirs", nargs="+", metavar="RUN", help="run directories, one for each task (required)")
    parser.add_argument("--out", help="the folder for CoLA.tsv, SST-2.tsv, … (required)")
    parser.add_argument(
        "--checkpoint", default="best", choices=("last", "best"), help="each run's checkpoint (default: best)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier submission in --out")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("workdirs", "out"))

    from research.analysis.leaderboard import submit, table, task_runs

    scored, missing = submit(
        task_runs(arguments.workdirs),
        Path(arguments.out),
        which=arguments.checkpoint,
        overwrite=arguments.overwrite,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(table(scored))
    for reason in dict.fromkeys(missing.values()):
        files = ", ".join(file for file in missing if missing[file] == reason)
        print(f"not written: {files} ({reason})", file=sys.stderr)
    return 0


if __name__ == "__main__":
    cli.run(main)
