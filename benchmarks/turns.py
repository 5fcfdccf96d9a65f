"""Two sides measured in turn: each is a process of its own, which waits while the other works."""

import collections
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

# (setting, steps) -> what was measured, "seconds" and "examples" among it.
Measure = Callable[[str, int], dict[str, float]]


class Side:
    """A process that measures one side when asked: a benchmark, started again with --serve=NAME and `arguments`."""

    def __init__(self, script: str, name: str, arguments: Iterable[str] = ()):
        self._process = subprocess.Popen(
            [sys.executable, script, f"--serve={name}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # a GPU has room for both
        )

    def measure(self, setting: str, steps: int) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([setting, steps]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def serve(measure: Measure) -> None:
    """What a side's process does: it answers until its input ends."""
    for line in sys.stdin:
        print(json.dumps(measure(*json.loads(line))), flush=True)


class Results:
    """What was measured of each (side, setting), a dict a round."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, str], list[dict[str, float]]] = collections.defaultdict(list)

    def measure(self, sides: dict[str, Side], settings: Iterable[tuple[str, str]], *, rounds: int, steps: int) -> None:
        """Measures all settings in turn, `rounds` times over, and says how far it is."""
        settings = list(settings)
        for round_number in range(rounds):
            for side, setting in settings:
                result = sides[side].measure(setting, steps)
                self.of[side, setting].append(result)
                rate = result["examples"] / result["seconds"]
                print(f"round {round_number + 1}: {side} {setting}: {rate:.1f} examples/s", file=sys.stderr, flush=True)

    def rates(self, side: str, setting: str, what: str = "examples") -> list[float]:
        """A second, in each round."""
        return [result[what] / result["seconds"] for result in self.of[side, setting]]

    def rate(self, side: str, setting: str, what: str = "examples") -> float:
        """The median over the rounds."""
        return statistics.median(self.rates(side, setting, what))

    def spread(self, side: str, setting: str) -> str:
        rates = self.rates(side, setting)
        return f"{min(rates):.1f}–{max(rates):.1f}"

    def ratio(self, one: str, other: str) -> str:
        """Ours over the peer's: the median over rounds of the ratio within a round; what disturbs both cancels out."""
        rates = zip(self.rates("ours", one), self.rates("peer", other), strict=True)
        return f"{statistics.median(a / b for a, b in rates):.2f}"


def environment(*packages: str) -> str:
    """The machine and the packages' versions, for the record."""
    from importlib.metadata import version

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text()
        cpu = f"{text.count('processor')} × {re.search('model name.*: (.*)', text)[1]}"  # type: ignore[index]
        cpu += "".join(f", {flag}" for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in text)
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{cpu}; Python {platform.python_version()}, {versions}"
