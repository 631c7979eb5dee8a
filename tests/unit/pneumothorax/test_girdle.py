"""The shoulder girdle is turned, not bent, and stands where shoulders are."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from medimg_utils.pneumothorax.girdle import _align, girdle_path

DIRECTION = st.tuples(*[st.floats(-1, 1)] * 3)


@given(DIRECTION, DIRECTION)
def test_one_direction_is_turned_into_another(source, target):
    a, b = torch.tensor(source), torch.tensor(target)
    assume(a.norm() > 0.1 and b.norm() > 0.1)
    a, b = a / a.norm(), b / b.norm()
    assume(a @ b > -0.9)  # the clavicle is never turned about
    turn = _align(a, b)
    torch.testing.assert_close(turn @ a, b, atol=1e-4, rtol=0)
    torch.testing.assert_close(turn @ turn.T, torch.eye(3), atol=1e-4, rtol=0)
    assert float(torch.linalg.det(turn)) == pytest.approx(1, abs=1e-4)


def test_both_shoulders_stand_beside_the_apices(pose, girdle):
    view = pose("chest1", 0, lungs_share=0.66, offset=(0.0, 0.0))
    path = girdle_path(view, girdle)
    x, z = view.film_mm()
    total = path.sum()
    assert float((path * (x > 0)).sum() / total) == pytest.approx(0.5, abs=0.1)
    assert float((path * (x.abs() < 15)).sum() / total) < 0.05
    assert float((path * (z < -250)).sum() / total) < 0.1


def test_the_girdle_has_the_mass_of_its_bones(pose, girdle):
    """Without humeri, which reach beyond the film, all of it is on the film."""
    view = pose("chest1", 0, lungs_share=0.66, offset=(0.0, 0.0))
    bones = {**girdle[0], "humerus": girdle[0]["humerus"][:0]}
    doubled = {
        name: bone * torch.tensor([1.0, 1, 1, 2]) for name, bone in bones.items()
    }
    none = {name: bone[:0] for name, bone in bones.items()}  # but the humerus' shaft
    one, two, shaft = (girdle_path(view, (b, b)) for b in (bones, doubled, none))
    torch.testing.assert_close(two - one, one - shaft, atol=1e-4, rtol=1e-4)
    low, high = view.chest.lungs[:, 0].amin(0), view.chest.lungs[:, 1].amax(0)
    size = view.patient.girdle * float(high[0] - low[0]) / 252 * 0.92
    grams = 2 * size**3 * sum(float(bone[:, 3].sum()) for bone in bones.values())
    # scaled with the patient, and seen under the magnification of where it lies
    grams *= float(torch.tensor(view.patient.scale).prod())
    found = float((one - shaft).sum()) * view.pixel_mm**2 / view.magnification**2
    assert found == pytest.approx(grams, rel=0.1)


def test_stretched_lungs_leave_the_bones_of_the_shoulder_as_they_are(pose, girdle):
    grams, tall = {}, {}
    bones = {**girdle[0], "humerus": girdle[0]["humerus"][:0]}
    none = {name: bone[:0] for name, bone in bones.items()}
    for stretch in (1.0, 1.3):
        view = pose("chest1", 0, lungs_share=0.6, offset=(0.0, 0.0), stretch=stretch)
        path, shaft = (girdle_path(view, (b, b)) for b in (bones, none))
        path = (path - shaft) * view.pixel_mm**2
        _, z = view.film_mm()
        rows = path.sum(1)
        grams[stretch] = float(path.sum())
        middle = (rows * z[:, 0]).sum() / rows.sum()
        tall[stretch] = float(
            ((rows * (z[:, 0] - middle) ** 2).sum() / rows.sum()).sqrt()
        )
    assert grams[1.3] == pytest.approx(grams[1.0], rel=0.03)
    assert tall[1.3] == pytest.approx(tall[1.0], rel=0.1)


def test_each_patient_has_one_of_two_shoulders(pose, girdle):
    first, second = (
        girdle_path(pose("chest3", 1, patient={"shoulder": n}), girdle) for n in (0, 1)
    )
    assert not torch.equal(first, second)
    assert float(first.sum()) == pytest.approx(float(second.sum()), rel=0.2)
