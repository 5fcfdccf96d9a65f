"""What accelerators can do at best, from their vendors' documentation."""

import dataclasses

from research.devices.throughput import PEAK_FLOPS


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator.

    Attributes:
      kind: the beginning of JAX's `device_kind`.
      memory: bytes.
      memory_bandwidth: bytes per second.
      interconnect: bytes per second that a chip can receive from the others of its slice or server, over all links.
      usable: the fraction of the memory that JAX takes, unless it is told otherwise.
    """

    kind: str
    memory: float
    memory_bandwidth: float
    interconnect: float
    usable: float = 1.0

    @property
    def peak_flops(self) -> float:
        """Dense bfloat16 products, FLOP/s."""
        return PEAK_FLOPS[self.kind]


# The vendors state the interconnect for both directions together; a chip receives half of that. JAX takes 75% of a
# GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION is set ("GPU memory allocation" in JAX's documentation).
CHIPS: dict[str, Chip] = {
    # Google Cloud, "TPU v5e": 16 GB, 819 GB/s, 400 GB/s
    "v5e": Chip("TPU v5 lite", 16 * 2**30, 819e9, 400e9 / 2),
    # Google Cloud, "TPU v5p": 95 GB, 2765 GB/s, 4800 Gbit/s in each direction
    "v5p": Chip("TPU v5p", 95 * 2**30, 2765e9, 1200e9 / 2),
    # Google Cloud, "TPU v6e": 32 GB, 1638 GB/s, 800 GB/s
    "v6e": Chip("TPU v6 lite", 32 * 2**30, 1638e9, 800e9 / 2),
    # NVIDIA, "A100 Tensor Core GPU" data sheet, SXM4: 80 GB, 2039 GB/s, NVLink 600 GB/s
    "a100": Chip("NVIDIA A100", 80e9, 2039e9, 600e9 / 2, usable=0.75),
    # NVIDIA, "H100 Tensor Core GPU" data sheet, SXM5: 80 GB, 3.35 TB/s, NVLink 900 GB/s
    "h100": Chip("NVIDIA H100", 80e9, 3350e9, 900e9 / 2, usable=0.75),
    # NVIDIA, "H200 Tensor Core GPU" data sheet: 141 GB, 4.8 TB/s, NVLink 900 GB/s
    "h200": Chip("NVIDIA H200", 141e9, 4800e9, 900e9 / 2, usable=0.75),
}


def chip_of(kind: str) -> Chip | None:
    """The chip of a JAX `device_kind`; None if it is not in the table."""
    kind = "TPU v5p" if kind == "TPU v5" else kind  # as JAX calls it
    return next((chip for chip in CHIPS.values() if kind.startswith(chip.kind)), None)
