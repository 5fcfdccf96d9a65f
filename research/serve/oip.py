"""The Open Inference Protocol, version 2, over HTTP, with its binary extension: what KServe and Triton speak.

An input is a tensor for each column of the model. In JSON an encoded image is base64, as JSON has no bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, StrictInt, TypeAdapter

from research import __version__
from research.serve.answers import Result
from research.serve.errors import Kind, ServiceError
from research.serve.http import Exchange, ListOf, described, parse, reply
from research.serve.inputs import check_count
from research.serve.model import ServedModel
from research.serve.plain import read_value, variant, variants_of
from research.serve.service import Service
from research.serve.tensors import Tensor, to_binary, to_json

_LENGTH_HEADER = "Inference-Header-Content-Length"


class Input(BaseModel):
    """A tensor: `data` in row-major order, nested or flat, unless `parameters` has a `binary_data_size`."""

    name: str
    shape: ListOf[StrictInt]
    datatype: str
    parameters: dict[str, Any] = {}
    data: ListOf[Any] | None = None


class Output(BaseModel):
    """A tensor that is asked for; `binary_data` in `parameters` asks for it in the binary extension."""

    name: str
    parameters: dict[str, Any] = {}


class Infer(BaseModel):
    """Inputs of a model. Without `outputs` the answer has all but `outputs`, what the network itself returned."""

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: Annotated[ListOf[Input], Field(min_length=1)]
    outputs: ListOf[Output] = []


_INFER = TypeAdapter(Infer)
_EXAMPLE = {"inputs": [{"name": "sentence", "shape": [1], "datatype": "BYTES", "data": ["a gripping, moving film"]}]}


def router(service: Service) -> APIRouter:
    """The paths under /v2."""
    found = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @found.get("", summary="The server and its extensions")
    async def server() -> Response:
        return reply({"name": "research", "version": __version__, "extensions": ["binary_tensor_data"]})

    @found.get("/health/live", summary="Whether the server answers")
    async def live() -> Response:
        return reply({"live": True})

    @found.get("/health/ready", summary="Whether every model answers")
    async def ready() -> Response:
        return reply({"ready": service.is_ready}, status=200 if service.is_ready else 503)

    @found.get("/models/{name}/ready", summary="Whether a model answers")
    @found.get("/models/{name}/versions/{version}/ready", summary="Whether a version of a model answers")
    async def model_ready(name: str, version: str | None = None) -> Response:
        service.model(name, version=version)
        return reply({"name": name, "ready": True})

    @found.get("/models/{name}", summary="A model's tensors")
    @found.get("/models/{name}/versions/{version}", summary="The tensors of a version of a model")
    async def metadata(name: str, version: str | None = None) -> Response:
        model = service.model(name, version=version)
        tensors = {"inputs": inputs_of(model), "outputs": outputs_of(model)}
        variants = [service.models[each] for each in variants_of(service, name) if each in service.models]
        versions = list(dict.fromkeys(each.version for each in variants or [model]))
        return reply({"name": name, "versions": versions, "platform": "jax", **tensors})

    @found.post("/models/{name}/infer", summary="Infer", openapi_extra=described(_INFER, _EXAMPLE))
    @found.post(
        "/models/{name}/versions/{version}/infer",
        summary="Infer with a version of a model",
        openapi_extra=described(_INFER, _EXAMPLE),
    )
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        exchange = Exchange(service, request)
        model = exchange.model(name, "predict", version=version)
        asked, tail = _parts(await exchange.body(), request.headers.get(_LENGTH_HEADER))
        check_count(max((tensor.shape[0] for tensor in asked.inputs if tensor.shape), default=0), service.limits)
        columns, chosen = _columns(asked.inputs, tail, model), _chosen(asked, model)
        truncate = asked.parameters.get("truncate") is not False
        return _response(name, asked, chosen, await exchange.answer(model, columns, truncate=truncate), model)

    return found


def _tensor(name: str, datatype: str, shape: Sequence[int] = ()) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [-1, *shape]}


def inputs_of(model: ServedModel) -> list[dict[str, Any]]:
    """The tensors that a model reads: each column in the form that it has in the run's samples."""
    return [_input_of(model, name) for name in model.signature.inputs]


def _input_of(model: ServedModel, name: str) -> dict[str, Any]:
    values = model.samples.columns.get(name, []) if model.samples else []
    value = next((value for value in values if value is not None), "")
    if isinstance(value, str | bytes):
        return _tensor(name, "BYTES")
    integers = model.signature.kind == "table" and np.asarray(value).dtype.kind in "iu"
    return _tensor(name, "INT64" if integers else "FP32", np.shape(value))


def outputs_of(model: ServedModel) -> list[dict[str, Any]]:
    """The tensors that a model can answer with; none for one that predicts nothing, such as a bare encoder."""
    if not model.serves("predict"):
        return []
    classes = "scores" in model.outputs
    found = [_tensor("prediction", "INT64" if classes else "FP32", model.outputs["prediction"].shape)]
    found += [
        _tensor(name, "FP32", model.outputs[name].shape) for name in ("scores", "outputs") if name in model.outputs
    ]
    return [*found, _tensor("label", "BYTES")] if classes and model.signature.label_names else found


def _parts(body: bytes, header: str | None) -> tuple[Infer, bytes]:
    """The JSON of a request and the binary data after it."""
    if header is None:
        return parse(_INFER, body), b""
    length = int(header) if header.isascii() and header.isdecimal() and len(header) < 20 else -1
    if not 0 < length <= len(body):
        raise ServiceError(Kind.INVALID, f"{_LENGTH_HEADER} is {header!r:.40}; the body has {len(body)} bytes")
    return parse(_INFER, body[:length]), body[length:]


def _columns(inputs: Sequence[Input], tail: bytes, model: ServedModel) -> dict[str, Any]:
    """The tensors as columns of the model. Raises ServiceError if they are others, or the data is not theirs."""
    expected = {tensor["name"]: tensor for tensor in inputs_of(model)}
    names = [tensor.name for tensor in inputs]
    required = set(model.signature.required)
    if len(set(names)) < len(names) or not required <= set(names) <= expected.keys():
        raise ServiceError(Kind.INVALID, f"the inputs are {', '.join(names)}; the model reads {', '.join(expected)}")
    columns = {}
    for tensor, given in _read(inputs, tail):
        _check(tensor, expected[tensor.name], model)
        columns[tensor.name] = list(_values(given, tensor, model)) if tensor.datatype == "BYTES" else given
    return columns


def _read(inputs: Sequence[Input], tail: bytes) -> Iterator[tuple[Tensor, Any]]:
    """Each tensor with its values. Those with binary data have it one after another."""
    place = 0
    for given in inputs:
        tensor = Tensor.checked(given.name, given.datatype, given.shape)
        size = given.parameters.get("binary_data_size")
        if size is None:
            yield tensor, tensor.of_json(given.data)
            continue
        if type(size) is not int or not 0 <= size <= len(tail) - place or given.data is not None:
            left = f"{len(tail) - place} bytes of binary data are left"
            raise ServiceError(Kind.INVALID, f"tensor {given.name!r} has binary_data_size {size!r:.40} or data; {left}")
        yield tensor, tensor.of_binary(tail[place : place + size])
        place += size
    if place != len(tail):
        raise ServiceError(Kind.INVALID, f"the binary data has {len(tail)} bytes; the inputs have {place}")


def _check(tensor: Tensor, expected: Mapping[str, Any], model: ServedModel) -> None:
    """Raises ServiceError unless the tensor is of the kind and shape that the model reads.

    Images may also be files where the run had arrays, and the other way round; columns of a table text or numbers.
    """
    is_bytes, kind = tensor.datatype == "BYTES", model.signature.kind
    as_expected = is_bytes == (expected["datatype"] == "BYTES")
    shape = expected["shape"] if as_expected or kind == "table" else [-1] if is_bytes else [-1, -1, -1, -1]
    fits = len(shape) == len(tensor.shape) and all(a in (-1, b) for a, b in zip(shape, tensor.shape, strict=True))
    if not fits or not (as_expected or kind in ("image", "table")):
        raise ServiceError(
            Kind.INVALID,
            f"tensor {tensor.name!r} is {tensor.datatype} {list(tensor.shape)}; the model reads "
            f"{expected['datatype']} {expected['shape']}",
        )


def _values(given: Sequence[str | bytes], tensor: Tensor, model: ServedModel) -> Iterator[Any]:
    """Elements of BYTES as the encoder reads them: files of images, else text."""
    for i, value in enumerate(given):
        if isinstance(value, str) or model.signature.kind == "image":
            yield read_value(value, model, i)
            continue
        try:
            yield value.decode()
        except UnicodeDecodeError:
            raise ServiceError(Kind.INVALID, f"tensor {tensor.name!r}: element {i} is not UTF-8") from None


def _chosen(asked: Infer, model: ServedModel) -> list[tuple[dict[str, Any], bool]]:
    """The outputs to answer with, and whether each is binary. Raises ServiceError for one that is unknown."""
    known = {tensor["name"]: tensor for tensor in outputs_of(model)}
    binary = asked.parameters.get("binary_data_output") is True
    outputs = asked.outputs or [Output(name=name) for name in known if name != "outputs"]
    for output in outputs:
        if output.name not in known:
            raise ServiceError(Kind.INVALID, f"there is no output {output.name!r:.80}; there are {', '.join(known)}")
    return [(known[output.name], output.parameters.get("binary_data", binary) is True) for output in outputs]


def _response(
    name: str,
    asked: Infer,
    chosen: Sequence[tuple[dict[str, Any], bool]],
    results: Sequence[Result],
    model: ServedModel,
) -> Response:
    outputs, tail = [], b""
    for described_as, binary in chosen:
        values = _output(described_as["name"], results, model)
        output = {**described_as, "shape": [len(results), *described_as["shape"][1:]]}
        if binary:
            data = to_binary(values, output["datatype"])
            outputs.append({**output, "parameters": {"binary_data_size": len(data)}})
            tail += data
        else:
            outputs.append({**output, "data": to_json(values, output["datatype"])})
    parameters: dict[str, Any] = {
        **variant(name, model),
        "compute": model.compute,
        "cached": [result.cached for result in results],
    }
    if "unit" in model.signature.limits:
        parameters[model.signature.limits["unit"]] = [result.length for result in results]
        parameters["truncated"] = [result.truncated for result in results]
    answer = {
        "model_name": name,
        "model_version": model.version,
        **({} if asked.id is None else {"id": asked.id}),
        "parameters": parameters,
        "outputs": outputs,
    }
    response = reply(answer)
    if not any(binary for _, binary in chosen):
        return response
    headers = {_LENGTH_HEADER: str(len(response.body))}
    return Response(bytes(response.body) + tail, headers=headers, media_type="application/octet-stream")


def _output(name: str, results: Sequence[Result], model: ServedModel) -> Any:
    """An output of all inputs: [N, …], or N strings."""
    if name == "label":
        labels = model.signature.label_names
        assert labels is not None
        return [labels[int(result.answer.values["prediction"])] for result in results]
    return np.stack([result.answer.values[name] for result in results])
