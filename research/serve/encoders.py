"""Encodes the inputs of requests: short ones at once, others in threads; texts that were encoded before are kept."""

import asyncio
import concurrent.futures
import os
from typing import Any

from research.base.errors import UserError
from research.data.examples import Columns
from research.data.parts import Part
from research.serve.cache import Cache
from research.serve.errors import Kind, ServiceError
from research.serve.inputs import are_short, check
from research.serve.limits import Limits
from research.serve.model import ServedModel

_Key = tuple[str, str, str, tuple[str | None, ...]]  # model, version, operation, texts


class Encoders:
    """For the thread of one event loop.

    Attributes:
      threads: how many encode inputs that are not short.
    """

    def __init__(self, limits: Limits):
        self.threads = os.cpu_count() or 1
        self._limits = limits
        self._executor = concurrent.futures.ThreadPoolExecutor(self.threads, "encode")
        # Encoding a short text takes longer than looking up its answer.
        self._known: Cache[_Key, Part] = Cache(limits.cache_entries)

    def stop(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def encode(self, model: ServedModel, columns: Columns) -> list[Part]:
        """The inputs as the model reads them. Raises ServiceError if they are invalid or too many."""
        check(columns, self._limits)
        try:
            if not are_short(columns):
                return await asyncio.get_running_loop().run_in_executor(self._executor, model.encode, columns)
            part = self.known(model, columns)
            if part is not None:
                return [part]
            parts = model.encode(columns)
        except UserError as error:
            raise ServiceError(Kind.INVALID, str(error)) from error
        key = _key(model, columns)
        if key is not None:
            self._known.put(key, parts[0])
        return parts

    def known(self, model: ServedModel, columns: Columns) -> Part | None:
        """The only input, if it is a text or a pair that was encoded before."""
        key = _key(model, columns)
        return None if key is None else self._known.get(key)


def _key(model: ServedModel, columns: Columns) -> _Key | None:
    """The key of the only input; None if there are several, or it is not of texts: 1, 1.0 and True are the same key."""
    names = model.signature.inputs
    if columns.keys() != set(names) or len(columns[names[0]]) != 1:
        return None
    values = tuple(columns[name][0] for name in names)
    return (model.name, model.version, model.operation, values) if all(map(_is_text, values)) else None


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)
