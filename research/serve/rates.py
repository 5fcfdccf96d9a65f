"""How many requests each client may make."""

import collections
import time

_BURST = 2.0  # seconds of the rate
_CLIENTS = 10_000  # that are remembered


class Rates:
    """A token bucket for each client: `rate` requests a second, and twice as many at once."""

    def __init__(self, rate: float, *, clients: int = _CLIENTS):
        self._rate = rate
        self._burst = max(1.0, rate * _BURST)
        self._clients = clients
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def charge(self, client: str, count: int) -> None:
        """Counts more requests than one for a request that `wait` has allowed; the client's next ones wait for them."""
        if client in self._buckets:
            tokens, then = self._buckets[client]
            self._buckets[client] = (tokens - count, then)

    def wait(self, client: str) -> float:
        """Counts a request -> 0, or the seconds after which the client may make it; then it is not counted."""
        now = time.monotonic()
        tokens, then = self._buckets.get(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - 1 if allowed else tokens, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > self._clients:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._rate
