"""The prepared chests hold what anatomy and the other modules expect of them."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage as ndi

from medimg_utils.errors import InputError
from medimg_utils.physics.deform import sample
from medimg_utils.pneumothorax import phantom
from medimg_utils.pneumothorax.phantom import (
    ANATOMIES,
    COARSE,
    LEFT,
    RIGHT,
    SPACING,
    load_chest,
    load_girdle,
    prepare,
)
from medimg_utils.settings import get_settings

VOXEL = math.prod(SPACING) / 1000  # cm3


@pytest.fixture(params=ANATOMIES)
def chest(request):
    return load_chest(request.param, get_settings().data)


def on_densities(chest, *fields):
    """Coarse fields and the densities of the scanned part, on one grid."""
    fine, box = chest.refine(torch.stack(fields))
    return fine, chest.soft[box], chest.bone[box]


def test_lungs_have_the_volume_of_adults(chest):
    inside = chest.depth > 0
    litres = [
        float((inside & (chest.side == s)).sum()) * COARSE**3 / 1e6
        for s in (RIGHT, LEFT)
    ]
    assert all(0.9 < volume < 3.5 for volume in litres)
    assert 2.5 < sum(litres) < 6.5
    assert litres[RIGHT] > litres[LEFT]  # the heart takes its room on the left


def test_x_grows_to_the_patients_right(chest):
    x = torch.arange(chest.depth.shape[0])[:, None, None] * COARSE
    inside = chest.depth > 0
    right, left = (
        float((x * (inside & (chest.side == s))).sum()) for s in (RIGHT, LEFT)
    )
    counts = [float((inside & (chest.side == s)).sum()) for s in (RIGHT, LEFT)]
    assert right / counts[0] > chest.midline + 40
    assert left / counts[1] < chest.midline - 40
    assert (chest.lungs[RIGHT, :, 0] > chest.lungs[LEFT, :, 0]).all()


def test_z_grows_upwards(chest):
    """Lungs taper to the apex, and the liver lies under the right one."""
    area = (chest.depth > 0).sum((0, 1)).float()
    levels = torch.nonzero(area)[:, 0]
    assert area[levels[-6:]].mean() < 0.3 * area.max()
    assert (
        chest.soft[..., : phantom._EXTRA].mean()
        > chest.soft[..., phantom._EXTRA :].mean()
    )


def test_y_grows_to_the_front(chest):
    """The spine, the largest bone of the midline, is behind."""
    x = torch.arange(chest.bone.shape[0]) * SPACING[0]
    middle = (x - chest.midline).abs() < 30
    along = chest.bone[middle].sum((0, 2))
    y = torch.arange(len(along)) * SPACING[1]
    lungs = chest.lungs[:, :, 1]
    assert float((y * along).sum() / along.sum()) < float(
        (lungs[:, 0].min() + lungs[:, 1].max()) / 2
    )


def test_distances_inside_the_cavities_are_distances(chest):
    inside = chest.depth > 0
    assert chest.wall[inside].min() >= 0
    assert chest.medial[inside].min() >= 0
    assert chest.base[inside].min() >= -COARSE / 2  # smoothed across its edge
    gradient = torch.stack(torch.gradient(chest.wall, spacing=COARSE)).norm(dim=0)
    deep = gradient[chest.depth > COARSE]
    assert float(deep.median()) == pytest.approx(1, abs=0.06)  # less on the medial axis
    assert float(deep.quantile(0.99)) < 1.05
    # the surface of the cavity is no farther than any of its parts
    nearest = torch.minimum(torch.minimum(chest.wall, chest.medial), chest.base)
    assert float((chest.depth - nearest)[inside].quantile(0.99)) < COARSE


def test_the_wall_has_no_island_in_a_lung(chest):
    """Air would gather around it: the chest wall is one piece."""
    wall = (chest.wall < COARSE / 2).numpy()
    assert wall.mean() > 0.2
    _, pieces = ndi.label(wall, np.ones((3, 3, 3)))
    assert pieces == 1


@pytest.mark.parametrize("part", [None, (slice(4, 20), slice(0, 30), slice(9, 11))])
def test_refined_fields_stand_where_the_densities_are(chest, part):
    """The coordinates of the coarse voxels become those of the fine ones."""
    coarse, fine = (
        torch.stack(
            torch.meshgrid(
                *(
                    o + step * torch.arange(n)
                    for o, step, n in zip(origin, spacing, shape, strict=True)
                ),
                indexing="ij",
            )
        )
        for origin, spacing, shape in (
            (chest.coarse_origin, (COARSE,) * 3, chest.depth.shape),
            (chest.origin, SPACING, chest.soft.shape),
        )
    )
    if part is None:
        found, box = chest.refine(coarse)
        assert chest.soft[box].shape[:2] == chest.soft.shape[:2]
    else:
        found, box = chest.refine(coarse[(slice(None), *part)], part)
    wanted = fine[(slice(None), *box)]
    assert found.shape == wanted.shape
    inner = (slice(None), slice(1, -1), slice(None), slice(1, -1))  # no extrapolation
    torch.testing.assert_close(found[inner], wanted[inner], atol=1e-3, rtol=0)


def test_boxes_bound_the_cavities(chest):
    axes = [
        o + COARSE * torch.arange(n)
        for o, n in zip(chest.coarse_origin, chest.depth.shape, strict=True)
    ]
    for side in (RIGHT, LEFT):
        inside = torch.nonzero((chest.depth > COARSE / 2) & (chest.side == side))
        for axis in range(3):
            where = axes[axis][inside[:, axis]]
            assert where.min() >= chest.lungs[side, 0, axis]
            assert where.max() <= chest.lungs[side, 1, axis]


def test_lungs_are_air_and_tissue_without_bone(chest):
    (depth,), soft, bone = on_densities(chest, chest.depth)
    assert 0.1 < soft[depth > 3].mean() < 0.3
    assert bone[depth > COARSE].max() == 0
    assert (
        soft[(depth < -3) & (depth > -12)].mean() > 0.7
    )  # chest wall, heart, diaphragm


def test_no_contrast_agent_is_left(chest):
    """What is as dense as bone in the front of the mediastinum was iodine."""
    (depth, medial), soft, bone = on_densities(chest, chest.depth, chest.medial)
    y = torch.arange(soft.shape[1]) * SPACING[1]
    low, high = chest.lungs[:, 0, 1].min(), chest.lungs[:, 1, 1].max()
    heart = (medial < 1) & (depth < -2) & (y > low + 0.45 * (high - low))[None, :, None]
    share = float((bone[heart] > 0.05).float().mean())
    # the two scans with contrast agent were filled; the others keep their sternum
    assert share < (0.001 if chest.name in phantom._IODINE else 0.05)
    assert soft[heart].mean() == pytest.approx(1.02, abs=0.06)


def test_the_girdle_is_gone(chest):
    """Clavicles and scapulae of raised arms would stand on the film; they weigh 150 g."""
    (depth,), soft, bone = on_densities(chest, chest.depth)
    x = chest.origin[0] + SPACING[0] * torch.arange(soft.shape[0])
    off = ((x - chest.midline).abs() > 24)[:, None, None]
    z = torch.arange(soft.shape[2]) * SPACING[2]
    upper = (z > chest.lungs[:, 1, 2].max() - 190)[None, None]
    assert float(bone[(depth < -25) & off & upper].sum()) * VOXEL < 5
    assert float(bone[(depth < -25) & off].sum()) < 0.08 * float(bone.sum())


def test_the_abdomen_goes_on_below_the_scan_and_its_gas_fades(chest):
    below = chest.soft[..., : phantom._EXTRA]
    nx, ny = below.shape[:2]
    trunk = below[nx // 3 : 2 * nx // 3, 2 * ny // 5 : 3 * ny // 5]
    assert trunk[..., : phantom._EXTRA - phantom._FADE].min() > 0.6
    # the end of the scan is no edge: there slices differ less than others do
    films = chest.soft[nx // 4 : 3 * nx // 4, :, : phantom._EXTRA + 4].sum(1)
    steps = films.diff(dim=1).abs().mean(0)
    assert steps[phantom._EXTRA - 1] < steps[phantom._EXTRA :].max()
    assert chest.low[2] == chest.origin[2]
    assert chest.low[2] < -50


def test_vessels_lie_in_their_lung(chest):
    points, volume, side = (
        chest.vessels[:, :3],
        chest.vessels[:, 3],
        chest.vessels[:, 4],
    )
    depth = sample(chest.depth[None], points, chest.coarse_origin, COARSE)[0]
    assert float((depth < 0).float().mean()) < 0.02
    assert float((depth < -3).float().mean()) < 0.003
    assert volume.min() > 0
    assert 15 < float(volume.sum()) / 1000 < 60  # ml: the fine part of about 200
    mine = points[:, 0] > chest.midline
    assert float((mine == (side == RIGHT)).float().mean()) > 0.97


def test_vessels_are_finer_and_more_in_the_periphery_than_their_roots(chest):
    """Near the chest wall there are vessels, and each point there is thin."""
    wall = sample(chest.wall[None], chest.vessels[:, :3], chest.coarse_origin, COARSE)[
        0
    ]
    outer = chest.vessels[(wall > 3) & (wall < 15), 3]
    inner = chest.vessels[wall > 40, 3]
    assert len(outer) > 5000
    assert outer.median() < inner.median()


@pytest.mark.parametrize("which", [0, 1])
def test_the_girdle_is_a_right_one(which):
    girdle = load_girdle(get_settings().data)[which]
    chest = load_chest("chest1", get_settings().data)
    assert set(girdle) == {"clavicle", "scapula", "humerus"}
    middle = {
        name: (bone[:, :3] * bone[:, 3:]).sum(0) / bone[:, 3].sum()
        for name, bone in girdle.items()
    }
    grams = {name: float(bone[:, 3].sum()) / 1000 for name, bone in girdle.items()}
    assert chest.midline < middle["clavicle"][0] < middle["humerus"][0]
    assert middle["scapula"][1] < middle["clavicle"][1]  # the blade is behind
    assert 10 < grams["clavicle"] < 50
    assert 20 < grams["scapula"] < 130


def test_fat_is_lowered_and_neither_muscle_nor_lung():
    hu = np.repeat([-850.0, -95.0, 0.0, 50.0], 16).astype(np.float32)
    fine = np.broadcast_to(hu[None, None, :], (8, 4, 64)).copy()
    soft = phantom._densities(fine)["soft"][4, 1, phantom._EXTRA :].astype(float)
    before = 1 + hu / 1000
    middle = [8, 40, 56]
    np.testing.assert_allclose(soft[middle], before[middle], rtol=2e-3)
    assert soft[24] == pytest.approx(0.97 * before[24], rel=3e-3)


def test_the_abdomen_goes_on_below_the_scan_without_a_step():
    """Mirrored tissue: the first plane below is the last one of the scan."""
    generator = np.random.default_rng(0)
    soft = generator.uniform(0.9, 1.1, (12, 10, 60)).astype(np.float32)
    soft[3:6, 3:6, :8] = 0.2  # lung: what is mirrored of it is filled in the end
    bone = np.zeros_like(soft)
    longer, _ = phantom._extend(soft, bone)
    assert longer.shape[2] == 60 + phantom._EXTRA
    np.testing.assert_array_equal(longer[:, :, phantom._EXTRA :], soft)
    joined = longer[..., phantom._EXTRA - 1] - longer[..., phantom._EXTRA]
    assert np.abs(joined).max() < 0.05


def test_a_rib_of_beads_becomes_one_rib_and_keeps_its_mass():
    """An oblique bar, seen every fourth slice only, as thick slices would show it."""
    x, y, z = np.indices((90, 40, 60))
    bar = (np.hypot(y - 20, z - 30 - 0.25 * (x - 45)) < 4).astype(np.float32)
    bar[:12] = bar[-12:] = 0
    beads = bar * (0.6 + 0.4 * np.cos(2 * np.pi * x / 4))
    joined = phantom._smooth_along(beads)
    along = [volume[:, 20].max(axis=1)[25:65].std() for volume in (beads, joined)]
    assert along[1] < 0.25 * along[0]
    assert joined.sum() == pytest.approx(beads.sum(), rel=0.05)
    # across it nothing is blurred
    assert joined[:, 20, :][45, 36:].max() < 0.05


def test_what_stands_upright_is_no_rib_and_stays_as_it_is():
    x, y, z = np.indices((40, 40, 60))
    column = (np.hypot(x - 20, y - 20) < 5) * (0.5 + 0.5 * (z % 8 < 4))
    column = column.astype(np.float32)
    np.testing.assert_allclose(phantom._smooth_along(column), column, atol=1e-5)


def test_sharpening_keeps_the_mass_and_lifts_the_edge():
    x, y, _ = np.indices((60, 60, 3))
    tube = ((np.hypot(x - 30, y - 30) < 10) & (np.hypot(x - 30, y - 30) > 7)) * 1.0
    soft = phantom.ndi.gaussian_filter(tube, (1.2, 1.2, 0)).astype(np.float32)
    sharp = phantom._sharpen(soft, np.full(3, 1.25))
    assert sharp.sum() == pytest.approx(soft.sum(), rel=1e-4)
    assert sharp.max() > 1.1 * soft.max()
    assert sharp.min() >= 0


def test_unknown_anatomies_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"'chest9'.*chest1, chest2, chest3, chest4"):
        prepare(["chest9"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_prepared_is_not_prepared_again(monkeypatch):
    def refuse(*_):
        raise AssertionError("the CT was opened")

    monkeypatch.setattr(phantom.anatomy, "read_volume", refuse)
    prepare(ANATOMIES, get_settings().data)


def ellipsoid(centre, radii, shape=(120, 90, 90)):
    grid = np.indices(shape)
    return (
        sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) < 1
    )


def test_segmentation_of_a_drawn_chest():
    """Two ellipsoids of lung in a body with a trachea and a swallowed bubble."""
    hu = np.full((120, 90, 90), -1000.0)
    hu[ellipsoid((60, 45, 45), (56, 40, 300))] = 40
    right = ellipsoid((84, 45, 42), (20, 28, 36))
    left = ellipsoid((36, 45, 42), (18, 28, 36))
    hu[right | left] = -850
    trachea = ellipsoid((60, 45, 0), (4, 4, 1000))
    trachea[..., :50] = False
    hu[trachea] = -1000
    hu[ellipsoid((60, 45, 50), (22, 3, 3))] = -1000  # main bronchi
    hu[ellipsoid((60, 60, 20), (4, 4, 4))] = -900
    body, lungs = phantom._segment(hu)
    assert body[60, 45, 45]
    for label, truth in ((1, right), (2, left)):
        found = lungs == label
        dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
        assert dice > 0.96
    mediastinum, diaphragm = phantom._neighbours(lungs)
    assert mediastinum[60, 45, 42]
    assert not mediastinum[lungs > 0].any()
    assert diaphragm[84, 60, 4]  # under the right lung
    assert not (mediastinum & diaphragm).any()
    assert not diaphragm[:, :, 60:].any()


def test_lungs_that_cannot_be_told_apart_are_an_error():
    hu = np.full((120, 90, 90), -1000.0)
    hu[ellipsoid((60, 45, 45), (56, 40, 300))] = 40
    hu[ellipsoid((60, 45, 42), (30, 28, 36))] = -850
    with pytest.raises(phantom.anatomy.AnatomyError, match="could not be told apart"):
        phantom._segment(hu)


def test_a_sliver_inside_a_lung_is_no_wall():
    """Distances to the wall are those without it; it bounds the cavity all the same."""
    lungs = np.zeros((40, 30, 30), np.uint8)
    lungs[22:36, 5:25, 5:25] = 1
    lungs[4:18, 5:25, 5:25] = 2
    nothing = np.zeros(lungs.shape, bool)
    mediastinum = nothing.copy()
    mediastinum[18:22, 5:25, 5:25] = True
    body = np.ones(lungs.shape, bool)

    def distances():
        regions = phantom._Regions(body, lungs, mediastinum, nothing, nothing)
        return phantom._distances(regions)

    whole = distances()
    lungs[29, 12:18, 15] = 0
    torn = distances()
    np.testing.assert_array_equal(torn["wall"], whole["wall"])
    assert torn["wall"][29, 15, 15] > 10
    assert torn["depth"][29, 15, 15] < 0.5 * whole["depth"][29, 15, 15]
