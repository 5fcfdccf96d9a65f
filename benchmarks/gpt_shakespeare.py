"""A language model of Shakespeare's characters: this project and plain PyTorch, trained in alternation, in one run.

PYTHONPATH=. python benchmarks/gpt_shakespeare.py              # about 12 minutes on 2 CPU cores
PYTHONPATH=. python benchmarks/gpt_shakespeare.py --rounds=2 --steps=5  # a quick try

Both sides follow the settings that nanoGPT publishes for a CPU: 4 layers of 4 heads, 128 wide, without dropout or
biases, 2,000 updates of 12 rows of 64 characters from random places, AdamW (0.9, 0.99), learning rate 1e-3 with 100
steps of warm-up and a cosine to 1e-4, weight decay 0.1 of matrices, clipping at 1.0. This project runs
configs/gpt_shakespeare.py:char_cpu, whose positions are rotary, or with --positions=learned those of nanoGPT; the peer
is written here for PyTorch, with fused attention and learned positions. nanoGPT itself computes in float32 on a CPU;
`bfloat16` is autocast.

Each setting runs in a process of its own (turns.py) and trains for --steps in each round, then waits for the others.
The seconds of a setting are those of all its steps, the first of which compiles. The loss is that of the whole
validation split, the last tenth of the text: of rows side by side, and of rows that overlap by half, in which every
character but the first 32 has at least 32 before it. Prepare tiny_shakespeare for TFDS first, and install the `parity`
extra.
"""

import argparse
import math
import time
from typing import Any

import numpy as np
from turns import Measure, Results, Side, environment, serve

SETTINGS = (("ours", "float32"), ("ours", "bfloat16"), ("peer", "float32"), ("peer", "bfloat16"))
STEPS = 2000
LENGTH = 64  # of a row
ROWS = 12
WIDTH, LAYERS, HEADS = 128, 4, 4
EVALUATIONS = {"loss": LENGTH, "overlapping": LENGTH // 2}  # by the distance of rows


# ---- this project


def ours(arguments: argparse.Namespace) -> Measure:
    """(what, n) -> the time of the next n steps for "train", else the losses. Continues one run."""
    from research.devices.platform import prepare_process

    prepare_process()
    import jax

    from research.config import load
    from research.devices.sharding import prefetch_to_device
    from research.training.experiment import prepare

    def experiment(stride: int) -> Any:
        overrides = {
            "dtype": arguments.dtype,
            "seed": arguments.seed,
            "model.position_encoding": arguments.positions,
            "data.transform.stride": stride,
        }
        given = [f"{key}={value}" for key, value in overrides.items()]
        return prepare(load("configs/gpt_shakespeare.py:char_cpu", given).config)

    run = experiment(LENGTH)
    state, batches = run.init(), prefetch_to_device(run.training_batches(0), run.mesh)

    def train(steps: int) -> dict[str, float]:
        nonlocal state
        began = time.perf_counter()
        for _ in range(steps):
            _, placed = next(batches)
            state, _ = run.train_step(state, placed)
        jax.block_until_ready(state)
        return {"seconds": time.perf_counter() - began, "examples": ROWS * steps}

    def evaluate() -> dict[str, float]:
        found = {}
        for name, stride in EVALUATIONS.items():
            evaluated = experiment(stride)
            values = [evaluated.evaluate(state, split)[0]["loss"] for split in ("validation", "test")]
            found[name] = sum(values) / 2  # the splits are as long as each other
        return found

    return lambda what, steps: train(steps) if what == "train" else evaluate()


# ---- PyTorch


def _characters() -> tuple[np.ndarray, np.ndarray, int]:
    """The first nine tenths and the last tenth of the text as character ids, and the number of characters."""
    from research.data.sources import tfds_source

    columns = tfds_source.load("tiny_shakespeare", None)
    text = "".join(columns[split]["text"][0].decode() for split in ("train", "validation", "test"))
    index = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = np.array([index[character] for character in text], np.int64)
    cut = int(0.9 * len(ids))
    return ids[:cut], ids[cut:], len(index)


def peer_model(characters: int) -> Any:
    """GPT-2's architecture (Radford et al. 2019) of this size, without biases: int [B, L] -> logits [B, L, V]."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm, self.mlp_norm = (nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
            self.attention_in = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.attention_out = nn.Linear(WIDTH, WIDTH, bias=False)
            self.mlp_in, self.mlp_out = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

        def forward(self, x: Any) -> Any:
            heads = self.attention_in(self.attention_norm(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
            query, key, value = heads.movedim(2, 0).transpose(2, 3)  # each [B, H, L, K]
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.attention_out(mixed.transpose(1, 2).flatten(2))
            return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(characters, WIDTH), nn.Embedding(LENGTH, WIDTH)
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
            self.norm = nn.LayerNorm(WIDTH, bias=False)
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    residual = name.endswith(("attention_out.weight", "mlp_out.weight"))
                    nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * LAYERS) if residual else 1))

        def forward(self, ids: Any) -> Any:
            x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
            for layer in self.layers:
                x = layer(x)
            return F.linear(self.norm(x), self.tokens.weight)

    return Model()


def learning_rate(step: int) -> float:
    """Linear warm-up over 100 steps to 1e-3, then a cosine to 1e-4 at the last one."""
    if step < 100:
        return 1e-3 * (step + 1) / 101
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / (STEPS - 100))) * 9e-4


def peer(arguments: argparse.Namespace) -> Measure:
    """Like `ours`."""
    import torch
    from torch.nn import functional as F

    torch.manual_seed(arguments.seed)
    train_ids, validation_ids, characters = _characters()
    ids, model = torch.from_numpy(train_ids), peer_model(characters)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    done = 0

    def logits(inputs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
            return model(inputs)

    def train(steps: int) -> dict[str, float]:
        nonlocal done
        began = time.perf_counter()
        for step in range(done, done + steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
            begins = torch.randint(len(ids) - LENGTH, (ROWS, 1))
            rows = ids[begins + torch.arange(LENGTH + 1)]
            loss = F.cross_entropy(logits(rows[:, :-1]).flatten(0, 1).float(), rows[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        done += steps
        return {"seconds": time.perf_counter() - began, "examples": ROWS * steps}

    @torch.no_grad()
    def mean_loss(stride: int) -> float:
        inputs = len(validation_ids) - 1
        begins = np.minimum(np.arange(0, inputs - LENGTH + stride, stride), inputs - LENGTH)  # the last row is full too
        seen = np.append(0, begins[:-1] + LENGTH - begins[1:])  # the targets of an earlier row
        rows = torch.from_numpy(validation_ids[begins[:, None] + np.arange(LENGTH + 1)])
        losses = [
            F.cross_entropy(logits(part[:, :-1]).float().mT, part[:, 1:], reduction="none") for part in rows.split(64)
        ]
        own = torch.cat(losses).double()[torch.from_numpy(np.arange(LENGTH) >= seen[:, None])]
        assert len(own) == inputs
        return float(own.mean())

    def evaluate() -> dict[str, float]:
        return {name: mean_loss(stride) for name, stride in EVALUATIONS.items()}

    return lambda what, steps: train(steps) if what == "train" else evaluate()


# ---- both sides in alternation


def compare(arguments: argparse.Namespace) -> str:
    """Trains all settings in alternation -> the report."""
    passed_on = [f"--{key}={getattr(arguments, key)}" for key in ("seed", "positions")]
    sides = {f"{side} {dtype}": Side(__file__, side, [f"--dtype={dtype}", *passed_on]) for side, dtype in SETTINGS}
    results = Results()
    results.measure(sides, [(side, "train") for side in sides], rounds=arguments.rounds, steps=arguments.steps)
    losses = {name: side.measure("evaluate", 0) for name, side in sides.items()}
    for side in sides.values():
        side.close()
    lines = [
        f"## {arguments.rounds * arguments.steps} steps, seed {arguments.seed}, {arguments.positions} positions",
        "",
        "| | seconds | ms a step, median | time over PyTorch's, float32 | validation loss | rows overlapping |",
        "|---|---|---|---|---|---|",
    ]
    for name in sides:
        seconds = sum(result["seconds"] for result in results.of[name, "train"])
        milliseconds = 1e3 * ROWS / results.rate(name, "train")
        ratio = results.quotient(("peer float32", "train"), (name, "train"))
        shown = name.replace("ours", "this project,").replace("peer", "PyTorch,")
        found = losses[name]
        lines.append(
            f"| {shown} | {seconds:.1f} | {milliseconds:.1f} | {ratio:.2f} | {found['loss']:.4f} "
            f"| {found['overlapping']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100, help="of each setting per round; all rounds: 2,000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--positions", choices=("rotary", "learned"), default="rotary", help="of this project's model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve({"ours": ours, "peer": peer}[arguments.serve], arguments)
        return
    print(compare(arguments))
    print(f"\n{environment('jax', 'flax', 'torch')}")


if __name__ == "__main__":
    main()
