# mypy: disable-error-code="arg-type, misc"
"""The masked language model against transformers' BertForMaskedLM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.tasks import MaskedLM
from research.models.mlm import BertMaskedLM
from tests.parity.bert_parity_test import _params as classifier_params

pytestmark = pytest.mark.parity


def _params(torch_model):
    """Converts the weights of BertForMaskedLM to this project's parameters."""
    import torch
    import transformers

    classifier = transformers.BertForSequenceClassification(torch_model.config)
    classifier.load_state_dict(torch_model.state_dict(), strict=False)  # the encoder
    with torch.no_grad():
        head = {name: x.numpy() for name, x in torch_model.cls.predictions.state_dict().items()}
    return {
        "encoder": classifier_params(classifier)["encoder"],
        "transform": {"kernel": head["transform.dense.weight"].T, "bias": head["transform.dense.bias"]},
        "transform_norm": {"scale": head["transform.LayerNorm.weight"], "bias": head["transform.LayerNorm.bias"]},
        "output_bias": head["bias"],
    }


@pytest.mark.parametrize("seed", range(3))
def test_logits_loss_and_gradients(seed):
    """The tolerances follow measurements over 20 seeds."""
    import torch
    import transformers

    rng = np.random.default_rng(seed)
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=16,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    theirs = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        theirs.cls.predictions.bias.copy_(torch.randn(60))  # it is initialized to 0, which would hide an error
    ours = BertMaskedLM(
        vocab_size=60, hidden_size=16, num_heads=4, mlp_size=40, activation="gelu", position_offset=0,
        num_layers=2, max_positions=16, type_vocab_size=2,
        dropout=0.0, attention_dropout=0.0, layer_norm_eps=config.layer_norm_eps, initializer_range=0.3,
    )  # fmt: skip
    params = jax.tree.map(jnp.asarray, _params(theirs))

    lengths = rng.integers(4, 17, 5)
    real = np.arange(16)[None, :] < lengths[:, None]
    tokens = np.where(real, rng.integers(1, 60, real.shape), 0)
    types = np.where(real, rng.integers(0, 2, real.shape), 0)
    places, labels = np.zeros((5, 3), np.int32), np.full((5, 3), -1, np.int32)
    their_labels = np.full((5, 16), -100)
    for row in range(5):
        count = int(rng.integers(1, 4))
        places[row, :count] = rng.choice(lengths[row], count, replace=False)
        labels[row, :count] = rng.integers(0, 60, count)
        their_labels[row, places[row, :count]] = labels[row, :count]
    batch = {
        "tokens": tokens,
        "type_ids": types,
        "segments": real.astype(np.int32),
        "positions": np.where(real, np.arange(16)[None, :], 0),
        "masked_positions": places,
        "labels": labels,
        "weight": np.ones((5, 1), np.float32),
    }
    batch = {name: jnp.asarray(array) for name, array in batch.items()}

    def loss(params):
        logits = ours.apply({"params": params}, batch, train=False)
        mean = MaskedLM().scores(logits, batch)["loss"]
        return mean.total / mean.weight, logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    out = theirs(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor(real.astype(np.int64)),
        token_type_ids=torch.tensor(types),
        labels=torch.tensor(their_labels),
    )
    out.loss.backward()
    expected = np.take_along_axis(out.logits.detach().numpy(), places[:, :, None], axis=1)
    np.testing.assert_allclose(np.asarray(logits)[labels >= 0], expected[labels >= 0], atol=1e-5)
    assert float(value) == pytest.approx(out.loss.item(), rel=1e-6)
    for parameter in theirs.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    theirs_grads = _params(theirs)
    for path, ours_leaf in jax.tree_util.tree_leaves_with_path(grads):
        theirs_leaf = theirs_grads
        for key in path:
            theirs_leaf = theirs_leaf[key.key]
        # The gradient of the key bias is zero up to rounding, as softmax is invariant to constants.
        np.testing.assert_allclose(ours_leaf, theirs_leaf, atol=1e-4 * max(np.abs(theirs_leaf).max(), 1e-3))
