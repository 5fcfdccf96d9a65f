"""Networks in 8-bit integers, with the layers that it would hurt left in float32."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from research.base.errors import UserError
from research.compress.calibration import Calibration, agreement, difference
from research.compress.context import Context
from research.compress.network import Network, Variables
from research.core.quantization import Path, large_layers, quantized, simulated
from research.inference.model import build_module

# int8: layers stay in float32, first those whose rounding changes the outputs most, until this share of the calibration
# examples has the same class; at most half of the layers.
_AGREEMENT = 0.995


def int8(network: Network, value: None, context: Context, *, products: bool = True) -> Network:
    """Products of 8-bit integers in the large dense layers, except where that hurts; embeddings in int8 too."""
    network = network.computing_in("float32")
    calibration, run = context.calibration(), network.program()
    batch = network.renamed(calibration.batches[0])
    is_decoder = network.model == "decoder"  # its embedding is also an output layer

    def apply(variables: Variables) -> Any:
        return build_module(network.config).apply(variables, batch, train=False)

    def made(skip: Sequence[Any]) -> Variables:
        return quantized(network.variables, apply, products=products, skip=skip, embeddings=not is_decoder)

    try:
        best = made(())
    except ValueError as error:
        raise UserError(f"{network.model} can't be in int8: {error}") from error
    expected = calibration.outputs(network, network.variables, run)
    agrees = agreement(expected, calibration.outputs(network, best, run))
    layers = large_layers(network.variables, apply)
    if agrees < _AGREEMENT and len(layers) > 1:
        kept = _kept(network, calibration, expected, layers, agrees, products)
        if kept:
            best = made(kept)
            agrees = agreement(expected, calibration.outputs(network, best, run))
        context.say(
            f"  in float32: {', '.join('/'.join(path) for path in kept) or 'none, as no choice of layers agrees more'}"
        )
    context.say(f"  {agrees:.2%} of {len(expected)} calibration examples as in float32")
    return network.but(variables=jax.device_get(best))


def _kept(
    network: Network,
    calibration: Calibration,
    expected: np.ndarray,
    layers: Sequence[Path],
    agrees: float,
    products: bool,
) -> list[Path]:
    """The layers to leave in float32, so that more than a share `agrees` of the examples has the same class."""
    module = build_module(network.config)

    @jax.jit
    def run(variables: Variables, batch: Any) -> Any:
        with simulated(dict(zip(layers, variables["flags"], strict=True)), products=products):
            return module.apply({name: x for name, x in variables.items() if name != "flags"}, batch, train=False)

    def outputs(rounded: Sequence[Path]) -> np.ndarray:
        flags = np.array([layer in rounded for layer in layers])
        return calibration.outputs(network, {**network.variables, "flags": flags}, run)

    worst = sorted(layers, key=lambda layer: -difference(expected, outputs([layer])))
    best: list[Path] = []
    for count in range(1, len(layers) // 2 + 1):
        found = agreement(expected, outputs(worst[count:]))
        if found > agrees:
            best, agrees = worst[:count], found
        if agrees >= _AGREEMENT:
            break
    return best


def int8_weights(network: Network, value: None, context: Context) -> Network:
    """Weights in int8, products in float32."""
    return int8(network, value, context, products=False)
