import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.base.leaves import path_name
from research.devices.sharding import make_mesh, put_batch
from research.models.resnet import VARIANTS, ResNet

REST = {
    "num_classes": 10,
    "norm": "batch",
    "stochastic_depth": 0.0,
    "mean": (0.0,),
    "std": (1.0,),
    "test_flip": False,
}


def _model(**changes):
    """A tiny model: one stage of one block."""
    sizes = {"block": "basic", "stage_sizes": (1,), "width": 4, "stem": "small", "shortcut": "projection"}
    return ResNet(**{**REST, **sizes, **changes})


def _batch(rng, size, rows=2, channels=3):
    images = jnp.asarray(rng.standard_normal((rows, size, size, channels)), jnp.float32)
    return {"images": images, "weight": jnp.ones(rows)}


def _init(module, batch):
    """Variables drawn by numpy, with scales, biases and statistics other than 0 and 1, to reveal swapped ones."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return values / np.float32(np.prod(leaf.shape[:-1]) ** 0.5)
        return 1 + 0.3 * abs(values) if path[-1].key in ("scale", "var") else 0.3 * values

    return jax.tree_util.tree_map_with_path(draw, _abstract(module, batch))


def _abstract(module, batch):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), batch, train=False))


@functools.partial(jax.jit, static_argnames=("module", "train"))
def _apply(module, variables, batch, *, train=False, key=0):
    """Returns the logits, the batch statistics and the output of every module."""
    rngs = {"dropout": jax.random.key(key)}
    mutable = ["batch_stats", "intermediates"]
    return module.apply(variables, batch, train=train, rngs=rngs, mutable=mutable, capture_intermediates=True)


def _shapes(module, batch):
    """The shape of every module's output, without computing it."""
    _, state = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), batch, train=False, capture_intermediates=True, mutable=True)
    )
    return state["intermediates"]


def _count(module, batch):
    params = _abstract(module, batch)["params"]
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_parameters_of_the_networks_for_imagenet(rng, name, count):
    """The counts of torchvision."""
    module = VARIANTS[name](**{**REST, "num_classes": 1000})
    assert _count(module, _batch(rng, 64)) == count


@pytest.mark.parametrize(
    ("name", "layers", "millions"),
    [
        ("resnet20", 20, 0.27),
        ("resnet32", 32, 0.46),
        ("resnet44", 44, 0.66),
        ("resnet56", 56, 0.85),
        ("resnet110", 110, 1.7),
    ],
)
def test_parameters_of_the_networks_for_cifar(rng, name, layers, millions):
    """Table 6 of the paper; 269,722 by hand for 20 layers: 464 + 14,016 + 51,648 + … in 3×3 kernels, norms, a head."""
    module, batch = VARIANTS[name](**REST), _batch(rng, 32)
    params = _abstract(module, batch)["params"]
    kernels = [x for x in jax.tree.leaves(params) if len(x.shape) > 1]
    assert len(kernels) == layers  # shortcuts have no parameters
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
    assert float(f"{count / 1e6:.2g}") == millions
    if name == "resnet20":
        assert count == 269_722


def test_stem_resolutions(rng):
    """A 64×64 image is 16×16 after the ImageNet stem and 64×64 after the small one; each later stage halves it."""
    for stem, first in (("imagenet", 16), ("small", 64)):
        outputs = _shapes(_model(stem=stem, stage_sizes=(1, 1, 1)), _batch(rng, 64))
        sizes = [outputs[f"stage_{i}_block_0"]["__call__"][0].shape[1] for i in range(3)]
        assert sizes == [first, first // 2, first // 4]


def test_stride_of_a_bottleneck_is_in_its_3x3_convolution(rng):
    """ResNet v1.5: the first 1×1 convolution of a stage still has the full resolution."""
    block = _shapes(_model(block="bottleneck", stage_sizes=(1, 1)), _batch(rng, 8))["stage_1_block_0"]
    assert block["conv_1"]["__call__"][0].shape[1] == 8
    assert block["conv_2"]["__call__"][0].shape[1] == 4


@pytest.mark.parametrize(("block", "norms"), [("basic", 2), ("bottleneck", 3)])
def test_block_is_initially_its_shortcut(rng, block, norms):
    """The scale of its last normalization is initialized to zero, the others to one."""
    module, batch = _model(block=block, stage_sizes=(2,)), _batch(rng, 8)

    @jax.jit
    def scales():  # random kernels would take seconds to compile
        params = module.init(jax.random.key(0), batch, train=False)["params"]
        found = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "scale"}
        return {path_name(path): leaf for path, leaf in found.items()}

    found = scales()
    last = [f"stage_0_block_{i}/norm_{norms}/scale" for i in range(2)]
    assert set(last) < set(found)
    for name, scale in found.items():
        np.testing.assert_array_equal(scale, 0 if name in last else 1, err_msg=name)


def test_padded_shortcut_subsamples_and_adds_zero_channels(rng):
    """With a zero branch, a block is its shortcut followed by ReLU."""
    module, batch = _model(stage_sizes=(1, 1), shortcut="pad"), _batch(rng, 8)
    variables = _init(module, batch)
    for name in ("scale", "bias"):
        variables["params"]["stage_1_block_0"]["norm_2"][name] *= 0
    _, state = _apply(module, variables, batch)
    before, after = (state["intermediates"][f"stage_{i}_block_0"]["__call__"][0] for i in (0, 1))
    assert after.shape == (2, 4, 4, 8)
    np.testing.assert_array_equal(after[..., :4], before[:, ::2, ::2])
    np.testing.assert_array_equal(after[..., 4:], 0)
    assert np.any(np.asarray(before[:, ::2, ::2]) > 0)


def test_batch_statistics_ignore_devices_and_padding(rng):
    """16 rows with 5 of padding, against the 11 alone. Measured: differences of at most 2e-7."""
    module = _model(stage_sizes=(1, 1))
    batch = {name: np.asarray(array) for name, array in _batch(rng, 8, rows=16).items()}
    batch["weight"] = np.asarray([1.0] * 11 + [0.0] * 5, np.float32)
    batch["images"] = np.where(batch["weight"][:, None, None, None] > 0, batch["images"], 1e3).astype(np.float32)
    variables = _init(module, batch)

    def train(batch):
        logits, state = _apply(module, variables, batch, train=True)
        return logits[:11], state["batch_stats"]

    alone = train({name: array[:11] for name, array in batch.items()})
    for devices in (1, 8):
        found = train(put_batch(batch, make_mesh(devices=jax.devices()[:devices])))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, alone)


def test_bfloat16_keeps_float32_statistics(rng):
    module, batch = _model(dtype=jnp.bfloat16), _batch(rng, 8)
    variables = _init(module, batch)
    logits, updated = _apply(module, variables, batch, train=True)
    assert logits.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves((variables["params"], updated["batch_stats"]))} == {jnp.dtype("float32")}


def test_with_group_norm_images_are_independent(rng):
    """Also in training, and without state."""
    module, batch = _model(norm="group"), _batch(rng, 8)
    variables = _init(module, batch)
    assert set(variables) == {"params"}
    changed = {**batch, "images": batch["images"].at[1].set(-batch["images"][1])}
    first, second = (_apply(module, variables, b, train=True)[0] for b in (batch, changed))
    np.testing.assert_array_equal(first[0], second[0])
    assert np.abs(first[1] - second[1]).max() > 1e-3


class TestStochasticDepth:
    """Two blocks on 2,000 identical examples, whose outputs show which branches were kept."""

    ROWS = 2000
    MODULE = _model(stage_sizes=(2,), norm="group", stochastic_depth=0.6)

    def _outputs(self, **options):
        image = _batch(np.random.default_rng(0), 2, rows=1)
        variables = _init(self.MODULE, image)
        batch = {name: jnp.repeat(array, self.ROWS, axis=0) for name, array in image.items()}
        logits, state = _apply(self.MODULE, variables, batch, **options)
        return np.asarray(logits), state["intermediates"]

    def test_stochastic_depth_drops_per_example_and_more_in_deep_blocks(self):
        """Drop rates 0.3 and 0.6: both kept, only the first, only the second, none; within 4.9 standard errors each."""
        logits, _ = self._outputs(train=True)
        _, kind = np.unique(np.round(logits, 3), axis=0, return_inverse=True)
        shares = sorted(np.bincount(kind) / self.ROWS)
        for share, expected in zip(shares, sorted([0.7 * 0.4, 0.7 * 0.6, 0.3 * 0.4, 0.3 * 0.6]), strict=True):
            assert abs(share - expected) < 4.9 * (expected * (1 - expected) / self.ROWS) ** 0.5

    def test_kept_branches_are_scaled_up(self):
        """The first block returns its shortcut plus 1 / (1 − 0.3) times its branch, or the shortcut alone."""
        _, outputs = self._outputs(train=True)
        shortcut = np.maximum(outputs["norm_stem"]["__call__"][0], 0)
        branch = np.asarray(outputs["stage_0_block_0"]["norm_2"]["__call__"][0])
        whole = np.asarray(outputs["stage_0_block_0"]["__call__"][0])
        kept = np.any(whole != shortcut, axis=(1, 2, 3))
        assert 0 < kept.sum() < self.ROWS
        np.testing.assert_allclose(whole[kept], np.maximum(shortcut + branch / 0.7, 0)[kept], atol=1e-5)

    def test_evaluation_drops_no_branches(self):
        logits, outputs = self._outputs()
        np.testing.assert_array_equal(logits, np.broadcast_to(logits[:1], logits.shape))
        branch, whole = outputs["stage_0_block_0"]["norm_2"], outputs["stage_0_block_0"]
        shortcut = np.maximum(outputs["norm_stem"]["__call__"][0], 0)
        np.testing.assert_allclose(whole["__call__"][0], np.maximum(shortcut + branch["__call__"][0], 0), atol=1e-6)

    def test_different_keys_drop_different_branches(self):
        first, again, other = (self._outputs(train=True, key=key)[0] for key in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_flip_at_test_time_averages_two_images(rng):
    batch = _batch(rng, 8, rows=3)
    plain, flipping = _model(), _model(test_flip=True)
    variables = _init(plain, batch)
    mirrored = {**batch, "images": batch["images"][:, :, ::-1]}
    both = [_apply(plain, variables, b)[0] for b in (batch, mirrored)]
    assert np.abs(both[0] - both[1]).max() > 0.01
    np.testing.assert_allclose(_apply(flipping, variables, batch)[0], (both[0] + both[1]) / 2, atol=1e-6)
    trained = [_apply(m, variables, batch, train=True)[0] for m in (plain, flipping)]
    np.testing.assert_array_equal(*trained)


def test_bytes_are_normalized_in_the_model(rng):
    """uint8 images with the mean and standard deviation per channel match images normalized on the host."""
    mean, std = (100.0, 120.0, 140.0), (50.0, 60.0, 70.0)
    images = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    weight = jnp.ones(2)
    inside, plain = _model(mean=mean, std=std), _model()
    by_hand = {"images": jnp.asarray((images - np.asarray(mean)) / np.asarray(std), jnp.float32), "weight": weight}
    variables = _init(plain, by_hand)
    logits, _ = _apply(inside, variables, {"images": jnp.asarray(images), "weight": weight})
    np.testing.assert_allclose(logits, _apply(plain, variables, by_hand)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("block", "basic, bottleneck"),
        ("stem", "imagenet, small"),
        ("shortcut", "projection, pad"),
        ("norm", "batch, group"),
    ],
)
def test_unknown_settings_are_named(rng, key, known):
    with pytest.raises(ValueError, match=f"model.{key} is 'x'; known: {known}"):
        _shapes(_model(**{key: "x"}), _batch(rng, 8))


@pytest.mark.parametrize("stage_sizes", [(), (1, 0)])
def test_stages_need_at_least_one_block(stage_sizes, rng):
    with pytest.raises(ValueError, match=r"model.stage_sizes is \(.*\); every stage needs a block"):
        _abstract(_model(stage_sizes=stage_sizes), _batch(rng, 8))
