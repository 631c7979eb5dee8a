"""A browser without a network, and two sites to open in it: the book and a demo."""

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, sync_playwright

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


# How many viewers of this project the page describes; they appear a little later.
COUNT_VIEWERS = """() => {
  const parse = kind => [...document.querySelectorAll(
    `script[type="application/vnd.jupyter.widget-${kind}+json"]`
  )].map(node => JSON.parse(node.textContent));
  const models = Object.assign({}, ...parse("state").map(one => one.state));
  const id = one => models[one.model_id]?.state._anywidget_id ?? "";
  return parse("view").filter(one => id(one).startsWith("medimg_utils.")).length;
}"""


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


@dataclass
class Visit:
    """An open page and what went wrong while it was open."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, path: Path, query: str = "") -> Page:
        """Load a local page and wait for its viewers."""
        self.page.goto(path.as_uri() + query, wait_until="load")
        self.page.wait_for_function(
            "n => document.querySelectorAll('.medimg-viewer[data-ready]').length >= n",
            arg=self.viewers(),
            timeout=30_000,
        )
        return self.page

    def viewers(self) -> int:
        """How many viewers the page describes."""
        return int(self.page.evaluate(COUNT_VIEWERS))

    def barriers(self) -> list[str]:
        """Violations of accessibility that axe calls serious or critical."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{one['id']}: {node['html']} {[why['message'] for why in node['any']]}"
            for one in found
            if one["impact"] in {"serious", "critical"}
            for node in one["nodes"]
        ]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A fresh page; any request that leaves the disk is refused and noted."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    record = Visit(context.new_page())

    def refuse(route: Route) -> None:
        url = route.request.url
        if url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            record.requests.append(url)
            route.abort()

    context.route("**/*", refuse)
    record.page.on(
        "console",
        lambda message: (
            record.errors.append(message.text) if message.type == "error" else None
        ),
    )
    record.page.on(
        "requestfailed", lambda request: record.errors.append(f"lacks {request.url}")
    )
    record.page.on("pageerror", lambda error: record.errors.append(str(error)))
    yield record
    context.close()


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
