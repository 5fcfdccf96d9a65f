"""Exports a run as a folder that transformers can load.

For the same tokens or images transformers computes the logits of the run up to float32 rounding (measured: at most 3e-7
apart for encoders, 1.2e-6 for decoders, 1e-6 of their size for ResNets), if the run computes in float32. A run with
dtype=bfloat16 has float32 parameters, which are exported unchanged, but rounds them and its activations to 8 bits in
computations: `ROUNDING`. Measured: MiniLM on SST-2's 872 dev sentences, probabilities at most 0.0070 and on average
0.0007 apart, the same class for all; the same checkpoint computed here in float32 differs as much from its run.
"""

import json
import shutil
from pathlib import Path

import jax
from jax.sharding import SingleDeviceSharding

from research.base.errors import UserError
from research.base.leaves import path_name
from research.base.paths import expanded
from research.base.registry import expand_variant
from research.data import load as data
from research.data.encoder import FILE as ENCODER_FILE
from research.data.encoder import to_json
from research.interop import KINDS
from research.interop.tensors import SINGLE, weights_version, write
from research.interop.trained import checkpoints_of, own_variables, restore_own
from research.models import MODELS
from research.runs.rundir import RunDir

SAMPLES_FILE = "samples.json"

# How the outputs of an export differ from those of its run, by the run's dtype; for float32 they do not.
ROUNDING = {
    "bfloat16": "the run computes in bfloat16; in float32, as in transformers, its logits differ by about 1 % of the "
    "largest and its probabilities by up to about 0.01",
    "float64": "the run computes in float64; in float32, as in transformers, its outputs differ by about 1e-6 of their "
    "size",
}


def export(workdir: str | Path, out: str | Path, *, checkpoint: str = "last") -> int:
    """Writes the "last" or the "best" checkpoint of a run of a BERT, a ResNet or a decoder to `out` -> its step.

    The folder gets config.json, model.safetensors in float32, and the tokenizer or the images' normalization; and, by
    which `research.serve` encodes and checks as for the run, encoder.json and the run's samples.json. In config.json
    labels are called LABEL_0, …. A single output is the prediction of a regression. The
    softmax of several outputs is the run's `scores`; for task squared_hinge only the most probable class agrees. If a
    run ranks its checkpoints by a metric of its averaged parameters, ema_…, those are exported. Low-rank additions to
    kernels are merged into them. Two things are not part of the network and are not exported: the run truncates texts
    to data.transform.max_length, but the exported tokenizer to model.max_positions; and with model.test_flip the run
    also evaluates the mirrored image.

    Raises UserError, with nothing written, for a folder that is not empty, for a run of another model or without such
    a checkpoint, and for a model without a counterpart in transformers.
    """
    run, folder = RunDir.open(workdir), expanded(out)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; choose another --out")
    run.check_one_seed("an export")
    model = expand_variant(MODELS, run.config()["model"])
    kind = next((kind for kind in KINDS if kind.models[0] == model["name"]), None)
    if kind is None:
        known = ", ".join(kind.models[0] for kind in KINDS)
        raise UserError(f"{run.path} is a run of model {model['name']!r}; only {known} can be exported")

    sharding = SingleDeviceSharding(jax.local_devices()[0])
    with checkpoints_of(run) as checkpoints:
        step = checkpoints.step(checkpoint)
        saved = own_variables(checkpoints, step)
        shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
        exported = kind.write(model, run.config()["data"]["transform"], run.assets, shapes)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), saved)
        variables = restore_own(run, checkpoints, abstract, step)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in exported.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        write(folder / SINGLE, exported.naming, exported.complete(variables))
        shutil.copymode(folder / "config.json", folder / SINGLE)  # the library makes it readable by its owner only
        for name, text in _for_serving(run, step, weights_version(folder)).items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}") from error
    return step


def _for_serving(run: RunDir, step: int, version: str) -> dict[str, str]:
    """The files from which `research.serve` takes the run's encoder and sample inputs, for weights of this version.

    None for a transform of the user's own, which the folder can't have.
    """
    config = run.config()
    transform = config["data"]["transform"]
    if transform["name"] not in data.TRANSFORMS:
        return {}
    _, signature = data.open_encoder(config["data"], run.assets)
    # The tokenizer, and the template of chats, are the folder's.
    own = {key: None if key in ("tokenizer", "chat_template") else value for key, value in transform.items()}
    files = {ENCODER_FILE: to_json(signature, transform=own) + "\n"}
    samples = run.samples()
    if samples is not None:
        # An image is not mirrored by the exported network.
        records = None if config["model"].get("test_flip") else samples["predictions"].get(str(step))
        predictions = {} if records is None else {version: records}
        found = {"dtype": config["dtype"], "inputs": samples["inputs"], "predictions": predictions}
        files[SAMPLES_FILE] = json.dumps(found) + "\n"
    return files
