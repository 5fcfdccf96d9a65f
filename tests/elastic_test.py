"""A run that continues on other devices, and in another number of processes, is the same run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

STEPS = 90
COMMAND = (
    *(sys.executable, "-m", "research.train", "--config=configs/bert_sst2.py:embedded"),
    "--config.train.epochs=None",
    f"--config.train.steps={STEPS}",
    "--config.train.log_every=1",
    "--config.eval.every_steps=0",
    "--config.model.dropout=0.1",
)


def _port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _train(workdir, devices, *overrides, processes=1, until=STEPS):
    """Trains in `processes` of as many devices each, and asks them to stop when step `until` was logged."""
    command = [*COMMAND, *overrides, f"--workdir={workdir}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    flags = [[]]
    if processes > 1:
        address = f"--coordinator=127.0.0.1:{_port()}"
        flags = [[address, f"--processes={processes}", f"--process_id={i}"] for i in range(processes)]
    running = [subprocess.Popen([*command, *own], env=environment) for own in flags]
    while until < STEPS and _last(workdir) < until and any(process.poll() is None for process in running):
        time.sleep(0.2)
    if until < STEPS:
        for process in running:
            process.send_signal(signal.SIGTERM)
    expected = 0 if until == STEPS else 128 + signal.SIGTERM
    assert [process.wait(timeout=600) for process in running] == [expected] * processes


def _losses(workdir):
    """The loss of each step, of the last process that logged it."""
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}


def _last(workdir):
    return max(_losses(workdir), default=0)


@pytest.mark.slow
def test_a_run_moves_from_8_devices_to_2_by_2_processes_to_1(tmp_path):
    """Split over `fsdp`, then over `tensor` in two processes, then not at all: the losses of a run on one device."""
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    _train(alone, 1)
    _train(moved, 8, "--config.mesh.fsdp=8", "--config.mesh.rules=fsdp", until=12)
    first = _last(moved)
    _train(moved, 2, "--config.mesh.tensor=2", "--config.mesh.rules=tensor", processes=2, until=24)
    assert first < _last(moved) < STEPS
    _train(moved, 1)
    losses = _losses(moved)
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses == pytest.approx(_losses(alone), rel=1e-5)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (alone, moved)]
    assert summaries[0]["examples_seen"] == summaries[1]["examples_seen"]
