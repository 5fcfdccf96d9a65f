"""Training speed of ResNets: this project and PyTorch, in alternation, in one run.

python benchmarks/resnet_train.py                                  # ResNet-18 at 32×32, ResNet-50 at 224×224
python benchmarks/resnet_train.py --networks=resnet50 --batch=256  # for a GPU; adds torch.compile

One step on a batch that is already on the device: forward, backward, SGD with momentum 0.9 and weight decay. ResNet-18
has a 3×3 stem without pooling, as for CIFAR, and a batch of 64; ResNet-50 is that for ImageNet, with a batch of 16. The
peer is the ResNet of transformers (or of --library) in channels-last layout, with autocast for bfloat16. Each side runs
in a separate process (turns.py); every round measures all settings once, and the table gives medians over the rounds.
Install the `parity` extra first.
"""

import argparse
import functools
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from turns import Measure, Results, Side, environment, matmul_peak, serve

# Image size, batch size, and multiply-adds of a forward pass (He et al. 2015, table 1, at 224×224).
NETWORKS: dict[str, tuple[int, int, float]] = {"resnet18": (32, 64, 0.56e9), "resnet50": (224, 16, 4.1e9)}
PRECISIONS = ("float32", "bfloat16")


def _batch(network: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [B, H, W, 3] and labels [B]."""
    size = NETWORKS[network][0]
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8), rng.integers(0, 10, batch)


# ---- this project


def ours(arguments: argparse.Namespace) -> Measure:
    """(setting, steps) -> seconds, examples, …; a setting's next measurement continues its run."""
    from research.devices.platform import compiler_options, prepare_process

    prepare_process()
    import jax
    import jax.numpy as jnp

    from research.base.registry import build
    from research.configs import resnet_cifar10
    from research.configs.defaults import defaults
    from research.core.optim import optimizer
    from research.core.state import init_state, param_count
    from research.core.step import train_step
    from research.core.tasks import Classification
    from research.devices.compiled import Compiled
    from research.models import MODELS

    def start(network: str, dtype: str) -> list[Any]:
        model = resnet_cifar10.get_config("resnet18" if network == "resnet18" else "resnet20").model.to_dict()
        if network == "resnet50":
            model.update(name="resnet50")
        module = build(MODELS, {**model, "dtype": jnp.dtype(dtype)}, "model")
        section = defaults().optimizer.to_dict() | {"name": "sgd", "learning_rate": 0.01, "weight_decay": 5e-4}
        tx, _ = optimizer(**section, total_steps=1000)
        step = Compiled(
            jax.jit(
                functools.partial(train_step, module=module, task=Classification(), tx=tx, seed=0),
                donate_argnums=0,
                compiler_options=compiler_options("convolutions"),
            )
        )
        images, labels = _batch(network, batch_size(network, arguments))
        batch = {"images": jnp.asarray(images), "labels": jnp.asarray(labels), "weight": jnp.ones(len(labels))}
        return [step, jax.jit(lambda: init_state(module, tx, batch, 0))(), batch]

    run = _Runs(start)

    def measure(setting: str, steps: int) -> dict[str, float]:
        if setting == "peak":
            size = 8192 if jax.default_backend() != "cpu" else 2048
            return {"peak": matmul_peak([size])[size]}
        step, state, batch = current = run.of(setting)
        for _ in range(2 if run.fresh(setting) else 0):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        began = time.perf_counter()
        for _ in range(steps):
            state, scores = step(state, batch)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - began
        current[1] = state
        return {
            "seconds": seconds,
            "examples": steps * len(batch["labels"]),
            "memory": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0),
            "parameters": param_count(state.params),
            "loss": float(scores["loss"].total / scores["loss"].weight),
            "flops_by_xla": steps * step.flops,  # from which `mfu` in summary.json is computed
        }

    return measure


class _Runs:
    """One run per setting ("network precision"), started on first use."""

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
        """Whether this is the first use, which needs a step or two of warm-up."""
        fresh = setting not in self._warm
        self._warm.add(setting)
        return fresh


# ---- PyTorch


def _peer_network(network: str, library: str) -> Any:
    """A torch module: images [B, 3, H, W] -> logits, or an output that has them."""
    import torch

    if library == "timm":
        import timm

        return timm.create_model(network, num_classes=10)
    if library == "torchvision":
        import torchvision

        return getattr(torchvision.models, network)(num_classes=10)
    import transformers

    small = network == "resnet18"
    sizes = (
        {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
        if small
        else {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"}
    )
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, num_labels=10))
    if small:
        embedder = model.resnet.embedder
        embedder.embedder.convolution = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        embedder.pooler = torch.nn.Identity()
    return model


def peer(arguments: argparse.Namespace) -> Measure:
    """Like `ours`."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True

    def start(network: str, _: str) -> list[Any]:
        torch.manual_seed(0)
        model = _peer_network(network, arguments.library)
        model = model.to(device, memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=device == "cuda"
        )
        images, labels = _batch(network, batch_size(network, arguments))
        batch = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
        return [model, torch.compile(model), optimizer, *batch]

    runs = _Runs(start)

    def measure(setting: str, steps: int) -> dict[str, float]:
        model, compiled, optimizer, images, labels = runs.of(setting)
        network = compiled if setting.endswith("compiled") else model

        def step() -> Any:
            pixels = images.permute(0, 3, 1, 2).float().sub_(120).div_(60)  # from [B, H, W, C]: already channels-last
            with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in setting):
                outputs = network(pixels)
                loss = torch.nn.functional.cross_entropy(getattr(outputs, "logits", outputs), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        for _ in range(2 if runs.fresh(setting) else 0):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            loss = step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "examples": steps * len(labels),
            "memory": torch.cuda.max_memory_allocated() if device == "cuda" else 0,
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss": float(loss),
        }

    return measure


# ---- both sides in alternation


def flops_per_image(network: str) -> float:
    """FLOP per image of a training step: 6 per multiply-add of a forward pass."""
    return 6 * NETWORKS[network][2]


def batch_size(network: str, arguments: argparse.Namespace) -> int:
    return arguments.batch or NETWORKS[network][1]


def compare(arguments: argparse.Namespace) -> str:
    """Measures all settings in alternation -> the report."""
    passed_on = [f"--batch={arguments.batch}", f"--library={arguments.library}"]
    sides = {name: Side(__file__, name, passed_on) for name in ("ours", "peer")}
    pairs = [f"{network} {precision}" for network in arguments.networks.split(",") for precision in PRECISIONS]
    compiled = [f"{pair} compiled" for pair in pairs] if shutil.which("nvidia-smi") else []
    settings = [(side, pair) for pair in pairs for side in ("ours", "peer")] + [("peer", pair) for pair in compiled]
    peak = sides["ours"].measure("peak", 1)["peak"]
    results = Results()
    results.measure(sides, settings, rounds=arguments.rounds, steps=arguments.steps)
    for process in sides.values():
        process.close()
    lines = [
        "| | images a step | images/s | lowest–highest | MFU | memory, GB | over PyTorch's |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, setting in settings:
        network = setting.split()[0]
        rate = results.rate(side, setting)
        memory = max(result["memory"] for result in results.of[side, setting]) / 1e9
        rivals = [rival for rival in (setting, f"{setting} compiled") if ("peer", rival) in results.of]
        best = max(rivals, key=lambda rival: results.rate("peer", rival))
        name, ratio = ("this project", results.ratio(setting, best)) if side == "ours" else ("PyTorch", "")
        lines.append(
            f"| {name}, {setting} | {batch_size(network, arguments)} | {rate:.1f} | {results.spread(side, setting)} "
            f"| {flops_per_image(network) * rate / peak:.3f} | {f'{memory:.2f}' if memory else 'not known'} | {ratio} |"
        )
    lines += [
        "",
        f"MFU: 6 FLOP for each multiply-add of a forward pass, over {peak / 1e9:.0f} GFLOP/s, which a large bfloat16 "
        "product reaches here.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="some of the networks, comma-separated")
    parser.add_argument(
        "--batch", type=int, default=0, help="images per step (default: 64 for resnet18, 16 for resnet50)"
    )
    parser.add_argument(
        "--library",
        choices=("transformers", "timm", "torchvision"),
        default="transformers",
        help="the peer's library; the last two have no ResNet-18 for small images",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of each setting per round")
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve({"ours": ours, "peer": peer}[arguments.serve], arguments)
        return
    print(compare(arguments))
    print(f"\n{environment('jax', 'flax', 'torch', 'transformers')}")


if __name__ == "__main__":
    main()
