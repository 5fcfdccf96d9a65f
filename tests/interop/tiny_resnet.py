# mypy: disable-error-code="arg-type"
"""Small ResNets in transformers' layout, written without transformers: names and shapes are given explicitly."""

import json
from typing import Any

import numpy as np
import optax
from safetensors.numpy import save_file

from research.core.state import TrainState
from research.interop import pretrained
from research.runs.checkpoint import Checkpoints, Progress
from research.runs.rundir import RunDir
from tests import tiny

CONFIGS: dict[str, Any] = {
    block: {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        "num_channels": 3,
        "embedding_size": 4,
        "hidden_sizes": hidden_sizes,
        "depths": [1, 2],
        "layer_type": block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
        "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
    }
    for block, hidden_sizes in (("basic", [4, 8]), ("bottleneck", [16, 32]))
}
PREPROCESSOR = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}


def tensors(block, channels=3, num_classes=3):
    """{name: float32 tensor}, except num_batches_tracked. The values are sines, not drawn from a random generator."""
    convolutions = {"resnet.embedder.embedder": (4, channels, 7, 7)}

    def layer(stage, index, into, out):
        p = f"resnet.encoder.stages.{stage}.layers.{index}."
        if block == "basic":
            convolutions[f"{p}layer.0"] = (out, into, 3, 3)
            convolutions[f"{p}layer.1"] = (out, out, 3, 3)
        else:
            convolutions[f"{p}layer.0"] = (out // 4, into, 1, 1)
            convolutions[f"{p}layer.1"] = (out // 4, out // 4, 3, 3)
            convolutions[f"{p}layer.2"] = (out, out // 4, 1, 1)
        if into != out:
            convolutions[f"{p}shortcut"] = (out, into, 1, 1)

    first, second = CONFIGS[block]["hidden_sizes"]
    layer(0, 0, 4, first)
    layer(1, 0, first, second)
    layer(1, 1, second, second)

    made = {}

    def sines(name, shape, centre):
        index = len(made)
        made[name] = (centre + 0.5 * np.sin(np.arange(np.prod(shape)) * (1.0 + 0.37 * index) + index)).reshape(shape)

    for name, shape in convolutions.items():
        sines(f"{name}.convolution.weight", shape, 0.0)
        for leaf, centre in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            sines(f"{name}.normalization.{leaf}", shape[:1], centre)
    sines("classifier.1.weight", (num_classes, second), 0.0)
    sines("classifier.1.bias", (num_classes,), 0.0)
    return {name: tensor.astype(np.float32) for name, tensor in made.items()}


def write(folder, block="basic", *, preprocessor=PREPROCESSOR, **changes):
    """Writes a complete folder -> its tensors. `changes`: to config.json; tensors follow its channels and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIGS[block], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    made = tensors(block, config["num_channels"], len(config["id2label"]))
    counters = {
        name.replace("running_var", "num_batches_tracked"): np.array(7) for name in made if name.endswith("running_var")
    }
    save_file({**made, **counters}, folder / "model.safetensors", metadata={"format": "pt"})
    return made


def images(rows=2):
    """uint8 [B, 32, 32, 3]."""
    values = 127.5 + 127.5 * np.sin(0.37 * np.arange(rows * 32 * 32 * 3) ** 1.1)
    return np.round(values).astype(np.uint8).reshape(rows, 32, 32, 3)


def write_run(folder, init_from):
    """A run directory whose only checkpoint, at step 7, holds the variables of `init_from`; nothing was trained."""
    module, variables = pretrained.load(str(init_from))
    config = tiny.resnet()
    config.model.update({key: getattr(module, key) for key in config.model if key != "name"})
    run = RunDir(folder)
    run.start(config.to_dict())
    params = variables.pop("params")
    state = TrainState(
        step=np.zeros((), np.int32), params=params, model_state=variables, opt_state=optax.EmptyState(), average={}
    )
    with Checkpoints(run.checkpoints, metric="accuracy", mode="max") as checkpoints:
        checkpoints.save(state, Progress(step=7))
        checkpoints.rank(Progress(step=7, history=((7, 0.5),)))
    run.close()
    return folder
