"""The film against physics: tables, hand-computed projections, conserved quantities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg_utils.physics.xray import (
    CT_ENERGY,
    Geometry,
    blur,
    decompose,
    develop,
    expose,
    linear_attenuation,
    mass_attenuation,
    project_volume,
    splat,
)

# Coarse block of 32 × 20 × 28 voxels that surrounds the origin; anisotropic on purpose.
SHAPE = (33, 20, 29)
SPACING = torch.tensor([2.0, 3.0, 2.5])
ORIGIN = -(torch.tensor(SHAPE) - 1) * SPACING / 2


def beam(view="PA", sid=math.inf, width=40.0, height=40.0, film_y=100.0):
    if view == "AP":
        film_y = -film_y
    return Geometry(view, sid, film_y, (0.0, 0.0), width, height)


def ball(centre, radius):
    """Ball of density 1 with a soft edge, (1, X, Y, Z)."""
    axes = [
        o + s * torch.arange(n) for o, s, n in zip(ORIGIN, SPACING, SHAPE, strict=True)
    ]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    distance = (grid - torch.tensor(centre)).norm(dim=-1)
    return ((radius - distance) / 2 + 0.5).clamp(0, 1)[None]


def centroid(image):
    rows, columns = torch.meshgrid(
        *(torch.arange(n) for n in image.shape), indexing="ij"
    )
    return torch.stack([(image * rows).sum(), (image * columns).sum()]) / image.sum()


def spread(image):
    """Standard deviation along the columns in pixels."""
    columns = torch.arange(image.shape[1])
    middle = centroid(image)[1]
    return float(((image.sum(0) * (columns - middle) ** 2).sum() / image.sum()).sqrt())


# --- attenuation ----------------------------------------------------------------------

#: NIST XCOM-based tables of Hubbell and Seltzer (1995), cm2/g: keV, water, cortical bone.
NIST = [
    (40, 0.2683, 0.6655),
    (50, 0.2269, 0.4242),
    (60, 0.2059, 0.3148),
    (80, 0.1837, 0.2229),
    (100, 0.1707, 0.1855),
]


@pytest.mark.parametrize(("energy", "water", "bone"), NIST)
def test_mass_attenuation_meets_the_table(energy, water, bone):
    assert mass_attenuation("water", energy) == pytest.approx(water)
    assert mass_attenuation("bone", energy) == pytest.approx(bone)


def test_between_the_nodes_attenuation_is_a_power_law():
    middle = math.sqrt(50 * 60)
    expected = math.sqrt(0.4242 * 0.3148)
    assert mass_attenuation("bone", middle) == pytest.approx(expected)


@given(st.floats(40, 99), st.floats(0.1, 1))
def test_attenuation_falls_and_bone_falls_faster(energy, step):
    higher = energy + step
    for material in ("water", "bone"):
        assert mass_attenuation(material, higher) < mass_attenuation(material, energy)
    ratio = [
        mass_attenuation("bone", e) / mass_attenuation("water", e)
        for e in (energy, higher)
    ]
    assert ratio[1] < ratio[0]


@pytest.mark.parametrize("energy", [39.9, 100.1, 0.0, -60.0, math.nan])
def test_energies_outside_the_table_are_refused(energy):
    with pytest.raises(ValueError, match="40 to 100 keV"):
        mass_attenuation("water", energy)


@given(st.floats(-1000, 3000))
def test_the_decomposition_gives_back_the_hu_at_the_scanners_energy(hu):
    """HU are defined by mu = mu_water (1 + HU / 1000)."""
    mu = linear_attenuation(
        *decompose(torch.tensor(hu, dtype=torch.float64)), CT_ENERGY
    )
    water = mass_attenuation("water", CT_ENERGY) / 10
    assert float(mu) / water == pytest.approx(1 + hu / 1000, abs=1e-6)


def test_decomposition_of_known_tissues():
    soft, bone = decompose(torch.tensor([-1000.0, -500.0, 0.0, 40.0, 80.0]))
    torch.testing.assert_close(soft, torch.tensor([0.0, 0.5, 1.0, 1.04, 1.08]))
    assert not bone.any()
    # solid cortical bone; its first 80 HU are counted as water
    mu = 1.92 * mass_attenuation("bone", CT_ENERGY)
    hu = 1000 * (mu / mass_attenuation("water", CT_ENERGY) - 1)
    soft, bone = decompose(torch.tensor(hu))
    assert float(bone) == pytest.approx(1.92, rel=0.06)
    assert abs(float(soft)) < 0.15


def test_what_is_emptier_than_air_counts_as_air():
    """Scanners pad with values below -1000."""
    soft, bone = decompose(torch.tensor([-3024.0, -1000.0]))
    assert not soft.any()
    assert not bone.any()


def test_bone_stands_out_more_at_low_energy():
    one = torch.tensor(1.0)
    contrast = [
        float(linear_attenuation(one * 0, one, e) / linear_attenuation(one, one * 0, e))
        for e in (45, 65, 90)
    ]
    assert contrast[0] > contrast[1] > contrast[2] > 1
    assert float(linear_attenuation(one, one * 0, 60.0)) == pytest.approx(0.02059)


# --- geometry and projection ----------------------------------------------------------


def test_only_pa_and_ap_are_views():
    with pytest.raises(ValueError, match="'PA' or 'AP'"):
        Geometry("LAT", 1800.0, 0.0, (0.0, 0.0), 400.0, 400.0)


def test_the_patients_right_is_on_the_left_of_the_film_and_up_is_up():
    row, column = beam().project(torch.tensor([[10.0, 0.0, 10.0]]), 40, 40)[0]
    assert column < 19
    assert row < 19


@pytest.mark.parametrize("view", ["PA", "AP"])
def test_pixel_centres_project_to_themselves(view):
    geometry = Geometry(view, 1200.0, 30.0, (5.0, -7.0), 90.0, 60.0)
    x, z = geometry.film_axes(6, 9)
    points = torch.stack(
        [x[None, :].expand(6, 9), torch.full((6, 9), 30.0), z[:, None].expand(6, 9)], -1
    )
    found = geometry.project(points.view(-1, 3), 6, 9).view(6, 9, 2)
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij")
    torch.testing.assert_close(
        found, torch.stack([rows, columns], -1), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("view", ["PA", "AP"])
def test_a_point_its_shadow_and_the_focus_lie_on_one_line(view):
    geometry = beam(view, sid=1000.0, film_y=120.0)
    point = torch.tensor([[12.0, 40.0, -9.0]])
    row, column = geometry.project(point, 80, 80)[0]
    shadow_x = 40.0 * (0.5 - (float(column) + 0.5) / 80)
    shadow_z = 40.0 * (0.5 - (float(row) + 0.5) / 80)
    # similar triangles: distance of the point from the focus over that of the film
    focus_y = -880.0 if view == "PA" else 880.0
    share = abs(40.0 - focus_y) / 1000.0
    assert shadow_x * share == pytest.approx(12.0, abs=1e-3)
    assert shadow_z * share == pytest.approx(-9.0, abs=1e-3)


@pytest.mark.parametrize("view", ["PA", "AP"])
def test_a_parallel_beam_adds_up_the_planes(view):
    """With one pixel a voxel, centre on centre, the projection is the sum over y."""
    volume = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    nx, _, nz = SHAPE
    geometry = beam(view, width=nx * 2.0, height=nz * 2.5)
    film = project_volume(volume, ORIGIN, SPACING, geometry, nz, nx)
    by_hand = volume.sum(2).flip(1, 2).transpose(1, 2) * 3.0  # z down, x to the left
    assert by_hand.std() > 3
    torch.testing.assert_close(film, by_hand, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sid", [math.inf, 1000.0])
@pytest.mark.parametrize("planes_at_once", [1, 7, 50])
def test_a_homogeneous_block_gives_its_thickness(sid, planes_at_once):
    film = project_volume(
        torch.full((1, *SHAPE), 1.5),
        ORIGIN,
        SPACING,
        beam(sid=sid, width=30, height=30),
        16,
        12,
        depth_scale=1.2,
        planes_at_once=planes_at_once,
    )
    thickness = 20 * 3.0 * 1.2
    torch.testing.assert_close(film, torch.full((1, 16, 12), 1.5 * thickness))


@pytest.mark.parametrize("view", ["PA", "AP"])
def test_empty_planes_around_the_body_change_nothing(view):
    geometry = beam(view, sid=300.0, width=90, height=90)
    first = ball((3.0, -9.0, 0.0), 6.0)
    volume = torch.cat([first, ball((0.0, 12.0, 4.0), 4.0)])
    options = {"depth_scale": 1.1, "depth_centre": 2.0}
    whole = project_volume(volume, ORIGIN, SPACING, geometry, 60, 60, **options)
    filled = volume.amax((0, 1, 3)).nonzero().flatten()
    start, stop = int(filled[0]), int(filled[-1]) + 1
    assert 0 < start < stop < SHAPE[1]
    origin = ORIGIN + torch.tensor([0.0, start * 3.0, 0.0])
    body = volume[:, :, start:stop]
    part = project_volume(body, origin, SPACING, geometry, 60, 60, **options)
    assert (whole.amax((1, 2)) > 5).all()
    torch.testing.assert_close(part, whole)
    assert not project_volume(0 * volume, ORIGIN, SPACING, geometry, 60, 60).any()


@pytest.mark.parametrize("view", ["PA", "AP"])
@pytest.mark.parametrize("centre", [(10.0, 20.0, -8.0), (-12.0, -18.0, 9.0)])
def test_a_ball_lands_where_its_centre_projects(view, centre):
    geometry = beam(view, sid=300.0, width=70, height=70)
    film = project_volume(ball(centre, 6.0), ORIGIN, SPACING, geometry, 140, 140)[0]
    expected = geometry.project(torch.tensor([centre]), 140, 140)[0]
    assert (centroid(film) - expected).norm() < 0.5  # pixels of half a millimetre


@pytest.mark.parametrize("view", ["PA", "AP"])
def test_a_ball_is_magnified_as_its_depth_says(view):
    y = 15.0
    near = beam(view, sid=300.0, width=90, height=90)
    far = beam(view, sid=math.inf, width=90, height=90)
    sizes = [
        spread(
            project_volume(ball((0.0, y, 0.0), 9.0), ORIGIN, SPACING, g, 180, 180)[0]
        )
        for g in (near, far)
    ]
    magnification = 1 / float(near.shrink(torch.tensor(y)))
    assert sizes[0] / sizes[1] == pytest.approx(magnification, rel=0.02)


def test_what_lies_in_front_is_magnified_less_in_a_pa_film():
    """The heart lies in front: why the cardiothoracic ratio is read on PA films."""
    heart = torch.tensor(20.0)
    pa = 1 / beam("PA", sid=1800.0).shrink(heart)
    ap = 1 / beam("AP", sid=1800.0).shrink(heart)
    assert 1 < pa < ap
    assert float(pa) == pytest.approx(1800 / 1720)
    assert float(ap) == pytest.approx(1800 / 1680)


def test_pull_moves_the_picture():
    geometry = beam(width=60, height=60)
    still = project_volume(
        ball((0.0, 0.0, 0.0), 6.0), ORIGIN, SPACING, geometry, 240, 240
    )
    moved = project_volume(
        ball((0.0, 0.0, 0.0), 6.0),
        ORIGIN,
        SPACING,
        geometry,
        240,
        240,
        # the patient's point looks 5 mm to the left and 3 mm up in the volume: the ball
        # stands 5 mm to the right (left on the film) and 3 mm lower
        pull=lambda p: p + torch.tensor([-5.0, 0.0, 3.0]),
    )
    difference = centroid(moved[0]) - centroid(still[0])
    torch.testing.assert_close(
        difference, 4 * torch.tensor([3.0, -5.0]), atol=0.15, rtol=0
    )


def test_a_part_of_a_volume_is_scaled_about_the_centre_of_the_whole():
    """Else a mask, projected from a crop, would lie beside the film."""
    whole = ball((10.0, 14.0, 5.0), 6.0)
    geometry = beam("AP", sid=300.0, width=70, height=70)
    first = whole.shape[2] // 2
    crop, origin = whole[:, :, first:], ORIGIN + SPACING * torch.tensor([0, first, 0])
    middle = float(ORIGIN[1] + SPACING[1] * (whole.shape[2] - 1) / 2)

    def project(volume, origin, **centre):
        return project_volume(
            volume, origin, SPACING, geometry, 140, 140, depth_scale=1.3, **centre
        )[0]

    film = project(whole, ORIGIN)
    torch.testing.assert_close(project(crop, origin, depth_centre=middle), film)
    beside = centroid(project(crop, origin)) - centroid(film)
    assert beside.norm() > 0.5


# --- splat and blur -------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.floats(1, 18), st.floats(1, 14), st.floats(0.01, 5)),
        min_size=1,
        max_size=20,
    )
)
@settings(deadline=None)
def test_splat_keeps_sum_and_centroid(points):
    table = torch.tensor(points)
    image = splat(table[:, :2], table[:, 2], 20, 16)
    assert float(image.sum()) == pytest.approx(float(table[:, 2].sum()), rel=1e-4)
    expected = (table[:, :2] * table[:, 2:]).sum(0) / table[:, 2].sum()
    torch.testing.assert_close(centroid(image), expected, atol=1e-3, rtol=0)


def test_splat_of_one_point_by_hand():
    image = splat(torch.tensor([[0.25, 1.5]]), torch.tensor([8.0]), 2, 3)
    torch.testing.assert_close(image, torch.tensor([[0.0, 3.0, 3.0], [0.0, 1.0, 1.0]]))


def test_splat_drops_what_is_outside():
    points = torch.tensor([[-5.0, 2.0], [2.0, 99.0], [-0.5, 0.0]])
    image = splat(points, torch.ones(3), 4, 4)
    assert float(image.sum()) == pytest.approx(0.5)  # half of the last one


@given(st.floats(0, 60), st.floats(-3, 3))
@settings(deadline=None, max_examples=30)
def test_blur_keeps_constants(sigma, value):
    image = torch.full((40, 56), value)
    torch.testing.assert_close(blur(image, sigma), image, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 7.0, 13.0])
def test_blur_spreads_a_point_by_sigma_and_keeps_its_sum(sigma):
    image = torch.zeros(160, 160)
    image[80, 80] = 1.0
    soft = blur(image, sigma)
    assert float(soft.sum()) == pytest.approx(1, rel=0.02)
    if sigma < 2:
        assert spread(soft) == pytest.approx(sigma, rel=0.1)
    else:  # beyond 12 pixels on a reduced image
        assert spread(soft) == pytest.approx(sigma, rel=0.05)
    torch.testing.assert_close(soft, soft.T, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(161, 97), (512, 480)])
@pytest.mark.parametrize("sigma", [3.0, 13.0, 43.0])
def test_blur_keeps_the_mean_of_a_picture(shape, sigma):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert float(blur(image, sigma).mean()) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(
    ("shape", "sigma"), [((161, 97), 13.0), ((145, 203), 13.0), ((513, 509), 43.0)]
)
def test_blur_on_a_reduced_image_of_odd_size(shape, sigma):
    """Sizes that the factor of the reduction does not divide.

    A constant and the sum of a spot are kept, and so is every symmetry.
    """
    assert any(n % 3 for n in shape)
    torch.testing.assert_close(
        blur(torch.full(shape, 2.0), sigma), torch.full(shape, 2.0)
    )
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    spot = torch.exp(-16 * (x**2 + y**2))
    soft = blur(spot, sigma)
    assert float(soft.mean()) == pytest.approx(float(spot.mean()), rel=2e-3)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    for axis in (0, 1):
        torch.testing.assert_close(
            blur(noise.flip(axis), sigma), blur(noise, sigma).flip(axis)
        )


def test_no_blur_gives_the_image_itself():
    image = torch.rand(8, 8)
    assert blur(image, 0.0) is image


# --- detector -------------------------------------------------------------------------


def take(integral, **changes):
    technique = {
        "scatter_fraction": 0.0,
        "scatter_mm": 10.0,
        "photons": 1e12,
        "blur_mm": 0.0,
        "pixel_mm": 0.5,
        "generator": torch.Generator().manual_seed(0),
    }
    return expose(integral, **(technique | changes))


def test_without_scatter_and_noise_the_film_is_beer_lambert():
    integral = torch.linspace(0, 6, 400).view(20, 20)
    torch.testing.assert_close(take(integral), torch.exp(-integral), rtol=2e-3, atol=0)


def test_noise_is_poissons():
    """The variance of a count is its mean, so the relative noise is 1 / sqrt(count)."""
    for length, photons in ((0.0, 1000.0), (2.0, 1000.0), (2.0, 64000.0)):
        signal = take(torch.full((200, 200), length), photons=photons)
        count = math.exp(-length) * photons * 0.5**2
        assert float(signal.mean()) == pytest.approx(math.exp(-length), rel=0.01)
        assert float(signal.std() / signal.mean()) == pytest.approx(
            1 / math.sqrt(count), rel=0.03
        )


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6])
def test_scatter_makes_up_the_share_that_was_asked_for(fraction):
    integral = torch.zeros(80, 80)
    integral[10:70, 10:70] = 2.0
    integral[30:50, 30:50] = 5.0
    patient = integral > 0
    primary = torch.exp(-integral)[patient].mean()
    total = take(integral, scatter_fraction=fraction)[patient].mean()
    assert float(1 - primary / total) == pytest.approx(fraction, abs=1e-3)


def test_scatter_lowers_contrast():
    integral = torch.full((80, 80), 2.0)
    integral[30:50, 30:50] = 4.0
    for fraction in (0.3, 0.6):
        film = take(integral, scatter_fraction=fraction)
        assert film[5, 5] / film[40, 40] < 0.9 * math.exp(2)
    light, heavy = (take(integral, scatter_fraction=f) for f in (0.3, 0.6))
    assert heavy[5, 5] / heavy[40, 40] < light[5, 5] / light[40, 40]


def test_the_signal_has_a_logarithm():
    """Where no photon arrives the noise could pass below zero."""
    assert take(torch.full((50, 50), 30.0), photons=10.0).min() > 0


def curve(signal, **changes):
    display = {
        "equalise": 0.0,
        "equalise_mm": 20.0,
        "sharpen": 0.0,
        "sharpen_mm": 2.0,
        "pixel_mm": 0.5,
        "low": 0.01,
        "high": 0.99,
        "gamma": 1.0,
        "shoulder": 0.5,
    }
    return develop(signal, **(display | changes))


@pytest.mark.parametrize("shoulder", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.35])
def test_more_absorption_is_never_darker(shoulder, gamma):
    signal = torch.exp(-torch.linspace(0, 6, 900)).view(30, 30)
    grey = curve(signal, shoulder=shoulder, gamma=gamma).flatten()
    assert (grey.diff() >= 0).all()
    assert grey.min() >= 0
    assert grey.max() <= 1
    if shoulder:  # between the two percentiles tones stay apart
        assert (grey[20:-20].diff() > 0).all()


@pytest.mark.parametrize("shoulder", [0.2, 0.6, 1.0])
def test_a_toe_keeps_what_lies_a_little_below_the_dark_end(shoulder):
    """A straight line would cut off the darkest percent, and with it a thin gap."""
    signal = torch.exp(-torch.linspace(1, 5, 2500)).view(50, 50)
    assert (curve(signal, shoulder=0.0) == 0).sum() >= 20
    assert (curve(signal, shoulder=shoulder) > 0).all()


def test_percentiles_are_those_of_the_region():
    signal = torch.exp(-torch.linspace(0, 6, 900)).view(30, 30)
    region = torch.zeros(30, 30, dtype=torch.bool)
    region[10:20] = True
    grey = curve(signal, region=region, shoulder=0.0, low=0.0, high=1.0)
    assert float(grey[10, 0]) == pytest.approx(0)
    assert float(grey[19, 29]) == pytest.approx(1)
    assert (grey[:10] == 0).all()
    assert (grey[20:] == 1).all()


def test_exposure_does_not_change_the_picture():
    """A digital system shows ratios: twice the dose gives the same grey values."""
    signal = torch.rand(40, 40, generator=torch.Generator().manual_seed(3)) + 0.1
    torch.testing.assert_close(
        curve(signal, equalise=0.5, sharpen=1.0),
        curve(2 * signal, equalise=0.5, sharpen=1.0),
        atol=1e-4,
        rtol=0,
    )


def test_equalising_lowers_large_contrast_and_sharpening_lifts_small():
    large = torch.ones(120, 120)
    large[:, 60:] = math.exp(-2)
    fine = torch.exp(0.1 * (-1.0) ** torch.arange(120)).expand(120, 120)
    # the percentiles of a picture would hide it: compare with fixed ends
    ends = torch.exp(-torch.linspace(-3, 5, 120))
    steps = []
    for change in ({}, {"equalise": 0.6}):
        picture = large.clone()
        picture[0], picture[-1] = ends, ends
        grey = curve(picture, shoulder=0.0, low=0.0, high=1.0, **change)
        steps.append(float(grey[60, 100] - grey[60, 20]))
    assert steps[1] < 0.75 * steps[0]
    ripples = []
    for change in ({}, {"sharpen": 1.0}):
        picture = fine.clone()
        picture[0], picture[-1] = ends, ends
        grey = curve(picture, shoulder=0.0, low=0.0, high=1.0, **change)
        ripples.append(float(grey[60, 40:80].std()))
    assert ripples[1] > 1.3 * ripples[0]


# --- devices --------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_film_of_the_gpu_is_that_of_the_cpu():
    volume = ball((5.0, 3.0, 4.0), 6.0)
    films = []
    for device in ("cpu", "cuda"):
        path = project_volume(volume.to(device), ORIGIN, SPACING, beam(), 64, 64)[0]
        points = torch.tensor([[10.2, 20.7], [30.0, 5.5]], device=device)
        path = path + splat(points, torch.ones(2, device=device), 64, 64)
        signal = take(0.1 * path, photons=1e4, scatter_fraction=0.3, blur_mm=0.4)
        grey = curve(signal, equalise=0.3, sharpen=0.5)
        assert grey.device.type == device
        films.append(grey.cpu())
    torch.testing.assert_close(*films, atol=1e-3, rtol=0)
