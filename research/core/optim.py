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
from research.base.registry import build, config_keys, lookup, regex
from research.core import pruning
from research.core.optimizers import OPTIMIZERS, PENALIZED, Optimizer


def learning_rate_schedule(
    schedule: str,
    *,
    learning_rate: float,
    warmup_fraction: float,
    end_fraction: float,
    drops: tuple[float, ...],
    total_steps: int,
) -> optax.Schedule:
    """The learning rate as a function of the step (0-based).

    Warm-up is linear from 0 over `warmup_fraction` of the steps; then `constant`, or `linear` or `cosine` decay to
    `end_fraction` of the peak at `total_steps`, or `step`: divided by ten at each of `drops`, fractions of all steps.
    """
    if schedule == "step":
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
        schedule,
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


def optimizer(
    section: Mapping[str, Any], *, weight_decay: float, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The config's `optimizer` section -> (transformation, learning-rate schedule).

    Each function takes the keys of the section that its signature names: those of the entry of OPTIMIZERS their own,
    `learning_rate_schedule` and `_complete` those shared by all optimizers. Other keys are not read.

    Args:
      weight_decay: the result of the function of that name, used in place of the section's.

    Raises:
      UserError: the name is unknown, or a value is out of range or missing.
    """
    entry = lookup(OPTIMIZERS, section["name"], "optimizer.name")

    def built(function: Callable[..., Any], **extra: Any) -> Any:
        named = {key: section[key] for key in config_keys(function) if key in section and key not in extra}
        return build({section["name"]: function}, {"name": section["name"], **named}, "optimizer", **extra)

    learning_rates = built(learning_rate_schedule, total_steps=total_steps)
    direction = built(entry.direction)
    tx = built(_complete, entry=entry, direction=direction, learning_rates=learning_rates, weight_decay=weight_decay)
    if entry.around:
        tx = built(entry.around, tx=tx, learning_rates=learning_rates)
    if section.get("sparsity"):
        if not 0 < section["sparsity"] < 1:
            raise UserError(f"optimizer.sparsity is {section['sparsity']}; it must be at least 0 and below 1")
        tx = pruning.gradually(tx, section["sparsity"], total_steps)
    return tx, learning_rates


def _complete(
    *,
    entry: Optimizer,
    direction: optax.GradientTransformation,
    learning_rates: optax.Schedule,
    weight_decay: float,
    decay_exclude: str,
    clip_norm: float | None,
    layer_decay: float,
    freeze: str,
) -> optax.GradientTransformation:
    """Adds what all optimizers share to `direction`.

    Args:
      weight_decay: weight_decay × parameter is added to the step, or to the gradient after clipping.
      decay_exclude: a regular expression; parameters whose path it matches are not decayed.
      clip_norm: the largest global L2 norm of the gradient; None does not clip.
      layer_decay: factor on the learning rate from one layer to the one below; see `by_layer`.
      freeze: a regular expression; parameters whose path it matches are not updated. Empty: none.
    """
    if clip_norm is not None and clip_norm <= 0:
        raise UserError(f"optimizer.clip_norm is {clip_norm}; it must be above 0")
    if not 0 < layer_decay <= 1:
        raise UserError(f"optimizer.layer_decay is {layer_decay}; it must be above 0 and at most 1 (1 disables it)")
    for key, pattern in (("decay_exclude", decay_exclude), ("freeze", freeze)):
        regex(f"optimizer.{key}", pattern)
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    decay = optax.identity()
    if weight_decay:
        decay = optax.add_decayed_weights(weight_decay, mask=lambda params: decay_mask(params, decay_exclude))
    steps = [direction, decay] if entry.decoupled_decay else [decay, direction]
    if entry.after_decay:
        steps.append(entry.after_decay())
    tx = optax.chain(clip, *steps, optax.scale_by_learning_rate(learning_rates))
    if freeze:
        tx = frozen(tx, freeze)
    if layer_decay != 1:
        tx = by_layer(tx, layer_decay)
    return tx


def weight_decay(section: Mapping[str, Any], task: str, penalty: str | None, weight: float) -> float:
    """The weight decay equivalent to `weight_decay`, `C` or `alpha`, with a mean loss over a total `weight`.

    scikit-learn's LogisticRegression minimises ‖w‖² / 2 + C · Σ loss, and its Ridge Σ (y − ŷ)² + alpha · ‖w‖².
    Raises UserError if more than one is given, or one that the task or the optimizer does not support.
    """
    given = {key: section[key] for key in ("weight_decay", "C", "alpha") if section[key] is not None}
    if not given["weight_decay"]:
        del given["weight_decay"]
    if len(given) > 1:
        raise UserError(f"{' and '.join(f'optimizer.{k}={v}' for k, v in given.items())} are given; give one of them")
    for key in ("C", "alpha"):
        value = section[key]
        if value is None:
            continue
        if key != penalty:
            other = penalty or "weight_decay"
            raise UserError(f"optimizer.{key} is {value}; task {task!r} does not support it; set optimizer.{other}")
        if section["name"] in OPTIMIZERS and section["name"] not in PENALIZED:
            raise UserError(
                f"optimizer.{key} is {value}; {section['name']!r} uses decoupled weight decay; set "
                f"optimizer.weight_decay, or name another optimizer: lbfgs, {', '.join(PENALIZED)}"
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
    """`tx` for the parameters whose path `pattern` does not match; the others have neither updates nor state.

    Their gradients do not count towards the norm that is clipped. Raises UserError at `init` if the pattern matches no
    parameter, or all of them.
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
    """Layer-wise learning rates (Howard & Ruder 2018, section 3.2): multiplies the updates of `tx` by layer factors.

    In a network with layers layer_0 to layer_{N−1}, layer i has the factor decay^(N − i); the embeddings below them
    have decay^(N + 1), and the parameters above (pooler, classifier, head) 1, as in BEiT's published code (Bao et al.
    2021). Weight decay is part of the update and is scaled with it. Raises UserError at `init` if there is no layer_i.
    """

    def init(params: Any) -> Any:
        if not layer_factors(params, decay):
            raise UserError(
                f"optimizer.layer_decay={decay} needs parameters named layer_0/…, and this model has none; 1.0 is off"
            )
        return tx.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = tx.update(updates, state, params)
        factors = layer_factors(updates, decay)
        return jax.tree_util.tree_map_with_path(lambda path, u: u * factors.get(path_name(path), 1), updates), state

    return optax.GradientTransformation(init, update)


def layer_factors(params: Any, decay: float) -> dict[str, float]:
    """The factors by which `by_layer` multiplies updates, by the parameter's path; empty if there are no layers."""
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    layers = {path: int(found[1]) for path in paths if (found := re.search(r"(?:^|/)layer_(\d+)/", path))}
    if not layers:
        return {}
    top = max(layers.values()) + 1
    below = re.compile(r"encoder/|(token|position)_embedding/")  # in an encoder; of a decoder
    embeddings = {path: -1 for path in paths if path not in layers and below.match(path)}
    return {path: decay ** (top - layer) for path, layer in {**layers, **embeddings}.items()}


def decay_mask(params: Any, exclude: str) -> Any:
    """True for every parameter whose path `exclude` does not match; an empty `exclude` decays all."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not (exclude and re.search(exclude, path_name(path))), params
    )
