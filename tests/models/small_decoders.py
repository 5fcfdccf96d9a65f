# mypy: disable-error-code="arg-type, call-overload, operator"
"""Small decoders in the styles of GPT-2 and Llama, with random parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.decoder import Decoder
from tests.models.random_params import random_params

GPT2: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_size": 4,
    "mlp_size": 24,
    "max_positions": 16,
    "position_encoding": "learned",
    "rope_theta": 10_000.0,
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "activation": "gelu",
    "use_bias": True,
    "tie_embeddings": True,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer_range": 0.02,
    "scale_residual_init": True,
}
LLAMA: dict[str, Any] = {
    **GPT2,
    "num_kv_heads": 2,
    "head_size": 6,
    "position_encoding": "rotary",
    "rope_theta": 100.0,
    "norm": "rmsnorm",
    "activation": "swiglu",
    "use_bias": False,
    "tie_embeddings": False,
}
STYLES = {"gpt2": GPT2, "llama": LLAMA}
both_styles = pytest.mark.parametrize("style", STYLES)


def text_batch(rng, lengths, width=16):
    """One text per row, with its length."""
    real = np.arange(width)[None, :] < np.asarray(lengths)[:, None]
    batch = {
        "tokens": np.where(real, rng.integers(0, 50, real.shape), 0),
        "segments": real,
        "positions": np.where(real, np.arange(width)[None, :], 0),
    }
    return {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}


@functools.cache
def random_params_of(style):
    params = random_params(Decoder(**STYLES[style]), text_batch(np.random.default_rng(0), [3]))
    return jax.tree.map(lambda x: 0.8 * x, params)  # the larger they are, the more rounding errors grow


@functools.partial(jax.jit, static_argnames="style")
def logits_of(style, params, batch):
    return Decoder(**STYLES[style]).apply({"params": params}, batch, train=False)["logits"]
