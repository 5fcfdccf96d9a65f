import jax
import numpy as np
import pytest

from research.configs import cnn_mnist, mlp_mnist
from research.devices.platform import x64
from research.training.experiment import prepare
from tests import tiny

FAMILIES = {
    "logistic": tiny.logistic,
    "mlp": lambda: mlp_mnist.get_config("embedded"),
    "cnn": lambda: cnn_mnist.get_config("embedded"),
    "resnet": tiny.resnet,
    "bert": tiny.bert,
    "bert_mlm": tiny.mlm,
}


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


@pytest.mark.extended
@pytest.mark.parametrize("name", FAMILIES)
def test_float64_step_computes_nothing_in_float32(name, monkeypatch):
    """Except for weights, one per label, and scalars (metrics and the learning rate)."""
    tiny.few_sentences(monkeypatch)
    tiny.few_documents(monkeypatch)
    config = FAMILIES[name]()
    config.dtype = "float64"
    with x64("float64"):
        experiment = prepare(config)
        (batch,) = tiny.batches(experiment, 1)
        traced = experiment.train_step.trace(experiment.state, batch)
    narrow = [
        f"{equation.primitive.name} {out.aval.shape}"
        for equation in _equations(traced.jaxpr)
        for out in equation.outvars
        if getattr(out.aval, "dtype", None) == np.float32
        and out.aval.size > max(batch["weight"].size, batch["labels"].size)
    ]
    assert not narrow
