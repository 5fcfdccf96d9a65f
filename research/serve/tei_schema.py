"""The requests of text-embeddings-inference 1.9 and of OpenAI's embeddings.

Every request may name a `model`; without one the service's first model answers.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field, StrictInt, StrictStr, TypeAdapter

from research.serve.errors import Kind, ServiceError
from research.serve.http import ListOf

Text = StrictStr | ListOf[StrictInt]  # or its tokens


class _Request(BaseModel):
    model: str | None = None


class Truncating(BaseModel):
    """`truncate`: whether an input may be longer than the model reads; only its end is ever left out."""

    truncate: bool | None = False
    truncation_direction: Literal["Right", "right", "Left", "left"] = "Right"
    prompt_name: str | None = None

    @property
    def truncates(self) -> bool:
        """Raises ServiceError for what no model here can do."""
        if self.prompt_name is not None:
            raise ServiceError(Kind.INVALID, f"prompt_name is {self.prompt_name!r:.80}; the models have no prompts")
        if self.truncate and self.truncation_direction.lower() == "left":
            raise ServiceError(Kind.INVALID, "truncation_direction is 'Left'; the models read the beginning of a text")
        return bool(self.truncate)


class Predict(_Request, Truncating):
    """A text, a pair [text, text], or a list of [text] and [text, text]."""

    inputs: StrictStr | ListOf[StrictStr] | ListOf[ListOf[StrictStr]]
    raw_scores: bool = False


class Embed(_Request, Truncating):
    """A text or a list of texts; `dimensions`: how many of the first ones to keep."""

    inputs: Text | ListOf[Text]
    normalize: bool = True
    dimensions: int | None = Field(None, ge=1)


class Sentences(BaseModel):
    source_sentence: StrictStr
    sentences: ListOf[StrictStr]


class Similarity(_Request):
    """A sentence, and those to compare it with."""

    inputs: Sentences
    parameters: Truncating | None = None


class Rerank(_Request, Truncating):
    """A query, and texts to sort by how well they fit it."""

    query: StrictStr
    texts: ListOf[StrictStr]
    raw_scores: bool = False
    return_text: bool = False


class Tokenize(_Request):
    """A text or a list of texts."""

    inputs: StrictStr | ListOf[StrictStr]
    add_special_tokens: bool = True


class Decode(_Request):
    """The tokens of a text, or of several."""

    ids: ListOf[StrictInt] | ListOf[ListOf[StrictInt]]
    skip_special_tokens: bool = True


class OpenAI(_Request):
    """OpenAI's request. `truncate` is an extension; without it a text that is too long is refused, as there."""

    input: Text | ListOf[Text]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None
    truncate: bool = False


PREDICT: TypeAdapter[Predict] = TypeAdapter(Predict)
EMBED: TypeAdapter[Embed] = TypeAdapter(Embed)
SIMILARITY: TypeAdapter[Similarity] = TypeAdapter(Similarity)
RERANK: TypeAdapter[Rerank] = TypeAdapter(Rerank)
TOKENIZE: TypeAdapter[Tokenize] = TypeAdapter(Tokenize)
DECODE: TypeAdapter[Decode] = TypeAdapter(Decode)
OPENAI: TypeAdapter[OpenAI] = TypeAdapter(OpenAI)


def sequences(inputs: Any) -> tuple[list[tuple[str, ...]], bool]:
    """The inputs of `Predict` as texts and pairs, and whether they are a batch. Raises ServiceError for others."""
    if isinstance(inputs, str):
        return [(inputs,)], False
    is_batch = bool(inputs) and isinstance(inputs[0], list)
    found = [tuple(each) for each in inputs] if is_batch else [tuple(inputs)]
    for each in found:
        if not each and not is_batch:
            raise ServiceError(Kind.EMPTY, "inputs is empty")
        if len(each) not in (1, 2):
            raise ServiceError(
                Kind.INVALID,
                f"inputs has a list of {len(each)} texts; it must be a text, a pair [text, text], or a list of [text] "
                "and [text, text]",
            )
    return found, is_batch


def as_list(inputs: Any) -> list[Any]:
    """Texts, or tokens of texts, as a list of them. Raises ServiceError if there are none."""
    if not inputs and not isinstance(inputs, str):
        raise ServiceError(Kind.EMPTY, "the request has no inputs")
    return [inputs] if isinstance(inputs, str) or isinstance(inputs[0], int) else list(inputs)
