import numpy as np
import pytest

from medimg_utils.errors import InputError
from medimg_utils.pneumothorax.evaluation import (
    measure,
    overlap_controls,
    style_control,
    style_features,
    subgroups,
    summarise,
)
from medimg_utils.release import read_truth


def _positive():
    true = np.zeros((40, 40), bool)
    true[5:15, 5:15] = True
    return true


def test_a_perfect_map_beats_its_controls():
    true = _positive()
    static = (true | true[:, ::-1]) * 0.5  # both sides alike, as a position prior is
    row = measure(true, true * 0.9, true, static, 0.25, (0.5, 0.5))
    assert row["dice"] == 1
    assert row["pointing"]
    assert row["hausdorff95_mm"] == row["hausdorff95_px"] == 0
    assert row["mirrored_dice"] == 0
    assert not row["mirrored_pointing"]
    assert row["prior_dice"] == pytest.approx(2 / 3)
    assert row["area"] == 100 / 1600


def test_distance_is_in_mm_where_spacing_is_known():
    true = _positive()
    shifted = np.roll(true, 4, axis=0)
    row = measure(true, shifted * 1.0, shifted, true * 1.0, 0.5, (0.5, 0.2))
    assert row["hausdorff95_px"] == 4
    assert row["hausdorff95_mm"] == 2
    row = measure(true, shifted * 1.0, shifted, true * 1.0, 0.5, None)
    assert np.isnan(row["hausdorff95_mm"])


def cases(n=60):
    random = np.random.default_rng(0)
    rows = []
    for k in range(n):
        label = k % 3 == 0
        row = {"image_id": f"i{k}", "patient": f"p{k // 2}", "label": int(label)}
        row["score"] = float(
            np.clip(0.3 + 0.4 * label + 0.15 * random.standard_normal(), 0, 1)
        )
        if label:
            row |= measure(
                _positive(), _positive() * 1.0, _positive(), _positive(), 0.5, (1, 1)
            )
        rows.append(row)
    return rows


def test_summary():
    rows = cases()
    found = summarise(rows, threshold=0.5, specificity=0.9, draws=50)
    assert found["n"] == {
        "images": 60,
        "patients": 30,
        "positives": 20,
        "with_mask": 20,
    }
    assert (
        found["auc"]["delong"][0] <= found["auc"]["value"] <= found["auc"]["delong"][1]
    )
    assert found["dice"]["value"] == found["pointing_game"]["value"] == 1
    assert found["hausdorff95_mm"] == {"median": 0, "n": 20, "without_prediction": 0}
    assert found["operating_point"]["threshold"] == 0.5
    assert overlap_controls(rows)["mirrored_mask"] == {"dice": 0, "pointing": 0}


def test_a_positive_that_was_missed_has_no_distance_but_is_counted():
    true = _positive()
    rows = cases(30)
    rows[0] |= measure(true, true * 0.1, np.zeros_like(true), true, 0.5, (1, 1))
    found = summarise(rows, 0.5, 0.9, draws=20)
    assert found["hausdorff95_mm"] == {"median": 0, "n": 9, "without_prediction": 1}
    assert found["dice"]["value"] == pytest.approx(0.9)


def test_a_test_set_without_positives_is_no_crash():
    rows = [row for row in cases() if not row["label"]]
    found = summarise(rows, 0.5, 0.9, draws=20)
    assert np.isnan(found["auc"]["value"])
    assert found["dice"]["value"] is None
    assert np.isnan(style_control(rows, np.zeros((len(rows), 5)))["auc"])


def test_the_style_control_finds_a_planted_border():
    """Positives from another source, with wider black borders, are told apart by style."""
    random = np.random.default_rng(0)
    rows = cases(80)
    honest, planted = [], []
    for row in rows:
        image = random.random((60, 60))
        honest.append(style_features(image))
        image[:, : 4 + 6 * row["label"]] = 0
        planted.append(style_features(image))
    assert style_control(rows, np.array(planted))["auc"] > 0.95
    assert (
        style_control(rows, np.array(planted))["single_feature_auc"]["black_share"]
        > 0.95
    )
    assert style_control(rows, np.array(honest))["auc"] < 0.75


def test_subgroups_of_a_simulation(tmp_path):
    rows = cases()
    truth = tmp_path / "truth.csv"
    lines = ["ImageId,patient,kind,drain,constant,area"]
    lines += [
        f"{row['image_id']},x,{'apical' if row['label'] else ''},{k % 2},1,{k}"
        for k, row in enumerate(rows)
    ]
    truth.write_text("\n".join(lines))
    found = subgroups(rows, read_truth(truth, "ImageId"))
    assert set(found) == {"kind", "drain"}  # not the constant, not the measurement
    assert found["kind"]["apical"]["positives"] == 20
    assert found["kind"]["apical"]["negatives"] == 40  # all, as no negative is apical
    assert found["kind"]["apical"]["dice"] == 1
    assert found["drain"]["0"]["positives"] + found["drain"]["1"]["positives"] == 20


def test_the_truth_of_another_release_is_refused(tmp_path):
    (tmp_path / "truth.csv").write_text("ImageId,kind\nother,apical\n")
    with pytest.raises(InputError, match="does not list 60 of 60"):
        subgroups(cases(), read_truth(tmp_path / "truth.csv", "ImageId"))


@pytest.mark.parametrize("text", ["BraTS18ID,kind\na,b\n", None])
def test_what_is_no_truth_file_is_refused(tmp_path, text):
    path = tmp_path / "truth.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="no truth file with a column ImageId"):
        read_truth(path, "ImageId")
