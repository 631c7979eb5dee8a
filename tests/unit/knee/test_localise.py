import numpy as np
import pytest

from medimg_utils.errors import InputError
from medimg_utils.knee.localise import (
    far_from_centre,
    measure,
    read_lesions,
    summarise,
)
from medimg_utils.release import DatasetError


def lesion(shape=(7, 20, 20), place=(2, slice(4, 8), slice(10, 15))):
    mask = np.zeros(shape, bool)
    mask[place] = True
    return mask


def test_a_map_that_is_the_lesion_is_perfect():
    truth = lesion()
    found = measure(truth.astype(float), 2, truth)
    assert [found[name]["network"] for name in ("slice", "pointing", "overlap")] == [
        1,
        1,
        1,
    ]


def test_a_map_that_points_elsewhere_gets_nothing():
    truth = lesion()
    heat = np.zeros(truth.shape)
    heat[5, 15:19, 1:6] = 1
    found = measure(heat, 5, truth)
    assert [found[name]["network"] for name in ("slice", "pointing", "overlap")] == [
        0,
        0,
        0,
    ]


def test_each_question_by_hand():
    truth = lesion()  # 20 voxels in slice 2
    heat = np.zeros(truth.shape)
    heat[2, 4:8, 10:15] = np.linspace(1, 2, 20).reshape(4, 5)
    heat[2, 0, 0] = 9  # hottest of the slice: outside
    heat[4, :3, :3] = 8  # nine hot voxels in another slice
    found = measure(heat, 2, truth)
    assert found["slice"]["network"] == 1
    assert found["pointing"]["network"] == 0
    assert found["overlap"]["network"] == pytest.approx((20 - 10) / 20)
    # (0, 0) is 4 rows and 10 columns from (4, 10)
    assert measure(heat, 2, truth, 10.7)["pointing"]["network"] == 0
    assert measure(heat, 2, truth, 10.8)["pointing"]["network"] == 1


def test_random_is_what_random_maps_reach():
    truth = lesion((5, 12, 12), (slice(1, 3), slice(2, 7), slice(3, 9)))
    random = np.random.default_rng(0)
    tries = []
    for _ in range(3000):
        found = measure(random.random(truth.shape), int(random.integers(5)), truth, 1.0)
        tries.append(
            [found[name]["network"] for name in ("slice", "pointing", "overlap")]
        )
    expected = [found[name]["random"] for name in ("slice", "pointing", "overlap")]
    np.testing.assert_allclose(np.mean(tries, axis=0), expected, atol=0.03)


def test_the_centre_scores_where_the_lesion_is_central():
    middle = lesion((7, 21, 21), (slice(2, 5), slice(8, 13), slice(8, 13)))
    aside = lesion((7, 21, 21), (0, slice(0, 4), slice(0, 4)))
    heat = np.zeros(middle.shape)
    central, peripheral = measure(heat, 0, middle), measure(heat, 0, aside)
    for name in ("slice", "pointing"):
        assert central[name]["centre"] == 1
        assert peripheral[name]["centre"] == 0
    assert central["overlap"]["centre"] > 0.5 > peripheral["overlap"]["centre"]


def test_distances_from_the_centre():
    distance = far_from_centre((5, 9, 11))
    assert distance[2, 4, 5] == 0
    assert distance[0, 4, 5] == distance[2, 0, 5] == distance[2, 4, 10] == 1
    np.testing.assert_allclose(distance, distance[::-1, ::-1, ::-1])
    assert far_from_centre((1, 3, 3))[0, 1, 1] == 0


def test_an_empty_lesion_cannot_be_found():
    with pytest.raises(InputError, match="must not be empty"):
        measure(np.zeros((2, 4, 4)), 0, np.zeros((2, 4, 4), bool))
    with pytest.raises(InputError, match=r"\(2, 4, 4\)"):
        measure(np.zeros((2, 4, 4)), 0, lesion())


def test_a_summary_is_the_mean_and_the_paired_gain():
    truth = lesion()
    good = measure(truth.astype(float), 2, truth)
    bad = measure(-truth.astype(float), 0, truth)
    found = summarise([good, bad, good, good], draws=200)
    assert found["n"] == 4
    assert found["pointing"]["network"]["value"] == 0.75
    assert found["slice"]["gain_over_random"]["value"] == pytest.approx(0.75 - 1 / 7)
    assert found["overlap"]["gain_over_centre"]["low"] < 0.75
    assert summarise([]) == {"n": 0}


def test_lesions_are_read_and_checked(tmp_path):
    path = tmp_path / "0000.npz"
    np.savez_compressed(path, acl=lesion(), meniscus=np.zeros((7, 20, 20), bool))
    found = read_lesions(path, (7, 20, 20))
    assert set(found) == {"acl", "meniscus"}
    assert (found["acl"] == lesion()).all()
    with pytest.raises(DatasetError, match=r"the series \(8, 20, 20\)"):
        read_lesions(path, (8, 20, 20))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DatasetError, match="same simulation"):
        read_lesions(path, (7, 20, 20))
    with pytest.raises(DatasetError, match="absent"):
        read_lesions(tmp_path / "absent.npz", (7, 20, 20))
