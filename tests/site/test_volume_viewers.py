"""The viewers of series, volumes and surfaces, on a page opened from the disk."""

import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator
from steps import PICTURE, drawn, move, viewer

from medimg_utils.viewers import SurfaceViewer
from medimg_utils.viewers.surface import rasterise

PANE = ".medimg-picture"


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


@pytest.mark.parametrize("pane", [0, 1, 2])
def test_a_slice_slider_changes_its_own_picture(series, pane: int) -> None:
    move(series, "slices", 9, pane)
    canvas = series.locator(PANE).nth(pane).locator("canvas").first
    box = series.locator('input[data-trait="show_marks"]')
    box.uncheck()
    drawn(series.page)
    others = [k for k in range(3) if k != pane]
    pictures = [series.locator(PANE).nth(k).locator("canvas").first for k in others]
    before = canvas.evaluate(PICTURE), [one.evaluate(PICTURE) for one in pictures]
    move(series, "slices", 12, pane)
    assert canvas.evaluate(PICTURE) != before[0]
    assert [one.evaluate(PICTURE) for one in pictures] == before[1]


@pytest.mark.parametrize("pane", [0, 1, 2])
def test_a_slice_marks_its_place_in_the_other_pictures(series, pane: int) -> None:
    other = series.locator(PANE).nth((pane + 1) % 3).locator("canvas").first
    before = other.evaluate(PICTURE)
    move(series, "slices", 12, pane)
    assert other.evaluate(PICTURE) != before


@pytest.mark.parametrize(
    ("trait", "value"),
    [("window_centre", 0.8), ("window_width", 0.2), ("opacity", 0.1)],
)
def test_a_common_slider_changes_all_pictures(series, trait: str, value: float) -> None:
    for pane in range(3):
        move(series, "slices", 9, pane)
    pictures = series.locator(f"{PANE} canvas:first-child")
    before = pictures.evaluate_all("nodes => nodes.map(node => node.toDataURL())")
    move(series, trait, value)
    after = pictures.evaluate_all("nodes => nodes.map(node => node.toDataURL())")
    assert all(a != b for a, b in zip(after, before, strict=True))
    assert len(after) == 3


@pytest.mark.parametrize("trait", ["show_heat", "show_mask", "show_marks"])
def test_an_overlay_can_be_taken_away(series, trait: str) -> None:
    move(series, "slices", 7, 0)
    canvas = series.locator("canvas").first
    before = canvas.evaluate(PICTURE)
    series.locator(f'input[data-trait="{trait}"]').uncheck()
    drawn(series.page)
    assert canvas.evaluate(PICTURE) != before


@pytest.mark.parametrize("pane", [0, 1, 2])
def test_the_hottest_slice_is_that_of_python(series, pane: int) -> None:
    name, distance = list(ball().items())[pane]
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


@pytest.mark.parametrize("pane", [0, 1, 2])
def test_a_click_leads_the_other_series_to_the_same_place(series, pane: int) -> None:
    series.get_by_role("button", name="Hottest slice").nth(pane).click()
    canvas = series.locator(PANE).nth(pane).locator("canvas").first
    canvas.scroll_into_view_if_needed()
    distance = list(ball().values())[pane]
    _, row, column = np.unravel_index(distance.argmin(), distance.shape)
    size = canvas.bounding_box()
    scale = size["width"] / distance.shape[2]
    canvas.click(position={"x": (column + 0.5) * scale, "y": (row + 0.5) * scale})
    drawn(series.page)
    expected = [np.unravel_index(one.argmin(), one.shape)[0] for one in ball().values()]
    assert slices(series) == expected


def test_the_keyboard_changes_slice_and_pixel(series) -> None:
    canvas = series.locator("canvas").first
    canvas.focus()
    keyboard = series.page.keyboard
    keyboard.press("PageDown")
    assert slices(series)[0] == 4
    keyboard.press("PageUp")
    keyboard.press("PageUp")
    assert slices(series)[0] == 2
    keyboard.press("End")
    assert slices(series)[0] == 19
    keyboard.press("Home")
    assert slices(series)[0] == 0
    keyboard.press("Shift+ArrowLeft")
    keyboard.press("ArrowUp")
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
    label = strip.get_attribute("aria-label")
    distance = ball()["sagittal T2"]
    inside = np.flatnonzero((distance < 0.3).any(axis=(1, 2)))
    assert f"lesion in slices {inside[0]} to {inside[-1]}" in label


X, Y, Z = np.mgrid[:12, :10, :8]
SUM = 8.0 * X + 4 * Y + 2 * Z
BLOCK = np.where((X > 6) & (Y > 4) & (Z > 3), 1, 0)
BLOCK[2, 3, 4] = 4
MEANING = {0: "background", 1: "a corner", 4: "a voxel"}
AXIAL, CORONAL, SAGITTAL = range(3)


@pytest.fixture
def planes(visit, demo: Path) -> Locator:
    return viewer(visit.open(demo / "volumes.html"), "A block")


def crosshair(root: Locator) -> tuple[int, ...]:
    text = root.locator(".medimg-readout").inner_text()
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def greys(canvas: Locator) -> np.ndarray:
    """Red channel (H, W) of what a canvas shows."""
    script = """node => {
      const {width, height} = node;
      const data = node.getContext("2d").getImageData(0, 0, width, height).data;
      return [width, height, [...data.filter((_, i) => i % 4 === 0)]];
    }"""
    width, height, values = canvas.evaluate(script)
    return np.array(values).reshape(height, width)


@pytest.mark.parametrize(
    "place", [(2, 3, 4), (0, 0, 0), (11, 9, 7), (8, 6, 5), (3, 3, 4)]
)
def test_the_read_out_is_that_of_python(planes, place: tuple) -> None:
    for slider, at in zip((2, 1, 0), place, strict=True):
        move(planes, "place", at, slider)
    text = planes.locator(".medimg-readout").inner_text()
    assert crosshair(planes) == place
    low, high = np.percentile(SUM, (0.05, 99.95))
    value = float(re.search(r"sum ([\d.]+)", text).group(1))
    expected = np.clip(SUM[place], low, high)
    assert value == pytest.approx(expected, abs=(high - low) / 126 + 0.5)
    assert f"true label: {MEANING[BLOCK[place]]};" in text
    predicted = np.roll(BLOCK, 1, axis=0)[place]
    assert text.endswith(f"predicted: {MEANING[predicted]}.")


@pytest.mark.parametrize("plane", [AXIAL, CORONAL, SAGITTAL])
def test_the_right_the_front_and_the_top_come_first(planes, plane: int) -> None:
    canvas = planes.locator(f"{PANE} canvas").nth(plane)
    canvas.scroll_into_view_if_needed()
    canvas.click(position={"x": 2, "y": 2})
    drawn(planes.page)
    highest = {AXIAL: (11, 9, 4), CORONAL: (11, 3, 7), SAGITTAL: (2, 9, 7)}
    assert crosshair(planes) == highest[plane]


def test_the_patients_right_is_drawn_on_the_left(planes) -> None:
    planes.locator("select").first.select_option("right half")
    planes.locator("select").nth(1).select_option("none")
    planes.locator('input[data-trait="show_crosshair"]').uncheck()
    drawn(planes.page)
    for plane in (AXIAL, CORONAL):
        picture = greys(planes.locator(f"{PANE} canvas").nth(plane))
        left, right = np.array_split(picture, 2, axis=1)
        assert left.mean() > 200
        assert right.mean() < 55


def test_planes_have_the_proportions_of_the_patient(planes) -> None:
    script = "nodes => nodes.map(node => node.width / node.height)"
    ratios = planes.locator(f"{PANE} canvas").evaluate_all(script)
    assert ratios == pytest.approx([12 / 10, 12 / 16, 10 / 16], rel=0.01)


@pytest.mark.parametrize(
    ("plane", "key", "expected"),
    [
        (AXIAL, "ArrowLeft", (3, 3, 4)),
        (AXIAL, "ArrowUp", (2, 4, 4)),
        (AXIAL, "PageDown", (2, 3, 5)),
        (CORONAL, "ArrowRight", (1, 3, 4)),
        (CORONAL, "ArrowDown", (2, 3, 3)),
        (SAGITTAL, "ArrowLeft", (2, 4, 4)),
        (SAGITTAL, "Shift+ArrowUp", (2, 3, 7)),
        (SAGITTAL, "Home", (0, 3, 4)),
    ],
)
def test_keys_move_the_crosshair(planes, plane: int, key: str, expected: tuple) -> None:
    canvas = planes.locator(f"{PANE} canvas").nth(plane)
    canvas.focus()
    planes.page.keyboard.press(key)
    drawn(planes.page)
    assert crosshair(planes) == expected


def test_each_choice_of_labels_looks_different(planes) -> None:
    canvas = planes.locator("canvas").first
    move(planes, "place", 5)
    seen = set()
    for choice in ("true", "predicted", "both", "none"):
        planes.locator('select[data-trait="shown_labels"]').select_option(choice)
        drawn(planes.page)
        seen.add(canvas.evaluate(PICTURE))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("trait", "value"),
    [("opacity", 0.1), ("window_centre", 0.9), ("window_width", 0.3)],
)
def test_a_slider_of_the_planes_changes_the_picture(planes, trait, value) -> None:
    move(planes, "place", 5)
    canvas = planes.locator("canvas").first
    before = canvas.evaluate(PICTURE)
    move(planes, trait, value)
    assert canvas.evaluate(PICTURE) != before


@pytest.fixture
def egg(visit, demo: Path) -> Locator:
    return viewer(visit.open(demo / "volumes.html"), "An egg")


def hide(root: Locator, *names: str) -> None:
    for name in names:
        root.get_by_label(f"Show: {name}").uncheck()
    drawn(root.page)


def blue(canvas: Locator) -> np.ndarray:
    """Pixels (H, W) of the kernel, whose colour is sky blue; letters are grey."""
    script = """node => {
      const {width, height} = node;
      const data = node.getContext("2d").getImageData(0, 0, width, height).data;
      const out = [];
      for (let i = 0; i < data.length; i += 4) out.push(data[i + 2] > data[i] + 15);
      return [width, height, out];
    }"""
    width, height, values = canvas.evaluate(script)
    return np.array(values).reshape(height, width)


def kernel() -> SurfaceViewer:
    x, y, z = np.mgrid[-40:41, -50:51, -20:21]
    egg = (x / 38) ** 2 + (y / 48) ** 2 + (z / 18) ** 2 < 1
    far = (x - 16) ** 2 + (y - 22) ** 2 + 4 * z**2
    labels = np.where(far < 100, 1, np.where(far < 200, 2, 0))
    names = {1: "kernel", 2: "shell", 4: "nothing"}
    return SurfaceViewer(labels, (1, 1, 2), names=names, brain=egg)


@pytest.mark.parametrize(
    ("name", "turn", "tilt"),
    [
        ("From the front", 0, 0),
        ("From the patient's right", 90, 0),
        ("From the patient's left", -90, 0),
        ("From above", 0, 90),
    ],
)
def test_a_surface_is_drawn_where_python_sees_it(egg, name, turn, tilt) -> None:
    hide(egg, "shell", "brain")
    egg.get_by_role("button", name=name).click()
    drawn(egg.page)
    seen = blue(egg.locator("canvas").first)
    same = kernel()
    size = seen.shape[0]
    view = rasterise(same._meshes[0], same._middle, turn, tilt, size, same._radius)
    expected = np.isfinite(view.depth)
    # A letter may hide a part; the place must be the same.
    assert (seen & expected).sum() > 0.9 * max(seen.sum(), expected.sum()) > 100


def test_the_kernel_changes_sides_with_the_viewer(egg) -> None:
    hide(egg, "shell", "brain")
    canvas = egg.locator("canvas").first
    move(egg, "turn", 0)
    assert np.argwhere(blue(canvas))[:, 1].mean() < 220  # patient's right
    move(egg, "turn", 179)
    assert np.argwhere(blue(canvas))[:, 1].mean() > 220


@pytest.mark.parametrize(
    ("trait", "value"),
    [("turn", -30), ("tilt", 60), ("opacity", 0.2), ("brain_opacity", 0.9)],
)
def test_a_slider_of_the_surfaces_changes_the_picture(egg, trait, value) -> None:
    canvas = egg.locator("canvas").first
    before = canvas.evaluate(PICTURE)
    move(egg, trait, value)
    assert canvas.evaluate(PICTURE) != before


@pytest.mark.parametrize("name", ["kernel", "shell", "brain"])
def test_a_surface_can_be_taken_away(egg, name: str) -> None:
    canvas = egg.locator("canvas").first
    before = canvas.evaluate(PICTURE)
    hide(egg, name)
    assert canvas.evaluate(PICTURE) != before


def test_the_legend_counts_what_python_counts(egg) -> None:
    items = egg.locator(".medimg-legend li").all_inner_texts()
    volumes = kernel().volumes()
    assert items == [
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


@pytest.mark.parametrize(
    ("turn", "tilt", "text"),
    [
        (0, 0, "from the front of the patient."),
        (90, 0, "from the right of the patient."),
        (-80, 30, "from the left of the patient, from above."),
        (-180, -30, "from the back of the patient, from below."),
        (0, 80, "from above."),
    ],
)
def test_words_say_where_the_viewer_stands(egg, turn, tilt, text) -> None:
    move(egg, "turn", turn)
    move(egg, "tilt", tilt)
    assert egg.locator(".medimg-readout").inner_text() == f"Seen {text}"
