# mypy: disable-error-code="arg-type"
"""Folders of transformers as models, and what an export is served as."""

import json
import shutil

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.base.errors import UserError
from research.inference.folder import Folder
from research.inference.predictor import Predictor
from research.interop.export import export
from research.runs.rundir import RunDir
from research.serve.model import ServedModel
from research.serve.operations import OPERATIONS
from research.serve.repository import Source, check
from tests.interop import tiny_encoder, tiny_resnet
from tests.serve.conftest import LIMITS, TEXTS, serving


def opened(folder, *operations):
    """The model of a folder, compiled."""
    source = Source.of(f"m={folder}", operations=operations or tuple(OPERATIONS))
    model = ServedModel.open("m", source.run, operations=source.operations)
    for _ in model.warm_up(LIMITS):
        pass
    return model


def write_masked(folder, family="bert", **changes):
    """A tiny masked language model: the encoder of `tiny_encoder`, and a head."""
    name = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}[family]
    changes = {"architectures": [f"{name}ForMaskedLM"], **changes}
    tensors = tiny_encoder.write(folder, family, **changes)
    dense, norm, head = {
        "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions"),
        "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head"),
        "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    }[family]
    size, rows = 8, tiny_encoder.CONFIGS[family]["vocab_size"]
    tensors |= {
        f"{dense}.weight": np.sin(np.arange(size * size, dtype=np.float32)).reshape(size, size),
        f"{dense}.bias": np.cos(np.arange(size, dtype=np.float32)),
        f"{norm}.weight": 1 + 0.1 * np.arange(size, dtype=np.float32),
        f"{norm}.bias": 0.1 * np.arange(size, dtype=np.float32),
        f"{head}.bias": np.sin(3 * np.arange(rows, dtype=np.float32)),
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def write_classifier(folder, family="bert", **changes):
    name = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}[family]
    changes = {"architectures": [f"{name}ForSequenceClassification"], **changes}
    return tiny_encoder.write(folder, family, num_classes=len(changes.get("id2label", "ab")), **changes)
