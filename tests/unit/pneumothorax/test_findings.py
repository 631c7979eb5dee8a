"""Findings that are no pneumothorax, and lungs that are breathed, emptied, holed."""

import pytest
import torch

from medimg_utils.physics.deform import sample
from medimg_utils.pneumothorax.film import lung_fields
from medimg_utils.pneumothorax.findings import _DRAW, breathe, finding_paths
from medimg_utils.pneumothorax.phantom import COARSE


def drawn(pose, *found, seed=3):
    view = pose("chest3", seed, findings=found)
    visible, aerated = lung_fields(view, view.size)
    return finding_paths(view, visible, aerated), visible, view


def inside(chest, deeper_than=4.0):
    """Densities in the middle of the lungs, and their height (0 base, 1 apex)."""
    (depth,), box = chest.refine(chest.depth[None])
    z = chest.origin[2] + 1.25 * torch.arange(box[2].start, box[2].stop)
    low, high = chest.lungs[:, 0, 2].min(), chest.lungs[:, 1, 2].max()
    level = ((z - low) / (high - low)).expand_as(depth)
    return box, depth > deeper_than, level


def test_without_findings_nothing_lies_over_the_lungs(pose):
    assert drawn(pose)[0].abs().sum() == 0


@pytest.mark.parametrize("name", _DRAW)
def test_findings_absorb_and_lie_over_the_lungs(pose, name):
    seeds = [drawn(pose, name, seed=seed) for seed in range(4)]
    for path, *_ in seeds:
        assert torch.isfinite(path).all()
        assert path.min() >= 0
    assert max(float(path[visible > 0.5].sum()) for path, visible, _ in seeds) > 50


def test_one_finding_more_moves_no_other(pose):
    fold, hair, both = (
        drawn(pose, *names)[0]
        for names in (("skin fold",), ("hair",), ("skin fold", "hair"))
    )
    torch.testing.assert_close(both, fold + hair)


def test_a_companion_shadow_is_a_rim_of_the_apex(pose):
    path, visible, view = drawn(pose, "companion shadow")
    _, z = view.film_mm()
    low = (z < -90).expand_as(path)
    assert path[low].max() < 0.2
    assert path[visible < 0.05].max() < 0.5
    assert 1 < path.max() < 6
    middle = (visible > 0.5) & (z > -60)
    assert path[middle].median() < 0.5 * path.max()  # a rim, not a veil


def test_breathing_out_makes_lungs_denser_and_nothing_else(pose):
    view = pose("chest2", 1, lung=1.6, findings=())
    chest, other = view.chest, breathe(view)
    box, deep, _ = inside(chest)
    ratio = other.soft[box][deep] / chest.soft[box][deep].clamp(min=1e-3)
    airy = chest.soft[box][deep] < 0.4
    assert float(ratio[airy].median()) == pytest.approx(1.6, abs=0.02)
    same = chest.soft > 0.6
    torch.testing.assert_close(other.soft[same], chest.soft[same])
    (depth,), _ = chest.refine(chest.depth[None])
    wall = depth < -5
    torch.testing.assert_close(other.soft[box][wall], chest.soft[box][wall])


def test_emphysema_empties_the_apices(pose):
    plain, sick = (
        breathe(pose("chest2", 1, lung=1.5, findings=found))
        for found in ((), ("emphysema",))
    )
    box, deep, level = inside(plain)
    ratio = sick.soft[box] / plain.soft[box].clamp(min=1e-3)
    airy = deep & (plain.soft[box] < 0.5) & (plain.soft[box] > 0.05)
    assert 0.4 < float(ratio[airy & (level > 0.95)].median()) < 0.9
    assert float(ratio[airy & (level < 0.3)].median()) > 0.97


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_bulla_is_a_bubble_of_air_with_a_thin_wall_in_an_upper_lobe(pose, seed):
    plain, sick = (
        breathe(pose("chest1", seed, findings=found)) for found in ((), ("bulla",))
    )
    change = sick.soft - plain.soft
    emptied, wall = change < -0.05, change > 0.04
    assert emptied.any()
    assert wall.any()
    places = torch.argwhere(emptied).float() * torch.tensor([1.25, 2.5, 1.25])
    centre = plain.origin + places.mean(0)
    depth = sample(plain.depth[None], centre[None], plain.coarse_origin, COARSE)
    assert depth > 0
    level = (centre[2] - plain.lungs[:, 0, 2].min()) / (
        plain.lungs[:, 1, 2].max() - plain.lungs[:, 0, 2].min()
    )
    assert level > 0.5
    assert float((places - places.mean(0)).norm(dim=1).max()) < 32
    lost = sick.vessels[:, 3] == 0
    assert torch.equal(sick.vessels[~lost], plain.vessels[~lost])
    assert float(sick.soft[emptied].min()) >= 0
