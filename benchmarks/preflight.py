"""Compares the memory that a preflight predicts for a train step with what the step takes when it runs.

python -m benchmarks.preflight

On one CPU device. For each config the prediction is that of `python -m research.preflight --topology=cpu:1`. The
measured figure is the peak of this process's resident memory while three steps run, minus the resident memory before
the state is made and after everything is compiled. Linux only: the peak is that of /proc/self/status, reset.
"""

import ctypes
import gc
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

CONFIGS = {
    "MiniLM, 64 rows × 112 tokens": ("bert_sst2:minilm", "train.batch_rows=64", "train.steps=10"),
    "the same, remat": ("bert_sst2:minilm", "train.batch_rows=64", "train.steps=10", "model.remat=True"),
    "the same, remat and scan": (
        "bert_sst2:minilm",
        "train.batch_rows=64",
        "train.steps=10",
        "model.remat=True",
        "model.scan=True",
    ),
    "the same, 4 parts": ("bert_sst2:minilm", "train.batch_rows=64", "train.steps=10", "train.accumulate=4"),
    "GPT, 512 wide, 8 layers, 16 × 256 tokens": (
        "gpt_wikitext:embedded",
        "model.hidden_size=512",
        "model.num_layers=8",
        "model.num_heads=8",
        "model.num_kv_heads=8",
        "model.head_size=64",
        "model.mlp_size=2048",
        "model.max_positions=256",
        "data.transform.row_length=256",
        "train.batch_size=16",
        "train.steps=10",
    ),
    "ResNet, 1,024 digits of 8 × 8": ("resnet_digits:embedded", "train.batch_size=1024", "train.steps=10"),
    "ResNet, 16,384 digits of 8 × 8": ("resnet_digits:embedded", "train.batch_size=16384", "train.steps=10"),
}


def predicted(config: str, overrides: list[str]) -> dict:
    """The report of `python -m research.preflight`."""
    command = [sys.executable, "-m", "research.preflight", f"--config={config}", "--topology=cpu:1", "--json"]
    done = subprocess.run([*command, *(f"--config.{o}" for o in overrides)], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status: VmRSS, the resident memory, or VmHWM, its peak."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def measured(config: str, overrides: list[str]) -> int:
    """Bytes by which the resident memory of this process grows at most, for the state, two batches and three steps."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from research.config import load
    from research.devices import sharding
    from research.preflight.shapes import with_shapes
    from research.training.experiment import prepare

    loaded = load(config, overrides)
    experiment = prepare(with_shapes(loaded.config, loaded.given)[0])
    batches = experiment.training_batches(0)
    hosts = [next(batches) for _ in range(2)]
    state = experiment.init()
    batch = sharding.put_batch(hosts[0], experiment.mesh, experiment.batch_axis)
    step = experiment.train_step.lower(state, batch).compile()
    jax.block_until_ready(state)
    del state, batch
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = status("VmRSS")
    state = jax.block_until_ready(experiment.init())
    placed = [sharding.put_batch(host, experiment.mesh, experiment.batch_axis) for host in hosts]
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    for _ in range(3):
        state, scores = step(state, placed[0])
        jax.block_until_ready((state, scores))
    return status("VmHWM") - before


def main() -> None:
    if len(sys.argv) > 1:
        print(measured(sys.argv[1], sys.argv[2:]))
        return
    import jax

    print(f"python {platform.python_version()}, jax {jax.__version__}, {platform.machine()}\n")
    print("| step | parameters | state, MB | temporaries, MB | predicted, MB | measured, MB | measured / predicted |")
    print("|---|---|---|---|---|---|---|")
    for name, (config, *overrides) in CONFIGS.items():
        report = predicted(config, overrides)
        memory, code = report["memory"], report["memory"]["code"]
        state = memory["parameters"] + memory["optimizer"] + memory["other_state"]
        need = report["needed"] - code
        command = [sys.executable, "-m", "benchmarks.preflight", config, *overrides]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = int(done.stdout.split()[-1])
        figures = (state / 1e6, memory["temporaries"] / 1e6, need / 1e6, found / 1e6)
        sizes = " | ".join(f"{figure:,.0f}" for figure in figures)
        print(f"| {name} | {report['parameters']:,} | {sizes} | {found / need:.3f} |", flush=True)


if __name__ == "__main__":
    main()
