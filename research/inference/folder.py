"""A network in a folder, as transformers or `research.export` wrote it, that predicts without a run directory."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn

from research.base.errors import UserError
from research.base.paths import local, read_json
from research.core.tasks import Classification, MaskedLM, Regression, Task
from research.data import load as data
from research.data.cache import NO_CACHE
from research.data.encoder import FILE as ENCODER_FILE
from research.data.encoder import Encoder, Signature
from research.data.examples import Columns, Examples
from research.data.images.transform import ImageTransform
from research.data.text.text_or_pair import TextOrPairEncoder
from research.data.text.wordpiece import TextEncoder, WordPiece, read_tokenizer
from research.inference.model import DTYPES
from research.inference.samples import Samples, parse_samples
from research.interop.export import SAMPLES_FILE
from research.interop.networks import ENCODER, Network, read_network
from research.interop.resnets import read_resizing
from research.interop.tensors import weights_version

# Files that may limit a text to fewer tokens than the encoder has positions, and their key.
_LIMITS = (("tokenizer_config.json", "model_max_length"), ("sentence_bert_config.json", "max_seq_length"))

# No augmentation: nothing is trained here.
_NONE = {
    **dict.fromkeys(("crop_padding", "randaugment_ops", "randaugment_magnitude", "erasing", "mixup", "cutmix"), 0),
    "crop_border": "zero",
    "random_resized_crop": None,
    "aspect_ratio": (0.75, 1.333),
    "flip": False,
}


@dataclasses.dataclass(frozen=True)
class FolderModel:
    """A network with its weights, and its input encoder.

    Attributes:
      variables: those of the module; of a text encoder without a head under `params/encoder`.
      task: what makes predictions of the module's outputs; None for an encoder without a head.
      signature: the inputs of the encoder, with the names of the labels.
    """

    module: nn.Module
    variables: Mapping[str, Any]
    task: Task | None
    encoder: Encoder
    signature: Signature

    def encode(self, columns: Columns, what: str) -> Examples:
        """Encodes raw inputs. Raises UserError if a column is missing or a value invalid."""
        with data.fitting(self.signature.kind, what):
            return self.encoder.encode(columns, split=what, labels=False)


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of transformers whose network can predict; see `open`."""

    path: Path
    network: Network

    @classmethod
    def open(cls, path: str | Path) -> "Folder":
        """Opens a folder, and checks all of its files, of the weights the headers.

        Raises UserError if the architecture or a setting is unsupported, the tokenizer is missing, or the weights are
        damaged or do not fit.
        """
        found = cls(local(path).absolute(), read_network(local(path).absolute()))
        found.network.check()
        _ = found.encoder
        return found

    @property
    def version(self) -> str:
        """A short hash of the weights, computed again only when a file of them changes."""
        return weights_version(self.path)

    @functools.cached_property
    def _saved(self) -> Mapping[str, Any] | None:
        """What an export says about the encoder of its run."""
        path = self.path / ENCODER_FILE
        return read_json(path) if path.is_file() else None

    @functools.cached_property
    def encoder(self) -> Encoder:
        """What encodes its inputs: as in its run, for an export."""
        if self._saved is not None:
            return data.open_encoder(self._saved, self.path)[0]
        if self.network.model == "resnet":
            return _images(self.network)
        return _texts(self.network)

    @property
    def signature(self) -> Signature:
        """The inputs, with the names of the labels."""
        if self._saved is not None:
            return data.open_encoder(self._saved, self.path)[1]
        names = self.network.label_names
        return dataclasses.replace(self.encoder.signature, label=None, label_names=names if len(names) > 1 else None)

    @property
    def samples(self) -> Samples | None:
        """The sample inputs of an export, with their predictions; None if the folder has none."""
        path = self.path / SAMPLES_FILE
        return parse_samples(read_json(path), str(path)) if path.is_file() else None

    def model(self, *, dtype: str) -> FolderModel:
        """Reads the weights, to compute in `dtype`. Raises UserError if they changed and do not fit any more."""
        network = read_network(self.path)
        module = network.module(DTYPES[dtype])
        task: Task | None = Classification() if len(network.label_names) > 1 else Regression()
        if network.model in ("bert_mlm", ENCODER):
            task = MaskedLM() if network.model == "bert_mlm" else None
        return FolderModel(module, network.variables(), task, self.encoder, self.signature)


def is_folder(path: Path) -> bool:
    """Whether a folder has the config.json of transformers, which is not that of a run."""
    try:
        config = read_json(path / "config.json")
    except UserError:
        return False
    return "model_type" in config or "architectures" in config


def _texts(network: Network) -> Encoder:
    """Single texts, or pairs for a classifier, as far as the network and its tokenizer read them."""
    model, transform = network.spec.model, network.spec.transform
    length = min([model["max_positions"], *_lengths(network.folder)])
    definition = read_tokenizer(transform["tokenizer"], lowercase=transform["lowercase"]).to_str()

    def of(*inputs: str) -> TextEncoder:
        options = WordPiece(
            inputs=inputs,
            label="label",
            tokenizer=None,
            vocab_size=model["vocab_size"],
            lowercase=transform["lowercase"],
            max_length=length,
            pad_to=(length,),
            row_length=length,
        )
        return TextEncoder(options, definition)

    return TextOrPairEncoder(of("text"), of("text", "text_pair")) if network.model == "bert" else of("text")


def _lengths(folder: Path) -> list[int]:
    """The limits of a text's tokens in the files of a folder."""
    found = [read_json(folder / name).get(key) for name, key in _LIMITS if (folder / name).is_file()]
    return [length for length in found if type(length) is int and length > 0]


def _images(network: Network) -> Encoder:
    """Images, resized as the folder's image processor does."""
    channels = network.spec.batch["images"].shape[-1]
    resizing = read_resizing(network.folder)
    transform = ImageTransform(inputs=("image",), label="label", channels=channels, augment=_NONE, **resizing)
    return transform.fit({}, NO_CACHE)
