import json
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.base.errors import UserError
from research.interop import pretrained
from research.interop.tensors import replaced
from tests import tiny
from tests.interop import tiny_encoder


def _params(folder, num_classes=3):
    return pretrained.load(str(folder), num_classes)[1]["params"]


def _rewrite(folder, change):
    """Changes the tensors of a folder with a function of {name: tensor}."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize("family", tiny_encoder.CONFIGS)
def test_names_with_and_without_prefix(family, tmp_path):
    """With and without the prefix, and with BERT's original names of the LayerNorm parameters."""
    written = tiny_encoder.write(tmp_path, family, num_classes=3)
    params = _params(tmp_path)
    name = f"{family}.{'transformer' if family == 'distilbert' else 'encoder'}.layer.1."
    name += "ffn.lin1.weight" if family == "distilbert" else "intermediate.dense.weight"
    np.testing.assert_array_equal(params["encoder"]["layer_1"]["mlp_in"]["kernel"], written[name].T)

    def old(name):
        name = name.removeprefix(f"{family}.")
        if "LayerNorm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        return name

    _rewrite(tmp_path, lambda tensors: {old(name): tensor for name, tensor in tensors.items()})
    tiny.assert_trees_equal(_params(tmp_path), params)


def test_several_files_with_an_index(tmp_path):
    tensors = tiny_encoder.write(tmp_path, num_classes=3)
    params = _params(tmp_path)
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors").unlink()
    tiny.assert_trees_equal(_params(tmp_path), params)
    for text in ('{"weight_map": null}', '{"weight_map": {"a": null}}', '{"weight_map": {"a": ["b"]}}'):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(UserError, match=r"index.json has weight_map"):
            _params(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index.json has weight_map None"):
        _params(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002.safetensors can't be read"):
        _params(tmp_path)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_types_become_float32(dtype, tmp_path):
    tiny_encoder.write(tmp_path, num_classes=3)
    params = _params(tmp_path)
    _rewrite(tmp_path, lambda tensors: {name: tensor.astype(dtype) for name, tensor in tensors.items()})
    expected = jax.tree.map(lambda x: np.asarray(x).astype(dtype).astype(np.float32), params)
    found = _params(tmp_path)
    tiny.assert_trees_equal(found, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def test_head_may_be_missing(tmp_path):
    tensors = tiny_encoder.write(tmp_path)
    _rewrite(tmp_path, lambda tensors: {name: x for name, x in tensors.items() if "pooler" not in name})
    params = _params(tmp_path)
    table = tensors["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(params["encoder"]["token_embedding"]["embedding"], table)
    assert 0 < np.abs(params["pooler"]["kernel"]).max() <= 0.04  # random, with the initializer_range
    assert params["classifier"]["kernel"].shape == (8, 3)


def _without(*names):
    return lambda tensors: {name: x for name, x in tensors.items() if name not in names}


QUERY = "bert.encoder.layer.1.attention.self.query"
MLP = "bert.encoder.layer.0.intermediate.dense.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without(f"{QUERY}.bias"), f"lacks {QUERY}.bias, which the model needs"),
        (lambda tensors: {"x": np.zeros(1)}, r"lacks bert.\S+, bert.\S+, bert.\S+ and 34 more, which"),
        (
            lambda tensors: {**tensors, f"{QUERY}.weight": np.zeros((8, 9), np.float32)},
            rf"tensor {QUERY}.weight of \S+ has shape \(8, 9\); the model of this config needs \(8, 8\)",
        ),
        (  # the error gives shapes as in the file
            lambda tensors: {**tensors, MLP: np.zeros((8, 12), np.float32)},
            rf"tensor {MLP} of \S+ has shape \(8, 12\); the model of this config needs \(12, 8\)",
        ),
        (
            lambda tensors: {**tensors, f"{QUERY}.weight": np.zeros((8, 8), np.int8)},
            rf"tensor {QUERY}.weight of \S+ is of type I8; known: F64",
        ),
        (
            lambda tensors: {**tensors, "classifier.weight": np.zeros((5, 8), np.float32)},
            r"tensor classifier.weight of \S+ has shape \(5, 8\); the model of this config needs \(3, 8\)",
        ),
    ],
)
def test_mismatched_tensors_are_named(change, message, tmp_path):
    tiny_encoder.write(tmp_path, num_classes=3)
    _rewrite(tmp_path, change)
    with pytest.raises(UserError, match=message) as caught:
        _params(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [4, 100, -1])
def test_truncated_file_is_a_one_line_error(length, tmp_path):
    tiny_encoder.write(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"model.safetensors can't be read; it may be truncated"):
        _params(tmp_path)


def test_pickle_is_never_opened(tmp_path):
    tiny_encoder.write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no model.safetensors, only pytorch_model.bin: a pickle .* never opened"):
        _params(tmp_path)


def test_leaves_keep_their_sharding():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shardings = [jax.NamedSharding(mesh, jax.P(*axes)) for axes in ((), ("data",), (None, "data"))]
    array = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
    new = replaced([jax.device_put(jnp.zeros((16, 8)), sharding) for sharding in shardings], lambda path: array)
    for leaf, sharding in zip(new, shardings, strict=True):
        assert leaf.sharding == sharding
        np.testing.assert_array_equal(leaf, array)


def test_at_most_one_tensor_is_held_twice():
    """Replacing 8 tensors of 1 MB never uses more memory than 8 tensors and the one just read."""
    params = {f"layer_{i}": {"kernel": jnp.full((512, 512), i, jnp.float32)} for i in range(8)}
    fresh = jax.tree.leaves(params)
    alive = []

    def read(path):
        array = np.full((512, 512), -1.0, np.float32)
        alive.append(sum(not leaf.is_deleted() for leaf in fresh))
        return array

    tracemalloc.start()
    new = replaced(params, read)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert alive == [8, 7, 6, 5, 4, 3, 2, 1]
    assert all(leaf.is_deleted() for leaf in fresh)
    assert peak < 2**20 * 9.5
    assert all(np.array_equal(leaf, np.full((512, 512), -1.0)) for leaf in jax.tree.leaves(new))
