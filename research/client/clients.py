"""The clients: they send what `requests.py` says, and wait as `retries.py` says."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import httpx

from research.client.errors import ServiceError
from research.client.requests import Call, Plan, Prediction, embed, models, predict, read, ready, until_ready
from research.client.retries import Attempts, Retries

T = TypeVar("T")


def _options(url: str, api_key: str | None) -> dict[str, Any]:
    return {"base_url": url, "headers": {} if api_key is None else {"Authorization": f"Bearer {api_key}"}}


class Client:
    """Asks a service. Threads may share it.

    Args:
      url: such as "http://localhost:8000".
      api_key: sent with each request.
      timeout: seconds for a request with all its retries; a call with more inputs than fit takes several requests.
      retries: how often a request is sent again at most.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 60.0, retries: int = 10):
        self._http = httpx.Client(**_options(url, api_key))
        self._retries = Retries(timeout, retries)
        self._known: dict[str, Any] = {}

    def models(self) -> list[dict[str, Any]]:
        """The models that answer, and what each reads: name, version, inputs, labels, limits."""
        return self._run(models())

    def predict(self, model: str, inputs: Iterable[Any], *, truncate: bool = True) -> list[Prediction]:
        """The predictions of a model for inputs, in order.

        Args:
          inputs: texts, numbers or arrays; images as arrays, as bytes or paths (pathlib) of files, or as images of
            pillow; for a model of several columns a dict of these for each input.
          truncate: whether an input may be longer than the model reads.

        Raises:
          ServiceError: the service refused the inputs, or could not be reached in time.
        """
        return self._run(predict(model, inputs, self._known, truncate))

    def embed(self, texts: Iterable[str], *, model: str | None = None, truncate: bool = True) -> list[list[float]]:
        """The embeddings of texts, of length 1; the service needs `--embed`. Raises ServiceError as `predict` does."""
        return self._run(embed(texts, model, self._known, truncate))

    def ready(self) -> bool:
        """Whether every model answers."""
        return self._run(ready())

    def wait_until_ready(self, timeout: float = 300.0) -> None:
        """Returns when every model answers. Raises TimeoutError after `timeout` seconds."""
        self._run(until_ready(timeout))

    def _run(self, plan: Plan[T]) -> T:
        try:
            calls = next(plan)
            while True:
                try:
                    answers = [self._answer(call) for call in calls]
                except ServiceError as error:
                    calls = plan.throw(error)
                else:
                    calls = plan.send(answers)
        except StopIteration as end:
            result: T = end.value
            return result

    def _answer(self, call: Call) -> Any:
        attempts = Attempts(call.retries or self._retries)
        while True:
            outcome = self._send(call, attempts.left)
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return read(outcome)
            time.sleep(attempts.wait_after(outcome))

    def _send(self, call: Call, seconds: float) -> httpx.Response | httpx.HTTPError:
        until = time.monotonic() + seconds
        try:
            with self._http.stream(**call.options, timeout=seconds) as response:
                parts = []
                for part in response.iter_raw():  # httpx limits the time of each read, not of all
                    parts.append(part)
                    if time.monotonic() > until:
                        raise httpx.ReadTimeout("the answer did not come in time", request=response.request)
            content = b"".join(parts)
            return httpx.Response(
                response.status_code, headers=response.headers, content=content, request=response.request
            )
        except httpx.HTTPError as error:
            return error

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """As `Client`, for asyncio. `concurrency`: how many requests are sent at the same time."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 10,
        concurrency: int = 16,
    ):
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._http = httpx.AsyncClient(**_options(url, api_key), limits=limits)
        self._retries = Retries(timeout, retries)
        self._known: dict[str, Any] = {}
        self._free = asyncio.Semaphore(concurrency)

    async def models(self) -> list[dict[str, Any]]:
        """As `Client.models`."""
        return await self._run(models())

    async def predict(self, model: str, inputs: Iterable[Any], *, truncate: bool = True) -> list[Prediction]:
        """As `Client.predict`; the requests of a long list are sent at the same time."""
        return await self._run(predict(model, inputs, self._known, truncate))

    async def embed(
        self, texts: Iterable[str], *, model: str | None = None, truncate: bool = True
    ) -> list[list[float]]:
        """As `Client.embed`."""
        return await self._run(embed(texts, model, self._known, truncate))

    async def ready(self) -> bool:
        """As `Client.ready`."""
        return await self._run(ready())

    async def wait_until_ready(self, timeout: float = 300.0) -> None:
        """As `Client.wait_until_ready`."""
        await self._run(until_ready(timeout))

    async def _run(self, plan: Plan[T]) -> T:
        try:
            calls = next(plan)
            while True:
                try:
                    answers = await self._answers(calls)
                except ServiceError as error:
                    calls = plan.throw(error)
                else:
                    calls = plan.send(answers)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _answers(self, calls: Sequence[Call]) -> list[Any]:
        tasks = [asyncio.ensure_future(self._answer(call)) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        finally:  # after the first failure
            for task in tasks:
                task.cancel()

    async def _answer(self, call: Call) -> Any:
        async with self._free:
            attempts = Attempts(call.retries or self._retries)
            while True:
                outcome = await self._send(call, attempts.left)
                if isinstance(outcome, httpx.Response) and outcome.is_success:
                    return read(outcome)
                await asyncio.sleep(attempts.wait_after(outcome))

    async def _send(self, call: Call, seconds: float) -> httpx.Response | httpx.HTTPError:
        request = self._http.build_request(**call.options, timeout=seconds)
        try:
            async with asyncio.timeout(seconds):
                return await self._http.send(request)
        except TimeoutError:
            return httpx.ReadTimeout("the answer did not come in time", request=request)
        except httpx.HTTPError as error:
            return error

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
