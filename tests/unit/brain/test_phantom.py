"""The brain: tissues in the shares of real brains, deformed without folding."""

import math

import numpy as np
import pytest
import torch

from medimg_utils.brain import phantom
from medimg_utils.brain.phantom import (
    CENTRE,
    CHANNELS,
    COARSE,
    HIGH,
    LOCATIONS,
    LOW,
    Patient,
    coarse_points,
    load_template,
    pose,
    random_patient,
    refine,
    sample_tissues,
)
from medimg_utils.errors import InputError
from medimg_utils.physics import anatomy


@pytest.fixture(scope="module")
def template():
    return load_template()


def person(**changes):
    """The template itself: no deformation but what is asked for."""
    plain = {
        "age": 50.0,
        "sex": "F",
        "scale": (1.0, 1.0, 1.0),
        "degrees": (0.0, 0.0, 0.0),
        "widening": 0.0,
        "atrophy": 0.0,
        "folding": 0.0,
        "lesions": 0.0,
        "seed": 1,
    }
    return Patient(**(plain | changes))


def shares(template, patient, spacing=COARSE):
    """Tissues of a patient on the coarse grid, and which voxels are brain."""
    posed = pose(template, patient)
    tissues = sample_tissues(template, posed.pull.movedim(0, -1), posed.folds, spacing)
    return tissues, tissues.at["surface"] > 0.7


# --- the template ---------------------------------------------------------------------


def at(template, *point):
    values = template.at(torch.tensor([point], dtype=torch.float32), *CHANNELS)
    return {name: float(value[0]) for name, value in values.items()}


@pytest.mark.parametrize(
    ("point", "where"),
    [
        ((25, 25, 30), "frontal lobe"),
        ((-50, -15, -22), "temporal lobe"),
        ((25, -55, 45), "parietal lobe"),
        ((-20, -88, 5), "occipital lobe"),
        ((12, -18, 8), "deep nuclei"),
        ((0, -28, -38), "brainstem"),
        ((-25, -65, -40), "cerebellum"),
        ((0, 90, 0), "outside"),
    ],
)
def test_places_that_any_atlas_knows_have_their_names(template, point, where):
    label = template.locate(torch.tensor(point, dtype=torch.float32))
    assert LOCATIONS[int(label)] == where


def test_structures_lie_where_any_atlas_has_them(template):
    assert at(template, 24, -45, 12)["ventricle"] > 1  # trigone
    assert at(template, 0, -5, 0)["ventricle"] > -3  # third ventricle
    assert at(template, 0, -45, -32)["ventricle"] > 0  # fourth ventricle
    assert at(template, 20, -30, -12)["ventricle"] < -3  # the midbrain's cistern
    assert at(template, 25, -65, -40)["cerebellum"] > 0.9
    assert at(template, 25, -65, 20)["cerebellum"] < 0.05
    assert at(template, 12, -18, 8)["deep"] > 0.9
    assert at(template, 40, 30, 30)["deep"] < 0.05
    assert at(template, 0, 20, 60)["dura"] < 1  # falx
    assert at(template, 30, -75, -18)["dura"] < 6  # tentorium
    assert at(template, 30, 20, 30)["dura"] > 20
    assert at(template, 0, -30, 70)["sinus"] < 8  # superior sagittal sinus
    assert at(template, 19, -5, -1)["iron"] > 0.9  # pallidum
    assert at(template, 25, 20, 30)["potential"] > 0.9  # white matter
    assert (
        at(template, 35, 0, 0)["hemisphere"] > 0 > at(template, -35, 0, 0)["hemisphere"]
    )


def test_distances_are_distances(template):
    """Where a field is the distance to a surface, it grows by 1 mm per mm."""
    points = torch.tensor([[0.0, y, 55.0] for y in range(-60, 30, 10)])
    step = torch.tensor([4.0, 0, 0])
    near = template.at(points + step, "dura")["dura"]
    far = template.at(points + 2 * step, "dura")["dura"]
    torch.testing.assert_close(far - near, torch.full_like(far, 4.0), atol=0.2, rtol=0)
    inner = torch.tensor([[35.0, -20.0, 40.0]])
    outward = template.at(inner, "hull")["hull"]
    assert 10 < float(outward) < 30


def test_widening_points_out_of_the_ventricles_and_normals_out_of_the_head(template):
    points = coarse_points() + CENTRE
    fields = phantom.sample(template.directions, points, template.origin, COARSE)
    values = template.at(points, "ventricle", "hull")
    for vectors, name, low, high in (
        (fields[3:], "ventricle", -8, -2),
        (fields[:3], "hull", 3, 20),
    ):
        slope = torch.stack(torch.gradient(values[name], spacing=COARSE))
        shell = (values[name] > low) & (values[name] < high)
        along = -(slope * vectors).sum(0)[shell]
        # positive inside: outward is down the slope
        assert (along > 0).float().mean() > 0.9


def test_a_damaged_archive_is_not_prepared(tmp_path, monkeypatch):
    def refuse(name, data_dir=None):
        raise anatomy.AnatomyError("cannot fetch")

    monkeypatch.setattr(anatomy, "read_volume", refuse)
    with pytest.raises(InputError, match="cannot fetch"):
        phantom.prepare(tmp_path)
    assert not list(tmp_path.rglob("*.npz"))


# --- patients -------------------------------------------------------------------------


def test_tissue_shares_are_those_of_real_brains(template):
    """19 % CSF, 45 % grey and 37 % white matter; 1473 ± 124 cm³ (public cases)."""
    found = []
    for seed in range(12):
        patient = random_patient(55, np.random.default_rng(seed))
        tissues, brain = shares(template, patient)
        parts = torch.stack([tissues.csf, tissues.grey, tissues.white])
        torch.testing.assert_close(
            parts.sum(0), torch.ones(brain.shape), atol=1e-5, rtol=0
        )
        assert parts.min() >= 0
        found.append([*parts[:, brain].mean(1), float(brain.sum()) * COARSE**3 / 1000])
    csf, grey, white, volume = np.mean(found, 0)
    assert csf == pytest.approx(0.19, abs=0.04)
    assert grey == pytest.approx(0.45, abs=0.05)
    assert white == pytest.approx(0.37, abs=0.05)
    assert volume == pytest.approx(1473, abs=80)
    assert 50 < np.std(found, 0)[3] < 200


def test_nothing_folds(template):
    """The pull map keeps its orientation everywhere in the brain."""
    whole = float((template.fine[list(CHANNELS).index("surface")] > 0).sum())
    for seed in range(3):
        patient = random_patient(70, np.random.default_rng(seed))
        posed = pose(template, patient)
        slopes = torch.stack(
            [torch.stack(torch.gradient(p, spacing=COARSE)) for p in posed.pull]
        )
        determinant = torch.linalg.det(slopes.permute(2, 3, 4, 0, 1))
        brain = template.at(posed.pull.movedim(0, -1), "surface")["surface"] > 0
        assert determinant[brain].min() > 0.05
        # so its integral over the patient is the volume of the template
        volume = float(determinant[brain].sum()) * COARSE**3
        assert volume == pytest.approx(whole, rel=0.01)


def test_atrophy_makes_csf_of_cortex_and_widening_makes_ventricles(template):
    def csf_and_ventricles(**changes):
        tissues, brain = shares(template, person(**changes))
        return float(tissues.csf[brain].mean()), int(
            (tissues.at["ventricle"] > 0).sum()
        )

    plain = csf_and_ventricles()
    shrunk = csf_and_ventricles(atrophy=0.15)
    wide = csf_and_ventricles(widening=3.0)
    assert shrunk[0] > plain[0] + 0.02
    assert shrunk[1] == plain[1]
    assert wide[1] > 1.5 * plain[1]


def test_old_brains_have_more_csf():
    def mean(age):
        drawn = [random_patient(age, np.random.default_rng(s)) for s in range(300)]
        return np.mean([[p.widening, p.atrophy, p.lesions] for p in drawn], 0)

    assert (mean(80) > mean(50)).all()


def test_every_patient_has_a_cortex_of_their_own(template):
    """Two patients of one shape share the deep brain, but not the sulci."""
    first, brain = shares(template, person(folding=0.25, seed=1))
    same, _ = shares(template, person(folding=0.25, seed=1))
    other, _ = shares(template, person(folding=0.25, seed=2))
    assert torch.equal(first.csf, same.csf)
    shell = brain & (first.at["hull"] > 2) & (first.at["hull"] < 12)
    a, b = first.csf[shell], other.csf[shell]
    assert np.corrcoef(a, b)[0, 1] < 0.7


def test_scale_and_rotation_act_about_the_middle(template):
    patient = person(scale=(0.9, 1.0, 1.0), degrees=(0.0, 0.0, 90.0))
    pull = pose(template, patient).pull
    middle = [int(n) // 2 for n in (HIGH - LOW) / COARSE]
    # bends move points by some mm; a quarter turn of 60 mm is far more
    points = coarse_points()
    right = pull[:, middle[0] + 24, middle[1], middle[2]] - CENTRE
    x = float(points[middle[0] + 24, 0, 0, 0])
    turned = torch.tensor([0.0, -x, 0.0])
    turned[0] = float(points[0, middle[1], 0, 1]) / 0.9
    assert float((right - turned).norm()) < 20


def test_folds_do_not_reach_the_deep_brain(template):
    folds = pose(template, person(folding=0.3)).folds
    still = pose(template, person(folding=0.0)).folds
    hull = template.at(pose(template, person()).pull.movedim(0, -1), "hull")["hull"]
    change = (folds - still).abs()
    assert change[hull > 45].max() < 0.02
    assert change[(hull > 2) & (hull < 8)].mean() > 0.1


# --- grids ----------------------------------------------------------------------------


def test_refine_keeps_linear_fields_and_grid_values():
    points = coarse_points()
    field = (points * torch.tensor([1.0, -2.0, 0.5])).sum(-1)
    axes = tuple(torch.linspace(-70, 70, 23) for _ in range(3))
    fine = refine(field[None], axes)[0]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    torch.testing.assert_close(fine, x - 2 * y + 0.5 * z, atol=1e-3, rtol=0)
    noise = torch.randn(points.shape[:3], generator=torch.Generator().manual_seed(0))
    own = tuple(
        points.select(3, d)[tuple(slice(None) if e == d else 0 for e in range(3))]
        for d in range(3)
    )
    torch.testing.assert_close(refine(noise[None], own)[0], noise, atol=1e-5, rtol=0)


def test_refine_follows_a_wave_better_than_linear_interpolation():
    points = coarse_points()
    length = 15.0
    wave = torch.sin(2 * math.pi * points[..., 0] / length)
    axes = (torch.arange(-40, 40, 0.5), torch.zeros(1), torch.zeros(1))
    fine = refine(wave[None], axes)[0, :, 0, 0]
    true = torch.sin(2 * math.pi * axes[0] / length)
    linear = np.interp(axes[0], points[:, 0, 0, 0], wave[:, 0, 0])
    assert (fine - true).abs().max() < 0.4 * np.abs(linear - true.numpy()).max()


def test_moved_by_nothing_is_the_same_and_by_a_shift_is_shifted(template):
    posed = pose(template, person(folding=0.2))
    still = posed.moved(torch.zeros_like(posed.pull))
    torch.testing.assert_close(still.pull, posed.pull, atol=1e-3, rtol=0)
    shift = torch.zeros_like(posed.pull)
    shift[1] = 2 * COARSE
    there = posed.moved(shift)
    torch.testing.assert_close(
        there.pull[:, :, 4:-4], posed.pull[:, :, 2:-6], atol=1e-3, rtol=0
    )
    torch.testing.assert_close(
        there.folds[:, 4:-4], posed.folds[:, 2:-6], atol=1e-3, rtol=0
    )


def test_tissue_volumes_do_not_depend_on_the_spacing(template):
    patient = random_patient(60, np.random.default_rng(3))
    posed = pose(template, patient)
    found = []
    for spacing in (2.0, 4.0):
        axes = tuple(
            torch.arange(float(a), float(b), spacing)
            for a, b in zip(LOW, HIGH, strict=True)
        )
        fields = refine(torch.cat([posed.pull, posed.folds[None]]), axes)
        tissues = sample_tissues(
            template, fields[:3].movedim(0, -1), fields[3], spacing
        )
        brain = tissues.at["surface"] > 0
        volume = spacing**3 * float(brain.sum())
        found.append(
            [volume, *(float(t[brain].mean()) for t in (tissues.csf, tissues.white))]
        )
    np.testing.assert_allclose(found[0], found[1], rtol=0.04)
