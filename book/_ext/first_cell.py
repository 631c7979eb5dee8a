"""Check or write the first cell of every notebook.

Usage: python book/_ext/first_cell.py [--write]

The cell holds the address of the repository. The address is kept in _config.yml alone;
this script compares the notebooks with it, or brings them up to date.
"""

import sys
from pathlib import Path
from urllib.parse import urlparse

import nbformat
import yaml

ROOT = Path(__file__).parents[2]
CELL = """\
# On Colab this installs the book's package; elsewhere it does nothing.
if "google.colab" in str(get_ipython()):
    %pip install -q "medimg-utils @ git+{url}\""""


def first_cell(root: Path = ROOT) -> str:
    """Return the first cell, with the address from ``_config.yml``."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    url = config["repository"]["url"]
    if urlparse(url).scheme != "https" or set("\"'\\ ") & set(url):
        raise ValueError(f"repository.url in _config.yml is {url!r}, expected https://")
    return CELL.format(url=url)


def notebooks(root: Path = ROOT) -> list[Path]:
    """Return the notebooks of the book."""
    found = (root / "book").rglob("*.ipynb")
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def differs(path: Path, cell: str) -> bool:
    """Is the first code cell of the notebook at ``path`` another one?"""
    cells = nbformat.read(path, as_version=4).cells
    code = [one for one in cells if one.cell_type == "code"]
    return not code or code[0].source != cell


def write(path: Path, cell: str) -> None:
    """Replace the old first code cell; add one where there is none."""
    notebook = nbformat.read(path, as_version=4)
    code = [one for one in notebook.cells if one.cell_type == "code"]
    if code and "google.colab" in code[0].source:
        code[0].source = cell
    else:
        added = nbformat.v4.new_code_cell(cell, metadata={"tags": ["hide-input"]})
        place = notebook.cells.index(code[0]) if code else len(notebook.cells)
        notebook.cells.insert(place, added)
    nbformat.write(notebook, path)


def main(arguments: list[str]) -> int:
    """Run the command line."""
    cell = first_cell()
    wrong = [path for path in notebooks() if differs(path, cell)]
    for path in wrong:
        if arguments == ["--write"]:
            write(path, cell)
            print(f"wrote the first cell of {path.relative_to(ROOT)}")
        else:
            print(f"{path.relative_to(ROOT)}: run make first-cells", file=sys.stderr)
    return 0 if arguments == ["--write"] else len(wrong) > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
