"""The error that clients raise."""

import contextlib
import datetime
import email.utils
from collections.abc import Iterator

import httpx


class ServiceError(Exception):
    """A request without a result.

    Attributes:
      status: the HTTP status; None if there was no answer.
      error_type: what the service calls the error, such as "Overloaded" or "Validation"; "Connection" if there was no
        answer, "Protocol" if it is not one of the service.
      message: one line for people.
      retry_after: seconds after which the service asks to try again, if it does.
    """

    def __init__(self, message: str, *, status: int | None, error_type: str, retry_after: float | None = None):
        super().__init__(message)
        self.message = message
        self.status = status
        self.error_type = error_type
        self.retry_after = retry_after


def error_of(outcome: httpx.Response | httpx.HTTPError) -> ServiceError:
    """What an answer, or none, means."""
    if not isinstance(outcome, httpx.Response):
        message = f"{outcome.request.url} does not answer: {type(outcome).__name__}: {outcome}"
        return ServiceError(message, status=None, error_type="Connection")
    message, kind = outcome.reason_phrase or "an error without a message", "Protocol"
    with contextlib.suppress(ValueError, KeyError, TypeError):  # a proxy's, which may have any body
        found = outcome.json()
        message, kind = str(found["error"]), str(found["error_type"])
    return ServiceError(message, status=outcome.status_code, error_type=kind, retry_after=_retry_after(outcome))


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, or a date (RFC 9110, 10.2.3), which is compared with the service's own clock if the answer has it."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    then = _date(value)
    now = _date(response.headers.get("Date", "")) or datetime.datetime.now(datetime.UTC)
    return None if then is None else max(0.0, (then - now).total_seconds())


def _date(value: str) -> datetime.datetime | None:
    try:
        return email.utils.parsedate_to_datetime(value).replace(tzinfo=datetime.UTC)  # always in GMT
    except (ValueError, OverflowError):
        return None


@contextlib.contextmanager
def expected() -> Iterator[None]:
    """Makes the errors of reading an answer a ServiceError: it is of something else than this service."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        message = f"the answer is not that of the service: {type(error).__name__}: {error}"
        raise ServiceError(message, status=200, error_type="Protocol") from error
