"""What was worked out once is kept: in the run directory what a run must read again, in the user's cache the rest.

The cache is $RESEARCH_CACHE, or else research/ in $XDG_CACHE_HOME or ~/.cache. It may be deleted at any time.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np


def cache_folder() -> Path:
    """The user's cache folder; it need not exist yet."""
    own = os.environ.get("RESEARCH_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "research"


def digest(*parts: object) -> str:
    """A short hash of the parts, for file names."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


@dataclasses.dataclass(frozen=True)
class Kept:
    """`assets`: the run's folder, or None; `source`: the data's fingerprint, or None where nothing is to be cached."""

    assets: Path | None = None
    source: str | None = None

    def text(self, name: str, make: Callable[[], str], key: tuple[object, ...] | None = None) -> str:
        """The text of assets/<name>; where there is none yet, what `make` gives, which is then written there.

        With a `key`, which holds everything that `make` depends on beside the data, other runs share it by the cache.
        """
        path = self.assets / name if self.assets else None
        if path and path.is_file():
            return path.read_bytes().decode()
        text = self._cached_text(name, make, key)
        if path:
            _write(path, text.encode())
        return text

    def _cached_text(self, name: str, make: Callable[[], str], key: tuple[object, ...] | None) -> str:
        if key is None or self.source is None:
            return make()
        # As an array, whose checksum is looked at.
        kept = self.arrays(name, lambda: {"text": np.frombuffer(make().encode(), np.uint8)}, key)
        return bytes(kept["text"]).decode()

    def arrays(
        self, name: str, make: Callable[[], dict[str, np.ndarray]], key: tuple[object, ...]
    ) -> dict[str, np.ndarray]:
        """What `make` gives, from the cache where it is there and whole; mapped from disk then, not read into memory.

        A cache that can't be written is done without.
        """
        if self.source is None:
            return make()
        folder = cache_folder() / "data" / f"{name}-{digest(self.source, *key)}"
        arrays = _read_arrays(folder)
        if arrays is None:
            arrays = make()
            _write_arrays(folder, arrays)
        return arrays


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # every process of a run writes the same
    part.write_bytes(content)
    part.replace(path)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1)) if array.size else 0


def _read_arrays(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a folder, or None if they are not there or damaged."""
    try:
        checksums = json.loads((folder / "checksums.json").read_text())
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in checksums}
        return arrays if all(_checksum(arrays[name]) == checksums[name] for name in checksums) else None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, KeyError):
        return None


def _write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array)
        (part / "checksums.json").write_text(json.dumps({name: _checksum(array) for name, array in arrays.items()}))
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    except OSError:  # no room, no right to write, or another process was first
        shutil.rmtree(part, ignore_errors=True)
