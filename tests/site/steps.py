"""What the tests do with a viewer on a page."""

from playwright.sync_api import Locator, Page

PICTURE = "node => node.toDataURL()"


def viewer(page: Page, title: str) -> Locator:
    """The viewer with that title."""
    return page.locator(f'.medimg-viewer[aria-label="{title}"]')


def drawn(page: Page) -> None:
    """Wait until what was asked for was drawn."""
    page.evaluate(
        "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def move(root: Locator, trait: str, value: float, index: int = 0) -> None:
    """Set a slider, the ``index``-th of its trait, and wait for the picture."""
    root.locator(f'input[data-trait="{trait}"]').nth(index).fill(str(value))
    drawn(root.page)


def choose(root: Locator, trait: str, value: str) -> None:
    """Choose from the list of a trait, and wait for the picture."""
    root.locator(f'select[data-trait="{trait}"]').select_option(value)
    drawn(root.page)


def shown(root: Locator, name: str) -> str:
    """The text in the cell of that name."""
    return root.locator(f'[data-value="{name}"]').inner_text()
