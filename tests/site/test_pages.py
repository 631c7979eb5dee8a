"""Every page of the built book, opened from the disk in a browser without a network."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from visits import COLOUR, Visit, offline

BOOK = Path(__file__).parents[2] / "book"
HTML = Path(__file__).parents[2] / "_build" / "html"
# Not the templates that the theme leaves among its static files.
PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.rglob("*.html")
    if "_static" not in path.parts
)
MAX_PAGE_BYTES = 3_000_000


def pages_with(text: str) -> list[str]:
    """Pages of the notebooks in which that text stands."""
    return sorted(
        path.relative_to(BOOK).with_suffix(".html").as_posix()
        for path in BOOK.glob("*/*.ipynb")
        if text in path.read_text(encoding="utf-8")
    )


QUIZZES = pages_with("display_quiz(")
WITH_VIEWERS = pages_with("from medimg_utils.viewers import")


def test_the_book_was_built() -> None:
    assert "index.html" in PAGES, "there is no built book: run make book first"
    assert len(WITH_VIEWERS) > 12
    assert len(QUIZZES) > 12
    assert {*QUIZZES, *WITH_VIEWERS} <= {*PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_page_names_no_other_host_to_load_from(page: str) -> None:
    text = (HTML / page).read_text(encoding="utf-8")
    loads = (
        r"<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=[\"']?(https?:)?//"
    )
    assert not re.search(loads, text)
    assert "cdn." not in text
    assert len(text.encode()) <= MAX_PAGE_BYTES


@pytest.fixture(scope="module", params=PAGES)
def opened(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Visit]:
    """A page, opened once for all tests of it: a chapter takes seconds."""
    with offline(browser) as visit:
        visit.page.emulate_media(color_scheme="light", reduced_motion="reduce")
        visit.open(HTML / request.param)
        yield visit
        assert not visit.requests, "since it was opened, the page asked for something"
        assert not visit.errors


def is_one_of(visit: Visit, pages: list[str]) -> bool:
    return any(visit.page.url.endswith(f"/{page}") for page in pages)


def test_no_picture_is_missing(opened: Visit) -> None:
    broken = "nodes => nodes.filter(n => n.complete && !n.naturalWidth).map(n => n.src)"
    assert not opened.page.locator("img").evaluate_all(broken)


def test_figures_have_alt_text(opened: Visit) -> None:
    images = opened.page.locator(".cell_output img")
    for alt in images.evaluate_all("nodes => nodes.map(node => node.alt)"):
        # Without a text of its own MyST-NB writes the name of the file.
        assert len(alt) > 15
        assert not alt.endswith(".png")


def test_viewers_are_alive(opened: Visit) -> None:
    viewers = opened.page.locator(".medimg-viewer")
    if is_one_of(opened, WITH_VIEWERS):
        viewers.first.wait_for(timeout=15_000)
    for viewer in viewers.all():
        picture = viewer.locator("canvas").first
        before = picture.evaluate("node => node.toDataURL()")
        slider = viewer.locator(
            'input[data-trait="opacity"], input[type="range"]'
        ).first
        slider.focus()
        # From one end to the other: whatever it sets, the picture must follow.
        seen = set()
        for key in ("Home", "End"):
            slider.press(key)
            opened.page.wait_for_timeout(150)
            seen.add(picture.evaluate("node => node.toDataURL()"))
        assert len(seen | {before}) > 1


def test_page_is_accessible(opened: Visit) -> None:
    assert not opened.barriers()
    opened.turn_dark()
    assert not opened.barriers(COLOUR)


def test_quiz_tells_wrong_from_right(opened: Visit) -> None:
    questions = opened.page.locator("div.Quiz")
    if is_one_of(opened, QUIZZES):
        questions.first.wait_for(timeout=15_000)
    for question in questions.all():
        feedback, told = question.locator(".Feedback"), []
        for correct, name in (("false", "incorrect"), ("true", "correct")):
            question.locator(f'.MCButton[data-correct="{correct}"]').first.click()
            expect(feedback).to_have_class(f"Feedback {name}")
            told.append(feedback.inner_text().strip())
        wrong, right = told
        assert wrong
        assert right
        assert wrong != right


def test_search_works_from_the_disk(visit) -> None:
    page = visit.open(HTML / "search.html", "?q=pneumothorax")
    result = page.locator("#search-results li a").first
    result.wait_for(timeout=15_000)
    assert not visit.errors
    assert not visit.requests
