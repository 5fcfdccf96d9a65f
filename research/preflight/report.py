"""What a preflight found: memory, bounds of time and cost, as text or JSON."""

import dataclasses
import json
from typing import Any

from research.preflight.compilation import Program
from research.preflight.topology import Topology

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Report:
    """A compiled step on its devices.

    Attributes:
      limit: bytes that each device has; None if unknown.
      price: of a chip, per hour.
      notes: lines about what was assumed.
    """

    what: str
    topology: Topology
    program: Program
    limit: float | None
    steps: int | None
    price: float | None
    advice: str
    notes: tuple[str, ...] = ()

    @property
    def needed(self) -> float:
        """Bytes per device."""
        refused = self.program.refused
        return self.program.memory.total if refused is None else refused[0]

    @property
    def available(self) -> float | None:
        refused = self.program.refused
        return self.limit if refused is None else refused[1]

    @property
    def fits(self) -> bool:
        return self.program.refused is None and (self.limit is None or self.needed <= self.limit)

    @property
    def seconds(self) -> dict[str, float]:
        """The least time of a step, by what limits it; empty where the chip is unknown."""
        chip, program = self.topology.chip, self.program
        if chip is None:
            return {}
        found = {"compute": program.flops.total / len(self.topology.devices) / chip.peak_flops}
        if program.moved is not None and not self.topology.estimated:
            found["memory"] = program.moved / chip.memory_bandwidth
        if program.traffic is not None:
            found["interconnect"] = program.traffic.total / chip.interconnect
        return found

    @property
    def bounds(self) -> dict[str, float]:
        """Bounds of a run: seconds per step, MFU, rows and tokens per second, hours, cost; empty if unknown."""
        step = max(self.seconds.values(), default=0.0)
        if not step or not self.fits:
            return {}
        program, devices = self.program, len(self.topology.devices)
        mfu = self.seconds["compute"] / step * program.flops.model / program.flops.total if program.flops.total else 0.0
        found = {"step_seconds": step, "mfu": mfu, "rows_per_second": program.rows / step}
        if program.row_tokens:
            found["tokens_per_second"] = program.rows * program.row_tokens / step
        if self.steps is not None:
            found["hours"] = self.steps * step / 3600
            if self.price is not None:
                found["cost"] = found["hours"] * devices * self.price
        return found

    def values(self) -> dict[str, Any]:
        """The object that `--json` prints; sizes in bytes per device, times in seconds."""
        program = self.program
        return {
            "config": self.what,
            "topology": self.topology.name,
            "devices": len(self.topology.devices),
            "device_kind": self.topology.devices[0].device_kind,
            "estimated": self.topology.estimated,
            "fits": self.fits,
            "advice": None if self.fits else self.advice,
            "memory": dataclasses.asdict(program.memory),
            "needed": self.needed,
            "available": self.available,
            "parameters": program.parameter_count,
            "rows": program.rows,
            "row_tokens": program.row_tokens,
            "flops": program.flops.total / len(self.topology.devices),
            "flops_again": program.flops.again / len(self.topology.devices),
            "moved": program.moved,
            "received": None if program.traffic is None else dict(program.traffic.received),
            "seconds": self.seconds,
            "bounds": self.bounds,
            "steps": self.steps,
            "compile_seconds": program.seconds,
            "notes": self.notes,
        }

    def json(self) -> str:
        return json.dumps(self.values(), indent=2)

    def text(self) -> str:
        lines = [f"{self.what} on {self.topology.name}: {len(self.topology.devices)} devices, {self._size()}"]
        lines += [f"  {note}" for note in self.notes]
        lines += ["", *self._memory(), "", self._verdict()]
        if self.seconds:
            lines += ["", *self._times()]
        return "\n".join([*lines, "", f"compiled in {self.program.seconds:,.0f} s"])

    def _size(self) -> str:
        program = self.program
        tokens = f" × {program.row_tokens:,} tokens" if program.row_tokens else ""
        return f"{program.parameter_count:,} parameters, batches of {program.rows:,} rows{tokens}"

    def _memory(self) -> list[str]:
        memory = self.program.memory
        rows = [
            ("parameters", memory.parameters),
            ("optimizer", memory.optimizer),
            ("other state", memory.other_state),
            ("batch", memory.batch),
            ("next batch", memory.next_batch),
            ("layout", memory.layout),
            ("temporaries", memory.temporaries),
            ("code", memory.code),
        ]
        return ["memory per device, GiB", *(f"  {name:<14}{size / GIB:>10.3f}" for name, size in rows if size)]

    def _verdict(self) -> str:
        needed, available = f"{self.needed / GIB:,.2f} GiB", self.available
        if available is None:
            return f"needs {needed} per device; the memory of the device is unknown"
        has = f"{available / GIB:,.2f} GiB"
        if self.fits:
            return f"fits: {needed} of {has}, {(available - self.needed) / GIB:,.2f} GiB left"
        least = "at least " if self.program.refused else ""  # the compiler stops at the first excess
        return f"does not fit: needs {least}{needed}, {has} are available; {self.advice}"

    def _times(self) -> list[str]:
        program, devices, seconds = self.program, len(self.topology.devices), self.seconds
        again = program.flops.again / program.flops.total if program.flops.total else 0.0
        details = {
            "compute": f"{program.flops.total / devices / 1e12:,.2f} TFLOP" + (f", {again:.0%} again" if again else ""),
            "memory": f"{(program.moved or 0) / 1e9:,.2f} GB moved",
            "interconnect": self._received(),
        }
        lines = ["least time of a step, ms", *(f"  {k:<14}{1e3 * v:>10.2f}  {details[k]}" for k, v in seconds.items())]
        bounds = self.bounds
        if not bounds:
            return lines
        lines += [
            "",
            f"at best {1e3 * bounds['step_seconds']:,.2f} ms per step, MFU {bounds['mfu']:.1%}, " + self._rate(),
        ]
        if "hours" in bounds:
            cost = f", {bounds['cost']:,.2f} for {devices} chips" if "cost" in bounds else ""
            lines.append(f"{self.steps:,} steps: at least {bounds['hours']:,.2f} hours{cost}")
        return lines

    def _rate(self) -> str:
        if "tokens_per_second" in self.bounds:
            return f"{self.bounds['tokens_per_second']:,.0f} tokens per second"
        return f"{self.bounds['rows_per_second']:,.0f} examples per second"

    def _received(self) -> str:
        traffic = self.program.traffic
        if traffic is None or not traffic.received:
            return "nothing received"
        return ", ".join(f"{kind} {size / 1e9:,.3f} GB" for kind, size in sorted(traffic.received.items()))
