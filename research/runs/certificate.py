"""The certificate of a compressed run: what was measured, and the hashes of the files that it was measured with."""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import research
from research.base.errors import UserError
from research.base.paths import atomic_write, read_json
from research.base.trees import to_json
from research.runs.rundir import RunDir

FILE = "certificate.json"
_FORMAT = 1
# Files that change what a run computes; predictions, plots and sample inputs do not.
_HASHED = ("config.json", "assets", "checkpoints")
_SAMPLES = "samples.json"  # gets predictions of further checkpoints


@functools.cache
def code_hash() -> str:
    """A hash of this project's code, as it was when this was first called."""
    root = Path(research.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a run that determines its predictions, by its path in the run directory."""
    paths = [path for name in _HASHED for path in (folder / name, *(folder / name).rglob("*"))]
    files = sorted(path for path in paths if path.is_file() and path.name != _SAMPLES)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_certificate(run: RunDir, contents: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the certificate of a run as it is now -> the certificate."""
    body = {"format": _FORMAT, **contents, "files": hashes(run.path)}
    certificate = json.loads(to_json({**body, "sha256": _digest(body)}))
    atomic_write(run.path / FILE, to_json(certificate, indent=2) + "\n")
    return dict(certificate)


def is_compressed(run: RunDir) -> bool:
    """Whether the run was made by compressing another."""
    return (run.path / FILE).is_file() or "compressed" in (run.summary() or {})


def read_certificate(run: RunDir) -> dict[str, Any]:
    """The certificate of a run, checked against its files.

    It detects changes by accident and copies to other runs. It is not signed: whoever can write the run directory can
    write another certificate too.

    Raises UserError if there is none, it was changed, or a file is not the one that was measured, naming it.
    """
    path = run.path / FILE
    if not path.is_file():
        raise UserError(f"{run.path} has no {FILE}; research.compress writes one")
    certificate = read_json(path)
    body = {key: value for key, value in certificate.items() if key != "sha256"}
    if certificate.get("format") != _FORMAT or certificate.get("sha256") != _digest(body):
        raise UserError(f"{path} was changed since it was written, or is of another version; compress the run again")
    expected, found = certificate["files"], hashes(run.path)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            what = "is missing" if name not in found else "is new" if name not in expected else "was changed"
            raise UserError(f"{run.path / name} {what} since {FILE} was written; compress the run again")
    return certificate


def check_drop(run: RunDir, most: float) -> dict[str, Any]:
    """`read_certificate`, of a run whose metric is at most `most` points worse than before. Raises UserError if not."""
    certificate = read_certificate(run)
    drop = certificate["metric"]["drop"]
    if drop is None or drop > most:
        name = certificate["metric"]["name"]
        is_worse = "is unknown" if drop is None else f"fell by {drop:.2f} points"
        raise UserError(f"{run.path}: {name} {is_worse} when it was compressed; at most {most:g} is accepted")
    return certificate


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(json.loads(to_json(body))).encode()).hexdigest()
