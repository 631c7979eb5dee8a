import json

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression

from medimg_utils.brain import survival
from medimg_utils.brain.survival import (
    FOREST,
    VARIANTS,
    CohortError,
    compare,
    estimate,
    features,
    fit_linear,
    fit_models,
    from_json,
    leave_one_out,
    matrix,
    scores,
)

TRUE = {"age": -8.0, "distance_mm": 3.0, "core_cm3": -1.0, "enhancing_cm3": -2.0}


def cohort(count, seed=0, noise=120.0):
    """Patients whose survival follows from `TRUE`, plus noise."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        row = {
            "age": random.uniform(30, 80),
            "distance_mm": random.normal(43, 6),
            "core_cm3": random.lognormal(3, 0.6),
            "oedema_cm3": random.lognormal(3.9, 0.5),
            "enhancing_cm3": random.lognormal(2.9, 0.6),
        }
        row["days"] = 900 + sum(TRUE[k] * row[k] for k in TRUE)
        row["days"] += random.normal(0, noise)
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------ features


def test_features_by_hand():
    brain = np.zeros((11, 9, 9), bool)
    brain[1:10, 2:7, 2:7] = True  # centre (5, 4, 4)
    labels = np.zeros(brain.shape, np.uint8)
    labels[7, 4, 4], labels[8, 4, 4], labels[9, 4, 4] = 1, 2, 3
    found = features(labels, brain, (2.0, 1.0, 1.0))
    assert found["distance_mm"] == pytest.approx(6.0)  # 3 voxels of 2 mm
    assert [found[name] for name in survival.VOLUMES] == pytest.approx([0.002] * 3)
    assert features(labels * 0, brain, (1.0,) * 3)["distance_mm"] == 0


# ---------------------------------------------------------------------------- regression


def test_coefficients_are_those_of_scikit_learn():
    rows = cohort(40)
    for names in VARIANTS.values():
        model = fit_linear(rows, names)
        theirs = LinearRegression().fit(matrix(rows, names), [r["days"] for r in rows])
        assert model.coefficients[0] == pytest.approx(theirs.intercept_)
        assert model.coefficients[1:] == pytest.approx(theirs.coef_)


def test_intervals_are_those_of_scipy():
    rows = cohort(30)
    found = stats.linregress([r["age"] for r in rows], [r["days"] for r in rows])
    value, low, high = fit_linear(rows, ["age"]).intervals(0.9)["age"]
    assert value == pytest.approx(found.slope)
    half = stats.t.ppf(0.95, 28) * found.stderr
    assert (low, high) == pytest.approx((value - half, value + half))


def test_a_large_cohort_gives_the_true_coefficients_back():
    found = fit_linear(cohort(4000), VARIANTS["all"]).intervals(0.99)
    for name, true in {**TRUE, "oedema_cm3": 0.0, "intercept": 900.0}.items():
        _, low, high = found[name]
        assert low <= true <= high, name
    assert found["age"][2] < -7  # and the interval is narrow enough to say something


def test_new_patients_fall_into_the_interval_as_often_as_it_says():
    inside = total = 0
    for seed in range(60):
        rows = cohort(25, seed)
        model = fit_linear(rows[:20], ["age"])
        for row in rows[20:]:
            _, low, high = model.predict(row, 0.8)
            inside += low <= row["days"] <= high
            total += 1
    assert inside / total == pytest.approx(0.8, abs=0.07)


def test_without_features_the_answer_is_the_mean():
    rows = cohort(12)
    days = np.array([row["days"] for row in rows])
    value, low, high = fit_linear(rows).predict({}, 0.8)
    assert value == pytest.approx(days.mean())
    spread = days.std(ddof=1) * np.sqrt(1 + 1 / 12) * stats.t.ppf(0.9, 11)
    assert high - value == pytest.approx(spread)
    assert low >= 0


def test_survival_is_not_negative():
    rows = [{"age": age, "days": 500 - 5 * age} for age in range(30, 90, 7)]
    assert fit_linear(rows, ["age"]).predict({"age": 110})[0] == 0


def test_cohorts_that_cannot_be_used_are_refused():
    rows = cohort(20)
    with pytest.raises(CohortError, match="at least 4"):
        fit_linear(rows[:3], ["age"])
    for row in rows:
        row["core_cm3"] = 0.0
    with pytest.raises(CohortError, match="constant"):
        fit_linear(rows, VARIANTS["all"])
    rows[3]["age"] = None
    with pytest.raises(CohortError, match="patient 4 of 20 has no age"):
        fit_linear(rows, ["age"])
    with pytest.raises(CohortError, match="too few"):
        compare(rows[:7])


# ---------------------------------------------------------------------------- comparison


def test_leave_one_out_is_that_of_the_hat_matrix():
    rows = cohort(18)
    days = np.array([row["days"] for row in rows])
    for variant, names in VARIANTS.items():
        table = np.column_stack([np.ones(18), matrix(rows, names)])
        hat = table @ np.linalg.pinv(table)
        residual = (days - hat @ days) / (1 - np.diag(hat))
        assert leave_one_out(rows, variant) == pytest.approx(days - residual)


def test_scores_by_hand():
    found = scores([100, 304, 456, 500], [200, 303, 400, 900])
    assert found["accuracy"] == 0.75  # only 303 falls into another class than 304
    assert found["mse"] == pytest.approx((100**2 + 1 + 56**2 + 400**2) / 4)
    assert found["median_se"] == pytest.approx((100**2 + 56**2) / 2)
    assert found["spearman"] == pytest.approx(
        stats.spearmanr([1, 2, 3, 4], [1, 2, 3, 4]).statistic
    )
    assert np.isnan(scores([1, 2], [3, 3])["spearman"])


def test_the_control_knows_nothing():
    table = compare(cohort(30, noise=40), trees=10)
    assert set(table) == {"n", "mean", *VARIANTS, FOREST}
    assert np.isnan(table["mean"]["spearman"])
    assert table["age"]["mse"] < table["mean"]["mse"]
    assert table["all"]["mse"] < table["age"]["mse"]
    assert table[FOREST]["spearman"] > 0.2


def test_the_forest_repeats():
    rows = cohort(12)
    first, second = (leave_one_out(rows, FOREST, trees=5) for _ in range(2))
    assert np.array_equal(first, second)


# --------------------------------------------------------------------------------- in a run


def test_models_survive_json():
    rows = cohort(40, noise=40)
    stored = json.loads(json.dumps(fit_models(rows)))
    assert stored["chosen"] == "all"  # the cohort was made from all of them
    model = from_json(stored["models"]["all"])
    assert model == fit_linear(rows, VARIANTS["all"])
    answer = estimate(stored, rows[0], simulated=True)
    days, low, high = model.predict(rows[0], 0.8)
    assert answer["days"] == round(days, 1)
    assert answer["interval_days"] == [round(low, 1), round(high, 1)]
    assert "40 simulated patients" in answer["based_on"]
    assert set(answer["features"]) == set(VARIANTS["all"])


def test_without_an_age_the_estimate_is_the_mean_and_says_so():
    rows = cohort(20)
    answer = estimate(fit_models(rows), {**rows[0], "age": None}, simulated=False)
    assert answer["model"] == "mean"
    assert answer["days"] == pytest.approx(
        np.mean([row["days"] for row in rows]), abs=0.06
    )
    assert "age is not known" in answer["based_on"]
    assert "20 real patients" in answer["based_on"]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"grade": "HGG", "resection": "GTR"}, None),
        ({"grade": None, "resection": None}, None),
        ({"grade": "HGG", "resection": "STR"}, "unlike them (resection STR);"),
        (
            {"grade": "LGG", "resection": "STR"},
            "unlike them (resection STR and a tumour of low grade);",
        ),
    ],
)
def test_it_is_said_where_a_patient_is_unlike_the_cohort(facts, words):
    rows = cohort(20)
    answer = estimate(fit_models(rows), rows[0] | facts, simulated=True)
    if words is None:
        assert "unlike" not in answer["based_on"]
    else:
        assert words in answer["based_on"]


def test_a_run_without_survival_gives_no_estimate():
    assert fit_models(cohort(5)) is None
    answer = estimate(None, {"age": 50}, simulated=True)
    assert answer["days"] is None
    assert "too few" in answer["based_on"]


def test_a_feature_that_is_constant_leaves_its_variants_out():
    rows = cohort(20)
    for row in rows:
        row["enhancing_cm3"] = 0.0
    stored = fit_models(rows)
    assert set(stored["models"]) == {"mean", "age", "age and distance"}
