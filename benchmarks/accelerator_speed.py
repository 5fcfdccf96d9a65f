"""The parts `bert` and `resnet` of accelerator.py: training speed compared with PyTorch, in alternation.

Uses the sides of bert_finetune.py and resnet_train.py: each (side, setting) runs in a separate process, so that
peak memory is measured for each.
"""

import argparse
import concurrent.futures
import statistics
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import bert_finetune
import resnet_train
from parts import Deadline, Emit, Line
from turns import Results, Side, SideError

HERE = Path(__file__).parent
LAST = 8.0  # no round starts later than this many seconds before the deadline


class Turns:
    """Contenders by name, starting with "ours" or "peer"; those that are warm are measured in alternation."""

    def __init__(self, emit: Emit, deadline: Deadline, *, rounds: int, steps: int, facts: Line):
        self._emit = emit
        self._deadline = deadline
        self._rounds = rounds
        self._steps = steps
        self._facts = facts  # of every table
        self._sides: dict[str, Side] = {}
        self._settings: dict[str, str] = {}

    def start(self, name: str, script: str, setting: str, arguments: list[str]) -> None:
        """Starts a contender's process, which loads its libraries and data in the background."""
        side = name.split()[0]
        self._sides[name] = Side(str(HERE / script), side, arguments)
        self._settings[name] = setting

    def warm(self, names: Iterable[str], seconds: float) -> list[str]:
        """Compiles and runs a few steps of all at once -> those that work and took at most so long.

        Emits why the others do not. Several compile at the same time, so that a slow one costs no more than its time.
        """
        before = self._deadline.remaining
        found: list[str] = []
        with concurrent.futures.ThreadPoolExecutor() as pool:
            futures = {pool.submit(self._sides[name].measure, self._settings[name], 3): name for name in names}
            late = threading.Timer(seconds, lambda: self._kill(set(names) - set(found)))
            late.start()
            for future in concurrent.futures.as_completed(futures):
                name = futures[future]
                took = round(before - self._deadline.remaining, 1)
                if error := future.exception():
                    self._drop(name, error, took)
                else:
                    found.append(name)
                    self._emit({"contender": name, "warm_up_seconds": took})
            late.cancel()
        return [name for name in names if name in found]

    def _kill(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self._sides:  # it has not failed already
                self._sides[name].kill()

    def _drop(self, name: str, error: BaseException, seconds: float = 0.0) -> None:
        self._emit({"contender": name, "error": str(error), "after_seconds": seconds})
        del self._sides[name], self._settings[name]

    def measure(self, names: list[str], flops: float, peak: float | None) -> None:
        """Emits the table of these contenders. flops: per example, or per token where tokens are counted."""
        results = Results()
        for _ in range(self._rounds):
            if self._deadline.remaining < LAST:
                break
            for name in [name for name in names if name in self._sides]:
                try:
                    results.measure(self._sides, [(name, self._settings[name])], rounds=1, steps=self._steps)
                except SideError as error:
                    self._drop(name, error)
        keys = {name: (name, self._settings[name]) for name in names if name in self._sides}
        whole = max((len(results.of[key]) for key in keys.values()), default=0)
        keys = {name: key for name, key in keys.items() if whole and len(results.of[key]) == whole}
        rows = {name: row(results, key, steps=self._steps, flops=flops, peak=peak) for name, key in keys.items()}
        self._emit(
            {**self._facts, "rounds": whole, "steps": self._steps, "table": rows, "ratios": ratios(results, keys)}
        )

    def close(self, names: list[str]) -> None:
        """Terminates these contenders' processes, which frees their memory."""
        for name in [name for name in names if name in self._sides]:
            self._sides.pop(name).close()
            self._settings.pop(name)


def row(results: Results, key: tuple[str, str], *, steps: int, flops: float, peak: float | None) -> Line:
    """The figures of one contender; rates are medians over the rounds. flops: as in `Turns.measure`."""
    measured = results.of[key]
    counted = "tokens" if "tokens" in measured[0] else "examples"
    rates = results.rates(*key)
    seconds = statistics.median(result["seconds"] for result in measured)
    found: Line = {
        "examples_per_second": statistics.median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "step_ms": 1e3 * seconds / steps,
        "examples_per_step": statistics.mean(result["examples"] for result in measured) / steps,
        "mfu": results.rate(*key, counted) * flops / peak if peak else None,
        "peak_memory_gb": max(result["memory"] for result in measured) / 1e9 or None,
        "parameters": measured[-1]["parameters"],
        "last_loss": measured[-1]["loss"],
    }
    if counted == "tokens":
        found["tokens_per_second"] = results.rate(*key, "tokens")
        found["waited_for_data"] = sum(r["waited"] for r in measured) / sum(r["seconds"] for r in measured)
    if "flops_by_xla" in measured[0]:
        by_xla = sum(r["flops_by_xla"] for r in measured)
        found["flops_by_xla_over_needed"] = by_xla / (flops * sum(r[counted] for r in measured))
    return found


def ratios(results: Results, keys: Mapping[str, tuple[str, str]]) -> Line:
    """Examples per second of ours relative to the peer's, for each pair: medians of the ratios within a round."""
    return {
        ours: {peer: results.quotient(keys[ours], keys[peer]) for peer in keys if peer.startswith("peer")}
        for ours in keys
        if ours.startswith("ours")
    }


def _without_torch(options: argparse.Namespace, emit: Emit) -> bool:
    """Whether the peer is unavailable according to the part `environment`; if so, emits the reason."""
    libraries = options.known.get("libraries", {})
    lacking = [name for name in ("torch", "transformers") if not str(libraries.get(name, "1"))[0].isdigit()]
    cuda = libraries.get("cuda", {}).get("device") or options.rehearse or not libraries
    if lacking or not cuda:
        emit({"peer": "unavailable", "libraries": libraries})
    return bool(lacking or not cuda)


# ---- BERT


def bert(emit: Emit, *, deadline: Deadline, options: argparse.Namespace) -> None:
    """Packed rows of two lengths, compared with batches padded to their longest text, eager and compiled; bfloat16.

    If time remains, also the published recipe's 32 examples per step.
    """
    encoder, examples, rows, few = ("tiny", 8, (64,), 4) if options.rehearse else ("base", 512, (128, 512), 32)
    rounds, steps = (2, 1) if options.rehearse else (5, 15)
    common = [f"--encoder={encoder}", *_corpus(options)]
    peak, flops = options.known.get("peak_flops"), bert_finetune.flops_per_token(encoder)
    facts = {"encoder": encoder, "data": common[1].removeprefix("--data="), "flops_per_token": flops}
    turns = Turns(emit, deadline, rounds=rounds, steps=steps, facts=facts)
    ours = {f"ours rows of {row}": [f"--examples={examples}", f"--row_length={row}"] for row in rows}
    peers = (
        {}
        if _without_torch(options, emit)
        else {"peer": "dynamic bfloat16", "peer compiled": "dynamic bfloat16 compiled"}
    )
    for name, setting in peers.items():
        turns.start(name, "bert_finetune.py", setting, [*common, f"--examples={examples}"])
    for name, extra in ours.items():
        turns.start(name, "bert_finetune.py", bert_finetune.PACKED_BFLOAT16, [*common, *extra])
    warm = turns.warm([*peers, *ours], 0.6 * deadline.remaining)
    turns.measure(warm, flops, peak)
    turns.close(warm)
    if deadline.remaining < (0 if options.rehearse else 60):
        emit({"few_examples": "skipped", "seconds_left": deadline.remaining})
        return
    names = {f"ours {few} examples": bert_finetune.PACKED_BFLOAT16}
    names |= {f"{name} {few} examples": setting for name, setting in peers.items() if name in warm}
    for name, setting in names.items():
        arguments = [*common, f"--examples={few}", f"--row_length={rows[0]}"]
        turns.start(name, "bert_finetune.py", setting, arguments)
    turns.measure(turns.warm(list(names), 0.7 * deadline.remaining), flops, peak)
    turns.close(list(names))


def _corpus(options: argparse.Namespace) -> list[str]:
    """SST-2 if it is prepared, otherwise (and for a rehearsal) the embedded corpus."""
    from research.data.sources import tfds_source

    real = tfds_source.folder("glue/sst2", None) and not options.rehearse
    tokenizer = [f"--tokenizer={options.tokenizer}"] if options.tokenizer else []
    return ["--data=glue/sst2" if real else "--data=sentiment", *tokenizer]


# ---- ResNet


def resnet(emit: Emit, *, deadline: Deadline, options: argparse.Namespace) -> None:
    """ResNet-50 at 224×224 with 128 and 256 images per step, compared with eager and compiled peers; bfloat16."""
    network, batches = ("resnet18", (4,)) if options.rehearse else ("resnet50", (128, 256))
    rounds, steps = (2, 1) if options.rehearse else (5, 10)
    libraries = options.known.get("libraries", {})
    usable = [name for name in ("timm", "torchvision") if str(libraries.get(name, ""))[:1].isdigit()]
    library = usable[0] if usable and not options.rehearse else "transformers"
    peak, flops = options.known.get("peak_flops"), resnet_train.flops_per_image(network)
    setting = f"{network} bfloat16"
    peers = {} if _without_torch(options, emit) else {"peer": setting, "peer compiled": f"{setting} compiled"}
    for batch in batches:
        facts = {"network": network, "batch": batch, "peer_library": library, "flops_per_image": flops}
        turns = Turns(emit, deadline, rounds=rounds, steps=steps, facts=facts)
        arguments = [f"--batch={batch}", f"--library={library}"]
        contenders = {**dict(list(peers.items())[:1]), "ours": setting, **dict(list(peers.items())[1:])}
        for name, of in contenders.items():
            turns.start(name, "resnet_train.py", of, arguments)
        warm = turns.warm(contenders, 0.7 * deadline.remaining)
        turns.measure(warm, flops, peak)
        turns.close(warm)
