"""Every limit of the service."""

import dataclasses

from research.base.errors import UserError
from research.base.ranges import COUNT, POSITIVE, Range


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of the service; a flag of `python -m research.serve` sets each.

    Attributes:
      batch_inputs: the inputs of one request.
      body_bytes: the bytes of a request's body.
      body_ms: how long a request's body may take to come.
      text_chars: the characters of a text; it is truncated to the model's tokens after that. A prompt is not truncated.
      image_pixels: the pixels of an image, before any resizing.
      queue_inputs: the inputs that wait for a device, of all models.
      queue_ms: how long an input may have to wait, as estimated from the measured speed, before it is refused.
      requests: the requests that are answered at the same time.
      batch_rows: the inputs of a batch, if they have a fixed size.
      batch_items: the items of a batch of sequences, such as tokens.
      batch_ms: how long a batch may take, as measured at the start; at least one input is always taken.
      timeout_ms: how long a request may take until it is given up; of one for texts, until their first token.
      cache_entries: the answers that are kept; 0 for none.
      texts: the texts that a decoder writes at the same time.
      queue_texts: the texts that wait for it.
      text_tokens: the tokens of a text with its prompt.
      text_ms: how long a request for texts may take.
    """

    batch_inputs: int = 64
    body_bytes: int = 8 * 2**20
    body_ms: float = 10_000.0
    text_chars: int = 100_000
    image_pixels: int = 16 * 2**20
    queue_inputs: int = 4096
    queue_ms: float = 1000.0
    requests: int = 512
    batch_rows: int = 64
    batch_items: int = 2048
    batch_ms: float = 40.0
    timeout_ms: float = 30_000.0
    cache_entries: int = 16_384
    texts: int = 8
    queue_texts: int = 64
    text_tokens: int = 2048
    text_ms: float = 300_000.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, allowed = getattr(self, field.name), self._allowed(field.name)
            if value not in allowed:
                raise UserError(f"--{field.name} is {value}; it must be {allowed}")

    @staticmethod
    def _allowed(name: str) -> Range:
        return POSITIVE if name.endswith("_ms") else Range(0) if name in ("cache_entries", "queue_texts") else COUNT
