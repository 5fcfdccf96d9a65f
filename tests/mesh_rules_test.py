"""Every rule set of every family trains as one device does, with parameters that are really spread."""

import functools
import re

import jax
import numpy as np
import pytest

from research.base.errors import UserError
from research.base.leaves import path_name
from research.devices import rules
from research.devices.sharding import make_mesh, prefetch_to_device, state_shardings
from research.training.experiment import prepare
from tests import tiny

STEPS = 20
MESHES = {
    "fsdp": {"fsdp": 4},
    "tensor": {"tensor": 2},
    "fsdp_tensor": {"data": 2, "fsdp": 2, "tensor": 2},
}


def _logistic():
    config = tiny.logistic(steps=STEPS)
    config.optimizer.update(name="adamw", learning_rate=0.01)
    return config


CONFIGS = {
    "bert": lambda: tiny.bert(steps=STEPS),
    "decoder": lambda: tiny.gpt(steps=STEPS),
    "resnet": lambda: tiny.resnet(steps=STEPS),
    "logistic": _logistic,
}


def _losses(config, devices):
    """The losses of all steps, and the last state."""
    experiment = prepare(config, devices=devices)
    state, losses = experiment.init(), []
    for _, batch in prefetch_to_device(experiment.training_batches(0), experiment.mesh, experiment.batch_axis):
        state, scores = experiment.train_step(state, batch)
        losses.append(float(scores["loss"].total / scores["loss"].weight))
    return np.asarray(losses), state


@pytest.fixture(scope="module")
def alone():
    """The losses of one device, by the name of a config."""
    patch = pytest.MonkeyPatch()
    tiny.few_sentences(patch)
    tiny.few_documents(patch)
    yield functools.cache(lambda name: _losses(CONFIGS[name](), jax.devices()[:1])[0])
    patch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rule_set", MESHES)
def test_rule_sets_give_the_losses_of_one_device(name, rule_set, alone, monkeypatch):
    config = CONFIGS[name]()
    config.mesh.update(rules=rule_set, **MESHES[rule_set])
    expected = alone(name)
    tiny.few_sentences(monkeypatch)
    tiny.few_documents(monkeypatch)
    losses, state = _losses(config, jax.devices())
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    parts = int(np.prod([MESHES[rule_set].get(axis, 1) for axis in rules.RULE_SETS[rule_set]]))
    spread = {path: leaf for path, leaf in _leaves(state).items() if not leaf.is_fully_replicated}
    assert {leaf.nbytes // leaf.addressable_shards[0].data.nbytes for leaf in spread.values()} <= {2, parts}
    layers = {path: leaf for path, leaf in _leaves(state).items() if re.search(LAYERS, path)}
    spread_in_layers = sum(leaf.nbytes for path, leaf in layers.items() if path in spread)
    assert spread_in_layers > 0.9 * sum(leaf.nbytes for leaf in layers.values())


# Without embeddings, which are large in tiny models, and of an odd size.
LAYERS = r"/(layer_\d|stage_\d_block_\d|linear)/"


def _leaves(state):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"rules": "fsbp"}, "fsdp"),
        ({"rules": (("nothing/kernel", ("fsdp",)),)}, "'nothing/kernel'"),
        ({"rules": "fsdp", "tensor": 2}, r"mesh\.tensor=2"),
        ({"tensor": 2}, r"mesh\.tensor=2"),
        (
            {"rules": (("linear/kernel", (None, "fsdp")),), "fsdp": 4},
            r"params/linear/kernel into 4 parts .mesh\.fsdp=4",
        ),
    ],
    ids=str,
)
def test_rules_that_cannot_hold_are_one_line_errors(mesh, message):
    config = _logistic()
    config.mesh.update(**mesh)
    with pytest.raises(UserError, match=message):
        prepare(config)


def test_models_without_rule_sets_are_refused_by_name():
    with pytest.raises(UserError, match="declares no MESH_RULES"):
        state_shardings({}, "fsdp", make_mesh(fsdp=2), object())
    assert state_shardings({}, "replicated", make_mesh(fsdp=2), object()) == {}


@pytest.mark.extended
def test_statistics_of_adafactor_are_replicated_by_rule_sets():
    config = tiny.bert(steps=1)
    config.optimizer.name = "adafactor"
    config.model.update(hidden_size=128, mlp_size=128)
    config.mesh.update(fsdp=4, rules="fsdp")
    leaves = _leaves(prepare(config).state)
    factored = {path: leaf for path, leaf in leaves.items() if "/v_row/" in path and leaf.shape == (128,)}
    assert factored
    assert all(leaf.sharding.is_fully_replicated for leaf in factored.values())
    assert not leaves["params/encoder/layer_0/mlp_in/kernel"].sharding.is_fully_replicated


@pytest.mark.extended
def test_activations_are_split_by_rows_where_parameters_are_split():
    """Seen in the program: without the constraints XLA may split the features."""
    config = tiny.bert(steps=1)
    config.mesh.update(fsdp=4, rules="fsdp")
    experiment = prepare(config)
    batch = next(iter(prefetch_to_device(experiment.training_batches(0), experiment.mesh)))[1]
    assert "sharding_constraint" in experiment.train_step.lower(experiment.state, batch).as_text()
    config.mesh.update(fsdp=1, rules=None)
    experiment = prepare(config)
    assert "sharding_constraint" not in experiment.train_step.lower(experiment.state, batch).as_text()
