"""Optimizers and schedules: config -> optax. Weight decay always comes before the learning rate is applied."""

import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from research.build import lookup
from research.errors import UserError
from research.state import path_name


def learning_rate_schedule(
    name: str, *, learning_rate: float, warmup_fraction: float, end_fraction: float, total_steps: int
) -> optax.Schedule:
    """The learning rate as a function of the step (0-based).

    Warm-up is linear from 0 over `warmup_fraction` of the steps; then `constant`, or `linear` or `cosine` decay to
    `end_fraction` of the peak at `total_steps`.
    """
    warmup = round(warmup_fraction * total_steps)
    end = learning_rate * end_fraction
    rest = max(1, total_steps - warmup)
    after = lookup(
        {
            "constant": lambda: optax.constant_schedule(learning_rate),
            "linear": lambda: optax.linear_schedule(learning_rate, end, rest),
            "cosine": lambda: optax.cosine_decay_schedule(learning_rate, rest, alpha=end_fraction),
        },
        name,
        "optimizer.schedule",
    )()
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), after], [warmup])


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
    b1: float,
    b2: float,
    eps: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay_exclude: str,
    clip_norm: float | None,
    total_steps: int,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The config's `optimizer` section -> (transformation, learning-rate schedule).

    Args:
      weight_decay: added as weight_decay × parameter to the update, before the learning rate.
      decay_exclude: a regular expression; parameters whose path it finds are not decayed.
      clip_norm: the gradient's largest global L2 norm; None does not clip.
      b1, b2, eps: AdamW and LAMB. momentum, nesterov: SGD.
    """
    parts = lookup(OPTIMIZERS, name, "optimizer.name")
    if clip_norm is not None and clip_norm <= 0:
        raise UserError(f"optimizer.clip_norm is {clip_norm}; it must be above 0")
    learning_rates = learning_rate_schedule(
        schedule,
        learning_rate=learning_rate,
        warmup_fraction=warmup_fraction,
        end_fraction=end_fraction,
        total_steps=total_steps,
    )
    try:
        re.compile(decay_exclude)
    except re.error as error:
        raise UserError(f"optimizer.decay_exclude={decay_exclude!r} is no regular expression: {error}") from error
    decay = optax.identity()
    if weight_decay:
        decay = optax.add_decayed_weights(weight_decay, mask=lambda params: decay_mask(params, decay_exclude))
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    chain = parts(decay, b1=b1, b2=b2, eps=eps, momentum=momentum, nesterov=nesterov)
    return optax.chain(clip, *chain, optax.scale_by_learning_rate(learning_rates)), learning_rates


def decay_mask(params: Any, exclude: str) -> Any:
    """True for every parameter whose path `exclude` does not find; an empty `exclude` decays all."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not (exclude and re.search(exclude, path_name(path))), params
    )
