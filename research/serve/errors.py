"""The errors that a client gets."""

import enum


class Kind(enum.Enum):
    """What is wrong with a request: its HTTP status, and its name in text-embeddings-inference's answers."""

    EMPTY = 400, "Empty"
    UNAUTHORIZED = 401, "Unauthorized"
    UNKNOWN = 404, "NotFound"
    METHOD = 405, "Validation"
    SLOW = 408, "Timeout"
    TOO_LARGE = 413, "Validation"
    INVALID = 422, "Validation"
    UNREADABLE = 422, "Tokenizer"
    FAILED = 424, "Backend"
    OVERLOADED = 429, "Overloaded"
    UNAVAILABLE = 503, "Unhealthy"

    @property
    def status(self) -> int:
        return self.value[0]

    @property
    def label(self) -> str:
        return self.value[1]


class ServiceError(Exception):
    """A request that is refused. `retry_after`: in seconds, when to try again."""

    def __init__(self, kind: Kind, message: str, *, retry_after: float | None = None):
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after

    @classmethod
    def of(cls, error: Exception) -> "ServiceError":
        """What a client is told of an error that a model raised."""
        if isinstance(error, ValueError):
            return cls(Kind.INVALID, str(error).splitlines()[0] if str(error) else "the input is invalid")
        return cls(Kind.FAILED, f"the model failed: {type(error).__name__}")
