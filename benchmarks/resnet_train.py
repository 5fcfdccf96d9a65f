"""Training speed of ResNets: this project beside PyTorch, in turn, in one run.

python benchmarks/resnet_train.py                                  # ResNet-18 at 32×32, ResNet-50 at 224×224
python benchmarks/resnet_train.py --networks=resnet50 --batch=256  # a GPU: img/s, MFU, memory, torch.compile beside it

One step on a batch that lies on the device: forward, backward, SGD with momentum 0.9 and weight decay. ResNet-18 has a
3×3 stem and no pooling, as for CIFAR, and a batch of 64; ResNet-50 is ImageNet's, with a batch of 16. The peer is
transformers' ResNet in the channels-last layout, with autocast for bfloat16. Each side is a process of its own
(turns.py); every round measures all settings once, and the table gives medians over the rounds. Install the `parity`
extra first.
"""

import argparse
import functools
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from turns import Measure, Results, Side, environment, serve

# Size of the images, the batch, and the multiply-adds of one forward pass (He et al. 2015, table 1, at 224×224).
NETWORKS: dict[str, tuple[int, int, float]] = {"resnet18": (32, 64, 0.56e9), "resnet50": (224, 16, 4.1e9)}
PRECISIONS = ("float32", "bfloat16")


def _batch(network: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [B, H, W, 3] and labels [B]."""
    size = NETWORKS[network][0]
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8), rng.integers(0, 10, batch)


# ---- this project


def ours(arguments: argparse.Namespace) -> Measure:
    """(setting, steps) -> seconds, examples and, on an accelerator, memory. The runs go on where they were."""
    from research.platform import compiler_options, prepare_process

    prepare_process()
    import jax
    import jax.numpy as jnp

    from configs import resnet_cifar10
    from configs.defaults import defaults
    from research.build import build
    from research.models import MODELS
    from research.optim import optimizer
    from research.state import init_state
    from research.step import train_step
    from research.tasks import Classification

    def start(network: str, dtype: str) -> list[Any]:
        model = resnet_cifar10.get_config("resnet18" if network == "resnet18" else "resnet20").model.to_dict()
        if network == "resnet50":
            model.update(name="resnet50")
        module = build(MODELS, {**model, "dtype": jnp.dtype(dtype)}, "model")
        section = defaults().optimizer.to_dict() | {"name": "sgd", "learning_rate": 0.01, "weight_decay": 5e-4}
        tx, _ = optimizer(**section, total_steps=1000)
        step = jax.jit(
            functools.partial(train_step, module=module, task=Classification(), tx=tx, seed=0),
            donate_argnums=0,
            compiler_options=compiler_options("convolutions"),
        )
        images, labels = _batch(network, batch_size(network, arguments))
        batch = {"images": jnp.asarray(images), "labels": jnp.asarray(labels), "weight": jnp.ones(len(labels))}
        return [step, jax.jit(lambda: init_state(module, tx, batch, 0))(), batch]

    run = _Runs(start)

    def measure(setting: str, steps: int) -> dict[str, float]:
        if setting == "peak":
            return {"peak": _peak(jax, jnp)}
        step, state, batch = current = run.of(setting)
        for _ in range(2 if run.fresh(setting) else 0):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        began = time.perf_counter()
        for _ in range(steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - began
        current[1] = state
        memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
        return {"seconds": seconds, "examples": steps * len(batch["labels"]), "memory": memory}

    return measure


def _peak(jax: Any, jnp: Any) -> float:
    """FLOP/s of a large bfloat16 matrix product."""
    size = 8192 if jax.default_backend() != "cpu" else 2048
    x = jnp.zeros((size, size), jnp.bfloat16)
    product = jax.jit(lambda x: jnp.dot(x, x, preferred_element_type=jnp.float32).astype(x.dtype))
    x = jax.block_until_ready(product(x))
    began = time.perf_counter()
    for _ in range(10):
        x = product(x)
    jax.block_until_ready(x)
    return 20 * size**3 / (time.perf_counter() - began)


class _Runs:
    """One run for each setting, "network precision", started when first asked for."""

    def __init__(self, start: Callable[[str, str], list[Any]]):
        self._start = start
        self._runs: dict[str, list[Any]] = {}
        self._warm: set[str] = set()

    def of(self, setting: str) -> list[Any]:
        if setting not in self._runs:
            network, precision = setting.split()[:2]
            self._runs[setting] = self._start(network, precision)
        return self._runs[setting]

    def fresh(self, setting: str) -> bool:
        """Whether this is asked for the first time: then it wants a step or two to warm up."""
        fresh = setting not in self._warm
        self._warm.add(setting)
        return fresh


# ---- PyTorch


def peer(arguments: argparse.Namespace) -> Measure:
    """As `ours`."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def start(network: str, _: str) -> list[Any]:
        torch.manual_seed(0)
        small = network == "resnet18"
        sizes = (
            {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
            if small
            else {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"}
        )
        config = transformers.ResNetConfig(**sizes, num_labels=10)
        model = transformers.ResNetForImageClassification(config)
        if small:
            embedder = model.resnet.embedder
            embedder.embedder.convolution = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
            embedder.pooler = torch.nn.Identity()
        model = model.to(device, memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        images, labels = _batch(network, batch_size(network, arguments))
        batch = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
        return [model, torch.compile(model), optimizer, *batch]

    runs = _Runs(start)

    def measure(setting: str, steps: int) -> dict[str, float]:
        model, compiled, optimizer, images, labels = runs.of(setting)
        network = compiled if setting.endswith("compiled") else model

        def step() -> None:
            pixels = images.permute(0, 3, 1, 2).float().sub_(120).div_(60)  # from [B, H, W, C]: channels last already
            with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in setting):
                loss = torch.nn.functional.cross_entropy(network(pixels).logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        for _ in range(2 if runs.fresh(setting) else 0):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        return {"seconds": seconds, "examples": steps * len(labels), "memory": memory}

    return measure


# ---- the two in turn


def batch_size(network: str, arguments: argparse.Namespace) -> int:
    return arguments.batch or NETWORKS[network][1]


def compare(arguments: argparse.Namespace) -> str:
    """Measures all settings in turn -> the report."""
    passed_on = [f"--batch={arguments.batch}"]
    sides = {name: Side(__file__, name, passed_on) for name in ("ours", "peer")}
    pairs = [f"{network} {precision}" for network in arguments.networks.split(",") for precision in PRECISIONS]
    compiled = [f"{pair} compiled" for pair in pairs] if shutil.which("nvidia-smi") else []
    settings = [(side, pair) for pair in pairs for side in ("ours", "peer")] + [("peer", pair) for pair in compiled]
    peak = sides["ours"].measure("peak", 1)["peak"]
    results = Results()
    results.measure(sides, settings, rounds=arguments.rounds, steps=arguments.steps)
    for side in sides.values():
        side.close()
    lines = [
        "| | images a step | images/s | lowest–highest | MFU | memory, GB | over PyTorch's |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, setting in settings:
        network = setting.split()[0]
        rate, multiply_adds = results.rate(side, setting), NETWORKS[network][2]
        memory = max(result["memory"] for result in results.of[side, setting]) / 1e9
        rivals = [rival for rival in (setting, f"{setting} compiled") if ("peer", rival) in results.of]
        best = max(rivals, key=lambda rival: results.rate("peer", rival))
        name, ratio = ("this project", results.ratio(setting, best)) if side == "ours" else ("PyTorch", "")
        lines.append(
            f"| {name}, {setting} | {batch_size(network, arguments)} | {rate:.1f} | {results.spread(side, setting)} "
            f"| {6 * multiply_adds * rate / peak:.3f} | {f'{memory:.2f}' if memory else 'not known'} | {ratio} |"
        )
    lines += [
        "",
        f"MFU: 6 FLOP for each multiply-add of a forward pass, over {peak / 1e9:.0f} GFLOP/s, which a large bfloat16 "
        "product reaches here.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="some of them, with commas")
    parser.add_argument(
        "--batch", type=int, default=0, help="images a step (default: 64 for resnet18, 16 for resnet50)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each setting in a round")
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve({"ours": ours, "peer": peer}[arguments.serve](arguments))
        return
    print(compare(arguments))
    print(f"\n{environment('jax', 'flax', 'torch', 'transformers')}")


if __name__ == "__main__":
    main()
