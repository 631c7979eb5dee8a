"""Outputs of the notebook tests reach the website, widgets included."""

import shutil
import subprocess
import sys
from pathlib import Path

import executed
import nbformat
import pytest
from jupyter_cache import get_cache


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A book with one notebook, which shows a viewer."""
    monkeypatch.setattr(executed, "ROOT", tmp_path)
    monkeypatch.setattr(executed, "EXECUTED", tmp_path / ".cache" / "executed")
    monkeypatch.setattr(executed, "KEPT", tmp_path / ".cache" / "notebooks")
    code = "from medimg_utils.viewers import MaskOverlayViewer\nMaskOverlayViewer([[0, 1]])"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code)], metadata={"kernelspec": kernel}
    )
    source = tmp_path / "book" / "part" / "page.ipynb"
    source.parent.mkdir(parents=True)
    nbformat.write(notebook, source)
    return tmp_path


def run(project: Path) -> int:
    """Run the copies as `make` does; return the status of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "--nbmake", "--overwrite"]
    done = subprocess.run(
        [*command, str(executed.EXECUTED)],
        cwd=project,
        check=False,
        capture_output=True,
    )
    return done.returncode


def test_outputs_are_kept_for_the_source(project: Path) -> None:
    source = project / "book" / "part" / "page.ipynb"
    before = source.read_bytes()
    executed.copy()
    assert run(project) == 0
    executed.keep()
    assert source.read_bytes() == before

    cache = get_cache(executed.KEPT)
    _, merged = cache.merge_match_into_notebook(nbformat.read(source, as_version=4))
    (output,) = merged.cells[0].outputs
    view = output.data["application/vnd.jupyter.widget-view+json"]
    widgets = merged.metadata.widgets["application/vnd.jupyter.widget-state+json"]
    assert view["model_id"] in widgets["state"]

    changed = nbformat.read(source, as_version=4)
    changed.cells[0].source += "\n1 + 1"
    with pytest.raises(KeyError):
        cache.match_cache_notebook(changed)


def test_what_passes_is_kept_though_another_notebook_fails(project: Path) -> None:
    sound = project / "book" / "part" / "page.ipynb"
    broken = sound.with_name("broken.ipynb")
    notebook = nbformat.read(sound, as_version=4)
    notebook.cells[0].source = "1 / 0"
    nbformat.write(notebook, broken)
    executed.copy()
    assert run(project) == 1
    executed.keep()
    assert [copy.name for copy in executed.copy()] == ["broken.ipynb"]


def test_outputs_of_code_that_was_edited_meanwhile_are_not_kept(project: Path) -> None:
    source = project / "book" / "part" / "page.ipynb"
    executed.copy()
    assert run(project) == 0
    edited = nbformat.read(source, as_version=4)
    edited.cells[0].source += "\n1 + 1"
    nbformat.write(edited, source)
    executed.keep()
    with pytest.raises(KeyError):
        get_cache(executed.KEPT).match_cache_notebook(edited)


def test_the_longest_come_first_and_a_new_one_before_all(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = {"short-needs": 0.5, "long-needs": 2.0}
    monkeypatch.setattr(executed.results, "names", lambda: list(needs))
    monkeypatch.setattr(
        executed.results,
        "load",
        lambda name: {"sizes": {"tiny": {"minutes": needs[name]}}},
    )
    page = project / "book" / "part" / "page.ipynb"
    for name in ("long", "short"):
        shutil.copy(page, page.with_stem(name))
    assert [copy.stem for copy in executed.copy()] == ["page", "long", "short"]


def test_copies_of_removed_notebooks_disappear(project: Path) -> None:
    executed.copy()
    (project / "book" / "part" / "page.ipynb").unlink()
    executed.copy()
    assert list(executed.EXECUTED.rglob("*.ipynb")) == []
