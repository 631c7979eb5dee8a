"""Poses of a patient before the film."""

import pytest
import torch

from medimg_utils.pneumothorax.phantom import LEFT, RIGHT
from medimg_utils.pneumothorax.view import make_view


def test_heart_size_depends_on_the_view(pose):
    """AP films from near by magnify what lies in front: the heart looks larger."""
    share = {}
    for view_name in ("PA", "AP"):
        view = pose("chest3", 3, view=view_name, degrees=(0.0, 0.0, 0.0))
        chest = view.chest
        y = {"front": chest.lungs[:, 1, 1].max(), "back": chest.lungs[:, 0, 1].min()}
        z = chest.lungs[:, :, 2].mean()
        widths = {}
        for where, depth in y.items():
            ends = torch.tensor(
                [[chest.midline - 40, depth, z], [chest.midline + 40, depth, z]]
            )
            columns = view.pixels(ends)[:, 1]
            widths[where] = float(columns[0] - columns[1])
        share[view_name] = widths["front"] / widths["back"]
    assert share["PA"] < share["AP"]


def test_posing_again_changes_nothing(pose):
    """Looking for a shape that fits poses a patient again: it must leave no trace."""
    view = pose("chest3", 1)
    again = make_view(view.chest, view.patient, view.technique, view.size)
    assert again.chest is view.chest
    assert torch.equal(again.deformation.bend, view.deformation.bend)


@pytest.mark.parametrize("side", [RIGHT, LEFT])
def test_tension_pushes_heart_and_diaphragm_and_leaves_the_film(pose, side):
    calm, pushed = pose("chest2", 5), pose("chest2", 5, tension=side)
    assert pushed.geometry == calm.geometry
    assert pushed.technique == calm.technique
    chest = calm.chest
    low, high = chest.lungs[side]
    middle = (low + high) / 2
    heart = torch.tensor([chest.midline, middle[1], low[2] + 0.4 * (high - low)[2]])
    dome = torch.tensor([middle[0], middle[1], low[2] + 10])
    other = 1 - side
    calm_dome = torch.tensor([chest.lungs[other, :, 0].mean(), middle[1], low[2] + 10])
    points = torch.stack([heart, dome, calm_dome])
    moved = pushed.deformation.push(points) - calm.deformation.push(points)
    away = -1 if side == RIGHT else 1  # x grows to the right
    assert float(moved[0, 0]) * away > 10
    assert moved[1, 2] < -8
    assert abs(float(moved[2, 2])) < 3


def test_film_millimetres_start_at_the_top_of_the_lungs(pose):
    """The point there has the pixel whose millimetres are zero."""
    view = pose("chest4", 8, size=200)
    chest = view.chest
    low, high = chest.lungs[:, 0].amin(0), chest.lungs[:, 1].amax(0)
    top = torch.tensor([[chest.midline, float((low + high)[1] / 2), float(high[2])]])
    row, column = view.pixels(top)[0]
    x, z = view.film_mm()
    assert x.shape == (1, 200)
    assert z.shape == (200, 1)
    assert (x.diff() < 0).all()  # the patient's right is on the left
    assert (z.diff(dim=0) < 0).all()
    assert abs(float(x[0, 0]) - float(column) * view.pixel_mm) < 0.01
    assert abs(float(z[0, 0]) - float(row) * view.pixel_mm) < 0.01


@pytest.mark.parametrize("view_name", ["PA", "AP"])
@pytest.mark.parametrize("where", [-60.0, 60.0])
def test_points_weigh_on_the_film_what_a_volume_of_them_would(pose, view_name, where):
    """A block of 30 mm, as points and as voxels; in front of and behind the middle."""
    straight = {"bend_mm": 0.0, "taper": 0.0}
    view = pose("chest3", 4, view=view_name, patient=straight, degrees=(0.0, 0.0, 0.0))
    chest = view.chest
    middle = chest.lungs.mean((0, 1)) + torch.tensor([30.0, where, 0.0])
    generator = torch.Generator().manual_seed(0)
    points = middle + 30 * (torch.rand(200_000, 3, generator=generator) - 0.5)
    mass = torch.full((len(points),), 30.0**3 / len(points))
    block = torch.ones(1, 15, 15, 15)
    spacing = torch.full((3,), 2.0)
    ends = torch.nn.functional.pad(block, (2, 2, 2, 2, 2, 2))
    volume = view.project(ends, middle - 18, spacing, view.size)[0]
    path = view.path_of(points, mass)
    assert float(path.sum()) == pytest.approx(float(volume.sum()), rel=0.03)
    torch.testing.assert_close(
        path.flatten().topk(100).values.mean(),
        volume.flatten().topk(100).values.mean(),
        rtol=0.1,
        atol=0,
    )


def test_the_lungs_stay_on_the_film_in_any_pose(pose):
    """The film is laid about all eight corners of their box."""
    for seed in range(12):
        view = pose("chest1", seed, degrees=(6.0, 6.0, -8.0), offset=(0.0, 0.0))
        box = torch.stack(
            [view.chest.lungs[:, 0].amin(0), view.chest.lungs[:, 1].amax(0)]
        )
        columns = view.pixels(torch.cartesian_prod(*box.T))[:, 1] / view.size
        assert columns.min() > 0
        assert columns.max() < 1


def test_ribs_run_down_to_the_front_or_level(pose):
    """`slope` lifts what lies in front against what lies behind."""
    level = {}
    for slope in (-0.2, 0.0, 0.2):
        view = pose("chest2", 3, patient={"slope": slope}, degrees=(0.0, 0.0, 0.0))
        low, high = view.chest.lungs[RIGHT]
        front, back = ((low + high) / 2).repeat(2, 1)
        front[1], back[1] = high[1], low[1]
        at = view.deformation.push(torch.stack([front, back]))
        level[slope] = float(at[0, 2] - at[1, 2]) / float(at[0, 1] - at[1, 1])
    assert level[0.2] - level[0.0] == pytest.approx(0.2, abs=0.05)
    assert level[0.0] - level[-0.2] == pytest.approx(0.2, abs=0.05)


def test_lungs_are_stretched_along_the_patient_only(pose):
    extent = {}
    for stretch in (1.0, 1.3):
        view = pose("chest2", 3, stretch=stretch, degrees=(0.0, 0.0, 0.0))
        low, high = view.chest.lungs[:, 0].amin(0), view.chest.lungs[:, 1].amax(0)
        corners = view.deformation.push(
            torch.cartesian_prod(*torch.stack([low, high]).T)
        )
        extent[stretch] = corners.amax(0) - corners.amin(0)
    x, y, z = (extent[1.3] / extent[1.0]).tolist()
    assert z == pytest.approx(1.3, abs=0.06)
    assert (x, y) == pytest.approx((1, 1), abs=0.06)


def test_the_film_is_laid_about_long_lungs_too(pose):
    straight = {"slope": 0.0, "bend_mm": 0.0}
    for stretch in (1.0, 1.4, 1.8):
        view = pose(
            "chest1", 2, stretch=stretch, degrees=(0.0, 0.0, 0.0), patient=straight
        )
        low, high = view.chest.lungs[:, 0].amin(0), view.chest.lungs[:, 1].amax(0)
        rows = view.pixels(torch.stack([low, high]))[:, 0] / view.size
        assert 0.5 < rows[0] - rows[1] < 0.95


def test_a_tapered_cage_is_wider_below_than_above(pose):
    width = {}
    for taper in (0.0, 0.2):
        view = pose("chest2", 3, patient={"taper": taper}, degrees=(0.0, 0.0, 0.0))
        low, high = view.chest.lungs[:, 0].amin(0), view.chest.lungs[:, 1].amax(0)
        for level in (0.1, 0.9):
            ends = torch.stack([low, high])
            ends[:, 1] = (low + high)[1] / 2
            ends[:, 2] = low[2] + level * (high - low)[2]
            left, right = view.deformation.push(ends)[:, 0]
            width[taper, level] = float(right - left)
    assert width[0.2, 0.1] > 1.04 * width[0.0, 0.1]
    assert width[0.2, 0.9] < 0.96 * width[0.0, 0.9]
