"""A run -> a folder that transformers opens, with the same logits."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import tokenizers
from jax.sharding import SingleDeviceSharding

from research.errors import UserError
from research.interop.families import Family, write_config
from research.interop.pretrained import abstract_params, checkpoints_of
from research.interop.tensors import SINGLE, write
from research.rundir import RunDir

# What the special tokens are called, in BERT's vocabularies and in RoBERTa's.
_SPECIAL = (
    {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"},
)


def export(workdir: str | Path, out: str | Path, *, checkpoint: str = "last") -> int:
    """Writes the "last" or the "best" checkpoint of a run of a BERT to the folder `out` -> its step.

    The folder gets config.json, model.safetensors in float32, and the tokenizer. Labels are called LABEL_0, …: a run
    does not know their names.

    Raises UserError, with nothing written, for a folder that is not empty, for a run that is not a BERT's or has no
    such checkpoint, and for a model that transformers has nothing alike of.
    """
    run, folder = RunDir.open(workdir), Path(out)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there and not empty; choose another --out")
    config = run.config()
    model = config["model"]
    if model["name"] != "bert":
        raise UserError(f"{run.path} is a run of model {model['name']!r}; only 'bert' can be exported")
    tokenizer, special = _tokenizer(run.assets / "tokenizer.json")
    pad = tokenizer.token_to_id(special["pad_token"])
    assert pad is not None
    family, settings = write_config(model, pad_token_id=pad)

    sharding = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract_params(model))
    with checkpoints_of(run) as checkpoints:
        step = checkpoints.step(checkpoint)
        params = checkpoints.restore_params(abstract, step)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_tokenizer(folder, tokenizer, special, family, model["max_positions"])
        _write_json(folder / "config.json", settings)
        write(folder / SINGLE, family, params)
        shutil.copymode(folder / "config.json", folder / SINGLE)  # the library leaves it to its owner alone
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}") from error
    return step


def _tokenizer(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """A run's tokenizer and its special tokens, {"pad_token": "[PAD]", …}."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path} can't be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for names in _SPECIAL:
        if all(tokenizer.token_to_id(token) is not None for token in names.values()):
            return tokenizer, {f"{role}_token": token for role, token in names.items()}
    raise UserError(f"{path} has neither {', '.join(_SPECIAL[0].values())} nor {', '.join(_SPECIAL[1].values())}")


def _write_tokenizer(
    folder: Path, tokenizer: tokenizers.Tokenizer, special: dict[str, str], family: Family, max_length: int
) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "special_tokens_map.json", special)
    inputs = ["input_ids", *(["token_type_ids"] if family.reads_type_ids else []), "attention_mask"]
    settings = {
        # The class that takes tokenizer.json as it is; a model's own would rebuild it from other settings.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": inputs,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
