"""The train state: five parts, arrays only. Only the model and the optimizer know what they mean."""

import dataclasses
import hashlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.experimental import multihost_utils

from research.base.leaves import path_name
from research.core.lora import OFF, Lora


@flax.struct.dataclass
class TrainState:
    """step: int32 scalar, updates done so far; params: the parameters, float32 or float64;
    model_state: other collections (batch statistics), possibly empty; opt_state: the optimizer's;
    average: weighted sums of params and model_state, which `averaged` converts to means; empty without an average."""

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    average: Any


def init_state(
    module: nn.Module,
    tx: optax.GradientTransformation,
    batch: Any,
    seed: int,
    *,
    average: bool = False,
    dtype: Any = jnp.float32,
    lora: Lora = OFF,
) -> TrainState:
    """The state before the first step. Only the shapes of `batch` matter, not its values.

    `average`: whether to keep an average of the parameters. `dtype`: the dtype of the parameters. `lora`: the optimizer
    has state for the parameters that it trains.
    """
    variables = dict(module.init({"params": jax.random.key(seed)}, batch, train=False))
    params = jax.tree.map(lambda x: x.astype(dtype), variables.pop("params"))
    params = lora.adapted(params, module, batch, seed)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=variables,
        opt_state=tx.init(lora.split(params)[0]),
        average=jax.tree.map(jnp.zeros_like, {"params": params, "model_state": variables}) if average else {},
    )


def averaged(state: TrainState, decay: float) -> TrainState:
    """The state with params and model_state replaced by their averages over the steps so far, at least one.

    Values of i steps ago have weights proportional to decay^i, which sum to one (Kingma & Ba 2015, section 7.2).
    """
    return dataclasses.replace(state, **unbiased(state.average, decay, state.step))


def unbiased(average: Any, decay: float, step: jax.Array | int) -> Any:
    """Converts the sums that a state's `average` holds after `step` steps to means."""
    rest = jnp.asarray(1 - decay, jnp.result_type(float))
    weight = -jnp.expm1(step * jnp.log1p(-rest))  # 1 − decay^step, to full precision
    return jax.tree.map(lambda x: x / weight.astype(x.dtype), average)


def param_count(params: Any) -> int:
    """The number of scalars in `params`."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def params_sha256(params: Any) -> str:
    """A hash of all parameters (path names in order, dtype, shape, bytes): equal for equal runs.

    Every process must call it: parameters that are split over processes are gathered.
    """
    digest = hashlib.sha256()
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name in sorted(leaves):
        leaf = leaves[name]
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
