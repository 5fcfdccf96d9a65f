"""Caches of computed artifacts: those that a run must read again in its directory, the rest in the user's cache.

The cache is $RESEARCH_CACHE, or else research/ in $XDG_CACHE_HOME or ~/.cache. It may be deleted while nothing runs.
"""

import dataclasses
import hashlib
import io
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from research.base.paths import atomic_write, cache_folder, temporary


def digest(*parts: object) -> str:
    """A short hash of the parts, for file names."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


@dataclasses.dataclass(frozen=True)
class ArtifactCache:
    """`assets`: the run's folder, or None; `source`: the data's fingerprint, or None to cache nothing."""

    assets: Path | None = None
    source: str | None = None

    def text(self, name: str, make: Callable[[], str], key: tuple[object, ...] | None = None) -> str:
        """The text of assets/<name>; if there is none yet, the result of `make`, which is then written there.

        With a `key`, which holds everything that `make` depends on except the data, runs share the text in the cache.
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
        # Stored as an array, whose checksum is verified.
        kept = self.arrays(name, lambda: {"text": np.frombuffer(make().encode(), np.uint8)}, key)
        return bytes(kept["text"]).decode()

    def array(self, name: str, make: Callable[[], np.ndarray], key: tuple[object, ...]) -> np.ndarray:
        """Like `text`, for an array in assets/<name>.npy."""
        path = self.assets / f"{name}.npy" if self.assets else None
        if path and path.is_file():
            return np.load(path, allow_pickle=False)
        array = self.arrays(name, lambda: {"array": make()}, key)["array"]
        if path:
            content = io.BytesIO()
            np.save(content, array)
            _write(path, content.getvalue())
        return array

    def arrays(
        self, name: str, make: Callable[[], dict[str, np.ndarray]], key: tuple[object, ...]
    ) -> dict[str, np.ndarray]:
        """The result of `make`, or memory-mapped from the cache if it is there and intact.

        A cache that can't be written is ignored.
        """
        if self.source is None:
            return make()
        folder = cache_folder() / "data" / f"{name}-{digest(self.source, *key)}"
        arrays = _read_arrays(folder)
        if arrays is None:
            made = make()
            _write_arrays(folder, made)
            arrays = _read_arrays(folder) or made  # memory-mapped, so that no process holds a copy
        return arrays


NO_CACHE = ArtifactCache()  # nothing is kept


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)


def _read_arrays(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a folder, or None if they are missing or damaged."""
    try:
        checksums = json.loads((folder / "checksums.json").read_text())
        files = {name: folder / f"{name}.npy" for name in checksums}
        if not files or any(_checksum(files[name]) != checksums[name] for name in files):
            return None
        return {name: np.load(file, mmap_mode="r", allow_pickle=False) for name, file in files.items()}
    except Exception:  # whatever is wrong with them, they are computed again
        return None


def _checksum(file: Path) -> int:
    """The CRC-32 of a file, header included."""
    checksum = 0
    with file.open("rb") as content:
        while piece := content.read(2**22):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def _write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    part = temporary(folder)
    try:
        part.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array)
        checksums = {name: _checksum(part / f"{name}.npy") for name in arrays}
        (part / "checksums.json").write_text(json.dumps(checksums))
        if _read_arrays(folder) is None:  # else another process was first, and has opened its files
            shutil.rmtree(folder, ignore_errors=True)
            part.replace(folder)
        else:
            shutil.rmtree(part)
    except OSError:  # disk full, no permission, or another process was first
        shutil.rmtree(part, ignore_errors=True)
