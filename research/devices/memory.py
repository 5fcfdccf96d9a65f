"""Checks that a program fits in the devices' memory, before it runs and the OS kills the process."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from research.base.errors import UserError

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available(held: int = 0) -> int | None:
    """Bytes that a device may use; None if unknown.

    For a CPU device: its share of the memory that this machine has left, plus the bytes `held`, which it already has.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    left = _host_left() if device.platform == "cpu" else None
    return None if left is None else held + left // jax.local_device_count()


def _host_left() -> int | None:
    """Bytes that this process can still allocate, as limited by the machine and its control groups (Linux)."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", (_PROC / "meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    lefts = [1024 * int(found[1])] if found else []
    return min([*lefts, *_groups_left()], default=None)


def _groups_left() -> list[int]:
    """The remaining bytes under each memory limit of this process's control groups (version 2) and their parents."""
    try:
        own = re.search(r"^0::/(.*)$", (_PROC / "self/cgroup").read_text(), re.MULTILINE)
    except OSError:
        return []
    group = _CGROUP / (own[1] if own else "")
    lefts = []
    for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(_CGROUP))):
        try:
            limit = int((folder / "memory.max").read_text())
            # The file cache counts as used, but is reclaimed when memory is needed.
            cached = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
            used = int((folder / "memory.current").read_text()) - (int(cached[1]) if cached else 0)
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
        lefts.append(limit - used)
    return lefts


def check_batch(example: Mapping[str, Any], rows: int, share: float, key: str) -> None:
    """Raises UserError if batches of rows like those of `example`, arrays [B, …], do not fit in free memory.

    `rows`: their number, of which this process makes the fraction `share`; `key`: the config key that sets it.
    """
    row, limit = share * sum(x.nbytes / x.shape[0] for x in example.values()), _host_left()
    if limit is not None and row * rows > limit:
        raise UserError(
            f"{key} asks for batches of {rows:,} rows, {row * rows / 2**30:,.2f} GiB, and this machine has "
            f"{limit / 2**30:.2f} GiB left: at most {int(limit // row):,} rows fit"
        )


def check_state(abstract: Any, replicas: int | None) -> None:
    """Raises UserError if a state (shapes with shardings) would not fit. `replicas`: how many it has, if several."""
    leaves = jax.tree.leaves(abstract)
    need = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    _check(need, 0, replicas, "the state")


def check_step(compiled: Any, replicas: int | None) -> None:
    """Raises UserError if a compiled step, with its arguments allocated already, does not fit. `replicas`: as above."""
    analysis = compiled.memory_analysis()
    if analysis is None:  # not every backend has it
        return
    arguments = analysis.argument_size_in_bytes
    need = arguments + analysis.output_size_in_bytes - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes
    _check(need, arguments, replicas, "a step")


def _check(need: int, held: int, replicas: int | None, what: str) -> None:
    limit = available(held)
    if limit is None or need <= limit:
        return
    who, way = "this run", "use a smaller model"
    if replicas is not None:
        fits = replicas * limit // need
        who, way = f"train.seeds={replicas}", f"at most train.seeds={fits} fits" if fits else "not even one seed fits"
    raise UserError(
        f"{who} needs {need / 2**30:,.2f} GiB per device for {what}, but {limit / 2**30:.2f} GiB are available: {way}, "
        "or smaller batches (train.batch_size, batch_rows, eval.batch_size)"
    )
