"""Decoders with their tokenizers: GPT-2 and Llama."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tokenizers

from research.base.errors import UserError
from research.base.paths import read_json
from research.data.text.chat_template import SETTINGS, settings_of
from research.data.text.wordpiece import without_limits
from research.interop.decoder_families import FAMILIES, GPT2, read_config, write_config
from research.interop.kinds import Architecture, CheckpointSpec, Exported, Shapes, check_kind, check_rows

_TOKENIZER = "tokenizer.json"
_INPUTS = ("tokens", "segments", "positions")


def _batch(_: Shapes) -> dict[str, Any]:
    return dict.fromkeys(_INPUTS, np.zeros((1, 1), np.int32))


def read(folder: Path, config: Mapping[str, Any]) -> CheckpointSpec:
    """Reads a decoder's config.json and, if there are any, its tokenizer.json and its template for chats.

    The token between documents is the one that ends a text in config.json, the first one of several.

    Raises UserError for unsupported settings, or a tokenizer with more tokens than the embedding has rows.
    """
    where = folder / "config.json"
    family, model = read_config(config, str(where))
    transform: dict[str, Any] = {}
    if (folder / _TOKENIZER).is_file():
        tokenizer = _tokenizer(folder / _TOKENIZER)
        tokens = check_rows(tokenizer, model["vocab_size"], folder / _TOKENIZER, "vocab_size in config.json")
        ends = config.get("eos_token_id")
        end: Any = ends[0] if isinstance(ends, list) and ends else ends
        check_kind(where, "eos_token_id", end, (int, type(None)), "an integer, a list of integers or null")
        name = None if end is None else tokenizer.id_to_token(end)
        transform = {"tokenizer": str(folder / _TOKENIZER), "vocab_size": tokens, "end_of_text": name or ""}
        transform |= {} if settings_of(folder) is None else {"chat_template": str(folder)}
    return CheckpointSpec(family.model_type, family.naming, model, transform, _batch({}))


def write(model: Mapping[str, Any], transform: Mapping[str, Any], assets: Path, _: Shapes) -> Exported:
    """Makes config.json and, if the run has a tokenizer, its files, with a template for chats if it has one.

    Raises UserError if the tokenizer can't be read or has more tokens than the embedding has rows, or if no family
    computes the same.
    """
    family, config = write_config(model)
    texts: dict[str, Any] = {}
    files: dict[str, str] = {}
    begin: int | None = None
    ends: list[int] = []
    if (assets / _TOKENIZER).is_file():
        tokenizer = without_limits(_tokenizer(assets / _TOKENIZER))
        check_rows(tokenizer, model["vocab_size"], assets / _TOKENIZER, "model.vocab_size")
        name = transform.get("end_of_text") or ""
        special = {} if tokenizer.token_to_id(name) is None else {"bos_token": name, "eos_token": name}
        special |= read_json(assets / SETTINGS) if (assets / SETTINGS).is_file() else {}
        texts[SETTINGS] = {
            # The class that uses tokenizer.json unchanged; a model's own class would rebuild it from other settings.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model["max_positions"],
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            **special,
        }
        begin = tokenizer.token_to_id(special.get("bos_token") or "")
        # That of the template may be another one.
        found = (tokenizer.token_to_id(token) for token in (name, special.get("eos_token") or ""))
        ends = list(dict.fromkeys(token for token in found if token is not None))
        files[_TOKENIZER] = tokenizer.to_str(pretty=True)
    # Without these, transformers would take the ids of the published models' tokens.
    end = (ends[0] if ends else None) if len(ends) < 2 else ends
    texts["config.json"] = {**config, "bos_token_id": begin, "eos_token_id": end, "pad_token_id": None}
    files |= {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in texts.items()}
    if family is GPT2 and not model["use_bias"]:
        return Exported(family.naming, files, _with_zero_biases)
    return Exported(family.naming, files)


def _with_zero_biases(variables: Any) -> Any:
    """Adds biases of 0 to all linear layers, except the output layer, and to all LayerNorms."""

    def add(name: str, module: Any) -> Any:
        if not isinstance(module, Mapping):
            return module
        weights = module.get("kernel", module.get("scale"))
        if weights is not None and name != "head":
            return {**module, "bias": jnp.zeros(weights.shape[-1], weights.dtype)}
        return {key: add(key, value) for key, value in module.items()}

    return add("", variables)


def _tokenizer(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path} can't be read: {error}") from error


DECODERS = Architecture(
    models=("decoder",),
    model_types=tuple(FAMILIES),
    companion_files=(_TOKENIZER,),
    heads=(),
    optional=(),
    free={"remat": False, "remat_policy": "nothing", "scan": False},
    transform=("tokenizer", "vocab_size", "end_of_text", "chat_template"),
    batch=_batch,
    read=read,
    write=write,
)
