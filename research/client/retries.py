"""When a request is sent again."""

import dataclasses
import random
import time

import httpx

from research.client.errors import error_of

# Statuses after which a request is sent again. 500 is of a proxy, such as Ray's, whose server was lost meanwhile; the
# service itself answers 424 where it fails.
RETRIED = frozenset((429, 500, 502, 503, 504))
_LOCAL = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)  # errors that sending again does not change


@dataclasses.dataclass(frozen=True)
class Retries:
    """When a request is sent again: exponential backoff with full jitter, after the `Retry-After` of an answer.

    Attributes:
      timeout: seconds for a request with all its retries.
      retries: how often it is sent again at most.
      shortest, longest: seconds to wait at most after the first failure; the bound doubles up to the longest.
    """

    timeout: float = 60.0
    retries: int = 10
    shortest: float = 0.1
    longest: float = 10.0

    def wait(self, failures: int, passed: float, retry_after: float | None = None) -> float | None:
        """Seconds to wait after a number of failures, `passed` seconds after the start; None to give up."""
        bound = min(self.longest, self.shortest * 2.0 ** min(failures - 1, 50))
        found = (retry_after or 0.0) + random.uniform(0.0, bound)
        return found if failures <= self.retries and passed + found < self.timeout else None


class Attempts:
    """The attempts to send one request."""

    def __init__(self, retries: Retries):
        self._retries = retries
        self._began = time.monotonic()
        self._failures = 0

    @property
    def left(self) -> float:
        """The seconds that are left for the next attempt."""
        return max(0.001, self._retries.timeout - (time.monotonic() - self._began))

    def wait_after(self, outcome: httpx.Response | httpx.HTTPError) -> float:
        """Seconds after which to try again. Raises ServiceError to give up."""
        error = error_of(outcome)
        if isinstance(outcome, _LOCAL) or (isinstance(outcome, httpx.Response) and outcome.status_code not in RETRIED):
            raise error
        self._failures += 1
        wait = self._retries.wait(self._failures, time.monotonic() - self._began, error.retry_after)
        if wait is None:
            raise error
        return wait
