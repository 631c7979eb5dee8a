import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from medimg_utils.errors import InputError
from medimg_utils.knee.preprocess import (
    MEAN,
    SPREAD,
    Augment,
    grey_curve,
    middle,
    pose,
    prepare,
    to_network,
    views,
)
from medimg_utils.knee.standardise import Standardiser


def smooth(size=64, slices=3, seed=0):
    """Blurred noise: sampling it between pixels differs little between libraries."""
    noise = torch.rand(
        slices, 1, size, size, generator=torch.Generator().manual_seed(seed)
    )
    kernel = torch.ones(1, 1, 7, 7) / 49
    blurred = torch.nn.functional.conv2d(noise, kernel, padding=3)[:, 0]
    return (blurred * 255).round().to(torch.uint8)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------- prepare


def test_a_series_of_the_right_size_is_only_standardised():
    volume = smooth(64).numpy()
    learned = Standardiser.fit([volume])
    ready, geometry = prepare(volume, learned, 64)
    np.testing.assert_array_equal(ready, learned(volume, np.uint8))
    assert geometry.shape == (64, 64)


@pytest.mark.parametrize("shape", [(64, 64), (80, 60), (100, 128)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_any_size_and_type_becomes_the_same_picture(shape, dtype):
    """A ramp stays a ramp of the same height, whatever the file holds."""
    gain = 1 if dtype is np.uint8 else 10
    ramp = np.linspace(5, 200, shape[0])[None, :, None] * np.ones((2, 1, shape[1]))
    volume = (ramp * gain).astype(dtype)
    learned = Standardiser.fit([volume])
    ready, geometry = prepare(volume, learned, 64)
    assert ready.shape == (2, 64, 64)
    assert ready.dtype == np.uint8
    rows = ready[0, :, 32].astype(float)
    assert (np.diff(rows[: rows.argmax() + 1]) >= 0).all()  # below is the padding
    back = geometry.restore(torch.from_numpy(ready)).numpy()
    assert back.shape == (2, *shape)
    middle_part = (slice(None), slice(10, -10), slice(10, -10))
    np.testing.assert_allclose(back[middle_part], learned(volume)[middle_part], atol=5)


def test_the_network_gets_the_authors_scale():
    levels = torch.tensor([0, 58, 255], dtype=torch.uint8)
    np.testing.assert_allclose(
        to_network(levels),
        [(value - MEAN) / SPREAD for value in (0, 58, 255)],
        atol=1e-6,
    )


# -------------------------------------------------------------------------- augmentation


def test_without_augmentation_the_middle_is_left():
    volume = smooth()
    assert torch.equal(Augment.none(48)(volume, random()), volume[:, 8:56, 8:56])
    with pytest.raises(InputError, match="80 pixels cannot be cut"):
        middle(volume, 80)


@pytest.mark.parametrize("degrees", [0.0, 17.0, -40.0])
@pytest.mark.parametrize("offset", [(0.0, 0.0), (5.0, -3.0)])
@pytest.mark.parametrize(("flip", "zoom"), [(False, 1.0), (True, 1.0), (True, 1.3)])
def test_pose_is_that_of_torchvision(degrees, offset, flip, zoom):
    """Turn, zoom, shift, cut and flip in one resampling, as torchvision does one by one."""
    volume = smooth()
    expected = tv.affine(
        volume.float(),
        angle=degrees,
        translate=list(offset),
        scale=zoom,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    expected = tv.center_crop(expected, [40, 40])
    if flip:
        expected = tv.horizontal_flip(expected)
    found = pose(volume, 40, degrees, offset, flip, zoom)
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_one_draw_moves_all_slices_alike():
    """Equal slices stay equal: nothing is drawn per slice but noise."""
    same = smooth(slices=1).expand(4, -1, -1)
    augment = Augment(48, rotation=25, shift=6, flip=0.5)
    for seed in range(6):
        moved = augment(same, random(seed))
        assert all(torch.equal(moved[0], one) for one in moved[1:])
        assert not torch.equal(moved[0], same[0, 8:56, 8:56])


def test_a_share_of_the_slices_is_spread_over_the_series():
    volume = torch.arange(31, dtype=torch.uint8)[:, None, None].expand(-1, 8, 8)
    augment = Augment(8, slices=0.5)
    draws = [
        augment(volume, torch.Generator().manual_seed(seed))[:, 0, 0].tolist()
        for seed in range(40)
    ]
    assert set().union(*draws) == set(range(31))
    for kept in draws:
        assert 12 <= len(kept) <= 16
        assert kept == sorted(set(kept))
        assert np.diff([-1, *kept, 31]).max() <= 4


def test_flips_come_as_often_as_asked():
    volume = smooth()
    augment = Augment(64, flip=0.3)
    flipped = [
        torch.equal(augment(volume, random(seed)), volume.flip(-1))
        for seed in range(300)
    ]
    kept = [torch.equal(augment(volume, random(seed)), volume) for seed in range(300)]
    assert sum(flipped) + sum(kept) == 300
    assert 0.2 < np.mean(flipped) < 0.4


def test_rendering_changes_grey_values_but_not_places():
    volume = smooth()
    augment = Augment(48, rendering=1.0)
    changed = [augment(volume, random(seed)).float() for seed in range(4)]
    assert (changed[0] - changed[1]).abs().mean() > 1
    for one in changed:  # the picture is still the same
        stacked = torch.stack([one.flatten(), middle(volume, 48).float().flatten()])
        assert torch.corrcoef(stacked)[0, 1] > 0.7


def test_grey_curves_rise_from_black_to_white():
    for seed in range(20):
        table = grey_curve(1.0, random(seed)).astype(int)
        assert table[0] == 0
        assert table[-1] in (254, 255)
        assert (np.diff(table) >= 0).all()


def test_an_exam_is_seen_as_it_lies_smaller_larger_and_turned():
    slices = torch.zeros(2, 128, 128)
    slices[:, 44:84, 56:72] = 200  # 40 high and 16 wide, in the middle
    lying, small, large, right, left = views(slices.to(torch.uint8), 96, 5)
    assert torch.equal(lying, middle(slices, 96).to(torch.uint8))
    sides = [float(one[0, :, 48].sum()) / 200 for one in (small, lying, large)]
    assert sides == pytest.approx([40 * 0.88, 40, 40 * 1.13], abs=0.3)
    assert torch.equal(right, left.flip(-1))  # of a picture that is its mirror image
    top = (right[0] > 100).nonzero()
    edge = [float(top[top[:, 0] == row][:, 1].float().mean()) for row in (32, 63)]
    across = (edge[0] - edge[1]) / 31  # 31 rows down; clockwise, the top goes right
    assert across == pytest.approx(np.tan(np.radians(7)), rel=0.1)


@pytest.mark.parametrize("count", [0, 6])
def test_there_are_five_views(count):
    with pytest.raises(InputError, match=f"{count} views were asked for; .* 1 to 5"):
        list(views(smooth(), 32, count))
