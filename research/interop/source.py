"""Locates pretrained weights: in a folder, or on the hub, whose files are downloaded once."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.base.errors import UserError
from research.base.paths import expanded, read_json
from research.interop import KINDS
from research.interop.families import UNNAMED
from research.interop.kinds import Architecture
from research.interop.tensors import weight_files

# No pickles: they are never opened. Only names beginning with "model", to exclude the folders of other formats.
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

    Inspects neither the contents of a folder nor the files of a hub id.
    """
    if os.path.isdir(expanded(init_from)):
        return None
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.errors import HFValidationError

    where = f"pretrained weights: {init_from!r} is not a folder"
    try:
        if _downloaded(init_from):
            return None
    except HFValidationError:
        return f"{where}, nor a hub id (OWNER/NAME)"
    if constants.HF_HUB_OFFLINE:
        return f"{where}, not in the local hub cache, and HF_HUB_OFFLINE forbids to download it"
    import requests

    try:  # the hub's own client would retry for a long time
        requests.head(hf_hub_url(init_from, "config.json"), timeout=_PROBE_SECONDS)
    except requests.RequestException:
        return f"{where}, not in the local hub cache, and {constants.ENDPOINT} can't be reached to download it"
    return None


def _downloaded(hub_id: str) -> Path | None:
    """The folder of a hub id's files, if already downloaded. Raises HFValidationError for an invalid id."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(_FILES), local_files_only=True))
        kind = _kind(read_json(folder / "config.json"))
        weights = weight_files(folder)
    except (LocalEntryNotFoundError, OSError, UserError):
        return None
    # Another program, or an interrupted download, may have left only some of them.
    beside = [folder / name for name in kind.companion_files] if kind else []
    whole = all(path.is_file() for path in weights) and (not beside or any(path.is_file() for path in beside))
    return folder if whole else None


def folder(init_from: str) -> Path:
    """The folder that holds the weights; for a hub id, downloads them first if necessary.

    Raises UserError if they are unavailable, within seconds if there is no network.
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
    except Exception as error:  # the hub's client passes on any exception of the network
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"pretrained weights {init_from} can't be downloaded: {lines[0]}") from error


def kind_of(folder: Path) -> tuple[Architecture, dict[str, Any]]:
    """The architecture of a folder's weights, and its config.json. Raises UserError if missing or unsupported."""
    config = read_json(folder / "config.json")
    kind = _kind(config)
    if kind is None:
        known = ", ".join(known for kind in KINDS for known in kind.model_types)
        raise UserError(f"{folder / 'config.json'} is of model_type {config['model_type']!r}; known: {known}")
    return kind, config


def _kind(config: Mapping[str, Any]) -> Architecture | None:
    model_type = config.get("model_type", UNNAMED)
    return next((kind for kind in KINDS if model_type in kind.model_types), None)
