"""The viewers of the chapters on training and evaluation."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from steps import PICTURE, choose, drawn, move, shown, viewer

from medimg_utils.viewers import DescentExplorer, PrevalenceExplorer
from medimg_utils.viewers.descent_explorer import LOSSES, OPTIMISERS


def valley() -> DescentExplorer:
    """Return the same viewer as in ``demo/learning.md``."""
    random = np.random.default_rng(3)
    features = random.normal(size=(20, 2)) * [2, 1]
    labels = (features @ [1, -1] + 3 * random.normal(size=20) > 0).astype(int)
    return DescentExplorer(features, labels)


def test_descent_is_that_of_python(visit, demo: Path) -> None:
    root = viewer(visit.open(demo / "learning.html"), "A valley")
    same = valley()
    # Few steps where the path swings: it amplifies the last digit of a sum.
    settings = ((-1, 0.5, 40), (0.5, 0.9, 7), (1.5, 0.9, 12))
    for optimiser, loss, (log_rate, momentum, steps) in itertools.product(
        OPTIMISERS, LOSSES, settings
    ):
        same.optimiser, same.loss = optimiser, loss
        choose(root, "optimiser", optimiser)
        choose(root, "loss", loss)
        for trait, value in (
            ("log_rate", log_rate), ("momentum", momentum), ("steps", steps),
            ("start_1", 1.5), ("start_2", -0.5),
        ):  # fmt: skip
            move(root, trait, value)
            setattr(same, trait, value)
        expected = same.statistics()
        assert shown(root, "verdict").startswith(expected["verdict"])
        whole = len(same.path()) == steps + 1
        for name in ("first", "lowest", "limit", *(["last"] if whole else [])):
            assert float(shown(root, name)) == pytest.approx(expected[name], rel=6e-3)
        assert whole or shown(root, "last") == "too large to show"
    assert not visit.errors
    assert not visit.requests


def test_descent_sliders_change_both_pictures(visit, demo: Path) -> None:
    root = viewer(visit.open(demo / "learning.html"), "A valley")
    choose(root, "optimiser", "momentum")
    pictures = root.locator("canvas.medimg-chart").all()
    for trait in ("log_rate", "momentum", "steps", "start_1", "start_2"):
        before = [one.evaluate(PICTURE) for one in pictures]
        move(root, trait, 5 if trait == "steps" else 0.5)
        after = [one.evaluate(PICTURE) for one in pictures]
        assert all(a != b for a, b in zip(after, before, strict=True)), trait


def test_descent_starts_where_the_surface_is_clicked(visit, demo: Path) -> None:
    root = viewer(visit.open(demo / "learning.html"), "A valley")
    canvas = root.locator("canvas.medimg-chart").first
    canvas.scroll_into_view_if_needed()
    size = canvas.bounding_box()
    scale = size["width"] / 420
    # the middle of the surface: half of 420 - 54 - 12 and of 400 - 44 - 12
    canvas.click(position={"x": (54 + 177) * scale, "y": (12 + 172) * scale})
    drawn(visit.page)
    for trait in ("start_1", "start_2"):
        value = root.locator(f'input[data-trait="{trait}"]').input_value()
        assert abs(float(value)) <= 0.1
    assert float(shown(root, "first")) == pytest.approx(np.log(2), abs=0.1)


def groups() -> PrevalenceExplorer:
    """Return the same viewer as in ``demo/learning.md``."""
    return PrevalenceExplorer(
        np.linspace(0.05, 0.95, 10), [0, 0, 0, 1, 0, 1, 0, 1, 1, 1]
    )


def test_prevalence_is_that_of_python(visit, demo: Path) -> None:
    root = viewer(visit.open(demo / "learning.html"), "Ten exams")
    same = groups()
    for threshold, prevalence in itertools.product(
        (0.0, 0.3, 0.66, 1.0), (0.001, 0.02, 0.5)
    ):
        same.threshold = threshold
        same.log_prevalence = round(np.log10(prevalence), 2)
        move(root, "threshold", same.threshold)
        move(root, "log_prevalence", same.log_prevalence)
        for name, value in same.statistics().items():
            text = "not defined" if np.isnan(value) else f"{100 * value:.1f} %"
            assert shown(root, name) == text
        n = same.counts()
        crowd = root.locator("canvas.medimg-chart").nth(2)
        assert crowd.get_attribute("aria-label") == (
            f"Of 1000 people {n['found']} are found, {n['missed']} missed, "
            f"{n['alarms']} alarmed for nothing, {n['left']} left alone."
        )
    assert not visit.errors
    assert not visit.requests


def test_prevalence_changes_the_crowd_and_not_the_roc_curve(visit, demo: Path) -> None:
    root = viewer(visit.open(demo / "learning.html"), "Ten exams")
    scores, roc, crowd = root.locator("canvas.medimg-chart").all()
    before = [one.evaluate(PICTURE) for one in (scores, roc, crowd)]
    move(root, "log_prevalence", -2)
    after = [one.evaluate(PICTURE) for one in (scores, roc, crowd)]
    assert [a != b for a, b in zip(after, before, strict=True)] == [False, False, True]
    move(root, "threshold", 0.7)
    moved = [one.evaluate(PICTURE) for one in (scores, roc, crowd)]
    assert all(a != b for a, b in zip(moved, after, strict=True))
