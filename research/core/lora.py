"""LoRA (Hu et al. 2021): trains low-rank additions to the kernels of dense layers and freezes the other parameters.

The kernel W [I, O] of an adapted layer becomes W + alpha / rank · A · B. A [I, rank] and B [rank, O] are parameters of
the layer beside its kernel, so a state also holds W. B starts at zero: the first step sees the base model.

Training adds alpha / rank · x · A · B to the output of a layer: no gradient of W is computed. Everything else computes
with the merged kernels, and thus with the model's own parameters.
"""

import contextlib
import dataclasses
import re
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from research.base.errors import UserError
from research.base.ranges import COUNT, DECAY, POSITIVE, Range
from research.base.registry import regex
from research.models.layers import Dropout, affine, dense_layers, is_dense

A, B, _KERNEL = "lora_a", "lora_b", "kernel"

Params = Any


@dataclasses.dataclass(frozen=True)
class Lora:
    """The config's section `train.lora`.

    Attributes:
      rank: of the additions; None: there are none, and all parameters are trained.
      alpha: alpha / rank is the factor of an addition.
      dropout: dropout rate on the inputs of A.
      targets: a regular expression; the kernels of dense layers whose path it matches are adapted.
      trains: a regular expression; parameters whose path it matches are trained too. Empty: none.
    """

    RANGES: ClassVar[dict[str, Range]] = {"rank": COUNT, "alpha": POSITIVE, "dropout": DECAY}

    rank: int | None = None
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = ""
    trains: str = ""

    def __post_init__(self) -> None:
        for key in ("targets", "trains"):
            regex(f"train.lora.{key}", getattr(self, key))

    def adapted(self, params: Params, module: nn.Module, batch: Mapping[str, Any], seed: Any) -> Params:
        """The parameters with A and B added: A normal, here of variance 1 / I, and B zero (section 4.1).

        `batch` fits the module; only its shapes are used. The numbers in A depend on the seed and the layer's path.

        Raises:
          UserError: a regular expression matches nothing, a target is not the kernel of a dense layer, or the rank
            exceeds the rank of a kernel.
        """
        if self.rank is None:
            return params
        flat = flatten_dict(params, sep="/")
        if self.trains and not any(re.search(self.trains, path) for path in flat):
            raise UserError(f"train.lora.trains={self.trains!r} finds no parameter; {_some(flat)}")
        init, key = nn.initializers.variance_scaling(1.0, "fan_in", "normal"), jax.random.key(seed)
        for path in self._targets(flat, module, batch):
            inputs, outputs = flat[path].shape
            if self.rank > min(inputs, outputs):
                raise UserError(
                    f"train.lora.rank is {self.rank}; the kernel {path}, {inputs} × {outputs}, allows at most "
                    f"{min(inputs, outputs)}"
                )
            layer = path.removesuffix(_KERNEL)
            own = jax.random.fold_in(key, zlib.crc32(f"{layer}{A}".encode()))
            flat[f"{layer}{A}"] = init(own, (inputs, self.rank), flat[path].dtype)
            flat[f"{layer}{B}"] = jnp.zeros((self.rank, outputs), flat[path].dtype)
        return unflatten_dict(flat, sep="/")

    def _targets(self, flat: Mapping[str, Any], module: nn.Module, batch: Mapping[str, Any]) -> list[str]:
        """The paths of the kernels to adapt."""
        found = [path for path in flat if re.search(self.targets, path)]
        kernels = [path for path in found if path.split("/")[-1] == _KERNEL]
        layers = dense_layers(lambda: module.init({"params": jax.random.key(0)}, batch, train=False))
        dense = ["/".join((*layer, _KERNEL)) for layer in layers]
        if not found:
            raise UserError(f"train.lora.targets={self.targets!r} finds no kernel of a dense layer; {_some(dense)}")
        for path in kernels or found:
            if path not in dense:
                raise UserError(
                    f"train.lora.targets={self.targets!r} finds {path}, which is not the kernel of a dense layer; "
                    f"{_some(dense)}"
                )
        return kernels

    def split(self, params: Params) -> tuple[Params, Params]:
        """The trained and the frozen parameters, as trees that `join` joins."""
        if self.rank is None:
            return params, {}
        flat = flatten_dict(params)

        def trained(path: tuple[str, ...]) -> bool:
            return path[-1] in (A, B) or bool(self.trains and re.search(self.trains, "/".join(path)))

        return _parted(flat, trained)

    def applied(self, *, train: bool) -> contextlib.AbstractContextManager[Any]:
        """The context in which a module adds A and B to the outputs of its adapted layers.

        `train`: whether there is dropout.
        """
        if self.rank is None:
            return contextlib.nullcontext()
        return nn.intercept_methods(lambda *call: self._add(*call, train=train))

    def _add(
        self,
        call: Callable[..., Any],
        args: Any,
        kwargs: Any,
        context: nn.module.InterceptorContext,
        *,
        train: bool,
    ) -> Any:
        y, layer = call(*args, **kwargs), context.module
        if not is_dense(context) or not layer.has_variable("params", A):
            return y
        x = args[0].astype(y.dtype)
        if train and self.dropout:
            rngs = {"dropout": layer.make_rng("dropout")}
            x = Dropout(self.dropout, parent=None).apply({}, x, train=True, rngs=rngs)
        inner = affine(x, layer.get_variable("params", A), None)
        return y + self._scale * affine(inner, layer.get_variable("params", B), None)

    def merged(self, params: Params) -> Params:
        """The model's own parameters, with A and B added to the kernels. Leaves may have leading axes of replicas."""
        if self.rank is None:
            return params
        flat = flatten_dict(params)
        merged = {path: leaf for path, leaf in flat.items() if path[-1] not in (A, B)}
        for (*layer, name), a in flat.items():
            if name == A:
                addition = jnp.matmul(self._scale * a, flat[(*layer, B)], precision=jax.lax.Precision.HIGHEST)
                merged[(*layer, _KERNEL)] = flat[(*layer, _KERNEL)] + addition
        return unflatten_dict(merged)

    @property
    def _scale(self) -> float:
        assert self.rank is not None
        return self.alpha / self.rank


OFF = Lora()


def join(one: Params, other: Params) -> Params:
    """The tree with the leaves of both."""
    return unflatten_dict({**flatten_dict(one), **flatten_dict(other)}) if other else one


def detached(params: Params) -> tuple[Params, Params]:
    """The model's own parameters, not merged, and A and B, as trees that `join` joins."""
    adapters, own = _parted(flatten_dict(params), lambda path: path[-1] in (A, B))
    return own, adapters


def _parted(flat: Mapping[tuple[str, ...], Any], first: Callable[[tuple[str, ...]], bool]) -> tuple[Params, Params]:
    """The leaves whose path `first` is true of, and the others."""
    ours = {path for path in flat if first(path)}
    return (
        unflatten_dict({path: leaf for path, leaf in flat.items() if path in ours}),
        unflatten_dict({path: leaf for path, leaf in flat.items() if path not in ours}),
    )


def _some(paths: Collection[str]) -> str:
    """A few of these paths for a message."""
    if not paths:
        return "this model has no dense layers"
    shown = list(paths)[:: -(-len(paths) // 3)]
    return f"some of the {len(paths)} are {', '.join(shown)}"
