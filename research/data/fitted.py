"""What a transform learnt from the training split is kept in the run directory, and read back from there."""

import os
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
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{name}.{os.getpid()}.part")  # every process of a run writes the same text
        part.write_text(text)
        part.replace(path)
    return text
