"""Optimizers and schedules: config -> optax. Weight decay always comes before the learning rate is applied."""

import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from research.base.errors import UserError
from research.base.leaves import path_name
from research.base.registry import lookup, regex


def learning_rate_schedule(
    name: str,
    *,
    learning_rate: float,
    warmup_fraction: float,
    end_fraction: float,
    drops: tuple[float, ...],
    total_steps: int,
) -> optax.Schedule:
    """The learning rate as a function of the step (0-based).

    Warm-up is linear from 0 over `warmup_fraction` of the steps; then `constant`, or `linear` or `cosine` decay to
    `end_fraction` of the peak at `total_steps`, or `step`: a tenth of what it was at each of `drops`, fractions of all
    steps.
    """
    if name == "step":
        _check_drops(drops, warmup_fraction)
    warmup = round(warmup_fraction * total_steps)
    end = learning_rate * end_fraction
    rest = max(1, total_steps - warmup)
    after = lookup(
        {
            "constant": lambda: optax.constant_schedule(learning_rate),
            "linear": lambda: optax.linear_schedule(learning_rate, end, rest),
            "cosine": lambda: optax.cosine_decay_schedule(learning_rate, rest, alpha=end_fraction),
            "step": lambda: optax.join_schedules(
                [optax.constant_schedule(learning_rate * 0.1**i) for i in range(len(drops) + 1)],
                [round(drop * total_steps) - warmup for drop in drops],
            ),
        },
        name,
        "optimizer.schedule",
    )()
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), after], [warmup])


def _check_drops(drops: tuple[Any, ...], warmup_fraction: float) -> None:
    bounds = (warmup_fraction, *drops, 1)
    if not all(isinstance(drop, (int, float)) for drop in drops) or any(
        low >= high for low, high in itertools.pairwise(bounds)
    ):
        raise UserError(
            f"optimizer.drops is {tuple(drops)}; it must be ascending fractions of the run, between "
            f"optimizer.warmup_fraction, {warmup_fraction}, and 1"
        )


def _adamw(decay: Any, *, b1: float, b2: float, eps: float, **_: Any) -> list[Any]:
    """Loshchilov & Hutter 2019, Algorithm 2."""
    return [optax.scale_by_adam(b1=b1, b2=b2, eps=eps), decay]


def _lamb(decay: Any, *, b1: float, b2: float, eps: float, **_: Any) -> list[Any]:
    """You et al. 2020, Algorithm 2."""
    return [optax.scale_by_adam(b1=b1, b2=b2, eps=eps), decay, optax.scale_by_trust_ratio()]


def _sgd(decay: Any, *, momentum: float, nesterov: bool, **_: Any) -> list[Any]:
    """Momentum as in torch.optim.SGD; the decay is added to the gradient, so it goes through the momentum too."""
    return [decay, optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity()]


OPTIMIZERS: dict[str, Callable[..., list[Any]]] = {"adamw": _adamw, "lamb": _lamb, "sgd": _sgd}


def optimizer(
    name: str,
    *,
    learning_rate: float,
    schedule: str,
    warmup_fraction: float,
    end_fraction: float,
    drops: tuple[float, ...],
    b1: float,
    b2: float,
    eps: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay_exclude: str,
    clip_norm: float | None,
    layer_decay: float,
    freeze: str,
    C: float | None,
    alpha: float | None,
    tolerance: float,
    max_iterations: int,
    factorization: str,
    total_steps: int,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The config's `optimizer` section -> (transformation, learning-rate schedule).

    Args:
      weight_decay: added as weight_decay × parameter to the update, before the learning rate.
      decay_exclude: a regular expression; parameters whose path it finds are not decayed.
      clip_norm: the gradient's largest global L2 norm; None does not clip.
      layer_decay: factor on the learning rate from one layer to the one below; see `by_layer`.
      freeze: a regular expression; parameters whose path it finds stay as they are. Empty: none.
      b1, b2, eps: AdamW and LAMB. momentum, nesterov: SGD.
      C, alpha: not read here, for `weight_decay` (the function) makes a weight decay of them.
      tolerance, max_iterations, factorization: nor are these; they are the solvers'.
    """
    parts = lookup(OPTIMIZERS, name, "optimizer.name")
    if clip_norm is not None and clip_norm <= 0:
        raise UserError(f"optimizer.clip_norm is {clip_norm}; it must be above 0")
    learning_rates = learning_rate_schedule(
        schedule,
        learning_rate=learning_rate,
        warmup_fraction=warmup_fraction,
        end_fraction=end_fraction,
        drops=drops,
        total_steps=total_steps,
    )
    if not 0 < layer_decay <= 1:
        raise UserError(f"optimizer.layer_decay is {layer_decay}; it must be above 0 and at most 1, which is off")
    for key, pattern in (("decay_exclude", decay_exclude), ("freeze", freeze)):
        regex(f"optimizer.{key}", pattern)
    decay = optax.identity()
    if weight_decay:
        decay = optax.add_decayed_weights(weight_decay, mask=lambda params: decay_mask(params, decay_exclude))
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    chain = parts(decay, b1=b1, b2=b2, eps=eps, momentum=momentum, nesterov=nesterov)
    tx = optax.chain(clip, *chain, optax.scale_by_learning_rate(learning_rates))
    if freeze:
        tx = frozen(tx, freeze)
    if layer_decay != 1:
        tx = by_layer(tx, layer_decay)
    return tx, learning_rates


def weight_decay(section: Mapping[str, Any], task: str, weight: float) -> float:
    """The weight decay that `weight_decay`, `C` or `alpha` ask for, beside a mean loss over examples of sum `weight`.

    scikit-learn's LogisticRegression minimises ‖w‖² / 2 + C · Σ loss and its Ridge Σ (y − ŷ)² + alpha · ‖w‖².
    Raises UserError if more than one is given, or one that the task or the optimizer does not take.
    """
    given = {key: section[key] for key in ("weight_decay", "C", "alpha") if section[key] is not None}
    if not given["weight_decay"]:
        del given["weight_decay"]
    if len(given) > 1:
        raise UserError(f"{' and '.join(f'optimizer.{k}={v}' for k, v in given.items())} are given; give one of them")
    for key, tasks in (("C", ("classification", "squared_hinge")), ("alpha", ("regression",))):
        value = section[key]
        if value is None:
            continue
        if task not in tasks:
            other = {"regression": "alpha", "classification": "C", "squared_hinge": "C"}.get(task, "weight_decay")
            raise UserError(f"optimizer.{key} is {value}; task {task!r} does not take it, give optimizer.{other}")
        if section["name"] in ("adamw", "lamb"):
            raise UserError(
                f"optimizer.{key} is {value}; {section['name']!r} decays weights apart from the loss, so give "
                "optimizer.weight_decay, or name another optimizer: lbfgs, sgd"
            )
        if value < 0 or (key == "C" and value == 0):
            raise UserError(f"optimizer.{key} is {value}; it must be " + ("above 0" if key == "C" else "at least 0"))
    if section["C"] is not None:
        product = section["C"] * weight
        decay = 1 / product if product else math.inf
    else:
        decay = section["weight_decay"] if section["alpha"] is None else 2 * section["alpha"] / weight
    if not math.isfinite(decay):
        what = ", ".join(f"optimizer.{key}={value}" for key, value in given.items())
        raise UserError(f"{what} with examples of weight {weight:g} is a weight decay of {decay}; it must be finite")
    return decay


def frozen(tx: optax.GradientTransformation, pattern: str) -> optax.GradientTransformation:
    """`tx` for the parameters whose path `pattern` does not find; the others get no update and have no state.

    Nor do their gradients count in the norm that is clipped. Raises UserError at `init` if it finds none, or all.
    """

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "frozen" if re.search(pattern, path_name(path)) else "trained", params
        )

    parted = optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)

    def init(params: Any) -> Any:
        found = set(jax.tree.leaves(labels(params)))
        if len(found) < 2:
            which = "every parameter" if found == {"frozen"} else "no parameter"
            paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
            some = ", ".join(paths[:: -(-len(paths) // 3)])
            raise UserError(f"optimizer.freeze={pattern!r} finds {which}; some of the {len(paths)} are {some}")
        return parted.init(params)

    return optax.GradientTransformation(init, parted.update)


def by_layer(tx: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Layer-wise learning rates (Howard & Ruder 2018, section 3.2): those of `tx` times a factor for each parameter.

    Of the layers layer_0 to layer_{N−1} of an encoder, layer i has the factor decay^(N − i); the encoder's embeddings,
    below them all, have decay^(N + 1), and the parameters above (pooler, classifier) 1, as in BEiT's published code
    (Bao et al. 2021). Weight decay is part of the update and is scaled with it. Raises UserError at `init` where there
    is no layer_i.
    """

    def init(params: Any) -> Any:
        if not layer_factors(params, decay):
            raise UserError(
                f"optimizer.layer_decay={decay} needs parameters named encoder/layer_0, …, and this model has none; "
                "1.0 is off"
            )
        return tx.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = tx.update(updates, state, params)
        factors = layer_factors(updates, decay)
        return jax.tree_util.tree_map_with_path(lambda path, u: u * factors.get(path_name(path), 1), updates), state

    return optax.GradientTransformation(init, update)


def layer_factors(params: Any, decay: float) -> dict[str, float]:
    """What `by_layer` multiplies the updates of an encoder's parameters by, by path; empty if it has no layers."""
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    layers = {path: int(found[1]) for path in paths if (found := re.search(r"(?:^|/)layer_(\d+)/", path))}
    if not layers:
        return {}
    top = max(layers.values()) + 1
    embeddings = {path: -1 for path in paths if path not in layers and path.startswith("encoder/")}
    return {path: decay ** (top - layer) for path, layer in {**layers, **embeddings}.items()}


def decay_mask(params: Any, exclude: str) -> Any:
    """True for every parameter whose path `exclude` does not find; an empty `exclude` decays all."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not (exclude and re.search(exclude, path_name(path))), params
    )
