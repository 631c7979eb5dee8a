"""Heads and their images: in the range of real cases, and as the physics says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medimg_utils.brain import scan
from medimg_utils.brain.head import FIELD_OF_VIEW, make_grid, make_head
from medimg_utils.brain.phantom import load_template
from medimg_utils.brain.scan import MODALITIES, random_protocol, signal, take
from medimg_utils.brain.simulate import Simulation, draw_case
from medimg_utils.errors import InputError

#: Mean z-scores of public cases by modality: CSF, grey and white matter, labels 1, 2, 4.
REAL = {
    "flair": (-1.2, 0.1, 0.0, 2.1, 1.9, 2.0),
    "t1": (-1.3, -0.1, 0.8, -0.5, 0.2, -0.1),
    "t1ce": (-0.8, -0.2, 0.5, -0.55, 0.0, 1.6),
    "t2": (0.6, 0.0, -0.55, 1.95, 0.7, 1.1),
}
PLAN = Simulation(patients=10, seed=77, spacing=2.0)


@pytest.fixture(scope="module")
def patients():
    """Ten patients at 2 mm: cases, heads and images."""
    template = load_template()
    found = []
    for index in range(10):
        case = draw_case(PLAN, index, "LGG" if index in (3, 7) else "HGG")
        head = make_head(template, case.patient, case.glioma, PLAN.spacing)
        images = {name: take(head, case.protocol, name) for name in MODALITIES}
        found.append((case, head, images))
    return found


def z_scores(image):
    """Clipped at the 99.9th percentile, then standardised over the brain."""
    inside = image > 0
    clipped = np.minimum(image, np.percentile(image[inside], 99.9)).astype(float)
    return (clipped - clipped[inside].mean()) / clipped[inside].std()


# --- range of real cases --------------------------------------------------------------


def test_z_scores_are_those_of_real_cases(patients):
    for name, wanted in REAL.items():
        rows = []
        for _, head, images in patients:
            z, inside = z_scores(images[name]), images[name] > 0
            parts = torch.stack(
                [head.tissues.csf, head.tissues.grey, head.tissues.white]
            )
            tissue = head.volume(parts.argmax(0) + 1).numpy() * (head.label == 0)
            masks = [tissue == k for k in (1, 2, 3)]
            masks += [head.label == k for k in (1, 2, 4)]
            rows.append(
                [z[m & inside].mean() if m.sum() > 40 else np.nan for m in masks]
            )
        found = np.nanmean(rows, 0)
        # tissues: half a standard deviation of the brain; tumours vary more
        assert np.abs(found[:3] - wanted[:3]).max() < 0.5, (name, found)
        assert np.abs(found[3:] - wanted[3:]).max() < 0.9, (name, found)


def test_volumes_places_and_brains_are_those_of_real_cases(patients):
    """Distance of the centroids 43 ± 6 mm; brain 1473 ± 124 cm³; one component mostly."""
    distance, brain = [], []
    for case, head, _ in patients:
        inside = head.volume(head.brain).numpy()
        voxel = PLAN.spacing**3 / 1000
        volumes = [(head.label == k).sum() * voxel for k in (1, 2, 4)]
        wish = case.glioma
        assert sum(volumes) == pytest.approx(wish.whole, rel=0.06)
        assert volumes[0] + volumes[2] == pytest.approx(wish.core, rel=0.12)
        assert volumes[2] == pytest.approx(wish.enhancing, rel=0.12, abs=0.3)
        centres = [np.argwhere(m).mean(0) for m in (inside, head.label > 0)]
        distance.append(np.linalg.norm(centres[0] - centres[1]) * PLAN.spacing)
        brain.append(inside.sum() * voxel)
        assert not head.label[~inside].any()
    assert np.mean(distance) == pytest.approx(43, abs=6)
    assert np.min(distance) > 20
    assert np.max(distance) < 65
    assert np.mean(brain) == pytest.approx(1473, abs=110)


def test_images_are_whole_numbers_in_one_mask(patients):
    for case, head, images in patients:
        inside = head.volume(head.brain).numpy()
        for name, image in images.items():
            assert image.dtype == np.int16
            assert image.min() == 0
            assert not image[~inside].any()
            seen = image[inside] > 0
            if case.protocol.acquisitions[name].missing:
                assert 0.8 < seen.mean() < 1
            else:
                assert seen.all()


# --- physics --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one(patients):
    """A patient whose tumour enhances."""
    return max(patients, key=lambda found: found[0].glioma.enhancing)


def plain(protocol, name, **changes):
    """The protocol with one acquisition without noise, shading and other faults."""
    clean = {
        "noise": 0.0,
        "bias": 0.0,
        "gamma": 1.0,
        "ghost": 0.0,
        "missing": 0.0,
        "outliers": 0,
        "matrix": 1.0,
        "shift": (0.0, 0.0, 0.0),
    }
    acquisition = replace(protocol.acquisitions[name], **(clean | changes))
    return replace(protocol, acquisitions=protocol.acquisitions | {name: acquisition})


def means(head, values):
    """Mean signal of nearly pure CSF, grey and white matter far from the tumour."""
    calm = (head.core < 0.01) & (head.oedema < 0.01) & (head.blood < 0.02)
    calm &= (head.rim < 0.1) & (head.stir < 0)  # moving CSF is not suppressed
    calm &= (head.dura < 0.02) & (head.lesions < 0.05) & (head.deep < 0.05) & head.brain
    shares = head.tissues
    masks = [(s > 0.95) & calm for s in (shares.csf, shares.grey, shares.white)]
    return [float(values[m].mean()) for m in masks]


def test_contrasts_of_the_four_modalities(patients):
    for case, head, _ in patients[:4]:
        csf, grey, white = means(head, signal(head, case.protocol, "t1"))
        assert csf < grey < white
        csf, grey, white = means(head, signal(head, case.protocol, "t2"))
        assert white < grey < csf
        csf, grey, white = means(head, signal(head, case.protocol, "flair"))
        assert csf < 0.5 * min(grey, white)
        flair = signal(head, case.protocol, "flair")
        wet = head.oedema > 0.6
        assert float(flair[wet].mean()) > 1.1 * white


def test_only_the_agent_tells_t1ce_from_t1(one):
    case, head, _ = one
    protocol = case.protocol
    plain_t1 = protocol.acquisitions["t1"]
    same = replace(protocol, acquisitions=protocol.acquisitions | {"t1ce": plain_t1})
    none = replace(same, agent=dict.fromkeys(same.agent, 0.0))
    before = signal(head, same, "t1")
    torch.testing.assert_close(signal(head, none, "t1ce"), before)
    after = signal(head, same, "t1ce")
    gain = after / before.clamp(min=1e-6)
    assert float(gain[head.enhancing > 0.8].median()) > 1.15
    assert float(gain[head.blood > 0.8].median()) > 1.5
    covered = head.core + head.dura + head.blood + head.bone
    intact = (head.tissues.white > 0.99) & (covered < 1e-3)
    assert intact.sum() > 1000
    assert float((gain[intact] - 1).abs().max()) < 0.15
    doubled = replace(same, agent=same.agent | {"tumour": 2 * same.agent["tumour"]})
    rim = head.enhancing > 0.8
    assert float(signal(head, doubled, "t1ce")[rim].mean()) > float(after[rim].mean())


def test_necrosis_is_dark_and_its_rim_bright_after_contrast(one):
    case, head, _ = one
    values = signal(head, case.protocol, "t1ce")
    volume = head.volume(values).numpy()
    assert volume[head.label == 4].mean() > 1.2 * volume[head.label == 1].mean()


def test_thick_slices_blur_across_themselves_only(one):
    case, head, _ = one

    def roughness(thickness):
        protocol = plain(
            case.protocol, "t2", axis=2, thickness=thickness, distance=thickness
        )
        image = take(head, protocol, "t2").astype(float)
        inside = (image[1:-1, 1:-1, 1:-1] > 0) & (image[:-2, 1:-1, 1:-1] > 0)
        steps = [
            np.diff(image, 2, axis=a)[
                tuple(slice(None) if a == b else slice(1, -1) for b in range(3))
            ]
            for a in (0, 2)
        ]
        return [np.abs(step[inside]).mean() / image[image > 0].mean() for step in steps]

    thin, thick = roughness(2.0), roughness(6.0)
    assert thick[1] < 0.5 * thin[1]
    assert thick[0] > 0.5 * thin[0]


def test_noise_shading_and_level_are_as_asked(one):
    case, head, _ = one
    clean = take(head, plain(case.protocol, "t1", level=500.0), "t1").astype(float)
    inside = clean > 0
    assert clean[inside].mean() == pytest.approx(500, rel=0.01)
    noisy = take(head, plain(case.protocol, "t1", level=500.0, noise=0.1), "t1")
    rest = (noisy - clean)[inside]
    # interpolation averages some of it away
    assert 0.1 < rest.std() / (500 * 0.1) < 0.9
    shaded = take(head, plain(case.protocol, "t1", level=500.0, bias=0.3), "t1")
    ratio = shaded[inside] / clean[inside]
    assert 0.08 < np.log(ratio).std() < 0.6
    upper = np.quantile(ratio, 0.999)
    assert upper < 4


def test_outliers_and_missing_planes(one):
    case, head, _ = one
    calm = take(head, plain(case.protocol, "flair"), "flair")
    wild = take(head, plain(case.protocol, "flair", outliers=100), "flair")
    changed = wild != calm
    assert 0 < changed.sum() <= 100
    assert wild.max() > 1.5 * calm.max()
    for share, end in ((0.1, 0), (-0.1, -1)):
        cut = take(head, plain(case.protocol, "flair", missing=share), "flair")
        planes = np.flatnonzero(calm.any((0, 1)))
        empty = ~cut.any((0, 1))
        assert empty[planes[end]]
        assert empty[planes].sum() == round(0.1 * len(planes))


def test_a_shift_moves_the_image(one):
    case, head, _ = one
    still = take(head, plain(case.protocol, "t1", axis=2), "t1").astype(float)
    inner = np.zeros_like(still, bool)
    inner[20:-20, 20:-20, 20:-20] = True
    inner &= still > 0
    for axis in range(3):  # in the plane, and across the slices
        shift = [0.0, 0.0, 0.0]
        shift[axis] = PLAN.spacing
        protocol = plain(case.protocol, "t1", axis=2, shift=tuple(shift))
        moved = take(head, protocol, "t1")
        by_one, away = np.roll(still, 1, axis), np.abs(moved - still)[inner].mean()
        assert np.abs(moved - by_one)[inner].mean() < 0.5 * away


def test_every_seed_draws_another_scanner():
    drawn = [random_protocol(0.3, np.random.default_rng(seed)) for seed in range(200)]
    assert {p.field for p in drawn} == {1.5, 3.0}
    for name in MODALITIES:
        taken = [p.acquisitions[name] for p in drawn]
        assert len({a.sequence.tr for a in taken}) > 100
        assert np.mean([a.axis == 2 for a in taken]) > 0.7
        assert all(1 <= a.thickness <= a.distance for a in taken)
    again = random_protocol(0.3, np.random.default_rng(5))
    assert again == drawn[5]
    assert 0 < np.mean([p.acquisitions["flair"].outliers > 0 for p in drawn]) < 0.2
    assert not any(p.acquisitions["t1"].outliers for p in drawn)


@pytest.mark.parametrize("size", [40, 61])
def test_resampling_keeps_constants(size):
    ones = torch.ones(size)
    places = (torch.arange(20) + 0.5) * (size / 20) - 0.5
    for weights in (
        scan._blur(size, 1.2, 0.3),
        scan._profile(size, places, 3.0),
    ):
        torch.testing.assert_close(weights @ ones, torch.ones(len(weights)))
    back = scan._between(size, places, 0.0)
    torch.testing.assert_close(back @ torch.ones(20), ones)
    # a ramp comes back as a ramp between the outer slices
    ramp = back @ places
    inner = slice(int(places[0]) + 1, int(places[-1]))
    torch.testing.assert_close(ramp[inner], torch.arange(size).float()[inner])


# --- grid -----------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [1.0, 2.0, 3.0, 4.0])
def test_the_field_of_view_is_that_of_brats(spacing):
    grid = make_grid(spacing)
    extent = np.array(grid.shape) * spacing
    assert np.abs(extent - FIELD_OF_VIEW).max() <= spacing / 2
    if spacing == 1:
        assert grid.shape == (240, 240, 155)
    for axis, part in zip(grid.axes, grid.box, strict=True):
        assert len(axis) == part.stop - part.start
        torch.testing.assert_close(
            axis.diff(), torch.full((len(axis) - 1,), spacing), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("spacing", [0.0, 0.5, 5.0, -1.0, float("nan"), float("inf")])
def test_other_spacings_are_refused(spacing):
    with pytest.raises(InputError, match="1 to 4 mm are supported"):
        make_grid(spacing)
    with pytest.raises(InputError, match="1 to 4 mm are supported"):
        Simulation(1, 1, spacing=spacing)


def test_one_patient_is_the_same_at_every_spacing():
    template = load_template()
    case = draw_case(PLAN, 0, "HGG")
    heads = [make_head(template, case.patient, case.glioma, s) for s in (2.0, 4.0)]
    volumes = [
        np.array([(h.label == k).sum() for k in (1, 2, 4)]) * h.grid.spacing**3 / 1000
        for h in heads
    ]
    np.testing.assert_allclose(volumes[0], volumes[1], rtol=0.08)
    # the tumour lies in the same place
    places = []
    for head in heads:
        index = np.argwhere(head.label > 0)
        mm = [axis.numpy()[i] for axis, i in zip(head.grid.axes, index.T, strict=True)]
        places.append(np.mean(mm, axis=1))
    np.testing.assert_allclose(places[0], places[1], atol=2.5)
