# mypy: disable-error-code="func-returns-value"
"""Runs the parts of a long measurement in separate processes with deadlines; findings are printed as JSON lines.

A part that raises, crashes or exceeds its deadline is reported in a line; earlier lines and other parts are kept. Every
line is flushed at once, so that an interrupted run keeps its findings.
"""

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Line = dict[str, Any]
Emit = Callable[[Line], None]

SHORTEST = 5.0  # seconds; a part with less time left is skipped
TAIL = 1000  # characters of stderr in the line that reports a crash


@dataclasses.dataclass(frozen=True)
class Deadline:
    """A deadline, as a time of `clock` in seconds."""

    end: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> "Deadline":
        return cls(clock() + seconds, clock)

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.end - self.clock()


def deadlines(budgets: Mapping[str, float], limit: float) -> dict[str, float]:
    """The deadline of each part, in seconds after the start: that of the part before it plus its own budget.

    The budgets are scaled to fill `limit`. Unused time passes to the next part.
    """
    scale = limit / sum(budgets.values())
    ends, total = {}, 0.0
    for name, budget in budgets.items():
        total += budget * scale
        ends[name] = total
    return ends


def json_line(line: Line) -> str:
    """One line of strict JSON, in which NaN and infinity become strings."""
    return json.dumps(_finite(line), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Writer:
    """Prints lines, and appends them to the file `out` if given; both without delay."""

    def __init__(self, out: Path | None):
        self._out = out
        self._start = time.monotonic()
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, part: str, line: Line) -> None:
        text = json_line({"part": part, "at": round(time.monotonic() - self._start, 1), **line})
        print(text, flush=True)
        if self._out:
            with self._out.open("a") as file:
                file.write(text + "\n")


def run_part(command: Iterable[str], deadline: Deadline, emit: Emit, log: Path | None = None) -> str:
    """Runs a part's process until it exits or its deadline passes -> "done", "failed", "over its budget" or "skipped".

    Its lines are emitted as they arrive; its other output and its stderr go to stderr, or to `log`.
    """
    if deadline.remaining < SHORTEST:
        emit({"status": "skipped", "seconds_left": round(deadline.remaining, 1)})
        return "skipped"
    errors = log.open("ab") if log else None
    began = errors.tell() if errors else 0
    # A new session, so that child processes are terminated with it.
    process = subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
    )
    late = threading.Event()
    timer = threading.Timer(max(deadline.remaining, 0), lambda: (late.set(), _kill(process)))
    timer.start()
    told = False  # whether the part itself emitted a line with the error
    try:
        assert process.stdout is not None
        for raw in process.stdout:
            line = _parsed(raw)
            if line is None:
                print(raw.decode(errors="replace"), end="", file=sys.stderr)
            else:
                told = told or line.get("status") == "failed"
                emit(line)
        code = process.wait()
    finally:
        timer.cancel()
        _kill(process)
        if errors:
            errors.close()
    if late.is_set():
        emit({"status": "over its budget"})
        return "over its budget"
    if code == 0:
        return "done"
    if not told:
        tail = log.read_bytes()[began:].decode(errors="replace")[-TAIL:] if log else None
        emit({"status": "failed", "exit_code": code, "stderr": tail})
    return "failed"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Terminates a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _parsed(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def serve_part(part: Callable[[Emit], None]) -> int:
    """Runs a part in its process -> its exit code. Output of libraries goes to stderr, separate from the lines."""
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def emit(line: Line) -> None:
        print(json_line(line), file=lines, flush=True)

    try:
        part(emit)
    except Exception as error:
        traceback.print_exc()
        where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        emit({"status": "failed", "error": f"{type(error).__name__}: {error}"[:TAIL], "where": where[-4:]})
        return 1
    return 0
