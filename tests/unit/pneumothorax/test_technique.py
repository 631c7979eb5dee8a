"""What is drawn at random has its stated rates, and only drains know of the disease."""

from dataclasses import replace

import numpy as np
import pytest

from medimg_utils.pneumothorax.phantom import ANATOMIES
from medimg_utils.pneumothorax.technique import (
    Rates,
    random_patient,
    random_technique,
)


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
        "emphysema": rates.emphysema,
        "bulla": rates.bulla,
        "companion shadow": rates.companion_shadow,
        "hair": rates.hair,
        "clothes": rates.clothes,
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
    assert all(p.bend_mm <= 9 and p.fat_mm >= 0 for p in drawn)
    assert all(abs(p.slope) <= 0.3 for p in drawn)
    assert np.mean([p.shoulder for p in drawn]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([p.mirrored for p in drawn]) == pytest.approx(0.02, abs=0.01)
    assert np.mean([p.sex == "F" for p in drawn]) == pytest.approx(0.45, abs=0.04)


def test_the_habitus_is_told_by_fat_and_no_kind_is_rare():
    generator = np.random.default_rng(2)
    drawn = [random_patient(ANATOMIES, Rates(), generator) for _ in range(3000)]
    build = replace(drawn[0], fat_mm=0.0)
    for fat, habitus in ((0, "lean"), (14.9, "lean"), (15, "average"), (30, "heavy")):
        assert replace(build, fat_mm=fat).habitus == habitus
    # the drawn thickness has the distribution function 1 - (1 + x) exp(-x), x = mm / 12
    lean, slim = (1 - (1 + x) * np.exp(-x) for x in (15 / 12, 30 / 12))
    shares = [np.mean([p.habitus == h for p in drawn]) for h in ("lean", "average")]
    assert shares == pytest.approx([lean, slim - lean], abs=0.03)
