"""Every notebook of the book keeps the form that readers and tests rely on."""

import ast
import re
from pathlib import Path

import first_cell
import nbformat
import pytest

BOOK = Path(__file__).parents[2] / "book"
NOTEBOOKS = first_cell.notebooks()
MAX_LINES = 25
MAX_COLUMNS = 88

pytestmark = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=[path.relative_to(BOOK).as_posix() for path in NOTEBOOKS]
)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def test_the_first_cell_is_that_of_the_repository(path: Path) -> None:
    cell = first_cell.first_cell()
    assert not first_cell.differs(path, cell), "run make first-cells"
    assert len(cell.splitlines()) <= 4


def test_there_are_no_outputs(path: Path) -> None:
    for cell in code_cells(path):
        assert not cell.outputs
        assert cell.execution_count is None
    assert "widgets" not in nbformat.read(path, as_version=4).metadata


def test_what_the_website_folds_is_folded_in_the_notebook_too(path: Path) -> None:
    """`source_hidden` folds a cell in JupyterLab, `cellView` on Colab."""
    in_solution = False
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            marks = re.findall(r"\{solution-(start|end)\}", cell.source)
            in_solution = marks[-1] == "start" if marks else in_solution
            continue
        folded = in_solution or any(
            tag.startswith("hide-") for tag in cell.metadata.get("tags", [])
        )
        assert cell.metadata.get("jupyter", {}) == (
            {"source_hidden": True} if folded else {}
        ), cell.id
        assert cell.metadata.get("cellView") == ("form" if folded else None), cell.id


def test_cells_are_short(path: Path) -> None:
    for number, cell in enumerate(code_cells(path)):
        lines = cell.source.splitlines()
        assert len(lines) <= MAX_LINES, f"code cell {number} has {len(lines)} lines"
        for line in lines:
            assert len(line) <= MAX_COLUMNS, f"code cell {number}: {line}"


def test_figures_go_through_show_figure(path: Path) -> None:
    for number, cell in enumerate(code_cells(path)):
        assert not re.search(r"\b(plt|pyplot)\.show\(", cell.source), (
            f"code cell {number}: use plotting.show_figure, which takes an alt text"
        )


def test_no_device_is_named(path: Path) -> None:
    for number, cell in enumerate(code_cells(path)):
        python = re.sub(r"^\s*[%!].*$", "", cell.source, flags=re.MULTILINE)
        if python.strip().endswith(":"):
            continue  # the first cell, whose body is a magic
        for node in ast.walk(ast.parse(python)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "cuda" not in node.value, f"code cell {number}"


def test_the_kernel_is_python3(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"


def test_there_is_one_title(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert len(re.findall(r"^# ", prose, flags=re.MULTILINE)) == 1
