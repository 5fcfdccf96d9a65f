"""OpenAI's interface of texts: /v1/models, /v1/completions and /v1/chat/completions, whole or as events."""

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic_core import to_json

from research.base.errors import UserError
from research.core.sampling import Sampling
from research.inference.generate import Request as TextRequest
from research.inference.writing import Piece
from research.serve import openai_schema as schema
from research.serve.errors import Kind, ServiceError
from research.serve.http import Exchange, described, parse, reply
from research.serve.service import Service
from research.serve.writer import Ticket, Writer

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
        writer = service.writer(asked.model)
        prompt = writer.generator.encode(asked.prompt) if isinstance(asked.prompt, str) else asked.prompt
        if min(prompt, default=0) < 0:
            raise ServiceError(Kind.INVALID, f"prompt has the token {min(prompt)}; tokens are not negative")
        tokens = asked.max_tokens or _COMPLETION_TOKENS
        form = _Form("cmpl", "text_completion", "text_completion", asked.logprobs is not None, asked.logprobs or 0)
        return await _answer(_Texts(exchange, writer, asked, prompt, tokens, form))

    @found.post("/v1/chat/completions", openapi_extra=described(schema.CHAT, {"messages": _USER, "max_tokens": 32}))
    async def chat(request: Request) -> Response:
        """Answers the last message of a chat."""
        exchange = Exchange(service, request)
        asked = parse(schema.CHAT, await exchange.body())
        writer = service.writer(asked.model)
        messages = [message.plain for message in asked.messages]
        try:
            prompt = await asyncio.to_thread(writer.generator.chat, messages)
        except UserError as error:
            raise ServiceError(Kind.INVALID, str(error)) from None
        tokens = asked.max_completion_tokens or asked.max_tokens or writer.length
        top = asked.top_logprobs if asked.logprobs else 0
        form = _Form("chatcmpl", "chat.completion", "chat.completion.chunk", asked.logprobs, top)
        return await _answer(_Texts(exchange, writer, asked, prompt, tokens, form))

    return found


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


class _Texts:
    """The texts of a request, in the thread of the event loop."""

    def __init__(
        self,
        exchange: Exchange,
        writer: Writer,
        asked: schema.Write,
        prompt: Sequence[int],
        tokens: int,
        form: _Form,
    ):
        self.exchange = exchange
        self.writer = writer
        self.asked = asked
        self.prompt = prompt
        self.form = form
        self.written = 0  # tokens of all texts
        self._tokens = tokens
        self._pieces: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        self._tickets: list[Ticket] = []
        about = {"created": int(time.time()), "model": asked.model or writer.name}
        self.about = {"id": f"{form.prefix}-{secrets.token_hex(12)}", **about, "system_fingerprint": writer.version}

    def start(self) -> None:
        """Asks for the texts. Raises ServiceError if they can't be written, or there are too many."""
        loop = asyncio.get_running_loop()
        seed = secrets.randbits(32) if self.asked.seed is None else self.asked.seed % 2**32
        try:
            for index in range(self.asked.n):
                sampling = Sampling(
                    repetition_penalty=self.asked.repetition_penalty,
                    temperature=self.asked.temperature,
                    top_k=max(self.asked.top_k, 0),
                    top_p=self.asked.top_p,
                    min_p=self.asked.min_p,
                    seed=(seed + index) % 2**32,
                )
                request = TextRequest(self.prompt, sampling, self._tokens, self.asked.stops, self.form.top)

                def deliver(piece: Piece | Exception, index: int = index) -> None:
                    loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

                self._tickets.append(self.writer.ask(request, deliver))
        except UserError as error:
            self.cancel()
            raise ServiceError(Kind.INVALID, str(error)) from None
        except ServiceError:
            self.cancel()
            raise

    def cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancelled = True

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all texts as they come. What is not read to its end is cancelled.

        Raises ServiceError if the model fails.
        """
        left = len(self._tickets)
        try:
            while left:
                index, piece = await self._pieces.get()
                if isinstance(piece, Exception):
                    raise ServiceError(Kind.FAILED, f"the model failed: {type(piece).__name__}")
                self.written += 1
                left -= bool(piece.finish)
                yield index, piece
        finally:
            self.cancel()

    @property
    def usage(self) -> dict[str, int]:
        size = len(self.prompt)
        return {"prompt_tokens": size, "completion_tokens": self.written, "total_tokens": size + self.written}


async def _answer(texts: _Texts) -> Response:
    texts.start()
    if texts.asked.stream:
        return StreamingResponse(_events(texts), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    with texts.exchange.service.admission.request():
        return await texts.exchange.connected(_whole(texts))


async def _whole(texts: _Texts) -> Response:
    count = texts.asked.n
    parts: list[list[Piece]] = [[] for _ in range(count)]
    async for index, piece in texts.pieces():
        parts[index].append(piece)
    choices = []
    for index, pieces in enumerate(parts):
        text = "".join(piece.text for piece in pieces)
        content = {"message": {"role": "assistant", "content": text}} if texts.form.is_chat else {"text": text}
        listed = _listed(texts, pieces) if texts.form.lists else None
        choices.append({"index": index, **content, "logprobs": listed, "finish_reason": pieces[-1].finish})
    return reply({**texts.about, "object": texts.form.whole, "choices": choices, "usage": texts.usage})


async def _events(texts: _Texts) -> AsyncIterator[bytes]:
    """Server-sent events, one for each piece."""

    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: %b\n\n" % to_json({**texts.about, "object": texts.form.part, "choices": choices, **more})

    counts_tokens = texts.asked.stream_options is not None and texts.asked.stream_options.include_usage
    more: dict[str, Any] = {"usage": None} if counts_tokens else {}
    if texts.form.is_chat:
        for index in range(texts.asked.n):
            yield event([_choice(index, {"delta": {"role": "assistant", "content": ""}}, None, None)], **more)
    try:
        async for index, piece in texts.pieces():
            content: dict[str, Any] = {"text": piece.text}
            if texts.form.is_chat:
                content = {"delta": {"content": piece.text} if piece.text else {}}
            listed = _listed(texts, [piece]) if texts.form.lists else None
            yield event([_choice(index, content, listed, piece.finish or None)], **more)
    except ServiceError as error:
        yield b"data: %b\n\n" % to_json({"error": {"message": str(error), "type": error.kind.label}})
        return
    if counts_tokens:
        yield event([], usage=texts.usage)
    yield _DONE


def _choice(index: int, content: dict[str, Any], listed: Any, finish: str | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": listed, "finish_reason": finish}


def _listed(texts: _Texts, pieces: Sequence[Piece]) -> dict[str, Any]:
    """The tokens with the logarithms of their probabilities, and the most likely ones."""
    decode = texts.writer.generator.tokenizer.decode

    def text(token: int) -> str:
        return str(decode([token], skip_special_tokens=False))

    def likely(piece: Piece) -> Iterator[tuple[str, float]]:
        assert piece.token is not None
        yield from ((text(number), logprob) for number, logprob in piece.token.top)

    tokens = [piece for piece in pieces if piece.token is not None]
    if texts.form.is_chat:
        return {"content": [_entry(piece, text, list(likely(piece))) for piece in tokens], "refusal": None}
    return {
        "tokens": [text(piece.token.id) for piece in tokens if piece.token],
        "token_logprobs": [piece.token.logprob for piece in tokens if piece.token],
        "top_logprobs": [dict(likely(piece)) for piece in tokens] if texts.form.top else None,
        "text_offset": [],
    }


def _entry(piece: Piece, text: Any, likely: list[tuple[str, float]]) -> dict[str, Any]:
    assert piece.token is not None

    def named(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    return {**named(text(piece.token.id), piece.token.logprob), "top_logprobs": [named(*each) for each in likely]}
