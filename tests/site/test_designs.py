"""The viewer of the chapter on choosing a design."""

from pathlib import Path

import numpy as np
import pytest
from steps import PICTURE, choose, move, shown, viewer

from medimg_utils.viewers import StudyExplorer


def studies() -> StudyExplorer:
    """Return the same viewer as in ``demo/designs.md``."""
    random = np.random.default_rng(5)
    scores = {
        name: np.clip(
            shift + random.normal(0, 0.05, (3, 1)) + random.normal(0, 0.1, (3, 20)),
            0,
            1,
        )
        for name, shift in (("one", 0.7), ("two", 0.66), ("three", 0.4))
    }
    return StudyExplorer(scores, "one", "two")


def test_studies_are_those_of_python(visit, demo: Path) -> None:
    root = viewer(visit.open(demo / "designs.html"), "Three designs")
    same = studies()
    for first, second, seeds, patients in (
        ("one", "two", 1, 20), ("two", "one", 3, 50), ("three", "one", 10, 200),
        ("one", "one", 2, 5),
    ):  # fmt: skip
        choose(root, "first", first)
        choose(root, "second", second)
        move(root, "seeds", seeds)
        move(root, "patients", patients)
        same.first, same.second, same.seeds, same.patients = (
            first,
            second,
            seeds,
            patients,
        )
        expected = same.statistics()
        assert float(shown(root, "difference")) == pytest.approx(
            expected["difference"], abs=6e-4
        )
        low, high = shown(root, "interval").split(" and ")
        assert float(low) == pytest.approx(expected["low"], abs=6e-4)
        assert float(high) == pytest.approx(expected["high"], abs=6e-4)
        assert float(shown(root, "wrong").removesuffix(" %")) == pytest.approx(
            100 * expected["wrong"], abs=0.06
        )
    assert not visit.errors
    assert not visit.requests


def test_every_control_changes_the_picture(visit, demo: Path) -> None:
    root = viewer(visit.open(demo / "designs.html"), "Three designs")
    picture = root.locator("canvas.medimg-chart").first
    for change in (
        lambda: move(root, "seeds", 7),
        lambda: move(root, "patients", 100),
        lambda: choose(root, "first", "three"),
        lambda: choose(root, "second", "one"),
    ):
        before = picture.evaluate(PICTURE)
        change()
        assert picture.evaluate(PICTURE) != before
