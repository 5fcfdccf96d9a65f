"""Bytes that a device receives from others in a step, by kind of collective, from the text of a compiled program."""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping

from research.preflight.hlo import Execution, Module, executions

# Bytes that each of n devices receives, for operands of b bytes on each, with a ring (Thakur et al. 2005, section 4).
_RECEIVED: dict[str, Callable[[float, int], float]] = {
    "all-gather": lambda b, n: (n - 1) * b,
    "all-reduce": lambda b, n: 2 * (n - 1) / n * b,
    "reduce-scatter": lambda b, n: (n - 1) / n * b,
    "all-to-all": lambda b, n: (n - 1) / n * b,
    "ragged-all-to-all": lambda b, n: (n - 1) / n * b,
    "collective-permute": lambda b, n: b,
    "collective-broadcast": lambda b, n: b,
}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a step sends: `received` bytes per device and `count` of executed operations, by kind of collective.

    `unknown`: how many operations are in loops of unknown length; they are counted once.
    """

    received: Mapping[str, float]
    count: Mapping[str, int]
    unknown: int

    @property
    def total(self) -> float:
        """Bytes per device."""
        return sum(self.received.values())


def traffic(module: Module, devices: int) -> Traffic:
    """The collectives of a program for `devices` devices."""
    received: dict[str, float] = collections.defaultdict(float)
    count: dict[str, int] = collections.Counter()
    unknown, chains = 0, set()
    for execution in executions(module):
        kind = _kind(execution)
        if kind is None:
            continue
        chain = _chain(execution)
        if chain is not None and chain in chains:
            continue
        chains.add(chain)
        own, instruction = module.computations[execution.computation], execution.instruction
        size = sum(own[name].bytes for name in instruction.operands[: 1 if kind == "collective-permute" else None])
        received[kind] += execution.times * _RECEIVED[kind](size, group_size(instruction.rest, devices))
        count[kind] += round(execution.times)
        unknown += execution.unknown
    return Traffic(dict(received), dict(count), unknown)


def _kind(execution: Execution) -> str | None:
    """The kind of collective; the second half of an asynchronous one (-done) is none of its own."""
    kind = execution.instruction.opcode.removesuffix("-start")
    if kind == "all-reduce" and execution.computation.startswith("all-reduce-scatter"):
        return "reduce-scatter"  # on TPUs: a fusion of the sum and the slice that the device keeps
    return kind if kind in _RECEIVED else None


def _chain(execution: Execution) -> tuple[str, str] | None:
    """What identifies a collective that TPUs compute in parts, each fused with other work; None for a whole one."""
    rest = execution.instruction.rest
    channel, chain = re.search(r"channel_id=(\d+)", rest), re.search(r'chain_id="(\d+)"', rest)
    return (channel[1], chain[1]) if channel and chain and execution.fused else None


def group_size(attributes: str, devices: int) -> int:
    """How many devices take part in each group of a collective, from its `replica_groups`, in any notation."""
    found = re.search(r"replica_groups=(\{\{[\d,]*\}|\[[\d,]+\]<=|mesh\[[^\]]*\].*?\{'[^}]*\})", attributes)
    if not found:
        return devices  # {}: all
    text = found[1]
    if text.startswith("{"):
        return len(re.findall(r"\d+", text))
    if text.startswith("["):
        return int(re.findall(r"\d+", text)[-1])
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", text)}
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", text[text.rindex("{") :])  # a part of an axis: 'x':(2)4
    return math.prod(int(part) if part else sizes[name] for name, part in axes)
