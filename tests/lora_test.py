# mypy: disable-error-code="arg-type"
"""Low-rank additions: the update of a step, the merged kernels, and what is refused."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from research.base.errors import UserError
from research.core.lora import OFF, Lora, detached, join
from research.core.optim import optimizer
from research.core.state import init_state, param_count
from research.core.step import eval_step, train_step
from research.core.tasks import LanguageModel
from research.devices.sharding import make_mesh, put_batch, state_shardings
from research.interop import pretrained
from research.interop.export import export
from research.models.bert import BertClassifier
from research.models.decoder import Decoder
from research.models.layers import Dense
from research.training.experiment import prepare
from tests import tiny
from tests.interop import tiny_decoder
from tests.models.random_params import random_params
from tests.models.small_decoders import LLAMA

ATTENTION = Lora(rank=2, alpha=6.0, targets="attention/(query|key|value|output)/kernel")
_NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
_ENCODER = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "mlp_size": 24,
    "activation": "gelu",
    "max_positions": 16,
    "position_offset": 0,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
    "initializer_range": 0.3,
    "num_classes": 3,
    "pooler": "tanh",
    "pooler_dropout": 0.0,
    "classifier_dropout": None,
    **_NO_DROPOUT,
}
MODULES = {
    "decoder": Decoder(**{**LLAMA, **_NO_DROPOUT}),
    "remat": Decoder(**{**LLAMA, **_NO_DROPOUT}, remat=True),
    "scan": Decoder(**{**LLAMA, **_NO_DROPOUT}, scan=True, remat=True),
    "encoder": BertClassifier(**_ENCODER),
}


def _batch(rows=2, width=8):
    ints = np.arange(rows * width, dtype=np.int32).reshape(rows, width)
    return {
        "tokens": ints * 7 % 50,
        "segments": np.ones_like(ints),
        "positions": np.broadcast_to(np.arange(width, dtype=np.int32), ints.shape),
        "type_ids": np.zeros_like(ints),
        "starts": np.zeros((rows, 1), np.int32),
        "targets": ints * 7 % 50,
        "weight": np.ones((rows, 1), np.float32),
    }


def _random_additions(params):
    """The parameters with random B too."""
    rng = np.random.default_rng(3)
    flat = flatten_dict(params)
    for path, leaf in flat.items():
        if path[-1] == "lora_b":
            flat[path] = jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype)
    return unflatten_dict(flat)


def _outputs(module, params, batch, lora=OFF, *, train=False, seed=0):
    with lora.applied(train=train):
        outputs = module.apply({"params": params}, batch, train=train, rngs={"dropout": jax.random.key(seed)})
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def _step(lora, tx, **options):
    return jax.jit(
        functools.partial(
            train_step, module=MODULES["decoder"], task=LanguageModel(), tx=tx, seed=0, lora=lora, **options
        )
    )


def _initial(lora, tx, seed=0):
    return init_state(MODULES["decoder"], tx, _batch(), seed, lora=lora)


@pytest.mark.extended
@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_start_is_exactly_the_base_model(name):
    module, batch = MODULES[name], _batch()
    base, state = (init_state(module, optax.adam(1e-3), batch, 0, lora=lora) for lora in (OFF, ATTENTION))
    own, additions = detached(state.params)
    assert len(jax.tree.leaves(additions)) == 2 * 4 * 2  # A and B of four kernels in each of two layers
    jax.tree.map(np.testing.assert_array_equal, own, base.params)
    jax.tree.map(np.testing.assert_array_equal, ATTENTION.merged(state.params), base.params)
    expected = _outputs(module, base.params, batch)
    np.testing.assert_array_equal(_outputs(module, state.params, batch, ATTENTION, train=True), expected)
    other = init_state(module, optax.adam(1e-3), batch, 1, lora=ATTENTION)
    for path, leaf in flatten_dict(additions).items():
        if path[-1] == "lora_a":
            assert leaf.shape[1] == 2
            assert 0.5 < np.std(leaf) * len(leaf) ** 0.5 < 1.6
            assert not np.array_equal(leaf, flatten_dict(other.params)[path])
    assert len({leaf.tobytes() for path, leaf in flatten_dict(additions).items() if path[-1] == "lora_a"}) == 8


@pytest.mark.extended
@pytest.mark.parametrize("name", MODULES)
def test_gradients_follow_from_the_merged_kernels(name):
    """W' = W + s · A · B: dA = s · dW' · Bᵀ and dB = s · Aᵀ · dW'. In float64; measured: 2e-14 apart."""
    with jax.enable_x64():
        module, batch = MODULES[name].clone(dtype=jnp.float64), _batch()
        params = jax.tree.map(lambda x: x.astype(jnp.float64), random_params(module, batch))
        params = _random_additions(ATTENTION.adapted(params, module, batch, 0))
        trained, frozen = ATTENTION.split(params)
        weights = np.random.default_rng(0).standard_normal(_outputs(module, frozen, batch).shape)

        def loss(params, lora=OFF):
            return jnp.sum(_outputs(module, params, batch, lora, train=True) * weights)

        merged = ATTENTION.merged(params)
        np.testing.assert_allclose(loss(params, ATTENTION), loss(merged), rtol=1e-12)
        found = flatten_dict(jax.grad(lambda part: loss(join(part, frozen), ATTENTION))(trained))
        full = flatten_dict(jax.grad(loss)(merged))
        flat = flatten_dict(params)
        assert len(found) == 16
        for (*layer, leaf), gradient in found.items():
            kernel = full[(*layer, "kernel")]
            a, b = flat[(*layer, "lora_a")], flat[(*layer, "lora_b")]
            expected = 3.0 * (kernel @ b.T if leaf == "lora_a" else a.T @ kernel)
            assert np.abs(gradient - expected).max() < 1e-12 * np.abs(expected).max(), layer


@pytest.mark.extended
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["adamw", pytest.param("schedule_free_adamw", marks=pytest.mark.extended)])
def test_only_additions_and_what_trains_names_change(name, accumulate):
    lora = dataclasses.replace(ATTENTION, trains="^head/|layer_1/mlp_norm", dropout=0.1)
    section = tiny.gpt().optimizer.to_dict() | {"name": name, "schedule": "constant", "warmup_fraction": 0.0}
    tx, _ = optimizer(section, weight_decay=0.1, total_steps=10)
    before = _initial(lora, tx)
    named = {"/".join(path) for path in flatten_dict(lora.split(before.params)[0])}
    assert {path for path in named if "lora" not in path} == {"head/kernel", "layer_1/mlp_norm/scale"}
    assert len(named) == 16 + 2
    for leaf in jax.tree.leaves(before.opt_state):
        assert leaf.ndim == 0 or leaf.shape in {x.shape for x in jax.tree.leaves(lora.split(before.params)[0])}
    after, scores = before, {}
    for _ in range(2):  # the first step does not change A, whose gradient is zero as B is
        after, scores = _step(lora, tx, accumulate=accumulate)(after, _batch())
    old, new = flatten_dict(before.params, sep="/"), flatten_dict(after.params, sep="/")
    changed = {path for path in old if not np.array_equal(old[path], new[path])}
    assert changed == named
    jax.tree.map(lambda new, old: new.shape == old.shape, after, before)  # raises if the trees differ
    assert 0 < float(scores["grad_norm"].compute()) < np.inf


@pytest.mark.extended
def test_weight_decay_is_that_of_the_config():
    """With a learning rate of 1 and zero gradients, what `decay_exclude` does not match shrinks by the decay."""
    section = tiny.gpt().optimizer.to_dict() | {"name": "sgd", "momentum": 0.0, "learning_rate": 1.0, "clip_norm": None}
    section |= {"schedule": "constant", "warmup_fraction": 0.0, "decay_exclude": "query/lora_a"}
    tx, _ = optimizer(section, weight_decay=0.25, total_steps=10)
    before = _initial(ATTENTION, tx)
    batch = {**_batch(), "weight": np.zeros((2, 1), np.float32), "targets": np.full((2, 8), -1, np.int32)}
    after, _ = _step(ATTENTION, tx)(before, batch)
    old, new = flatten_dict(before.params, sep="/"), flatten_dict(after.params, sep="/")
    for path in old:
        factor = 0.75 if path.endswith("lora_a") and "query" not in path else 1.0
        np.testing.assert_allclose(new[path], factor * old[path], rtol=1e-6, err_msg=path)


class _One(nn.Module):
    """A single dense layer."""

    @nn.compact
    def __call__(self, batch, *, train):
        return Dense(64, jnp.float32, nn.initializers.normal(0.1), name="layer")(batch["x"])


def test_dropout_is_on_the_inputs_of_a():
    lora = Lora(rank=64, alpha=128.0, dropout=0.25, targets="layer/kernel")
    x = 1 + np.random.default_rng(0).random((50, 64), np.float32)
    params = random_params(_One(), {"x": x})
    identity = jnp.eye(64)
    params = {"layer": {**params["layer"], "lora_a": identity, "lora_b": identity}}
    base = _outputs(_One(), params, {"x": x})
    added = _outputs(_One(), params, {"x": x}, lora, train=True) - base
    dropped = np.abs(added) < 1e-3
    assert 0.2 < dropped.mean() < 0.3  # 3,200 draws
    np.testing.assert_allclose(np.where(dropped, 0, added), np.where(dropped, 0, 2 * x / 0.75), rtol=1e-5)
    again = _outputs(_One(), params, {"x": x}, lora, train=True, seed=1) - base
    assert not np.array_equal(np.abs(again) < 1e-3, dropped)
    evaluated = _outputs(_One(), params, {"x": x}, lora) - base
    np.testing.assert_allclose(evaluated, 2 * x, rtol=1e-5)


# SmolLM2-135M
_SMOL = {
    **LLAMA,
    **_NO_DROPOUT,
    "vocab_size": 49_152,
    "hidden_size": 576,
    "num_layers": 30,
    "num_heads": 9,
    "num_kv_heads": 3,
    "head_size": 64,
    "mlp_size": 1536,
    "max_positions": 8192,
    "tie_embeddings": True,
}


@pytest.mark.extended
def test_optimizer_state_is_small():
    """For 135 million parameters and rank 8 on all kernels of attention: 7.4 MB, 0.7 % of that of all parameters."""
    module, tx = Decoder(**_SMOL), optax.adamw(1e-4)
    lora = Lora(rank=8, targets=ATTENTION.targets)
    full, small = (
        jax.eval_shape(functools.partial(init_state, module, tx, _batch(), lora=lora), 0) for lora in (OFF, lora)
    )
    assert param_count(full.params) == 134_515_008
    assert param_count(small.params) - param_count(full.params) == 921_600
    size, of = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state)) for state in (small, full))
    assert size == pytest.approx(2 * 4 * 921_600, abs=100)
    assert size / of == pytest.approx(0.00685, abs=1e-5)


@pytest.mark.extended
def test_step_computes_no_gradient_of_frozen_kernels():
    """A step on few tokens of a wide layer has no product of the kernel's size but those with the kernel itself."""
    lora = Lora(rank=2, targets="query/kernel")
    tx = optax.sgd(0.1)

    def flops(lora):
        state = jax.eval_shape(lambda: _initial(lora, tx))
        return _step(lora, tx).lower(state, _batch(32)).compile().cost_analysis()["flops"]

    assert flops(lora) < 0.8 * flops(OFF)


@pytest.mark.extended
def test_same_update_on_a_mesh():
    """Over `data`, `fsdp` and `tensor`, on eight devices, with the rules of the decoder. Measured: 2e-7 apart."""
    lora, tx = dataclasses.replace(ATTENTION, trains="^head/"), optax.sgd(0.5)
    state = _initial(lora, tx)
    state = dataclasses.replace(state, params=_random_additions(state.params))
    batch = _batch(8)
    expected, _ = _step(lora, tx)(state, batch)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    shardings = state_shardings(jax.eval_shape(lambda: state), Decoder.MESH_RULES, mesh)
    query = shardings.params["layer_0"]["attention"]["query"]
    assert (any(query["kernel"].spec), any(query["lora_a"].spec)) == (True, False)
    found, _ = _step(lora, tx)(jax.device_put(state, shardings), put_batch(batch, mesh))
    for one, other in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    before = flatten_dict(state.params)
    moved = max(np.abs(x - before[path]).max() for path, x in flatten_dict(found.params).items())
    assert moved > 1e-3


def test_replicas_merge_along_leading_axes():
    tx = optax.sgd(0.1)
    each = [_random_additions(_initial(ATTENTION, tx, seed).params) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *each)
    merged = ATTENTION.merged(stacked)
    for index, params in enumerate(each):
        one = jax.tree.map(lambda x, index=index: x[index], merged)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), one, ATTENTION.merged(params))


@pytest.mark.extended
def test_evaluation_has_the_additions():
    """The loss of an evaluation is that of a training step without dropout. Measured: 2e-7 apart."""
    tx = optax.sgd(0.0)
    state = _initial(ATTENTION, tx)
    state = dataclasses.replace(state, params=_random_additions(state.params))
    evaluated, _ = eval_step(state, _batch(), module=MODULES["decoder"], task=LanguageModel(), lora=ATTENTION)
    base, _ = eval_step(state, _batch(), module=MODULES["decoder"], task=LanguageModel())
    _, trained = _step(ATTENTION, tx)(state, _batch())
    assert evaluated["loss"].compute() == pytest.approx(trained["loss"].compute(), rel=1e-5)
    assert evaluated["loss"].compute() != pytest.approx(base["loss"].compute(), rel=1e-3)


def _adapted_run(tmp_path):
    """A run of a decoder with random additions -> its folder, module and parameters, A and B apart."""
    tiny_decoder.write(tmp_path / "F", "llama")
    module, variables = pretrained.load(str(tmp_path / "F"))
    params = _random_additions(ATTENTION.adapted(variables["params"], module, tiny_decoder.batch(), 0))
    run = tiny_decoder.write_run(tmp_path / "W", tiny_decoder.section(tmp_path / "F"), params)
    config = json.loads((run / "config.json").read_text())
    part = config.get("config", config)["train"]
    part["lora"] = dataclasses.asdict(ATTENTION)
    (run / "config.json").write_text(json.dumps(config))
    return run, module, params


@pytest.mark.extended
def test_export_and_weights_of_a_run_have_the_additions(tmp_path):
    """Logits differ by rounding: measured, 5e-7 where they are up to 1.1."""
    run, module, params = _adapted_run(tmp_path)
    batch = tiny_decoder.batch()
    expected = _outputs(module, params, batch, ATTENTION)
    assert np.abs(expected - _outputs(module, params, batch)).max() > 0.1
    export(run, tmp_path / "out")
    for source in (run, tmp_path / "out"):
        loaded, variables = pretrained.load(str(source))
        assert not jax.tree.leaves(detached(variables["params"])[1])
        np.testing.assert_allclose(_outputs(loaded, variables["params"], batch), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": "atention"}, r"targets='atention' finds no kernel of a dense layer; some of the 15 are layer_0"),
        ({"targets": "token_embedding"}, r"targets='token_embedding' finds token_embedding/embedding, which is not"),
        ({"targets": "("}, r"train\.lora\.targets='\(' is not a valid regular expression"),
        ({"trains": "["}, r"train\.lora\.trains='\[' is not a valid regular expression"),
        ({"trains": "classifier"}, r"train\.lora\.trains='classifier' finds no parameter"),
        ({"rank": 13}, r"train\.lora\.rank is 13; the kernel layer_0/attention/key/kernel, 16 × 12, allows at most 12"),
    ],
)
def test_invalid_settings_are_one_line_errors(changes, message):
    with pytest.raises(UserError, match=message) as error:
        _initial(dataclasses.replace(ATTENTION, **changes), optax.sgd(0.1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (tiny.gpt, {"train.lora.rank": 0}, r"train\.lora\.rank is 0; it must be .*at least 1"),
        (tiny.gpt, {"train.lora.dropout": 1.0}, r"train\.lora\.dropout is 1\.0; it must be at least 0 and below 1"),
        (tiny.gpt, {"train.lora.alpha": 0.0}, r"train\.lora\.alpha is 0\.0; it must be above 0"),
        (
            tiny.gpt,
            {"model.scan": True, "model.num_layers": 2, "train.lora.targets": "layer_1/attention/query/kernel"},
            "finds kernels of some layers only, which model.scan=True does not support",
        ),
        (tiny.resnet, {"train.lora.targets": "conv_1/kernel"}, "conv_1/kernel, which is not the kernel of a dense"),
        (tiny.logistic, {"optimizer.name": "lbfgs"}, r"train\.lora\.rank is 2, unsupported by 'lbfgs'; set it to None"),
    ],
)
def test_invalid_configs_are_one_line_errors(make, changes, message, monkeypatch):
    tiny.few_documents(monkeypatch)
    config = make(steps=1, batch_size=-1) if make is tiny.logistic else make()
    for key, value in {"train.lora.rank": 2, **changes}.items():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        prepare(config)
