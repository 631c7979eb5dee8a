"""A browser without a network, and two sites to open in it: the book and a demo."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from builds import build, furnish
from filelock import FileLock
from playwright.sync_api import Browser, sync_playwright
from visits import Visit, offline

DEMO = Path(__file__).parent / "demo"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium; CHROMIUM names another one."""
    found = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, CHROMIUM)), None
    )
    if found is None:
        pytest.fail(
            f"there is no browser. Install {' or '.join(CHROMIUM)}, or let the variable "
            "CHROMIUM name another one."
        )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A fresh page without a network."""
    with offline(browser) as record:
        yield record


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Build the demo, once for all processes of pytest; return its folder of pages."""
    ours = tmp_path_factory.getbasetemp()
    root = (ours if worker_id == "master" else ours.parent) / "demo"
    built = root / "built"
    with FileLock(root.with_suffix(".lock")):
        if not root.exists():
            shutil.copytree(DEMO, root / "book")
            furnish(root)
            build(root)
            built.touch()
    assert built.exists(), "another process of pytest could not build the demo"
    return root / "_build" / "html"
