"""ResNets of He et al. 2015 for CIFAR and for ImageNet, the latter as v1.5: a bottleneck's stride is on its 3×3."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.base.ranges import ANY, COUNT, LAYERS, POSITIVE, RATE, Range
from research.models.images import normalized
from research.models.layers import Dropout, MeshRules
from research.models.norms import NORMS

# Weights for a network of ReLUs: normal, variance 2 / fan-out (He et al. 2015, "Delving deep", section 2.2).
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
zeros, ones = nn.initializers.zeros, nn.initializers.ones


class Block(nn.Module):
    """A residual block: a branch of convolutions, each normalized, and a shortcut around them.

    Attributes:
      kind: "basic", two 3×3 convolutions, or "bottleneck", a 1×1, a 3×3 and a 1×1 that widens by four.
      stride: that of the first 3×3 convolution.
      shortcut: the shortcut if the block changes its input's shape: "projection", a 1×1 convolution, or "pad", every
        `stride`-th pixel with zeros for the new channels (options B and A of section 3.3). Otherwise the identity.
      drop_rate: probability of dropping the branch in training, per example (Huang et al. 2016). Examples that keep it
        scale it by 1 / (1 − drop_rate), so that evaluation needs no scaling.
    """

    kind: str
    features: int
    stride: int
    shortcut: str
    drop_rate: float
    conv: Callable[..., Any]
    norm: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C]; real: bool [B] -> [B, H/stride, W/stride, F], F 4·features for a bottleneck."""
        layers = {
            "basic": ((self.features, 3, self.stride), (self.features, 3, 1)),
            "bottleneck": ((self.features, 1, 1), (self.features, 3, self.stride), (4 * self.features, 1, 1)),
        }[self.kind]
        y = x
        for i, (features, size, stride) in enumerate(layers, start=1):
            last = i == len(layers)
            y = self.conv(features, (size, size), strides=stride, padding=size // 2, name=f"conv_{i}")(y)
            y = self.norm(y, real, name=f"norm_{i}", scale_init=zeros if last else ones)
            y = y if last else nn.relu(y)
        gate = Dropout(self.drop_rate)(jnp.ones((len(x), 1, 1, 1), jnp.float32), train=train)
        return nn.relu(self._shortcut(x, real, y.shape) + (y * gate).astype(y.dtype))

    def _shortcut(self, x: jax.Array, real: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if x.shape == shape:
            return x
        if self.shortcut == "pad":
            new_channels = (0, shape[-1] - x.shape[-1])
            return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), new_channels))
        x = self.conv(shape[-1], (1, 1), strides=self.stride, padding=0, name="conv_shortcut")(x)
        return self.norm(x, real, name="norm_shortcut", scale_init=ones)


class ResNet(nn.Module):
    """Stages of residual blocks, global average pooling and a linear classifier.

    The last normalization of a block starts with scale 0, so that a block starts as its shortcut (Goyal et al. 2017,
    section 5.1). Batch statistics cover the whole batch, excluding padding rows.

    Attributes:
      block: "basic" or "bottleneck".
      stage_sizes: blocks per stage; each stage after the first halves the resolution and doubles the width.
      width: features of the stem and of the first stage; a bottleneck block outputs four times as many.
      stem: "imagenet" (7×7 stride 2, 3×3 max-pool stride 2) or "small" (3×3 stride 1).
      shortcut: "projection" or "pad", see `Block`.
      norm: "batch" or "group", see research/models/norms.py.
      stochastic_depth: drop rate of the last block's branch; block l of L has l / L times that rate (Huang et al. 2016,
        section 3). 0 drops none.
      mean, std: of the stored images; see `normalized`.
      test_flip: whether evaluation averages the logits of an image and its mirror image.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "num_classes": COUNT,
        "stage_sizes": LAYERS,
        "width": COUNT,
        "stochastic_depth": RATE,
        "mean": ANY,
        "std": POSITIVE,
    }
    # Each kernel by its output features; normalizations are small.
    MESH_RULES: ClassVar[MeshRules] = (
        ("conv_[a-z0-9]+/kernel", (None, None, None, ("fsdp", "tensor"))),
        ("classifier/kernel", (("fsdp", "tensor"),)),
    )

    num_classes: int
    block: str
    stage_sizes: tuple[int, ...]
    width: int
    stem: str
    shortcut: str
    norm: str
    stochastic_depth: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_flip: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads images, uint8 or float [B, H, W, C], and weight [B] -> logits [B, num_classes]."""
        for key, value, known in (
            ("block", self.block, ("basic", "bottleneck")),
            ("stem", self.stem, ("imagenet", "small")),
            ("shortcut", self.shortcut, ("projection", "pad")),
            ("norm", self.norm, tuple(NORMS)),
        ):
            if value not in known:
                raise ValueError(f"model.{key} is {value!r}; known: {', '.join(known)}")
        if not self.stage_sizes or min(self.stage_sizes) < 1:
            raise ValueError(f"model.stage_sizes is {tuple(self.stage_sizes)}; every stage needs a block")
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=he_normal)
        norm = partial(NORMS[self.norm], train=train, dtype=self.dtype)
        x, real = normalized(batch["images"], self.mean, self.std, self.dtype), batch["weight"] > 0
        flip = self.test_flip and not train
        if flip:  # each image next to its mirror image, on the same device
            x = jnp.stack([x, x[:, :, ::-1]], axis=1).reshape(-1, *x.shape[1:])
            real = jnp.repeat(real, 2)

        if self.stem == "imagenet":
            x = conv(self.width, (7, 7), strides=2, padding=3, name="conv_stem")(x)
        else:
            x = conv(self.width, (3, 3), padding=1, name="conv_stem")(x)
        x = nn.relu(norm(x, real, name="norm_stem", scale_init=ones))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        place, depth = 0, sum(self.stage_sizes)
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                place += 1
                x = Block(
                    kind=self.block,
                    features=self.width * 2**i,
                    stride=2 if i > 0 and j == 0 else 1,
                    shortcut=self.shortcut,
                    drop_rate=self.stochastic_depth * place / depth,
                    conv=conv,
                    norm=norm,
                    name=f"stage_{i}_block_{j}",
                )(x, real, train=train)
        x = jnp.mean(x.astype(jnp.promote_types(self.dtype, jnp.float32)), axis=(1, 2))
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="classifier")(x)
        return jnp.mean(logits.reshape(-1, 2, self.num_classes), axis=1) if flip else logits


# Table 1 of He et al. 2015.
_imagenet = partial(ResNet, width=64, stem="imagenet", shortcut="projection")
# Section 4.2 of the same paper: 6n + 2 layers in three stages, shortcuts without parameters.
_cifar = partial(ResNet, block="basic", width=16, stem="small", shortcut="pad")

VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(_imagenet, block="basic", stage_sizes=(2, 2, 2, 2)),
    "resnet34": partial(_imagenet, block="basic", stage_sizes=(3, 4, 6, 3)),
    "resnet50": partial(_imagenet, block="bottleneck", stage_sizes=(3, 4, 6, 3)),
    "resnet101": partial(_imagenet, block="bottleneck", stage_sizes=(3, 4, 23, 3)),
    "resnet152": partial(_imagenet, block="bottleneck", stage_sizes=(3, 8, 36, 3)),
    "resnet20": partial(_cifar, stage_sizes=(3, 3, 3)),
    "resnet32": partial(_cifar, stage_sizes=(5, 5, 5)),
    "resnet44": partial(_cifar, stage_sizes=(7, 7, 7)),
    "resnet56": partial(_cifar, stage_sizes=(9, 9, 9)),
    "resnet110": partial(_cifar, stage_sizes=(18, 18, 18)),
}
