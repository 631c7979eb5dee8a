"""Three series make one answer, and the answers of many exams make numbers.

Bien et al. combine the probabilities of the three series by one logistic regression for
each diagnosis, fitted on the training exams. A network knows those exams by heart: its
training probabilities are nearly all right, so the regression learns to trust whatever
was learned best by heart. Fitted on exams that the networks were not trained on
(`out_of_fold`), it learns which series can be trusted on new ones.

A *case* is a row per exam: `exam_id`, `exam` (digest), `labels` {diagnosis: 0 or 1},
`series` {series: {diagnosis: probability}}, `combined` {way: {diagnosis: probability}}
and, for `summarise`, `as_it_lies` {diagnosis: probability} of the first view alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression

from medimg_utils import metrics
from medimg_utils.errors import InputError
from medimg_utils.release import check_listed

GRADES = ("subtle", "moderate", "marked")  # of a simulated finding, rising
DARK, BRIGHT = 15, 250  # grey levels of the style control


# -------------------------------------------------------------------------- combination


@dataclass(frozen=True)
class Combination:
    r"""Logistic regression of the series' probabilities, for one diagnosis.

    $$p = \sigma\Big(b + \sum_k a_k\, p_k\Big)$$

    Attributes:
        series: whose probabilities, in this order.
        coefficients: $a_k$, one a series; the largest is the series that weighs most.
        intercept: $b$.
        fitted: False where the exams were all of one class; then all series weigh
            alike.
    """

    series: tuple[str, ...]
    coefficients: tuple[float, ...]
    intercept: float
    fitted: bool = True

    @classmethod
    def fit(
        cls, series: Sequence[str], probabilities: ArrayLike, labels: ArrayLike
    ) -> Combination:
        """Fit to (N, K) probabilities of the series and (N,) labels.

        >>> p = [[0.9, 0.5], [0.8, 0.5], [0.2, 0.5], [0.1, 0.5]]
        >>> Combination.fit(["axial", "coronal"], p, [1, 1, 0, 0]).most_weighted
        'axial'
        """
        columns, truth = np.asarray(probabilities, float), np.asarray(labels)
        names = tuple(series)
        if len(np.unique(truth)) < 2:
            return cls(names, (4 / len(names),) * len(names), -2.0, fitted=False)
        model = LogisticRegression().fit(columns, truth)
        return cls(names, tuple(model.coef_[0].tolist()), float(model.intercept_[0]))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Combination:
        """The combination that `dataclasses.asdict` and JSON made of one."""
        return cls(
            tuple(values["series"]),
            tuple(values["coefficients"]),
            values["intercept"],
            values["fitted"],
        )

    def __call__(self, probabilities: Mapping[str, float]) -> float:
        """{series: probability} → the combined probability."""
        total = self.intercept + sum(
            weight * probabilities[name]
            for name, weight in zip(self.series, self.coefficients, strict=True)
        )
        return float(1 / (1 + np.exp(-total)))

    @property
    def most_weighted(self) -> str:
        """The series with the largest coefficient."""
        return self.series[int(np.argmax(self.coefficients))]


def fit_combinations(
    cases: Sequence[Mapping[str, Any]],
) -> dict[str, Combination]:
    """One combination a diagnosis, of the series that all cases have."""
    series = list(cases[0]["series"])
    answer = {}
    for diagnosis in cases[0]["labels"]:
        probabilities = [
            [case["series"][name][diagnosis] for name in series] for case in cases
        ]
        labels = [case["labels"][diagnosis] for case in cases]
        answer[diagnosis] = Combination.fit(series, probabilities, labels)
    return answer


def combine(
    combinations: Mapping[str, Mapping[str, Combination]],
    series: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, float]]:
    """{way: {diagnosis: probability}} of one exam.

    A diagnosis is left out where the exam lacks a series of its combination.
    """
    return {
        way: {
            diagnosis: combination(
                {name: series[name][diagnosis] for name in combination.series}
            )
            for diagnosis, combination in ways.items()
            if set(combination.series) <= set(series)
        }
        for way, ways in combinations.items()
    }


def choose_thresholds(
    cases: Sequence[Mapping[str, Any]],
    combinations: Mapping[str, Combination],
    specificity: float,
) -> dict[str, float]:
    """Thresholds of the combined probability, from exams held out of the training.

    See `medimg_utils.metrics.choose_threshold`.
    """
    answer = {}
    for diagnosis, combination in combinations.items():
        scores = [
            combination(
                {name: case["series"][name][diagnosis] for name in case["series"]}
            )
            for case in cases
        ]
        labels = [case["labels"][diagnosis] for case in cases]
        answer[diagnosis] = metrics.choose_threshold(labels, scores, specificity)
    return answer


# ------------------------------------------------------------------------------ summary


def series_auc(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """{diagnosis: {series: AUC}}, without intervals."""
    return {
        diagnosis: {
            name: metrics.auc(
                [case["labels"][diagnosis] for case in cases],
                [case["series"][name][diagnosis] for case in cases],
            )
            for name in cases[0]["series"]
        }
        for diagnosis in cases[0]["labels"]
    }


def validation_auc(
    diagnoses: Sequence[str], labels: ArrayLike, scores: ArrayLike
) -> dict[str, float]:
    """`val_auc_<diagnosis>` and their mean `val_auc`, as a row of the training log.

    Args:
        diagnoses: D names.
        labels: (N, D), 0 or 1.
        scores: (N, D), higher is more suspicious.
    """
    columns = zip(np.asarray(labels).T, np.asarray(scores).T, strict=True)
    areas = [metrics.auc(truth, score) for truth, score in columns]
    known = [area for area in areas if not np.isnan(area)]
    named = zip(diagnoses, areas, strict=True)
    return {
        "val_auc": float(np.mean(known)) if known else float("nan"),
        **{f"val_auc_{name}": area for name, area in named},
    }


def summarise(
    cases: Sequence[Mapping[str, Any]],
    way: str,
    thresholds: Mapping[str, float],
    specificity: float,
    draws: int = 1000,
) -> dict[str, Any]:
    """Detection of each diagnosis: the combination, and each series by itself.

    Args:
        cases: at least one; labels as the release has them.
        way: the combination that is the answer; its other way is given as AUC alone.
        thresholds: of the combined probability, chosen on other exams.
        specificity: at which the sensitivity is looked up.
        draws: of the bootstrap over exams.

    Returns:
        {diagnosis: {`positives`, `combined`, `ways`, `as_it_lies`, `series`}};
        `combined` is what `metrics.detection` returns, and null where the exams lack a
        series; `as_it_lies` is the AUC of the first view alone, and null where the
        cases do not tell it.
    """
    answer: dict[str, Any] = {}
    exams = [case["exam"] for case in cases]
    for diagnosis in cases[0]["labels"]:
        labels = [case["labels"][diagnosis] for case in cases]
        combined = {
            name: [case["combined"][name][diagnosis] for case in cases]
            for name in cases[0]["combined"]
            if diagnosis in cases[0]["combined"][name]
        }
        single = {
            name: [case["series"][name][diagnosis] for case in cases]
            for name in cases[0]["series"]
        }
        answer[diagnosis] = {
            "positives": int(np.sum(labels)),
            "combined": metrics.detection(
                labels,
                combined[way],
                exams,
                thresholds[diagnosis],
                specificity,
                draws=draws,
            )
            if way in combined
            else None,
            "ways": {
                name: metrics.auc_delong(labels, scores)._asdict()
                for name, scores in combined.items()
            },
            "as_it_lies": metrics.auc_delong(
                labels, [case["as_it_lies"][diagnosis] for case in cases]
            )._asdict()
            if all(diagnosis in case.get("as_it_lies", {}) for case in cases)
            else None,
            "series": {
                name: metrics.auc_delong(labels, scores)._asdict()
                for name, scores in single.items()
            },
        }
    return answer


# ----------------------------------------------------------------------------- controls


def style_features(volume: NDArray[Any]) -> dict[str, float]:
    """Number of slices, dark and bright share, mean and standard deviation of a series.

    None of them shows a finding; see `medimg_utils.metrics.style_control`.
    """
    top = 255 if volume.dtype == np.uint8 else float(volume.max())
    scale = 255 / top if top > 0 else 1.0
    return {
        "slices": float(len(volume)),
        "dark_share": float((volume < DARK / scale).mean()),
        "bright_share": float((volume >= BRIGHT / scale).mean()),
        "mean": float(volume.mean() * scale),
        "sd": float(volume.std() * scale),
    }


def style_controls(
    cases: Sequence[Mapping[str, Any]], style: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """{diagnosis: AUC of style alone}, on exams that the regression was not fitted to."""
    columns = {name: [row[name] for row in style] for name in style[0]}
    exams = [case["exam"] for case in cases]
    return {
        diagnosis: metrics.style_control(
            [case["labels"][diagnosis] for case in cases], exams, columns
        )
        for diagnosis in cases[0]["labels"]
    }


# -------------------------------------------------------------- what a simulation knows


@dataclass(frozen=True)
class Truth:
    """What only a simulation knows of its exams; see `read_truth`.

    Attributes:
        folder: holds `lesions/<split>/<series>/0000.npz`.
        exams: {exam: facts} of the split.
    """

    folder: Path
    exams: dict[str, dict[str, Any]]

    def lesions(self, split: str, series: str, exam_id: str) -> Path:
        """Where the lesions of one series lie."""
        return self.folder / "lesions" / split / series / f"{exam_id}.npz"


def read_truth(path: Path, split: str) -> Truth:
    """Read `simulation-truth.json`.

    Raises:
        InputError: it is missing, or no such file.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        mine = {
            str(name): dict(row)
            for name, row in stored.get("exams", stored).items()
            if row["split"] == split
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is no truth file of simulated exams ({error}). Give the "
            "simulation-truth.json of the same simulation, or leave --truth away."
        ) from error
    return Truth(path.parent, mine)


def subgroups(
    cases: Sequence[Mapping[str, Any]], truth: Truth, way: str
) -> dict[str, Any]:
    """AUC of the combination by what only a simulation knows (anatomy, side ...).

    A group needs positives and negatives of its own. Kinds and grades of findings are
    compared with all exams that lack the diagnosis. An exam is in the group of each
    kind that it holds, but of one grade alone: the highest of its findings of the
    diagnosis. For `abnormal` every finding counts, torn ligaments and menisci as well.
    """
    check_listed([case["exam_id"] for case in cases], truth.exams, "exams")
    facts = [truth.exams[case["exam_id"]] for case in cases]
    answer: dict[str, Any] = {}
    for name in ("anatomy", "habitus", "side", "field"):
        values = sorted({str(row[name]) for row in facts if name in row})
        if len(values) > 1:
            answer[name] = {
                value: _group_auc(
                    [
                        c
                        for c, row in zip(cases, facts, strict=True)
                        if str(row.get(name)) == value
                    ],
                    way,
                )
                for value in values
            }
    for name in ("kind", "grade"):
        answer[name] = {}
        for diagnosis in cases[0]["labels"]:
            found = [
                _kinds(row.get("findings", ()), diagnosis)
                if name == "kind"
                else _highest_grade(row.get("findings", ()), diagnosis)
                for row in facts
            ]
            answer[name][diagnosis] = {
                value: _group_auc(
                    [
                        case
                        for case, mine in zip(cases, found, strict=True)
                        if value in mine or not case["labels"][diagnosis]
                    ],
                    way,
                    [diagnosis],
                )[diagnosis]
                for value in sorted(set().union(*found))
            }
    return answer


def _kinds(findings: Sequence[Mapping[str, Any]], diagnosis: str) -> set[str]:
    return {one["kind"] for one in findings if one["diagnosis"] == diagnosis}


def _highest_grade(findings: Sequence[Mapping[str, Any]], diagnosis: str) -> set[str]:
    """The highest grade alone; nothing where the exam lacks the diagnosis."""
    grades = {
        one["grade"]
        for one in findings
        if one["diagnosis"] == diagnosis
        or (diagnosis == "abnormal" and one["diagnosis"])
    }
    return {max(grades, key=GRADES.index)} if grades else set()


def _group_auc(
    cases: Sequence[Mapping[str, Any]], way: str, diagnoses: Sequence[str] | None = None
) -> dict[str, Any]:
    answer = {}
    for diagnosis in diagnoses or list(cases[0]["combined"][way]):
        labels = [case["labels"][diagnosis] for case in cases]
        scores = [case["combined"][way][diagnosis] for case in cases]
        answer[diagnosis] = {
            "positives": int(np.sum(labels)),
            "negatives": len(labels) - int(np.sum(labels)),
            **metrics.auc_delong(labels, scores)._asdict(),
        }
    return answer


def as_json(combinations: Mapping[str, Mapping[str, Combination]]) -> dict[str, Any]:
    """{way: {diagnosis: numbers}}, with the series that weighs most."""
    return {
        way: {
            diagnosis: asdict(one) | {"most_weighted": one.most_weighted}
            for diagnosis, one in ways.items()
        }
        for way, ways in combinations.items()
    }
