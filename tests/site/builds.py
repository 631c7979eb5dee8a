"""Build a small site with the settings of the book."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPILED = shutil.ignore_patterns("__pycache__")


def furnish(root: Path) -> None:
    """Put all that is not a page beside the pages in ``root/book``."""
    for name in ("_ext", "_extra", "_static"):
        shutil.copytree(ROOT / "book" / name, root / "book" / name, ignore=COMPILED)
    shutil.copy(ROOT / "book" / "references.bib", root / "book")
    shutil.copy(ROOT / "_config.yml", root)


def build(root: Path) -> Path:
    """Build the site, or what has changed of it; return its folder of pages."""
    jupyter_book = Path(sysconfig.get_path("scripts"), "jupyter-book")
    command = [str(jupyter_book), "build", "book"]
    command += ["--config", "_config.yml", "--path-output", ".", "-W", "--keep-going"]
    built = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=False, timeout=600
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return root / "_build" / "html"
