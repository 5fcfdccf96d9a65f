"""The names that a config can use, from the command line, with what they are and the keys that they take."""

import argparse
import sys

from research import cli

KINDS = ("models", "tasks", "optimizers", "transforms", "sources", "metrics", "configs")


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "list",
        "List names: each with what it is and the keys of its section of a config that it takes. `metrics` lists the "
        "metrics of each task, and `configs` the configs with their presets and whether they are available here.",
    )
    parser.add_argument("kind", nargs="?", choices=KINDS, metavar="KIND", help=f"one of {', '.join(KINDS)}")
    parser.add_argument("--imports", metavar="MODULES", help="modules to import first, comma-separated, as in a config")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=())

    from research import catalog
    from research.base.errors import UserError
    from research.base.imports import import_own

    if arguments.kind is None:
        raise UserError(f"KIND is missing: one of {', '.join(KINDS)}")

    import_own(arguments.imports.split(",") if arguments.imports else ())
    for line in catalog.configs() if arguments.kind == "configs" else catalog.entries(arguments.kind):
        print(line, flush=True)
    return 0


def main_of_configs() -> int:
    """`python -m research.configs`."""
    return main(["configs", *sys.argv[1:]])


if __name__ == "__main__":
    cli.run(main)
