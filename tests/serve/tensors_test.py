# mypy: disable-error-code="attr-defined"
"""Tensors of the Open Inference Protocol, in JSON and binary."""

import pytest

from research.serve.errors import ServiceError
from research.serve.tensors import DTYPES, Tensor, to_binary, to_json


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_is_read_and_written(datatype):
    values = {"BOOL": [True, False], "BYTES": ["", "ä"]}.get(datatype, [0, 100])
    tensor = Tensor.checked("x", datatype, [2])
    binary = to_binary(values, datatype)
    read = tensor.of_binary(binary)
    assert list(read) == ([value.encode() for value in values] if datatype == "BYTES" else values)
    assert list(tensor.of_json(to_json(values, datatype))) == values
    if datatype != "BYTES":
        bits = {"BOOL": 8}.get(datatype) or int(datatype.strip("UINTFP"))
        assert len(binary) == 2 * bits // 8
        with pytest.raises(ServiceError):
            tensor.of_binary(binary[1:])
