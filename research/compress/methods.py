"""Ways to compress a network: (network, value, calibration) -> network."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from research.base.errors import UserError
from research.base.registry import lookup
from research.compress.calibration import Calibration
from research.compress.context import Context
from research.compress.network import Network
from research.compress.rounding import int8, int8_weights
from research.compress.student import distill
from research.data.text.wordpiece import tokenizer_of


def bfloat16(network: Network, value: None, context: Context) -> Network:
    """Computes in bfloat16, with weights in bfloat16."""
    variables = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16)), dict(network.variables))
    return network.but(variables=variables).computing_in("bfloat16")


def float32(network: Network, value: None, context: Context) -> Network:
    """Computes in float32, what was trained in bfloat16."""
    return network.computing_in("float32")


def layers(network: Network, value: float, context: Context) -> Network:
    """Keeps `value` layers of an encoder, evenly spaced, with the first and the last."""
    count, keep = _encoder(network, "layers").num_layers, int(value)
    if not 1 <= value < count or keep != value:
        raise UserError(f"layers={value:g}: the encoder has {count} layers; keep 1 to {count - 1}")
    kept = np.linspace(0, count - 1, keep).round().astype(int) if keep > 1 else [0]
    params = dict(network.variables["params"])
    encoder = {key: x for key, x in params["encoder"].items() if not key.startswith("layer_")}
    encoder |= {f"layer_{new}": params["encoder"][f"layer_{old}"] for new, old in enumerate(kept)}
    variables = {**network.variables, "params": {**params, "encoder": encoder}}
    return network.but(variables=variables, num_layers=keep)


def ffn(network: Network, value: float, context: Context) -> Network:
    """Keeps a fraction of each feed-forward layer's units: those of the largest first-order importance."""
    size = _encoder(network, "ffn").mlp_size
    keep = _share("ffn", value, size)
    importance = _importance(network, context.calibration(), "mlp_out", size)
    parts = {("mlp_in", "kernel"): 1, ("mlp_in", "bias"): 0, ("mlp_out", "kernel"): 0}
    return _pruned(network, importance, keep, parts, 1).but(mlp_size=keep)


def heads(network: Network, value: float, context: Context) -> Network:
    """Keeps a fraction of each layer's attention heads: those of the largest first-order importance."""
    model = _encoder(network, "heads")
    count, size = model.num_heads, model.get("head_size") or model.hidden_size // model.num_heads
    keep = _share("heads", value, count)
    importance = _importance(network, context.calibration(), "attention/output", count)
    projections = ("query", "key", "value")
    parts = {("attention", name, leaf): axis for name in projections for leaf, axis in (("kernel", 1), ("bias", 0))}
    pruned = _pruned(network, importance, keep, {**parts, ("attention", "output", "kernel"): 0}, size)
    return pruned.but(num_heads=keep, head_size=size)


def prune(network: Network, value: float, context: Context) -> Network:
    """Makes a fraction of the weights of each large kernel 0 while it trains again: gradual magnitude pruning."""
    if not 0 < value < 1:
        raise UserError(f"prune={value:g} is not a fraction of weights to remove, above 0 and below 1")
    if not context.trains:
        raise UserError("prune removes weights while the network trains; --epochs must be above 0")
    made: Network = network.but()
    made.config.optimizer.sparsity = value
    return made


def vocab(network: Network, value: None, context: Context) -> Network:
    """Keeps the pieces that occur in the training split, the single characters and the special tokens.

    The texts of the split are tokenized as before; others with the pieces that are left.
    """
    _encoder(network, "vocab")
    if context.tokenizer is None or network.model != "bert":
        raise UserError("vocab is for encoders of texts with a classifier")
    definition = json.loads(context.tokenizer)
    if definition["model"]["type"] != "WordPiece":
        raise UserError(f"vocab is for WordPiece tokenizers, not {definition['model']['type']}")
    if network.new_ids is not None:
        raise UserError("vocab was given twice")
    used, special = context.pieces(), {token["id"] for token in definition["added_tokens"]}
    prefix = definition["model"]["continuing_subword_prefix"]
    ids = definition["model"]["vocab"]
    kept = sorted(i for piece, i in ids.items() if used[i] or i in special or len(piece.removeprefix(prefix)) == 1)
    new = {old: i for i, old in enumerate(kept)}
    definition["model"]["vocab"] = {piece: new[i] for piece, i in ids.items() if i in new}
    for token in definition["added_tokens"]:
        token["id"] = new[token["id"]]
    for token in (definition["post_processor"] or {}).get("special_tokens", {}).values():
        token["ids"] = [new[i] for i in token["ids"]]
    text = json.dumps(definition, ensure_ascii=False)
    tokenizer_of(text)  # a tokenizer that can't be read must not be written
    params = flatten_dict(network.variables["params"], sep="/")
    params["encoder/token_embedding/embedding"] = params["encoder/token_embedding/embedding"][kept]
    variables = {**network.variables, "params": unflatten_dict(params, sep="/")}
    new_ids = np.full(len(used), new[ids[definition["model"]["unk_token"]]], np.int32)
    new_ids[kept] = np.arange(len(kept))
    context.say(f"  {len(kept):,} of {len(used):,} pieces")
    made: Network = network.but(variables=variables, assets={"tokenizer.json": text}, vocab_size=len(kept))
    made.config.data.transform.vocab_size = len(kept)
    return dataclasses.replace(made, new_ids=new_ids)


def _encoder(network: Network, method: str) -> Any:
    """The config's `model`. Raises UserError if it is not an encoder."""
    if "encoder" not in network.variables["params"]:
        raise UserError(f"{method} is for encoders such as bert, not for {network.model!r}")
    return network.config.model


def _share(method: str, value: float, size: int) -> int:
    if not 0 < value < 1:
        raise UserError(f"{method}={value:g} is not a fraction to keep, above 0 and below 1")
    return max(1, round(value * size))


def _importance(network: Network, calibration: Calibration, layer: str, groups: int) -> dict[str, np.ndarray]:
    """The importance of each group of the rows of a kernel, by layer of the encoder.

    The mean over batches of (Σ w · ∂loss/∂w)², over a group's weights: the squared change of the loss, to first order,
    if the group were 0 (Molchanov et al. 2019, equation 8).
    """
    found: dict[str, np.ndarray] = {}
    for params, gradient in calibration.gradients(network):
        weights, slopes = (flatten_dict(tree["encoder"], sep="/") for tree in (params, gradient))
        for i in range(network.config.model.num_layers):
            path = f"layer_{i}/{layer}/kernel"
            products = np.asarray(weights[path], np.float64) * slopes[path]
            change = products.reshape(groups, -1).sum(axis=1) ** 2
            found[f"layer_{i}"] = found.get(f"layer_{i}", 0) + change
    return found


def _pruned(
    network: Network, importance: Mapping[str, np.ndarray], keep: int, parts: Mapping[Any, int], size: int
) -> Network:
    """Keeps the `keep` most important groups of each layer, in their order.

    Args:
      parts: by path in the layer, the axis along which the groups lie; each group is `size` entries.
    """
    params = flatten_dict(network.variables["params"])
    for layer, values in importance.items():
        kept = np.sort(np.argsort(-values, kind="stable")[:keep])
        entries = (kept[:, None] * size + np.arange(size)).ravel()
        for path, axis in parts.items():
            key = ("encoder", layer, *path)
            params[key] = np.take(params[key], entries, axis=axis)
    return network.but(variables={**network.variables, "params": unflatten_dict(params)})


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to compress.

    Attributes:
      value: what its value means; "" if it has none.
      removes: whether it removes what the network has learnt, so that it should be trained again.
    """

    apply: Callable[..., Network]
    value: str = ""
    removes: bool = False


METHODS: dict[str, Method] = {
    "bfloat16": Method(bfloat16),
    "distill": Method(distill, removes=True),
    "ffn": Method(ffn, "the fraction of units to keep", removes=True),
    "float32": Method(float32),
    "heads": Method(heads, "the fraction of heads to keep", removes=True),
    "int8": Method(int8),
    "int8_weights": Method(int8_weights),
    "layers": Method(layers, "the number of layers to keep", removes=True),
    "prune": Method(prune, "the fraction of weights to remove", removes=True),
    "vocab": Method(vocab),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """A method with its value."""

    name: str
    value: float | None

    @classmethod
    def of(cls, text: str) -> "Step":
        """From "NAME" or "NAME=VALUE". Raises UserError for an unknown name, or a value that is missing or wrong."""
        name, _, value = text.partition("=")
        if name == "onnx":
            raise UserError("--method=onnx writes files for ONNX Runtime instead of a run; give it alone")
        method = lookup(METHODS, name, "method")
        if bool(method.value) != bool(value):
            what = f"needs {method.value}: {name}=VALUE" if method.value else "takes no value"
            raise UserError(f"--method={text}: {name} {what}")
        try:
            return cls(name, float(value) if value else None)
        except ValueError as error:
            raise UserError(f"--method={text}: {value!r} is not a number") from error

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value:g}"

    @property
    def method(self) -> Method:
        return METHODS[self.name]
