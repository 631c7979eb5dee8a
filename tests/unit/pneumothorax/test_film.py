"""Rendered films: the mask is where the air is, and only the air differs in a twin."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage as ndi

from medimg_utils.pneumothorax.collapse import Cavity, Pneumothorax
from medimg_utils.pneumothorax.film import (
    _outline,
    fit_pneumothorax,
    lung_fields,
    render,
)
from medimg_utils.pneumothorax.phantom import (
    ANATOMIES,
    COARSE,
    LEFT,
    RIGHT,
    load_chest,
    load_girdle,
)
from medimg_utils.pneumothorax.technique import (
    Rates,
    random_patient,
    random_technique,
)
from medimg_utils.pneumothorax.view import make_view
from medimg_utils.settings import get_settings

SIZE = 160


@pytest.fixture(scope="module")
def girdle():
    return load_girdle(get_settings().data)


def pose(name, seed, *, size=SIZE, patient=None, **technique):
    """A random view of one anatomy, without borders and letters unless asked for."""
    generator = np.random.default_rng(seed)
    rates = Rates(mirrored=0.0, marker=0.0, shutter=0.0, drain=(0.0, 0.0))
    build = random_patient((name,), rates, generator)
    taken = random_technique(rates, True, generator)
    return make_view(
        load_chest(name, get_settings().data),
        replace(build, **(patient or {})),
        replace(taken, **technique),
        size,
    )


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
def pair(request, girdle):
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


def test_the_mask_is_lung_field_off_heart_and_diaphragm(pair):
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


# --- single films ---------------------------------------------------------------------


def test_the_same_view_gives_the_same_film(girdle):
    first = render(pose("chest3", 5, size=96), girdle, None)
    again = render(pose("chest3", 5, size=96), girdle, None)
    np.testing.assert_array_equal(first.pixels, again.pixels)


def test_a_mirrored_patient_is_the_mirror_image(girdle):
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


@pytest.mark.parametrize("device", ["drain", "line", "leads", "pacemaker"])
def test_devices_absorb(girdle, device):
    """What a device covers is brighter, the rest stays."""
    plain = render(pose("chest3", 7, size=128, devices=()), girdle, None)
    film = render(pose("chest3", 7, size=128, devices=(device,)), girdle, None)
    change = film.pixels.astype(float) - plain.pixels
    assert film.devices == (device,)
    assert (change > 8).sum() > 25
    assert (change > 8).mean() < 0.12
    assert abs(np.median(change)) <= 2
    assert np.quantile(change, 0.05) > -4  # sharpening leaves halos


def test_letter_and_shutter(girdle):
    plain = render(pose("chest3", 7, size=96, devices=()), girdle, None).pixels
    letter = render(
        pose("chest3", 7, size=96, devices=("marker",)), girdle, None
    ).pixels
    rows, columns = np.nonzero(letter != plain)
    assert len(rows) > 5
    assert rows.max() < 0.3 * 96
    assert np.ptp(columns) < 0.2 * 96
    shut = render(pose("chest3", 7, size=96, devices=("shutter",)), girdle, None).pixels
    changed = shut != plain
    assert len(np.unique(shut[changed])) <= 1  # one grey value
    assert not changed[20:76, 20:76].any()


def test_heart_size_depends_on_the_view():
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


@pytest.mark.parametrize("name", ANATOMIES)
@pytest.mark.parametrize("view_name", ["PA", "AP"])
def test_lungs_fill_their_share_of_the_film(name, view_name):
    view = pose(name, 11, view=view_name, lungs_share=0.75, offset=(0.0, 0.0))
    visible, path = lung_fields(view, 96)
    columns = np.nonzero((path > 10).any(0).numpy())[0]
    assert (columns.max() - columns.min() + 1) / 96 == pytest.approx(0.75, abs=0.1)
    rows = np.nonzero((path > 10).any(1).numpy())[0]
    assert rows.min() > 2  # the apices are on the film
    assert (path[visible > 0.5] > 1).all()
    assert path.max() < 320


def test_what_no_gap_can_cover_is_refused():
    view = pose("chest3", 2)
    assert fit_pneumothorax(view, Pneumothorax(LEFT, "loculated", 0, 0.2)) is None


def test_deeper_collapse_is_a_larger_mask(girdle):
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


# --- what is drawn --------------------------------------------------------------------


def techniques(collapsed, count, rates=None):
    generator = np.random.default_rng(0)
    return [
        random_technique(rates or Rates(), collapsed, generator) for _ in range(count)
    ]


def test_only_the_drain_depends_on_the_pneumothorax():
    """From one seed both classes get the very same technique, drains apart."""
    for without, with_ in zip(
        techniques(False, 1500), techniques(True, 1500), strict=True
    ):
        bare = tuple(d for d in with_.devices if d != "drain")
        assert replace(with_, devices=()) == replace(without, devices=())
        assert bare == tuple(d for d in without.devices if d != "drain")


@pytest.mark.parametrize("drain", [(0.06, 0.30), (0.5, 0.5), (0.0, 1.0)])
def test_drains_have_the_rate_that_was_asked_for(drain):
    rates = Rates(drain=drain)
    for collapsed in (False, True):
        share = np.mean(
            ["drain" in t.devices for t in techniques(collapsed, 3000, rates)]
        )
        wanted = drain[collapsed]
        assert share == pytest.approx(
            wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / 3000)
        )


def test_everything_else_has_its_stated_rate():
    drawn = techniques(False, 4000)
    rates = Rates()
    # devices and bedside films go together: 1.8 and 0.5 times the rate
    mixed = 1.8 * rates.bedside + 0.5 * (1 - rates.bedside)
    expected = {
        "line": rates.line * mixed,
        "leads": rates.leads * mixed,
        "pacemaker": rates.pacemaker,
        "marker": rates.marker,
        "shutter": rates.shutter,
    }
    for device, rate in expected.items():
        share = np.mean([device in t.devices for t in drawn])
        assert share == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 4000))
    expected = {
        "opacity": rates.opacity,
        "effusion": rates.effusion * mixed,
        "skin fold": rates.skin_fold * mixed,
    }
    for finding, rate in expected.items():
        share = np.mean([finding in t.findings for t in drawn])
        assert share == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 4000))
    assert np.mean([t.view == "AP" for t in drawn]) == pytest.approx(0.4, abs=0.03)


def test_patients_vary_within_what_people_are():
    generator = np.random.default_rng(1)
    drawn = [random_patient(ANATOMIES, Rates(), generator) for _ in range(3000)]
    assert {p.anatomy for p in drawn} == set(ANATOMIES)
    assert all(16 <= p.age <= 92 for p in drawn)
    assert all(0.6 < s < 1.5 for p in drawn for s in p.scale)
    assert all((p.breast_mm > 0) == (p.sex == "F") for p in drawn)
    assert all(p.bend_mm <= 7 and p.fat_mm >= 0 for p in drawn)
    assert np.mean([p.mirrored for p in drawn]) == pytest.approx(0.02, abs=0.01)
    assert np.mean([p.sex == "F" for p in drawn]) == pytest.approx(0.45, abs=0.04)


def test_posing_again_changes_nothing():
    """Looking for a shape that fits poses a patient again: it must leave no trace."""
    view = pose("chest3", 1)
    again = make_view(view.chest, view.patient, view.technique, view.size)
    assert again.chest is view.chest
    assert torch.equal(again.deformation.bend, view.deformation.bend)
