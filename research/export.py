"""Export a run from the command line: its checkpoint -> a folder that other libraries open."""

import argparse
import json

from research import cli


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "export",
        "Write a checkpoint of a BERT or a ResNet as a folder for other libraries (hf: transformers).",
    )
    cli.add_run_flags(parser)
    parser.add_argument("--out", help="the folder to write, which must not exist or be empty (required)")
    parser.add_argument("--format", default="hf", choices=("hf",), help="the layout (default: hf)")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("workdir", "out"))

    from research.interop.export import ROUNDING, export
    from research.runs.rundir import RunDir

    step = export(arguments.workdir, arguments.out, checkpoint=arguments.checkpoint)
    dtype = RunDir.open(arguments.workdir).config()["dtype"]
    note = {"note": ROUNDING[dtype]} if dtype in ROUNDING else {}
    print(json.dumps({"step": step, "format": arguments.format, "out": arguments.out, "dtype": dtype, **note}))
    return 0


if __name__ == "__main__":
    cli.run(main)
