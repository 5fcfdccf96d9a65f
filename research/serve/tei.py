"""The interface of text-embeddings-inference 1.9, with that of OpenAI's embeddings, for models of texts.

Bodies and errors are as there. The headers x-compute-tokens and x-truncated tell how many tokens were read, and which
inputs were truncated.
"""

import asyncio
import base64
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from research import __version__
from research.serve import tei_schema as schema
from research.serve.answers import Result
from research.serve.errors import Kind, ServiceError
from research.serve.http import Exchange, described, parse, reply
from research.serve.inputs import check
from research.serve.model import ServedModel
from research.serve.plain import variant
from research.serve.service import Service

# And how many texts an input has.
_TEXT_KINDS = {"text": (1,), "text_pair": (2,), "text_or_pair": (1, 2)}
_EXAMPLE = "a gripping, moving film"


def router(service: Service) -> APIRouter:
    """The paths of text-embeddings-inference, and /v1/embeddings."""
    found = APIRouter(tags=["text-embeddings-inference"])

    @found.get("/health", summary="Whether every model answers", response_class=Response)
    @found.get("/ping", summary="The same", response_class=Response)
    async def health() -> Response:
        if not service.is_ready:
            raise ServiceError(Kind.UNAVAILABLE, "not every model is ready", retry_after=1.0)
        return Response()

    @found.get("/info", summary="The model, and the limits of the service")
    async def info(model: str | None = None) -> Response:
        return reply(_info(_checked(service.model(model)), service))

    @found.post("/predict", openapi_extra=described(schema.PREDICT, {"inputs": _EXAMPLE}))
    async def predict(request: Request) -> Response:
        """The scores of the classes, highest first."""
        return await _predict(_Call(Exchange(service, request)))

    @found.post("/rerank", openapi_extra=described(schema.RERANK, {"query": "film", "texts": [_EXAMPLE]}))
    async def rerank(request: Request) -> Response:
        """The texts by how well they fit the query, best first."""
        return await _rerank(_Call(Exchange(service, request)))

    @found.post("/tokenize", openapi_extra=described(schema.TOKENIZE, {"inputs": _EXAMPLE}))
    async def tokenize(request: Request) -> Response:
        """The tokens of each text, all of them, with their places in it."""
        return await _tokenize(_Call(Exchange(service, request)))

    @found.post("/decode", openapi_extra=described(schema.DECODE, {"ids": [0]}))
    async def decode(request: Request) -> Response:
        """The text of tokens."""
        call = _Call(Exchange(service, request))
        asked = parse(schema.DECODE, await call.exchange.body())
        model = _checked(service.model(asked.model))
        texts = _decoded(schema.as_list(asked.ids), model, service, skip=asked.skip_special_tokens)
        return reply(texts)

    _add_embeddings(found, service)
    return found


def _add_embeddings(found: APIRouter, service: Service) -> None:
    """The paths of embeddings."""

    @found.post("/embed", openapi_extra=described(schema.EMBED, {"inputs": _EXAMPLE}))
    async def embed(request: Request) -> Response:
        """The embedding of each text: the mean over its tokens."""
        call = _Call(Exchange(service, request))
        asked = parse(schema.EMBED, await call.exchange.body())
        results = await call.embed(asked.model, schema.as_list(asked.inputs), asked.truncates)
        return call.reply(_embeddings(results, normalize=asked.normalize, dimensions=asked.dimensions).tolist())

    @found.post("/embed_all", openapi_extra=described(schema.EMBED, {"inputs": _EXAMPLE}))
    async def embed_all(request: Request) -> Response:
        """The embeddings of each text's tokens, as they are."""
        call = _Call(Exchange(service, request))
        asked = parse(schema.EMBED, await call.exchange.body())
        results = await call.embed(asked.model, schema.as_list(asked.inputs), asked.truncates, "embed_all")
        return call.reply([result.answer.values["embedding"].tolist() for result in results])

    @found.post("/similarity", openapi_extra=described(schema.SIMILARITY))
    async def similarity(request: Request) -> Response:
        """The cosine of the angle between the sentence's embedding and that of each other one."""
        call = _Call(Exchange(service, request))
        asked = parse(schema.SIMILARITY, await call.exchange.body())
        sentences = schema.as_list(asked.inputs.sentences)
        truncates = (asked.parameters or schema.Truncating()).truncates
        results = await call.embed(asked.model, [asked.inputs.source_sentence, *sentences], truncates)
        source, *others = _embeddings(results)
        return call.reply([float(source @ other) for other in others])

    @found.post("/v1/embeddings", openapi_extra=described(schema.OPENAI, {"input": _EXAMPLE}))
    async def openai(request: Request) -> Response:
        """OpenAI's embeddings."""
        return await _openai(_Call(Exchange(service, request)))


def _checked(model: ServedModel) -> ServedModel:
    """The model. Raises ServiceError if it reads no texts."""
    if model.signature.kind not in _TEXT_KINDS:
        raise ServiceError(Kind.FAILED, f'model {model.name!r} reads no texts; name one that does: {{"model": …}}')
    return model


class _Call:
    """A request being answered, and what its answer's headers say of it."""

    def __init__(self, exchange: Exchange):
        self.exchange = exchange
        self._start = time.perf_counter()
        self._headers: dict[str, str] = {}

    def model(self, name: str | None, operation: str) -> ServedModel:
        """A model of texts. Raises ServiceError if it is none, or not served for the operation."""
        model = _checked(self.exchange.model(name, operation))
        public = self.exchange.service.default if name is None else name
        self._headers = {"x-model": public, "x-model-version": model.version}
        self._headers |= {f"x-model-{key}": value for key, value in variant(public, model).items()}
        return model

    async def ask(self, model: ServedModel, texts: Sequence[Sequence[str]], truncate: bool) -> list[Result]:
        """The answers for texts or pairs of them. Raises ServiceError if the model reads the others."""
        counts, names = _TEXT_KINDS[model.signature.kind], model.signature.inputs
        if any(len(each) not in counts for each in texts):
            reads = "single texts" if counts == (1,) else "pairs of texts"
            raise ServiceError(Kind.INVALID, f"model {model.name!r} reads {reads}")
        rows = [[*each, None][: len(names)] for each in texts]
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        results = await self.exchange.answer(model, columns, truncate=truncate)
        self._headers |= {
            "x-compute-type": model.platform,
            "x-compute-dtype": model.compute,
            "x-compute-characters": str(sum(len(text) for each in texts for text in each)),
            "x-compute-tokens": str(sum(result.length for result in results)),
            "x-truncated": ",".join(str(result.truncated).lower() for result in results),
        }
        return results

    async def embed(
        self, name: str | None, inputs: list[Any], truncate: bool, operation: str = "embed"
    ) -> list[Result]:
        """The embeddings of texts, or of tokens, which are decoded first."""
        service = self.exchange.service
        model = self.model(name, operation)
        texts = [each if isinstance(each, str) else _decoded([each], model, service, skip=True)[0] for each in inputs]
        return await self.ask(model, [(text,) for text in texts], truncate)

    def reply(self, value: Any) -> Response:
        milliseconds = str(round(1000 * (time.perf_counter() - self._start)))
        times = {"x-compute-time": milliseconds, "x-total-time": milliseconds}
        return reply(value, headers={**self._headers, **times})


async def _predict(call: _Call) -> Response:
    asked = parse(schema.PREDICT, await call.exchange.body())
    texts, is_batch = schema.sequences(asked.inputs)
    model = call.model(asked.model, "predict")
    results = await call.ask(model, texts, asked.truncates)
    found = [_scores(result.answer.values, _labels(model), raw=asked.raw_scores) for result in results]
    return call.reply(found if is_batch else found[0])


def _labels(model: ServedModel) -> Sequence[str]:
    """The names of the classes; of a number, that of its column."""
    if "scores" not in model.outputs:
        return [model.signature.label or "prediction"]
    return model.signature.label_names or [str(c) for c in range(model.outputs["scores"].shape[0])]


def _scores(values: Mapping[str, np.ndarray], labels: Sequence[str], *, raw: bool) -> list[dict[str, Any]]:
    scores = values["outputs" if raw else "scores"] if "scores" in values else values["prediction"]
    pairs = zip(np.ravel(scores).tolist(), labels, strict=True)
    return [{"score": score, "label": label} for score, label in sorted(pairs, key=lambda pair: -pair[0])]


async def _rerank(call: _Call) -> Response:
    asked = parse(schema.RERANK, await call.exchange.body())
    texts = schema.as_list(asked.texts)
    model = call.model(asked.model, "predict")
    if 2 not in _TEXT_KINDS[model.signature.kind] or len(_labels(model)) > 2:
        raise ServiceError(Kind.FAILED, f"model {model.name!r} does not score pairs of texts by one number")
    results = await call.ask(model, [(asked.query, text) for text in texts], asked.truncates)
    scores = [_fit(result.answer.values, raw=asked.raw_scores) for result in results]
    order = sorted(range(len(texts)), key=lambda i: -scores[i])
    return call.reply(
        [{"index": i, **({"text": texts[i]} if asked.return_text else {}), "score": scores[i]} for i in order]
    )


def _fit(values: Mapping[str, np.ndarray], *, raw: bool) -> float:
    """How well a pair fits: a model's number, or the probability of its second class, raw its log-odds."""
    if "scores" not in values:
        return float(values["prediction"])
    return float(values["outputs"][1] - values["outputs"][0]) if raw else float(values["scores"][1])


def _embeddings(results: Sequence[Result], *, normalize: bool = True, dimensions: int | None = None) -> np.ndarray:
    """The embeddings [N, D], or the first `dimensions` of each, of length 1 if `normalize`."""
    found = np.stack([result.answer.values["embedding"] for result in results])
    if dimensions is not None and dimensions > found.shape[1]:
        raise ServiceError(Kind.INVALID, f"dimensions is {dimensions}; the embeddings have {found.shape[1]}")
    found = found[:, :dimensions]
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12) if normalize else found


def _tokenizer(model: ServedModel) -> Any:
    if model.tokenizer is None:
        raise ServiceError(Kind.FAILED, f"model {model.name!r} reads no tokens")
    return model.tokenizer


async def _tokenize(call: _Call) -> Response:
    asked, service = parse(schema.TOKENIZE, await call.exchange.body()), call.exchange.service
    texts = schema.as_list(asked.inputs)
    check({"inputs": texts}, service.limits)
    tokenizer = _tokenizer(_checked(service.model(asked.model)))

    def encode() -> list[list[dict[str, Any]]]:
        encodings = tokenizer.encode_batch(texts, add_special_tokens=asked.add_special_tokens)
        return [_tokens(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    return reply(await asyncio.to_thread(encode))


def _tokens(text: str, encoding: Any) -> list[dict[str, Any]]:
    """The tokens of a text: special ones by name, others with their place, in characters."""
    columns = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
    return [
        {"id": token, "text": name, "special": True, "start": None, "stop": None}
        if special
        else {"id": token, "text": text[start:stop], "special": False, "start": start, "stop": stop}
        for token, name, special, (start, stop) in columns
    ]


def _decoded(lists: Sequence[Sequence[int]], model: ServedModel, service: Service, *, skip: bool) -> list[str]:
    """The texts of tokens. Raises ServiceError for a token that does not exist. `skip`: special ones."""
    check({"ids": lists}, service.limits)
    tokenizer = _tokenizer(model)
    size = tokenizer.get_vocab_size()
    for token in (token for each in lists for token in each):
        if not 0 <= token < size:
            raise ServiceError(Kind.UNREADABLE, f"there is no token {token}; there are {size}")
    return [tokenizer.decode(each, skip_special_tokens=skip) for each in lists]


async def _openai(call: _Call) -> Response:
    asked = parse(schema.OPENAI, await call.exchange.body())
    results = await call.embed(asked.model, schema.as_list(asked.input), asked.truncate)
    found = _embeddings(results, dimensions=asked.dimensions).astype("<f4")
    in_base64 = asked.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": base64.b64encode(row.tobytes()).decode() if in_base64 else row.tolist(),
        }
        for i, row in enumerate(found)
    ]
    name = call.exchange.service.default if asked.model is None else asked.model
    tokens = sum(result.length for result in results)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return call.reply({"object": "list", "data": data, "model": name, "usage": usage})


def _info(model: ServedModel, service: Service) -> dict[str, Any]:
    limits = service.limits
    return {
        "model_id": model.name,
        "model_sha": None,
        "model_dtype": model.compute,
        "model_type": _type(model),
        "embedding": {"pooling": "mean"} if model.serves("embed") else None,
        "max_concurrent_requests": limits.requests,
        "max_input_length": model.signature.limits.get("max_length"),
        "max_batch_tokens": limits.batch_items,
        "max_batch_requests": None,
        "max_client_batch_size": limits.batch_inputs,
        "auto_truncate": False,
        "tokenization_workers": service.encoders.threads,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }


def _type(model: ServedModel) -> dict[str, Any]:
    """What a model is for, by text-embeddings-inference's names; a masked language model has none there."""
    if not model.serves("predict"):
        return {"masked_lm": {}} if model.serves("fill") else {"embedding": {"pooling": "mean"}}
    labels = _labels(model)
    ids = {str(i): label for i, label in enumerate(labels)}
    classifier = {"id2label": ids, "label2id": {label: int(i) for i, label in ids.items()}}
    scores_pairs = 1 not in _TEXT_KINDS[model.signature.kind] and len(labels) <= 2
    return {"reranker" if scores_pairs else "classifier": classifier}
