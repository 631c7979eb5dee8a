import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from medimg_utils.brain.preprocess import (
    Grid,
    IntensityError,
    augment,
    axis_weights,
    bounding_box,
    cut,
    five_channels,
    prepare,
    resample,
    standardise,
)


def ball(shape=(24, 28, 22), radius=9.0):
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    middle = np.array(shape).reshape(3, 1, 1, 1) / 2
    return ((grid - middle) ** 2).sum(0) < radius**2


def brain(seed=0, shape=(24, 28, 22)):
    random = np.random.default_rng(seed)
    image = random.normal(300, 60, shape).astype(np.float32)
    return np.where(ball(shape), image, 0).astype(np.float32)


# ----------------------------------------------------------------------------- z-score


def test_the_brain_has_mean_0_and_spread_1_and_the_background_stays_0():
    image = brain()
    out = standardise(image)
    assert out.dtype == np.float32
    assert (out[image == 0] == 0).all()
    assert out[image != 0].mean() == pytest.approx(0, abs=1e-4)
    assert out[image != 0].std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("count", [1, 30])  # 30 are 1 % of the brain
def test_outliers_change_the_other_voxels_little(count):
    image = brain()
    inside = np.argwhere(image != 0)
    chosen = tuple(inside[np.random.default_rng(1).permutation(len(inside))[:count]].T)
    spoilt = image.copy()
    spoilt[chosen] = 32767
    rest = image != 0
    rest[chosen] = False
    change = np.abs(standardise(spoilt) - standardise(image))[rest]
    assert change.max() < 0.35
    plain = (spoilt[rest] - spoilt[spoilt != 0].mean()) / spoilt[spoilt != 0].std()
    assert np.ptp(plain) < np.ptp(standardise(spoilt)[rest])


@given(gain=st.floats(0.01, 100), offset=st.floats(0, 1000))
@settings(max_examples=20, deadline=None)
def test_gain_and_offset_of_the_scanner_do_not_matter(gain, offset):
    image = brain()
    other = np.where(image != 0, gain * image + offset, 0).astype(np.float32)
    assert np.allclose(standardise(other), standardise(image), atol=1e-2)


def test_what_is_no_brain_on_a_background_is_refused():
    with pytest.raises(IntensityError, match="no brain"):
        standardise(np.zeros((4, 4, 4), np.float32))
    with pytest.raises(IntensityError, match="no contrast"):
        standardise(np.where(ball(), 7, 0).astype(np.float32))
    with pytest.raises(IntensityError, match=r"100%.*background"):
        standardise(np.ones((4, 4, 4), np.float32))


def test_half_a_brain_of_one_value_still_has_contrast():
    image = brain()
    image[:, :16] = np.where(image[:, :16] != 0, 100, 0)
    assert standardise(image).std() > 0


def test_the_five_channels():
    channels = torch.randn(4, 3, 3, 3)
    out = five_channels(channels, scale=2.0)
    assert torch.equal(out[[0, 1, 3, 4]], channels)
    assert torch.allclose(out[2], (channels[1] - channels[0]) / 2)


# ------------------------------------------------------------------------------ geometry


@given(st.integers(0, 2), st.data())
@settings(max_examples=40, deadline=None)
def test_the_box_holds_the_mask_to_the_last_plane(axis, data):
    mask = np.zeros((7, 8, 9), bool)
    for _ in range(data.draw(st.integers(1, 4))):
        mask[tuple(data.draw(st.integers(0, n - 1)) for n in mask.shape)] = True
    box = bounding_box(mask)
    assert mask[box].sum() == mask.sum()
    for k in range(3):  # no plane of the box is empty at its ends
        planes = mask[box].any(axis=tuple(j for j in range(3) if j != k))
        assert planes[0]
        assert planes[-1]


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="empty"):
        bounding_box(np.zeros((2, 2, 2), bool))


@given(
    n=st.integers(1, 40),
    step=st.floats(0.3, 5).filter(lambda x: abs(x - 1) > 0.02),
)
@settings(max_examples=60, deadline=None)
def test_resampling_weights(n, step):
    n_out = int(np.ceil(round(n / step, 6)))
    weights = axis_weights(n, n_out, step)
    assert (weights >= 0).all()
    if step < 1:  # interpolation: a constant stays, wherever it is asked for
        assert np.allclose(weights.sum(axis=1), 1, atol=1e-5)
    else:  # averaging: nothing is lost, nothing is counted twice
        assert np.allclose(weights.sum(axis=0) * step, 1, atol=1e-4)


def test_averaging_by_two_is_pooling():
    x = torch.randn(3, 6, 8, 4)
    ours = resample(x.numpy(), (3, 4, 2), (2, 2, 2))
    assert np.allclose(ours, F.avg_pool3d(x, 2).numpy(), atol=1e-6)


def test_interpolation_is_that_of_torch():
    x = torch.randn(1, 2, 5, 6, 7)
    theirs = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
    ours = resample(x[0].numpy(), (10, 12, 14), (0.5, 0.5, 0.5))
    assert np.allclose(ours, theirs[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("voxel", [1.0, 2.0, 2.7, 0.6])
def test_a_smooth_volume_survives_the_way_there_and_back(voxel):
    shape = (30, 33, 28)
    random = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(random.normal(size=shape), 5)
    smooth = (smooth / smooth.std()).astype(np.float32)
    box = (slice(3, 29), slice(2, 31), slice(1, 27))
    grid = Grid(shape, box, (voxel, voxel, voxel), (1.0, 1.0, 1.0))
    back = grid.to_box(grid.to_network(smooth))
    assert back.shape == (26, 29, 26)
    inner = (slice(4, -4),) * 3
    error = np.abs(back - smooth[box])[inner]
    assert error.max() < 0.25 * max(1, voxel / 2) if voxel != 1 else error.max() == 0
    whole = grid.to_volume((back > 0).astype(np.uint8))
    assert whole.shape == shape
    assert not whole[:3].any()


def test_a_place_stays_where_it_is_in_mm():
    """The centre of mass must not move when voxels change their size."""
    shape = (40, 44, 38)
    spot = ndimage.gaussian_filter(
        np.pad([[[1.0]]], ((17, 22), (20, 23), (12, 25))), 3
    ).astype(np.float32)
    grid = Grid(shape, (slice(0, 40),) * 3, (2.0, 2.0, 2.0), (1.0, 1.0, 1.0))
    grid = grid._replace(box=tuple(slice(0, n) for n in shape))
    small = grid.to_network(spot)
    center = (np.array(ndimage.center_of_mass(small)) + 0.5) * 2 - 0.5
    assert np.allclose(center, (17, 20, 12), atol=0.02)
    again = ndimage.center_of_mass(grid.to_box(small))
    assert np.allclose(again, (17, 20, 12), atol=0.02)


# ------------------------------------------------------------------------------- a case


def test_a_case_is_prepared():
    images = np.stack([brain(seed) for seed in range(4)])
    labels = np.zeros(images.shape[1:], np.uint8)
    labels[10:14, 12:16, 9:13] = 2
    labels[11:13, 13:15, 10:12] = 3
    one = prepare(images, (1.0, 1.0, 1.0), 1.0, labels)
    box = one.grid.box
    assert one.channels.shape[1:] == one.grid.box_shape == one.grid.network_shape
    assert np.allclose(one.channels[2], standardise(images[2])[box], atol=1e-2)
    assert [(255 * (labels == k)[box] == one.target[k - 1]).all() for k in (1, 2, 3)]
    image = one.image()
    assert image.shape[0] == 5
    inside = image[2][image[0] != 0]
    assert inside.std().item() == pytest.approx(1, abs=0.02)
    coarse = prepare(images, (1.0, 1.0, 1.0), 2.0, labels)
    assert coarse.target.astype(float).sum() * 8 / 255 == pytest.approx(64, abs=1)


def test_anisotropic_voxels_become_cubes():
    images = np.stack([brain(seed) for seed in range(4)])
    one = prepare(images, (1.0, 1.0, 3.0), 2.0)
    sizes = [n * s for n, s in zip(one.grid.box_shape, (1, 1, 3), strict=True)]
    assert one.grid.network_shape == tuple(int(np.ceil(s / 2)) for s in sizes)


def test_the_modality_is_named():
    images = np.stack([brain(seed) for seed in range(4)])
    images[2] = 0
    with pytest.raises(IntensityError, match=r"^t2: "):
        prepare(images, (1.0, 1.0, 1.0), 1.0)


@given(
    start=st.tuples(*[st.integers(-9, 9)] * 3), size=st.tuples(*[st.integers(1, 9)] * 3)
)
@settings(max_examples=60, deadline=None)
def test_cutting_is_cutting_from_a_padded_volume(start, size):
    x = torch.arange(2 * 4 * 5 * 6).reshape(2, 4, 5, 6) + 1
    padded = F.pad(x, [9, 18] * 3)
    place = tuple(slice(9 + a, 9 + a + n) for a, n in zip(start, size, strict=True))
    assert torch.equal(cut(x, start, size), padded[(slice(None), *place)])


# -------------------------------------------------------------------------- augmentation


def test_no_strength_no_change():
    x, y = torch.randn(4, 3, 3, 3), torch.rand(3, 3, 3, 3)
    out = augment(x, y, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(out[0], x)
    assert torch.equal(out[1], y)


def test_augmentation_follows_the_seed_and_keeps_the_background():
    x, y = torch.randn(4, 9, 9, 9), torch.rand(3, 9, 9, 9)
    x[:, :, 0] = 0
    flips, noise = 0, []
    for seed in range(40):
        first, second = (
            augment(x, y, 1.0, torch.Generator().manual_seed(seed)) for _ in range(2)
        )
        assert torch.equal(first[0], second[0])
        assert (first[0][:, :, 0] == 0).all()
        flipped = torch.equal(first[1], y.flip(1))
        assert flipped or torch.equal(first[1], y)
        source = x.flip(1) if flipped else x
        for channel in range(4):
            inside = source[channel] != 0
            z, out = source[channel][inside], first[0][channel][inside]
            bent = z.clamp(-3, 3).square() - 1
            table = torch.stack([torch.ones_like(z), z, bent], dim=1)
            found = torch.linalg.lstsq(table, out[:, None]).solution[:, 0]
            spread = float((out - table @ found).std())
            offset, gain, bend = found.tolist()
            assert 0.77 <= gain <= 1.23
            assert abs(offset) <= 0.24
            assert abs(bend) <= 0.1
            assert spread <= 0.22
            noise.append(spread)
        flips += flipped
    assert 10 < flips < 30
    assert min(noise) < 0.03
    assert max(noise) > 0.17


def test_the_order_of_grey_values_outlasts_the_bend_of_their_scale():
    x = torch.linspace(-4, 6, 1000).expand(4, 2, 2, 1000)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        out, _ = augment(x, torch.zeros(3, 2, 2, 1000), 1.0, generator)
        for channel in out:
            means = channel.reshape(4, 20, 50).mean(dim=(0, 2))  # less noise
            assert (means.diff() > 0).all()
