"""Two designs, so many seeds, so many patients: what would a study have found?"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import traitlets
from matplotlib.figure import Figure

from medimg_utils import plotting
from medimg_utils.viewers import base

STUDIES = 1000
MOST_SEEDS, MOST_PATIENTS = 10, 200


def random_numbers(count: int) -> npt.NDArray[np.float64]:
    """The same numbers in [0, 1) as the JavaScript draws: mulberry32, from seed 1 on.

    >>> random_numbers(2).round(4).tolist()
    [0.6271, 0.0027]
    """
    with np.errstate(over="ignore"):
        a = np.uint32(1) + np.arange(1, count + 1, dtype=np.uint32) * np.uint32(
            0x6D2B79F5
        )
        t = (a ^ (a >> np.uint32(15))) * (a | np.uint32(1))
        t = (t + (t ^ (t >> np.uint32(7))) * (t | np.uint32(61))) ^ t
        return (t ^ (t >> np.uint32(14))) / 2.0**32


class StudyExplorer(base.Viewer):
    """Let the reader plan a comparison of two designs, and see what it would have found.

    A thousand studies are replayed. Each draws its seeds and its patients from those that
    are stored, with replacement, and reports the mean difference between the two designs.
    All of it is computed in the browser.

    Args:
        scores: name of a design → (S, P) scores; all with the same seeds and patients.
        first: the design that is expected to be better.
        second: the one it is compared with.
        seeds: of each design in a study, 1 to 10.
        patients: in the test set of a study, 5 to 200.
        title: heading of the viewer.
        alt: description of the picture for those who cannot see it.

    Raises:
        ValueError: fewer than two designs, tables of different shape, scores outside
            [0, 1] or NaN, an unknown design, a number out of range.

    >>> explorer = StudyExplorer({"a": [[0.5, 0.7]], "b": [[0.4, 0.6]]}, "a", "b")
    >>> round(explorer.statistics()["difference"], 6), explorer.statistics()["wrong"]
    (0.1, 0.0)
    """

    _esm = base.javascript("study_explorer.js")

    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    scores: traitlets.List = traitlets.List().tag(sync=True)
    first = traitlets.Unicode().tag(sync=True)
    second = traitlets.Unicode().tag(sync=True)
    seeds = traitlets.Int().tag(sync=True)
    patients = traitlets.Int().tag(sync=True)
    studies = traitlets.Int(STUDIES).tag(sync=True)
    most_seeds = traitlets.Int(MOST_SEEDS).tag(sync=True)
    most_patients = traitlets.Int(MOST_PATIENTS).tag(sync=True)

    def __init__(
        self,
        scores: Mapping[str, npt.ArrayLike],
        first: str,
        second: str,
        *,
        seeds: int = 1,
        patients: int = 20,
        title: str = "",
        alt: str = "",
    ) -> None:
        tables = {name: np.asarray(one, dtype=float) for name, one in scores.items()}
        shapes = {table.shape for table in tables.values()}
        if len(tables) < 2 or len(shapes) > 1 or len(next(iter(shapes))) != 2:
            raise ValueError(
                f"{len(tables)} designs have tables of the shapes {sorted(shapes)}; at "
                "least two are needed, all with the same seeds and patients"
            )
        for name, table in tables.items():
            if not ((table >= 0) & (table <= 1)).all():
                raise ValueError(f"scores of {name!r} are NaN or outside 0 to 1")
        base.check_keys("design", (first, second), "the scores", tables)
        base.check_between("seeds", seeds, 1, MOST_SEEDS)
        base.check_between("patients", patients, 5, MOST_PATIENTS)
        super().__init__(
            names=list(tables),
            # thousandths, so that the page stays small
            scores=[
                np.rint(1000 * table).astype(int).tolist() for table in tables.values()
            ],
            first=first,
            second=second,
            seeds=seeds,
            patients=patients,
            **base.heading(
                title, alt, "Two designs", ": what a thousand studies would find."
            ),
        )

    def _difference(self) -> npt.NDArray[np.float64]:
        tables = dict(zip(self.names, np.array(self.scores), strict=True))
        return (tables[self.first] - tables[self.second]) / 1000

    def replayed(self) -> npt.NDArray[np.float64]:
        """(studies,) mean difference that each replayed study found."""
        table = self._difference()
        drawn = random_numbers(self.studies * (self.seeds + self.patients))
        drawn = drawn.reshape(self.studies, -1)
        rows = (drawn[:, : self.seeds] * table.shape[0]).astype(int)
        columns = (drawn[:, self.seeds :] * table.shape[1]).astype(int)
        return np.array(
            [table[np.ix_(r, c)].mean() for r, c in zip(rows, columns, strict=True)]
        )

    def statistics(self) -> dict[str, float]:
        """What the viewer shows in its table.

        `difference` of all that is stored, `low` and `high` between which 95 % of the
        studies end, and `wrong`, the share of studies in which the other design leads.
        """
        found, truth = np.sort(self.replayed()), float(self._difference().mean())
        tail = round(0.025 * len(found))
        sign = -1 if truth < 0 else 1
        return {
            "difference": truth,
            "low": float(found[tail]),
            "high": float(found[-1 - tail]),
            "wrong": float((sign * found < 0).mean()),
        }

    def still(self) -> Figure:
        """Draw the viewer's present state as a figure."""
        found, now = self.replayed(), self.statistics()
        figure = Figure(figsize=(7, 3), layout="tight")
        axes = figure.subplots()
        sign = -1 if now["difference"] < 0 else 1
        edges = np.linspace(-1, 1, 61) * (np.abs(found).max() + 1e-3)  # 0 is an edge
        for name, part, colour, hatch in (
            ("the better one leads", found[sign * found >= 0], 0, ""),
            ("the worse one leads", found[sign * found < 0], 1, "//"),
        ):
            axes.hist(
                part, edges, label=name, color=plotting.PALETTE[colour], hatch=hatch,
                edgecolor="white",
            )  # fmt: skip
        axes.axvline(0, color="black", linestyle="dashed")
        axes.set(
            xlabel=f"{self.first} minus {self.second}, mean Dice", ylabel="studies",
            title=f"Seeds: {self.seeds}. Patients: {self.patients}.",
        )  # fmt: skip
        axes.legend()
        return figure
