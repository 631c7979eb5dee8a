"""Survival from a few numbers: which of them help, and how wide the answer is.

Weninger et al. 2019 submitted a linear regression on age alone. They had compared it, by
leave-one-out over patients with gross total resection, with age and the distance between
the centroids of tumour and brain, with age and volumes, with all of these, and with a
random forest. Here are all of them, with the intervals that such small cohorts ask for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from medimg_utils.errors import InputError

BORDERS = (304, 456)  # days; the authors' 10 and 15 months
VOLUMES = ("core_cm3", "oedema_cm3", "enhancing_cm3")
VARIANTS: dict[str, tuple[str, ...]] = {
    "age": ("age",),  # as submitted
    "age and distance": ("age", "distance_mm"),  # the brief description of the method
    "age and volumes": ("age", *VOLUMES),
    "all": ("age", "distance_mm", *VOLUMES),
}
FOREST = "random forest"  # on all of them


class CohortError(InputError):
    """A cohort is too small, or lacks a number that a regression needs."""


# --------------------------------------------------------------------------------- features


def features(
    labels: NDArray[np.uint8],
    brain: NDArray[np.bool_],
    spacing: tuple[float, float, float],
) -> dict[str, float]:
    """What the images say: volumes of the parts, and how far off the middle the tumour is.

    Args:
        labels: (D, H, W) 0 background, 1 core, 2 oedema, 3 enhancing.
        brain: (D, H, W) mask.
        spacing: of the voxels in mm.

    Returns:
        `distance_mm` between the centroids of whole tumour and brain (0 without tumour),
        and `core_cm3`, `oedema_cm3`, `enhancing_cm3`.
    """
    voxel = float(np.prod(spacing)) / 1000
    counts = np.bincount(labels.ravel(), minlength=4)
    distance = 0.0
    if counts[1:].any():
        centers = [np.argwhere(mask).mean(axis=0) for mask in (labels > 0, brain)]
        distance = float(np.linalg.norm((centers[0] - centers[1]) * spacing))
    volumes = zip(VOLUMES, (counts[1:4] * voxel).tolist(), strict=True)
    return {"distance_mm": distance, **dict(volumes)}


def matrix(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> NDArray[np.float64]:
    """(N, len(names)) numbers of a cohort.

    Raises:
        CohortError: a patient lacks one of them.
    """
    table = [[row.get(name) for name in names] for row in rows]
    values = np.array(table, dtype=np.float64).reshape(len(rows), len(names))
    if not np.isfinite(values).all():
        patient, column = np.argwhere(~np.isfinite(values))[0]
        raise CohortError(
            f"patient {patient + 1} of {len(rows)} has no {names[column]}. Leave such "
            "patients out, or give the number."
        )
    return values


# ------------------------------------------------------------------------ linear regression


@dataclass(frozen=True)
class Linear:
    r"""$\text{days} = \beta_0 + \sum_k \beta_k x_k + \varepsilon$, fitted by least squares.

    Attributes:
        features: names of $x_k$.
        coefficients: $\beta_0, \beta_1, \dots$
        covariance: of the coefficients.
        residual_sd: of $\varepsilon$, in days.
        n: patients it was fitted to.
    """

    features: tuple[str, ...]
    coefficients: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    residual_sd: float
    n: int

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the residual."""
        return self.n - len(self.coefficients)

    def predict(
        self, patient: Mapping[str, Any], level: float = 0.8
    ) -> tuple[float, float, float]:
        r"""Days, with the interval that holds a new patient's survival at this level.

        $$\hat y \pm t_{n-p}\, \sqrt{s^2 + x^\top \Sigma\, x}$$

        The first term under the root is what differs between patients alike in $x$; it
        stays, however large the cohort. Survival is not negative: ends are cut at 0.

        Returns:
            (days, low, high).
        """
        x = np.concatenate([[1.0], matrix([patient], self.features)[0]])
        value = float(x @ np.array(self.coefficients))
        spread = np.sqrt(self.residual_sd**2 + x @ np.array(self.covariance) @ x)
        half = float(stats.t.ppf(0.5 + level / 2, self.degrees) * spread)
        return max(value, 0.0), max(value - half, 0.0), max(value + half, 0.0)

    def intervals(self, level: float = 0.95) -> dict[str, tuple[float, float, float]]:
        """Each coefficient with its confidence interval, (value, low, high)."""
        half = stats.t.ppf(0.5 + level / 2, self.degrees) * np.sqrt(
            np.diag(np.array(self.covariance))
        )
        names = ("intercept", *self.features)
        return {
            name: (value, float(value - width), float(value + width))
            for name, value, width in zip(names, self.coefficients, half, strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)


def from_json(values: Mapping[str, Any]) -> Linear:
    """The model that `Linear.to_json` wrote."""
    return Linear(
        features=tuple(values["features"]),
        coefficients=tuple(values["coefficients"]),
        covariance=tuple(tuple(row) for row in values["covariance"]),
        residual_sd=values["residual_sd"],
        n=values["n"],
    )


def fit_linear(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> Linear:
    """Least squares of `days` on some features; without any it is the mean.

    Args:
        rows: one per patient, with `days` and the features.
        names: of the features.

    Raises:
        CohortError: fewer than two patients more than coefficients, or features that
            depend on each other.

    >>> cohort = [{"age": age, "days": 900 - 10 * age} for age in (40, 50, 60, 75)]
    >>> [round(value, 6) for value in fit_linear(cohort, ["age"]).coefficients]
    [900.0, -10.0]
    """
    if len(rows) < len(names) + 3:
        raise CohortError(
            f"{len(rows)} patients with known survival are too few for a regression on "
            f"{len(names)} features: at least {len(names) + 3} are needed."
        )
    days = matrix(rows, ["days"])[:, 0]
    table = np.column_stack([np.ones(len(rows)), matrix(rows, names)])
    if np.linalg.matrix_rank(table) < table.shape[1]:
        raise CohortError(
            f"the features {', '.join(names)} depend on each other in this cohort, or one "
            "of them is constant. Leave one out."
        )
    coefficients = np.linalg.lstsq(table, days, rcond=None)[0]
    residual = days - table @ coefficients
    variance = float(residual @ residual) / (len(rows) - table.shape[1])
    covariance = variance * np.linalg.inv(table.T @ table)
    return Linear(
        features=tuple(names),
        coefficients=tuple(coefficients.tolist()),
        covariance=tuple(map(tuple, covariance.tolist())),
        residual_sd=float(np.sqrt(variance)),
        n=len(rows),
    )


# -------------------------------------------------------------------------------- comparison


def survival_class(days: ArrayLike) -> NDArray[np.int64]:
    """0 below 304 days (10 months), 2 above 456 (15 months), 1 between.

    >>> survival_class([303, 304, 456, 457]).tolist()
    [0, 1, 1, 2]
    """
    values = np.asarray(days, dtype=np.float64)
    return (values >= BORDERS[0]).astype(np.int64) + (values > BORDERS[1])


def scores(days: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """The challenge's measures: accuracy in three classes, MSE, median SE, Spearman.

    Errors are in days². Spearman's correlation is NaN where one list is constant.
    """
    truth = np.asarray(days, dtype=np.float64)
    values = np.asarray(predicted, dtype=np.float64)
    if truth.shape != values.shape or not truth.size:
        raise CohortError(
            f"{truth.size} survivals do not match {values.size} predictions."
        )
    squared = (truth - values) ** 2
    constant = not np.ptp(truth) or not np.ptp(values)
    return {
        "accuracy": float(np.mean(survival_class(truth) == survival_class(values))),
        "mse": float(squared.mean()),
        "median_se": float(np.median(squared)),
        "spearman": float("nan")
        if constant
        else float(stats.spearmanr(truth, values).statistic),
    }


def leave_one_out(
    rows: Sequence[Mapping[str, Any]], variant: str, *, trees: int = 100, seed: int = 0
) -> NDArray[np.float64]:
    """(N,) days of each patient, predicted from all the others.

    Args:
        rows: one per patient.
        variant: one of `VARIANTS`, or `FOREST`.
        trees: of the forest.
        seed: of the forest.
    """
    names = VARIANTS["all"] if variant == FOREST else VARIANTS[variant]
    model = (
        RandomForestRegressor(n_estimators=trees, random_state=seed)
        if variant == FOREST
        else LinearRegression()
    )
    days = matrix(rows, ["days"])[:, 0]
    return cross_val_predict(model, matrix(rows, names), days, cv=LeaveOneOut())


def compare(
    rows: Sequence[Mapping[str, Any]], *, trees: int = 100, seed: int = 0
) -> dict[str, Any]:
    """Leave-one-out scores of every variant, and of the mean of the others as a control.

    Args:
        rows: one per patient, with `days`, `age`, `distance_mm` and the volumes.
        trees: of the forest.
        seed: of the forest.

    Returns:
        variant → `scores`; `mean` is the control; `n` patients.

    Raises:
        CohortError: too few patients.
    """
    least = len(VARIANTS["all"]) + 3
    if len(rows) < least:
        raise CohortError(
            f"{len(rows)} patients with age, survival and gross total resection are too "
            f"few to compare regressions: at least {least} are needed."
        )
    days = matrix(rows, ["days"])[:, 0]
    others = (days.sum() - days) / (len(days) - 1)
    # Who lived longer lowers the mean of the others: its rank says nothing.
    mean = scores(days, others) | {"spearman": float("nan")}
    answer: dict[str, Any] = {"n": len(rows), "mean": mean}
    for variant in (*VARIANTS, FOREST):
        predicted = leave_one_out(rows, variant, trees=trees, seed=seed)
        answer[variant] = scores(days, predicted)
    return answer


# ----------------------------------------------------------------------------------- in a run


def fit_models(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """All linear variants, and which of them erred least; None for a cohort too small.

    Args:
        rows: one per patient.

    Returns:
        `models` (variant → `Linear.to_json`; `mean` knows nothing of the patient),
        `chosen` by the smallest leave-one-out error, `leave_one_out` scores of each.
    """
    if len(rows) < len(VARIANTS["all"]) + 3:
        return None
    days = matrix(rows, ["days"])[:, 0]
    models = {"mean": fit_linear(rows).to_json()}
    errors = {}
    for variant, names in VARIANTS.items():
        try:
            models[variant] = fit_linear(rows, names).to_json()
        except CohortError:  # e.g. nobody has enhancing tumour
            continue
        errors[variant] = scores(days, leave_one_out(rows, variant))
    chosen = min(errors, key=lambda name: errors[name]["mse"]) if errors else "mean"
    return {"models": models, "chosen": chosen, "leave_one_out": errors}


def estimate(
    stored: Mapping[str, Any] | None,
    patient: Mapping[str, Any],
    *,
    simulated: bool,
    level: float = 0.8,
) -> dict[str, Any]:
    """Survival of one patient in words and numbers, for the files that `predict` writes.

    Without an age the estimate is the mean of the cohort, and says so; it also says where
    the patient is not one of those whom the cohort stands for.

    Args:
        stored: what `fit_models` returned.
        patient: `age` (None where unknown), `distance_mm` and volumes; `grade` and
            `resection` where they are known.
        simulated: were the patients of the cohort simulated?
        level: of the interval.

    Returns:
        `days`, `interval_days`, `level`, `model`, `features` and `based_on`.
    """
    if stored is None:
        return {
            "days": None, "interval_days": None, "level": level, "model": None,
            "features": {},
            "based_on": "no estimate: the network was trained on too few patients with "
            "age, survival and gross total resection",
        }  # fmt: skip
    variant = stored["chosen"] if patient.get("age") is not None else "mean"
    model = from_json(stored["models"][variant])
    days, low, high = model.predict(patient, level)
    kind = "simulated" if simulated else "real"
    used = ", ".join(model.features) or "nothing of this patient"
    reason = "" if patient.get("age") is not None else " (the age is not known)"
    return {
        "days": round(days, 1),
        "interval_days": [round(low, 1), round(high, 1)],
        "level": level,
        "model": variant,
        "features": {name: patient[name] for name in model.features},
        "based_on": f"linear regression on {used}{reason}, fitted to {model.n} {kind} "
        f"patients with gross total resection; {_unlike(patient)}not for clinical use",
    }


def _unlike(patient: Mapping[str, Any]) -> str:
    """What sets a patient apart from those with survival times, in words; often none."""
    apart = []
    if patient.get("resection") not in (None, "GTR"):
        apart.append(f"resection {patient['resection']}")
    if patient.get("grade") == "LGG":
        apart.append("a tumour of low grade")
    return f"this patient is unlike them ({' and '.join(apart)}); " if apart else ""
