"""Continues a run from its directory alone: with its own config, and on request beyond its end."""

import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from research.base.errors import UserError
from research.base.trees import flatten
from research.config import LoadedConfig, override
from research.runs import own_code
from research.runs.rundir import RunDir
from research.training.limits import check_values
from research.training.method import is_deterministic
from research.training.stopping import PROSE, Reason, is_finished


def load_run(workdir: str | Path, overrides: list[str] | None = None) -> LoadedConfig:
    """The config of the run in `workdir`, to resume it.

    Raises UserError if it is not a run directory, or an override is invalid.
    """
    if not RunDir(workdir).is_run:
        raise UserError(
            f"{RunDir(workdir).path} is not a run directory{RunDir(workdir).similar}; to start a run there, give "
            "--config=CONFIG too"
        )
    run = RunDir.open(workdir)
    config = ConfigDict(_with_tuples(run.config()))
    own_code.register(run, config)
    override(config, overrides or [])
    file, _ = run.own_code()
    note = (run.summary() or {}).get("preset_note")
    # All keys are given: `init_from` must not determine any of them again.
    return LoadedConfig(config, file or Path("config"), note, frozenset(flatten(config.to_dict())))


def extend(workdir: str | Path, by: float) -> None:
    """Makes a finished run longer by `by` steps or epochs, whichever its length is given in; `load_run` resumes it.

    The config's `train.steps` or `train.epochs` becomes the new length, for which the learning-rate schedule is
    computed anew: a constant rate does not change, and any other takes the longer schedule's value at that step. If the
    run was already extended by as much and has not finished, nothing is changed. Training continues with the next whole
    batch: if the last batch was not full, the examples that would have filled it are skipped.

    Raises:
      UserError: the run is not finished, stopped early, is fitted in one step, or `by` is not a valid length.
    """
    run = RunDir.open(workdir, writer=True)
    config, summary, extensions = run.config(), run.summary() or {}, run.extensions()
    if not is_finished(summary):
        if extensions and extensions[-1]["by"] == by:
            return
        raise UserError(f"{run.path} is not finished; resume it with --workdir={run.path} alone, and extend it then")
    if summary.get("reason_code") == Reason.STALLED:
        raise UserError(
            f"{run.path} stopped early at step {summary['step']}, as {config['eval']['metric']} stopped improving "
            "(eval.patience); it would stop again: start another run with --config.init_from and this workdir"
        )
    if is_deterministic(config["optimizer"]["name"]):
        raise UserError(f"{run.path} was fitted in one step by {config['optimizer']['name']!r}; it can't be extended")
    unit = "epochs" if config["train"]["steps"] is None else "steps"
    if not 0 < by < math.inf or (unit == "steps" and by != int(by)):
        what = "a positive number of epochs" if unit == "epochs" else "a positive integer, the number of steps"
        raise UserError(f"--extend is {by:g}; for this run it must be {what}")
    before = config["train"][unit]
    config["train"][unit] = before + (int(by) if unit == "steps" else by)
    check_values(config)
    run.extend(
        config,
        {"step": summary["step"], "unit": unit, "length": before, "by": by},
        {**summary, "status": "preempted", "reason_code": Reason.EXTENDED, "reason": PROSE[Reason.EXTENDED]},
    )


def _with_tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
