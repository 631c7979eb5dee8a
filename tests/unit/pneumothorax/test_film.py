"""Rendered films: the mask is where the air is, and only the air differs in a twin."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage as ndi

from medimg_utils.physics import anatomy
from medimg_utils.pneumothorax.collapse import Cavity, Pneumothorax, carry
from medimg_utils.pneumothorax.film import (
    SMALLEST,
    _crisp,
    _outline,
    fit_pneumothorax,
    lung_fields,
    outline,
    render,
)
from medimg_utils.pneumothorax.phantom import ANATOMIES, COARSE, LEFT, RIGHT
from medimg_utils.settings import get_settings

SIZE = 160

CASES = [
    # anatomy, side, kind, wanted share of the film
    ("chest1", RIGHT, "apical", 0.006),
    ("chest1", LEFT, "complete", 0.03),
    ("chest2", RIGHT, "apicolateral", 0.015),
    ("chest2", LEFT, "apical", 0.008),
    ("chest3", RIGHT, "basal", 0.006),
    ("chest3", LEFT, "apicolateral", 0.012),
    ("chest4", RIGHT, "complete", 0.04),
    ("chest4", LEFT, "several", 0.006),
]


@pytest.fixture(
    scope="module", params=range(len(CASES)), ids=lambda i: "-".join(map(str, CASES[i]))
)
def pair(request, pose, girdle):
    """View, gap, film with pneumothorax, the same without, and what was wanted."""
    name, side, kind, area = CASES[request.param]
    view = pose(name, request.param)
    wanted = Pneumothorax(side, kind, seed=request.param, area=area)
    gap = fit_pneumothorax(view, wanted)
    assert gap is not None
    return view, gap, render(view, girdle, gap), render(view, girdle, None), wanted


def test_the_mask_has_the_wanted_area(pair):
    *_, film, _, wanted = pair
    assert film.mask.mean() == pytest.approx(wanted.area, rel=0.3)


def test_a_film_without_pneumothorax_has_no_mask(pair):
    assert not pair[3].mask.any()


def test_the_mask_lies_on_its_side(pair):
    """The patient's right is on the left of the film."""
    view, _, film, _, wanted = pair
    chest = view.chest
    middle = torch.tensor(
        [
            [
                chest.midline,
                float(chest.lungs[:, :, 1].mean()),
                float(chest.lungs[:, :, 2].mean()),
            ]
        ]
    )
    column = float(view.pixels(middle)[0, 1])
    columns = np.nonzero(film.mask)[1]
    on_the_left = np.mean(columns < column)
    assert on_the_left > 0.97 if wanted.side == RIGHT else on_the_left < 0.03


def test_the_mask_lies_in_the_lung_fields(pair):
    """`lungs` are the healthy lungs where nothing opaque hides them; edges a pixel soft."""
    *_, film, twin, _ = pair
    np.testing.assert_array_equal(film.lungs, twin.lungs)
    near = ndi.binary_dilation(film.lungs, iterations=2)
    assert (film.mask & ~near).sum() <= 0.02 * film.mask.sum()
    assert (film.mask & ~film.lungs).sum() <= 0.15 * film.mask.sum()


def test_on_every_ray_of_the_mask_there_is_air_and_hardly_any_lung(pair):
    view, (cavity, g), film, _, _ = pair
    air, lung = cavity.shares(g)
    gas, rest = view.project(
        torch.stack([air, lung]), cavity.origin, torch.full((3,), COARSE), SIZE
    )
    core = torch.from_numpy(ndi.binary_erosion(film.mask))
    if core.any():
        assert gas[core].min() > 1
        assert (rest[core] < 0.3 * gas[core] + 3).float().mean() > 0.98


def test_the_gap_is_darker_than_the_lung_that_was_there(pair):
    *_, film, twin, _ = pair
    change = film.pixels.astype(float) - twin.pixels
    assert change[film.mask].mean() < -2
    assert (change[film.mask] < 0).mean() > 0.6


def test_a_twin_differs_in_the_affected_half_alone(pair):
    """The display curve takes its ends from the whole picture: a few grey levels remain."""
    view, _, film, twin, wanted = pair
    change = abs(film.pixels.astype(float) - twin.pixels)
    chest = view.chest
    other = LEFT if wanted.side == RIGHT else RIGHT
    low, high = chest.lungs[other]
    edge = torch.stack([low, high])
    columns = view.pixels(edge)[:, 1]
    inner = int(columns.max()) if other == RIGHT else int(columns.min())
    calm = (
        change[:, : max(1, inner - 20)] if other == RIGHT else change[:, inner + 20 :]
    )
    assert np.median(calm) <= 6
    assert calm.mean() < 0.5 * change[film.mask].mean() + 1


def test_nothing_in_the_lungs_is_clipped(pair):
    *_, film, twin, _ = pair
    for picture in (film, twin):
        assert (picture.pixels[picture.lungs] == 0).mean() < 0.005
        assert (picture.pixels[picture.lungs] == 255).mean() < 0.01
    assert (film.pixels[film.mask] == 0).mean() < 0.05


def test_the_picture_looks_like_a_chest(pair):
    """Lungs are darker than what is beside them, and the picture uses its grey values."""
    *_, twin, _ = pair
    between = ndi.binary_closing(twin.lungs, iterations=30) & ~twin.lungs
    assert twin.pixels[twin.lungs].mean() < twin.pixels[between].mean() - 15
    assert np.ptp(np.quantile(twin.pixels, [0.02, 0.98])) > 100
    assert 0.12 < twin.lungs.mean() < 0.55
    assert twin.pixels.dtype == np.uint8


# --- organs of the CT that has labels -------------------------------------------------


@pytest.fixture(scope="module")
def organs():
    """Heart, aorta, liver, spleen and stomach as they were labelled, and their spacing.

    The numbers are those of `chest1-structures`. Nothing of the simulation uses them to
    decide what hides air.
    """
    labels, spacing = anatomy.read_volume("chest1-labels", get_settings().data)
    inside = np.isin(labels, (1, 5, 6, 51, 52)).astype(np.float32)
    return torch.from_numpy(inside)[None], torch.from_numpy(spacing).float()


@pytest.mark.parametrize(
    ("kind", "side", "area"),
    [
        ("basal", RIGHT, 0.01),
        ("basal", LEFT, 0.01),
        ("complete", RIGHT, 0.06),
        ("complete", LEFT, 0.06),
        ("tension", LEFT, 0.07),
    ],
)
def test_nothing_is_outlined_over_heart_and_abdomen(organs, pose, kind, side, area):
    """A complete collapse has air behind the heart, and a basal one behind the dome."""
    view = pose("chest1", len(kind), tension=side if kind == "tension" else None)
    volume, spacing = organs
    path = view.project(volume, spacing / 2, spacing, SIZE)[0]
    gap = fit_pneumothorax(view, Pneumothorax(side, kind, 0, area))
    assert gap is not None
    cavity, g = gap
    gas = view.project(
        cavity.shares(g)[0][None], cavity.origin, torch.full((3,), COARSE), SIZE
    )[0]
    assert ((gas > 5) & (path > 40)).float().mean() > 0.05 * area
    # the edge is soft; a mask that nothing limits has a quarter there, and more
    assert (path[outline(view, gap)] > 40).float().mean() < 0.05


# --- vessels --------------------------------------------------------------------------


def test_a_vessel_of_a_film_moves_with_the_lung(pose, girdle):
    """One thick vessel near the chest wall, where the lung comes away from it."""
    view = pose("chest3", 7, findings=(), photons=1e9)
    gap = fit_pneumothorax(view, Pneumothorax(RIGHT, "apicolateral", 0, 0.06))
    assert gap is not None
    cavity, g = gap
    near = (cavity.inside > 3) & (cavity.wall < 8) & (g > 20)
    at = cavity.origin + COARSE * torch.argwhere(near)[len(near[near]) // 2]
    vessel = torch.tensor([[*at.tolist(), 400.0, RIGHT]])
    drawn, empty = (
        replace(view, chest=replace(view.chest, vessels=vessels))
        for vessels in (vessel, vessel[:0])
    )
    here, moved = view.pixels(torch.stack([at, carry(*gap, at[None])[0]]))
    assert (here - moved).norm() > 8
    for there, one in ((here, None), (moved, gap)):
        films = [render(v, girdle, one).pixels.astype(float) for v in (drawn, empty)]
        brightest = np.unravel_index((films[0] - films[1]).argmax(), films[0].shape)
        assert np.abs(brightest - there.numpy()).max() < 2


# --- single films ---------------------------------------------------------------------


def test_the_same_view_gives_the_same_film(pose, girdle):
    first = render(pose("chest3", 5, size=96), girdle, None)
    again = render(pose("chest3", 5, size=96), girdle, None)
    np.testing.assert_array_equal(first.pixels, again.pixels)


def test_a_mirrored_patient_is_the_mirror_image(pose, girdle):
    """Except for the letter, which is left out: it would read backwards."""
    devices = ("line", "marker")
    plain = pose("chest3", 5, size=96, devices=("line",))
    mirrored = pose("chest3", 5, size=96, patient={"mirrored": True}, devices=devices)
    gap = fit_pneumothorax(plain, Pneumothorax(RIGHT, "apical", 1, 0.01))
    film, other = render(plain, girdle, gap), render(mirrored, girdle, gap)
    np.testing.assert_array_equal(other.pixels, film.pixels[:, ::-1])
    np.testing.assert_array_equal(other.mask, film.mask[:, ::-1])
    np.testing.assert_array_equal(other.lungs, film.lungs[:, ::-1])
    assert other.devices == ("line",)


@pytest.mark.parametrize("name", ANATOMIES)
@pytest.mark.parametrize("view_name", ["PA", "AP"])
def test_lungs_fill_their_share_of_the_film(pose, name, view_name):
    view = pose(name, 11, view=view_name, lungs_share=0.75, offset=(0.0, 0.0))
    visible, path = lung_fields(view, 96)
    columns = np.nonzero((path > 10).any(0).numpy())[0]
    assert (columns.max() - columns.min() + 1) / 96 == pytest.approx(0.75, abs=0.1)
    rows = np.nonzero((path > 10).any(1).numpy())[0]
    assert rows.min() > 2  # the apices are on the film
    assert (path[visible > 0.5] > 1).all()
    assert path.max() < 320


def test_what_no_gap_can_cover_is_refused(pose):
    view = pose("chest3", 2)
    assert fit_pneumothorax(view, Pneumothorax(LEFT, "loculated", 0, 0.2)) is None


def test_no_mask_is_smaller_than_anybody_would_outline(pose):
    view = pose("chest3", 6, size=128)
    areas = {}
    for kind, wanted in itertools.product(
        ("apical", "loculated", "basal", "several"), (0.0002, SMALLEST, 0.0014)
    ):
        gap = fit_pneumothorax(view, Pneumothorax(RIGHT, kind, 2, wanted))
        if gap is not None:
            areas[kind, wanted] = float(outline(view, gap).float().mean())
    assert areas
    assert min(areas.values()) >= SMALLEST
    assert len(areas) < 12  # some were refused


def test_deeper_collapse_is_a_larger_mask(pose):
    """Bisection needs it: the area grows with the amplitude."""
    view = pose("chest4", 4)
    for kind in ("apical", "complete"):
        cavity = Cavity.of(view.chest, RIGHT, with_base=kind == "complete")
        pattern = cavity.gap(kind, 0)
        areas = [
            float(_outline(view, cavity, cavity.width(pattern, a), 96).mean())
            for a in (0.0, 4.0, 10.0, 25.0, 60.0, 140.0)
        ]
        assert areas[0] == 0
        assert (np.diff(areas) >= 0).all()
        assert areas[-1] > 0.01


def test_ribs_become_crisp_and_the_spine_stays_as_it_is(pose):
    view = pose("chest3", 0, rib_edges=1.5, trabeculae=0.0)
    columns = torch.arange(view.size) * view.pixel_mm
    width = columns[-1] / 2
    rib, spine = (
        thick * torch.sigmoid((wide - (columns - width).abs()) / 2.0).expand(160, 160)
        for thick, wide in ((6.0, 6.0), (60.0, 20.0))
    )
    steepest = [
        float(_crisp(view, bone).diff(dim=1).abs().max() / bone.diff(dim=1).abs().max())
        for bone in (rib, spine)
    ]
    assert steepest[0] > 1.2
    assert steepest[1] < 1.15
    assert steepest[0] > steepest[1] + 0.1
