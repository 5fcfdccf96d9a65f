"""What a transform learnt from the training split is kept in the run directory, and read back from there."""

from collections.abc import Callable
from pathlib import Path


def fitted_text(assets: Path | None, name: str, fit: Callable[[], str]) -> str:
    """The text of assets/<name>; where there is none yet, the result of `fit`, which is written there.

    `assets` None keeps nothing.
    """
    path = assets / name if assets else None
    if path and path.is_file():
        return path.read_text()
    text = fit()
    if path:
        part = path.with_name(name + ".part")
        part.write_text(text)
        part.replace(path)
    return text
