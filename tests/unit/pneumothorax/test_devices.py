"""Devices are drawn where they belong, and absorb."""

import numpy as np
import pytest
import torch

from medimg_utils.pneumothorax.devices import add_markers, device_paths
from medimg_utils.pneumothorax.film import render
from medimg_utils.pneumothorax.phantom import LEFT, RIGHT


@pytest.mark.parametrize("device", ["drain", "line", "leads", "pacemaker"])
def test_devices_absorb(pose, girdle, device):
    """What a device covers is brighter, the rest stays."""
    plain = render(pose("chest3", 7, size=128, devices=()), girdle, None)
    film = render(pose("chest3", 7, size=128, devices=(device,)), girdle, None)
    change = film.pixels.astype(float) - plain.pixels
    assert film.devices == (device,)
    assert (change > 8).sum() > 25
    assert (change > 8).mean() < 0.12
    assert abs(np.median(change)) <= 2
    assert np.quantile(change, 0.05) > -4  # sharpening leaves halos


def test_letter_and_shutter(pose, girdle):
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


@pytest.mark.parametrize("seed", range(6))
def test_words_stand_in_a_corner(pose, seed):
    view = pose("chest3", seed, size=192, devices=("words",))
    letters = add_markers(view, torch.zeros(192, 192)).numpy() > 0.1
    assert 10 < letters.sum() < 0.06 * letters.size
    rows, columns = (np.flatnonzero(letters.any(axis=axis)) / 192 for axis in (1, 0))
    assert rows.max() < 0.3 or rows.min() > 0.75
    assert columns.max() < 0.55 or columns.min() > 0.45


def test_a_mirrored_film_bears_no_letters(pose, girdle):
    """They would read backwards."""
    letters, none = (
        render(
            pose("chest3", 7, size=96, patient={"mirrored": True}, devices=d),
            girdle,
            None,
        )
        for d in (("marker", "words"), ())
    )
    assert letters.devices == ()
    np.testing.assert_array_equal(letters.pixels, none.pixels)


def share_on_the_right(view):
    """Of the metal on a film."""
    metal = device_paths(view)
    x, _ = view.film_mm()
    return float((metal * (x > 0)).sum() / metal.sum())


@pytest.mark.parametrize("side", [RIGHT, LEFT])
def test_a_drain_lies_on_the_side_that_was_asked_for(pose, side):
    for seed in range(6):
        right = share_on_the_right(
            pose("chest3", seed, size=96, devices=("drain",), drain_side=side)
        )
        assert right > 0.98 if side == RIGHT else right < 0.02


def test_where_no_side_is_asked_for_a_drain_lies_on_either(pose):
    rights = [
        share_on_the_right(pose("chest3", seed, size=96, devices=("drain",)))
        for seed in range(10)
    ]
    assert min(rights) < 0.02
    assert max(rights) > 0.98


@pytest.mark.parametrize("device", ["drain", "line", "leads", "pacemaker"])
def test_a_device_more_moves_nothing_else(pose, device):
    """Else a network could tell drained patients by where their other devices lie."""
    everything = ("drain", "line", "leads", "pacemaker")
    others = tuple(name for name in everything if name != device)
    one, rest, together = (
        device_paths(pose("chest3", 3, size=96, devices=devices))
        for devices in ((device,), others, everything)
    )
    assert one.max() > 0.05
    assert rest.max() > 0.05
    torch.testing.assert_close(together, one + rest, atol=1e-5, rtol=0)
