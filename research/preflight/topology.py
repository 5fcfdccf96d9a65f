"""Devices to compile for: a TPU slice that is not here, CPU devices in the place of GPUs, or this machine's."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from research.base.errors import UserError, first_line
from research.base.registry import lookup
from research.preflight.chips import CHIPS, Chip, chip_of

# The name of a slice for Cloud TPU, and the number that it gives to each chip.
_ACCELERATORS = {"v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}
_EXAMPLES = "v5e:16x16, v6e:4x4, v5p:4x4x4, gpu:8, gpu:8:a100 or cpu:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Where a program is to run.

    Attributes:
      devices: those to compile for.
      chip: None if its limits are unknown.
      estimated: the devices are CPUs in the place of GPUs.
      here: they are this machine's own.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None
    estimated: bool = False
    here: bool = False


def open_topology(name: str | None) -> Topology:
    """The devices of a name such as "v5e:16x16", "gpu:8:h100" or "cpu:8"; None: this machine's.

    Call this before anything else initializes JAX's devices. Raises UserError for an unknown name, or without libtpu.
    """
    if name is None:
        import jax

        devices = jax.devices()
        kind = devices[0].device_kind
        return Topology(f"this machine, {len(devices)} × {kind}", devices, chip_of(kind), here=True)
    family, _, rest = name.partition(":")
    if family in _ACCELERATORS:
        return _slice(name, family, rest)
    count, _, chip = rest.partition(":")
    if family not in ("cpu", "gpu") or not re.fullmatch(r"[1-9]\d{0,4}", count) or (chip and family == "cpu"):
        raise UserError(f"--topology is {name!r}; it must be such as {_EXAMPLES}")
    if family == "cpu":
        return Topology(name, _cpus(int(count)), None)
    gpus = {key: value for key, value in CHIPS.items() if value.kind.startswith("NVIDIA")}
    found = lookup(gpus, chip or "h100", "the GPU of --topology")
    return Topology(name, _cpus(int(count)), found, estimated=True)


def _cpus(count: int) -> Sequence[Any]:
    import jax

    jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # initialized already
        if len(jax.devices()) < count:
            raise
    return jax.devices()[:count]


def _slice(name: str, family: str, shape: str) -> Topology:
    """The chips of a TPU slice, described by libtpu, which looks for none here."""
    if not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UserError(f"--topology is {name!r}; it must be such as {_EXAMPLES}")
    if find_spec("libtpu") is None:
        raise UserError(f"--topology={name} needs libtpu, which is not installed: pip install -e '.[tpu]'")
    chips = math.prod(map(int, shape.split("x")))
    accelerator, units = _ACCELERATORS[family]
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["TPU_ACCELERATOR_TYPE"] = f"{accelerator}-{units * chips}"
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    options = {"chips_per_host_bounds": (1, 1, 1)} if chips == 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(f"--topology={name} is not available: {first_line(error)}") from error
    return Topology(name, found.devices, CHIPS[family])
