import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_dice,
    compute_hausdorff_distance,
    get_confusion_matrix,
)

from medimg_utils.brain.evaluation import (
    WORST_DISTANCE_MM,
    dices,
    flair_threshold,
    measure,
    measure_all,
    region,
    subgroups,
    summarise,
)
from medimg_utils.errors import InputError
from medimg_utils.release import read_truth


def blobs(seed, shape=(24, 26, 20)):
    """Labels 0 to 3 with irregular outlines."""
    from scipy import ndimage

    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.normal(size=shape), 3)
    return np.digitize(field, np.quantile(field, [0.8, 0.9, 0.96])).astype(np.uint8)


def test_the_regions_are_nested():
    labels = blobs(0)
    wt, tc, et = (region(labels, name) for name in ("WT", "TC", "ET"))
    assert (wt == (labels > 0)).all()
    assert (tc == np.isin(labels, (1, 3))).all()
    assert (et == (labels == 3)).all()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 0.7, 3.0)])
@pytest.mark.parametrize("seed", range(3))
def test_the_measures_are_those_of_monai(seed, spacing):
    predicted, truth = blobs(seed), blobs(seed + 50)
    predicted[4:20, 4:20, 4:16] = truth[4:20, 4:20, 4:16]
    for name, row in measure_all(predicted, truth, spacing).items():
        ours, theirs = (
            torch.from_numpy(region(labels, name))[None, None].float()
            for labels in (predicted, truth)
        )
        assert row["dice"] == pytest.approx(compute_dice(ours, theirs).item())
        far = compute_hausdorff_distance(ours, theirs, percentile=95, spacing=spacing)
        assert row["hausdorff95_mm"] == pytest.approx(far.item(), abs=1e-4)
        tp, fp, tn, fn = get_confusion_matrix(ours, theirs)[0, 0].tolist()
        assert row["sensitivity"] == pytest.approx(tp / (tp + fn))
        assert row["specificity"] == pytest.approx(tn / (tn + fp))
        assert row["true_cm3"] == pytest.approx((tp + fn) * np.prod(spacing) / 1000)


def test_rules_for_empty_regions():
    none, some = np.zeros((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
    some[2, 2, 2] = True
    assert pytest.approx(373.1287, abs=1e-4) == WORST_DISTANCE_MM
    for predicted, truth, dice, far in (
        (none, none, 1, 0),
        (some, none, 0, WORST_DISTANCE_MM),
        (none, some, 0, WORST_DISTANCE_MM),
        (some, some, 1, 0),
    ):
        row = measure(predicted, truth, (2.0, 2.0, 2.0))
        assert row["dice"] == dice
        assert row["hausdorff95_mm"] == far
        assert np.isnan(row["sensitivity"]) == (not truth.any())
    assert measure(some, none, (1.0,) * 3)["specificity"] == pytest.approx(124 / 125)
    assert np.isnan(measure(~none, ~none, (1.0,) * 3)["specificity"])


def test_distances_are_in_mm():
    first, second = np.zeros((2, 9, 5, 5), bool)
    first[1, 2, 2], second[4, 2, 2] = True, True
    assert measure(first, second, (2.5, 1.0, 1.0))["hausdorff95_mm"] == 7.5


def test_dices_alone_are_the_same():
    predicted, truth = blobs(1), blobs(2)
    full = measure_all(predicted, truth, (1.0, 1.0, 1.0))
    assert dices(predicted, truth) == {name: row["dice"] for name, row in full.items()}


def test_the_control_finds_the_bright_blob():
    flair = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    flair[8:16, 8:16, 8:16] = 5
    flair[2:4, 2:4, 2:4] = 5
    brain = np.ones(flair.shape, bool)
    brain[:, :, 14:] = False
    found = flair_threshold(flair, brain)
    assert found[11, 11, 11]
    assert not found[3, 3, 3]
    assert not found[:, :, 14:].any()
    assert not flair_threshold(flair * 0, brain).any()


def rows(count=6):
    made = []
    for k in range(count):
        one = measure_all(blobs(k), blobs(k + 9), (1.0, 1.0, 1.0))
        made.append({"case_id": f"c{k}", "patient": f"p{k // 2}", **one})
    return made


def test_a_summary_has_mean_interval_and_quartiles():
    made = rows()
    made[0]["ET"]["sensitivity"] = float("nan")
    answer = summarise(made, draws=100)
    values = [row["WT"]["dice"] for row in made]
    summary = answer["WT"]["dice"]
    assert summary["mean"] == pytest.approx(np.mean(values))
    assert summary["median"] == pytest.approx(np.median(values))
    low, high = summary["interval"]
    assert low <= summary["mean"] <= high
    assert low < high
    assert answer["ET"]["sensitivity"]["n"] == 5
    for row in made:
        row["ET"]["sensitivity"] = float("nan")
    assert np.isnan(summarise(made, draws=10)["ET"]["sensitivity"]["mean"])


def test_subgroups_follow_the_truth_file(tmp_path):
    made = rows()
    path = tmp_path / "truth.csv"
    lines = ["case,kind,volume", *(f"c{k},{'ab'[k % 2]},{k}.5" for k in range(6))]
    path.write_text("\n".join(lines))
    answer = subgroups(made, read_truth(path, "case"))
    assert set(answer) == {"kind"}  # volumes are no groups
    assert answer["kind"]["a"]["n"] == 3
    assert answer["kind"]["a"]["WT"] == pytest.approx(
        np.mean([made[k]["WT"]["dice"] for k in (0, 2, 4)])
    )
    path.write_text("\n".join(lines[:3]))
    with pytest.raises(InputError, match="does not list 4 of 6"):
        subgroups(made, read_truth(path, "case"))
