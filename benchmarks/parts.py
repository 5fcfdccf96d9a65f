# mypy: disable-error-code="func-returns-value"
"""Parts of a long measurement, each a process of its own with a deadline; what they find is printed as JSON lines.

A part that raises, crashes or overruns its deadline leaves a line that says so; the lines before it and the other parts
stay. Every line is flushed at once, so that a run that is cut off keeps what it had.
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

SHORTEST = 5.0  # seconds; a part that is left less is skipped
TAIL = 1000  # characters of stderr that the line of a crash has


@dataclasses.dataclass(frozen=True)
class Deadline:
    """A time of `clock`, in seconds."""

    end: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> "Deadline":
        return cls(clock() + seconds, clock)

    @property
    def remaining(self) -> float:
        """Seconds; negative once it has passed."""
        return self.end - self.clock()


def deadlines(budgets: Mapping[str, float], limit: float) -> dict[str, float]:
    """When each part must have ended, in seconds after the start: its budget after the one before it.

    The budgets are scaled to fill `limit`. What a part leaves of its budget is the next one's.
    """
    scale = limit / sum(budgets.values())
    ends, total = {}, 0.0
    for name, budget in budgets.items():
        total += budget * scale
        ends[name] = total
    return ends


def json_line(line: Line) -> str:
    """One line of strict JSON, which has no NaN and no infinity: they become strings."""
    return json.dumps(_finite(line), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Writer:
    """Prints lines, and appends them to the file `out` if there is one; both at once."""

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
    """Runs a part's process to its end, or its deadline's -> "done", "failed", "over its budget" or "skipped".

    Its lines are emitted as they come; what it prints beside them goes to stderr, as its own stderr does, or to `log`.
    """
    if deadline.remaining < SHORTEST:
        emit({"status": "skipped", "seconds_left": round(deadline.remaining, 1)})
        return "skipped"
    errors = log.open("ab") if log else None
    began = errors.tell() if errors else 0
    # A session of its own: what it starts ends with it.
    process = subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
    )
    late = threading.Event()
    timer = threading.Timer(max(deadline.remaining, 0), lambda: (late.set(), _kill(process)))
    timer.start()
    told = False  # whether a line of the part's own says what went wrong
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
    """Ends a process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _parsed(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def serve_part(part: Callable[[Emit], None]) -> int:
    """What a part's process does -> its exit code. What libraries print goes to stderr, out of the lines' way."""
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
