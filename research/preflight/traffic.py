"""Bytes that a device moves between its main memory and its processor in a step, from the text of a compiled program.

XLA's own count has a loop's body once, and what stays in an accelerator's fast memory like the rest. This one has each
iteration, only arrays in the main memory, and of a sliced array only the slice: a lower bound.
"""

from research.preflight.hlo import Computation, Instruction, Module, executions

# These move nothing, or what they move is counted where it is computed.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id "
    "opt-barrier add-dependency iota async-start async-update async-done copy-done slice-done send recv".split()
)
_SLICED = ("dynamic-slice", "gather", "slice")


def moved_bytes(module: Module) -> float:
    """Bytes per device and step."""
    total = 0.0
    for execution in executions(module):
        instruction = execution.instruction
        if execution.fused or instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
            continue
        own = module.computations[execution.computation]
        moved = _fusion(instruction, own, module) if instruction.opcode == "fusion" else _moved(instruction, own)
        total += execution.times * moved
    return total


def _fusion(fusion: Instruction, own: Computation, module: Module) -> float:
    """The bytes of one execution of a fusion in the computation `own`."""
    inner = _inner(fusion, module)
    parameters = _parameters(inner)
    read = sum(min(_main(own[name]), _used(parameters[i], inner, module)) for i, name in enumerate(fusion.operands))
    return read + min(_main(fusion), _written(inner, module))


def _inner(fusion: Instruction, module: Module) -> Computation:
    return module.computations[fusion.called("calls")[0]]


def _parameters(computation: Computation) -> dict[int, Instruction]:
    """The parameters of a computation, by number."""
    return {int(i.argument): i for i in computation.values() if i.opcode == "parameter"}


def _moved(instruction: Instruction, own: Computation) -> float:
    """The bytes of one execution of an instruction of the computation `own` that is not a fusion."""
    if instruction.opcode in _SLICED:
        return 2 * _main(instruction)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _main(own[instruction.operands[1]])
    if instruction.opcode == "scatter":
        return 2 * _main(own[instruction.operands[-1]])
    if instruction.opcode == "slice-start":  # the output: the operand, the slice, and a flag
        operand, part, *_ = instruction.arrays
        return part.bytes * ((operand.space == 0) + (part.space == 0))
    if instruction.opcode.endswith("-start"):  # the output has the operand too
        return _main(instruction)
    return _main(instruction) + sum(_main(own[name]) for name in instruction.operands)


def _main(instruction: Instruction) -> float:
    """The bytes of an output's arrays in the main memory."""
    return sum(array.bytes for array in instruction.arrays if array.space == 0)


def _used(value: Instruction, inner: Computation, module: Module) -> float:
    """The bytes that a fused computation reads of a parameter, or of a view of one."""
    read = 0.0
    for user in inner.values():
        for place, name in enumerate(user.operands):
            if name == value.name:
                read += _read(value, user, place, inner, module)
    return min(read, value.bytes)


def _read(value: Instruction, user: Instruction, place: int, inner: Computation, module: Module) -> float:
    """The bytes that `user` reads of a value, its operand at `place`."""
    if user.opcode in ("bitcast", "reshape"):
        return _used(user, inner, module)
    if user.opcode == "fusion":
        nested = _inner(user, module)
        return _used(_parameters(nested)[place], nested, module)
    if user.opcode in _SLICED and place == 0:
        return user.bytes
    # What a slice replaces is not read; a part of a collective is counted as such.
    unread = (user.opcode == "dynamic-update-slice" and place == 0) or "chain_id=" in user.rest
    return 0.0 if unread or user.opcode == "tuple" or "AsyncCollective" in user.rest else value.bytes


def _written(inner: Computation, module: Module) -> float:
    """The bytes that a fused computation writes."""
    (root,) = [i for i in inner.values() if i.root]
    parts = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    return sum(_part(part, inner, module) for part in parts)


def _part(part: Instruction, inner: Computation, module: Module) -> float:
    """The bytes that are written for a part of a fusion's output."""
    while part.opcode in ("bitcast", "reshape"):
        part = inner[part.operands[0]]
    if part.opcode == "parameter" or "AsyncCollective" in part.rest or "chain_id=" in part.rest:
        return 0.0
    if part.opcode == "fusion":
        return min(part.bytes, _written(_inner(part, module), module))
    return inner[part.operands[1]].bytes if part.opcode == "dynamic-update-slice" else part.bytes
