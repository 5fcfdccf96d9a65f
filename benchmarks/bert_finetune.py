# mypy: disable-error-code="attr-defined, union-attr"
"""Fine-tuning speed on SST-2: this project and PyTorch + transformers, in alternation, in one run.

python benchmarks/bert_finetune.py --tokenizer=TOKENIZER.JSON                # about 32 examples a step
python benchmarks/bert_finetune.py --tokenizer=TOKENIZER.JSON --examples=256
python benchmarks/bert_finetune.py --tokenizer=TOKENIZER.JSON --profile      # profiles this project's step
python benchmarks/bert_finetune.py --tokenizer=TOKENIZER.JSON --encoder=base --row_length=512 --examples=1200  # a GPU

Both sides train the same encoder (of the size of MiniLM-L6-H384 or BERT-base, random weights) on the same token ids:
AdamW, clipping at 1.0, dropout 0.1. Each side runs in a separate process (turns.py); every round measures all settings
once, and the table gives medians over the rounds. The peer is configured as in its own trainer: fused AdamW, sdpa
attention, autocast for bfloat16, batches padded to their longest text or to 128. Prepare SST-2 for TFDS first, and
install the `parity` extra.
"""

import argparse
import collections
import gzip
import json
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from turns import Results, Side, environment, matmul_peak, serve

ENCODERS = {
    "minilm": {"hidden_size": 384, "num_layers": 6, "num_heads": 12, "mlp_size": 1536, "vocab_size": 30_522},
    "base": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "mlp_size": 3072, "vocab_size": 30_522},
    "tiny": {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "mlp_size": 256, "vocab_size": 30_522},  # quick try
}
MAX_LENGTH = 66  # tokens in the longest training text of SST-2; the mean is 13.32
PADDED = 64  # the length of the batches that both sides pad in the same way
PACKED_BFLOAT16 = "packed bfloat16"
OURS = ("packed float32", PACKED_BFLOAT16, f"padded to {PADDED} float32", f"padded to {PADDED} bfloat16")
PEERS = (
    "dynamic float32",
    "dynamic bfloat16",
    "padded to 128 float32",
    "padded to 128 bfloat16",
    f"padded to {PADDED} float32",
    f"padded to {PADDED} bfloat16",
)


# ---- this project


def _our_config(setting: str, arguments: argparse.Namespace) -> Any:
    from research.configs import bert_sst2
    from research.data import load

    row_length = arguments.row_length
    config = bert_sst2.get_config("scratch")
    config.dtype = setting.split()[-1]
    config.model.update(
        ENCODERS[arguments.encoder], max_positions=512, dropout=0.1, attention_dropout=0.1, initializer_range=0.02
    )
    config.data.name = arguments.data
    config.data.transform.update(
        tokenizer=arguments.tokenizer,
        vocab_size=ENCODERS[arguments.encoder]["vocab_size"],
        max_length=MAX_LENGTH,
        row_length=row_length,
        pad_to=(max(row_length, MAX_LENGTH),),
    )
    config.train.update(epochs=100.0, batch_rows=None, batch_size=None)
    if setting.startswith("packed"):
        mean_length = float(load.load(config.data).split("train").lengths.mean())
        config.train.batch_rows = max(1, round(arguments.examples * mean_length / row_length))
    else:
        config.data.transform.update(max_length=PADDED, pad_to=(PADDED,))
        config.train.batch_size = arguments.examples
    return config


def ours(arguments: argparse.Namespace) -> Callable[[str, int], dict[str, float]]:
    """(setting, steps) -> seconds, examples, tokens, …; a setting's next measurement continues its run."""
    from research.devices.platform import prepare_process

    prepare_process()
    import jax

    from research.core.state import param_count
    from research.devices.compiled import Compiled
    from research.devices.sharding import prefetch_to_device
    from research.training.experiment import prepare

    runs: dict[str, Any] = {}

    def start(setting: str) -> Any:
        experiment = prepare(_our_config(setting, arguments))
        batches = prefetch_to_device(experiment.training_batches(0), experiment.mesh)
        return [Compiled(experiment.train_step), experiment.init(), batches]

    def measure(setting: str, steps: int) -> dict[str, float]:
        if setting not in runs:
            runs[setting] = start(setting)
            measure(setting, 3)
        train_step, state, batches = runs[setting]
        loss = None
        counts, waited, began = [0.0, 0], 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch, placed = next(batches)
            if loss is None or loss.is_ready():  # otherwise the device was busy
                waited += time.perf_counter() - asked
            state, scores = train_step(state, placed)
            loss = scores["loss"].total
            counts = [counts[0] + float(batch["weight"].sum()), counts[1] + int(np.count_nonzero(batch["segments"]))]
        jax.block_until_ready(state)
        runs[setting][1] = state
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "examples": counts[0],
            "tokens": counts[1],
            "waited": waited,
            "memory": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0),
            "parameters": param_count(state.params),
            "loss": float(loss / scores["loss"].weight),
            "flops_by_xla": steps * train_step.flops,  # from which `mfu` in summary.json is computed
        }

    def peak() -> float:
        size = 8192 if jax.default_backend() != "cpu" else 2048
        return matmul_peak([size])[size]

    return lambda setting, steps: {"peak": peak()} if setting == "peak" else measure(setting, steps)


# ---- PyTorch + transformers


def peer(arguments: argparse.Namespace) -> Callable[[str, int], dict[str, float]]:
    """Like `ours`."""
    import torch
    import transformers

    from research.data import load

    transformers.logging.set_verbosity_error()
    examples, device = arguments.examples, "cuda" if torch.cuda.is_available() else "cpu"
    sizes = ENCODERS[arguments.encoder]
    split = load.load(_our_config(PACKED_BFLOAT16, arguments).data).split("train")  # the same token ids as in `ours`
    texts, labels = split.tokens.take(np.arange(len(split))), split.labels.astype(np.int64)

    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=sizes["vocab_size"],
            hidden_size=sizes["hidden_size"],
            num_hidden_layers=sizes["num_layers"],
            num_attention_heads=sizes["num_heads"],
            intermediate_size=sizes["mlp_size"],
            attn_implementation="sdpa",
        )
    ).train()
    model = model.to(device)
    compiled = torch.compile(model, dynamic=True)
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1]
    others = [p for name, p in model.named_parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=5e-5, fused=True)
    order = np.random.RandomState(0).permutation(len(texts))
    position = 0

    def placed(array: np.ndarray) -> Any:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device == "cuda" else tensor

    def batch(length: int | None) -> tuple[dict[str, Any], int]:
        """The next batch, padded to `length` or to its longest text, and its number of real tokens."""
        nonlocal position
        chosen = order[np.arange(position, position + examples) % len(order)]
        position += examples
        rows = [texts[i][:length] for i in chosen]
        width = length or max(map(len, rows))
        ids, mask = np.zeros((examples, width), np.int64), np.zeros((examples, width), np.int64)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        inputs = {"input_ids": placed(ids), "attention_mask": placed(mask), "labels": placed(labels[chosen])}
        return inputs, int(mask.sum())  # counted on the host: on the device, every step would wait for it

    def step(setting: str) -> tuple[Any, int]:
        inputs, tokens = batch(None if setting.startswith("dynamic") else int(setting.split()[2]))
        with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in setting):
            loss = (compiled if setting.endswith("compiled") else model)(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach(), tokens

    warm: set[str] = set()

    def measure(setting: str, steps: int) -> dict[str, float]:
        if setting not in warm:
            warm.add(setting)
            for _ in range(3 if device == "cuda" else 1):
                step(setting)
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        done = [step(setting) for _ in range(steps)]
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "examples": examples * steps,
            "tokens": sum(tokens for _, tokens in done),
            "waited": 0.0,
            "memory": torch.cuda.max_memory_allocated() if device == "cuda" else 0,
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss": float(done[-1][0]),
        }

    return measure


# ---- both sides in alternation


def flops_per_token(encoder: str) -> float:
    """6 per weight of the dense layers; attention scores and sums, a few percent, are not counted."""
    sizes = ENCODERS[encoder]
    hidden = sizes["hidden_size"]
    return 6.0 * sizes["num_layers"] * (4 * hidden * hidden + 2 * hidden * sizes["mlp_size"])


def compare(arguments: argparse.Namespace) -> str:
    """Measures all settings in alternation -> the report."""
    passed_on = [f"--{key}={getattr(arguments, key)}" for key in ("data", "examples", "encoder", "row_length")]
    passed_on += [f"--tokenizer={arguments.tokenizer}"] if arguments.tokenizer else []
    sides = {name: Side(__file__, name, passed_on) for name in ("ours", "peer")}
    peers = [*PEERS, *(["dynamic bfloat16 compiled"] if shutil.which("nvidia-smi") else [])]
    settings = [("ours", setting) for setting in OURS] + [("peer", setting) for setting in peers]
    peak = sides["ours"].measure("peak", 1)["peak"]
    results = Results()
    results.measure(sides, settings, rounds=arguments.rounds, steps=arguments.steps)
    for one in sides.values():
        one.close()

    lines = [
        f"## {arguments.examples} examples a step",
        "",
        "| | examples/s | lowest–highest | tokens/s | MFU | examples a step | memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, setting in settings:
        name = "this project" if side == "ours" else "PyTorch"
        a_step = statistics.mean(result["examples"] for result in results.of[side, setting]) / arguments.steps
        memory = max(result["memory"] for result in results.of[side, setting]) / 1e9
        mfu = results.rate(side, setting, "tokens") * flops_per_token(arguments.encoder) / peak
        lines.append(
            f"| {name}, {setting} | {results.rate(side, setting):.1f} | {results.spread(side, setting)} "
            f"| {results.rate(side, setting, 'tokens'):.0f} | {mfu:.3f} "
            f"| {a_step:.1f} | {f'{memory:.2f}' if memory else 'not known'} |"
        )
    waited = sum(result["waited"] for result in results.of["ours", OURS[1]])
    waited /= sum(result["seconds"] for result in results.of["ours", OURS[1]])
    best = max([*PEERS[:4], *peers[len(PEERS) :]], key=lambda setting: results.rate("peer", setting))
    lines += [
        "",
        "| this project, packed, bfloat16, over PyTorch | times |",
        "|---|---|",
        f"| dynamic padding, float32 | {results.ratio(OURS[1], PEERS[0])} |",
        f"| dynamic padding, bfloat16 | {results.ratio(OURS[1], PEERS[1])} |",
        f"| its best setting ({best}) | {results.ratio(OURS[1], best)} |",
        f"| padded to 128, float32 | {results.ratio(OURS[1], PEERS[2])} |",
        f"| padded to 128, bfloat16 | {results.ratio(OURS[1], PEERS[3])} |",
        "",
        "| the same precision | times |",
        "|---|---|",
        f"| packed over dynamic padding, float32 | {results.ratio(OURS[0], PEERS[0])} |",
        f"| batches of the same shape, padded to {PADDED}, float32 | {results.ratio(OURS[2], PEERS[4])} |",
        f"| batches of the same shape, padded to {PADDED}, bfloat16 | {results.ratio(OURS[3], PEERS[5])} |",
        "",
        "Tokens are real ones, padding does not count. MFU: the FLOP of their dense products, forward and backward "
        f"({flops_per_token(arguments.encoder) / 1e6:.1f}M a token), over {peak / 1e9:.0f} GFLOP/s, which a large "
        "bfloat16 product reaches here.",
        "",
        f"Waiting for data: {waited:.4f} of the packed bfloat16 run's time.",
    ]
    return "\n".join(lines)


# ---- profile of a step

# The first one found in an operation's name applies.
PARTS = {
    "attention products and softmax": r"bqhk|bhqs|attention/(reduce|sub|exp|div|select|mul|jit\(_where\)|softmax)",
    "dense products": r"dot_general",
    "dropout": r"Dropout",
    "gelu": r"erf|exp",
    "normalization": r"norm",
    "embeddings": r"embedding",
    "optimizer": r"jit\(train_step\)/(add|mul|div|sqrt|sub|square|integer_pow|reduce_sum|min|max|pow)",
}


def profile(arguments: argparse.Namespace) -> str:
    """The time of a packed bfloat16 step by kind of operation, from JAX's profiler."""
    from research.devices.platform import prepare_process

    prepare_process()
    import jax

    from research.devices.sharding import prefetch_to_device
    from research.training.experiment import prepare

    experiment = prepare(_our_config(PACKED_BFLOAT16, arguments))
    _, placed = next(prefetch_to_device(experiment.training_batches(0), experiment.mesh))
    state = experiment.init()
    step = experiment.train_step.lower(state, placed).compile()
    for _ in range(5):
        state, _ = jax.block_until_ready(step(state, placed))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with jax.profiler.trace(folder):
            for _ in range(arguments.steps):
                state, _ = jax.block_until_ready(step(state, placed))
        seconds = time.perf_counter() - began
        spent = collections.Counter(dict(_by_part(Path(folder), step.as_text())))
    total = sum(spent.values())
    lines = [
        f"## Where a step of {arguments.examples} examples goes",
        "",
        f"{1e3 * seconds / arguments.steps:.0f} ms a step with the profiler on; shares of the threads' time.",
        "",
        "| part | share |",
        "|---|---|",
        *(f"| {part} | {time_spent / total:.1%} |" for part, time_spent in spent.most_common()),
    ]
    return "\n".join(lines)


def _by_part(folder: Path, program: str) -> Iterator[tuple[str, float]]:
    """(part, microseconds) for each operation of the compiled `program` in a trace."""
    names = {}
    for line in program.splitlines():
        operation = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
        source = re.search(r'op_name="([^"]*)"', line)
        if operation:
            names[operation[1]] = source[1] if source else ""
    spent: collections.Counter[str] = collections.Counter()
    (path,) = folder.rglob("*.trace.json.gz")
    for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
        operation = event.get("args", {}).get("hlo_op")
        if event.get("ph") == "X" and operation:
            name = names.get(operation, "")
            part = next((part for part, pattern in PARTS.items() if re.search(pattern, name)), "other")
            spent[part] += event["dur"]
    yield from spent.items()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", help="a BERT tokenizer.json, such as MiniLM's; default: trained on the data")
    parser.add_argument("--data", default="glue/sst2", help="a TFDS dataset, or sentiment, the embedded corpus")
    parser.add_argument("--examples", type=int, default=32, help="a step (packed: about)")
    parser.add_argument("--encoder", choices=tuple(ENCODERS), default="minilm")
    parser.add_argument("--row_length", type=int, default=72, help="tokens per packed row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps of each setting per round")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve({"ours": ours, "peer": peer}[arguments.serve], arguments)
        return
    print(profile(arguments) if arguments.profile else compare(arguments))
    print(f"\n{environment('jax', 'flax', 'torch', 'transformers')}")


if __name__ == "__main__":
    main()
