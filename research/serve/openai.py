"""OpenAI's interface of texts: /v1/models, /v1/completions and /v1/chat/completions, whole or as events."""

import asyncio
import contextlib
import dataclasses
import functools
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from research.base.errors import UserError
from research.core.sampling import Sampling
from research.inference.generate import Request as TextRequest
from research.inference.writing import Piece
from research.serve import openai_schema as schema
from research.serve.events import EventStream, event
from research.serve.http import Exchange, described, parse, reply
from research.serve.service import Service
from research.serve.texts import Texts
from research.serve.writer import Writer

_COMPLETION_TOKENS = 16  # without max_tokens, as in OpenAI's interface; a chat has what is left of the text
_DONE = b"data: [DONE]\n\n"
_USER = [{"role": "user", "content": "What is the capital of France?"}]


def router(service: Service) -> APIRouter:
    found = APIRouter(tags=["OpenAI"])

    @found.get("/v1/models", summary="The models")
    async def models() -> Response:
        names = [*service.splits, *service.models, *service.writers]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "research"} for name in names]
        return reply({"object": "list", "data": data})

    @found.post("/v1/completions", openapi_extra=described(schema.COMPLETION, {"prompt": "The sea", "max_tokens": 8}))
    async def completions(request: Request) -> Response:
        """Continues a text."""
        exchange = Exchange(service, request)
        asked = parse(schema.COMPLETION, await exchange.body())

        def encode(writer: Writer) -> Sequence[int]:
            if not isinstance(asked.prompt, str):
                return asked.prompt
            _check_size(len(asked.prompt), service)
            return writer.generator.encode(asked.prompt)

        form = _Form("cmpl", "text_completion", "text_completion", asked.logprobs is not None, asked.logprobs or 0)
        return await _Answer(exchange, asked, encode, asked.max_tokens or _COMPLETION_TOKENS, form).response()

    @found.post("/v1/chat/completions", openapi_extra=described(schema.CHAT, {"messages": _USER, "max_tokens": 32}))
    async def chat(request: Request) -> Response:
        """Answers the last message of a chat."""
        exchange = Exchange(service, request)
        asked = parse(schema.CHAT, await exchange.body())

        def encode(writer: Writer) -> Sequence[int]:
            messages = [message.plain for message in asked.messages]
            _check_size(sum(len(message["content"]) for message in messages), service)
            return writer.generator.chat(messages)

        top = asked.top_logprobs if asked.logprobs else 0
        form = _Form("chatcmpl", "chat.completion", "chat.completion.chunk", asked.logprobs, top)
        return await _Answer(exchange, asked, encode, asked.max_completion_tokens or asked.max_tokens, form).response()

    return found


def _check_size(chars: int, service: Service) -> None:
    limit = service.limits.text_chars
    if chars > limit:
        raise UserError(f"the prompt has {chars} characters; at most {limit} are read")


@dataclasses.dataclass(frozen=True)
class _Form:
    """How answers look: the beginning of the id, the kinds of object, and whether tokens are listed with others."""

    prefix: str
    whole: str
    part: str
    lists: bool
    top: int

    @property
    def is_chat(self) -> bool:
        return self.prefix == "chatcmpl"


class _Answer:
    """The answer to a request: `encode` makes its prompt, to which at most `tokens` are added; None for any number."""

    def __init__(
        self,
        exchange: Exchange,
        asked: schema.Write,
        encode: Callable[[Writer], Sequence[int]],
        tokens: int | None,
        form: _Form,
    ):
        self._exchange = exchange
        self._asked = asked
        self._tokens = tokens
        self._form = form
        self._texts = Texts(exchange, asked.model, encode, self._requests)
        self._id = f"{form.prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())

    async def response(self) -> Response:
        if self._asked.stream:
            return EventStream(self._exchange, self._texts, self._events())
        with self._exchange.service.admission.request(queues=False):
            return await self._exchange.connected(self._whole())

    def _requests(self, writer: Writer, prompt: Sequence[int]) -> list[TextRequest]:
        asked = self._asked
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        sampling = Sampling(
            repetition_penalty=asked.repetition_penalty,
            temperature=asked.temperature,
            top_k=max(asked.top_k, 0),
            top_p=asked.top_p,
            min_p=asked.min_p,
        )
        tokens = self._tokens or writer.length
        return [
            TextRequest(
                prompt,
                dataclasses.replace(sampling, seed=(seed + index) % 2**32),
                tokens,
                asked.stops,
                self._form.top,
            )
            for index in range(asked.n)
        ]

    @property
    def _about(self) -> dict[str, Any]:
        writer = self._texts.writer
        model = self._asked.model or writer.name
        return {"id": self._id, "created": self._created, "model": model, "system_fingerprint": writer.version}

    @property
    def _usage(self) -> dict[str, int]:
        size, written = len(self._texts.prompt), self._texts.written
        return {"prompt_tokens": size, "completion_tokens": written, "total_tokens": size + written}

    async def _whole(self) -> Response:
        parts: list[list[Piece]] = [[] for _ in range(self._asked.n)]
        async with contextlib.aclosing(self._texts.pieces()) as texts:
            async for index, piece in texts:
                parts[index].append(piece)
        # In a thread, as to list the tokens of long texts takes seconds.
        choices = await asyncio.to_thread(lambda: [self._whole_choice(index, part) for index, part in enumerate(parts)])
        return reply({**self._about, "object": self._form.whole, "choices": choices, "usage": self._usage})

    def _whole_choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        is_chat = self._form.is_chat
        content = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        return _choice(index, content, self._listed(pieces), pieces[-1].finish)

    async def _events(self) -> AsyncGenerator[bytes]:
        """Server-sent events, one for each piece."""
        options = self._asked.stream_options
        counts_tokens = options is not None and options.include_usage
        more: dict[str, Any] = {"usage": None} if counts_tokens else {}

        def part(choices: list[dict[str, Any]], **more: Any) -> bytes:
            return event({**self._about, "object": self._form.part, "choices": choices, **more})

        begun = not self._form.is_chat
        async with contextlib.aclosing(self._texts.pieces()) as texts:
            async for index, piece in texts:
                if not begun:
                    begun = True
                    for number in range(self._asked.n):
                        first = {"delta": {"role": "assistant", "content": ""}}
                        yield part([_choice(number, first, None, None)], **more)
                content: dict[str, Any] = {"text": piece.text}
                if self._form.is_chat:
                    content = {"delta": {"content": piece.text} if piece.text else {}}
                yield part([_choice(index, content, self._listed([piece]), piece.finish or None)], **more)
        if counts_tokens:
            yield part([], usage=self._usage)
        yield _DONE

    def _listed(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        """The tokens with the logarithms of their probabilities, and the most likely ones, if they are asked for."""
        if not self._form.lists:
            return None
        decode = self._texts.writer.generator.tokenizer.decode
        texts = functools.cache(lambda token: str(decode([token], skip_special_tokens=False)))
        tokens = [piece.token for piece in pieces if piece.token is not None]
        likely = [[(texts(number), logprob) for number, logprob in token.top] for token in tokens]
        if self._form.is_chat:
            entries = [
                {**_entry(texts(token.id), token.logprob), "top_logprobs": [_entry(*each) for each in top]}
                for token, top in zip(tokens, likely, strict=True)
            ]
            return {"content": entries, "refusal": None}
        return {
            "tokens": [texts(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(top) for top in likely] if self._form.top else None,
            "text_offset": [],
        }


def _choice(index: int, content: Mapping[str, Any], listed: Any, finish: str | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": listed, "finish_reason": finish}


def _entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
