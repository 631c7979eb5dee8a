import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medimg_utils.errors import InputError
from medimg_utils.pneumothorax.preprocess import (
    Augment,
    ContrastError,
    Geometry,
    clutter,
    grey_curve,
    jpeg,
    noise,
    prepare,
    prepare_mask,
    resolution_loss,
    sharpen_or_blur,
    standardise,
    tiled_probability,
    to_network,
    uneven_exposure,
)

shapes = st.tuples(st.integers(40, 300), st.integers(40, 300))


def picture(seed=0, shape=(200, 160)):
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    smooth = 0.5 + 0.3 * np.sin(rows / 23) * np.cos(columns / 17)
    return (
        (smooth + 0.03 * random.standard_normal(shape))
        .clip(0.02, 0.98)
        .astype(np.float32)
    )


# ------------------------------------------------------------------------------ geometry


@given(shapes, st.sampled_from([240, 480]))
@settings(max_examples=30, deadline=None)
def test_there_and_back_leads_to_the_same_place(shape, size):
    """A smooth blob comes back to where it was."""
    geometry = Geometry(shape, size)
    rows, columns = torch.meshgrid(
        *(torch.arange(n).float() for n in shape), indexing="ij"
    )
    center = (0.45 * shape[0], 0.55 * shape[1])
    width = 0.12 * min(shape)
    blob = torch.exp(
        -((rows - center[0]) ** 2 + (columns - center[1]) ** 2) / (2 * width**2)
    )
    back = geometry.restore(geometry.to_square(blob))
    assert back.shape == shape
    assert (back - blob).abs().max() < 0.1
    for axis in (rows, columns):
        assert float((axis * back).sum() / back.sum()) == pytest.approx(
            float((axis * blob).sum() / blob.sum()), abs=0.3
        )


@given(shapes, st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_shrinking_a_mask_keeps_its_area(shape, seed):
    """Thin as small findings are: no threshold at the new size could keep this one."""
    random = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    top, left = (int(random.integers(n // 4, n // 2)) for n in shape)
    mask[top : top + 10, left : left + 3] = True
    size = 96
    share = prepare_mask(mask, size).astype(float).sum() / 255 / size**2
    assert share == pytest.approx(mask.sum() / max(shape) ** 2, rel=0.1)


def test_padding_goes_to_both_sides_and_is_black():
    square, geometry = prepare(picture(shape=(200, 100)), 100)
    assert geometry.offset == (0, 50)
    assert (square[:, :24] == 0).all()
    assert (square[:, -24:] == 0).all()
    assert square[:, 30:70].std() > 20


def test_a_wrong_shape_is_refused():
    with pytest.raises(InputError, match="expected"):
        Geometry((10, 10), 20).to_square(torch.zeros(10, 11))


# --------------------------------------------------------------------------- grey values


def test_standardising_ignores_gain_and_offset():
    image = torch.from_numpy(picture())
    plain = standardise(image)
    assert (standardise(0.3 * image + 0.4) - plain).abs().max() < 0.02
    assert plain.min() == 0
    assert plain.max() == pytest.approx(1, abs=1e-5)


def test_standardising_draws_exposures_together():
    """The same picture through other grey curves comes out alike: much of the curve is gone."""
    image = torch.from_numpy(picture())
    reference = standardise(image)
    for power in (0.6, 1.7):
        changed = image**power
        before = (changed - image).abs().mean()
        after = (standardise(changed) - reference).abs().mean()
        assert after < 0.35 * before


def test_standardising_keeps_the_order_of_grey_values():
    image = torch.rand(40, 40)
    order = image.flatten().argsort()
    assert (standardise(image).flatten()[order].diff() >= -1e-6).all()


@pytest.mark.parametrize("border", [0.0, 1.0])
def test_a_border_changes_the_film_little(border):
    """Collimation (black) and white margins are one histogram bin, and that bin is cut."""
    image = torch.from_numpy(picture())
    framed = torch.full((image.shape[0] + 80, image.shape[1] + 80), border)
    framed[40:-40, 40:-40] = image
    inside = standardise(framed)[40:-40, 40:-40]
    assert (inside - standardise(image)).abs().mean() < 0.05


def test_a_blank_image_is_refused():
    with pytest.raises(ContrastError, match="blank"):
        prepare(np.full((50, 60), 0.3, np.float32))


@pytest.mark.parametrize("shape", [(1024, 1), (3, 100)])
def test_a_strip_is_refused(shape):
    with pytest.raises(ContrastError, match="strip"):
        prepare(np.random.default_rng(0).random(shape, np.float32))


def test_the_network_sees_zero_mean_and_unit_spread():
    square, _ = prepare(picture(shape=(300, 300)))
    ready = to_network(torch.from_numpy(square / np.float32(255)))
    assert abs(float(ready.mean())) < 0.3
    assert 0.7 < float(ready.std()) < 1.3


# -------------------------------------------------------------------------- augmentation


def test_image_and_mask_move_together():
    """The image is the mask here, so after any pose they must still agree."""
    augment = Augment(96, strength=1)
    augment.rendering = ()
    for seed in range(20):
        torch.manual_seed(seed)
        mask = torch.zeros(1, 112, 112)
        mask[:, 30:70, 20:50] = 1
        image, moved = augment(mask.clone(), mask)
        assert ((image > 0.5) != (moved > 0.5)).float().mean() < 0.01
        assert moved.sum() > 100


@pytest.mark.parametrize(
    "change",
    [
        grey_curve,
        uneven_exposure,
        resolution_loss,
        sharpen_or_blur,
        noise,
        jpeg,
        clutter,
    ],
)
def test_rendering_changes_some_of_the_image_and_keeps_its_form(change):
    image = torch.from_numpy(picture(shape=(96, 96)))[None]
    results = []
    for seed in range(8):
        torch.manual_seed(seed)
        results.append(change(image.clone(), 1.0))
    assert all(
        result.shape == image.shape and torch.isfinite(result).all()
        for result in results
    )
    assert len({float(result.sum()) for result in results}) > 2  # random
    stacked = torch.stack([result.clamp(0, 1).flatten() for result in results])
    assert (
        torch.corrcoef(torch.cat([stacked, image.flatten()[None]]))[-1, :-1].min() > 0.5
    )


def test_the_grey_curve_keeps_the_order():
    image = torch.rand(1, 30, 30)
    order = image.flatten().argsort()
    for seed in range(10):
        torch.manual_seed(seed)
        assert (grey_curve(image, 1.0).flatten()[order].diff() >= -1e-6).all()


def test_the_seed_decides_and_strength_zero_only_crops():
    image, mask = torch.rand(1, 64, 64), torch.zeros(1, 64, 64)
    augment = Augment(48)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(image, mask)[0])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    cropped, _ = Augment(48, strength=0)(image, mask)
    windows = image[0].unfold(0, 48, 1).unfold(1, 48, 1).reshape(-1, 48, 48)
    assert (windows == cropped).all(dim=(1, 2)).any()


# ---------------------------------------------------------------------------- prediction


class Identity(nn.Module):
    """Returns its input as logits."""

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("size", "crop", "positions"), [(480, 448, 2), (64, 64, 2), (90, 40, 3)]
)
def test_every_pixel_is_predicted_and_overlaps_are_averaged(size, crop, positions):
    image = torch.rand(1, size, size)
    found = tiled_probability(Identity(), image, crop=crop, positions=positions)
    torch.testing.assert_close(found, to_network(image)[0].sigmoid())


def test_a_pixel_is_the_mean_of_its_crops():
    class Count(nn.Module):
        def forward(self, x):
            levels = torch.arange(len(x)).float().view(-1, 1, 1, 1)
            return torch.logit((levels + 1) / 10).expand_as(x)

    found = tiled_probability(Count(), torch.rand(1, 6, 6), crop=4, positions=2)
    assert found[0, 0] == pytest.approx(0.1)
    assert found[0, 5] == pytest.approx(0.2)
    assert found[3, 3] == pytest.approx(0.25)  # all four crops


class Ramp(nn.Module):
    """Adds a ramp from left to right, so that a mirrored crop has another answer."""

    def forward(self, x):
        return x + torch.linspace(0, 1, x.shape[-1])


@pytest.mark.parametrize("mirror", [False, True])
def test_the_mirrored_film_has_the_mirrored_answer(mirror):
    image = torch.rand(1, 90, 90)
    one, other = (
        tiled_probability(Ramp(), picture, crop=40, positions=3, mirror=mirror)
        for picture in (image, image.flip(-1))
    )
    assert torch.allclose(one, other.flip(-1), atol=1e-6) == mirror


def test_mirror_images_share_the_mean_of_their_logits():
    image = torch.rand(1, 64, 64)
    found = tiled_probability(Ramp(), image, crop=64, mirror=True)
    # ramp and mirrored ramp are 1/2 on average
    torch.testing.assert_close(found, (to_network(image)[0] + 0.5).sigmoid())


def test_a_film_seen_nearer_is_put_back_into_its_place():
    """A smooth picture enlarged and shrunk again is the same picture."""
    line = torch.linspace(0, 1, 96)
    image = (0.7 * line[:, None] + 0.3 * line)[None]
    usual = tiled_probability(Identity(), image, crop=80)
    near = tiled_probability(Identity(), image, crop=80, zooms=(1.25,))
    assert near.shape == usual.shape
    torch.testing.assert_close(near, usual, atol=0.02, rtol=0)


def test_zooms_share_the_mean_of_their_logits():
    class Nearness(nn.Module):
        """Says 3 of an enlarged picture, whose steps from pixel to pixel are small."""

        def forward(self, x):
            step = x.diff(dim=-1).abs().amax()
            return torch.full_like(x, 3.0 if step < 1.1 * usual else 1.0)

    image = torch.linspace(0, 1, 60).expand(1, 60, 60)
    usual = float(to_network(image).diff(dim=-1).abs().amax()) / 1.5
    found = tiled_probability(Nearness(), image, crop=60, zooms=(1.0, 1.5))
    torch.testing.assert_close(found, torch.full((60, 60), 2.0).sigmoid())


def test_gaps_between_crops_are_refused():
    image = torch.rand(1, 100, 100)
    with pytest.raises(InputError, match="do not cover 100"):
        tiled_probability(Identity(), image, crop=40, positions=2)
    with pytest.raises(InputError, match="do not cover 400"):
        tiled_probability(Identity(), image, crop=80, zooms=(4.0,))


def test_squares_smaller_than_a_crop_are_refused():
    image = torch.rand(1, 100, 100)
    for crop, zooms in ((120, (1.0,)), (80, (1.0, 0.5))):
        with pytest.raises(InputError, match="smaller than a crop"):
            tiled_probability(Identity(), image, crop=crop, zooms=zooms)
