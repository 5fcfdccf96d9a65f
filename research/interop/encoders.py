"""Text encoders with their tokenizers: BERT, RoBERTa and DistilBERT."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from research.base.errors import UserError
from research.base.paths import read_json
from research.data.text.wordpiece import read_tokenizer, without_limits
from research.interop.families import FAMILIES, read_config, write_config
from research.interop.kinds import Architecture, CheckpointSpec, Exported, Shapes, check_kind, check_rows

_TOKENIZERS = ("tokenizer.json", "vocab.txt")  # the first one that exists is used
_INPUTS = ("tokens", "segments", "positions", "type_ids", "starts", "masked_positions")
# The names of the special tokens in BERT's vocabularies and in RoBERTa's.
_SPECIAL = (
    {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"},
)


def _batch(_: Shapes) -> dict[str, Any]:
    return dict.fromkeys(_INPUTS, np.zeros((1, 1), np.int32))


def read(folder: Path, config: Mapping[str, Any]) -> CheckpointSpec:
    """Reads an encoder's config.json and tokenizer. Embedding rows beyond the tokenizer's tokens are kept unchanged.

    Raises UserError for a folder without a tokenizer, unsupported settings, or a tokenizer with more tokens than the
    embedding has rows.
    """
    family, model = read_config(config, str(folder / "config.json"))
    settings = folder / "tokenizer_config.json"
    options = read_json(settings) if settings.is_file() else {}
    name = next((name for name in _TOKENIZERS if (folder / name).is_file()), None)
    if name is None:
        raise UserError(f"{folder} has neither {' nor '.join(_TOKENIZERS)}")
    if name == "vocab.txt" and (
        options.get("strip_accents") is not None or options.get("tokenize_chinese_chars") not in (None, True)
    ):
        raise UserError(f"{settings} sets strip_accents or tokenize_chinese_chars, which vocab.txt alone can't follow")
    lowercase = options.get("do_lower_case", True)
    if name == "vocab.txt" or lowercase is not None:  # a tokenizer.json has this setting itself
        check_kind(settings, "do_lower_case", lowercase, (bool,), "true or false")
    tokenizer = read_tokenizer(str(folder / name), lowercase=bool(lowercase))
    tokens = check_rows(tokenizer, model["vocab_size"], folder / name, "vocab_size in config.json")
    transform = {"tokenizer": str(folder / name), "lowercase": bool(lowercase), "vocab_size": tokens}
    return CheckpointSpec(family.model_type, family.naming, model, transform, _batch({}))


def write(model: Mapping[str, Any], _: Mapping[str, Any], assets: Path, shapes: Shapes) -> Exported:
    """Makes config.json and the tokenizer's files.

    Raises UserError if the tokenizer can't be read or has more tokens than the embedding has rows, or if no family
    computes the same.
    """
    tokenizer, special = _tokenizer(assets / "tokenizer.json")
    check_rows(tokenizer, model["vocab_size"], assets / "tokenizer.json", "model.vocab_size")
    pad = tokenizer.token_to_id(special["pad_token"])
    assert pad is not None
    family, config = write_config(model, pad_token_id=pad)
    settings = {
        # The class that uses tokenizer.json unchanged; a model's own class would rebuild it from other settings.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model["max_positions"],
        "model_input_names": ["input_ids", *(["token_type_ids"] if family.reads_type_ids else []), "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **special,
    }
    texts = {"config.json": config, "special_tokens_map.json": special, "tokenizer_config.json": settings}
    files = {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in texts.items()}
    return Exported(family.naming, {**files, "tokenizer.json": tokenizer.to_str(pretty=True)})


def _tokenizer(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """A run's tokenizer and its special tokens, {"pad_token": "[PAD]", …}."""
    try:
        tokenizer = without_limits(tokenizers.Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path} can't be read: {error}") from error
    for names in _SPECIAL:
        if all(tokenizer.token_to_id(token) is not None for token in names.values()):
            return tokenizer, {f"{role}_token": token for role, token in names.items()}
    raise UserError(f"{path} has neither {', '.join(_SPECIAL[0].values())} nor {', '.join(_SPECIAL[1].values())}")


ENCODERS = Architecture(
    models=("bert", "bert_mlm"),
    model_types=tuple(FAMILIES),
    companion_files=_TOKENIZERS,
    heads=("classifier", "transform", "transform_norm", "output_bias"),
    optional=("pooler", "classifier"),
    free={"remat": False, "remat_policy": "nothing", "scan": False},
    transform=("tokenizer", "lowercase", "vocab_size"),
    batch=_batch,
    read=read,
    write=write,
)
