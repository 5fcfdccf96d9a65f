"""The service's own JSON: models by name, inputs by column, predictions with the labels' names.

Images are sent as base64 in JSON, or as files of a form (multipart).
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from research.base.trees import jsonable
from research.serve.errors import Kind, ServiceError
from research.serve.http import Exchange, described, parse, reply
from research.serve.model import ServedModel
from research.serve.service import Result, Service

Value = str | bool | int | float | list[Any] | None


class Predict(BaseModel):
    """Inputs: a value for each input of a model with one column, or an object with a value for each column."""

    model_config = ConfigDict(extra="forbid")

    inputs: Annotated[list[dict[str, Value] | Value], Field(min_length=1)]
    truncate: bool = True


_PREDICT = TypeAdapter(Predict)


def columns_of(inputs: list[Any], model: ServedModel) -> dict[str, list[Any]]:
    """Inputs as `Predict` has them, by column. Raises ServiceError if one is not of the model's columns."""
    names, required = model.signature.inputs, model.signature.required
    rows = []
    for i, value in enumerate(inputs):
        if not isinstance(value, Mapping):
            if len(required) != 1:
                raise ServiceError(Kind.INVALID, f"input {i} must be an object with {', '.join(names)}")
            value = {required[0]: value}
        lacking, others = [name for name in required if name not in value], value.keys() - set(names)
        if lacking or others:
            wrong = f"lacks {lacking[0]!r}" if lacking else f"has {min(others)!r}"
            raise ServiceError(Kind.INVALID, f"input {i} {wrong}; the model reads {', '.join(names)}")
        rows.append(value)
    return {name: [read_value(row.get(name), model, i) for i, row in enumerate(rows)] for name in names}


def read_value(value: Any, model: ServedModel, index: int) -> Any:
    """An image from its base64; anything else as it is."""
    if model.signature.kind == "image" and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise ServiceError(
                Kind.INVALID, f"input {index} is neither a list of pixels nor an image in base64"
            ) from None
    return value


def record(result: Result, model: ServedModel) -> dict[str, Any]:
    """A result as JSON: `prediction`, for classes `label` and `scores` by name, and what is known about the input."""
    values, names = result.answer.values, model.signature.label_names
    found: dict[str, Any] = {"prediction": values["prediction"].tolist()}
    if "scores" in values:
        scores = values["scores"].tolist()
        labels = names if names and len(names) == len(scores) else [str(c) for c in range(len(scores))]
        found["label"] = labels[found["prediction"]]
        found["scores"] = dict(zip(labels, scores, strict=True))
    return found | about(result, model)


def about(result: Result, model: ServedModel) -> dict[str, Any]:
    """What is known about an input and its answer."""
    limits, found = model.signature.limits, {"cached": result.cached, "version": result.answer.version}
    if "unit" in limits:
        return {limits["unit"]: result.length, "truncated": result.truncated, **found}
    return found


def summary(model: ServedModel) -> dict[str, Any]:
    """What a client should know of a model."""
    signature = model.signature
    return {
        "name": model.name,
        "version": model.version,
        "kind": signature.kind,
        "inputs": list(signature.inputs),
        "labels": None if signature.label_names is None else list(signature.label_names),
        "limits": dict(signature.limits),
        "operations": [model.operation, *model.others],
        **({"mask_token": model.masks.token} if model.masks else {}),
        "compute": model.compute,
    }


def variant(name: str, model: ServedModel) -> dict[str, str]:
    """{"variant": the model's name} if it answers for a split of another name."""
    return {} if model.name == name else {"variant": model.name}


def variants_of(service: Service, name: str) -> Mapping[str, float]:
    """The weights of a split's models; none for a model."""
    return service.splits[name].weights if name in service.splits else {}


def described_as(service: Service, name: str) -> dict[str, Any]:
    """What a client should know of a model, or of a split: then of its variants too."""
    found = summary(service.model(name))
    weights = variants_of(service, name)
    if not weights:
        return found
    variants = [
        {
            "name": each,
            "weight": weight,
            "state": service.states.get(each, "ready" if each in service.models else "loading"),
            "version": service.models[each].version if each in service.models else None,
        }
        for each, weight in weights.items()
    ]
    return {**found, "name": name, "version": None, "variants": variants}


def router(service: Service) -> APIRouter:
    """The paths /models, /models/NAME and /models/NAME/predict."""
    found = APIRouter(tags=["models"])

    @found.get("/models", summary="The models, and what each reads")
    async def models() -> Response:
        ready = [name for name, split in service.splits.items() if split.weights.keys() & service.models.keys()]
        return reply([jsonable(described_as(service, name)) for name in [*ready, *service.models]])

    @found.get("/models/{name}", summary="A model, and what it reads")
    async def model(name: str) -> Response:
        return reply(jsonable(described_as(service, name)))

    @found.post(
        "/models/{name}/predict",
        summary="Predict for inputs",
        openapi_extra=described(_PREDICT, {"inputs": ["a gripping, moving film"]}, {"inputs": [{"x": 0.5}]}),
    )
    async def predict(name: str, request: Request) -> Response:
        exchange = Exchange(service, request)
        served = exchange.model(name, "predict")
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            columns, truncate = await _form(exchange, served), True
        else:
            asked = parse(_PREDICT, await exchange.body())
            columns, truncate = columns_of(asked.inputs, served), asked.truncate
        results = await exchange.answer(served, columns, truncate=truncate)
        return reply(
            {"model": name, **variant(name, served), "predictions": [record(result, served) for result in results]}
        )

    return found


async def _form(exchange: Exchange, model: ServedModel) -> dict[str, list[Any]]:
    """The fields of a form, one or several of each input of the model: files for images, else text."""
    body, given = await exchange.body(), False

    async def receive() -> dict[str, Any]:
        nonlocal given
        if given:
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    form = await Request(exchange.request.scope, receive).form(max_files=exchange.service.limits.batch_inputs)
    columns: dict[str, list[Any]] = {}
    for name in model.signature.inputs:
        values = form.getlist(name)
        if not values and name not in model.signature.required:
            continue
        if not values:
            raise ServiceError(Kind.INVALID, f"the form lacks the field {name!r}")
        columns[name] = [value if isinstance(value, str) else await value.read() for value in values]
    return columns
