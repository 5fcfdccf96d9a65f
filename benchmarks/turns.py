"""Measures two sides in alternation: each is a separate process, which waits while the other works."""

import collections
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# (setting, steps) -> measurements, including "seconds" and "examples".
Measure = Callable[[str, int], dict[str, float]]


class SideError(Exception):
    """A side failed to start or to measure."""


class Side:
    """A process that measures one side on request: the benchmark itself, started with --serve=NAME and `arguments`."""

    def __init__(self, script: str, name: str, arguments: Iterable[str] = ()):
        self._process = subprocess.Popen(
            [sys.executable, script, f"--serve={name}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # so that both fit on a GPU
        )

    def ask(self, setting: str, steps: int) -> None:
        """Starts a measurement without waiting for it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([setting, steps]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has exited; its answer says why
            pass

    def answer(self) -> dict[str, float]:
        """The result of the oldest pending measurement. Raises SideError if it failed or the process exited."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SideError(f"the process ended with exit code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise SideError(answer["error"])
        return answer

    def measure(self, setting: str, steps: int) -> dict[str, float]:
        """Starts a measurement and waits for it. Raises SideError like `answer`."""
        self.ask(setting, steps)
        return self.answer()

    def close(self) -> None:
        self._process.communicate()

    def kill(self) -> None:
        self._process.kill()


def serve(make: Callable[[Any], Measure], arguments: Any) -> None:
    """The main loop of a side's process: answers requests until its input ends.

    An exception, also in `make`, becomes the answer {"error": …}. Output of libraries goes to stderr, separate from the
    answers.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    measure, failure = None, {"error": ""}
    try:
        measure = make(arguments)
    except Exception as error:
        failure = _failure(error)
    for line in sys.stdin:
        answer: dict[str, Any] = failure
        if measure is not None:
            try:
                answer = measure(*json.loads(line))
            except Exception as error:
                answer = _failure(error)
        print(json.dumps(answer), file=answers, flush=True)


def _failure(error: Exception) -> dict[str, Any]:
    traceback.print_exception(error)
    return {"error": f"{type(error).__name__}: {error}"[:500]}


def matmul_peak(sizes: Iterable[int], *, repeats: int = 5, products: int = 10) -> dict[int, float]:
    """FLOP/s of bfloat16 products of N×N matrices, by N: the median over `repeats` of a queue of `products`.

    The entries are random, because accelerators multiply zeros at a higher clock rate.
    """
    import jax
    import jax.numpy as jnp

    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32).astype(a.dtype))
    peaks = {}
    for size in sizes:
        a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
        jax.block_until_ready(product(a, b))
        rates = []
        for _ in range(repeats):
            began = time.perf_counter()
            jax.block_until_ready([product(a, b) for _ in range(products)])
            rates.append(2 * products * size**3 / (time.perf_counter() - began))
        peaks[size] = statistics.median(rates)
    return peaks


class Results:
    """The measurements of each (side, setting), one dict per round."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, str], list[dict[str, float]]] = collections.defaultdict(list)

    def measure(self, sides: dict[str, Side], settings: Iterable[tuple[str, str]], *, rounds: int, steps: int) -> None:
        """Measures all settings in alternation, `rounds` times, and prints the progress."""
        settings = list(settings)
        for round_number in range(rounds):
            for side, setting in settings:
                result = sides[side].measure(setting, steps)
                self.of[side, setting].append(result)
                rate = result["examples"] / result["seconds"]
                print(f"round {round_number + 1}: {side} {setting}: {rate:.1f} examples/s", file=sys.stderr, flush=True)

    def rates(self, side: str, setting: str, what: str = "examples") -> list[float]:
        """The rate per second in each round."""
        return [result[what] / result["seconds"] for result in self.of[side, setting]]

    def rate(self, side: str, setting: str, what: str = "examples") -> float:
        """The median rate over the rounds."""
        return statistics.median(self.rates(side, setting, what))

    def spread(self, side: str, setting: str) -> str:
        rates = self.rates(side, setting)
        return f"{min(rates):.1f}–{max(rates):.1f}"

    def quotient(self, one: tuple[str, str], other: tuple[str, str]) -> float:
        """The median over rounds of the ratio of two rates within a round, so that common disturbances cancel."""
        return statistics.median(a / b for a, b in zip(self.rates(*one), self.rates(*other), strict=True))

    def ratio(self, one: str, other: str) -> str:
        """Our rate in one setting relative to the peer's in another."""
        return f"{self.quotient(('ours', one), ('peer', other)):.2f}"


def environment(*packages: str) -> str:
    """The machine and the package versions."""
    from importlib.metadata import version

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text()
        cpu = f"{text.count('processor')} × {re.search('model name.*: (.*)', text)[1]}"  # type: ignore[index]
        cpu += "".join(f", {flag}" for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in text)
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{cpu}; Python {platform.python_version()}, {versions}"
