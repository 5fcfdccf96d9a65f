"""What is sent to the service, and how its answers are read: without I/O."""

import base64
import dataclasses
import io
import json
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from research.client.errors import ServiceError, expected
from research.client.retries import RETRIED, Retries

T = TypeVar("T")

_JSON = {"Content-Type": "application/json"}
_ONCE = Retries(timeout=5.0, retries=0)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model predicts for an input.

    Attributes:
      prediction: the class as an integer, or the number or numbers of a regression.
      version: the step of the model's checkpoint.
      cached: whether the service had computed it before.
      label: the name of the class; None for a regression.
      scores: the probability of each class by name; None for a regression.
      tokens: how many the model read, or terms for bags of words; None for inputs of a fixed size.
      truncated: whether these are only the beginning of the input.
    """

    prediction: Any
    version: str
    cached: bool
    label: str | None = None
    scores: Mapping[str, float] | None = None
    tokens: int | None = None
    truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Call:
    """A request: of JSON if it has a body; `retries` if they are not the client's."""

    method: str
    path: str
    body: bytes | None = None
    retries: Retries | None = None

    @property
    def options(self) -> dict[str, Any]:
        """For httpx."""
        found: dict[str, Any] = {"method": self.method, "url": self.path}
        return found if self.body is None else {**found, "content": self.body, "headers": _JSON}


# Yields requests, gets the JSON of their answers in the same order, and returns a result.
Plan = Generator[Sequence[Call], list[Any], T]


def _encoded(value: Any) -> bytes:
    return json.dumps(value, default=_as_json, separators=(",", ":")).encode()


def _as_json(value: Any) -> Any:
    """For `json`: arrays as lists; the bytes of an image file, its path and an image of pillow as base64."""
    if hasattr(value, "tolist"):  # of numpy, without importing it
        return value.tolist()
    if isinstance(value, os.PathLike):
        value = Path(value).read_bytes()
    if hasattr(value, "save"):
        file = io.BytesIO()
        value.save(file, "PNG")
        value = file.getvalue()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    raise TypeError(f"an input has a {type(value).__name__}, which cannot be sent")


def _bodies(inputs: Iterable[Any], limits: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[bytes]:
    """Requests with as many inputs each as the service allows, in order."""
    end = b"]" + b"".join(b",%s:%s" % (_encoded(name), _encoded(value)) for name, value in options.items()) + b"}"
    fixed = len(b'{"inputs":[') + len(end)
    parts: list[bytes] = []
    size = fixed
    for value in inputs:
        part = _encoded(value)
        if parts and (len(parts) >= limits["batch_inputs"] or size + len(part) + 1 > limits["body_bytes"]):
            yield b'{"inputs":[' + b",".join(parts) + end
            parts, size = [], fixed
        parts.append(part)
        size += len(part) + 1
    if parts:
        yield b'{"inputs":[' + b",".join(parts) + end


def read(response: httpx.Response) -> Any:
    """The JSON of an answer. Raises ServiceError if it is none."""
    with expected():
        return response.json()


def models() -> Plan[list[dict[str, Any]]]:
    """The models that answer."""
    (found,) = yield [Call("GET", "/models")]
    with expected():
        return [dict(each) for each in found]


def _limits(model: str, known: dict[str, Any]) -> Plan[Mapping[str, int]]:
    """The limits of a model's requests, which are asked for once."""
    if model not in known:
        (found,) = yield [Call("GET", f"/models/{quote(model, safe='')}")]
        with expected():
            known[model] = {name: int(found["limits"][name]) for name in ("batch_inputs", "body_bytes")}
    limits: Mapping[str, int] = known[model]
    return limits


def predict(model: str, inputs: Iterable[Any], known: dict[str, Any], truncate: bool) -> Plan[list[Prediction]]:
    """The predictions for inputs. `known`: the limits of each model that were asked for."""
    values, limits = _listed(inputs), (yield from _limits(model, known))
    bodies = _bodies(values, limits, {"truncate": truncate})
    answers = yield [Call("POST", f"/models/{quote(model, safe='')}/predict", body) for body in bodies]
    with expected():
        records = [_prediction(record) for answer in answers for record in answer["predictions"]]
        return _one_each(values, records)


def _prediction(record: Mapping[str, Any]) -> Prediction:
    known = {field.name: record[field.name] for field in dataclasses.fields(Prediction) if field.name in record}
    return Prediction(**{**known, "tokens": record.get("tokens", record.get("terms"))})


def embed(texts: Iterable[str], model: str | None, known: dict[str, Any], truncate: bool) -> Plan[list[list[float]]]:
    """The embeddings of texts, by the service's first model if none is given."""
    values = _listed(texts)
    if model is None:
        (found,) = yield [Call("GET", "/info")]
        with expected():
            model = str(found["model_id"])
    limits = yield from _limits(model, known)
    bodies = _bodies(values, limits, {"model": model, "truncate": truncate})
    answers = yield [Call("POST", "/embed", body) for body in bodies]
    with expected():
        return _one_each(values, [list(embedding) for answer in answers for embedding in answer])


def _listed(inputs: Iterable[Any]) -> list[Any]:
    if isinstance(inputs, str | bytes | Mapping):
        raise TypeError(f"the inputs are one {type(inputs).__name__}; give a list of inputs")
    return list(inputs)


def _one_each(inputs: Sequence[Any], found: list[T]) -> list[T]:
    if len(found) != len(inputs):
        raise ValueError(f"{len(found)} results for {len(inputs)} inputs")
    return found


def ready(retries: Retries = _ONCE) -> Plan[bool]:
    """Whether every model answers."""
    try:
        yield [Call("GET", "/v2/health/ready", retries=retries)]
    except ServiceError as error:
        if error.status is not None and error.status not in RETRIED:
            raise
        return False
    return True


def until_ready(timeout: float) -> Plan[None]:
    """Raises TimeoutError if not every model answers within `timeout` seconds."""
    if not (yield from ready(Retries(timeout, retries=10**9, longest=1.0))):
        raise TimeoutError(f"the service is not ready after {timeout:g} s")
