"""Reads the text of a compiled program: its computations, and how often a step executes each instruction."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BYTES = {"pred": 1, "bf16": 2, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b(pred|token|opaque|bf16|[suf]\d+|f8\w+|f4\w+|c\d+)\[([\d,<= ]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a shape's text. `space`: the memory in which it is; 0 is the main one, HBM on an accelerator."""

    bytes: float
    space: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation. `operands`: names; `argument`: the text in the parentheses; `rest`: its attributes."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    argument: str
    rest: str
    root: bool

    @property
    def arrays(self) -> list[Array]:
        """The arrays of its output."""
        return arrays(self.shape)

    @property
    def bytes(self) -> float:
        """The size of its output."""
        return sum(array.bytes for array in self.arrays)

    def called(self, attribute: str) -> list[str]:
        """The computations that an attribute names."""
        found = re.search(rf"\b{attribute}=(%[\w.\-]+|\{{[^}}]*\}})", self.rest)
        return _NAME.findall(found[1]) if found else []


Computation = Mapping[str, Instruction]  # by name, in order


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, and the name of the one with which it begins."""

    computations: Mapping[str, Computation]
    entry: str


@dataclasses.dataclass(frozen=True)
class Execution:
    """An instruction that a step executes `times` times. `unknown`: in a loop of unknown length, counted once."""

    computation: str
    instruction: Instruction
    times: float
    unknown: bool
    fused: bool


def arrays(shape: str) -> list[Array]:
    """The arrays of a shape, such as "(f32[2,3]{1,0}, bf16[4]{0:S(1)})"."""
    return [Array(_size(kind, dims), _space(layout)) for kind, dims, layout in _SHAPE.findall(shape)]


def _size(kind: str, dims: str) -> float:
    size = float(_BYTES[kind]) if kind in _BYTES else int(re.findall(r"\d+", kind)[0]) / 8
    for dim in re.findall(r"\d+", dims):
        size *= int(dim)
    return size


def _space(layout: str) -> int:
    found = re.search(r"S\((\d+)\)", layout)
    return int(found[1]) if found else 0


def parse(text: str) -> Module:
    """Parses the text of an optimized module. Raises ValueError if it has no entry."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, own = None, None
    for line in text.splitlines():
        if own is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found[2], line[found.end() :], bool(found[1]))
            own[instruction.name] = instruction
        elif head := _HEAD.match(line):
            own = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            own = None
    if entry is None:
        raise ValueError("the text has no ENTRY computation")
    return Module(computations, entry)


def _instruction(name: str, text: str, root: bool) -> Instruction:
    shape_end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opcode = _OPCODE.match(text, shape_end)
    assert opcode, text
    end = _closing(text, opcode.end() - 1)
    argument = text[opcode.end() : end - 1]
    return Instruction(name, text[:shape_end], opcode[1], tuple(_NAME.findall(argument)), argument, text[end:], root)


def _closing(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError(f"unbalanced parentheses: {text[:80]!r}")


def executions(module: Module) -> Iterator[Execution]:
    """Every instruction that a step executes, those of fused computations too; of a conditional, all branches."""
    yield from _executions(module, module.entry, 1.0, unknown=False, fused=False)


def _executions(module: Module, name: str, times: float, *, unknown: bool, fused: bool) -> Iterator[Execution]:
    for instruction in module.computations[name].values():
        yield Execution(name, instruction, times, unknown, fused)
        count: Any = 1
        if instruction.opcode == "while":
            count = trip_count(module, instruction)
        for called in _bodies(instruction):
            yield from _executions(
                module,
                called,
                times * (1 if count is None else count),
                unknown=unknown or count is None,
                fused=fused or instruction.opcode == "fusion",
            )


def _bodies(instruction: Instruction) -> list[str]:
    """The computations that an instruction executes itself; not, for instance, the addition of a reduction."""
    if instruction.opcode == "while":
        return instruction.called("body")
    if instruction.opcode == "conditional":
        return [
            *instruction.called("branch_computations"),
            *instruction.called("true_computation"),
            *instruction.called("false_computation"),
        ]
    if instruction.opcode in ("fusion", "async-start"):
        return instruction.called("calls")
    return instruction.called("to_apply") if instruction.opcode == "call" else []


def trip_count(module: Module, loop: Instruction) -> int | None:
    """How often a loop's body is executed: as the compiler notes it, or from `i < constant`; None if unknown."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition = loop.called("condition")
    if not condition:
        return None
    tests, constants = [], []
    for name in [condition[0], *(x for i in module.computations[condition[0]].values() for x in _bodies(i))]:
        for instruction in module.computations[name].values():
            if instruction.opcode == "compare":
                tests.append(instruction)
            elif instruction.opcode == "constant" and re.fullmatch(r"\d+", instruction.argument):
                constants.append(int(instruction.argument))
    return constants[0] if len(tests) == len(constants) == 1 and "direction=LT" in tests[0].rest else None
