"""Where pretrained weights are: in a folder, or on the hub, whose files are downloaded once."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.base.errors import UserError
from research.base.paths import expanded
from research.interop import KINDS
from research.interop.families import UNNAMED
from research.interop.kinds import Architecture
from research.interop.tensors import read_json, weight_files

# No pickles: they are never opened. Of names beginning with "model", so that other formats' folders stay away.
_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
)
_PROBE_SECONDS = 4.0


def missing(init_from: str) -> str | None:
    """Why the weights are unavailable here, in a few words; None if they are here or can be downloaded.

    Looks neither into a folder nor at what a hub id's files are.
    """
    if os.path.isdir(expanded(init_from)):
        return None
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.errors import HFValidationError

    where = f"pretrained weights: {init_from} is not a folder"
    try:
        if _downloaded(init_from):
            return None
    except HFValidationError:
        return f"{where}, nor a hub id (OWNER/NAME)"
    if constants.HF_HUB_OFFLINE:
        return f"{where}, not among the hub's files here, and HF_HUB_OFFLINE forbids to download it"
    import requests

    try:  # the hub's own client would try again for long
        requests.head(hf_hub_url(init_from, "config.json"), timeout=_PROBE_SECONDS)
    except requests.RequestException:
        return f"{where}, not among the hub's files here, and {constants.ENDPOINT} can't be reached to download it"
    return None


def _downloaded(hub_id: str) -> Path | None:
    """The folder of a hub id's files, where they have been downloaded. Raises HFValidationError for what is no id."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(_FILES), local_files_only=True))
        kind = _kind(read_json(folder / "config.json"))
        weights = weight_files(folder)
    except (LocalEntryNotFoundError, OSError, UserError):
        return None
    # Another program, or a download that was cut off, may have left some of them only.
    beside = [folder / name for name in kind.companion_files] if kind else []
    whole = all(path.is_file() for path in weights) and (not beside or any(path.is_file() for path in beside))
    return folder if whole else None


def folder(init_from: str) -> Path:
    """The folder that holds the weights, downloaded first if `init_from` is a hub id that has not been yet.

    Raises UserError, within seconds where there is no network, if they are unavailable.
    """
    local = expanded(init_from)
    if os.path.isdir(local):
        return local.absolute()
    reason = missing(init_from)
    if reason:
        raise UserError(f"{reason}; give a folder that holds them: --config.init_from=FOLDER")
    from huggingface_hub import snapshot_download

    try:
        return _downloaded(init_from) or Path(snapshot_download(init_from, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub's client raises whatever the network does
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"pretrained weights {init_from} can't be downloaded: {lines[0]}") from error


def kind_of(folder: Path) -> tuple[Architecture, dict[str, Any]]:
    """What kind of weights a folder holds, and its config.json. Raises UserError if it has none, or of another kind."""
    config = read_json(folder / "config.json")
    kind = _kind(config)
    if kind is None:
        known = ", ".join(known for kind in KINDS for known in kind.model_types)
        raise UserError(f"{folder / 'config.json'} is of model_type {config['model_type']!r}; known: {known}")
    return kind, config


def _kind(config: Mapping[str, Any]) -> Architecture | None:
    model_type = config.get("model_type", UNNAMED)
    return next((kind for kind in KINDS if model_type in kind.model_types), None)
