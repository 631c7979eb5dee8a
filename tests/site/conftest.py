"""A browser without a network, and two sites to open in it: the book and a demo."""

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from visits import Visit, offline

ROOT = Path(__file__).parents[2]
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
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the demo with the settings of the book; return its folder of pages."""
    root = tmp_path_factory.mktemp("demo")
    shutil.copytree(DEMO, root / "book")
    for name in ("_ext", "_extra", "_static"):
        shutil.copytree(ROOT / "book" / name, root / "book" / name)
    shutil.copy(ROOT / "book" / "references.bib", root / "book")
    shutil.copy(ROOT / "_config.yml", root)
    jupyter_book = Path(sysconfig.get_path("scripts"), "jupyter-book")
    command = [str(jupyter_book), "build", "book"]
    command += ["--config", "_config.yml", "--path-output", ".", "-W", "--keep-going"]
    built = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return root / "_build" / "html"
