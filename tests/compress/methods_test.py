# mypy: disable-error-code="arg-type"
"""What methods keep and remove: removing what has no effect changes nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from research.base.errors import UserError
from research.compress import methods, rounding
from research.compress.methods import METHODS, Step
from research.configs import logistic_digits
from tests.compress.conftest import config


def apply(compression, text, network=None):
    """The network after a method."""
    step = Step.of(text)
    return step.method.apply(network or compression.original, step.value, compression._context)


def outputs(compression, network):
    return compression.calibration().outputs(network, network.variables, network.program())


def with_parameters(network, change):
    params = {path: np.array(x) for path, x in flatten_dict(network.variables["params"]).items()}
    change(params)
    return network.but(variables={"params": unflatten_dict(params)})


@pytest.mark.extended
def test_units_without_effect_are_the_ones_removed(compression):
    rng = np.random.default_rng(0)
    removed = [np.sort(rng.permutation(64)[:32]) for _ in range(3)]

    def silence(params):
        for layer, units in enumerate(removed):
            params["encoder", f"layer_{layer}", "mlp_out", "kernel"][units] = 0

    network = with_parameters(compression.original, silence)
    pruned = apply(compression, "ffn=0.5", network)
    assert pruned.config.model.mlp_size == 32
    assert pruned.variables["params"]["encoder"]["layer_1"]["mlp_in"]["kernel"].shape == (32, 32)
    # The order of sums differs; outputs are up to 3.
    np.testing.assert_allclose(outputs(compression, pruned), outputs(compression, network), atol=2e-5)
    assert network.parameters - pruned.parameters == 3 * 32 * (2 * 32 + 1)


@pytest.mark.extended
def test_heads_without_effect_are_the_ones_removed(compression):
    def silence(params):
        for layer, head in enumerate((0, 2, 3)):
            params["encoder", f"layer_{layer}", "attention", "output", "kernel"][8 * head : 8 * head + 8] = 0

    network = with_parameters(compression.original, silence)
    pruned = apply(compression, "heads=0.75", network)
    assert (pruned.config.model.num_heads, pruned.config.model.head_size) == (3, 8)
    np.testing.assert_allclose(outputs(compression, pruned), outputs(compression, network), atol=2e-5)
    again = apply(compression, "heads=0.34", pruned)
    assert (again.config.model.num_heads, again.config.model.head_size) == (1, 8)
    assert outputs(compression, again).shape == (512, 2)


@pytest.mark.extended
def test_importance_is_the_squared_change_of_the_loss(compression):
    """Against finite differences: a unit's weights are scaled by 1 − ε."""
    network, calibration = compression.original, compression.calibration()
    found = methods._importance(network, calibration, "mlp_out", 64)
    task, run, epsilon = calibration.task, network.program(), 0.2
    for unit in np.argsort(found["layer_2"])[[-1, -5]]:

        def loss(factor, batch, unit=unit):
            changed = with_parameters(
                network,
                lambda params: params["encoder", "layer_2", "mlp_out", "kernel"].__setitem__(
                    unit, factor * params["encoder", "layer_2", "mlp_out", "kernel"][unit]
                ),
            )
            mean = task.scores(run(changed.variables, batch), batch)["loss"]
            return float(mean.total / mean.weight)

        expected = sum(
            ((loss(1 + epsilon, batch) - loss(1 - epsilon, batch)) / (2 * epsilon)) ** 2
            for batch in calibration.batches
        )
        # A difference of two losses has a rounding error of 1e-7, of about 2e-5; the third order is as small.
        assert found["layer_2"][unit] == pytest.approx(expected, rel=0.05)


@pytest.mark.extended
def test_layers_are_evenly_spaced(compression):
    old = compression.original.variables["params"]["encoder"]
    made = apply(compression, "layers=2")
    new = made.variables["params"]["encoder"]
    assert made.config.model.num_layers == 2
    for name, layer in (("layer_0", "layer_0"), ("layer_1", "layer_2")):
        jax.tree.map(np.testing.assert_array_equal, new[name], old[layer])
    assert "layer_2" not in new
    assert compression.original.config.model.num_layers == 3


@pytest.mark.extended
def test_vocabulary_of_the_corpus_changes_nothing_on_it(compression):
    made = apply(compression, "vocab")
    text = json.loads(made.assets["tokenizer.json"])
    kept = text["model"]["vocab"]
    assert sorted(kept.values()) == list(range(len(kept)))
    assert made.config.model.vocab_size == len(kept) < compression.original.config.model.vocab_size
    expected = outputs(compression, compression.original)
    np.testing.assert_array_equal(outputs(compression, made), expected)
    for token in text["added_tokens"]:
        assert kept[token["content"]] == token["id"]


@pytest.mark.extended
def test_layers_that_hurt_stay_in_float32(compression):
    """An outlier makes the rounding of a layer's inputs too coarse."""

    def spoil(params):
        params["encoder", "layer_2", "mlp_norm", "bias"][5] = 1e3
        params["pooler", "kernel"][5] = 0

    network = with_parameters(compression.original, spoil)
    made = apply(compression, "int8", network)
    kernels = {path: x.dtype for path, x in flatten_dict(made.variables["params"]).items() if path[-1] == "kernel"}
    assert kernels["pooler", "kernel"] == jnp.float32
    assert sum(dtype == jnp.int8 for dtype in kernels.values()) >= len(kernels) // 2
    expected, found = outputs(compression, network), outputs(compression, made)
    assert np.mean(expected.argmax(-1) == found.argmax(-1)) >= rounding._AGREEMENT


@pytest.mark.extended
@pytest.mark.parametrize("name", ["int8", "int8_weights", "bfloat16"])
def test_other_numbers_take_less_memory(compression, name):
    made = apply(compression, name)
    before, after = compression.original, made
    assert after.bytes < before.bytes * (0.6 if name == "bfloat16" else 0.45)
    assert np.mean(outputs(compression, before).argmax(-1) == outputs(compression, after).argmax(-1)) > 0.98
    assert after.config.dtype == ("bfloat16" if name == "bfloat16" else "float32")


@pytest.mark.extended
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int9", "^method 'int9' is unknown; did you mean 'int8'"),
        ("layers", "^--method=layers: layers needs the number of layers to keep: layers=VALUE$"),
        ("int8=3", "^--method=int8=3: int8 takes no value$"),
        ("ffn=half", "^--method=ffn=half: 'half' is not a number$"),
        ("layers=3", "^layers=3: the encoder has 3 layers; keep 1 to 2$"),
        ("layers=1.5", "^layers=1.5: "),
        ("ffn=1", "^ffn=1 is not a fraction to keep"),
        ("heads=-1", "^heads=-1 is not a fraction to keep"),
        ("prune=0.5", "^prune removes weights while the network trains; --epochs must be above 0$"),
        ("distill", "^distill trains the network of another config: give --student=CONFIG"),
    ],
)
def test_invalid_methods_are_one_line(compression, text, message):
    with pytest.raises(UserError, match=message):
        apply(compression, text)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "it must be smaller$"),
        ({"other": True}, "^the student can't read the run's inputs: "),
    ],
)
def test_invalid_students_are_one_line(compression, change, message):
    import dataclasses

    student = logistic_digits.get_config() if change.get("other") else config()
    context = dataclasses.replace(compression._context, student=student, trains=True)
    with pytest.raises(UserError, match=message):
        METHODS["distill"].apply(compression.original, None, context)
