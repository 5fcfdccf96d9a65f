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
from starlette.exceptions import HTTPException

from research.base.trees import jsonable
from research.serve.answers import Result
from research.serve.errors import Kind, ServiceError
from research.serve.http import Exchange, ListOf, described, parse, reply
from research.serve.inputs import check_count
from research.serve.limits import Limits
from research.serve.model import ServedModel
from research.serve.service import Service
from research.serve.writer import Writer


class Predict(BaseModel):
    """Inputs: a value for each input of a model with one column, or an object with a value for each column."""

    model_config = ConfigDict(extra="forbid")

    inputs: Annotated[ListOf[Any], Field(min_length=1)]
    truncate: bool = True


class Explain(BaseModel):
    """One input, as for `Predict`, and the class to explain: by default that which is predicted."""

    model_config = ConfigDict(extra="forbid")

    inputs: Annotated[ListOf[Any], Field(min_length=1, max_length=1)]
    label: str | None = None


_PREDICT = TypeAdapter(Predict)
_EXPLAIN = TypeAdapter(Explain)


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
        if any(isinstance(value[name], Mapping) for name in names):
            raise ServiceError(Kind.INVALID, f"input {i} has an object within an object; the model reads values")
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
    values = result.answer.values
    found: dict[str, Any] = {"prediction": values["prediction"].tolist()}
    if "scores" in values:
        labels = labels_of(model)
        found["label"] = labels[found["prediction"]]
        found["scores"] = dict(zip(labels, values["scores"].tolist(), strict=True))
    return found | about(result, model)


def about(result: Result, model: ServedModel) -> dict[str, Any]:
    """What is known about an input and its answer."""
    limits, found = model.signature.limits, {"cached": result.cached, "version": result.answer.version}
    if "unit" in limits:
        return {limits["unit"]: result.length, "truncated": result.truncated, **found}
    return found


def labels_of(model: ServedModel) -> list[str]:
    """The names of the classes; empty if the model predicts a number."""
    count = model.outputs["scores"].shape[0] if "scores" in model.outputs else 0
    names = model.signature.label_names
    return list(names) if names and len(names) == count else [str(c) for c in range(count)]


def summary(model: ServedModel, limits: Limits) -> dict[str, Any]:
    """What a client should know of a model; the limits are those of an input and of a request."""
    signature = model.signature
    return {
        "name": model.name,
        "version": model.version,
        "kind": signature.kind,
        "inputs": list(signature.inputs),
        "labels": None if signature.label_names is None else list(signature.label_names),
        "limits": {**signature.limits, "batch_inputs": limits.batch_inputs, "body_bytes": limits.body_bytes},
        "operations": [model.operation, *model.others],
        **({"mask_token": model.masks.token} if model.masks else {}),
        "compute": model.compute,
        **model.form,
    }


def writer_summary(writer: Writer, limits: Limits) -> dict[str, Any]:
    """The same of a decoder, which continues one text, or answers one chat, a request."""
    return {
        "name": writer.name,
        "version": writer.version,
        "kind": "text_generation",
        "inputs": ["prompt"],
        "labels": None,
        "limits": {"max_length": writer.length, "unit": "tokens", "batch_inputs": 1, "body_bytes": limits.body_bytes},
        "operations": ["complete"] if writer.generator.template is None else ["complete", "chat"],
        "compute": writer.generator.compute,
    }


def variant(name: str, model: ServedModel) -> dict[str, str]:
    """{"variant": the model's name} if it answers for a split of another name."""
    return {} if model.name == name else {"variant": model.name}


def variants_of(service: Service, name: str) -> Mapping[str, float]:
    """The weights of a split's models; none for a model."""
    return service.splits[name].weights if name in service.splits else {}


def described_as(service: Service, name: str) -> dict[str, Any]:
    """What a client should know of a model, or of a split: then of its variants too."""
    if name in service.writers:
        return writer_summary(service.writers[name], service.limits)
    found = summary(service.model(name), service.limits)
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
    """The paths /models, /models/NAME, /models/NAME/predict and /models/NAME/explain."""
    found = APIRouter(tags=["models"])

    @found.get("/models", summary="The models, and what each reads")
    async def models() -> Response:
        ready = [name for name, split in service.splits.items() if split.weights.keys() & service.models.keys()]
        return reply([jsonable(described_as(service, name)) for name in [*ready, *service.models, *service.writers]])

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
            check_count(len(asked.inputs), service.limits)
            columns, truncate = columns_of(asked.inputs, served), asked.truncate
        results = await exchange.answer(served, columns, truncate=truncate)
        about_model = {"model": name, **variant(name, served), "compute": served.compute}
        return reply({**about_model, "predictions": [record(result, served) for result in results]})

    @found.post(
        "/models/{name}/explain",
        summary="Predict for an input, and what adds to the prediction",
        openapi_extra=described(_EXPLAIN, {"inputs": ["a gripping, moving film"]}),
    )
    async def explain(name: str, request: Request) -> Response:
        """Integrated gradients: of each word, pixel or feature, how much it adds to the score of the class."""
        exchange = Exchange(service, request)
        served = exchange.model(name, "predict")
        asked = parse(_EXPLAIN, await exchange.body())
        return reply(await exchange.connected(_explained(exchange, served, asked)))

    return found


async def _explained(exchange: Exchange, model: ServedModel, asked: Explain) -> dict[str, Any]:
    columns, labels = columns_of(asked.inputs, model), labels_of(model)
    if asked.label is not None and asked.label not in labels:
        known = f"the model has {', '.join(labels)}" if labels else "the model predicts a number"
        raise ServiceError(Kind.INVALID, f"label is {asked.label!r}; {known}")
    service = exchange.service
    (result,) = await service.answer(model, columns, client=exchange.client)
    prediction = record(result, model)
    label = (asked.label or prediction["label"]) if labels else None
    found = await service.explain(model, columns, None if label is None else labels.index(label))
    return {"model": model.name, "prediction": prediction, "label": label, **found}


async def _form(exchange: Exchange, model: ServedModel) -> dict[str, list[Any]]:
    """The fields of a form, one or several of each input of the model: files for images, else text."""
    body, given = await exchange.body(), False

    async def receive() -> dict[str, Any]:
        nonlocal given
        if given:
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    request, columns = Request(exchange.request.scope, receive), {}
    try:
        async with request.form(max_files=exchange.service.limits.batch_inputs) as form:
            for name in model.signature.inputs:
                values = form.getlist(name)
                if not values and name not in model.signature.required:
                    continue
                if not values:
                    raise ServiceError(Kind.INVALID, f"the form lacks the field {name!r}")
                columns[name] = [value if isinstance(value, str) else await value.read() for value in values]
    except HTTPException as error:
        raise ServiceError(Kind.INVALID, f"the form can't be read: {error.detail}") from None
    return columns
