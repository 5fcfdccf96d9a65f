"""`python -m research.runs [FOLDER]`: a table of the runs in a folder."""

import argparse

from research import cli


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "runs",
        "List the runs in a folder and its subfolders, oldest first: model, data and preset, the keys that differ from "
        "the other runs of the same, the best value of eval.metric, status, and when they changed last.",
    )
    parser.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="(default: runs)")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=())

    from research.run_list import list_runs

    print(list_runs(arguments.folder) or f"there are no runs in {arguments.folder}")
    return 0


if __name__ == "__main__":
    cli.run(main)
