"""Networks in ONNX Runtime against the same networks here."""

import collections
import dataclasses
import json
import sys
from typing import Any

import jax
import numpy as np
import pytest

from research.base.errors import UserError
from research.compress import onnx
from research.compress.onnx_graph import network, writer
from research.core import quantization
from research.inference.model import open_model
from research.inference.predictor import Predictor
from research.models import MODELS
from research.models.linear import SparseLogisticRegression
from research.models.mlm import BertMaskedLM
from research.models.mlp import MLP
from research.models.transformer import EncoderSizes
from research.runs.rundir import RunDir
from tests.interop import tiny_encoder

# Logits are up to 9 in size; measured: at most 5.2e-6 apart.
TOLERANCE = 2e-5

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 24, "num_layers": 2, "num_heads": 3, "mlp_size": 40, "activation": "gelu",
    "max_positions": 12, "position_offset": 0, "type_vocab_size": 2, "dropout": 0.1, "attention_dropout": 0.1,
    "layer_norm_eps": 1e-12, "initializer_range": 0.3, "num_classes": 3, "pooler": "tanh", "pooler_dropout": 0.0,
    "classifier_dropout": None,
}  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "bert of the first release": {"activation": "gelu_tanh"},
    "one output": {"num_classes": 1},
    "roberta": {"position_offset": 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "distilbert": {"type_vocab_size": 0, "pooler": "relu", "activation": "relu"},
    "wide heads of one layer": {"num_heads": 1, "num_layers": 1},
    "without some heads": {"num_heads": 2, "head_size": 8},
}
FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "logistic, two classes": ("logistic", {"num_classes": 2}),
    "logistic": ("logistic", {"num_classes": 4}),
    "mlp": ("mlp", {"num_classes": 3, "hidden_sizes": (6, 5), "dropout": 0.1}),
    "mlp of one layer": ("mlp", {"num_classes": 3, "hidden_sizes": (), "dropout": 0.0}),
    "mlp, regression": (
        "mlp",
        {"num_classes": 1, "hidden_sizes": (6,), "dropout": 0.0, "output_mean": 9.0, "output_std": 0.1},
    ),
}


def text_batch(rng, rows, length, types):
    """Texts of random lengths, of which the first fills its row; the second half of each is of the last type."""
    lengths = np.array([length, *rng.integers(1, length + 1, rows - 1)])[:, None]
    places = np.arange(length)[None, :]
    segments = (places < lengths).astype(np.int32)
    tokens = rng.integers(0, SIZES["vocab_size"], (rows, length)).astype(np.int32) * segments
    type_ids = np.where(2 * places >= lengths, max(types - 1, 0), 0).astype(np.int32) * segments
    positions = (places * segments).astype(np.int32)
    starts = np.zeros((rows, 1), np.int32)
    return {"tokens": tokens, "segments": segments, "type_ids": type_ids, "positions": positions, "starts": starts}


def random(module, batch, rng):
    """The variables of a module, none of them 0 or 1 everywhere."""
    variables = jax.jit(module.init, static_argnames="train")(jax.random.key(0), batch, train=False)
    return jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), variables)


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def saved(module, variables, folder):
    import onnx as library

    library.save_model(network(module, variables["params"]), str(folder / onnx.MODEL))
    return folder / onnx.MODEL


def operators(path):
    import onnx as library

    return collections.Counter(node.op_type for node in library.load(str(path)).graph.node)


def encoder(name, rng):
    module = MODELS["bert"](**SIZES | ENCODERS[name])
    return module, random(module, text_batch(rng, 2, 5, module.type_vocab_size), rng)


def logits(path, batch):
    model = onnx.OnnxModel(session(path), encoder=None, signature=None, task=None)
    return model.run(batch)


@pytest.mark.parity
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_has_the_same_logits_for_any_batch_and_length(name, tmp_path, rng):
    module, variables = encoder(name, rng)
    path = saved(module, variables, tmp_path)
    fused = onnx.optimized(path)
    for rows, length in ((1, 1), (1, 12), (7, 5), (32, 11)):
        batch = text_batch(rng, rows, length, module.type_vocab_size)
        expected = module.apply(variables, batch, train=False)[:, 0]
        for file in (path, fused):
            found = logits(file, batch)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parity
def test_padding_of_any_kind_is_not_read(tmp_path, rng):
    """Neither on the right nor, after fusion, as a mask with a gap."""
    module, variables = encoder("bert", rng)
    path = saved(module, variables, tmp_path)
    batch = text_batch(rng, 4, 9, 2)
    batch["segments"][:, 5:7] = 0
    expected = module.apply(variables, {**batch, "positions": np.arange(9)[None] + 0 * batch["tokens"]}, train=False)
    changed = {**batch, "tokens": np.where(batch["segments"], batch["tokens"], 7)}
    for file in (path, onnx.optimized(path)):
        np.testing.assert_allclose(logits(file, changed), expected[:, 0], rtol=0, atol=TOLERANCE)


@pytest.mark.parity
@pytest.mark.parametrize("name", ENCODERS)
def test_inputs_have_the_names_of_transformers(name, tmp_path, rng):
    module, variables = encoder(name, rng)
    found = session(saved(module, variables, tmp_path))
    assert {each.name for each in found.get_inputs()} - {"token_type_ids"} == {"input_ids", "attention_mask"}
    assert ("token_type_ids" in [each.name for each in found.get_inputs()]) == (module.type_vocab_size == 2)
    assert {(each.type, *each.shape) for each in found.get_inputs()} == {("tensor(int64)", "batch", "length")}
    assert [(each.name, *each.shape) for each in found.get_outputs()] == [("logits", "batch", module.num_classes)]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "activation"),
    [("bert", "BiasGelu"), ("bert of the first release", "FastGelu"), ("without some heads", "BiasGelu")],
)
def test_the_optimizer_fuses_every_layer(name, activation, tmp_path, rng):
    module, variables = encoder(name, rng)
    found = operators(onnx.optimized(saved(module, variables, tmp_path)))
    assert found["Attention"] == found[activation] == module.num_layers
    assert found["SkipLayerNormalization"] == 2 * module.num_layers
    assert found["EmbedLayerNormalization"] == 1
    assert not found["Softmax"] + found["LayerNormalization"] + found["Erf"] + found["Tanh"] - 1


@pytest.mark.parity
@pytest.mark.parametrize("name", FEATURES)
def test_a_model_of_features_has_the_same_logits(name, tmp_path, rng):
    model, options = FEATURES[name]
    module = MODELS[model](**options)
    batch = {"features": rng.normal(size=(5, 8)).astype(np.float32)}
    variables = random(module, batch, rng)
    path = saved(module, variables, tmp_path)
    for rows in (1, 5):
        some = {"features": batch["features"][:rows]}
        expected = module.apply(variables, some, train=False)
        np.testing.assert_allclose(logits(path, some), expected.reshape(rows, -1), rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of texts and of pairs of them, whose parameters were not trained."""
    found = {}
    for name, inputs in (("text", ["sentence"]), ("pair", ["sentence", "other"])):
        folder = tmp_path_factory.mktemp(name)
        tiny_encoder.write(folder / "bert")
        found[name] = tiny_encoder.write_run(folder / "run", folder / "bert")
        path = found[name] / "config.json"
        config = json.loads(path.read_text())
        config["data"]["transform"]["inputs"] = inputs
        path.write_text(json.dumps(config))
    return found


COLUMNS = {
    "sentence": ["so dull", "", "a gripping, moving film", "x" * 100] * 3,
    "other": ["so", "a film or the film of a film", "", "y"] * 3,
}


@pytest.mark.parity
@pytest.mark.parametrize("name", ["text", "pair"])
def test_a_folder_predicts_as_its_run(name, runs, tmp_path):
    run = RunDir.open(runs[name])
    model = open_model(run)
    path = onnx.write_onnx(model, tmp_path / "made", assets=run.assets)
    onnx.optimized(path)
    columns = {column: COLUMNS[column] for column in model.signature.inputs}
    expected = Predictor(model).predict(columns)
    for file in (onnx.MODEL, onnx.OPTIMIZED):
        opened = onnx.OnnxModel.open(tmp_path / "made", file, threads=1)
        assert opened.signature == model.signature
        found = opened.predict(columns, batch_rows=5)
        assert [list(record) for record in found] == [list(record) for record in expected]
        for one, other in zip(found, expected, strict=True):
            assert one["prediction"] == other["prediction"]
            np.testing.assert_allclose(one["scores"], other["scores"], rtol=0, atol=TOLERANCE)
        for rows in (1, 7, 32):
            difference, agreement = onnx.check(model, tmp_path / "made", columns, file=file, batch_rows=rows)
            assert difference < TOLERANCE
            assert agreement == 1


@pytest.mark.parity
def test_weights_in_int8_are_written_in_float32(runs, tmp_path, monkeypatch):
    run = RunDir.open(runs["text"])
    model = open_model(run)
    examples = model.encode({"sentence": COLUMNS["sentence"]}, "the input")
    _, batch = next(onnx.batches(examples, len(examples)))
    monkeypatch.setattr(quantization, "_SMALLEST", 8)

    def apply(variables):
        return model.module.apply(variables, batch, train=False)

    made = quantization.quantized(model.variables, apply, products=False, embeddings=True)
    with quantization.applied(made):
        expected = apply(made)[:, 0]
    state = dataclasses.replace(model.state, params=made.pop("params"), model_state=made)
    model = dataclasses.replace(model, state=state)
    onnx.write_onnx(model, tmp_path, assets=run.assets)
    np.testing.assert_allclose(onnx.OnnxModel.open(tmp_path).run(batch), expected, rtol=0, atol=TOLERANCE)
    difference, _ = onnx.check(model, tmp_path, {"sentence": COLUMNS["sentence"]})
    assert difference < TOLERANCE


@pytest.mark.parity
def test_with_8_bits_the_logits_are_close(runs, tmp_path):
    run = RunDir.open(runs["text"])
    model = open_model(run)
    path = onnx.quantized(onnx.optimized(onnx.write_onnx(model, tmp_path, assets=run.assets)))
    assert operators(path)["QAttention"] == 2
    columns = {"sentence": COLUMNS["sentence"]}
    difference, _ = onnx.check(model, tmp_path, columns, file=onnx.INT8)
    assert TOLERANCE < difference < 0.01  # measured: 0.0004
    assert len(onnx.OnnxModel.open(tmp_path, onnx.INT8).predict(columns)) == len(columns["sentence"])


@pytest.mark.parity
def test_what_can_not_be_opened_or_overwritten_is_named(runs, tmp_path):
    run = RunDir.open(runs["text"])
    model = open_model(run)
    path = onnx.write_onnx(model, tmp_path, assets=run.assets)
    with pytest.raises(UserError, match=r"model\.onnx exists"):
        onnx.write_onnx(model, tmp_path, assets=run.assets)
    with pytest.raises(UserError, match=r"int8\.onnx can't be opened"):
        onnx.OnnxModel.open(tmp_path, onnx.INT8)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model\.onnx can't be opened"):
        onnx.OnnxModel.open(tmp_path)


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (
            BertMaskedLM(**{name: SIZES[name] for name in SIZES if name in EncoderSizes.RANGES}, activation="gelu"),
            "BertM",
        ),
        (SparseLogisticRegression(num_classes=2, num_features=9), "SparseLogisticRegression"),
        (MLP(num_classes=2, hidden_sizes=(), dropout=0.0, mean=(0.0,), std=(1.0,)), "MLP of images"),
    ],
)
def test_other_models_are_refused(module, what):
    with pytest.raises(UserError, match=f"^a {what}.*supported are text encoders"):
        writer(module)


def test_a_missing_package_is_a_line_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"^ONNX needs onnx.* pip install 'research\[onnx\]'$"):
        network(MODELS["linear"](), {})
