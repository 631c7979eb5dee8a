"""Films with and without a drain differ by the drain alone."""

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medimg_utils.challenges import films
from medimg_utils.errors import InputError
from medimg_utils.pneumothorax.dataset import read_release


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([64, 150]))
def test_a_drain_brightens_its_own_place_on_its_own_side(seed, right, width):
    pixels = np.full((128, width), 0.3, np.float32)
    film, drain = films.lay_drain(pixels, right, np.random.default_rng(seed))
    assert film.shape == pixels.shape
    assert 0 <= film.min() <= film.max() <= 1
    far = np.abs(film - pixels) > 0.05
    assert (drain | ~far).all()
    assert film[drain].mean() > pixels.mean() + 0.05
    columns = np.nonzero(drain)[1]
    assert (columns.mean() > width / 2) == right
    assert 0.001 < drain.mean() < 0.1


def write_truth(release, changed=None):
    rows = []
    for record in read_release(release):
        rows.append(
            {
                "ImageId": record.image_id,
                "kind": "apical" if record.label else "",
                "pair": "",
                "area": 0.02 if record.label else 0.0,
                "drain": 0,
                **(changed or {}).get(record.image_id, {}),
            }
        )
    with (release / "simulation-truth.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_a_release_becomes_films(tmp_path, write_release):
    release = write_release(tmp_path / "release", patients=3)
    write_truth(release)
    found = films.read_films(release)
    labels = [record.label for record in read_release(release)]
    assert found.labels.tolist() == labels
    assert found.images.shape == (6, 2, films.SIDE, films.SIDE)
    assert (found.lesions.any(axis=(1, 2)) == found.labels).all()
    assert found.drains.any(axis=(1, 2)).all()
    changed = np.abs(found.images[:, 1].astype(int) - found.images[:, 0])
    for difference, drain in zip(changed, found.drains, strict=True):
        assert difference[drain].mean() > 3 * difference[~drain].mean()
    again = films.read_films(release)
    assert np.array_equal(again.images, found.images)
    sick = found.part(found.labels == 1)
    for lesion, drain in zip(sick.lesions, sick.drains, strict=True):
        sides = [np.nonzero(m)[1].mean() > films.SIDE / 2 for m in (lesion, drain)]
        assert sides[0] == sides[1]


def test_films_with_a_drain_and_small_findings_are_left_out(tmp_path, write_release):
    release = write_release(tmp_path / "release", patients=3)
    records = read_release(release)
    sick = [record.image_id for record in records if record.label]
    healthy = [record.image_id for record in records if not record.label]
    write_truth(
        release,
        {
            sick[0]: {"area": 0.001, "pair": healthy[0]},
            healthy[0]: {"pair": sick[0]},
            sick[1]: {"pair": healthy[1]},
            healthy[1]: {"pair": sick[1]},
            healthy[2]: {"drain": 1},
        },
    )
    assert len(films.read_films(release)) == 5
    assert len(films.read_films(release, smallest=0.005)) == 3
    assert len(films.read_films(release, twins=True, smallest=0.005)) == 2


def test_a_release_must_say_where_drains_are(tmp_path, write_release):
    release = write_release(tmp_path / "release", patients=2)
    with pytest.raises(InputError, match=r"simulation-truth\.csv is missing"):
        films.read_films(release)
    write_truth(release, {r.image_id: {"drain": 1} for r in read_release(release)})
    with pytest.raises(InputError, match="no film without a drain"):
        films.read_films(release)
