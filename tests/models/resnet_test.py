import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.resnet import ResNet


def _model(**changes):
    sizes = {
        "num_classes": 10,
        "block": "basic",
        "stage_sizes": (2, 2, 2, 2),
        "width": 64,
        "stem": "imagenet",
    }
    return ResNet(**{**sizes, **changes})


def _batch(rng, size, rows=2, channels=3):
    images = jnp.asarray(rng.standard_normal((rows, size, size, channels)), jnp.float32)
    return {"images": images, "weight": jnp.ones(rows)}


def _shapes(module, batch):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), batch, train=False))


@pytest.mark.parametrize(
    ("block", "stage_sizes", "count"),
    [
        ("basic", (2, 2, 2, 2), 11_689_512),
        ("basic", (3, 4, 6, 3), 21_797_672),
        ("bottleneck", (3, 4, 6, 3), 25_557_032),
        ("bottleneck", (3, 4, 23, 3), 44_549_160),
        ("bottleneck", (3, 8, 36, 3), 60_192_808),
    ],
)
def test_parameters_of_the_published_networks(rng, block, stage_sizes, count):
    """The counts of torchvision's resnet18, 34, 50, 101 and 152."""
    module = _model(num_classes=1000, block=block, stage_sizes=stage_sizes)
    params = _shapes(module, _batch(rng, 64))["params"]
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)) == count


def test_the_stems_resolutions(rng):
    """A 64×64 image is 16×16 after the ImageNet stem and 64×64 after the small one; each later stage halves it."""
    for stem, first in (("imagenet", 16), ("small", 64)):
        module = _model(stem=stem, stage_sizes=(1, 1, 1), width=4)
        _, state = jax.eval_shape(
            lambda m=module: m.init_with_output(
                jax.random.key(0), _batch(rng, 64), train=False, capture_intermediates=True, mutable=True
            )
        )
        sizes = [state["intermediates"][f"stage_{i}_block_0"]["__call__"][0].shape[1] for i in range(3)]
        assert sizes == [first, first // 2, first // 4]


def test_the_stride_of_a_bottleneck_is_on_its_3x3(rng):
    """ResNet v1.5: the first 1×1 of a stage still sees the whole resolution."""
    module = _model(block="bottleneck", stage_sizes=(1, 1), width=4, stem="small")
    _, state = jax.eval_shape(
        lambda: module.init_with_output(
            jax.random.key(0), _batch(rng, 8), train=False, capture_intermediates=True, mutable=True
        )
    )
    block = state["intermediates"]["stage_1_block_0"]
    assert block["conv_1"]["__call__"][0].shape[1] == 8
    assert block["conv_2"]["__call__"][0].shape[1] == 4


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_block_starts_as_its_shortcut(rng, block):
    """The last normalization's scale is zero, so more blocks in a stage change nothing at first."""
    batch = _batch(rng, 8)
    outputs = []
    for stage_sizes in ((1,), (3,)):
        module = _model(block=block, stage_sizes=stage_sizes, width=4, stem="small")
        variables = module.init(jax.random.key(0), batch, train=False)
        variables["params"]["classifier"]["kernel"] = jnp.ones_like(variables["params"]["classifier"]["kernel"])
        outputs.append(module.apply(variables, batch, train=False))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)


def test_batch_statistics_are_the_batchs(rng):
    """After one step the running mean has moved a tenth of the way to the stem's mean over the real rows."""
    module = _model(stage_sizes=(1,), width=4, stem="small")
    batch = _batch(rng, 8, rows=6)
    batch["weight"] = jnp.asarray([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    variables = module.init(jax.random.key(0), batch, train=False)
    _, updated = module.apply(
        variables, batch, train=True, mutable=["batch_stats", "intermediates"], capture_intermediates=True
    )
    stem = updated["intermediates"]["conv_stem"]["__call__"][0][:4]
    running = updated["batch_stats"]["norm_stem"]
    np.testing.assert_allclose(running["mean"], 0.1 * jnp.mean(stem, axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * jnp.var(stem, axis=(0, 1, 2)), atol=1e-5)


def test_bfloat16_keeps_float32_statistics(rng):
    module = _model(stage_sizes=(1,), width=4, stem="small", dtype=jnp.bfloat16)
    batch = _batch(rng, 8)
    variables = module.init(jax.random.key(0), batch, train=False)
    logits, updated = module.apply(variables, batch, train=True, mutable=["batch_stats"])
    assert logits.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves((variables["params"], updated))} == {jnp.dtype("float32")}
