"""Prepared knees: tissues lie where anatomy has them and hold on to each other."""

import numpy as np
import pytest
from scipy import ndimage as ndi

from medimg_utils.errors import InputError
from medimg_utils.knee.hard_tissue import label_map
from medimg_utils.knee.phantom import ANATOMIES, load_knee, prepare
from medimg_utils.knee.voxels import CARTILAGE, GRID, SPACES, Code
from medimg_utils.physics import anatomy

BONES = {
    "femur": Code.FEMUR,
    "tibia": Code.TIBIA,
    "patella": Code.PATELLA,
    "fibula": Code.FIBULA,
}


@pytest.fixture(scope="module", params=ANATOMIES)
def knee(request):
    return load_knee(request.param, "average")


def near(knee, point, radius):
    """Codes within a box around a point in mm."""
    point = np.asarray(point, float)
    return set(np.unique(knee.codes[GRID.box(point - radius, point + radius)]).tolist())


def places(knee, *codes):
    """Points in mm of every fourth voxel of some codes."""
    where = np.argwhere(np.isin(knee.codes[::2, ::2, ::2], codes))
    return where * 2 * GRID.spacing + np.array(GRID.low)


def test_bones_lie_as_in_a_right_knee(knee):
    middle = {name: places(knee, code).mean(0) for name, code in BONES.items()}
    assert middle["femur"][2] > middle["tibia"][2] + 50
    assert middle["patella"][1] > middle["femur"][1] + 25  # in front
    assert middle["fibula"][0] > middle["tibia"][0] + 15  # lateral
    assert middle["fibula"][1] < middle["tibia"][1]  # and behind


def test_the_limb_is_closed_and_lies_within_the_grid(knee):
    body = knee.codes != Code.AIR
    for side in (body[0], body[-1], body[:, 0], body[:, -1]):
        assert not side.any()
    inside = body[:, :, 40:-40:40]
    for k in range(inside.shape[2]):
        _, count = ndi.label(inside[:, :, k])
        assert count == 1
        assert ndi.binary_fill_holes(inside[:, :, k]).sum() == inside[:, :, k].sum()
        rim = inside[:, :, k] & ~ndi.binary_erosion(inside[:, :, k])
        outline = knee.codes[:, :, 40 + 40 * k][rim]
        # cords lie right under the skin: their surface may come through, no bone does
        assert not np.isin(outline, (*BONES.values(), Code.CORTEX, Code.MUSCLE)).any()
        assert (outline == Code.SKIN).mean() > 0.85


def test_every_tissue_is_there(knee):
    present = set(np.unique(knee.codes).tolist())
    optional = {Code.AIR, Code.FLUID, Code.FIRST_FREE, Code.FASCIA}
    assert {int(code) for code in Code} - present <= {int(code) for code in optional}
    assert max(present) < Code.FIRST_FREE


def test_cartilage_lies_between_bones_and_is_some_millimetres_thick(knee):
    cartilage = np.isin(knee.codes, CARTILAGE)
    bone = np.isin(knee.codes, (*BONES.values(), Code.CORTEX, Code.SCAR))
    box = GRID.box((-50, -45, -15), (50, 75, 65))
    far = ndi.distance_transform_edt(~bone[box]) * GRID.spacing
    depth = far[cartilage[box]]
    assert np.quantile(depth, 0.99) < 6.5
    assert 0.5 < np.median(depth) < 2.5


def test_menisci_fill_the_wedge_between_femur_and_tibia(knee):
    for side, sign in (("medial", -1), ("lateral", 1)):
        meniscus = knee.menisci[side]
        points = meniscus.voxels * GRID.spacing + np.array(GRID.low)
        assert np.sign(points[:, 0].mean()) == sign
        volume = len(points) * GRID.spacing**3
        assert 1000 < volume < 5000  # mm³; 1.5 to 4 ml in adults
        rim = meniscus.thickness[meniscus.radius > 0.85].mean()
        edge = meniscus.thickness[meniscus.radius < 0.25].mean()
        assert rim > 1.5 * edge  # a wedge
        # a crescent from the anterior to the posterior root, open to the notch
        front = points[meniscus.angle < 0.1].mean(0)
        back = points[meniscus.angle > 0.9].mean(0)
        middle = points[np.abs(meniscus.angle - 0.5) < 0.05].mean(0)
        assert front[1] > middle[1] > back[1]
        assert abs(middle[0]) > max(abs(front[0]), abs(back[0])) + 8


def test_one_label_map_has_menisci_and_the_other_two_get_made_ones():
    known = {}
    for name in ANATOMIES:
        labels, _ = anatomy.read_volume(label_map(name))
        known[name] = bool(np.isin(labels, (9, 10)).any())
    assert sorted(known.values()) == [False, False, True]


def test_tendons_and_ligaments_are_attached(knee):
    marks = knee.landmarks
    solid = {int(Code.CORTEX), *(int(code) for code in BONES.values())}
    # extensor mechanism: patella to tibial tubercle
    assert {int(Code.TENDON)} <= near(knee, marks["patella-pole"], 4)
    assert {int(Code.TENDON)} <= near(knee, marks["tubercle"], 4)
    assert {int(Code.TENDON)} <= near(knee, marks["patella-base"], 5)
    for mark in ("medial-epicondyle", "lateral-epicondyle"):
        found = near(knee, marks[mark], 5)
        assert Code.LIGAMENT in found
        assert found & solid
    assert Code.LIGAMENT in near(knee, marks["fibular-head"], 6)
    ligament = places(knee, Code.PCL)
    top, bottom = (ligament[ligament[:, 2].argmax()], ligament[ligament[:, 2].argmin()])
    assert near(knee, top, 5) & {int(Code.FEMUR), int(Code.CORTEX)}
    assert near(knee, bottom, 5) & {int(Code.TIBIA), int(Code.CORTEX)}


def test_the_patellar_tendon_is_one_cord(knee):
    marks = knee.landmarks
    line = np.linspace(marks["patella-pole"], marks["tubercle"], 15)[1:-1]
    assert all(Code.TENDON in near(knee, point, 4) for point in line)


def test_fluid_has_its_order_where_a_space_is_and_nowhere_else(knee):
    space = np.isin(knee.codes, SPACES)
    assert (knee.fill[space] > 0).all()
    assert not knee.fill[~space].any()


def test_a_heavy_limb_has_more_fat_than_a_lean_one():
    fat = [
        int((load_knee("knee1", habitus).codes == Code.FAT).sum())
        for habitus in ("lean", "average", "heavy")
    ]
    assert fat == sorted(fat)
    assert fat[2] > 1.5 * fat[0]


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"unknown anatomy 'knee9'.*knee1"):
        prepare({"knee9": ["lean"]})
    with pytest.raises(InputError, match=r"unknown habitus 'tall'.*lean"):
        load_knee("knee1", "tall")
    with pytest.raises(InputError, match="unknown habitus 'tall'"):
        prepare({"knee1": ["tall"]})
