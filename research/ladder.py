"""Models from the smallest to the largest on the same data, from the command line -> a table and a plot."""

import argparse
import sys
from pathlib import Path

from research import cli
from research.base.registry import lookup


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "ladder",
        "Train a baseline, a linear model, a small and a large network on the same data, and print one "
        "table of them. Writes table.md, table.json and ladder.png, keeping the rows of rungs not in --rungs. "
        "Finished runs in --out are not trained again.",
    )
    parser.add_argument("--dataset", help="digits, mnist, newsgroups or sst2 (required)")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each rung not fitted by a solver (default: 5)")
    parser.add_argument("--rungs", help="some of the rungs, comma-separated (default: all)")
    parser.add_argument("--out", help="the folder for runs, table and plot (default: runs/ladder-DATASET)")
    parser.add_argument("--init_from", metavar="FOLDER", help="the weights of the pretrained rung (default: a hub id)")
    parser.add_argument("--data_dir", help="the folder of TFDS data (default: TFDS_DATA_DIR or ~/tensorflow_datasets)")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("dataset",), positive=("seeds",))

    from research.analysis.ladder import LADDERS, Rung, run_ladder, table
    from research.api import train_loaded
    from research.config import load
    from research.training.method import is_deterministic

    ladder = lookup(LADDERS, arguments.dataset, "--dataset")
    names = arguments.rungs.split(",") if arguments.rungs else list(ladder.rungs)
    for name in names:
        lookup(ladder.rungs, name, "--rungs")

    def train(rung: Rung, seeds: int, workdir: Path) -> dict[str, object]:
        overrides = [*rung.overrides]
        if arguments.data_dir:
            overrides.append(f"data.data_dir={arguments.data_dir}")
        config = load(rung.config, overrides).config
        if not is_deterministic(config.optimizer.name):
            overrides.append(f"train.seeds={seeds}")
        if config.init_from and arguments.init_from:
            overrides.append(f"init_from={arguments.init_from}")
        return train_loaded(load(rung.config, overrides), workdir)[1]

    out = Path(arguments.out or Path("runs") / f"ladder-{arguments.dataset}")
    rows, failed = run_ladder(ladder, out, names=names, seeds=arguments.seeds, train=train, say=_say)
    print(table(rows, ladder.split), end="")
    return 1 if len(failed) == len(names) else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
