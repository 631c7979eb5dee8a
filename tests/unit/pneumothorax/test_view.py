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
