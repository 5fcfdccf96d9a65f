"""What is checked of the raw inputs of a request before they are encoded."""

from research.data.examples import Columns
from research.data.images.decoding import image_size
from research.serve.errors import Kind, ServiceError
from research.serve.limits import Limits

# Texts with at most as many characters are encoded at once: handing them to another thread takes longer.
_SHORT_TEXT = 2000

# Images of the largest size in a request: a file of a few kilobytes may have as many pixels.
_LARGE_IMAGES = 4


def check(columns: Columns, limits: Limits) -> None:
    """Raises ServiceError if the inputs are none, too many, too large, or differ in number."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ServiceError(Kind.INVALID, f"the inputs differ in number: {lengths}")
    count = max(lengths.values(), default=0)
    if not count:
        raise ServiceError(Kind.EMPTY, "the request has no inputs")
    check_count(count, limits)
    pixels = 0
    for name, values in columns.items():
        for value in values:
            if isinstance(value, str) and len(value) > limits.text_chars:
                message = f"a text of {name!r} has {len(value)} characters; at most {limits.text_chars} are allowed"
                raise ServiceError(Kind.TOO_LARGE, message)
            if isinstance(value, bytes):
                pixels += _pixels(value, limits)
    if pixels > _LARGE_IMAGES * limits.image_pixels:
        raise ServiceError(
            Kind.TOO_LARGE,
            f"the images have {pixels} pixels; at most {_LARGE_IMAGES * limits.image_pixels} in a request are allowed",
        )


def check_count(count: int, limits: Limits) -> None:
    """Raises ServiceError if a request has too many inputs."""
    if count > limits.batch_inputs:
        raise ServiceError(Kind.TOO_LARGE, f"the request has {count} inputs; at most {limits.batch_inputs} are allowed")


def _pixels(encoded: bytes, limits: Limits) -> int:
    """The pixels of an image file. Raises ServiceError if it is not an image, or would be large when decoded."""
    try:
        width, height = image_size(encoded)
    except ValueError as error:
        raise ServiceError(Kind.INVALID, f"an image can't be read: {error}") from error
    if width * height > limits.image_pixels:
        raise ServiceError(
            Kind.TOO_LARGE,
            f"an image has {width}x{height} pixels; at most {limits.image_pixels} in all are allowed",
        )
    return width * height


def are_short(columns: Columns) -> bool:
    """Whether the inputs are encoded faster than they are handed to another thread."""
    total = 0
    for values in columns.values():
        for value in values:
            if isinstance(value, str):
                total += len(value)
            elif not isinstance(value, int | float | type(None)):
                return False
    return total <= _SHORT_TEXT
