"""MR physics against hand-computed values, limits and conservation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medimg_utils.errors import InputError
from medimg_utils.physics.mr import (
    TISSUES,
    Sequence,
    Tissue,
    add_ghosts,
    bias_field,
    enhance,
    fast_spin_echo,
    fat_displacement,
    gradient_echo,
    inversion_recovery,
    limit_resolution,
    move,
    null_time,
    rician_noise,
    slice_profile,
    smooth_field,
    spin_echo,
    suppress_fat,
    surface_coils,
    thick_slices,
    tissue,
)


def t(value):
    return torch.tensor(float(value))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height=64, width=48, seed=0):
    """A smooth bright shape in air, positive."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    inside = torch.sigmoid(12 * (0.55 - (x**2 + (y * 1.2) ** 2).sqrt()))
    return inside * (1 + 0.3 * torch.sin(5 * x + seed) * torch.cos(4 * y))


# --- tissues --------------------------------------------------------------------------


def test_every_tissue_has_both_field_strengths_a_source_and_t2_below_t1():
    for name, fields in TISSUES.items():
        assert sorted(fields) == [1.5, 3.0], name
        for one in fields.values():
            assert one.source
            assert one.t2 < one.t1
        assert fields[3.0].t1 >= fields[1.5].t1 * 0.99, name  # T1 grows with the field


def test_unknown_tissue_field_and_impossible_values_are_refused():
    with pytest.raises(InputError, match="unknown tissue 'spleen'"):
        tissue("spleen", 3.0)
    with pytest.raises(InputError, match=r"no values at 7 T: use 1\.5 or 3 T"):
        tissue("muscle", 7)
    with pytest.raises(InputError, match="must be above 0"):
        Tissue(0.5, 0.0, 10.0)
    with pytest.raises(InputError, match="lie in 0 to 1"):
        Tissue(1.5, 100.0, 10.0)


# --- signal equations -----------------------------------------------------------------


def test_spin_echo_by_hand():
    # TR = T1, TE = T2 = T1/10: 1 - 2 exp(-0.95) + exp(-1) = 0.594398, times exp(-1)
    found = spin_echo(t(0.8), t(1000), t(100), tr=1000, te=100)
    assert float(found) == pytest.approx(0.8 * 0.594398 * 0.367879, rel=1e-5)


def test_fast_spin_echo_by_hand():
    # TR - train = 2 T1: 1 - exp(-2) = 0.864665; TE = T2 / 2: exp(-0.5) = 0.606531
    found = fast_spin_echo(t(0.5), t(1000), t(80), tr=2100, te=40, train=100)
    assert float(found) == pytest.approx(0.5 * 0.864665 * 0.606531, rel=1e-5)


def test_gradient_echo_by_hand_and_largest_at_the_ernst_angle():
    # 90 degrees: sin = 1, cos = 0: saturation recovery
    found = gradient_echo(t(1), t(1000), t(20), tr=500, te=10, flip=90)
    assert float(found) == pytest.approx(
        (1 - math.exp(-0.5)) * math.exp(-0.5), rel=1e-5
    )
    ernst = math.degrees(math.acos(math.exp(-30 / 900)))
    angles = torch.linspace(1, 89, 177)
    signals = [float(gradient_echo(t(1), t(900), t(50), 30, 5, a)) for a in angles]
    assert float(angles[int(np.argmax(signals))]) == pytest.approx(ernst, abs=0.5)


def test_inversion_recovery_by_hand_and_null():
    # perfect inversion: 1 - 2 exp(-TI/T1) + exp(-TR/T1) = 1 - 1.213061 + 0.049787
    found = inversion_recovery(t(1), t(1000), t(1e9), tr=3000, te=0, ti=500)
    assert float(found) == pytest.approx(0.163274, rel=1e-4)
    # full recovery and TI T1 ln 2
    assert null_time(1000, 1e9) == pytest.approx(1000 * math.log(2))
    for train in (0.0, 300.0):
        ti = null_time(4163, 9000, train)
        left = inversion_recovery(t(1), t(4163), t(2000), 9000, 120, ti, train)
        assert float(left) < 1e-5
    # without inversion it is the recovery since the last readout
    flat = inversion_recovery(t(1), t(1000), t(1e9), 3000, 0, 500, efficiency=0)
    assert float(flat) == pytest.approx(1 - math.exp(-0.5), rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    t1=st.floats(50, 5000),
    t2=st.floats(1, 3000),
    te=st.floats(0, 200),
    more=st.floats(10, 5000),
)
def test_signals_stay_between_nothing_and_the_protons(t1, t2, te, more):
    tr = 2 * te + more
    for one in (
        spin_echo(t(0.9), t(t1), t(t2), tr, te),
        fast_spin_echo(t(0.9), t(t1), t(t2), tr, te, train=te),
        gradient_echo(t(0.9), t(t1), t(t2), tr, te, 30),
        inversion_recovery(t(0.9), t(t1), t(t2), tr, te, ti=more / 3),
    ):
        assert -1e-6 <= float(one) <= 0.9 + 1e-6
    # a long TR and a short TE leave the protons alone
    assert float(spin_echo(t(0.9), t(t1), t(t2), 1e6, 0)) == pytest.approx(
        0.9, rel=1e-4
    )


def test_impossible_times_are_refused():
    with pytest.raises(InputError, match="TE 50 ms must lie between 0 and TR 40"):
        spin_echo(t(1), t(1), t(1), 40, 50)
    with pytest.raises(InputError, match="does not fit"):
        fast_spin_echo(t(1), t(1), t(1), 400, 50, train=500)
    with pytest.raises(InputError, match="do not fit"):
        inversion_recovery(t(1), t(1), t(1), 400, 50, ti=500)


@pytest.mark.parametrize("field", [1.5, 3.0])
def test_contrast_of_the_usual_sequences(field):
    def signals(sequence, *names):
        return sequence.of([tissue(name, field) for name in names]).tolist()

    t1 = Sequence(tr=600, te=12)
    fat, muscle, fluid, tendon = signals(
        t1, "marrow", "muscle", "synovial fluid", "tendon"
    )
    assert fat > 1.8 * muscle > 1.8 * fluid
    assert tendon < 0.25 * fat
    t2_fs = Sequence(tr=4000, te=70, train=100, fat_suppression=0.95)
    fluid, cartilage, marrow, meniscus = signals(
        t2_fs, "synovial fluid", "cartilage", "marrow", "meniscus"
    )
    assert fluid > 3 * cartilage > 3 * marrow > 3 * meniscus
    oedema, fat = signals(t2_fs, "marrow oedema", "subcutaneous fat")
    assert oedema > 3 * fat
    flair = Sequence(tr=9000, te=120, ti=null_time(4200, 9000, 200), train=200)
    csf, grey, swelling = signals(
        flair, "cerebrospinal fluid", "grey matter", "brain oedema"
    )
    assert csf < 0.05 * grey
    assert swelling > 1.4 * grey
    white, grey, csf = signals(t1, "white matter", "grey matter", "cerebrospinal fluid")
    assert white > grey > csf


def test_a_sequence_is_the_equation_it_names():
    values = [torch.tensor(v) for v in ([0.5, 0.8], [800.0, 900.0], [40.0, 90.0])]
    for one, expected in (
        (Sequence(600, 15), spin_echo(*values, 600, 15)),
        (Sequence(3000, 60, train=90), fast_spin_echo(*values, 3000, 60, 90)),
        (Sequence(3000, 60, ti=150), inversion_recovery(*values, 3000, 60, 150)),
        (Sequence(30, 5, flip=20), gradient_echo(*values, 30, 5, 20)),
    ):
        torch.testing.assert_close(one.signal(*values), expected)
    halved = Sequence(600, 15, fat_suppression=0.5).signal(*values, fat=torch.ones(2))
    torch.testing.assert_close(halved, 0.5 * spin_echo(*values, 600, 15))


def test_fat_suppression_spares_water():
    out = suppress_fat(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0, 0.9, 1]), 0.9)
    assert out.tolist() == pytest.approx([1.0, 0.19, 0.1])


def test_gadolinium_by_hand():
    # 1/0.8 s + 4.5 * 0.5 = 3.5 /s; 1/0.1 s + 5.5 * 0.5 = 12.75 /s
    t1, t2 = enhance(t(800), t(100), 0.5)
    assert float(t1) == pytest.approx(1000 / 3.5, rel=1e-5)
    assert float(t2) == pytest.approx(1000 / 12.75, rel=1e-5)
    t1, t2 = enhance(t(800), t(100), torch.tensor([0.0, 1e6]))
    assert t1.tolist() == pytest.approx([800, 2.2e-4], rel=0.02)


# --- fields ---------------------------------------------------------------------------


def test_smooth_fields_have_unit_variance_on_average_and_no_creases():
    fields = torch.stack(
        [smooth_field((40, 30, 20), (5, 4, 3), generator(i)) for i in range(60)]
    )
    assert float(fields.var()) == pytest.approx(1, abs=0.1)
    assert float(fields.mean()) == pytest.approx(0, abs=0.1)
    # twice differentiable: no second difference stands out at the knots
    line = smooth_field((401, 2), (8, 1), generator(3))[:, 0]
    second = line.diff(n=2)
    assert float(second.diff().abs().max()) < 0.1 * float(second.abs().max())


def test_one_knot_more_gives_a_rougher_field_and_one_seed_one_field():
    def roughness(knots):
        field = smooth_field((64, 64), (knots, knots), generator(1))
        return float(field.diff(dim=0).square().mean())

    assert roughness(16) > 4 * roughness(4)
    assert torch.equal(
        smooth_field((9, 8), (2, 3), generator(5)),
        smooth_field((9, 8), (2, 3), generator(5)),
    )


def test_bias_is_positive_with_geometric_mean_one():
    field = bias_field((32, 32, 16), 0.3, generator(2))
    assert float(field.min()) > 0
    assert float(field.log().mean()) == pytest.approx(0, abs=1e-6)
    assert torch.equal(bias_field((4, 4), 0.0, generator()), torch.ones(4, 4))


def test_coils_by_hand():
    centres = torch.tensor([[0.0, 0.0, 0.0]])
    points = torch.tensor([[0.0, 0.0, 0.0], [30.0, 0.0, 0.0], [0.0, 40.0, 0.0]])
    # at one radius (1 + 1)^-1.5
    found = surface_coils(points, centres, radius=30.0)
    assert found.tolist() == pytest.approx([1, 2**-1.5, (1 + 16 / 9) ** -1.5], rel=1e-5)
    # four equal loops: twice as much in the middle between them as one gives
    ring = torch.tensor([[50.0, 0, 0], [-50, 0, 0], [0, 50, 0], [0, -50, 0]])
    four = surface_coils(torch.zeros(1, 3), ring, 30.0)
    one = surface_coils(torch.zeros(1, 3), ring[:1], 30.0)
    assert float(four) == pytest.approx(2 * float(one), rel=1e-5)


# --- slices and k-space ---------------------------------------------------------------


def test_slice_profile_has_its_thickness_at_half_height():
    offset = torch.tensor([0.0, 1.5, -1.5, 4.0])
    assert slice_profile(offset, 3.0).tolist() == [1, 1, 1, 0]
    soft = slice_profile(offset, 3.0, edge=0.3)
    assert soft.tolist() == pytest.approx([1, 0.5, 0.5, 0], abs=1e-5)
    x = torch.linspace(-6, 6, 2401)
    area = torch.trapezoid(slice_profile(x, 3.0, edge=0.6), x)
    assert float(area) == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_slices_keep_constants_and_ramps_and_share_thin_plates(dim):
    shape = [5, 5, 5]
    shape[dim] = 61
    view = [1, 1, 1]
    view[dim] = -1
    ramp = (torch.arange(61.0) * 0.5).view(view).expand(shape)
    positions = torch.tensor([6.0, 10.0, 20.5])
    for edge in (0.0, 0.4):
        out = thick_slices(ramp, positions, 4.0, 0.5, edge, dim)
        assert out.shape[dim] == 3
        wanted = positions.view(view).expand(out.shape)
        torch.testing.assert_close(out, wanted, atol=1e-4, rtol=0)
    plate = torch.zeros(shape)
    plate.select(dim, 20).fill_(1.0)  # one voxel of 0.5 mm at 10 mm
    share = thick_slices(plate, torch.tensor([10.0]), 4.0, 0.5, 0.0, dim)
    torch.testing.assert_close(share, torch.full_like(share, 1 / 9))  # 9 voxels inside
    with pytest.raises(InputError, match="miss voxels"):
        thick_slices(ramp, torch.tensor([90.0]), 4.0, 0.5, 0.0, dim)


def test_a_full_matrix_changes_nothing_and_a_small_one_keeps_the_mean():
    image = picture()
    torch.testing.assert_close(limit_resolution(image, (64, 48)), image)
    torch.testing.assert_close(
        limit_resolution(image.to(torch.complex64), (30, 30)).real,
        limit_resolution(image, (30, 30)),
        atol=1e-5,
        rtol=0,
    )
    sharp = (image > 0.5).float()
    small = limit_resolution(sharp, (16, 12))
    assert float(small.mean()) == pytest.approx(float(sharp.mean()), rel=1e-4)
    assert float((small - sharp).abs().max()) > 0.3


def test_an_edge_rings_by_nine_percent_and_a_window_takes_that_away():
    edge = torch.zeros(256, 256)
    edge[64:192] = 1
    ringing = limit_resolution(edge, (64, 256))
    assert float(ringing.max()) == pytest.approx(1.09, abs=0.015)  # Wilbraham-Gibbs
    assert float(limit_resolution(edge, (64, 256), apodise=1.0).max()) < 1.02
    # a wave beyond the acquired frequencies vanishes, one below them stays
    wave = torch.cos(2 * math.pi * 20 * torch.arange(64) / 64).expand(64, 64)
    assert float(limit_resolution(wave, (64, 38)).abs().max()) < 1e-5
    torch.testing.assert_close(
        limit_resolution(wave, (64, 42)), wave, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("dim", [-1, -2])
def test_ghosts_are_shifted_copies(dim):
    image = picture().expand(3, 64, 48)
    found = add_ghosts(image, 7, 0.1, dim=dim)
    wanted = image + 0.1 * (image.roll(7, dim) + image.roll(-7, dim))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    artery = torch.zeros_like(image)
    artery[:, 30, 20] = 1
    ghosts = add_ghosts(image, 10, 0.2, artery, dim) - image
    assert float(ghosts.max()) == pytest.approx(0.2, abs=1e-4)
    assert int((ghosts.abs() > 0.1).sum()) == 2 * 3
    torch.testing.assert_close(add_ghosts(image, 7, 0.0), image, atol=1e-6, rtol=0)


def test_a_patient_who_lies_still_elsewhere_is_only_shifted():
    image = picture()
    torch.testing.assert_close(
        move(image, torch.zeros(64, 2)), image, atol=1e-5, rtol=0
    )
    shifted = move(image, torch.tensor([5.0, -3.0]).expand(64, 2))
    torch.testing.assert_close(shifted, image.roll((5, -3), (0, 1)), atol=1e-5, rtol=0)


def test_a_jump_at_the_edge_of_k_space_harms_less_than_one_in_its_middle():
    image = picture()

    def harm(rows):
        displacement = torch.zeros(64, 2)
        displacement[rows] = torch.tensor([4.0, 0.0])
        return float((move(image, displacement) - image).square().mean())

    assert harm(slice(0, 4)) < 0.1 * harm(slice(30, 34))
    with pytest.raises(InputError, match="each of the 64 rows"):
        move(image, torch.zeros(10, 2))


def test_fat_is_displaced_twice_as_far_at_twice_the_field():
    assert fat_displacement(3.0, 200) == 2 * fat_displacement(1.5, 200)
    assert fat_displacement(1.5, 217.14) == pytest.approx(1.0, rel=1e-3)


# --- noise ----------------------------------------------------------------------------


def test_noise_is_rician():
    sigma, level = 3.0, 7.0
    noisy = rician_noise(torch.full((200, 200), level), sigma, generator()).flatten()
    test = stats.kstest(noisy.numpy(), stats.rice(level / sigma, scale=sigma).cdf)
    assert test.pvalue > 1e-3
    air = rician_noise(torch.zeros(200, 200), sigma, generator(1))
    assert float(air.mean()) == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.02)
    assert float(air.std()) == pytest.approx(
        sigma * math.sqrt(2 - math.pi / 2), rel=0.02
    )
    signal = picture()
    assert torch.equal(rician_noise(signal, 0.0, generator()), signal)


def test_one_seed_gives_one_noise():
    first, again, other = (
        rician_noise(picture(), 0.1, generator(seed)) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
