"""A linear model's coefficients from the command line: a run directory -> a table."""

import argparse

from research import cli


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "coefficients",
        "Print the coefficients of a linear model, in the data's own units and for standardized features; "
        "without a penalty also standard errors, 95 % intervals and p-values.",
    )
    cli.add_run_flags(parser)
    parser.add_argument("--most", type=int, default=30, help="print at most this many, the largest (default: 30)")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("workdir",), positive=("most",))

    from research.analysis.coefficients import coefficients, table

    found = coefficients(arguments.workdir, arguments.checkpoint)
    print(table(found, arguments.most), end="")
    if found.errors is None:
        print("\nNo standard errors: they require dense features, no penalty or class weights, and an optimum.")
    if found.values.size > arguments.most:
        print(f"\n{arguments.most} of {found.values.size:,} coefficients; --most shows more.")
    return 0


if __name__ == "__main__":
    cli.run(main)
