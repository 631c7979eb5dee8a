"""The viewers of the chapters on training and evaluation."""

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator
from steps import PICTURE, drawn, move, viewer

from medimg_utils.viewers import DescentExplorer, PrevalenceExplorer
from medimg_utils.viewers.descent_explorer import LOSSES, OPTIMISERS


def valley() -> DescentExplorer:
    """Return the same viewer as in ``demo/learning.md``."""
    random = np.random.default_rng(3)
    features = random.normal(size=(20, 2)) * [2, 1]
    labels = (features @ [1, -1] + 3 * random.normal(size=20) > 0).astype(int)
    return DescentExplorer(features, labels)


def choose(root: Locator, trait: str, value: str) -> None:
    root.locator(f'select[data-trait="{trait}"]').select_option(value)
    drawn(root.page)


def shown(root: Locator, name: str) -> str:
    return root.locator(f'[data-value="{name}"]').inner_text()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_descent_is_that_of_python(visit, demo: Path, optimiser, loss) -> None:
    root = viewer(visit.open(demo / "learning.html"), "A valley")
    same = valley()
    same.optimiser, same.loss = optimiser, loss
    choose(root, "optimiser", optimiser)
    choose(root, "loss", loss)
    # Few steps where the path swings: it amplifies the last digit of a sum.
    for log_rate, momentum, steps in ((-1, 0.5, 40), (0.5, 0.9, 7), (1.5, 0.9, 12)):
        for trait, value in (
            ("log_rate", log_rate), ("momentum", momentum), ("steps", steps),
            ("start_1", 1.5), ("start_2", -0.5),
        ):  # fmt: skip
            move(root, trait, value)
            setattr(same, trait, value)
        expected = same.statistics()
        assert shown(root, "verdict").startswith(expected["verdict"])
        for name in ("first", "lowest", "limit"):
            assert float(shown(root, name)) == pytest.approx(expected[name], rel=6e-3)
        if len(same.path()) == steps + 1:
            assert float(shown(root, "last")) == pytest.approx(
                expected["last"], rel=6e-3
            )
        else:
            assert shown(root, "last") == "too large to show"
    assert not visit.errors
    assert not visit.requests


@pytest.mark.parametrize(
    "trait", ["log_rate", "momentum", "steps", "start_1", "start_2"]
)
def test_descent_sliders_change_both_pictures(visit, demo: Path, trait: str) -> None:
    root = viewer(visit.open(demo / "learning.html"), "A valley")
    choose(root, "optimiser", "momentum")
    pictures = root.locator("canvas.medimg-chart")
    before = [one.evaluate(PICTURE) for one in pictures.all()]
    move(root, trait, 5 if trait == "steps" else 0.5)
    after = [one.evaluate(PICTURE) for one in pictures.all()]
    assert all(a != b for a, b in zip(after, before, strict=True))


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


@pytest.mark.parametrize("prevalence", [0.001, 0.02, 0.5])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.66, 1.0])
def test_prevalence_is_that_of_python(visit, demo, threshold, prevalence) -> None:
    root = viewer(visit.open(demo / "learning.html"), "Ten exams")
    same = groups()
    same.threshold, same.log_prevalence = threshold, round(np.log10(prevalence), 2)
    move(root, "threshold", same.threshold)
    move(root, "log_prevalence", same.log_prevalence)
    for name, value in same.statistics().items():
        text = "not defined" if np.isnan(value) else f"{100 * value:.1f} %"
        assert shown(root, name) == text
    counts = same.counts()
    crowd = root.locator("canvas.medimg-chart").nth(2).get_attribute("aria-label")
    assert crowd == (
        f"Of 1000 people {counts['found']} are found, {counts['missed']} missed, "
        f"{counts['alarms']} alarmed for nothing, {counts['left']} left alone."
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


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_accessible(visit, demo: Path, theme: str) -> None:
    visit.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    visit.open(demo / "learning.html")
    assert not visit.errors
    assert not visit.requests
    assert not visit.barriers()
