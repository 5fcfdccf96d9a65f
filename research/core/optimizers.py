"""The optimizers by name: transformations of optax from gradients to steps, and where weight decay enters them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from research.base.errors import UserError
from research.base.leaves import path_name


def adamw(*, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, Algorithm 2)."""
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def lamb(*, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """LAMB (You et al. 2020, Algorithm 2); the trust ratio follows the weight decay, and includes it."""
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def adam(*, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015, Algorithm 1). Weight decay is an L2 penalty, as in torch.optim.Adam."""
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def sgd(*, momentum: float, nesterov: bool) -> optax.GradientTransformation:
    """SGD with momentum as in torch.optim.SGD; weight decay is added to the gradient, so it enters the momentum too."""
    return optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity()


def rmsprop(*, b2: float, eps: float, momentum: float, nesterov: bool) -> optax.GradientTransformation:
    """RMSprop (Tieleman & Hinton 2012, lecture 6.5), with momentum and an L2 penalty as in torch.optim.RMSprop.

    `b2` is the decay of the mean square, 0.9 in the lecture and 0.99 in torch. The mean starts at zero without bias
    correction, so the first update is 1 / √(1 − b2) times the learning rate: 3 times at 0.9, 32 times at 0.999.
    """
    return optax.chain(
        optax.scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False), sgd(momentum=momentum, nesterov=nesterov)
    )


def lion(*, b1: float, b2: float) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023, Algorithm 2).

    The paper uses b2 = 0.99, a learning rate 3 to 10 times smaller than AdamW's, and a weight decay larger by the same
    factor (section 5).
    """
    return optax.scale_by_lion(b1=b1, b2=b2)


def adafactor() -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018, Algorithms 4 and 5), without momentum and with the constants of Algorithm 6.

    The learning rate is relative to the root mean square of each parameter (section 8), at least 1e-3; the paper's is
    at most 0.01. Second moments are factored where two dimensions are at least 128. Row and column statistics have
    fewer dimensions than their parameter, so `mesh.rules` needs a rule for them before the parameter's, such as
    ("/v(_row|_col)?/", ()).
    """
    return optax.chain(
        optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms(min_scale=1e-3)
    )


def muon(*, b1: float, b2: float, eps: float, momentum: float, nesterov: bool) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the kernels that `hidden_kernels` finds, and AdamW for all other parameters.

    Updates are scaled to the root mean square of AdamW's, so that one learning rate and one weight decay, those of
    AdamW, suit both (Liu et al. 2025, section 2.2). `momentum` and `nesterov` are Muon's, 0.95 and True in the papers;
    `b1` and `b2` are AdamW's; `eps` is for both. Raises UserError at `init` if there is no such kernel.
    """

    def matrices(updates: Any) -> Any:
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), updates)

    def as_adamw(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda u: 0.2 * math.sqrt(max(u.shape)) * u, updates)

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda hidden: "muon" if hidden else "adamw", hidden_kernels(params))

    orthogonal = optax.contrib.scale_by_muon(
        beta=momentum, eps=eps, nesterov=nesterov, weight_dimension_numbers=matrices
    )
    parted = optax.partition(
        {"muon": optax.chain(orthogonal, optax.stateless(as_adamw)), "adamw": adamw(b1=b1, b2=b2, eps=eps)}, labels
    )

    def init(params: Any) -> Any:
        if not any(jax.tree.leaves(hidden_kernels(params))):
            raise UserError(
                "optimizer 'muon' needs a two-dimensional kernel below the output layer, and this run trains none; "
                "'adamw' takes any parameters"
            )
        return parted.init(params)

    return optax.GradientTransformation(init, parted.update)


def second_moment(*, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's division by the bias-corrected root mean square of the gradients, without momentum."""
    return optax.scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False, bias_correction=True)


def schedule_free(
    tx: optax.GradientTransformation, learning_rates: optax.Schedule, *, b1: float
) -> optax.GradientTransformation:
    """Schedule-free learning (Defazio et al. 2024, Algorithm 1): parameters are averages of the iterates of `tx`.

    In the paper's names the parameters are x, the iterates z, and gradients are taken at y = (1 − b1) z + b1 x, which
    is `schedule_free_point`. The state holds z − x, of frozen parameters too, not z: so the parameters can be replaced
    before the first step.
    """
    inner = optax.contrib.schedule_free(tx, learning_rates, b1=b1)

    def init(params: Any) -> Any:
        state = inner.init(params)
        return state._replace(z=jax.tree.map(jnp.zeros_like, state.z))

    def update(grads: Any, state: Any, params: Any) -> Any:
        iterates = jax.tree.map(jnp.add, params, state.z)
        point = schedule_free_point(params, state)
        updates, state = inner.update(grads, state._replace(z=iterates), point)
        new = optax.contrib.schedule_free_eval_params(state, optax.apply_updates(point, updates))
        state = state._replace(z=jax.tree.map(jnp.subtract, state.z, new))
        return jax.tree.map(jnp.subtract, new, params), state

    return optax.GradientTransformation(init, update)


def schedule_free_point(params: Any, state: Any) -> Any:
    """The point y at which `schedule_free` takes the gradient."""
    return jax.tree.map(lambda x, ahead: x + (1 - state.b1) * ahead, params, state.z)


def hidden_kernels(params: Any) -> Any:
    """True for the parameters that Muon updates: two-dimensional kernels, except those of output layers.

    Output layers are called `classifier`, `head` or `linear`, or are top-level parameters. Embeddings, convolutions,
    norms and biases are not two-dimensional kernels.
    """

    def hidden(path: Any, x: Any) -> bool:
        *above, name = path_name(path).split("/")
        return x.ndim == 2 and name == "kernel" and bool(above) and above[-1] not in ("classifier", "head", "linear")

    return jax.tree_util.tree_map_with_path(hidden, params)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An entry of OPTIMIZERS.

    Attributes:
      direction: makes the transformation from gradients to steps; its parameters are keys of the config's `optimizer`
        section.
      decoupled_decay: whether weight decay is added to the step, separate from the loss; otherwise it is added to the
        gradient, as for an L2 penalty, and the penalized loss is minimized.
      after_decay: the transformation between a decoupled decay and the learning rate.
      around: (the complete transformation, the schedule, keys of the section) -> the transformation to use instead.
      gradient_point: (parameters, optimizer state) -> the point at which the gradient is taken; None: the parameters.
    """

    direction: Callable[..., optax.GradientTransformation]
    decoupled_decay: bool
    after_decay: Callable[[], optax.GradientTransformation] | None = None
    around: Callable[..., optax.GradientTransformation] | None = None
    gradient_point: Callable[[Any, Any], Any] | None = None


# No optimizer's initial state depends on the parameters' values, which may be replaced before the first step.
OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": Optimizer(adamw, decoupled_decay=True),
    "lamb": Optimizer(lamb, decoupled_decay=True, after_decay=optax.scale_by_trust_ratio),
    "adam": Optimizer(adam, decoupled_decay=False),
    "sgd": Optimizer(sgd, decoupled_decay=False),
    "rmsprop": Optimizer(rmsprop, decoupled_decay=False),
    "lion": Optimizer(lion, decoupled_decay=True),
    "adafactor": Optimizer(adafactor, decoupled_decay=True),
    "muon": Optimizer(muon, decoupled_decay=True),
    "schedule_free_adamw": Optimizer(
        second_moment, decoupled_decay=True, around=schedule_free, gradient_point=schedule_free_point
    ),
}


# Optimizers whose weight decay is a penalty on the loss, so that they minimise the penalized loss.
PENALIZED = tuple(name for name, entry in OPTIMIZERS.items() if not entry.decoupled_decay)
