"""The viewer of the chapter on decision support."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from steps import PICTURE, move, shown, viewer

from medimg_utils.viewers import WorklistExplorer

TITLE = "Ten exams in a list"


def same() -> WorklistExplorer:
    """Return the same viewer as in ``demo/decisions.md``."""
    return WorklistExplorer(
        np.linspace(0.05, 0.95, 10),
        [0, 0, 0, 1, 0, 1, 0, 1, 1, 1],
        prevalence=0.05,
    )


def duration(minutes: float) -> str:
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def test_the_numbers_are_those_of_python(visit, demo: Path) -> None:
    root = viewer(visit.open(demo / "decisions.html"), TITLE)
    twin = same()
    room = ((1, 11.5), (2, 22), (6, 31))
    for threshold, prevalence, (readers, rate), exchange in itertools.product(
        (0.0, 0.3, 0.66, 1.0), (-2.0, -0.5), room, (0.5, 2.3)
    ):
        for trait, value in (
            ("threshold", threshold), ("log_prevalence", prevalence),
            ("readers", readers), ("rate", rate), ("log_exchange", exchange),
        ):  # fmt: skip
            move(root, trait, value)
            setattr(twin, trait, value)
        n = twin.statistics()
        for name in ("sensitivity", "specificity", "marked", "load"):
            assert shown(root, name) == f"{100 * n[name]:.1f} %", name
        for name in ("net_benefit", "all"):
            assert float(shown(root, name)) == pytest.approx(n[name], abs=0.051), name
        label = root.locator("canvas.medimg-chart").first.get_attribute("aria-label")
        assert label == (
            f"Mean waits: everybody, first come {duration(n['first_come'])}, "
            f"ill and marked {duration(n['found'])}, "
            f"ill, on average {duration(n['ill'])}, "
            f"well, on average {duration(n['well'])}, "
            f"ill and missed {duration(n['missed'])}."
        )
    assert not visit.errors
    assert not visit.requests


def test_too_much_work_is_told_and_not_drawn(visit, demo: Path) -> None:
    root = viewer(visit.open(demo / "decisions.html"), TITLE)
    waits, benefit = root.locator("canvas.medimg-chart").all()
    before = [one.evaluate(PICTURE) for one in (waits, benefit)]
    move(root, "rate", 60)
    after = [one.evaluate(PICTURE) for one in (waits, benefit)]
    assert [a != b for a, b in zip(after, before, strict=True)] == [True, False]
    assert waits.get_attribute("aria-label") == "The list grows for ever."
    assert np.isinf(WorklistExplorer([0, 1], [0, 1], rate=60).statistics()["ill"])


def test_each_slider_changes_its_pictures(visit, demo: Path) -> None:
    root = viewer(visit.open(demo / "decisions.html"), TITLE)
    charts = root.locator("canvas.medimg-chart").all()
    for trait, value, changes in (
        ("threshold", 0.72, [True, True]), ("log_prevalence", -0.6, [True, True]),
        ("log_exchange", 0.2, [False, True]), ("readers", 2, [True, False]),
        ("rate", 3, [True, False]),
    ):  # fmt: skip
        before = [one.evaluate(PICTURE) for one in charts]
        move(root, trait, value)
        after = [one.evaluate(PICTURE) for one in charts]
        assert [a != b for a, b in zip(after, before, strict=True)] == changes, trait
