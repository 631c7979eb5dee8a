"""The body around the lungs: outline, arms, planes of fat."""

import pytest
import torch

from medimg_utils.pneumothorax.body import shape_body
from medimg_utils.pneumothorax.film import lung_fields


@pytest.fixture(scope="module", params=["PA", "AP"])
def bodies(request, pose):
    """Path with and without planes of fat, lung fields, and the view."""
    view = pose("chest2", 4, view=request.param, planes=1.0)
    plain = pose("chest2", 4, view=request.param, planes=0.0)
    visible, _ = lung_fields(view, view.size)
    soft = torch.full((view.size, view.size), 90.0)
    return (
        shape_body(view, soft, visible),
        shape_body(plain, soft, visible),
        visible,
        view,
    )


def test_planes_of_fat_darken_what_lies_beside_the_lungs(bodies):
    with_fat, without, visible, view = bodies
    x, z = view.film_mm()
    change = with_fat - without
    half = view.lung_width / 2 * view.magnification
    axilla = (x.abs() > half) & (x.abs() < half + 50) & (z < 0) & (z > -130)
    axilla = axilla & (visible < 0.1) & (without > 40)
    assert change[axilla].mean() < -0.5
    assert change[axilla].min() < -3
    assert (change[axilla] > 0.5).float().mean() < 0.4  # a fold of skin is dense
    # an edge: somewhere neighbours differ by more than the mottle of tissue
    assert change.diff(dim=1)[axilla[:, 1:]].abs().max() > 1


def test_over_the_lungs_planes_are_faint(bodies):
    with_fat, without, visible, _ = bodies
    inner = visible > 0.95
    assert (with_fat - without)[inner].abs().mean() < 1.5


def test_lungs_keep_their_tissue_and_what_is_far_off_is_air(bodies):
    _, body, visible, view = bodies
    x, z = view.film_mm()
    assert body[visible > 0.95].min() > 80
    above = (z > 75) & (x.abs() > 140)
    if above.any():
        assert body[above].max() < 15
    assert (body >= 0).all()


def test_arms_hang_beside_the_chest(bodies):
    """There is tissue of an arm's thickness beyond the chest, and it ends."""
    _, body, _, view = bodies
    half = view.lung_width / 2 * view.magnification
    x, z = view.film_mm()
    where = (x.abs() > 1.2 * half) & (x.abs() < 1.35 * half) & (z < -40) & (z > -70)
    if where.any():
        assert 50 < float(body[where].median()) < 220


def test_both_classes_have_the_same_body(pose):
    """All of it follows from the view."""
    visible = torch.zeros(96, 96)
    soft = torch.full((96, 96), 50.0)
    first, again = (
        shape_body(pose("chest3", 2, size=96, devices=d), soft, visible)
        for d in ((), ("drain",))
    )
    torch.testing.assert_close(first, again)
