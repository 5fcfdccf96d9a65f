"""Logs on stderr: as JSON, one object a line, or as text. They never have inputs or keys."""

import logging
import sys
import time
import traceback
from typing import Any

from pydantic_core import to_json

FORMATS = ("json", "text", "none")

requests = logging.getLogger("research.serve.requests")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        found: dict[str, Any] = {"time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        fields = getattr(record, "fields", None)
        found |= {"message": record.getMessage()} if fields is None else fields
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return to_json(found).decode()


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        if fields is not None:
            record = logging.makeLogRecord({**record.__dict__, "msg": " ".join(f"{k}={v}" for k, v in fields.items())})
            record.args = None
        return super().format(record)


def log_request(fields: dict[str, Any]) -> None:
    """Logs a request. Not by `info`, which looks up where it was called, as that takes longer than all the rest."""
    record = logging.LogRecord(requests.name, logging.INFO, "", 0, "", (), None)
    record.fields = fields
    requests.handle(record)


def place(error: Exception) -> str:
    """The type of an error and where it was raised, without its message, in which an input may be."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in frames[-1:-6:-1])
    return f"{type(error).__name__} at {where}"


def set_up(form: str) -> None:
    """Logs warnings of everything, and what the service says; "none" leaves out the requests, in text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("research.serve").setLevel(logging.INFO)
    requests.setLevel(logging.WARNING if form == "none" else logging.INFO)
    # uvicorn adds the message of an exception, which may be of an input; the guard logs where it came from.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
