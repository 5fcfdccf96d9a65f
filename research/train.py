"""Train from the command line; the training itself is in `research/training/loop.py`."""

import argparse
import os
import signal

from research import cli
from research.base.errors import UserError


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "train",
        "Train a config and evaluate it. Rerun the same command with the same --workdir to resume.",
        epilog="Any key of the config can be set: --config.train.batch_size=64 --config.optimizer.learning_rate=3e-5",
    )
    parser.add_argument(
        "--config",
        metavar="CONFIG[:PRESET]",
        help="a name that python -m research.configs lists, or a file: bert_sst2:embedded, lab/my_config.py",
    )
    parser.add_argument(
        "--workdir", help="the run directory (default: runs/CONFIG-PRESET-UTCTIME); without --config, the run to resume"
    )
    parser.add_argument(
        "--extend",
        type=float,
        metavar="N",
        help="continue the finished run in --workdir for N more steps, or epochs if its length is in epochs",
    )
    parser.add_argument("--print_config", action="store_true", help="print every key of the config, and do not train")
    cli.add_distributed_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    stop = _stop_on_signals()
    arguments, overrides = cli.parse(parser(), argv, required=(), passed_on="--config.")
    if arguments.config is None and arguments.workdir is None:
        raise UserError("--config is missing: name what to train, or with --workdir a run to resume; see --help")
    if arguments.extend is not None and (arguments.workdir is None or arguments.config is not None):
        raise UserError("--extend continues a run with its own config: give its --workdir, and no --config")
    cli.start_distributed(arguments)

    # Only now: importing JAX and the data libraries takes a second, which --help should not.
    from research.api import train_loaded
    from research.config import load
    from research.resume import extend, load_run
    from research.training.start import in_first_process

    if arguments.extend is not None:
        in_first_process(lambda: extend(arguments.workdir, arguments.extend), f"extend {arguments.workdir}")
    loaded = load(arguments.config, overrides) if arguments.config else load_run(arguments.workdir, overrides)
    if loaded.note:
        print(loaded.note, flush=True)
    if arguments.print_config:
        from research.comments import with_comments

        print(with_comments(loaded.config, loaded.file))
        return 0
    if stop:
        return 128 + stop[0]
    _, summary = train_loaded(loaded, arguments.workdir, should_stop=lambda: bool(stop))
    return 128 + stop[0] if summary["status"] == "preempted" and stop else 0


def _stop_on_signals() -> list[int]:
    """Records the first SIGINT or SIGTERM in the list that is returned; a second one ends the program at once."""
    received: list[int] = []

    def on_signal(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        text = f"\n{signal.Signals(number).name}: saving, then stopping (repeat to stop immediately)\n"
        os.write(2, text.encode())  # `print` fails if the signal interrupts another `print`

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return received


if __name__ == "__main__":
    cli.run(main)
