"""From raw inputs to answers: limits, encoding, cache, queue. Knows nothing of HTTP."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from research.data.examples import Columns
from research.data.parts import Part
from research.serve.admission import Admission
from research.serve.answers import Answers, Result
from research.serve.encoders import Encoders
from research.serve.errors import Kind, ServiceError
from research.serve.explanations import Explanations
from research.serve.limits import Limits
from research.serve.model import ServedModel
from research.serve.observer import Observer
from research.serve.splits import Splits
from research.serve.writer import Writer


class Service:
    """Answers requests for several models. All methods are called in the thread of one event loop.

    Attributes:
      models: those that answer, by name; `install` adds them.
      writers: those that write texts, likewise.
      states: what happens with each model: "loading", "ready", or an error.
      splits: the names under which several models share requests.
      answers: where answers come from.
      admission: which requests are refused as there are too many.
      encoders: what makes inputs of models of raw ones.
      stopping: whether the process is about to end: requests are still answered.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        devices: int = 1,
        replicas: int = 1,
        observer: Observer | None = None,
        splits: Splits | None = None,
    ):
        self.models: dict[str, ServedModel] = {}
        self.writers: dict[str, Writer] = {}
        self.splits = splits or Splits()
        self.states: Mapping[str, str] = {}
        self.stopping = False
        self.limits = limits
        self._observer = observer or Observer()
        self.answers = Answers(limits, devices=devices, replicas=replicas, observer=self._observer)
        self.admission = Admission(limits, self.answers.engine.queue)
        self.encoders = Encoders(limits)
        self._explanations = Explanations(limits)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Starts the threads; call it in the event loop."""
        self._loop = asyncio.get_running_loop()
        self.answers.start()
        self.admission.start()

    async def stop(self, timeout: float) -> bool:
        """Answers what waits, then ends -> whether that took at most `timeout` seconds."""
        until = time.monotonic() + timeout
        self.admission.stop()
        for writer in self.writers.values():
            writer.close()
        ended = await asyncio.to_thread(self.answers.engine.stop, timeout)
        for writer in self.writers.values():
            ended &= await asyncio.to_thread(writer.join, max(until - time.monotonic(), 0.0))
        self.encoders.stop()
        self._explanations.stop()
        return ended

    @property
    def waiting(self) -> int:
        """The inputs in the queue."""
        return len(self.answers.engine.queue)

    def install(self, model: ServedModel | Writer) -> None:
        """Adds a model, or replaces that of its name, for all later requests. May be called in any thread.

        Raises UserError if it does not fit the other variants of a split.
        """
        assert self._loop is not None
        if isinstance(model, Writer):
            self._loop.call_soon_threadsafe(self._install_writer, model)
            return
        self.splits.check(model, self.models)
        self._loop.call_soon_threadsafe(self.models.__setitem__, model.name, model)

    def _install_writer(self, writer: Writer) -> None:
        writer.observer = self._observer
        replaced = self.writers.get(writer.name)
        self.writers[writer.name] = writer
        if replaced is not None:
            replaced.close()  # it ends when what was asked for is written

    def writer(self, name: str | None = None) -> Writer:
        """A model that writes texts; without a name the first. Raises ServiceError if there is none, or not yet."""
        name = next(iter(self.writers), self.default) if name is None else name
        if name in self.writers:
            return self.writers[name]
        if name in self.models or name in self.splits:
            raise ServiceError(Kind.FAILED, f"model {name!r} writes no texts")
        if name in self.states:
            raise ServiceError(Kind.UNAVAILABLE, f"model {name!r}: {self.states[name]}", retry_after=1.0)
        known = ", ".join(self.writers) or "none that writes texts"
        raise ServiceError(Kind.UNKNOWN, f"there is no model {name!r}; there are {known}")

    @property
    def is_ready(self) -> bool:
        """Whether every model answers, and will go on to. For one that failed, another variant may answer."""
        replaced = self.splits.replaced(self.models)
        answering = all(
            state == "ready" or (state != "loading" and name in replaced) for name, state in self.states.items()
        )
        return not self.stopping and bool(self.models or self.writers) and answering

    @property
    def default(self) -> str:
        """The name that is meant without a name: the first split, or the first model, if possible one that predicts."""
        predicting = [name for name in self.states if name not in self.writers]
        return next(iter([*self.splits, *predicting, *self.models, *self.writers]), "")

    def model(
        self,
        name: str | None = None,
        operation: str | None = None,
        *,
        key: str | None = None,
        version: str | None = None,
    ) -> ServedModel:
        """A model by its name or that of a split; without a name the default. `answer` it from the same result.

        Args:
          operation: what it is to be asked for; None for its first one.
          key: by which a variant of a split is chosen for a request; None if nothing is to be computed.
          version: the only one that will do; None for any.

        Raises ServiceError if there is none, or not yet, or it is not served for the operation.
        """
        name = self.default if name is None else name
        variant = self.splits.choose(name, self.models, key or "", version) if name in self.splits else name
        if variant in self.models:
            model = self.models[variant]
        elif name in self.splits:
            states = "; ".join(f"{each}: {self.states.get(each)}" for each in self.splits[name].weights)
            raise ServiceError(Kind.UNAVAILABLE, f"no variant of {name!r} is ready: {states}", retry_after=1.0)
        elif name in self.writers:
            raise ServiceError(
                Kind.FAILED, f"model {name!r} writes texts; ask /v1/completions, or /v1/chat/completions"
            )
        elif name in self.states:
            raise ServiceError(Kind.UNAVAILABLE, f"model {name!r}: {self.states[name]}", retry_after=1.0)
        else:
            known = ", ".join([*self.splits, *self.models])
            raise ServiceError(Kind.UNKNOWN, f"there is no model {name!r}; there are {known}")
        if version not in (None, model.version):
            raise ServiceError(Kind.UNKNOWN, f"model {name!r} has no version {version!r}; it has {model.version!r}")
        if name in self.splits and key is not None:
            self._observer.routed(name, model.name)
        if operation in (None, model.operation):
            return model
        if operation not in model.others:
            known = ", ".join([model.operation, *model.others])
            raise ServiceError(Kind.FAILED, f"model {name!r} is not served for {operation}; it is for {known}")
        return model.others[operation]

    async def answer(
        self, model: ServedModel, columns: Columns, *, client: str = "", truncate: bool = True
    ) -> list[Result]:
        """The answers for raw inputs by column, in order, and all from one version of the model.

        Args:
          client: who asks: clients share the devices evenly.
          truncate: whether an input may be longer than the model reads.

        Raises:
          ServiceError: the inputs are invalid or too many, the service is overloaded, or the model failed.
        """
        with self.admission.request():
            try:
                async with asyncio.timeout(self.limits.timeout_ms / 1000):
                    began = time.perf_counter()
                    parts = await self.encoders.encode(model, columns)
                    encoding = time.perf_counter() - began
                    if not truncate:
                        _refuse_truncated(parts, model)
                    return await self.answers.get(model, parts, client, encoding)
            except TimeoutError:
                limit = self.limits.timeout_ms / 1000
                message = f"the request took longer than {limit:g} s"
                raise ServiceError(Kind.OVERLOADED, message, retry_after=limit) from None

    def cached(self, model: ServedModel, columns: Columns, *, truncate: bool = True) -> Result | None:
        """The answer for the only input, if it is a text or a pair that was answered before."""
        part = self.encoders.known(model, columns)
        if part is None or (part.truncated and not truncate):
            return None
        return self.answers.cached(model, part)

    async def explain(self, model: ServedModel, columns: Columns, label: int | None) -> dict[str, Any]:
        """What adds to the score of a class for the only input, or to a number if `label` is None: see `explanation`.

        Raises ServiceError: the input is invalid, the model has no attributions, or another explanation is computed.
        """
        parts = await self.encoders.encode(model, columns)
        if len(parts) != 1:
            raise ServiceError(Kind.INVALID, f"the request has {len(parts)} inputs; one is explained at a time")
        return await self._explanations.get(model, columns, parts[0], label)


def _refuse_truncated(parts: Sequence[Part], model: ServedModel) -> None:
    longest = max(parts, key=lambda part: part.full_length)
    if longest.truncated:
        unit = model.signature.limits.get("unit", "items")
        raise ServiceError(
            Kind.INVALID,
            f"an input has {longest.full_length} {unit}; the model reads {longest.length}. Shorten it, or allow "
            "truncation",
        )
