"""A threshold, a clinic and its staff: who waits how long, and what is it worth."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import traitlets
from matplotlib.figure import Figure

from medimg_utils import metrics, plotting
from medimg_utils.challenges import worklist
from medimg_utils.viewers import base


class WorklistExplorer(base.ScoreViewer):
    r"""Let the reader mark exams by a threshold and staff the room that reads them.

    Marked exams are read first. The waits are those of a steady list in which nobody is
    interrupted (`worklist.priority_waits`). The net benefit of calling the marked
    positive is, with sensitivity, specificity and prevalence $\pi$,

    $$\text{sens} \cdot \pi - (1 - \text{spec}) (1 - \pi) / e$$

    where $e$ false alarms are accepted for one patient found. All of it is computed in
    the browser.

    Args:
        scores: (N,) in [0, 1].
        labels: (N,) 0 or 1, at least one of each.
        threshold: between 0 and 1; scores of this and above are marked.
        prevalence: between 0.001 and 0.5.
        readers: 1 to 6.
        rate: exams an hour, 1 to 60.
        minutes: mean reading time.
        exchange: false alarms that are accepted for one found, 1 to 1000.
        title: heading of the viewer.
        alt: description of the picture for those who cannot see it.

    Raises:
        ValueError: lengths that differ, scores outside [0, 1] or NaN, a class that is
            absent, a value out of range.

    >>> explorer = WorklistExplorer([0.1, 0.6, 0.4, 0.9], [0, 0, 1, 1], rate=6,
    ...                             minutes=5, readers=1, prevalence=0.5)
    >>> explorer.statistics()["first_come"]
    5.0
    """

    _esm = base.javascript("worklist_explorer.js")

    readers = traitlets.Int().tag(sync=True)
    rate = traitlets.Float().tag(sync=True)
    minutes = traitlets.Float().tag(sync=True)
    log_exchange = traitlets.Float().tag(sync=True)

    def __init__(
        self,
        scores: Sequence[float] | npt.NDArray[np.floating],
        labels: Sequence[int] | npt.NDArray[np.integer],
        *,
        threshold: float = 0.5,
        prevalence: float = 0.05,
        readers: int = 1,
        rate: float = 10,
        minutes: float = 5,
        exchange: float = 20,
        title: str = "",
        alt: str = "",
    ) -> None:
        base.check_between("readers", readers, 1, 6)
        base.check_between("rate", rate, 1, 60)
        base.check_between("minutes", minutes, 0.1, 60)
        base.check_between("exchange", exchange, 1, 1000)
        super().__init__(
            scores,
            labels,
            threshold=threshold,
            prevalence=prevalence,
            highest=0.5,
            readers=readers,
            rate=float(rate),
            minutes=float(minutes),
            log_exchange=float(np.log10(exchange)),
            **base.heading(
                title, alt, "A worklist", ": waiting times and net benefit."
            ),
        )

    def net_benefit(self, threshold: float) -> float:
        """Patients found per 1000 exams, less the false alarms at their price."""
        point = metrics.at_threshold(self.labels, self.scores, threshold)
        ill, price = 10**self.log_prevalence, 10**-self.log_exchange
        alarms = (1 - point.specificity) * (1 - ill)
        return 1000 * (point.sensitivity * ill - alarms * price)

    def statistics(self) -> dict[str, float]:
        """What the viewer shows; waits in minutes, infinite where the list grows."""
        point = metrics.at_threshold(self.labels, self.scores, self.threshold)
        ill = 10**self.log_prevalence
        found, alarms = point.sensitivity, 1 - point.specificity
        marked = found * ill + alarms * (1 - ill)
        busy = self.rate * self.minutes / worklist.HOUR / self.readers
        waits = (float("inf"),) * 3
        if busy < 1:
            steady = self.rate, self.minutes, self.readers
            waits = (
                worklist.mean_wait(*steady),
                *worklist.priority_waits(*steady, marked),
            )
        everyone, first, later = waits
        return {
            "sensitivity": found,
            "specificity": point.specificity,
            "marked": marked,
            "load": busy,
            "first_come": everyone,
            "found": first,
            "missed": later,
            "ill": found * first + (1 - found) * later if busy < 1 else later,
            "well": alarms * first + (1 - alarms) * later if busy < 1 else later,
            "net_benefit": self.net_benefit(self.threshold),
            "all": self.net_benefit(0.0),
        }

    def still(self) -> Figure:
        """Draw the viewer's present state as a figure."""
        now = self.statistics()
        figure = Figure(figsize=(8.6, 3.4), layout="tight")
        left, right = figure.subplots(1, 2)
        bars = {"everybody, first come": now["first_come"],
                "ill and marked": now["found"], "ill, on average": now["ill"],
                "well, on average": now["well"],
                "ill and missed": now["missed"]}  # fmt: skip
        if np.isfinite(now["first_come"]):
            left.barh(list(bars), list(bars.values()), color=plotting.PALETTE[0])
            left.invert_yaxis()
        else:
            left.set_title("the list grows for ever")
        left.set_xlabel("mean wait (minutes)")
        thresholds = np.linspace(0, 1, 101)
        curve = [self.net_benefit(float(t)) for t in thresholds]
        right.plot(thresholds, curve, color=plotting.PALETTE[0])
        right.axhline(0, color="0.4", linestyle="dotted")
        right.plot(self.threshold, now["net_benefit"], "o", color="#D55E00")
        low = min(0.0, now["net_benefit"], *curve[10:])
        right.set(
            xlabel="threshold", ylabel="net benefit per 1000", ylim=(low - 1, None)
        )
        return figure
