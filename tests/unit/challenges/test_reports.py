import numpy as np
import pytest

from medimg_utils import metrics
from medimg_utils.challenges import reports
from medimg_utils.errors import InputError


@pytest.mark.parametrize(
    ("report", "label"),
    [
        ("There is a small left pneumothorax.", 1),
        ("No pneumothorax.", 0),
        ("No effusion, consolidation or pneumothorax.", 0),
        ("No effusion. Large right pneumothorax.", 1),
        ("No change in the large left pneumothorax.", 1),
        ("A pneumothorax cannot be excluded.", 1),
        ("A pneumothorax is not seen.", 0),
        ("The left pneumothorax has resolved.", 0),
        ("Clinical question: pneumothorax? Both lungs expanded.", 0),
        ("Pneumothorax on the left, none on the right.", 1),
        ("No right pneumothorax. Small left pneumothorax.", 1),
        ("Heart and lungs normal.", 0),
        ("", 0),
    ],
)
def test_the_rules_read_negation(report: str, label: int) -> None:
    assert reports.label_by_rules(report) == label


def test_each_kind_is_written_at_its_share() -> None:
    random = np.random.default_rng(0)
    for ill, ways in ((True, reports.WITH), (False, reports.WITHOUT)):
        assert sum(share for share, _ in ways.values()) == pytest.approx(1)
        kinds = [reports.write_report(ill, random)[1] for _ in range(4000)]
        for kind, (share, _) in ways.items():
            assert kinds.count(kind) / 4000 == pytest.approx(share, abs=0.03)


def test_rules_err_where_words_fail_them_and_nowhere_else() -> None:
    random = np.random.default_rng(0)
    wrong = set()
    for _ in range(3000):
        ill = bool(random.integers(2))
        text, kind = reports.write_report(ill, random)
        if reports.label_by_rules(text) != ill:
            wrong.add((ill, kind))
    assert wrong == {(True, "circumscribed"), (True, "spelling")}


def test_noise_moves_the_auc_as_the_formula_says() -> None:
    random = np.random.default_rng(0)
    n = 40_000
    truth = random.integers(0, 2, n)
    scores = random.normal(1.2 * truth)
    # flips that do not depend on the score
    labels = np.where(random.random(n) < np.where(truth, 0.2, 0.05), 1 - truth, truth)
    v, u = truth[labels == 1].mean(), 1 - truth[labels == 0].mean()
    expected = reports.auc_under_label_noise(metrics.auc(truth, scores), v, u)
    assert metrics.auc(labels, scores) == pytest.approx(expected, abs=0.005)
    assert expected < metrics.auc(truth, scores) - 0.05


def test_an_impossible_share_is_refused() -> None:
    with pytest.raises(InputError, match="true_negative is"):
        reports.auc_under_label_noise(0.9, 1, 1.2)
