import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from medimg_utils.errors import InputError
from medimg_utils.knee.evaluation import (
    GRADES,
    Combination,
    as_json,
    choose_thresholds,
    combine,
    fit_combinations,
    read_truth,
    series_auc,
    style_controls,
    style_features,
    subgroups,
    summarise,
)
from medimg_utils.knee.findings import Finding
from medimg_utils.knee.simulate import _describe

SERIES = ("sagittal", "coronal", "axial")


def cases(n=200, seed=0, skill=(1.0, 0.5, 0.0)):
    """Exams whose series know the ACL well, a little and not at all."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        label = int(random.random() < 0.3)
        series = {}
        for name, strength in zip(SERIES, skill, strict=True):
            logit = strength * (2 * label - 1) + random.standard_normal()
            series[name] = {"acl": 1 / (1 + np.exp(-logit))}
        rows.append(
            {
                "exam_id": f"{number:04d}",
                "exam": f"digest{number}",
                "labels": {"acl": label},
                "series": series,
            }
        )
    return rows


def with_combined(rows, combinations):
    return [row | {"combined": combine(combinations, row["series"])} for row in rows]


# -------------------------------------------------------------------------- combination


def test_the_regression_is_that_of_scikit_learn():
    rows = cases()
    combination = fit_combinations(rows)["acl"]
    columns = [[row["series"][name]["acl"] for name in SERIES] for row in rows]
    labels = [row["labels"]["acl"] for row in rows]
    known = LogisticRegression().fit(columns, labels)
    expected = known.predict_proba(columns)[:, 1]
    found = [
        combination({name: row["series"][name]["acl"] for name in SERIES})
        for row in rows
    ]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_series_that_knows_most_weighs_most():
    combination = fit_combinations(cases())["acl"]
    assert combination.most_weighted == "sagittal"
    first, second, third = combination.coefficients
    assert first > second > third
    again = fit_combinations(cases(skill=(0.0, 0.5, 1.0)))["acl"]
    assert again.most_weighted == "axial"


def test_the_training_way_is_fooled_by_what_was_learned_by_heart():
    """A series that knows the training exams by heart, and no other exam."""
    by_heart = cases(skill=(1.0, 1.0, 6.0))
    honest = cases(seed=1, skill=(1.0, 1.0, 0.0))
    combinations = {
        "training": fit_combinations(by_heart),
        "out_of_fold": fit_combinations(honest),
    }
    test = with_combined(cases(seed=2, skill=(1.0, 1.0, 0.0)), combinations)
    found = summarise(test, "out_of_fold", {"acl": 0.5}, 0.9, draws=20)["acl"]
    assert combinations["training"]["acl"].most_weighted == "axial"
    assert combinations["out_of_fold"]["acl"].most_weighted != "axial"
    assert (
        found["ways"]["out_of_fold"]["value"] > found["ways"]["training"]["value"] + 0.1
    )


def test_one_class_gives_equal_weights():
    combination = Combination.fit(SERIES, [[0.2, 0.4, 0.6]], [1])
    assert not combination.fitted
    even = dict.fromkeys(SERIES, 0.5)
    assert combination(even) == pytest.approx(0.5)
    assert len(set(combination.coefficients)) == 1
    assert combination(dict.fromkeys(SERIES, 0.9)) > 0.8


def test_combinations_survive_json():
    ways = {"training": fit_combinations(cases())}
    stored = json.loads(json.dumps(as_json(ways)))["training"]["acl"]
    assert stored["most_weighted"] == "sagittal"
    assert Combination.from_json(stored) == ways["training"]["acl"]


def test_an_exam_that_lacks_a_series_has_no_combined_answer():
    ways = {"training": fit_combinations(cases())}
    found = combine(ways, {"sagittal": {"acl": 0.9}})
    assert found == {"training": {}}


# ------------------------------------------------------------------------------ summary


def test_the_numbers_of_a_summary():
    ways = {"out_of_fold": fit_combinations(cases(seed=1))}
    test = with_combined(cases(), ways)
    found = summarise(test, "out_of_fold", {"acl": 0.5}, 0.9, draws=50)["acl"]
    labels = [row["labels"]["acl"] for row in test]
    assert found["positives"] == sum(labels)
    single = {name: found["series"][name]["value"] for name in SERIES}
    assert single["sagittal"] > single["coronal"] > single["axial"]
    assert found["combined"]["auc"]["value"] > single["sagittal"] - 0.01
    low, high = found["combined"]["auc"]["bootstrap"]
    assert low < found["combined"]["auc"]["value"] < high
    assert series_auc(test)["acl"] == pytest.approx(single)
    assert 0 < found["combined"]["calibration"]["brier"] < 0.25


def test_single_series_alone_are_summarised_too():
    rows = [
        {**row, "series": {"sagittal": row["series"]["sagittal"]},
         "combined": {"training": {}}}
        for row in cases()
    ]  # fmt: skip
    found = summarise(rows, "training", {}, 0.9, draws=10)["acl"]
    assert found["combined"] is None
    assert found["series"]["sagittal"]["value"] > 0.85


def test_thresholds_keep_the_wanted_specificity():
    rows = cases()
    ways = fit_combinations(rows)
    threshold = choose_thresholds(rows, ways, 0.9)["acl"]
    scores = np.array(
        [ways["acl"]({n: row["series"][n]["acl"] for n in SERIES}) for row in rows]
    )
    labels = np.array([row["labels"]["acl"] for row in rows], bool)
    assert (scores[~labels] < threshold).mean() >= 0.9
    assert (scores[labels] >= threshold).mean() > 0.6
    alone = [row for row in rows if row["labels"]["acl"]]
    assert choose_thresholds(alone, ways, 0.9) == {"acl": 0.5}


# ----------------------------------------------------------------------------- controls


def test_style_is_told_whatever_the_number_type():
    random = np.random.default_rng(0)
    volume = random.integers(0, 256, (12, 40, 40)).astype(np.uint8)
    volume[0, 0, 0] = 255
    found = style_features(volume)
    assert found["slices"] == 12
    assert found["dark_share"] == pytest.approx(15 / 256, abs=0.01)
    assert found["bright_share"] == pytest.approx(6 / 256, abs=0.01)
    assert found["mean"] == pytest.approx(127.5, abs=2)
    deep = style_features(volume.astype(np.int16) * 8)
    assert deep == pytest.approx(found, rel=1e-6)


def test_the_style_control_finds_a_planted_leak():
    rows = cases(100)
    random = np.random.default_rng(0)
    honest, leaky = [], []
    for row in rows:
        volume = random.integers(0, 256, (8, 32, 32)).astype(np.uint8)
        honest.append(style_features(volume))
        if row["labels"]["acl"]:
            volume[:, :4] = 255  # positives are a little brighter
        leaky.append(style_features(volume))
    assert style_controls(rows, leaky)["acl"]["auc"] > 0.95
    assert (
        style_controls(rows, leaky)["acl"]["single_feature_auc"]["bright_share"] > 0.95
    )
    assert style_controls(rows, honest)["acl"]["auc"] < 0.7


# -------------------------------------------------------------- what a simulation knows


def truth_file(tmp_path, rows):
    facts = {
        row["exam_id"]: {
            "split": "valid",
            "anatomy": f"knee{int(row['exam_id']) % 2}",
            "side": "left",
            "findings": [{"diagnosis": "acl", "kind": "partial", "grade": "subtle"}]
            if row["labels"]["acl"]
            else [],
        }
        for row in rows
    }
    facts["9999"] = {"split": "train", "anatomy": "knee9", "findings": []}
    path = tmp_path / "simulation-truth.json"
    path.write_text(json.dumps(facts))
    return path


def test_subgroups_by_what_the_simulation_knows(tmp_path):
    ways = {"training": fit_combinations(cases(seed=1))}
    test = with_combined(cases(), ways)
    truth = read_truth(truth_file(tmp_path, test), "valid")
    assert "9999" not in truth.exams
    found = subgroups(test, truth, "training")
    assert set(found["anatomy"]) == {"knee0", "knee1"}
    assert "side" not in found  # all are left
    sizes = [group["acl"]["positives"] + group["acl"]["negatives"]
             for group in found["anatomy"].values()]  # fmt: skip
    assert sizes == [100, 100]
    partial = found["kind"]["acl"]["partial"]
    assert partial["positives"] == sum(row["labels"]["acl"] for row in test)
    assert partial["value"] > 0.8
    assert truth.lesions("valid", "axial", "0003") == (
        tmp_path / "lesions" / "valid" / "axial" / "0003.npz"
    )


def test_a_grade_is_the_highest_of_the_exam(tmp_path):
    """A subtle effusion beside a torn ligament does not make a subtle exam."""
    painted = {
        "0000": [("abnormal", "effusion", "subtle")],
        "0001": [("abnormal", "effusion", "subtle"), ("acl", "complete", "marked")],
        "0002": [("abnormal", "cyst", "subtle"), ("abnormal", "oedema", "moderate")],
        "0003": [("acl", "partial", "subtle"), ("acl", "complete", "moderate")],
        "0004": [("", "red marrow", "marked")],  # only looks like a finding
    }
    names = ("diagnosis", "kind", "grade")
    facts, rows = {}, []
    for exam, found in painted.items():
        findings = [dict(zip(names, one, strict=True)) for one in found]
        facts[exam] = {"split": "valid", "findings": findings}
        labels = {
            "abnormal": int(any(one[0] for one in found)),
            "acl": int(any(one[0] == "acl" for one in found)),
        }
        answers = {"training": {name: 0.1 + 0.8 * labels[name] for name in labels}}
        rows.append({"exam_id": exam, "labels": labels, "combined": answers})
    path = tmp_path / "simulation-truth.json"
    path.write_text(json.dumps(facts))
    found = subgroups(rows, read_truth(path, "valid"), "training")
    counts = {
        diagnosis: {grade: group["positives"] for grade, group in groups.items()}
        for diagnosis, groups in found["grade"].items()
    }
    assert counts == {
        "abnormal": {"subtle": 1, "moderate": 2, "marked": 1},
        "acl": {"moderate": 1, "marked": 1},
    }
    assert found["kind"]["acl"]["partial"]["positives"] == 1
    assert found["kind"]["acl"]["complete"]["positives"] == 2
    assert found["kind"]["abnormal"]["effusion"]["positives"] == 2


def test_the_grades_are_those_of_the_simulation():
    told = [_describe(Finding("acl", "partial", k))["grade"] for k in (0, 0.5, 1)]
    assert tuple(told) == GRADES


def test_another_truth_file_is_refused(tmp_path):
    ways = {"training": fit_combinations(cases(seed=1))}
    test = with_combined(cases(), ways)
    truth = read_truth(truth_file(tmp_path, test[:50]), "valid")
    with pytest.raises(InputError, match=r"150 of 200 exams, e\.g\. 0050"):
        subgroups(test, truth, "training")
    for text in ("no json", "[]", '{"0000": 3}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(InputError, match="no truth file"):
            read_truth(tmp_path / "other.json", "valid")
    with pytest.raises(InputError, match="no truth file"):
        read_truth(tmp_path / "absent.json", "valid")
