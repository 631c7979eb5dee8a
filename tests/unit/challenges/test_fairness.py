import numpy as np
import pytest
from scipy import stats

from medimg_utils import metrics
from medimg_utils.challenges import fairness
from medimg_utils.errors import InputError


def cohort(seed, *, patients=120, worse=0.0, groups=6):
    """Films of patients, one or two each; the first group finds less by `worse`."""
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), random.integers(1, 3, patients))
    skill = random.normal(0, 0.1, patients)[owner]
    columns = {
        f"attribute {k}": random.integers(0, 2 + k % 2, patients)[owner]
        for k in range(groups)
    }
    rate = 0.7 + skill - worse * (columns["attribute 0"] == 0)
    return (random.random(owner.size) < rate).astype(float), columns, owner


def test_a_group_and_the_others_by_hand():
    found = np.repeat([1, 0, 1, 0], [9, 3, 4, 8])
    sex = np.repeat(["F", "M"], [12, 12])
    (one,) = fairness.differences(found, {"sex": sex}, np.arange(24))
    assert (one.attribute, one.group, one.n) == ("sex", "F", (12, 12))
    assert one.means == pytest.approx((9 / 12, 4 / 12))
    assert one.plain.value == one.joint.value == pytest.approx(5 / 12)
    assert one.plain == one.joint  # a single question needs no correction
    assert one.verdict == "higher"


def test_one_exam_a_patient_gives_nearly_welchs_interval():
    values, columns, _ = cohort(3, groups=1)
    row = columns["attribute 0"] == 0
    (one,) = fairness.differences(values, columns, np.arange(values.size))
    test = stats.ttest_ind(values[row], values[~row], equal_var=False)
    assert one.plain.value == pytest.approx(values[row].mean() - values[~row].mean())
    low, high = test.confidence_interval()
    assert one.plain.low == pytest.approx(low, abs=0.004)
    assert one.plain.high == pytest.approx(high, abs=0.004)


def test_exams_of_one_patient_count_less_and_pairs_count_more():
    random = np.random.default_rng(0)
    patient = np.repeat(random.normal(size=60), 2)
    owner = np.repeat(np.arange(60), 2)
    between, within = np.repeat([0, 1], 60), np.tile([0, 1], 60)

    def width(groups, who):
        (one,) = fairness.differences(patient, {"a": groups}, who)
        return one.plain.high - one.plain.low

    assert width(between, owner) > 1.3 * width(between, np.arange(120))
    assert width(within, owner) < 1e-9  # everybody is their own control


def test_it_is_near_the_bootstrap_of_the_book():
    values, columns, owner = cohort(0)
    group = columns["attribute 0"] == 0
    (one,) = fairness.differences(values, {"a": columns["attribute 0"]}, owner)
    theirs = metrics.bootstrap(
        lambda k: values[k][group[k]].mean() - values[k][~group[k]].mean(),
        owner,
        draws=4000,
        seed=1,
    )
    assert one.plain == pytest.approx(theirs, abs=0.02)


def test_more_questions_widen_the_joint_intervals_alone():
    values, columns, owner = cohort(1)
    few = fairness.differences(values, dict(list(columns.items())[:1]), owner)[0]
    many = fairness.differences(values, columns, owner)
    assert len(many) == 3 + 3 * 3  # three attributes of two values, three of three
    assert many[0].plain == few.plain
    assert many[0].joint.low < few.joint.low < many[0].plain.value
    assert many[0].joint.high > few.joint.high


def test_joint_intervals_hold_together_and_plain_ones_do_not():
    plain, joint = [], []
    for seed in range(200):
        found = fairness.differences(*cohort(seed))
        plain.append(all(one.plain.low <= 0 <= one.plain.high for one in found))
        joint.append(all(one.verdict == "not shown" for one in found))
    assert np.mean(plain) < 0.75
    assert np.mean(joint) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)


def test_a_group_that_does_worse_is_found():
    found = fairness.differences(*cohort(0, patients=400, worse=0.3))
    assert [one.group for one in found if one.verdict == "lower"] == ["0"]
    assert found[0].joint.low < -0.3 < found[0].joint.high


def test_a_small_group_is_too_small_and_costs_the_others_nothing():
    values, columns, owner = cohort(2)
    rare = np.where(np.arange(values.size) < fairness.FEWEST - 1, "rare", "common")
    columns = {"attribute 0": columns["attribute 0"]}
    alone = fairness.differences(values, columns, owner)
    beside = fairness.differences(values, {**columns, "rare": rare}, owner)
    assert beside[0] == alone[0]
    assert beside[1].verdict == "too few"
    assert np.isnan(beside[1].joint.low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fairness.differences([1, 0], {"a": [1]}, [1, 2]), r"\(1,\) a"),
        (lambda: fairness.differences([1, 0], {"a": [1, 2]}, [1]), "every exam"),
        (lambda: fairness.differences([1, 0], {"a": [1, 1]}, [1, 2]), "differs by a"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
