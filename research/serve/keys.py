"""API keys: a file of names and hashes. `python -m research.serve_keys NAME` makes a key."""

import hashlib
import hmac
import logging
import re
import secrets
import time
from pathlib import Path

from research.base.errors import UserError

log = logging.getLogger("research.serve")

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(rf"({_NAME.pattern})\s+sha256:([0-9a-fA-F]{{64}})")
_CHECK_SECONDS = 1.0  # between looks at the file


def read_keys(path: Path) -> dict[str, bytes]:
    """The hashes of a file by name. Its lines are "NAME sha256:HEX"; comments begin with "#".

    Raises UserError if the file cannot be read, has no keys, an invalid line or a name twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api_keys_file={path} cannot be read: {type(error).__name__}") from error
    found: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if not match:  # the line is not shown, as it may be a key
            raise UserError(f"{path}:{number} is not 'NAME sha256:HEX', with 64 hexadecimal digits")
        if match[1] in found:
            raise UserError(f"{path}:{number} has the name {match[1]!r} a second time")
        found[match[1]] = bytes.fromhex(match[2])
    if not found:
        raise UserError(f"{path} has no keys; add one: python -m research.serve_keys NAME >> {path}")
    return found


class Keys:
    """The keys of a file, which is read again when it changes; while it is invalid, the keys from before are kept."""

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._hashes = read_keys(self._path)
        self._seen = self._state()
        self._checked = time.monotonic()

    def client(self, key: bytes) -> str | None:
        """The name of a key; None if it is not valid. Takes the same time whichever key it is, if any."""
        self._reload()
        digest, found = hashlib.sha256(key).digest(), None
        for name, expected in self._hashes.items():
            if hmac.compare_digest(digest, expected):
                found = name
        return found

    def _reload(self) -> None:
        now = time.monotonic()
        if now - self._checked < _CHECK_SECONDS:
            return
        self._checked = now
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._hashes = read_keys(self._path)
            log.info("%s has changed: %d keys", self._path, len(self._hashes))
        except UserError as error:
            log.error("the API keys from before are kept: %s", error)

    def _state(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino


def new_key(name: str) -> tuple[str, str]:
    """A random key, and its line for the file. Raises UserError if the name is invalid."""
    if not _NAME.fullmatch(name):
        raise UserError(f"the name {name!r} is not 1 to 64 letters, digits and . _ -")
    key = secrets.token_urlsafe(32)
    return key, f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()}"
