"""A notebook alone in an empty folder, with the package from a wheel, runs.

That is what a reader has on Colab: no checkout, only the installed package.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
# One notebook is enough: nbmake runs them all, with the package of the checkout. This one
# reads simulated exams, asks networks that are shipped, reads results and shows a viewer.
NOTEBOOK = ROOT / "book" / "challenges" / "black-box.ipynb"
MAX_PACKAGE_DATA = 25_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    built = subprocess.run(
        [*command, "--outdir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder of its own; what it needs is there already."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, *options, str(wheel)], check=True)
    return folder


def environment(installed: Path) -> dict[str, str]:
    """Variables with which Python finds the wheel before the checkout."""
    data = os.environ.get("MEDIMG_DATA", str(ROOT / "data"))
    return {
        **os.environ,
        "PYTHONPATH": str(installed),
        "MEDIMG_SIZE": "tiny",
        "MEDIMG_DATA": data,
    }


def test_the_wheel_holds_all_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {
            name for name in archive.namelist() if name.startswith("medimg_utils/")
        }
        size = sum(archive.getinfo(name).file_size for name in names)
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "medimg_utils").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == sources
    assert size <= MAX_PACKAGE_DATA


def test_the_package_comes_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import medimg_utils.viewers as v; print(v.__file__); v.MaskOverlayViewer([[0, 1]])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(installed),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(installed))


def test_a_notebook_alone_runs(installed: Path, tmp_path: Path) -> None:
    target = tmp_path / NOTEBOOK.name
    shutil.copyfile(NOTEBOOK, target)
    notebook = nbformat.read(target, as_version=4)
    notebook.cells.append(
        nbformat.v4.new_code_cell("import medimg_utils; print(medimg_utils.__file__)")
    )
    nbformat.write(notebook, target)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--nbmake", "--overwrite", "-q"),
            *(
                "--nbmake-timeout=300",
                "--color=no",
                "-p",
                "no:cacheprovider",
                str(target),
            ),
        ],
        cwd=tmp_path,
        env=environment(installed),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = nbformat.read(target, as_version=4).cells[-1]
    assert last.outputs[0].text.startswith(str(installed))
    assert {path.name for path in tmp_path.iterdir()} == {NOTEBOOK.name}
