"""Where pretrained weights are: in a folder, or on the hub, whose files are downloaded once."""

import dataclasses
from pathlib import Path
from typing import Any

from research.data.text import read_tokenizer
from research.errors import UserError
from research.interop.families import Family, read_config
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
)
_TOKENIZERS = ("tokenizer.json", "vocab.txt")  # the first that is there is used
_PROBE_SECONDS = 4.0


def missing(init_from: str) -> str | None:
    """Why the weights can't be had here, in a few words; None if they are here or can be downloaded.

    Looks neither into a folder nor at what a hub id's files are.
    """
    if Path(init_from).expanduser().is_dir():
        return None
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.errors import HFValidationError

    where = f"pretrained weights: {init_from} is no folder"
    try:
        if _downloaded(init_from):
            return None
    except HFValidationError:
        return f"{where}, and no hub id (OWNER/NAME)"
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
        needed = [*weight_files(folder), folder / "config.json"]
    except (LocalEntryNotFoundError, OSError, UserError):
        return None
    # Another program, or a download that was cut off, may have left some of them only.
    whole = all(path.is_file() for path in needed) and any((folder / name).is_file() for name in _TOKENIZERS)
    return folder if whole else None


def folder(init_from: str) -> Path:
    """The folder that holds the weights, downloaded first if `init_from` is a hub id that has not been yet.

    Raises UserError, within seconds where there is no network, if they can't be had.
    """
    local = Path(init_from).expanduser()
    if local.is_dir():
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


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What a folder's config files say of its encoder.

    model: every key of a config's `model` but `name` and `num_classes`; tokenizer: a tokenizer.json or a vocab.txt;
    lowercase: how the latter is to be read.
    """

    family: Family
    model: dict[str, Any]
    tokenizer: Path
    lowercase: bool


def read_encoder(folder: Path) -> Encoder:
    """Raises UserError for a folder without config.json or tokenizer, of another architecture, or whose tokenizer
    has more or fewer tokens than the embedding has rows: it would give them another meaning."""
    family, model = read_config(read_json(folder / "config.json"), str(folder / "config.json"))
    settings = folder / "tokenizer_config.json"
    options = read_json(settings) if settings.is_file() else {}
    name = next((name for name in _TOKENIZERS if (folder / name).is_file()), None)
    if name is None:
        raise UserError(f"{folder} has neither {' nor '.join(_TOKENIZERS)}")
    if name == "vocab.txt" and (
        options.get("strip_accents") is not None or not options.get("tokenize_chinese_chars", 1)
    ):
        raise UserError(f"{settings} sets strip_accents or tokenize_chinese_chars, which vocab.txt alone can't follow")
    lowercase = options.get("do_lower_case", True)
    tokens = max(read_tokenizer(str(folder / name), lowercase=lowercase).get_vocab().values()) + 1
    if tokens != model["vocab_size"]:
        raise UserError(
            f"the vocabulary of {folder / name} has {tokens} tokens, but the embedding {model['vocab_size']} "
            "(vocab_size in config.json)"
        )
    return Encoder(family, model, folder / name, lowercase)
