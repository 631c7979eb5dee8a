"""Bent lines on a film: where they lie, and that nothing is drawn elsewhere."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg_utils.pneumothorax.curves import Curve, Dice, ridge, step, strand

# a film of 300 mm with pixels of 1 mm: x falls with the column, z with the row
AT = (
    torch.arange(150.0, -150.0, -1.0)[None, :],
    torch.arange(50.0, -250.0, -1)[:, None],
)


def drawn(curve, profile, reach=20.0):
    path = torch.zeros(300, 300)
    curve.draw(path, AT, profile, reach)
    return path


def test_a_band_lies_where_its_curve_says():
    path = drawn(Curve(30.0, -60.0, 0.0, 0.0, 50.0), ridge(2.0, 3.0))
    row, column = divmod(int(path.argmax()), 300)
    assert column == 120
    assert path.max() == pytest.approx(2.0, rel=1e-3)
    middle = path[110]  # z = -60
    assert float(middle[117]) == pytest.approx(2 * math.exp(-0.5), rel=1e-3)
    assert path[30:50].max() < 0.05  # beyond its upper end
    assert abs(row - 110) < 40


def test_the_upper_end_leans_to_the_patients_right():
    path = drawn(Curve(0.0, -100.0, 0.5, 0.0, 60.0), ridge(1.0, 2.0))
    x = AT[0][0]
    upper, lower = (
        float((path[row] * x).sum() / path[row].sum()) for row in (120, 180)
    )
    assert upper == pytest.approx(30 * math.tan(0.5), abs=1)
    assert lower == pytest.approx(-30 * math.tan(0.5), abs=1)


def test_a_bent_line_is_a_parabola():
    path = drawn(Curve(0.0, -100.0, 0.0, 0.01, 60.0), ridge(1.0, 2.0))
    x = AT[0][0]
    for row in (110, 150, 190):
        middle = float((path[row] * x).sum() / path[row].sum())
        assert middle == pytest.approx(0.005 * (row - 150) ** 2, abs=1)


@pytest.mark.parametrize("towards", [1.0, -1.0])
def test_a_step_is_sharp_on_one_side_and_falls_slowly_on_the_other(towards):
    path = drawn(
        Curve(0.0, -100.0, 0.0, 0.0, 80.0), step(3.0, 0.5, 20.0, towards), 90.0
    )
    x = AT[0][0]
    row = path[150]
    assert row[(x * towards) < -3].abs().max() < 0.02
    assert float(row[x == 20 * towards]) == pytest.approx(3 / math.e, rel=0.02)


def test_a_strand_is_round_and_swells():
    path = drawn(Curve(0.0, -100.0, 0.0, 0.0, 80.0), strand(2.0, 6.0, 15.0))
    ridge_line = path[120:180, 150]
    assert ridge_line.max() / ridge_line.min() > 1.6
    assert path[150, :143].max() == 0


@given(
    st.floats(-400, 400), st.floats(-500, 300), st.floats(-7, 7), st.floats(-0.01, 0.01)
)
@settings(deadline=None, max_examples=40)
def test_a_curve_anywhere_changes_only_what_is_near(x, z, angle, bend):
    """Also one that lies beside the film."""
    curve = Curve(x, z, angle, bend, 40.0)
    path = drawn(curve, ridge(1.0, 2.0), reach=8.0)
    far = ((AT[0] - x) ** 2 + (AT[1] - z) ** 2).sqrt() > 48 + 8 + 8 + 40
    assert torch.isfinite(path).all()
    assert path.max() <= 1
    assert path[far].abs().sum() == 0


def test_dice_stay_within_their_ranges():
    dice = Dice(torch.Generator().manual_seed(0))
    between = [dice.between(-2, 5) for _ in range(500)]
    ratio = [dice.ratio(0.1, 10) for _ in range(2000)]
    assert -2 <= min(between) < -1.8 < 4.8 < max(between) <= 5
    assert 0.1 <= min(ratio) <= max(ratio) <= 10
    assert sum(r < 1 for r in ratio) / 2000 == pytest.approx(0.5, abs=0.05)
    assert sum(dice.happens(0.2) for _ in range(2000)) / 2000 == pytest.approx(
        0.2, abs=0.04
    )
