"""Tensors of the Open Inference Protocol: in JSON, and in the binary extension."""

import dataclasses
import itertools
import math
import struct
from typing import Any

import numpy as np

from research.serve.errors import Kind, ServiceError

# The datatypes by numpy's dtype, little-endian as in the binary extension. BF16 has no such dtype.
DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}

# What the elements of each kind of dtype are in JSON: nothing that would be rounded.
_ELEMENTS: dict[str, set[type]] = {"b": {bool}, "u": {int}, "i": {int}, "f": {int, float}, "O": {str}}

_LENGTH = struct.Struct("<I")  # before each element of BYTES


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What a tensor is called, and what it should hold.

    `datatype` is a name in DTYPES, and `shape` has no negative sizes: `checked` makes sure of that.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    @classmethod
    def checked(cls, name: str, datatype: str, shape: list[int]) -> "Tensor":
        """Raises ServiceError if the datatype is not supported, or the shape none."""
        if datatype not in DTYPES:
            raise ServiceError(
                Kind.INVALID, f"tensor {name!r} has the datatype {datatype!r:.40}; known: {', '.join(DTYPES)}"
            )
        if not 0 < len(shape) <= 8:
            raise ServiceError(Kind.INVALID, f"tensor {name!r} has {len(shape)} axes; it must have 1 to 8")
        if min(shape) < 0:
            raise ServiceError(Kind.INVALID, f"tensor {name!r} has the shape {shape}; no size may be negative")
        if 0 in shape:
            raise ServiceError(Kind.EMPTY, f"tensor {name!r} has the shape {shape}: it has no elements")
        return cls(name, datatype, tuple(shape))

    @property
    def size(self) -> int:
        """The number of elements: exact, as it may be larger than any array's."""
        return math.prod(self.shape)

    def of_json(self, data: Any) -> Any:
        """The array of a tensor's `data`, nested or flat; a list of str for BYTES. Raises ServiceError."""
        if not isinstance(data, list):
            raise self._wrong("must have a list as its data")
        # Step by step and not by numpy, which would make all strings of a list as long as the longest.
        shape, elements = [len(data)], data
        while elements and isinstance(elements[0], list):
            shape.append(len(elements[0]))
            if not all(isinstance(part, list) and len(part) == shape[-1] for part in elements):
                raise self._wrong("has lists of different lengths")
            elements = list(itertools.chain.from_iterable(elements))
        self._check_count(len(elements))
        if tuple(shape) not in (self.shape, (self.size,)):
            raise self._wrong(f"has data of the shape {shape}; it must be that, or flat")
        dtype = DTYPES[self.datatype]
        if not set(map(type, elements)) <= _ELEMENTS[dtype.kind]:
            raise self._wrong(f"has values that are not {self.datatype}")
        if self.datatype == "BYTES":
            return elements
        try:
            with np.errstate(over="ignore"):  # infinite ones are refused where they are read
                return np.array(elements, dtype).reshape(self.shape)
        except OverflowError:
            raise self._wrong(f"has values that {self.datatype} can't hold") from None

    def of_binary(self, data: bytes) -> Any:
        """The array of a tensor's binary data; a list of bytes for BYTES. Raises ServiceError."""
        if self.datatype == "BYTES":
            values = list(self._elements(data))
            self._check_count(len(values))
            return values
        dtype = DTYPES[self.datatype]
        if len(data) != self.size * dtype.itemsize:
            raise self._wrong(f"has {len(data)} bytes of data; it must have {self.size * dtype.itemsize}")
        if dtype.kind == "b":
            return np.frombuffer(data, np.uint8).reshape(self.shape) != 0
        return np.frombuffer(data, dtype).reshape(self.shape)

    def _elements(self, data: bytes) -> Any:
        place = 0
        while place < len(data):
            start = place + _LENGTH.size
            place = start + _LENGTH.unpack_from(data, place)[0] if start <= len(data) else start
            if place > len(data):
                raise self._wrong("has an element that is longer than its data")
            yield data[start:place]

    def _check_count(self, count: int) -> None:
        if count != self.size:
            raise self._wrong(f"has {count} elements; its shape has {self.size}")

    def _wrong(self, what: str) -> ServiceError:
        return ServiceError(Kind.INVALID, f"tensor {self.name!r} of the shape {list(self.shape)} {what}")


def to_json(values: Any, datatype: str) -> list[Any]:
    """Values [N, …], or N strings, as the flat `data` of a tensor."""
    if datatype == "BYTES":
        return list(values)
    found: list[Any] = np.asarray(values, DTYPES[datatype]).ravel().tolist()
    return found


def to_binary(values: Any, datatype: str) -> bytes:
    """Values [N, …], or N strings, as a tensor's binary data."""
    if datatype == "BYTES":
        return b"".join(_LENGTH.pack(len(text)) + text for text in (value.encode() for value in values))
    return np.asarray(values, DTYPES[datatype]).tobytes()
