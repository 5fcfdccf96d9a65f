# mypy: disable-error-code="arg-type, call-overload"
"""The encoder and the optimizer against transformers and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.configs.defaults import defaults
from research.core.optim import optimizer
from research.models.bert import BertClassifier

pytestmark = pytest.mark.parity


def _params(torch_model):
    """Converts the weights of transformers' BertForSequenceClassification to this project's parameters."""
    weights = {name: tensor.detach().numpy() for name, tensor in torch_model.state_dict().items()}

    def dense(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def norm(name):
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    def embedding(name):
        return {"embedding": weights[f"bert.embeddings.{name}_embeddings.weight"]}

    def layer(i):
        p = f"bert.encoder.layer.{i}"

        return {
            "attention": {
                **{name: dense(f"{p}.attention.self.{name}") for name in ("query", "key", "value")},
                "output": dense(f"{p}.attention.output.dense"),
            },
            "attention_norm": norm(f"{p}.attention.output.LayerNorm"),
            "mlp_in": dense(f"{p}.intermediate.dense"),
            "mlp_out": dense(f"{p}.output.dense"),
            "mlp_norm": norm(f"{p}.output.LayerNorm"),
        }

    encoder = {
        "token_embedding": embedding("word"),
        "position_embedding": embedding("position"),
        "type_embedding": embedding("token_type"),
        "embedding_norm": norm("bert.embeddings.LayerNorm"),
        **{f"layer_{i}": layer(i) for i in range(torch_model.config.num_hidden_layers)},
    }
    return {"encoder": encoder, "pooler": dense("bert.pooler.dense"), "classifier": dense("classifier")}


@pytest.mark.parametrize("seed", range(3))
def test_logits_and_gradients(seed):
    """Measured over 20 seeds: logits differ by at most 1e-6, gradients by 2e-6 relative."""
    import torch
    import transformers

    rng = np.random.default_rng(seed)
    heads = int(rng.choice([1, 2, 4]))
    sizes = {"hidden_size": 8 * heads, "num_heads": heads, "mlp_size": 40, "num_layers": 2}
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=heads,
        intermediate_size=sizes["mlp_size"],
        max_position_embeddings=16,
        type_vocab_size=2,
        initializer_range=0.3,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    theirs = transformers.BertForSequenceClassification(config).eval()
    ours = BertClassifier(
        num_classes=3, vocab_size=60, max_positions=16, type_vocab_size=2, dropout=0.0, attention_dropout=0.0,
        layer_norm_eps=config.layer_norm_eps, initializer_range=0.3, activation="gelu", position_offset=0,
        pooler="tanh", pooler_dropout=0.0, classifier_dropout=None, **sizes,
    )  # fmt: skip
    params = jax.tree.map(jnp.asarray, _params(theirs))

    lengths = rng.integers(1, 17, 5)
    real = np.arange(16)[None, :] < lengths[:, None]
    tokens = np.where(real, rng.integers(1, 60, real.shape), 0)
    types = np.where(real, rng.integers(0, 2, real.shape), 0)
    labels = rng.integers(0, 3, 5)
    batch = {
        "tokens": jnp.asarray(tokens),
        "type_ids": jnp.asarray(types),
        "segments": jnp.asarray(real, jnp.int32),
        "positions": jnp.asarray(np.where(real, np.arange(16)[None, :], 0)),
        "starts": jnp.zeros((5, 1), jnp.int32),
    }

    def loss(params):
        logits = ours.apply({"params": params}, batch, train=False)[:, 0]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels))), logits

    grads, logits = jax.grad(loss, has_aux=True)(params)
    out = theirs(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor(real.astype(np.int64)),
        token_type_ids=torch.tensor(types),
        labels=torch.tensor(labels),
    )
    out.loss.backward()
    np.testing.assert_allclose(logits, out.logits.detach().numpy(), atol=1e-5)
    for parameter in theirs.parameters():
        parameter.data = parameter.grad
    expected = _params(theirs)
    for path, ours_leaf in jax.tree_util.tree_leaves_with_path(grads):
        theirs_leaf = expected
        for key in path:
            theirs_leaf = theirs_leaf[key.key]
        # The gradient of the key bias is zero up to rounding, as softmax is invariant to constants.
        np.testing.assert_allclose(ours_leaf, theirs_leaf, atol=1e-4 * max(np.abs(theirs_leaf).max(), 1e-3))


def test_adamw_with_clipping_and_schedule_matches_torch():
    """Ten steps of AdamW with a clipped gradient, linear warm-up and decay; differences of at most 1e-6."""
    import torch
    import transformers

    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal((3, 4)), 3 * rng.standard_normal((10, 3, 4))
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    theirs = torch.optim.AdamW([weight], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    schedule = transformers.get_linear_schedule_with_warmup(theirs, num_warmup_steps=2, num_training_steps=10)
    settings = {"learning_rate": 0.01, "schedule": "linear", "warmup_fraction": 0.2, "clip_norm": 1.0}
    section = {**defaults().optimizer.to_dict(), **settings}
    tx, _ = optimizer(section, weight_decay=0.1, total_steps=10)
    params = {"kernel": jnp.asarray(start, jnp.float32)}
    state = tx.init(params)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        theirs.step()
        schedule.step()
        updates, state = tx.update({"kernel": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"], weight.detach().numpy(), atol=1e-6)
