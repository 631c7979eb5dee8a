"""The viewers of series, volumes and surfaces, on a page opened from the disk.

Loading the page takes most of the time, so a test asks all that belongs together.
"""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator
from steps import PICTURE, drawn, move, viewer

from medimg_utils.viewers import SurfaceViewer
from medimg_utils.viewers.surface import rasterise

PANE = ".medimg-picture"


def picture(root: Locator, pane: int = 0) -> str:
    """What the first canvas of a pane shows."""
    return root.locator(PANE).nth(pane).locator("canvas").first.evaluate(PICTURE)


def pictures(root: Locator) -> list[str]:
    return [picture(root, pane) for pane in range(3)]


def tick(root: Locator, trait: str, on: bool) -> None:
    root.locator(f'input[data-trait="{trait}"]').set_checked(on)
    drawn(root.page)


def rgb(canvas: Locator) -> np.ndarray:
    """Pixels (H, W, 3) of what a canvas shows."""
    png = base64.b64decode(canvas.evaluate(PICTURE).partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


# --- series ---------------------------------------------------------------------------


def ball() -> dict[str, np.ndarray]:
    """Return the distances of ``demo/volumes.md``."""
    left, front, up = np.mgrid[-1:1:20j, -1:1:20j, -1:1:20j]
    distance = np.sqrt((left - 0.4) ** 2 + (front + 0.2) ** 2 + (up - 0.1) ** 2)
    return {
        "sagittal T2": distance[::-1, ::-1, ::-1].transpose(0, 2, 1),
        "coronal T1": distance[:, :, ::-1].transpose(1, 2, 0),
        "axial PD": distance[:, ::-1, ::-1].transpose(2, 1, 0),
    }


def slices(root: Locator) -> list[int]:
    sliders = root.locator('input[data-trait="slices"]')
    return [int(one.input_value()) for one in sliders.all()]


@pytest.fixture
def series(visit, demo: Path) -> Locator:
    return viewer(visit.open(demo / "volumes.html"), "A ball in three series")


def test_a_slice_slider_changes_its_picture_and_marks_its_place(series) -> None:
    for pane in range(3):
        tick(series, "show_marks", False)
        move(series, "slices", 9, pane)
        before = pictures(series)
        move(series, "slices", 12, pane)
        changed = [a != b for a, b in zip(pictures(series), before, strict=True)]
        assert changed == [k == pane for k in range(3)]
        tick(series, "show_marks", True)
        marked = pictures(series)
        move(series, "slices", 11, pane)
        assert all(a != b for a, b in zip(pictures(series), marked, strict=True))


def test_common_controls_change_all_pictures(series) -> None:
    for pane in range(3):
        move(series, "slices", 9, pane)
    for trait, value in (
        ("opacity", 0.1),
        ("window_centre", 0.8),
        ("window_width", 0.2),
    ):
        before = pictures(series)
        move(series, trait, value)
        assert all(a != b for a, b in zip(pictures(series), before, strict=True)), trait
    for trait in ("show_heat", "show_marks"):
        before = pictures(series)
        tick(series, trait, False)
        assert all(a != b for a, b in zip(pictures(series), before, strict=True)), trait
    move(series, "slices", 6, 0)
    before = picture(series)
    tick(series, "show_mask", False)
    assert picture(series) != before


def test_the_hottest_slice_is_that_of_python(series) -> None:
    for pane, (name, distance) in enumerate(ball().items()):
        series.get_by_role("button", name=f"Hottest slice of {name}").click()
        drawn(series.page)
        place = np.unravel_index(distance.argmin(), distance.shape)
        assert slices(series)[pane] == place[0]
        text = series.locator(PANE).nth(pane).locator(".medimg-readout").inner_text()
        row, column, value, heat = (float(part) for part in re.findall(r"[\d.]+", text))
        assert (row, column) == place[1:]
        low, high = np.percentile(100 - 40 * distance, (0.05, 99.95))
        shown = np.clip(100 - 40 * distance[place], low, high)
        assert value == pytest.approx(shown, abs=(high - low) / 126 + 0.5)
        assert heat == pytest.approx(1 - distance[place], abs=0.006)
        assert text.endswith("inside the lesion")


def test_a_click_leads_the_other_series_to_the_same_place(series) -> None:
    expected = [np.unravel_index(one.argmin(), one.shape)[0] for one in ball().values()]
    for pane, distance in enumerate(ball().values()):
        for other in range(3):
            move(series, "slices", expected[pane] if other == pane else 0, other)
        canvas = series.locator(PANE).nth(pane).locator("canvas").first
        canvas.scroll_into_view_if_needed()
        _, row, column = np.unravel_index(distance.argmin(), distance.shape)
        scale = canvas.bounding_box()["width"] / distance.shape[2]
        canvas.click(position={"x": (column + 0.5) * scale, "y": (row + 0.5) * scale})
        drawn(series.page)
        assert slices(series) == expected


def test_the_keyboard_changes_slice_and_pixel(series) -> None:
    series.locator("canvas").first.focus()
    for key, expected in (
        ("PageDown", 4),
        ("PageUp", 3),
        ("PageUp", 2),
        ("End", 19),
        ("PageDown", 19),
        ("Home", 0),
    ):
        series.page.keyboard.press(key)
        assert slices(series)[0] == expected
    series.page.keyboard.press("Shift+ArrowLeft")
    series.page.keyboard.press("ArrowUp")
    text = series.locator(".medimg-readout").first.inner_text()
    assert text.startswith("row 9, column 0: ")


def test_the_wheel_scrolls_a_picture_only_after_it_was_chosen(series) -> None:
    canvas = series.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    canvas.hover()
    series.page.mouse.wheel(0, 100)
    series.page.wait_for_timeout(100)
    assert slices(series)[0] == 3
    canvas.click()
    series.page.mouse.wheel(0, 100)
    series.page.wait_for_function(
        "() => document.querySelector('input[data-trait=slices]').value === '4'"
    )


def test_the_strip_leads_to_a_slice(series) -> None:
    strip = series.locator(".medimg-strip").first
    strip.scroll_into_view_if_needed()
    width = strip.bounding_box()["width"]
    strip.click(position={"x": 15.5 * width / 20, "y": 5})
    assert slices(series)[0] == 15
    distance = ball()["sagittal T2"]
    inside = np.flatnonzero((distance < 0.3).any(axis=(1, 2)))
    label = strip.get_attribute("aria-label")
    assert f"lesion in slices {inside[0] + 1} to {inside[-1] + 1}" in label


# --- planes ---------------------------------------------------------------------------

X, Y, Z = np.mgrid[:12, :10, :8]
SUM = 8.0 * X + 4 * Y + 2 * Z
BLOCK = np.where((X > 6) & (Y > 4) & (Z > 3), 1, 0)
BLOCK[2, 3, 4] = 4
MEANING = {0: "background", 1: "a corner", 4: "a voxel"}
START = (2, 3, 4)


@pytest.fixture
def planes(visit, demo: Path) -> Locator:
    return viewer(visit.open(demo / "volumes.html"), "A block")


def go_to(root: Locator, place: tuple[int, ...]) -> None:
    """Set the sliders, which stand below the axial, coronal and sagittal plane."""
    for pane, at in enumerate(reversed(place)):
        move(root, "place", at, pane)


def crosshair(root: Locator) -> tuple[int, ...]:
    text = root.locator(".medimg-readout").inner_text()
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def test_the_read_out_is_that_of_python(planes) -> None:
    low, high = np.percentile(SUM, (0.05, 99.95))
    predicted = np.roll(BLOCK, 1, axis=0)
    assert crosshair(planes) == START
    for place in ((0, 0, 0), (11, 9, 7), (8, 6, 5), (3, 3, 4), START):
        go_to(planes, place)
        text = planes.locator(".medimg-readout").inner_text()
        assert crosshair(planes) == place
        value = float(re.search(r"sum ([\d.]+)", text).group(1))
        expected = np.clip(SUM[place], low, high)
        assert value == pytest.approx(expected, abs=(high - low) / 126 + 0.5)
        assert f"true label: {MEANING[BLOCK[place]]};" in text
        assert text.endswith(f"predicted: {MEANING[predicted[place]]}.")


def test_the_planes_lie_as_radiologists_see_them(planes) -> None:
    # Clicked near the corner above on the left: right, anterior, superior.
    for pane, highest in enumerate([(11, 9, 4), (11, 3, 7), (2, 9, 7)]):
        go_to(planes, START)
        canvas = planes.locator(f"{PANE} canvas").nth(pane)
        canvas.scroll_into_view_if_needed()
        canvas.click(position={"x": 2, "y": 2})
        drawn(planes.page)
        assert crosshair(planes) == highest
    planes.locator('select[data-trait="volume"]').select_option("right half")
    planes.locator('select[data-trait="shown_labels"]').select_option("none")
    tick(planes, "show_crosshair", False)
    for pane in (0, 1):
        grey = rgb(planes.locator(f"{PANE} canvas").nth(pane))[:, :, 0]
        left, right = np.array_split(grey, 2, axis=1)
        assert left.mean() > 200
        assert right.mean() < 55


def test_planes_have_the_proportions_of_the_patient(planes) -> None:
    script = "nodes => nodes.map(node => node.width / node.height)"
    ratios = planes.locator(f"{PANE} canvas").evaluate_all(script)
    assert ratios == pytest.approx([12 / 10, 12 / 16, 10 / 16], rel=0.01)


def test_keys_move_the_crosshair(planes) -> None:
    axial, coronal, sagittal = planes.locator(f"{PANE} canvas").all()
    for canvas, key, expected in (
        (axial, "ArrowLeft", (3, 3, 4)),
        (axial, "ArrowUp", (2, 4, 4)),
        (axial, "PageDown", (2, 3, 5)),
        (coronal, "ArrowRight", (1, 3, 4)),
        (coronal, "ArrowDown", (2, 3, 3)),
        (sagittal, "ArrowLeft", (2, 4, 4)),
        (sagittal, "Shift+ArrowUp", (2, 3, 7)),
        (sagittal, "Home", (0, 3, 4)),
    ):
        go_to(planes, START)
        canvas.focus()
        planes.page.keyboard.press(key)
        drawn(planes.page)
        assert crosshair(planes) == expected, key


def test_each_choice_and_slider_changes_the_planes(planes) -> None:
    go_to(planes, (2, 3, 5))
    seen = set()
    for choice in ("predicted", "both", "none", "true"):
        planes.locator('select[data-trait="shown_labels"]').select_option(choice)
        drawn(planes.page)
        seen.add(picture(planes))
    for trait, value in (
        ("opacity", 0.1),
        ("window_centre", 0.9),
        ("window_width", 0.3),
    ):
        move(planes, trait, value)
        seen.add(picture(planes))
    assert len(seen) == 7


# --- surfaces -------------------------------------------------------------------------


@pytest.fixture
def egg(visit, demo: Path) -> Locator:
    return viewer(visit.open(demo / "volumes.html"), "An egg")


def same_egg() -> SurfaceViewer:
    x, y, z = np.mgrid[-40:41, -50:51, -20:21]
    inside = (x / 38) ** 2 + (y / 48) ** 2 + (z / 18) ** 2 < 1
    far = (x - 16) ** 2 + (y - 22) ** 2 + 4 * z**2
    labels = np.where(far < 100, 1, np.where(far < 200, 2, 0))
    names = {1: "kernel", 2: "shell", 4: "nothing"}
    return SurfaceViewer(labels, (1, 1, 2), names=names, brain=inside)


def hide(root: Locator, name: str) -> None:
    root.get_by_label(f"Show: {name}").uncheck()
    drawn(root.page)


def kernel(root: Locator) -> np.ndarray:
    """Pixels (H, W) of the kernel, whose colour is sky blue; letters are grey."""
    colours = rgb(root.locator("canvas").first)
    return colours[:, :, 2] > colours[:, :, 0] + 15


def test_a_surface_is_drawn_where_python_sees_it(egg) -> None:
    hide(egg, "shell")
    hide(egg, "brain")
    same = same_egg()
    for name, turn, tilt in (
        ("From the front", 0, 0),
        ("From the patient's right", 90, 0),
        ("From the patient's left", -90, 0),
        ("From above", 0, 90),
    ):
        egg.get_by_role("button", name=name).click()
        drawn(egg.page)
        seen = kernel(egg)
        view = rasterise(
            same._meshes[0], same._middle, turn, tilt, len(seen), same._radius
        )
        expected = np.isfinite(view.depth)
        # A letter may hide a part; the place must be the same.
        assert (seen & expected).sum() > 0.9 * max(seen.sum(), expected.sum()) > 900
    # The kernel lies on the patient's right.
    move(egg, "tilt", 0)
    assert np.argwhere(kernel(egg))[:, 1].mean() < 220
    move(egg, "turn", 179)
    assert np.argwhere(kernel(egg))[:, 1].mean() > 220


def test_each_slider_and_box_changes_the_surfaces(egg) -> None:
    seen = {picture(egg)}
    for trait, value in (
        ("turn", -30),
        ("tilt", 60),
        ("opacity", 0.4),
        ("brain_opacity", 0.9),
    ):
        move(egg, trait, value)
        seen.add(picture(egg))
    for name in ("brain", "kernel", "shell"):
        hide(egg, name)
        seen.add(picture(egg))
    assert len(seen) == 8


def test_the_legend_counts_what_python_counts(egg) -> None:
    volumes = same_egg().volumes()
    assert egg.locator(".medimg-legend li").all_inner_texts() == [
        f"kernel: {volumes['kernel']:.1f} cm³",
        f"shell: {volumes['shell']:.1f} cm³",
        "nothing: none",
    ]


def test_surfaces_turn_by_keyboard_and_mouse(egg) -> None:
    canvas = egg.locator("canvas").first
    angles = egg.locator('input[data-trait="turn"], input[data-trait="tilt"]')
    canvas.scroll_into_view_if_needed()
    canvas.focus()
    egg.page.keyboard.press("ArrowRight")
    egg.page.keyboard.press("ArrowDown")
    assert [one.input_value() for one in angles.all()] == ["45", "25"]
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    egg.page.mouse.move(x, y)
    egg.page.mouse.down()
    egg.page.mouse.move(x + box["width"] / 10, y - box["height"] / 20)
    egg.page.mouse.up()
    turn, tilt = (float(one.input_value()) for one in angles.all())
    assert turn == pytest.approx(65, abs=1)
    assert tilt == pytest.approx(15, abs=1)


def test_words_say_where_the_viewer_stands(egg) -> None:
    for turn, tilt, text in (
        (0, 0, "from the front of the patient."),
        (90, 0, "from the right of the patient."),
        (-80, 30, "from the left of the patient, from above."),
        (-180, -30, "from the back of the patient, from below."),
        (0, 80, "from above."),
    ):
        move(egg, "turn", turn)
        move(egg, "tilt", tilt)
        assert egg.locator(".medimg-readout").inner_text() == f"Seen {text}"
