"""A stack of equal layers: one after another or compiled once, with activations saved or computed again."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec

from research.models.layers import MeshRules

# What `remat` saves of a layer besides its input: nothing, or the products with its kernels, so that the backward pass
# computes only the attention and the elementwise operations again.
REMAT_POLICIES: dict[str, Any] = {
    "nothing": None,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

# The rules of a stack's products and of embeddings (`research.devices.rules`). Over `tensor`, the first products of
# attention and of the feed-forward layer are split by columns and their second ones by rows, so that a layer needs two
# sums over the devices (Shoeybi et al. 2019, section 3). `fsdp` splits the other axis. The vocabulary's size is often
# odd, so embeddings are split along D.
LAYER_RULES: MeshRules = (
    ("(query|key|value|mlp_in|mlp_gate)/kernel", ("fsdp", "tensor")),
    ("(query|key|value|mlp_in|mlp_gate)/bias", ("tensor",)),
    ("(output|mlp_out)/kernel", ("tensor", "fsdp")),
    ("embedding/embedding", (None, "fsdp")),
)


def split_rows(x: jax.Array) -> jax.Array:
    """Splits the rows of hidden states [B, …] over the devices, where the program is compiled for an abstract mesh.

    Without this XLA may split the features instead, as the parameters are, and then gather activations.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(mesh.axis_types) != {AxisType.Auto}:  # in a `jax.shard_map` the rows are split already
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp")))


def run_layers(
    parent: Any, layers: Sequence[nn.Module], call: Callable[[Any, jax.Array], jax.Array], x: jax.Array, *, train: bool
) -> jax.Array:
    """Applies equal layers, submodules of `parent`, in order: hidden states [B, L, D] -> [B, L, D].

    Args:
      parent: has the attributes
        remat: whether the backward pass computes each layer again instead of saving its activations (Chen et al. 2016);
        remat_policy: what is saved nevertheless, a name in `REMAT_POLICIES`;
        scan: whether the layers are compiled once, as the body of a loop. Compilation no longer grows with depth, but
          the layers' parameters are copied into one array for each step. Dropout draws other numbers.
      call: applies a layer.

    Raises ValueError for an unknown policy.
    """
    if parent.remat_policy not in REMAT_POLICIES:
        raise ValueError(f"model.remat_policy is {parent.remat_policy!r}; known: {', '.join(REMAT_POLICIES)}")
    policy = REMAT_POLICIES[parent.remat_policy]
    x = split_rows(x)
    if parent.scan and not parent.is_initializing():
        return _scanned(parent, layers, call, x, policy, train=train)
    step = nn.remat(call, policy=policy) if parent.remat else call
    for layer in layers:
        x = split_rows(step(layer, x))
    return x


def _scanned(
    parent: Any, layers: Sequence[nn.Module], call: Callable[..., jax.Array], x: jax.Array, policy: Any, *, train: bool
) -> jax.Array:
    params = parent.variables["params"]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[layer.name] for layer in layers))
    keys = None
    if train and parent.has_rng("dropout"):
        keys = jax.random.split(parent.make_rng("dropout"), len(layers))
    apply = nn.apply(call, layers[0].clone(parent=None, name=None))

    def step(x: jax.Array, own: Any) -> tuple[jax.Array, None]:
        params, key = own
        rngs = None if key is None else {"dropout": key}
        return split_rows(apply({"params": params}, x, rngs=rngs)), None

    if parent.remat:
        step = jax.checkpoint(step, prevent_cse=False, policy=policy)
    return jax.lax.scan(step, x, (stacked, keys))[0]
