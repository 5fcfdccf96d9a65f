"""Which key to change where a step does not fit."""

from typing import Any

from research.preflight.compilation import Program


def advice(config: Any, program: Program, devices: int) -> str:
    """One clause that names the key, and its value where there is one."""
    memory, mesh = program.memory, config.mesh
    most = devices // mesh.tensor  # the largest mesh.fsdp
    if memory.state >= memory.temporaries + memory.batch:
        if memory.state < 2 * program.state_bytes / devices or most == 1:
            return "the state dominates: use more devices, or a smaller model"
        rules = "fsdp" if mesh.tensor == 1 else "fsdp_tensor"
        if not program.has_rules:
            return f"the state dominates, a copy on each device: set mesh.fsdp={most} and list mesh.rules"
        return f"the state dominates: set mesh.fsdp={most} mesh.rules={rules}"
    if config.model.get("remat") is False:
        scan = " model.scan=True" if config.model.get("scan") is False else ""  # without, XLA may undo it
        return f"what a step computes dominates: set model.remat=True{scan}"
    accumulate, size = config.train.accumulate, "batch_size" if config.train.batch_rows is None else "batch_rows"
    rows = config.train[size]
    parts = devices // mesh.tensor
    if rows != -1 and memory.batch < memory.temporaries and rows // parts >= 2 * accumulate:
        return f"what a step computes dominates: set train.accumulate={2 * accumulate}"
    if rows > parts:
        return f"what a step computes dominates: set train.{size} below {rows}"
    return "each device has one row: set mesh.tensor larger, or use shorter rows or a smaller model"
