"""Rules that split the leaves of a train state over a mesh: ordered pairs of a path's regex and axes.

A config's `mesh.rules` names a rule set of its model, or lists rules of its own.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from research.base.errors import UserError
from research.base.leaves import path_name
from research.base.registry import lookup, regex

# A rule: a regular expression for a leaf's path, and one entry per dimension: a mesh axis' name, several, or None.
Rule = tuple[str, Sequence[Any]]

# The axes over which each rule set splits parameters. `fsdp` is fully sharded data parallelism (Rajbhandari et al.
# 2020): each device stores a part, and gathers the rest of a layer when it computes it. `tensor` splits the products
# themselves (Shoeybi et al. 2019).
RULE_SETS: dict[str, tuple[str, ...]] = {
    "replicated": (),
    "fsdp": ("fsdp",),
    "tensor": ("tensor",),
    "fsdp_tensor": ("fsdp", "tensor"),
}

# The row and column statistics of Adafactor have fewer dimensions than the parameters, whose paths end theirs.
_STATISTICS: Rule = (r"/v(_row|_col)?/", ())


def resolve_rules(rules: Any, module: Any) -> Sequence[Rule]:
    """The rules that a config's `mesh.rules` names or lists; `module.MESH_RULES` are the model's over both axes.

    Raises UserError for an unknown name, a model without rules of its own, or rules of another form than `Rule`.
    """
    if rules is None or (not isinstance(rules, str) and not rules):
        return ()
    if not isinstance(rules, str):
        _check_form(rules)
        return tuple((pattern, tuple(axes)) for pattern, axes in rules)
    axes = lookup(RULE_SETS, rules, "mesh.rules")
    if not axes:
        return ()
    family = getattr(module, "MESH_RULES", None)
    if family is None:
        raise UserError(
            f"mesh.rules={rules!r}: {type(module).__name__} declares no MESH_RULES; list rules, such as "
            "(('kernel', (None, 'tensor')),)"
        )
    return (_STATISTICS, *((pattern, tuple(_only(entry, axes) for entry in entries)) for pattern, entries in family))


def _only(entry: Any, axes: Sequence[str]) -> Any:
    """An entry of a rule without other axes than `axes`."""
    if entry is None or isinstance(entry, str):
        return entry if entry in axes else None
    return tuple(axis for axis in entry if axis in axes) or None


def spec_of(name: str, shape: tuple[int, ...], rules: Sequence[Rule], mesh: Mesh) -> PartitionSpec:
    """The spec of a leaf from the first rule that matches its path; without one it is replicated.

    Raises UserError, naming the leaf, if the rule has more entries than the leaf has dimensions, names an unknown axis
    or one twice, or does not divide the shape.
    """
    for pattern, axes in rules:
        if re.search(pattern, name):
            return _checked_spec(name, shape, tuple(axes), mesh)
    return PartitionSpec()


def check_used(rules: Any, shardings: Any, mesh: Mesh) -> None:
    """Raises UserError for a listed rule that matches no leaf's path, and for a `tensor` axis that splits no leaf.

    `shardings`: of the whole state, as `research.devices.sharding.state_shardings` returns them.
    """
    specs = {path_name(path): leaf.spec for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)}
    for pattern, _ in () if isinstance(rules, str) else rules or ():
        if not any(re.search(pattern, name) for name in specs):
            known = ", ".join(sorted(name for name in specs if name.startswith("params/"))[:3])
            raise UserError(f"mesh.rules has {pattern!r}, which matches no path of the state; paths are {known}, …")
    parts = {axis for spec in specs.values() for entry in spec for axis in _axes(entry)}
    if mesh.shape["tensor"] > 1 and "tensor" not in parts:
        raise UserError(
            f"mesh.tensor={mesh.shape['tensor']}, but mesh.rules={rules!r} splits nothing over `tensor`; set "
            "mesh.rules=tensor or fsdp_tensor, or mesh.tensor=1"
        )


def _check_form(rules: Any) -> None:
    """Raises UserError if `rules` is not a sequence of `Rule`s."""
    for rule in rules if _is_list(rules) else [rules]:
        formed = _is_list(rule) and len(rule) == 2 and isinstance(rule[0], str) and _is_list(rule[1])
        if not formed or not all(_is_entry(entry) for entry in rule[1]):
            raise UserError(
                f"mesh.rules has the rule {rule!r}; it must be the name of a rule set ({', '.join(RULE_SETS)}), or "
                "pairs (regex of a path, (axis, …)) with a mesh axis' name, a tuple of names or None for each "
                "dimension, such as ('kernel', (None, 'tensor'))"
            )
        regex("mesh.rules", rule[0])


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_entry(entry: Any) -> bool:
    return entry is None or isinstance(entry, str) or (_is_list(entry) and all(isinstance(a, str) for a in entry))


def _axes(entry: Any) -> Sequence[str]:
    return (entry,) if isinstance(entry, str) else entry or ()


def _checked_spec(name: str, shape: tuple[int, ...], axes: tuple[Any, ...], mesh: Mesh) -> PartitionSpec:
    if len(axes) > len(shape):
        raise UserError(f"mesh.rules gives {len(axes)} axes {axes} to {name}, which has shape {shape}")
    used: set[str] = set()
    for size, entry in zip(shape, axes, strict=False):
        parts = 1
        for axis in _axes(entry):
            if axis not in mesh.shape:
                raise UserError(f"mesh.rules names the axis {axis!r} for {name}; known: {', '.join(mesh.shape)}")
            if axis in used:
                raise UserError(f"mesh.rules gives the axis {axis!r} twice to {name}: {axes}")
            used.add(axis)
            parts *= mesh.shape[axis]
        if size % parts:
            split = " × ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in _axes(entry))
            raise UserError(
                f"mesh.rules splits a dimension of {size} of {name} into {parts} parts ({split}); it must divide"
            )
    return PartitionSpec(*(tuple(entry) if _is_list(entry) else entry for entry in axes))
