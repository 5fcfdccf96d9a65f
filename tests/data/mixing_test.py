import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import stateless_rng
from research.data.images.mixing import mixed


def _keys(count, seed=0):
    return stateless_rng.keys(seed, np.zeros(count), np.arange(count)[:, None])[:, 0]


SIDES = st.integers(1, 9)
ALPHA = st.floats(0.05, 4)


@settings(max_examples=100, deadline=None)
@given(height=SIDES, width=SIDES, alpha=ALPHA, seed=st.integers(0, 99), as_bytes=st.booleans())
def test_mixup_is_the_weighted_mean(height, width, alpha, seed, as_bytes):
    images, others = np.random.default_rng(seed).integers(0, 256, (2, 5, height, width, 3)).astype(np.uint8)
    if not as_bytes:
        images, others = images.astype(np.float32), others.astype(np.float32)
    before = images.copy()
    found, shares = mixed(images, others, _keys(5, seed), mixup=alpha, cutmix=0.0)
    assert found.dtype == images.dtype
    assert shares.dtype == np.float32
    assert ((shares >= 0) & (shares <= 1)).all()
    part = shares[:, None, None, None].astype(np.float64)
    expected = (1 - part) * images + part * others
    # Rounded to nearest; float32 represents 255 to 2e-5.
    np.testing.assert_allclose(found, expected, atol=0.5 + 1e-4 if as_bytes else 1e-4)
    np.testing.assert_array_equal(images, before)


@settings(max_examples=100, deadline=None)
@given(height=SIDES, width=SIDES, alpha=ALPHA, seed=st.integers(0, 99))
def test_cutmix_pastes_a_box_whose_area_is_its_share(height, width, alpha, seed):
    images = np.zeros((5, height, width, 2), np.uint8)
    images[..., 1] = np.arange(height * width).reshape(height, width)
    others = images + np.array([1, 0], np.uint8)
    found, shares = mixed(images, others, _keys(5, seed), mixup=0.0, cutmix=alpha)
    np.testing.assert_array_equal(found[..., 1], images[..., 1])  # every pixel keeps its position
    for pasted, share in zip(found[..., 0].astype(bool), shares, strict=True):
        assert share == np.float32(pasted.mean())
        assert (pasted == pasted.any(axis=1)[:, None] & pasted.any(axis=0)[None, :]).all()
        for line in (pasted.any(axis=0), pasted.any(axis=1)):
            assert np.abs(np.diff(line.astype(int), prepend=0, append=0)).sum() in (0, 2)  # a single rectangle


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha):
    images = np.zeros((4000, 1, 1, 1), np.uint8)
    _, shares = mixed(images, images, _keys(4000), mixup=alpha, cutmix=0.0)
    assert scipy.stats.kstest(shares, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_boxes_have_beta_distributed_sizes_and_uniform_centres():
    """Far from the edges no box is clipped, so areas follow the distribution; centres are uniform."""
    images, others = np.zeros((2000, 40, 40, 1), np.uint8), np.ones((2000, 40, 40, 1), np.uint8)
    found, shares = mixed(images, others, _keys(2000), mixup=0.0, cutmix=1.0)
    inside = ~(found[:, [0, -1]].any(axis=(1, 2, 3)) | found[:, :, [0, -1]].any(axis=(1, 2, 3)))
    # With Beta(1, 1) the squared side is uniform: a side of at most 10 has probability 1/16.
    small = inside & (shares < 100 / 1600) & (shares > 0)
    assert 0.5 * 2000 / 16 < small.sum() < 1.2 * 2000 / 16  # some are clipped at the edge, or have no area
    centres = [np.argwhere(image[..., 0]).mean(axis=0) for image in found[small]]
    assert np.abs(np.mean(centres, axis=0) - 19.5).max() < 5 * 40 / 12**0.5 / small.sum() ** 0.5
    corners = found[:, [0, 0, -1, -1], [0, -1, 0, -1], 0].mean(axis=0)
    assert corners.max() - corners.min() < 5 * 0.5 / 2000**0.5 * 2


def test_with_both_each_image_has_either_mixup_or_cutmix():
    images, others = np.zeros((4000, 16, 16, 1), np.uint8), np.full((4000, 16, 16, 1), 200, np.uint8)
    found, shares = mixed(images, others, _keys(4000), mixup=1.0, cutmix=1.0)
    flat = found.reshape(4000, -1)
    pasted = (flat.min(axis=1) == 0) & (flat.max(axis=1) == 200)
    blended = (flat.min(axis=1) == flat.max(axis=1)) & (flat.max(axis=1) > 0) & (flat.max(axis=1) < 200)
    # A few CutMix boxes cover nothing or everything; a few mixup weights round to zero.
    assert (pasted | blended).mean() > 0.97
    assert abs(blended.mean() - 0.5) < 5 * 0.5 / 4000**0.5 + 0.005
    assert abs(shares[blended].mean() - 0.5) < 5 * 12**-0.5 / 2000**0.5


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_mixing_depends_on_the_key_alone(mixup, cutmix):
    images, others = np.random.default_rng(0).integers(0, 256, (2, 20, 8, 8, 3), dtype=np.uint8)
    keys = _keys(20)
    whole, shares = mixed(images, others, keys, mixup=mixup, cutmix=cutmix)
    part = np.array([17, 3, 4])
    found, few = mixed(images[part], others[part], keys[part], mixup=mixup, cutmix=cutmix)
    np.testing.assert_array_equal(found, whole[part])
    np.testing.assert_array_equal(few, shares[part])
    assert len(np.unique(shares)) > 8


def test_mixtures_never_change():
    """A golden value: if it changed, runs of earlier versions would not be reproducible."""
    images, others = np.zeros((6, 16, 16, 1), np.uint8), np.full((6, 16, 16, 1), 200, np.uint8)
    found, _ = mixed(images, others, _keys(6), mixup=0.5, cutmix=1.0)
    assert found.sum(axis=(1, 2, 3)).tolist() == [50944, 22400, 12800, 1024, 800, 51200]
