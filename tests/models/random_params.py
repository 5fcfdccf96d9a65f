"""Random parameters for comparing a module with a formula."""

import jax
import jax.numpy as jnp
import numpy as np


def random_params(module, batch):
    """Parameters of the module for such a batch, all of them random.

    Biases and LayerNorms are initialized to 0 and 1: with other values, swapped ones are seen. Drawn with numpy, as XLA
    takes long to compile the draws of so many arrays.
    """
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), batch, train=False))["params"]
    rng = np.random.default_rng(1)

    def draw(path, x):
        center, spread = float(path[-1].key == "scale"), 0.1 if x.ndim == 1 else 0.28
        return jnp.asarray(center + spread * rng.standard_normal(x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
