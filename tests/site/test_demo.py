"""The viewers, figures and quiz of a small site: alive from file://, accessible."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from builds import build, furnish
from playwright.sync_api import expect
from steps import PICTURE, move, viewer
from visits import COLOUR

from medimg_utils.viewers import MaskOverlayViewer, ThresholdExplorer


def discs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the images, masks and probabilities of ``demo/viewers.md``."""
    y, x = np.mgrid[:96, :128]
    centres = [(40, 30), (50, 90), (60, 64), (30, 100)]
    distance = np.stack([np.hypot(y - v, x - u) for v, u in centres])
    masks = distance < 20
    masks[3] = False
    probabilities = 1 / (1 + np.exp((distance - 24) / 6))
    return np.clip(1 - distance / 120, 0, 1), masks, probabilities


def test_after_a_change_only_that_page_is_made_again(tmp_path: Path) -> None:
    book = tmp_path / "book"
    book.mkdir()
    for name in ("index", "one", "two"):
        (book / f"{name}.md").write_text(f"# Page {name}\n\nIts text.\n")
    contents = "format: jb-book\nroot: index\nchapters:\n  - file: one\n  - file: two\n"
    (book / "_toc.yml").write_text(contents)
    furnish(tmp_path)

    def pages() -> dict[str, int]:
        made = build(tmp_path)
        return {page.name: page.stat().st_mtime_ns for page in made.glob("*.html")}

    before = pages()
    (book / "two.md").write_text("# Page two\n\nAnother text.\n")
    after = pages()
    made = {name for name in after if after[name] != before[name]}
    assert "two.html" in made
    # beside it what lists all pages: the root of the contents, and Sphinx's own
    assert made <= {"two.html", "index.html", "search.html", "genindex.html"}


def test_the_page_holds_two_viewers(visit, demo: Path) -> None:
    page = visit.open(demo / "viewers.html")
    assert visit.viewers() == 2
    assert page.locator(".medimg-viewer").count() == 2


@pytest.mark.parametrize(
    "trait", ["window_centre", "window_width", "opacity", "threshold"]
)
def test_overlay_slider_changes_the_picture(visit, demo, trait) -> None:
    root = viewer(visit.open(demo / "viewers.html"), "A disc")
    canvas = root.locator("canvas").first
    before = canvas.evaluate(PICTURE)
    move(root, trait, 0.7)
    assert canvas.evaluate(PICTURE) != before
    assert not visit.errors
    assert not visit.requests


def test_overlay_dice_is_that_of_python(visit, demo) -> None:
    root = viewer(visit.open(demo / "viewers.html"), "A disc")
    images, masks, probabilities = discs()
    same = MaskOverlayViewer(images[0], masks[0], probability=probabilities[0])
    for threshold in (0.0, 0.2, 0.5, 0.55, 0.9, 1.0):
        move(root, "threshold", threshold)
        same.threshold = threshold
        assert (
            root.locator(".medimg-overlap").inner_text() == f"Dice: {same.dice():.3f}"
        )


def test_overlay_reads_out_the_pixel_under_the_keyboard(visit, demo) -> None:
    root = viewer(visit.open(demo / "viewers.html"), "A disc")
    root.locator("canvas").first.focus()
    for _ in range(3):
        visit.page.keyboard.press("Shift+ArrowLeft")
    visit.page.keyboard.press("ArrowUp")
    images, masks, probabilities = discs()
    text = root.locator(".medimg-readout").inner_text()
    row, column, value, probability = re.findall(r"[\d.]+", text)
    assert (int(row), int(column)) == (47, 34)
    assert float(value) == pytest.approx(images[0, 47, 34], abs=0.011)
    assert float(probability) == pytest.approx(probabilities[0, 47, 34], abs=0.008)
    assert text.endswith("inside the mask") == masks[0, 47, 34]


def test_overlay_reads_out_the_pixel_under_the_mouse(visit, demo) -> None:
    root = viewer(visit.open(demo / "viewers.html"), "A disc")
    box = root.locator("canvas").first
    box.scroll_into_view_if_needed()
    size = box.bounding_box()
    scale = size["width"] / 128
    box.hover(position={"x": 100.5 * scale, "y": 20.5 * scale})
    assert "row 20, column 100" in root.locator(".medimg-readout").inner_text()


def test_overlay_zooms_and_returns(visit, demo) -> None:
    root = viewer(visit.open(demo / "viewers.html"), "A disc")
    canvas = root.locator("canvas").first
    before = canvas.evaluate(PICTURE)
    root.get_by_role("button", name="Zoom in").click()
    assert canvas.evaluate(PICTURE) != before
    root.get_by_role("button", name="Show the whole image").click()
    assert canvas.evaluate(PICTURE) == before


@pytest.mark.parametrize("trait", ["show_mask", "show_prediction", "show_map"])
def test_overlay_checkbox_changes_the_picture(visit, demo, trait) -> None:
    root = viewer(visit.open(demo / "viewers.html"), "A disc")
    canvas = root.locator("canvas").first
    before = canvas.evaluate(PICTURE)
    box = root.locator(f'input[data-trait="{trait}"]')
    box.set_checked(not box.is_checked())
    visit.page.wait_for_timeout(100)
    assert canvas.evaluate(PICTURE) != before


def test_explorer_numbers_are_those_of_python(visit, demo) -> None:
    root = viewer(visit.open(demo / "viewers.html"), "Four discs")
    images, masks, probabilities = discs()
    same = ThresholdExplorer(
        images,
        masks,
        probabilities,
        scores=np.linspace(0.05, 0.95, 10),
        labels=[0, 0, 0, 1, 0, 1, 0, 1, 1, 1],
    )
    shown = {
        name: root.locator(f'[data-value="{name}"]')
        for name in ("mean-dice", "sensitivity", "specificity")
    }
    for threshold, min_area in itertools.product((0.1, 0.5, 0.83), (0, 100)):
        wanted = {
            "threshold": threshold,
            "min_area": min_area,
            "score_threshold": threshold,
        }
        for trait, value in wanted.items():
            move(root, trait, value)
            setattr(same, trait, value)
        expected = same.statistics()
        dice, found, spared = (cell.inner_text() for cell in shown.values())
        assert dice == f"{expected['mean_dice']:.3f}"
        assert found.startswith(f"{100 * expected['sensitivity']:.1f} %")
        assert spared.startswith(f"{100 * expected['specificity']:.1f} %")


@pytest.mark.parametrize("trait", ["threshold", "min_area", "opacity"])
def test_explorer_slider_changes_the_pictures(visit, demo, trait) -> None:
    root = viewer(visit.open(demo / "viewers.html"), "Four discs")
    pictures = root.locator(".medimg-gallery canvas")
    before = pictures.evaluate_all("nodes => nodes.map(node => node.toDataURL())")
    move(root, trait, {"threshold": 0.3, "min_area": 123, "opacity": 0.1}[trait])
    after = pictures.evaluate_all("nodes => nodes.map(node => node.toDataURL())")
    assert (after != before) == (
        trait != "min_area"
    )  # all regions are larger than that


def test_explorer_moves_the_point_on_the_roc_curve(visit, demo) -> None:
    root = viewer(visit.open(demo / "viewers.html"), "Four discs")
    roc = root.locator("canvas.medimg-roc")
    before = roc.evaluate(PICTURE)
    move(root, "score_threshold", 0.9)
    assert roc.evaluate(PICTURE) != before
    assert "sensitivity 20.0 %" in roc.get_attribute("aria-label")


def test_sliders_answer_to_the_keyboard(visit, demo) -> None:
    root = viewer(visit.open(demo / "viewers.html"), "Four discs")
    slider = root.locator('input[data-trait="threshold"]')
    slider.focus()
    visit.page.keyboard.press("ArrowRight")
    assert slider.input_value() == "0.51"
    assert root.locator("output").first.inner_text() == "0.51"


def test_quiz_answers_without_a_network(visit, demo: Path) -> None:
    page = visit.open(demo / "quiz.html")
    # the quiz sets the formula of its question once MathJax is there
    page.locator("mjx-container").nth(1).wait_for(state="attached", timeout=15_000)
    page.locator(".MCButton").first.click()
    expect(page.locator(".Feedback").first).to_have_text(
        re.compile(r"^\s*(Yes|No)\.\s*$")
    )
    assert not visit.errors
    assert not visit.requests


@pytest.mark.parametrize("correct", ["false", "true"])
def test_what_a_quiz_says_can_be_read(visit, demo: Path, correct: str) -> None:
    page = visit.open(demo / "quiz.html")
    page.locator(f'.MCButton[data-correct="{correct}"]').first.click(timeout=15_000)
    # a button takes its colour in a second
    page.evaluate(
        "() => Promise.all(document.getAnimations().map(one => one.finished))"
    )
    assert page.locator(".Feedback").first.inner_text().strip()
    assert not visit.barriers(COLOUR, inside="div.Quiz")
    visit.turn_dark()
    assert not visit.barriers(COLOUR, inside="div.Quiz")


def test_figure_has_alt_text_and_caption(visit, demo) -> None:
    page = visit.open(demo / "viewers.html")
    figure = page.locator("figure.medimg-figure")
    alt = figure.locator("img").get_attribute("alt")
    assert alt == "Four discs, three with an outline."
    assert figure.locator("figcaption").inner_text() == "Three discs are marked."


@pytest.mark.parametrize(
    "name",
    ["viewers", "volumes", "learning", "decisions", "designs", "quiz", "exercises"],
)
def test_demo_is_accessible(visit, demo: Path, name: str) -> None:
    visit.page.emulate_media(color_scheme="light", reduced_motion="reduce")
    visit.open(demo / f"{name}.html")
    assert not visit.barriers()
    visit.turn_dark()
    assert not visit.barriers(COLOUR)
    assert not visit.errors
    assert not visit.requests


@pytest.mark.parametrize("pale", [".highlight pre .n", "article h1"])
def test_what_is_too_pale_to_read_is_found(visit, demo: Path, pale: str) -> None:
    page = visit.open(demo / "images.html")
    page.add_style_tag(content=f"{pale} {{ color: #ddd !important }}")
    assert any(found.startswith("color-contrast") for found in visit.barriers())


def test_pale_code_after_a_folded_block_is_found(visit, demo: Path) -> None:
    page = visit.open(demo / "images.html")
    code = '<div class="highlight"><pre><span class="pale">name = 1</span></pre></div>'
    page.evaluate(
        "added => document.querySelector('article').insertAdjacentHTML("
        "'afterbegin', added)",
        f"<style>.pale {{ color: #ddd }}</style><details><summary>Folded</summary>{code}"
        f"</details>{code}",
    )
    found = [one for one in visit.barriers() if one.startswith("color-contrast")]
    assert len(found) == 1
    assert "pale" in found[0]


def test_whoever_asks_for_something_is_noted(visit, demo: Path) -> None:
    page = visit.open(demo / "images.html")
    assert not visit.requests
    worker = "fetch('https://example.org/worker').catch(() => 0)"
    page.evaluate(
        """code => {
          fetch("https://example.org/page").catch(() => 0);
          new WebSocket("wss://example.org/socket");
          new Worker(URL.createObjectURL(new Blob([code])));
        }""",
        worker,
    )
    page.wait_for_timeout(1000)
    asked = {url.rsplit("/", 1)[-1] for url in visit.requests}
    assert asked >= {"page", "socket", "worker"}


def test_a_pale_cell_in_a_long_table_is_found(visit, demo: Path) -> None:
    page = visit.open(demo / "images.html")
    rows = ["<tr><td>dark</td></tr>"] * 8
    rows.insert(6, '<tr><td style="color: #ddd">pale</td></tr>')
    page.evaluate(
        "rows => document.querySelector('article').insertAdjacentHTML("
        "'beforeend', `<table><tbody>${rows}</tbody></table>`)",
        "".join(rows),
    )
    found = [one for one in visit.barriers() if one.startswith("color-contrast")]
    assert len(found) == 1
    assert "pale" in found[0]


def test_a_solution_is_folded_until_it_is_asked_for(visit, demo: Path) -> None:
    page = visit.open(demo / "exercises.html")
    answer = page.get_by_text("It is two.")
    assert not answer.is_visible()
    page.locator(".solution button, .solution summary").first.click()
    answer.wait_for(state="visible")


def test_formulas_are_set_without_a_network(visit, demo: Path) -> None:
    page = visit.open(demo / "exercises.html")
    page.locator("mjx-container svg").first.wait_for(state="attached")
    assert not visit.requests
