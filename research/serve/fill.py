"""The tokens for masks in texts, as transformers' `fill-mask` pipeline gives them, in the service's own JSON."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictStr, TypeAdapter

from research.serve.answers import Result
from research.serve.http import Exchange, ListOf, described, parse, reply
from research.serve.inputs import check_count
from research.serve.model import ServedModel
from research.serve.operations import MOST_TOKENS
from research.serve.plain import about, columns_of, variant
from research.serve.service import Service


class Fill(BaseModel):
    """Texts with masks, and how many tokens to give for each mask."""

    model_config = ConfigDict(extra="forbid")

    inputs: Annotated[ListOf[StrictStr | dict[str, StrictStr]], Field(min_length=1)]
    top: int = Field(5, ge=1, le=MOST_TOKENS)
    truncate: bool = True


_FILL = TypeAdapter(Fill)


def router(service: Service) -> APIRouter:
    """The path /models/NAME/fill."""
    found = APIRouter(tags=["models"])

    @found.post(
        "/models/{name}/fill",
        summary="Fill in masks",
        openapi_extra=described(_FILL, {"inputs": ["a gripping, [MASK] film"], "top": 5}),
    )
    async def fill(name: str, request: Request) -> Response:
        exchange = Exchange(service, request)
        model = exchange.model(name, "fill")
        asked = parse(_FILL, await exchange.body())
        check_count(len(asked.inputs), service.limits)
        results = await exchange.answer(model, columns_of(asked.inputs, model), truncate=asked.truncate)
        fills = [{"masks": _masks(result, model, asked.top), **about(result, model)} for result in results]
        return reply({"model": name, **variant(name, model), "compute": model.compute, "fills": fills})

    return found


def _masks(result: Result, model: ServedModel, top: int) -> list[list[dict[str, Any]]]:
    """For each mask of an input its most probable tokens: `token`, `token_str`, `score` and `sequence`.

    `sequence` is the text with only this mask filled in; with its special tokens if there are several masks.
    """
    values, tokenizer, masks = result.answer.values, model.tokenizer, model.masks
    assert masks is not None
    tokens = values["tokens"].tolist()
    places = [i for i, token in enumerate(tokens) if token == masks.number]
    return [
        [
            {
                "score": float(score),
                "token": int(token),
                "token_str": tokenizer.decode([int(token)], skip_special_tokens=False),
                "sequence": tokenizer.decode(
                    [*tokens[:place], int(token), *tokens[place + 1 :]], skip_special_tokens=len(places) == 1
                ),
            }
            for token, score in zip(values["token"][i, :top], values["score"][i, :top], strict=True)
        ]
        for i, place in enumerate(places)
    ]
