"""What requests to OpenAI's interface of texts look like. Fields that are not known here are ignored, as by others."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, StrictInt, StrictStr, TypeAdapter
from pydantic_core import PydanticCustomError

from research.serve.http import ListOf

_MOST_STOPS = 4
_LONGEST_STOP = 256
_MOST_CHOICES = 8
_MOST_LIKELY = 20

Stop = Annotated[StrictStr, Field(min_length=1, max_length=_LONGEST_STOP)]


Token = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]


def _single(prompt: Any) -> Any:
    """The only one of a list of prompts."""
    if not isinstance(prompt, list) or not prompt or not isinstance(prompt[0], str | list):
        return prompt
    if len(prompt) > 1:
        raise PydanticCustomError(
            "prompts", "a request has one prompt, and this one has {count}", {"count": len(prompt)}
        )
    return prompt[0]


class StreamOptions(BaseModel):
    include_usage: bool = False


class Write(BaseModel):
    """What both requests have. top_k, min_p and repetition_penalty are not OpenAI's, but known to other services."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: FiniteFloat = Field(1.0, ge=0, le=100)
    top_p: FiniteFloat = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=2**31 - 1)
    min_p: FiniteFloat = Field(0.0, ge=0, le=1)
    repetition_penalty: FiniteFloat = Field(1.0, gt=0, le=100)
    n: int = Field(1, ge=1, le=_MOST_CHOICES)
    seed: int | None = None
    stop: Stop | Annotated[ListOf[Stop], Field(max_length=_MOST_STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    # What would change the text, and is not supported, is refused.
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class Completion(Write):
    """A text, or tokens, to continue. `logprobs`: how many of the most likely tokens to list with each."""

    prompt: Annotated[StrictStr | Annotated[ListOf[Token], Field(min_length=1)], BeforeValidator(_single)]
    logprobs: int | None = Field(None, ge=0, le=_MOST_LIKELY)
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None


class TextPart(BaseModel):
    type: Literal["text"]
    text: StrictStr


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "user", "assistant", "developer"]
    content: StrictStr | ListOf[TextPart]

    @property
    def plain(self) -> dict[str, str]:
        """As chat templates read it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class Chat(Write):
    """A chat to answer. `top_logprobs`: how many of the most likely tokens to list with each, if `logprobs`."""

    messages: Annotated[ListOf[Message], Field(min_length=1, max_length=1024)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=_MOST_LIKELY)
    tools: Annotated[ListOf[Any], Field(max_length=0)] | None = None


COMPLETION: TypeAdapter[Completion] = TypeAdapter(Completion)
CHAT: TypeAdapter[Chat] = TypeAdapter(Chat)
