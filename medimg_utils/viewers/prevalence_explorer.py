"""A threshold between two groups of scores, and what it means for patients."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import traitlets
from matplotlib.figure import Figure

from medimg_utils import metrics, plotting
from medimg_utils.viewers import base

PEOPLE = 1000
BINS = 25


class PrevalenceExplorer(base.ScoreViewer):
    r"""Let the reader move a threshold and the prevalence, and see who is called.

    Scores of `threshold` and above count as positive. Sensitivity and specificity come
    from the scores; the prevalence is the reader's, and 1000 people of that prevalence
    are drawn one by one. Among them

    $$\mathrm{PPV} = \frac{\text{sens} \cdot \pi}
    {\text{sens} \cdot \pi + (1 - \text{spec})(1 - \pi)}$$

    All of it is computed in the browser.

    Args:
        scores: (N,) in [0, 1].
        labels: (N,) 0 or 1, at least one of each.
        threshold: between 0 and 1.
        prevalence: between 0.001 and 0.9.
        title: heading of the viewer.
        alt: description of the picture for those who cannot see it.

    Raises:
        ValueError: lengths that differ, scores outside [0, 1] or NaN, labels other than
            0 and 1, a class that is absent, a threshold or prevalence out of range.

    >>> explorer = PrevalenceExplorer([0.1, 0.6, 0.4, 0.9], [0, 0, 1, 1],
    ...                               prevalence=0.5)
    >>> explorer.statistics()["ppv"]
    0.5
    """

    _esm = base.javascript("prevalence_explorer.js")

    people = traitlets.Int(PEOPLE).tag(sync=True)
    bins = traitlets.Int(BINS).tag(sync=True)

    def __init__(
        self,
        scores: Sequence[float] | npt.NDArray[np.floating],
        labels: Sequence[int] | npt.NDArray[np.integer],
        *,
        threshold: float = 0.5,
        prevalence: float = 0.1,
        title: str = "",
        alt: str = "",
    ) -> None:
        exams = np.size(scores)
        super().__init__(
            scores,
            labels,
            threshold=threshold,
            prevalence=prevalence,
            highest=0.9,
            **base.heading(title, alt, "Scores", f" of {exams} exams and a threshold."),
        )

    def statistics(self) -> dict[str, float]:
        """What the viewer shows in its table; NaN where nobody is called so."""
        point = metrics.at_threshold(self.labels, self.scores, self.threshold)
        found, spared = point.sensitivity, point.specificity
        ill = 10**self.log_prevalence
        hits, alarms = found * ill, (1 - spared) * (1 - ill)
        missed, left = (1 - found) * ill, spared * (1 - ill)
        return {
            "sensitivity": found,
            "specificity": spared,
            "ppv": hits / (hits + alarms) if hits + alarms else float("nan"),
            "npv": left / (left + missed) if left + missed else float("nan"),
        }

    def counts(self) -> dict[str, int]:
        """How many of 1000 people are found, missed, alarmed and left alone."""
        numbers = self.statistics()
        ill = round(self.people * 10**self.log_prevalence)
        found = round(numbers["sensitivity"] * ill)
        left = round(numbers["specificity"] * (self.people - ill))
        return {
            "found": found,
            "missed": ill - found,
            "alarms": self.people - ill - left,
            "left": left,
        }

    def still(self) -> Figure:
        """Draw the viewer's present state as a figure."""
        scores, labels = np.array(self.scores), np.array(self.labels)
        figure = Figure(figsize=(8, 3.6), layout="tight")
        left, right = figure.subplots(1, 2)
        edges = np.linspace(0, 1, self.bins + 1)
        for value, sign, name, hatch in (
            (1, 1, "positive", ""),
            (0, -1, "negative", "//"),
        ):
            share = (
                np.histogram(scores[labels == value], edges)[0]
                / (labels == value).sum()
            )
            left.bar(
                edges[:-1], sign * share, width=1 / self.bins, align="edge",
                label=name, hatch=hatch, color=plotting.PALETTE[1 - value],
                edgecolor="white",
            )  # fmt: skip
        left.axvline(self.threshold, color="black", linestyle="dashed")
        left.set(xlabel="score", ylabel="share of the class")
        left.legend()
        _, found, spared = metrics.roc_points(labels, scores)
        right.plot(1 - spared, found, color=plotting.PALETTE[0])
        now = self.statistics()
        right.plot(1 - now["specificity"], now["sensitivity"], "o", color="#D55E00")
        right.set(xlabel="1 − specificity", ylabel="sensitivity", aspect="equal")
        return figure
