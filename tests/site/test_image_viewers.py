"""The viewers of the first chapters, on a page from the disk."""

import itertools
import re

import numpy as np
import pytest
import torch
from steps import PICTURE, drawn, move, viewer
from torch import nn

from medimg_utils.viewers import FieldExplorer, KernelExplorer, WindowExplorer
from medimg_utils.viewers.field_explorer import NEAR

Y, X = np.mgrid[:60, :80]
WEDGE = np.rint(-1000 + 2000 * (X + Y) / 138)  # as in demo/images.md
DISC = np.hypot(Y - 30, X - 40) < 18


@pytest.fixture
def window(visit, demo):
    yield viewer(visit.open(demo / "images.html"), "A wedge")
    assert not visit.errors
    assert not visit.requests


@pytest.fixture
def kernel(visit, demo):
    yield viewer(visit.open(demo / "images.html"), "A disc and a kernel")
    assert not visit.errors
    assert not visit.requests


def test_the_page_is_accessible(visit, demo) -> None:
    visit.open(demo / "images.html")
    assert not visit.barriers()


def test_the_greys_on_the_screen_are_those_of_python(window) -> None:
    same = WindowExplorer(WEDGE, window=(0, 400))
    greys = window.locator('[data-value="greys"]')
    box = window.locator('input[data-trait="early"]')
    for bits, width, early in itertools.product((2, 5, 8), (150, 900), (False, True)):
        box.set_checked(early)
        move(window, "bits", bits)
        move(window, "window_width", width)
        same.bits, same.window_width, same.early = bits, width, early
        assert greys.inner_text() == f"{same.greys()} different greys on the screen"


def test_the_pixels_on_the_screen_are_those_of_python(window) -> None:
    canvas = window.locator("canvas").first
    red = """node => Array.from(node.getContext("2d")
        .getImageData(0, 0, node.width, node.height).data).filter((_, i) => i % 4 === 0)"""
    move(window, "window_centre", -250)
    same = WindowExplorer(WEDGE, window=(-250, 400))
    assert canvas.evaluate(red) == same.levels().ravel().tolist()


def test_a_drag_over_the_histogram_moves_the_window(window) -> None:
    picture, plot = window.locator("canvas").all()
    before = picture.evaluate(PICTURE)
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    mouse = window.page.mouse
    mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    mouse.down()
    mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 40)
    mouse.up()
    drawn(window.page)
    assert picture.evaluate(PICTURE) != before
    centre = window.locator('input[data-trait="window_centre"]').input_value()
    assert float(centre) == pytest.approx(510, abs=40)


def test_a_preset_sets_the_window(window) -> None:
    window.get_by_role("button", name="Window: wide").click()
    assert window.locator('input[data-trait="window_width"]').input_value() == "2000"


def test_the_pointer_reads_a_value(window) -> None:
    canvas = window.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    scale = canvas.bounding_box()["width"] / 80
    canvas.hover(position={"x": 20.5 * scale, "y": 10.5 * scale})
    text = window.locator("p.medimg-readout").inner_text()
    assert text == f"row 10, column 20: {WEDGE[10, 20]:.0f} HU"


def test_the_sum_under_the_kernel_is_that_of_python(kernel) -> None:
    same = KernelExplorer(DISC, [[-1, -1, -1], [0, 0, 0], [1, 1, 1]])
    total = kernel.locator('[data-value="sum"]')
    result = kernel.locator("canvas").nth(1)
    result.scroll_into_view_if_needed()
    scale = result.bounding_box()["width"] / 80
    for stride, pad in itertools.product((1, 2, 3), (False, True)):
        move(kernel, "stride", stride)
        kernel.locator('input[data-trait="pad"]').set_checked(pad)
        same.stride, same.pad = stride, pad
        response = same.response()
        y, x = np.unravel_index(response.argmax(), response.shape)
        place = {"x": (x + 0.5) * stride * scale, "y": (y + 0.5) * stride * scale}
        result.hover(position=place)
        drawn(kernel.page)
        found = float(re.findall(r"-?[\d.]+$", total.inner_text())[0])
        assert found == pytest.approx(response[y, x], abs=6e-4)
        assert f"{response.shape[0]} × {response.shape[1]}." in kernel.inner_text()


def test_typed_weights_change_the_response(kernel) -> None:
    result = kernel.locator("canvas").nth(1)
    before = result.evaluate(PICTURE)
    kernel.locator('input[data-weight="4"]').fill("-3.5")
    drawn(kernel.page)
    typed = result.evaluate(PICTURE)
    assert typed != before
    kernel.get_by_role("button", name="Kernel: blur").click()
    drawn(kernel.page)
    assert result.evaluate(PICTURE) not in (before, typed)
    assert kernel.locator('input[data-weight="4"]').input_value() == "0.111"


def test_the_kernel_slides(kernel) -> None:
    picture, result = kernel.locator("canvas").all()
    whole = result.evaluate(PICTURE)
    box = picture.evaluate(PICTURE)
    move(kernel, "slid", 50)
    half = result.evaluate(PICTURE)
    assert half != whole
    assert picture.evaluate(PICTURE) != box
    kernel.page.emulate_media(reduced_motion="reduce")
    kernel.get_by_role("button", name="Slide the kernel").click()
    drawn(kernel.page)
    assert kernel.locator('input[data-trait="slid"]').input_value() == "100"


@pytest.fixture
def field(visit, demo):
    yield viewer(visit.open(demo / "images.html"), "A small network")
    assert not visit.errors
    assert not visit.requests


def a_small_network() -> FieldExplorer:
    """The viewer of demo/images.md."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 5, padding=2),
        nn.ConvTranspose2d(4, 1, 3, stride=2),
    )
    modules = {"first": "0", "middle": "2", "last": ""}
    noise = np.random.default_rng(0).random((60, 80))
    return FieldExplorer(noise, network, modules, grid=5, pixel_mm=0.5)


def sides(field) -> str:
    (top, bottom), (left, right) = field
    return f"{bottom - top + 1} × {right - left + 1}"


def test_the_fields_are_those_of_python(field) -> None:
    same = a_small_network()
    canvas = field.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    scale = canvas.bounding_box()["width"] / 80
    for row, column in ((30, 40), (1, 2), (59, 79), (17, 60)):
        canvas.click(position={"x": (column + 0.5) * scale, "y": (row + 0.5) * scale})
        drawn(field.page)
        same.grid_row, same.grid_column = row * 5 // 60, column * 5 // 80
        dot = same.pixel
        readout = field.locator("p.medimg-readout").inner_text()
        assert readout.startswith(f"Row {dot[0]}, column {dot[1]}: ")
        assert abs(dot[0] - row) <= 6  # half of the 12 rows between two places
        assert abs(dot[1] - column) <= 8
        asked = same.asked()
        for caption, (name, box) in zip(
            field.locator("figcaption").all(), same.fields().items(), strict=True
        ):
            text = caption.inner_text()
            assert text.startswith(f"{name}: sees {sides(box)} pixels")
            assert name == "last" or f"asks {sides(asked[name])} of its" in text


PIXELS = """node => Array.from(node.getContext("2d")
    .getImageData(0, 0, node.width, node.height).data)"""


def tint_of(canvas) -> np.ndarray:
    """Red minus blue: the pictures are grey, and the heat has no blue."""
    width, height = (int(canvas.get_attribute(name)) for name in ("width", "height"))
    rgba = np.reshape(canvas.evaluate(PIXELS), (height, width, 4))
    return rgba[..., 0] - rgba[..., 2]


def test_the_colour_is_that_of_the_place_that_is_drawn(field) -> None:
    same = a_small_network()
    canvas, small = field.locator("canvas").first, field.locator("figure canvas").last
    canvas.scroll_into_view_if_needed()
    size = canvas.bounding_box()
    for row, column in ((1, 1), (2, 3)):  # whose fields the border does not cut
        place = (column + 0.5) * size["width"] / 5, (row + 0.5) * size["height"] / 5
        canvas.click(position=dict(zip("xy", place, strict=True)))
        drawn(field.page)
        tint = tint_of(small)
        middles = ((np.arange(len(tint)) + 0.5) * NEAR / len(tint)).astype(int)
        levels = same._near[2][:, :, middles[:, None], middles]
        apart = np.abs(tint - 230 * (190 / 255) * (levels / 15)).mean(axis=(2, 3))
        assert np.unravel_index(apart.argmin(), apart.shape) == (row, column)
        assert apart[row, column] < np.sort(apart, axis=None)[1] / 2
        same.grid_row, same.grid_column = row, column
        (top, bottom), (left, right) = same.fields()["last"]
        tint = tint_of(canvas)
        tint[max(top - 4, 0) : bottom + 5, max(left - 4, 0) : right + 5] = 0
        assert not tint.any()  # nothing looks beyond its field


def test_a_click_and_a_layer_change_the_picture(field) -> None:
    canvas = field.locator("canvas").first
    before = canvas.evaluate(PICTURE)
    move(field, "layer", 0)
    other = canvas.evaluate(PICTURE)
    assert other != before
    canvas.click(position={"x": 30, "y": 20})
    drawn(field.page)
    clicked = canvas.evaluate(PICTURE)
    assert clicked != other
    field.page.keyboard.press("ArrowRight")
    drawn(field.page)
    assert canvas.evaluate(PICTURE) != clicked
    field.locator("figure").nth(2).click()
    drawn(field.page)
    assert field.locator('input[data-trait="layer"]').input_value() == "2"
    assert "(" in field.locator("p.medimg-readout").inner_text()  # centimetres
