"""Evaluate a run from the command line: a run directory and a split -> metrics and predictions."""

import argparse
import json

from research import cli


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m research.evaluate",
        description="Evaluate a checkpoint of a run: prints the metrics as JSON and writes predictions/SPLIT.jsonl "
        "(SPLIT-best.jsonl for the best checkpoint).",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", help="the run directory (needed)")
    parser.add_argument("--split", default="validation", help="any split of the dataset (default: validation)")
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"), help="which one (default: last)")
    cli.add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, _ = cli.parse(parser(), argv, required=("workdir",))

    import jax
    from ml_collections import FrozenConfigDict

    from research.checkpoint import Checkpoints
    from research.evaluation import evaluate
    from research.experiment import prepare
    from research.rundir import RunDir

    run = RunDir.open(arguments.workdir, writer=True)
    saved = run.config()
    mesh = saved["mesh"]
    if jax.device_count() % (mesh["fsdp"] * mesh["tensor"]):  # other devices than the run had
        mesh |= {"fsdp": 1, "tensor": 1}
    config = FrozenConfigDict({**saved, "mesh": {**mesh, "data": -1}})
    experiment = prepare(config, run.assets)
    with Checkpoints(run.checkpoints, metric=config.eval.metric, mode=config.eval.mode, writable=False) as checkpoints:
        step = checkpoints.step(arguments.checkpoint)
        state, _ = checkpoints.restore(experiment.state, step)
    metrics, records = evaluate(experiment, state, arguments.split, predictions=True)
    name = arguments.split if arguments.checkpoint == "last" else f"{arguments.split}-best"
    path = run.write_predictions(name, records)
    print(json.dumps({"step": step, "split": arguments.split, "metrics": metrics, "predictions": str(path)}))
    return 0


if __name__ == "__main__":
    cli.run(main)
